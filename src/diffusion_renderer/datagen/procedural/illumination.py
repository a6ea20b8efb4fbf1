"""More kinds of procedural light: large soft boxes, windows, spotlights, streets at night, grey skies, sunsets, trees.

Each function takes directions (rows columns 3) of a panorama and returns its linear radiance, of any scale.
"""

from __future__ import annotations

import numpy as np

from diffusion_renderer.datagen.procedural.emitters import random_direction, rectangle, sun_disc, tint
from diffusion_renderer.datagen.procedural.noise import covering, gaussian, smoothstep


def _noise(rng: np.random.Generator, d: np.ndarray, roughness: float, coarsest: float) -> np.ndarray:
    """Noise of mean 0 and deviation 1, about as fine in azimuth as in elevation; it is pinched at the poles."""
    return gaussian(rng, d.shape[:2], roughness, coarsest, (1.0, 0.5))


def _vivid(rng: np.random.Generator) -> np.ndarray:
    """A saturated light colour of mean 1: gels, neon, stained glass."""
    colour = np.exp(rng.normal(0, 1.1, 3))
    return (colour / colour.mean()).astype(np.float32)


def _tint(rng: np.random.Generator, strength: float) -> np.ndarray:
    # Single precision, as the directions are: a panorama then takes half the time.
    return tint(rng, strength).astype(np.float32)


