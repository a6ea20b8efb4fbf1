"""Lights: procedural panoramas and panoramas from files. Linear radiance, in the layout of CONVENTIONS ("Lighting").

A clip's exposure is set afterwards, so only ratios within a panorama matter here; procedural ones have a mean near 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.panorama import average_panorama
from diffusion_renderer.datagen.procedural import illumination
from diffusion_renderer.datagen.procedural.emitters import directions, random_direction, rectangle, sun_disc, tint
from diffusion_renderer.datagen.procedural.noise import fractal, smoothstep
from diffusion_renderer.io import read_environment

#: The brightest value kept, as a multiple of the mean luminance: a clear sun's energy survives, single-texel spikes do not.
_BRIGHTEST = 3000.0
_SUFFIXES = (".hdr", ".exr")


def list_panoramas(folder: Path) -> tuple[Path, ...]:
    """The .hdr and .exr files of ``folder``, sorted by name. Raises InputError when there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("a folder of .hdr or .exr panoramas", f"{folder}, which is not a folder", "check the path")
    files = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES))
    if not files:
        raise InputError(
            "a folder of .hdr or .exr panoramas", f"no such file in {folder}", "give another folder, or leave it out"
        )
    return files


@functools.lru_cache(maxsize=64)
def read_panorama(path: Path, height: int) -> Float[np.ndarray, "height width 3"]:
    """A panorama file averaged down over solid angle to ``height`` rows; NaN becomes 0, values are clamped to [0, 65504].

    Raises InputError when it is smaller than that, cannot be read, or is not twice as wide as high. Not read with Mitsuba's
    bitmap class: on a machine of one core its EXR reader waits for ever (3.9).
    """
    radiance = read_environment(path).radiance
    rows, columns = radiance.shape[-2:]
    if rows < height:
        raise InputError(f"a panorama of at least {height} rows", f"{columns}x{rows} in {path}", "replace or remove the file")
    return average_panorama(radiance, height, 2 * height).permute(1, 2, 0).numpy()


def file_panorama(rng: np.random.Generator, path: Path, height: int) -> Float[np.ndarray, "height width 3"]:
    """A panorama file turned about the vertical axis by a random whole number of texels."""
    return _limited(np.roll(read_panorama(path, height), int(rng.integers(0, 2 * height)), axis=1))


def procedural_panorama(rng: np.random.Generator, height: int) -> tuple[str, Float[np.ndarray, "height width 3"]]:
    """Kind and radiance of a random procedural panorama, turned about the vertical axis at random."""
    kind = str(rng.choice(list(_KINDS), p=[weight for weight, _ in _KINDS.values()]))
    return kind, panorama_of_kind(rng, kind, height)


def panorama_of_kind(rng: np.random.Generator, kind: str, height: int) -> Float[np.ndarray, "height width 3"]:
    """A procedural panorama of one of `PANORAMA_KINDS`, of mean 1."""
    image = _KINDS[kind][1](rng, _directions(height))
    image = np.roll(image, int(rng.integers(0, 2 * height)), axis=1)
    return _limited(image / max(float(image.mean()), 1e-6))


@functools.lru_cache(maxsize=4)
def _directions(height: int) -> Float[np.ndarray, "height width 3"]:
    d = directions(height)
    d.flags.writeable = False
    return d


def _limited(image: np.ndarray) -> np.ndarray:
    limit = min(_BRIGHTEST * max(float(image.mean()), 1e-8), 65504.0)
    return np.clip(image, 0.0, limit).astype(np.float32)


