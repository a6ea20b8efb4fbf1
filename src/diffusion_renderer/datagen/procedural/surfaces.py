"""Non-metals as they leave the workshop, before any wear: wood, masonry, stone, plastic, cloth, leather, ceramics.

Each function draws `Layers`; the height field, the colour and the roughness of one surface come from the same fields, because
on real surfaces they do: joints are deep, rough and of another colour, pores are dark and rough, polish is flat and smooth.
"""

from __future__ import annotations

import functools

import numpy as np

from diffusion_renderer.datagen.procedural.layers import (
    Layers,
    earth_colour,
    hsv_colour,
    layers,
    near,
    ramp,
    random_colour,
    varied,
)
from diffusion_renderer.datagen.procedural.noise import covering, gaussian, pebbles, smoothstep, with_slope
from diffusion_renderer.datagen.procedural.patterns import random_pattern


@functools.lru_cache(maxsize=8)
def texel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates u (one row) and v (one column) of the texels' centres, single precision; they broadcast."""
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return axis[None, :], axis[:, None]


def patterned(rng: np.random.Generator, size: int) -> Layers:
    """Any pattern in two to four related colours; roughness follows it, another pattern, or nothing; sometimes embossed."""
    name, pattern = random_pattern(rng, size)
    base, spread = random_colour(rng), rng.uniform(0.2, 1.0)
    others = [(1 - spread) * base * rng.uniform(0.3, 1.6) + spread * random_colour(rng) for _ in range(int(rng.integers(1, 4)))]
    colour = ramp(pattern, np.stack([base, *others]))
    if rng.random() < 0.6:
        colour = varied(colour, gaussian(rng, size, rng.uniform(0.3, 0.9)), rng.uniform(0.02, 0.15))
    roughness = rng.uniform(0.05, 1.0)
    if rng.random() < 0.6:
        source = pattern if rng.random() < 0.6 else random_pattern(rng, size)[1]
        roughness = roughness + rng.uniform(0.1, 0.6) * rng.choice([-1, 1]) * (source - float(source.mean()))
    height = with_slope(pattern, rng.uniform(0.05, 0.25)) if rng.random() < 0.3 else 0.0
    return layers(size, colour, roughness, height=height, name=name)


def plastic(rng: np.random.Generator, size: int) -> Layers:
    """One colour and one roughness: plastic, lacquer, glaze, rubber; the skin is even, orange-peeled or grained."""
    roughness = float(rng.choice([rng.uniform(0.03, 0.18), rng.uniform(0.2, 0.5), rng.uniform(0.5, 1.0)], p=[0.4, 0.3, 0.3]))
    height: np.ndarray | float = 0.0
    skin = rng.choice(["even", "orange peel", "grained"], p=[0.45, 0.35, 0.2])
    if skin == "orange peel":
        height = with_slope(gaussian(rng, size, 0.05, rng.uniform(8, 20)), rng.uniform(0.01, 0.06))
    elif skin == "grained":
        grains = smoothstep(0.9, 0.2, pebbles(rng, size, int(rng.integers(16, 30)), 1.0)[0])
        height, roughness = with_slope(grains, rng.uniform(0.08, 0.25)), max(roughness, 0.35)
    return layers(size, np.clip(random_colour(rng), 0.02, 0.9), roughness, height=height, name=f"plastic {skin}")


