"""Seamless scalar patterns in [0, 1]: what `painted_material` and plain random materials run their colours along."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.procedural.noise import cells, fractal, normalised, smoothstep

Pattern = Callable[[np.random.Generator, int], np.ndarray]


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates u and v of the texels' centres."""
    axis = (np.arange(size) + 0.5) / size
    v, u = np.meshgrid(axis, axis, indexing="ij")
    return u, v


def clouds(
    rng: np.random.Generator, size: int, roughness: float | None = None, coarsest: float = 2.0
) -> Float[np.ndarray, "size size"]:
    """`fractal` noise, of random roughness unless one is given."""
    strength = rng.uniform(0.1, 0.8) if roughness is None else roughness
    return fractal(rng, size, size, strength, coarsest)


def _solid(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.full((size, size), rng.random())


def _checker(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = grid(size)
    n = 2 * rng.integers(1, 5)
    return ((np.floor(u * n) + np.floor(v * n)) % 2) * 1.0


def _tiles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Tiles or bricks: one value per tile, joints near 0."""
    u, v = grid(size)
    columns, rows = int(rng.integers(1, 6)), 2 * int(rng.integers(1, 5))
    row = np.floor(v * rows)
    shift = rng.choice([0.0, 0.5]) * (row % 2)
    column = np.floor(u * columns + shift) % columns
    value = rng.uniform(0.5 - rng.uniform(0.0, 0.25), 1.0, (rows, columns))[row.astype(int), column.astype(int)]
    edge_u, edge_v = (u * columns + shift) % 1.0 / columns, (v * rows) % 1.0 / rows
    joint = rng.uniform(0.008, 0.03)
    inside = (np.minimum(edge_u, 1 / columns - edge_u) > joint) & (np.minimum(edge_v, 1 / rows - edge_v) > joint)
    return np.where(inside, value, 0.05)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = grid(size)
    direction = rng.integers(-3, 4, 2)
    if not direction.any():
        direction = np.array([2, 0])
    wave = np.sin(2 * np.pi * (direction[0] * u + direction[1] * v) * rng.integers(1, 4))
    return 0.5 + 0.5 * np.tanh(wave * rng.uniform(0.5, 12.0))


def _wood(rng: np.random.Generator, size: int) -> np.ndarray:
    u, _ = grid(size)
    warp = clouds(rng, size, 0.1) * rng.uniform(0.3, 1.0)
    grain = fractal(rng, size, size, 0.7)
    grain = np.repeat(grain[:: max(size // 8, 1)], max(size // 8, 1), axis=0)[:size]
    rings = (rng.integers(3, 9) * (u + 0.35 * warp)) % 1.0
    return normalised(smoothstep(0.0, 0.85, rings) - smoothstep(0.85, 1.0, rings) + 0.35 * grain)


def _marble(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = grid(size)
    warp = clouds(rng, size, 0.35) * rng.uniform(2.0, 6.0)
    wave = np.sin(2 * np.pi * (rng.integers(1, 3) * u + rng.integers(0, 3) * v) + 2 * np.pi * warp)
    return np.abs(wave) ** rng.uniform(0.3, 1.0)


def _spots(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = grid(size)
    n = int(rng.integers(2, 7))
    radius = rng.uniform(0.15, 0.42)
    if rng.random() < 0.5:
        return smoothstep(radius + 0.06, radius, np.hypot((u * n) % 1 - 0.5, (v * n) % 1 - 0.5))
    blobs = clouds(rng, size, 0.05, rng.uniform(4.0, 10.0))
    return smoothstep(0.5, 0.56, blobs)


def _cells(rng: np.random.Generator, size: int) -> np.ndarray:
    border, value = cells(rng, size, int(rng.integers(6, 40)))
    style = rng.integers(0, 3)
    return border if style == 0 else value if style == 1 else value * smoothstep(0.0, 0.12, border)


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = grid(size)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (v if rng.random() < 0.6 else u))


def _photo(rng: np.random.Generator, size: int) -> np.ndarray:
    """Multi-scale noise with flat regions and edges, as in photographs of worn surfaces."""
    regions = smoothstep(0.4, 0.6, clouds(rng, size, 0.45))
    return normalised(0.6 * regions + 0.3 * clouds(rng, size, 0.7, 6.0) + 0.2 * clouds(rng, size, 0.1))


_PATTERNS: dict[str, tuple[float, Pattern]] = {
    "solid": (0.20, _solid),
    "clouds": (0.13, clouds),
    "checker": (0.07, _checker),
    "tiles": (0.10, _tiles),
    "stripes": (0.08, _stripes),
    "wood": (0.10, _wood),
    "marble": (0.07, _marble),
    "spots": (0.07, _spots),
    "cells": (0.06, _cells),
    "gradient": (0.04, _gradient),
    "photo": (0.08, _photo),
}

#: Names of the patterns.
PATTERNS = tuple(_PATTERNS)


def pattern_field(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """The pattern ``name`` of `PATTERNS`, of ``size`` texels a side, in [0, 1]; double precision for some of them."""
    return np.clip(_PATTERNS[name][1](rng, size), 0.0, 1.0)


def random_pattern(rng: np.random.Generator, size: int) -> tuple[str, Float[np.ndarray, "size size"]]:
    """Name and field in [0, 1] of a random seamless pattern."""
    names = list(_PATTERNS)
    weights = np.array([_PATTERNS[name][0] for name in names])
    name = str(rng.choice(names, p=weights / weights.sum()))
    return name, pattern_field(rng, name, size).astype(np.float32)