def _sky(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """Sun, sky gradient, clouds, ground."""
    height, width = d.shape[:2]
    y = d[..., 1]
    elevation = rng.uniform(3, 75)
    sun = random_direction(rng, elevation, elevation)
    low_sun = np.clip(1 - elevation / 35, 0, 1)
    zenith = np.array([0.25, 0.45, 1.0]) * rng.uniform(0.5, 1.2) * np.exp(rng.normal(0, 0.15, 3))
    horizon = (1 - low_sun) * np.array([0.75, 0.88, 1.0]) + low_sun * np.array([1.3, 0.8, 0.5]) * rng.uniform(0.6, 1.4)
    blend = np.clip(y, 0, 1)[..., None] ** rng.uniform(0.35, 0.8)
    sky = horizon * (1 - blend) + zenith * blend
    towards = np.clip(d @ sun, -1, 1)
    glow = np.exp((towards - 1) * rng.uniform(4, 25))[..., None] * np.array([1.2, 1.0, 0.75]) * rng.uniform(0.2, 2.0)
    sky = sky + glow
    cover = float(rng.choice([0.0, rng.uniform(0.2, 0.7), rng.uniform(0.8, 1.0)], p=[0.35, 0.45, 0.2]))
    noise = fractal(rng, height, width, rng.uniform(0.3, 0.55), rng.uniform(2, 6))
    cloud = (smoothstep(1 - cover, 1 - cover + 0.35, noise) if cover > 0 else np.zeros_like(noise)) * smoothstep(0.0, 0.15, y)
    lit = np.array([1.0, 0.97, 0.95]) * (0.6 + 0.9 * noise[..., None]) * rng.uniform(0.7, 1.6) + 0.5 * glow
    sky = sky * (1 - cloud[..., None]) + lit * cloud[..., None]
    sky = sky + sun_disc(rng, d, sun, overcast=cover > 0.75)[..., None] * (
        np.array([1.0, 0.95 - 0.35 * low_sun, 0.88 - 0.6 * low_sun]) * (1 - 0.6 * cloud[..., None])
    )
    ground = np.array([0.30, 0.27, 0.22]) * np.exp(rng.normal(0, 0.35, 3)) * rng.uniform(0.3, 1.5)
    ground = ground * (0.6 + 0.8 * fractal(rng, height, width, 0.6)[..., None])
    above = smoothstep(-0.015, 0.015, y + 0.04 * (fractal(rng, height, width, 0.5)[height // 2] - 0.7) * rng.integers(0, 2))
    return sky * above[..., None] + ground * (1 - above[..., None])


def _studio(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """One to six soft boxes, strips and round lamps before a dim background."""
    y = 0.5 + 0.5 * d[..., 1:2]
    top, bottom = tint(rng, 0.2) * rng.uniform(0.01, 0.35), tint(rng, 0.2) * rng.uniform(0.01, 0.25)
    image = top * y + bottom * (1 - y)
    for _ in range(int(rng.integers(1, 7))):
        centre = random_direction(rng, -20, 85)
        colour = tint(rng, rng.choice([0.08, 0.3, 1.0], p=[0.5, 0.35, 0.15]))
        if rng.random() < 0.2:
            radius = rng.uniform(0.05, 0.4)
            mask = smoothstep(np.cos(radius * 1.15), np.cos(radius), d @ centre)
            area = np.pi * radius**2
        else:
            half_width, half_height = rng.uniform(0.08, 0.7), rng.uniform(0.08, 0.7)
            mask = rectangle(d, centre, rng.uniform(-0.5, 0.5), half_width, half_height, rng.uniform(0.01, 0.08))
            area = 4 * half_width * half_height
        power = rng.uniform(0.4, 3.0) * np.clip(0.4 / area, 0.4, 12.0) ** 0.7
        image = image + mask[..., None] * colour * power
    return image


def _room(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """The inside of a box-shaped room with windows, ceiling lamps, furniture-like patches; seen from inside it."""
    height, width = d.shape[:2]
    size = np.array([rng.uniform(2, 5), rng.uniform(1.2, 2), rng.uniform(2, 5)])
    offset = size * rng.uniform(-0.5, 0.5, 3)
    distance = np.where(d > 0, (size - offset) / np.maximum(np.abs(d), 1e-6), (size + offset) / np.maximum(np.abs(d), 1e-6))
    axis = distance.argmin(-1)
    hit = offset + d * distance.min(-1)[..., None]
    wall = tint(rng, 0.15) * rng.uniform(0.08, 0.5)
    floor = tint(rng, 0.25) * rng.uniform(0.05, 0.3) * np.array([1.1, 0.95, 0.75])
    ceiling = tint(rng, 0.08) * rng.uniform(0.2, 0.6)
    surface = np.where((axis == 1)[..., None], np.where((d[..., 1] > 0)[..., None], ceiling, floor), wall)
    noise = fractal(rng, height, width, 0.65, 4)[..., None]
    image = surface * (0.7 + 0.6 * noise) * (0.5 + 0.5 * np.exp(-0.15 * distance.min(-1)))[..., None]
    for _ in range(int(rng.integers(0, 6))):  # dark and coloured patches: furniture, doors, pictures
        patch = rectangle(d, random_direction(rng, -40, 15), 0.0, rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5), 0.02)
        image = image * (1 - patch[..., None]) + patch[..., None] * rng.uniform(0.02, 0.35, 3)
    outside = tint(rng, 0.3) * rng.uniform(3, 25)
    for _ in range(int(rng.integers(1, 4))):  # windows on one of the four walls
        side, sign = int(rng.choice([0, 2])), rng.choice([-1, 1])
        other = 2 - side
        u0, w = rng.uniform(-0.7, 0.7) * size[other], rng.uniform(0.3, 1.2)
        v0, h = rng.uniform(-0.1, 0.4), rng.uniform(0.3, 0.9)
        on = (axis == side) & (np.sign(d[..., side]) == sign)
        inside = on & (np.abs(hit[..., other] - u0) < w) & (np.abs(hit[..., 1] - v0) < h)
        bars = (np.abs(hit[..., other] - u0) < 0.04) | (np.abs(hit[..., 1] - v0) < 0.04)
        shade = (0.6 + 0.6 * smoothstep(-h, h, hit[..., 1] - v0))[..., None]
        image = np.where((inside & ~bars)[..., None], outside * shade, image)
    for _ in range(int(rng.integers(0, 4))):  # lamps
        lamp = rectangle(
            d, random_direction(rng, 25, 85), rng.uniform(-0.5, 0.5), rng.uniform(0.03, 0.25), rng.uniform(0.03, 0.25), 0.02
        )
        image = image + lamp[..., None] * tint(rng, 0.35) * rng.uniform(3, 20)
    return image


def _gradients(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """Broad coloured lobes: every side of an object gets another colour."""
    image = np.full_like(d, rng.uniform(0.02, 0.3))
    for _ in range(int(rng.integers(2, 8))):
        sharpness = np.exp(rng.uniform(np.log(0.8), np.log(60)))
        lobe = np.exp((d @ random_direction(rng, -60, 90) - 1) * sharpness)
        image = image + lobe[..., None] * tint(rng, rng.uniform(0.1, 0.9)) * rng.uniform(0.3, 1.5) * sharpness**0.6
    noise = fractal(rng, *d.shape[:2], 0.5, 3)[..., None]
    return image * (1 + rng.uniform(0, 0.8) * (noise - 0.5))


_KINDS: dict[str, tuple[float, Callable[[np.random.Generator, np.ndarray], np.ndarray]]] = {
    "sky": (0.22, _sky),
    "studio": (0.14, _studio),
    "room": (0.14, _room),
    "gradients": (0.08, _gradients),
    "softboxes": (0.10, illumination.softboxes),
    "windows": (0.08, illumination.windows),
    "spotlights": (0.06, illumination.spotlights),
    "street night": (0.05, illumination.street_night),
    "overcast": (0.05, illumination.overcast),
    "sunset": (0.05, illumination.sunset),
    "canopy": (0.03, illumination.canopy),
}

#: Names of the kinds of procedural panoramas.
PANORAMA_KINDS = tuple(_KINDS)