def wood(rng: np.random.Generator, size: int) -> Layers:
    """Planks or a single board with rings, fibres and pores, raw or varnished; sometimes stained or painted."""
    u, v = texel_grid(size)
    planks = int(rng.choice([1, 2, 3, 4, 6, 8], p=[0.25, 0.1, 0.15, 0.25, 0.15, 0.1]))
    shift = rng.integers(0, size, planks) if planks > 1 else np.zeros(1, int)
    row = np.minimum((v[:, 0] * planks).astype(int), planks - 1)
    columns = (np.arange(size) + shift[row][:, None]) % size
    rows = np.arange(size)[:, None]
    rings = gaussian(rng, size, 0.0, 2.0, (1.0, rng.uniform(3, 7)))[rows, columns]
    rings = (rings * np.float32(rng.uniform(1.2, 4.0))) % 1.0
    rings = smoothstep(0.0, 0.75, rings) - smoothstep(0.8, 1.0, rings)
    fibres = gaussian(rng, size, 0.85, 12.0, (1.0, 16.0))[rows, columns]
    grain = np.clip(0.62 * rings + 0.12 * fibres + 0.2, 0.0, 1.0)
    dark = hsv_colour(rng.uniform(0.03, 0.1), rng.uniform(0.35, 0.75), rng.uniform(0.18, 0.65))
    light = np.clip(dark * rng.uniform(1.4, 3.2) * np.array([1.0, 1.05, 1.1]), 0, 0.85)
    if rng.random() < 0.15:  # stained or painted thinly
        dark, light = 0.4 * dark + 0.3 * random_colour(rng), 0.3 * light + 0.6 * random_colour(rng)
    colour = ramp(grain, np.stack([light, dark]))
    tint = np.exp(rng.normal(0, 0.16, planks)).astype(np.float32)
    colour = colour * tint[row][:, None, None]
    varnish = rng.random() < 0.55
    roughness = (rng.uniform(0.07, 0.45) if varnish else rng.uniform(0.5, 0.9)) + rng.uniform(0.02, 0.15) * (grain - 0.5)
    pores = smoothstep(0.8, 1.8, fibres)
    height = with_slope(-0.5 * grain - pores, rng.uniform(0.01, 0.05) if varnish else rng.uniform(0.06, 0.22))
    result = layers(size, colour, roughness, height=height, name="wood")
    if planks == 1:
        return result
    edge = np.abs((v * planks + 0.5) % 1.0 - 0.5) / planks
    seam = rng.uniform(0.004, 0.009)
    end = np.abs((u + (shift[row] / size)[:, None] + 0.5) % 1.0 - 0.5) if rng.random() < 0.7 else np.float32(1.0)
    gap = 1.0 - smoothstep(0.4 * seam, 1.2 * seam + 0.5 / size, np.minimum(edge, end))
    return result.covered(gap, 0.12 * dark, 0.95, lift=-seam)