def _tangent_plane(d: np.ndarray, centre: np.ndarray, roll: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates to the right and up on the plane at ``centre``, and where that side of the sphere is seen."""
    right = np.cross([0.0, 1.0, 0.0], centre)
    right = right / max(np.linalg.norm(right), 1e-6)
    up = np.cross(centre, right)
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    depth = d @ centre
    safe = np.maximum(depth, 1e-3)
    return (d @ right) / safe, (d @ up) / safe, depth > 1e-2


def softboxes(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """A dark studio with one to four large lights, brighter in their middle or to one side, and thin strips for rims."""
    image = np.full_like(d, rng.uniform(0.001, 0.06)) * _tint(rng, 0.2)
    for _ in range(int(rng.integers(1, 5))):
        centre, strip = random_direction(rng, -10, 80), rng.random() < 0.3
        half_width, half_height = (0.08, rng.uniform(0.5, 1.3)) if strip else rng.uniform(0.25, 1.0, 2)
        roll = rng.uniform(-0.6, 0.6)
        x, y, front = _tangent_plane(d, centre, roll)
        mask = rectangle(d, centre, roll, half_width, half_height, rng.uniform(0.01, 0.15))
        x, y = np.clip(x / half_width, -1.2, 1.2), np.clip(y / half_height, -1.2, 1.2)
        middle = np.exp(-rng.uniform(0.0, 2.5) * (x * x + y * y))
        side = 1 + rng.uniform(0, 0.9) * (np.cos(a := rng.uniform(0, 2 * np.pi)) * x + np.sin(a) * y) / 1.5
        colour = _vivid(rng) if rng.random() < 0.2 else _tint(rng, 0.15)
        power = rng.uniform(0.5, 3.0) * (3.0 if strip else 1.0)
        image = image + (mask * front * middle * np.maximum(side, 0.05) * power)[..., None] * colour
    return image


def _room_walls(rng: np.random.Generator, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distance ratio per direction to the walls of a box: hit points, axis hit, its sign, and the room's half sizes."""
    size = np.float32([rng.uniform(1.5, 4), rng.uniform(1.2, 2), rng.uniform(1.5, 4)])
    offset = size * rng.uniform(-0.4, 0.4, 3)
    distance = (size - np.sign(d) * offset) / np.maximum(np.abs(d), 1e-6)
    axis = distance.argmin(-1)
    hit = offset + d * distance.min(-1)[..., None]
    sign = np.sign(np.take_along_axis(d, axis[..., None], -1)[..., 0])
    return hit, axis, sign, size


def windows(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """A dim room lit through one or two walls: clear panes, stained glass, or the slits of a blind, with a sunlit patch."""
    hit, axis, sign, size = _room_walls(rng, d)
    wall, floor = (
        _tint(rng, 0.2) * rng.uniform(0.02, 0.3),
        _tint(rng, 0.3) * rng.uniform(0.02, 0.2) * np.float32([1.15, 0.95, 0.7]),
    )
    image = np.where((axis == 1)[..., None] & (sign < 0)[..., None], floor, wall)
    image = image * (1 + 0.15 * _noise(rng, d, 0.6, 4.0))[..., None]
    for _ in range(int(rng.integers(1, 3))):
        side, facing = int(rng.choice([0, 2])), rng.choice([-1, 1])
        other = 2 - side
        across = (hit[..., other] - rng.uniform(-0.5, 0.5) * size[other]) / rng.uniform(0.4, 0.8 * size[other])
        upward = (hit[..., 1] - rng.uniform(-0.1, 0.3)) / rng.uniform(0.5, 0.9 * size[1])
        inside = (axis == side) & (sign == facing) & (np.abs(across) < 1) & (np.abs(upward) < 1)
        light = _tint(rng, 0.35) * rng.uniform(4, 30)
        columns, rows = (int(n) for n in rng.integers(1, 5, 2))
        style = rng.choice(["clear", "stained", "blind"], p=[0.4, 0.3, 0.3])
        x, y = 0.5 * (np.clip(across, -1, 0.999) + 1), 0.5 * (np.clip(upward, -1, 0.999) + 1)
        if style == "blind":
            slats = int(rng.integers(6, 16))
            glow = light * (0.04 + (y * slats % 1.0 < rng.uniform(0.25, 0.7)))[..., None]
        else:
            if style == "stained":
                columns, rows = columns + 2, rows + 2
            panes = np.ones((rows, columns, 3)) if style == "clear" else np.exp(rng.normal(-0.4, 0.9, (rows, columns, 3)))
            bar = (np.minimum(x * columns % 1, 1 - x * columns % 1) < 0.06) | (
                np.minimum(y * rows % 1, 1 - y * rows % 1) < 0.06
            )
            shade = (0.4 + 0.9 * y) * ~bar
            glow = light * panes[(y * rows).astype(int), (x * columns).astype(int)] * shade[..., None]
        image = np.where(inside[..., None], glow, image)
        if rng.random() < 0.5:  # the sun's patch on the floor
            patch = rectangle(d, random_direction(rng, -75, -30), rng.uniform(-0.8, 0.8), *rng.uniform(0.1, 0.5, 2), 0.03)
            image = image + patch[..., None] * light * rng.uniform(0.05, 0.3) * np.float32([1.2, 1.0, 0.75])
    return image


def spotlights(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """One to three small strong lamps in the dark, white or coloured: hard shadows, high contrast."""
    image = np.full_like(d, 1.0) * _tint(rng, 0.4) * np.exp(rng.uniform(np.log(0.003), np.log(0.15)))
    image = image * (1 + 0.3 * rng.uniform(-1, 1) * d[..., 1:2])
    for _ in range(int(rng.integers(1, 4))):
        disc = sun_disc(rng, d, random_direction(rng, 5, 85), overcast=False)
        colour = _vivid(rng) if rng.random() < 0.3 else _tint(rng, 0.3)
        image = image + disc[..., None] * colour * rng.uniform(0.15, 1.0)
    return image


def street_night(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """A dark sky over house fronts with lit windows, street lamps, neon signs, and their gleam on the ground."""
    rows, columns = d.shape[:2]
    y = d[..., 1]
    sky = _tint(rng, 0.5) * rng.uniform(0.002, 0.03) * (1 + 2 * np.exp(-6 * np.abs(y)))[..., None]
    ground = _tint(rng, 0.2) * rng.uniform(0.005, 0.04) * (1 + 0.3 * _noise(rng, d, 0.7, 4.0))[..., None]
    image = np.where((y > 0)[..., None], sky, ground)
    image = image + _fronts(rng, rows, columns)
    lamps = int(rng.integers(8, 60))
    row = np.clip(rows * (0.5 - np.abs(rng.normal(0.03, 0.08, lamps))), 0, rows - 1)
    column, strength = rng.random(lamps) * columns, np.exp(rng.normal(1.5, 1.2, lamps))
    family = [np.float32([1.6, 0.95, 0.45]), np.float32([1.0, 1.0, 1.05]), np.float32([1.3, 1.0, 0.7])][int(rng.integers(0, 3))]
    for r, c, s in zip(row, column, strength, strict=True):
        colour = _vivid(rng) if rng.random() < 0.2 else family * np.exp(rng.normal(0, 0.1, 3))
        _add_glow(image, r, c, s * colour, rng.uniform(0.6, 1.6) * rows / 128)
        _add_glow(image, rows - r, c, 0.06 * s * colour, 2.0 * rows / 128)
    for _ in range(int(rng.integers(0, 5))):  # signs and shop windows
        sign = rectangle(d, random_direction(rng, -5, 20), 0.0, rng.uniform(0.02, 0.25), rng.uniform(0.02, 0.12), 0.02)
        image = image + sign[..., None] * _vivid(rng) * rng.uniform(1, 8)
    return image


def _fronts(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Lit windows of house fronts above the horizon, a raster in azimuth and elevation."""
    image = np.zeros((rows, columns, 3), np.float32)
    across, storeys = int(rng.integers(30, 90)), int(rng.integers(3, 9))
    lit = (rng.random((storeys, across)) < rng.uniform(0.05, 0.4))[..., None] * rng.uniform(0.1, 1.5, (storeys, across, 1))
    lit = lit * np.float32([1.3, 1.0, 0.6]) * np.exp(rng.normal(0, 0.2, (storeys, across, 3)))
    lit *= (np.arange(storeys)[:, None] < rng.integers(1, storeys + 1, across // 5 + 1).repeat(5)[:across])[..., None]
    u = np.arange(columns) / columns * across
    height = (0.5 - (np.arange(rows) + 0.5) / rows) / (0.5 * rng.uniform(0.15, 0.45)) * storeys
    inside_u, inside_v = (u % 1 > 0.3) & (u % 1 < 0.75), (height % 1 > 0.25) & (height % 1 < 0.8)
    seen = (height >= 0) & (height < storeys)
    picked = lit[np.clip(height, 0, storeys - 1).astype(int)][:, u.astype(int)]
    image += picked * (inside_v & seen)[:, None, None] * inside_u[None, :, None]
    return image


def _add_glow(image: np.ndarray, row: float, column: float, colour: np.ndarray, radius: float) -> None:
    """Add a small round Gaussian lamp at a place given in texels; wraps around sideways."""
    reach = int(np.ceil(2.5 * radius))
    r = np.arange(int(row) - reach, int(row) + reach + 1)
    c = np.arange(int(column) - reach, int(column) + reach + 1)
    r = r[(r >= 0) & (r < len(image))]
    shape = np.exp(-((r[:, None] - row) ** 2 + (c - column) ** 2) / (2 * radius**2) * 2)
    image[r[:, None], c % image.shape[1]] += shape[..., None] * colour


def overcast(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """The CIE standard overcast sky, (1 + 2 sin elevation) / 3, with faint clouds, over a ground with a dark skyline."""
    y = d[..., 1]
    sky = _tint(rng, 0.08) * ((1 + 2 * np.clip(y, 0, 1)) / 3 * (1 + rng.uniform(0, 0.2) * _noise(rng, d, 0.4, 3.0)))[..., None]
    towards = np.clip(d @ random_direction(rng, 15, 70).astype(np.float32), -1, 1)
    sky = sky * (1 + rng.uniform(0, 1.5) * np.exp((towards - 1) * rng.uniform(2, 12)))[..., None]
    ground = _tint(rng, 0.2) * rng.uniform(0.03, 0.3) * (1 + 0.2 * _noise(rng, d, 0.6, 3.0))[..., None]
    return _over_skyline(rng, d, sky, ground)


def _over_skyline(rng: np.random.Generator, d: np.ndarray, sky: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Sky above, ground below, hills or trees or roofs between."""
    rows, columns = d.shape[:2]
    line = _noise(rng, d, rng.uniform(0.2, 0.7), 3.0)[rows // 2]
    top = rng.uniform(0, 0.12) * np.maximum(line + rng.uniform(-0.5, 1.5), 0)
    if rng.random() < 0.4:  # roofs: constant over stretches
        step = max(columns // 40, 1)
        top = np.repeat(top[::step], step)[:columns]
    above = smoothstep(-0.01, 0.01, d[..., 1] - top)[..., None]
    skyline = _tint(rng, 0.2) * rng.uniform(0.02, 0.12)
    below = np.where((d[..., 1] > 0)[..., None], skyline, ground)
    return sky * above + below * (1 - above)


def sunset(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """A sun within eight degrees of the horizon, a sky from orange or pink to blue, clouds lit from below."""
    y, elevation = d[..., 1], rng.uniform(0.5, 8.0)
    sun = random_direction(rng, elevation, elevation)
    towards = np.clip(d @ sun.astype(np.float32), -1, 1)
    warm = np.float32([1.6, rng.uniform(0.5, 0.9), rng.uniform(0.15, 0.6)])
    blue = np.float32([0.25, 0.35, 0.75]) * rng.uniform(0.3, 1.0)
    near = np.exp(-np.clip(y, 0, 1) * rng.uniform(2.5, 6))[..., None] * (0.35 + 0.65 * (0.5 + 0.5 * towards)[..., None])
    sky = blue * (1 - near) + warm * near + np.exp((towards - 1) * rng.uniform(6, 30))[..., None] * warm * rng.uniform(0.5, 3)
    cover = covering(_noise(rng, d, rng.uniform(0.35, 0.55), 3.0), rng.uniform(0.0, 0.6), 1.2) * smoothstep(0.0, 0.2, y)
    lit = warm * rng.uniform(0.4, 1.6) * (0.3 + 0.7 * (0.5 + 0.5 * towards) ** 2)[..., None] + 0.3 * blue
    sky = sky * (1 - cover[..., None]) + lit * cover[..., None]
    sky = sky + (sun_disc(rng, d, sun, overcast=False) * (1 - 0.8 * cover))[..., None] * np.float32([1.0, 0.55, 0.2])
    ground = np.float32([0.14, 0.12, 0.11]) * rng.uniform(0.2, 1.2) * (1 + 0.25 * _noise(rng, d, 0.6, 3.0))[..., None]
    return _over_skyline(rng, d, sky, ground)


def canopy(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """Under trees: bright gaps of sky, and perhaps of sun, between dark and translucent leaves."""
    y = d[..., 1]
    leaves = 0.75 * _noise(rng, d, 0.65, 6.0) + 0.65 * _noise(rng, d, 0.4, 2.0)
    gaps = covering(leaves, rng.uniform(0.08, 0.45), 0.4) * smoothstep(-0.05, 0.25, y)
    green = np.float32([0.16, 0.24, 0.06]) * np.exp(rng.normal(0, 0.25, 3)) * rng.uniform(0.3, 1.2)
    foliage = green * np.exp(0.35 * leaves + 0.8 * y)[..., None]
    towards = random_direction(rng, 25, 75)
    sky = np.float32([0.75, 0.9, 1.2]) * rng.uniform(1.5, 5.0) + sun_disc(rng, d, towards, overcast=False)[..., None] * [
        1,
        0.95,
        0.85,
    ]
    floor = np.float32([0.16, 0.13, 0.08]) * rng.uniform(0.3, 1.2) * np.exp(0.4 * _noise(rng, d, 0.7, 4.0))[..., None]
    scene = np.where((y > -0.03)[..., None], foliage, floor)
    return scene * (1 - gaps[..., None]) + sky * gaps[..., None]
