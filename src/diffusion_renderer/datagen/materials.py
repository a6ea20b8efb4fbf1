"""Procedural materials: base colour, roughness and metallic textures for the `principled` BSDF.

Every texture repeats seamlessly and has one fixed size, so that all scenes share one kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.noise import cells, fractal, normalised, smoothstep

#: Texels along each side of every texture.
TEXTURE_SIZE = 128

# Linear reflectance at normal incidence of common metals.
_METALS = {
    "gold": (1.0, 0.71, 0.29),
    "copper": (0.93, 0.55, 0.40),
    "silver": (0.95, 0.93, 0.88),
    "aluminium": (0.91, 0.92, 0.92),
    "brass": (0.89, 0.74, 0.42),
    "iron": (0.56, 0.57, 0.58),
    "chromium": (0.55, 0.56, 0.55),
    "titanium": (0.54, 0.50, 0.45),
}


@dataclass(frozen=True)
class Material:
    """Textures of one surface; row 0 of an image lies at v = 0.

    Attributes
    ----------
    basecolor : linear reflectance in [0, 1].
    roughness : perceptual roughness in [0.05, 1].
    metallic : in [0, 1].
    """

    basecolor: Float[np.ndarray, "size size 3"]
    roughness: Float[np.ndarray, "size size 1"]
    metallic: Float[np.ndarray, "size size 1"]
    name: str = "procedural"


def constant_material(basecolor: tuple[float, float, float], roughness: float, metallic: float) -> Material:
    """One colour, one roughness, one metallic value everywhere."""
    shape = (TEXTURE_SIZE, TEXTURE_SIZE, 1)
    return Material(
        np.broadcast_to(np.float32(basecolor), (*shape[:2], 3)).copy(),
        np.full(shape, roughness, np.float32),
        np.full(shape, metallic, np.float32),
        "constant",
    )


def random_material(rng: np.random.Generator) -> Material:
    """A dielectric (about two thirds), a metal, or a metal partly covered by paint, dust or rust."""
    kind = rng.choice(["dielectric", "metal", "mixed"], p=[0.68, 0.22, 0.10])
    name, pattern = random_pattern(rng)
    colour = _coloured(rng, pattern)
    metallic = np.zeros_like(pattern)
    if kind != "dielectric":
        metal = _metal_colour(rng, pattern)
        metallic = np.ones_like(pattern)
        if kind == "mixed":
            metallic = _mask(rng)
        colour = metal * metallic[..., None] + colour * (1 - metallic[..., None])
    roughness = _roughness(rng, pattern, metallic if kind == "mixed" else None)
    return Material(
        np.clip(colour, 0.0, 1.0).astype(np.float32),
        roughness[..., None].astype(np.float32),
        metallic[..., None].astype(np.float32),
        f"{kind} {name}",
    )


def painted_material(
    rng: np.random.Generator,
    pattern: str,
    colours: list[tuple[float, float, float]],
    roughness: tuple[float, float],
    metallic: tuple[float, float] = (0.0, 0.0),
) -> Material:
    """A chosen material: linear colours, roughness and metallic all run along one pattern of `PATTERNS`."""
    field = np.clip(_PATTERNS[pattern][1](rng), 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(colours))
    basecolor = np.stack([np.interp(field, stops, [colour[channel] for colour in colours]) for channel in range(3)], axis=-1)
    ramps = [(low + (high - low) * field)[..., None].astype(np.float32) for low, high in (roughness, metallic)]
    return Material(basecolor.astype(np.float32), *ramps, name=f"painted {pattern}")


# --- patterns: scalar fields in [0, 1] --------------------------------------------------------------------------------


def _grid() -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(TEXTURE_SIZE) + 0.5) / TEXTURE_SIZE
    v, u = np.meshgrid(axis, axis, indexing="ij")
    return u, v


def _fbm(rng: np.random.Generator, roughness: float | None = None, coarsest: float = 2.0) -> np.ndarray:
    strength = rng.uniform(0.1, 0.8) if roughness is None else roughness
    return fractal(rng, TEXTURE_SIZE, TEXTURE_SIZE, strength, coarsest)


def _solid(rng: np.random.Generator) -> np.ndarray:
    return np.full((TEXTURE_SIZE, TEXTURE_SIZE), rng.random())


def _clouds(rng: np.random.Generator) -> np.ndarray:
    return _fbm(rng)


def _checker(rng: np.random.Generator) -> np.ndarray:
    u, v = _grid()
    n = 2 * rng.integers(1, 5)
    return ((np.floor(u * n) + np.floor(v * n)) % 2) * 1.0


def _tiles(rng: np.random.Generator) -> np.ndarray:
    """Tiles or bricks: one value per tile, joints near 0."""
    u, v = _grid()
    columns, rows = int(rng.integers(1, 6)), 2 * int(rng.integers(1, 5))
    row = np.floor(v * rows)
    shift = rng.choice([0.0, 0.5]) * (row % 2)
    column = np.floor(u * columns + shift) % columns
    value = rng.uniform(0.5 - rng.uniform(0.0, 0.25), 1.0, (rows, columns))[row.astype(int), column.astype(int)]
    edge_u, edge_v = (u * columns + shift) % 1.0 / columns, (v * rows) % 1.0 / rows
    joint = rng.uniform(0.008, 0.03)
    inside = (np.minimum(edge_u, 1 / columns - edge_u) > joint) & (np.minimum(edge_v, 1 / rows - edge_v) > joint)
    return np.where(inside, value, 0.05)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    u, v = _grid()
    direction = rng.integers(-3, 4, 2)
    if not direction.any():
        direction = np.array([2, 0])
    wave = np.sin(2 * np.pi * (direction[0] * u + direction[1] * v) * rng.integers(1, 4))
    return 0.5 + 0.5 * np.tanh(wave * rng.uniform(0.5, 12.0))


def _wood(rng: np.random.Generator) -> np.ndarray:
    u, _ = _grid()
    warp = _fbm(rng, 0.1) * rng.uniform(0.3, 1.0)
    grain = fractal(rng, TEXTURE_SIZE, TEXTURE_SIZE, 0.7)
    grain = np.repeat(grain[:: TEXTURE_SIZE // 8], TEXTURE_SIZE // 8, axis=0)
    rings = (rng.integers(3, 9) * (u + 0.35 * warp)) % 1.0
    return normalised(smoothstep(0.0, 0.85, rings) - smoothstep(0.85, 1.0, rings) + 0.35 * grain)


def _marble(rng: np.random.Generator) -> np.ndarray:
    u, v = _grid()
    warp = _fbm(rng, 0.35) * rng.uniform(2.0, 6.0)
    wave = np.sin(2 * np.pi * (rng.integers(1, 3) * u + rng.integers(0, 3) * v) + 2 * np.pi * warp)
    return np.abs(wave) ** rng.uniform(0.3, 1.0)


def _spots(rng: np.random.Generator) -> np.ndarray:
    u, v = _grid()
    n = int(rng.integers(2, 7))
    radius = rng.uniform(0.15, 0.42)
    if rng.random() < 0.5:
        return smoothstep(radius + 0.06, radius, np.hypot((u * n) % 1 - 0.5, (v * n) % 1 - 0.5))
    blobs = _fbm(rng, 0.05, rng.uniform(4.0, 10.0))
    return smoothstep(0.5, 0.56, blobs)


def _cells(rng: np.random.Generator) -> np.ndarray:
    border, value = cells(rng, TEXTURE_SIZE, int(rng.integers(6, 40)))
    style = rng.integers(0, 3)
    return border if style == 0 else value if style == 1 else value * smoothstep(0.0, 0.12, border)


def _gradient(rng: np.random.Generator) -> np.ndarray:
    u, v = _grid()
    return 0.5 + 0.5 * np.sin(2 * np.pi * (v if rng.random() < 0.6 else u))


def _photo(rng: np.random.Generator) -> np.ndarray:
    """Multi-scale noise with flat regions and edges, as in photographs of worn surfaces."""
    regions = smoothstep(0.4, 0.6, _fbm(rng, 0.45))
    return normalised(0.6 * regions + 0.3 * _fbm(rng, 0.7, 6.0) + 0.2 * _fbm(rng, 0.1))


_PATTERNS: dict[str, tuple[float, Callable[[np.random.Generator], np.ndarray]]] = {
    "solid": (0.20, _solid),
    "clouds": (0.13, _clouds),
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


def random_pattern(rng: np.random.Generator) -> tuple[str, Float[np.ndarray, "size size"]]:
    """Name and field in [0, 1] of a random seamless pattern."""
    names = list(_PATTERNS)
    weights = np.array([_PATTERNS[name][0] for name in names])
    name = str(rng.choice(names, p=weights / weights.sum()))
    return name, np.clip(_PATTERNS[name][1](rng), 0.0, 1.0).astype(np.float32)


# --- colour, roughness, metallic --------------------------------------------------------------------------------------


def _random_colour(rng: np.random.Generator) -> np.ndarray:
    """A plausible sRGB colour, returned linear: mostly muted, sometimes vivid, sometimes grey, from dark to light."""
    hue = rng.random()
    saturation = rng.choice([rng.uniform(0.0, 0.12), rng.beta(2, 3), rng.uniform(0.6, 1.0)], p=[0.3, 0.45, 0.25])
    value = rng.uniform(0.12, 0.97) ** rng.choice([0.7, 1.0, 1.5])
    offsets = (np.array([5.0, 3.0, 1.0]) + hue * 6.0) % 6.0
    srgb = value - value * saturation * np.clip(np.minimum(offsets, 4.0 - offsets), 0.0, 1.0)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _coloured(rng: np.random.Generator, pattern: np.ndarray) -> np.ndarray:
    """A ramp of two to four related colours over the pattern, with a little fine variation."""
    stops = int(rng.integers(2, 5))
    base = _random_colour(rng)
    spread = rng.uniform(0.2, 1.0)
    colours = np.stack(
        [base] + [(1 - spread) * base * rng.uniform(0.3, 1.6) + spread * _random_colour(rng) for _ in range(stops - 1)]
    )
    positions = np.linspace(0.0, 1.0, stops)
    colour = np.stack([np.interp(pattern, positions, colours[:, channel]) for channel in range(3)], axis=-1)
    if rng.random() < 0.7:
        colour = colour * (1 + rng.uniform(0.05, 0.5) * (_fbm(rng, rng.uniform(0.3, 0.9)) - 0.5))[..., None]
    return np.clip(colour, 0.015, 0.92)


def _metal_colour(rng: np.random.Generator, pattern: np.ndarray) -> np.ndarray:
    name = rng.choice(list(_METALS))
    tint = np.array(_METALS[name]) * rng.uniform(0.75, 1.0)
    if rng.random() < 0.25:  # anodised or coated
        tint = 0.5 * tint + 0.5 * np.clip(_random_colour(rng) * 1.5, 0.0, 1.0)
    wear = 1 - rng.uniform(0.0, 0.35) * pattern if rng.random() < 0.5 else np.ones_like(pattern)
    return np.clip(tint * wear[..., None], 0.05, 1.0)


def _mask(rng: np.random.Generator) -> np.ndarray:
    """Where the bare metal shows: 1 metal, 0 covered."""
    field = _fbm(rng, rng.uniform(0.2, 0.6)) if rng.random() < 0.7 else random_pattern(rng)[1]
    edge, soft = rng.uniform(0.35, 0.65), rng.uniform(0.01, 0.15)
    return smoothstep(edge - soft, edge + soft, field)


def _roughness(rng: np.random.Generator, pattern: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    low, high = 0.05, 1.0
    centre = rng.uniform(low, high) if rng.random() < 0.7 else rng.uniform(low, 0.4)
    if mask is not None:
        field = mask * rng.uniform(low, 0.5) + (1 - mask) * rng.uniform(0.5, high)
    elif rng.random() < 0.4:
        field = np.full_like(pattern, centre)
    else:
        source = pattern if rng.random() < 0.5 else random_pattern(rng)[1]
        field = centre + rng.uniform(0.1, 0.6) * rng.choice([-1, 1]) * (source - 0.5)
    return np.clip(field, low, high)