def masonry(rng: np.random.Generator, size: int) -> Layers:
    """Bricks, glazed tiles, slabs, cobbles in a bond: every stone with its own tint, roughness and tilt, joints recessed."""
    u, v = texel_grid(size)
    kind = rng.choice(["brick", "tile", "slab"], p=[0.35, 0.4, 0.25])
    rows = 2 * int(rng.integers(2, 6)) if kind == "brick" else int(rng.choice([1, 2, 3, 4, 6, 8]))
    columns = max(rows // 2, 1) if kind == "brick" else max(round(rows * rng.choice([0.5, 1.0, 1.0])), 1)
    bond = 0.5 if kind == "brick" or (rows % 2 == 0 and rng.random() < 0.3) else 0.0
    wobble = (0.0 if kind == "tile" else rng.uniform(0.0, 0.006)) * gaussian(rng, size, 0.4, 4.0)
    y = (v + wobble) * rows
    row = np.floor(y)
    x = (u + wobble.T) * columns + bond * (row % 2)
    column = np.floor(x)
    pick = (row.astype(np.int32) % rows) * columns + column.astype(np.int32) % columns
    inside_x, inside_y = x - column, y - row
    edge = np.minimum(np.minimum(inside_x, 1 - inside_x) / columns, np.minimum(inside_y, 1 - inside_y) / rows)
    joint = rng.uniform(0.003, 0.012) + (0.006 if kind == "brick" else 0.0)
    stone = smoothstep(joint, joint + max(rng.uniform(0.003, 0.015), 1.5 / size), edge)
    count = rows * columns
    base, spread = _masonry_colour(rng, str(kind)), rng.uniform(0.02, 0.3)
    palette = np.stack([near(rng, base, spread) for _ in range(count)]).astype(np.float32)
    if kind == "tile" and rng.random() < 0.35:  # a second colour in a chequer or at random
        other = random_colour(rng).astype(np.float32)
        index = np.arange(count)
        swap = (index // columns + index) % 2 == 0 if columns % 2 == 0 else rng.random(count) < 0.4
        palette[swap] = other
    glazed = kind == "tile" or (kind == "slab" and rng.random() < 0.5)
    gloss = (rng.uniform(0.06, 0.35) if glazed else rng.uniform(0.5, 0.95)) + rng.normal(0, 0.05, count).astype(np.float32)
    grain = gaussian(rng, size, 0.1 if glazed else rng.uniform(0.6, 0.9), 3.0)
    colour = varied(palette[pick], grain, rng.uniform(0.01, 0.06) if glazed else rng.uniform(0.05, 0.15))
    tilt = (rng.uniform(-1, 1, (2, count)) * rng.uniform(0, 0.03)).astype(np.float32)
    relief = with_slope(grain, rng.uniform(0.0, 0.02) if glazed else rng.uniform(0.08, 0.3))
    relief = relief + (tilt[0][pick] * (inside_x - 0.5) / columns + tilt[1][pick] * (inside_y - 0.5) / rows)
    result = layers(size, colour, gloss[pick], height=stone * (relief + rng.uniform(0.3, 1.2) * joint), name=str(kind))
    mortar = earth_colour(rng, 0.2, 0.85) * (0.7 + 0.3 * rng.random())
    return result.covered(1 - stone, mortar, rng.uniform(0.75, 1.0))


def _masonry_colour(rng: np.random.Generator, kind: str) -> np.ndarray:
    if kind == "brick":
        return hsv_colour(rng.uniform(0.0, 0.09), rng.uniform(0.1, 0.75), rng.uniform(0.25, 0.85))
    return random_colour(rng) if kind == "tile" and rng.random() < 0.6 else earth_colour(rng, 0.3, 0.95)


def concrete(rng: np.random.Generator, size: int) -> Layers:
    """Concrete, plaster, rough stone: blotches, grain, pores that are dark and deep; sometimes ground smooth."""
    base = earth_colour(rng) if rng.random() < 0.75 else random_colour(rng)
    blotches, grain = gaussian(rng, size, 0.4, 2.0), gaussian(rng, size, rng.uniform(0.6, 0.95), 4.0)
    ground = rng.random() < 0.3
    roughness = (rng.uniform(0.15, 0.45) if ground else rng.uniform(0.6, 1.0)) + 0.05 * blotches
    colour = varied(varied(base, blotches, rng.uniform(0.03, 0.15)), grain, rng.uniform(0.02, 0.12))
    height = with_slope(grain + 0.5 * blotches, rng.uniform(0.0, 0.03) if ground else rng.uniform(0.08, 0.35))
    result = layers(size, colour, roughness, height=height, name="concrete")
    if rng.random() < 0.7:
        distance, _, value = pebbles(rng, size, int(rng.integers(6, 22)), 1.0)
        pores = smoothstep(0.28, 0.12, distance / np.maximum(value, 0.05)) * (value > rng.uniform(0.3, 0.8))
        result = result.covered(pores, 0.4 * base, 0.95, lift=-0.006)
    return result


def terrazzo(rng: np.random.Generator, size: int) -> Layers:
    """Chips of a few colours in a matrix, ground flat: terrazzo, granite, speckled laminate."""
    _, border, value = pebbles(rng, size, int(rng.integers(6, 26)), 1.0)
    palette = np.stack([earth_colour(rng, 0.1, 0.95) if rng.random() < 0.7 else random_colour(rng) for _ in range(5)])
    chips = palette.astype(np.float32)[np.minimum((value * 5).astype(np.int32), 4)]
    roughness = rng.uniform(0.05, 0.5)
    result = layers(size, varied(chips, gaussian(rng, size, 0.7, 4.0), 0.06), roughness, name="terrazzo")
    gap = rng.uniform(0.02, 0.3)
    matrix = smoothstep(gap + 0.08, gap, border)
    loose = value % 0.2 < 0.2 * rng.uniform(0.0, 0.6)  # some cells have no chip
    return result.covered(np.where(loose, 1.0, matrix), near(rng, palette[0], 0.3), roughness + rng.uniform(0.0, 0.25))


def cobbles(rng: np.random.Generator, size: int) -> Layers:
    """Round stones in soil, gravel, cracked mud: cells with deep gaps."""
    per_side = int(rng.integers(4, 15))
    _, border, value = pebbles(rng, size, per_side, 0.9)
    dome = smoothstep(0.0, rng.uniform(0.2, 0.7), border)
    base, grain = earth_colour(rng), gaussian(rng, size, 0.8, 6.0)
    colour = varied(near(rng, base, 0.3) * np.exp(0.7 * (value - 0.5))[..., None], grain, 0.1)
    height = dome * np.float32(rng.uniform(0.1, 0.35) / per_side) + with_slope(grain, rng.uniform(0.0, 0.15))
    result = layers(size, colour, rng.uniform(0.3, 0.95) + 0.15 * (value - 0.5), height=height, name="cobbles")
    return result.covered((1 - dome) ** 2, 0.4 * base, 0.97)


def cloth(rng: np.random.Generator, size: int) -> Layers:
    """Woven or knitted yarn, plain or with a pattern in colour: rough, with fine bumps."""
    u, v = texel_grid(size)
    limit = size // 6  # a yarn narrower than this many texels would only flicker
    count = 2 * int(rng.integers(5, max(limit // 2, 6)))
    count = min(count, 40)
    over = np.sin(np.pi * (count * u + 0.5)) ** 2, np.sin(np.pi * (count * v + 0.5)) ** 2
    twill = int(rng.choice([1, 1, 2])) if count % 4 == 0 else 1
    above = (np.floor(count * u / twill) + np.floor(count * v)) % 2
    yarn = np.where(above > 0.5, np.sqrt(over[0]) * (0.6 + 0.4 * over[1]), np.sqrt(over[1]) * (0.6 + 0.4 * over[0]))
    warp, weft = random_colour(rng), random_colour(rng)
    warp = weft if rng.random() < 0.6 else warp
    colour = ramp(above.astype(np.float32), np.stack([weft, warp]))
    if rng.random() < 0.35:
        colour = colour + random_pattern(rng, size)[1][..., None] * (random_colour(rng).astype(np.float32) - colour)
    fuzz = gaussian(rng, size, 0.8, 4.0)
    colour = varied(colour * (0.45 + 0.55 * yarn[..., None]), fuzz, rng.uniform(0.03, 0.12))
    height = with_slope(yarn, rng.uniform(0.15, 0.5)) + with_slope(fuzz, 0.06)
    silk = rng.random() < 0.15
    return layers(size, colour, rng.uniform(0.3, 0.5) if silk else rng.uniform(0.7, 1.0), height=height, name="cloth")


def leather(rng: np.random.Generator, size: int) -> Layers:
    """Pebbled skin with creases; worn or polished where it is high."""
    _, border, value = pebbles(rng, size, int(rng.integers(12, 30)), 1.0)
    bumps = smoothstep(0.0, 0.45, border) * (0.7 + 0.3 * value)
    folds = np.abs(gaussian(rng, size, 0.3, 3.0))
    high = bumps * smoothstep(0.0, 0.25, folds)
    brown = hsv_colour(rng.uniform(0.02, 0.1), rng.uniform(0.3, 0.8), rng.uniform(0.12, 0.65))
    base = brown if rng.random() < 0.6 else random_colour(rng)
    colour = ramp(high, np.stack([0.45 * base, base, np.clip(1.25 * base, 0, 0.9)]))
    roughness = rng.uniform(0.25, 0.8) - rng.uniform(0.0, 0.25) * (high - 0.5)
    height = with_slope(high, rng.uniform(0.1, 0.4))
    return layers(size, varied(colour, gaussian(rng, size, 0.4, 2.0), 0.07), roughness, height=height, name="leather")


def marble(rng: np.random.Generator, size: int) -> Layers:
    """Veined stone, polished: veins are the zero lines of warped noise."""
    field = gaussian(rng, size, rng.uniform(0.25, 0.5), 2.0)
    veins = np.exp(-np.abs(field) * rng.uniform(4, 14)) + 0.5 * np.exp(-np.abs(gaussian(rng, size, 0.45, 3.0)) * 16)
    clouds = gaussian(rng, size, 0.35, 2.0)
    light = earth_colour(rng, 0.55, 0.95) if rng.random() < 0.6 else random_colour(rng)
    dark = near(rng, light, 0.2) * rng.uniform(0.15, 0.6) if rng.random() < 0.75 else np.clip(light * 4, 0.3, 0.85)
    colour = ramp(veins * (0.7 + 0.3 * np.tanh(clouds)), np.stack([light, dark]))
    roughness = rng.uniform(0.05, 0.4) + rng.uniform(0, 0.15) * np.minimum(veins, 1.0)
    return layers(size, varied(colour, clouds, 0.05), roughness, name="marble")


def painted_wall(rng: np.random.Generator, size: int) -> Layers:
    """Paint from a brush or a roller on plaster or board, sometimes flaking off down to the ground."""
    strokes = gaussian(rng, size, 0.7, 6.0, (1.0, rng.choice([1.0, 5.0, 9.0])))
    base, roughness = random_colour(rng), rng.uniform(0.15, 0.9)
    height = with_slope(strokes, rng.uniform(0.02, 0.15))
    result = layers(size, varied(base, strokes, rng.uniform(0.0, 0.04)), roughness, height=height, name="painted wall")
    if rng.random() < 0.35:
        flaked = covering(gaussian(rng, size, 0.5, 2.0), rng.uniform(0.05, 0.4), 0.08)
        ground = varied(earth_colour(rng), gaussian(rng, size, 0.8, 4.0), 0.1)
        result = result.covered(flaked, ground, rng.uniform(0.75, 1.0), lift=-0.006)
    return result
