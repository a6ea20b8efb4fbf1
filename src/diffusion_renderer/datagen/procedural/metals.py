"""Metals: polished, brushed, cast, hammered, rusted, and painted with chipped paint."""

from __future__ import annotations

import numpy as np

from diffusion_renderer.datagen.procedural.layers import Layers, hsv_colour, layers, metal_colour, ramp, random_colour, varied
from diffusion_renderer.datagen.procedural.noise import covering, gaussian, pebbles, smoothstep, with_slope


def plain_metal(rng: np.random.Generator, size: int) -> Layers:
    """Polished, satin or sand-blasted; tarnished a little where it is rougher."""
    roughness = rng.uniform(0.03, 0.3) if rng.random() < 0.6 else rng.uniform(0.35, 0.8)
    colour, height = metal_colour(rng), 0.0
    field = gaussian(rng, size, rng.uniform(0.2, 0.8))
    if rng.random() < 0.5:
        stain = np.float32(rng.uniform(0.0, 0.12)) * field
        return layers(size, varied(colour, -field, rng.uniform(0, 0.08)), roughness + stain, 1.0, name="metal")
    if roughness > 0.3 and rng.random() < 0.6:  # cast or blasted
        height = with_slope(gaussian(rng, size, rng.uniform(0.6, 1.0), 8.0), rng.uniform(0.05, 0.2))
    return layers(size, colour, roughness, 1.0, height, "metal")


def brushed_metal(rng: np.random.Generator, size: int) -> Layers:
    """Fine parallel grooves: normals vary across them, roughness along with them."""
    grooves = gaussian(rng, size, 0.95, 8.0, (1.0, rng.uniform(20, 60)))
    wide = gaussian(rng, size, 0.4, 2.0, (1.0, 8.0))
    if rng.random() < 0.5:
        grooves, wide = grooves.T.copy(), wide.T.copy()
    roughness = rng.uniform(0.12, 0.5) + 0.04 * grooves + rng.uniform(0.0, 0.05) * wide
    colour = varied(metal_colour(rng), grooves, rng.uniform(0.01, 0.05))
    return layers(size, colour, roughness, 1.0, with_slope(grooves, rng.uniform(0.03, 0.15)), "brushed metal")


def hammered_metal(rng: np.random.Generator, size: int) -> Layers:
    """Dimples of a hammer, or a raised tread pattern."""
    if rng.random() < 0.7:
        distance = pebbles(rng, size, int(rng.integers(4, 14)), 0.9)[0]
        height = with_slope(np.minimum(distance, 0.75) ** 2, rng.uniform(0.05, 0.22))
    else:
        axis = ((np.arange(size) + 0.5) / size).astype(np.float32) * int(rng.choice([4, 6, 8]))
        u, v = axis[None, :], axis[:, None]
        turned = (np.floor(u) + np.floor(v)) % 2 > 0.5
        x, y = u % 1 - 0.5, v % 1 - 0.5
        along, across = np.where(turned, x, y), np.where(turned, y, x)
        height = with_slope(smoothstep(1.0, 0.6, (along / 0.42) ** 2 + (across / 0.13) ** 2), rng.uniform(0.1, 0.35))
    roughness = rng.uniform(0.1, 0.5)
    low = smoothstep(0.5, 0.0, (height - height.min()) / max(float(np.ptp(height)), 1e-9))
    colour = np.asarray(metal_colour(rng), np.float32) * (1 - rng.uniform(0, 0.35) * low[..., None])
    return layers(size, colour, roughness + 0.15 * low, 1.0, height, "hammered metal")


def rusted(rng: np.random.Generator, size: int, base: Layers | None = None) -> Layers:
    """Rust on iron, verdigris on copper or bronze: patches that are rough, not metallic, swollen a little."""
    if base is None:
        iron = np.array([0.53, 0.52, 0.51]) * rng.uniform(0.6, 1.05)
        copper = np.array([0.9, 0.53, 0.36]) * rng.uniform(0.6, 1.0)
        base = layers(size, iron if rng.random() < 0.75 else copper, rng.uniform(0.12, 0.5), 1.0, name="metal")
    green = bool(base.basecolor[0, 0, 0] > 1.3 * base.basecolor[0, 0, 2]) and float(base.metallic.mean()) > 0.5
    field, grain = gaussian(rng, size, rng.uniform(0.4, 0.6), 2.0), gaussian(rng, size, 0.85, 6.0)
    mask = covering(0.92 * field + 0.35 * grain, rng.uniform(0.08, 0.85), rng.uniform(0.15, 0.8))
    if green:
        dark, light = hsv_colour(0.47, 0.55, 0.3), hsv_colour(rng.uniform(0.38, 0.5), 0.4, rng.uniform(0.5, 0.75))
    else:
        dark = hsv_colour(rng.uniform(0.01, 0.05), rng.uniform(0.5, 0.8), rng.uniform(0.15, 0.3))
        light = hsv_colour(rng.uniform(0.05, 0.09), rng.uniform(0.55, 0.85), rng.uniform(0.3, 0.6))
    colour = ramp(0.5 + 0.25 * grain + 0.15 * field, np.stack([dark, light]))
    result = base.covered(mask, colour, rng.uniform(0.75, 1.0) + 0.05 * grain, 0.0)
    bumps = with_slope(grain, rng.uniform(0.1, 0.3)) + 0.003
    return Layers(
        result.basecolor,
        result.roughness,
        result.metallic,
        base.height + mask * bumps,
        f"{'green' if green else 'rusty'} metal",
    )


def chipped_paint(rng: np.random.Generator, size: int) -> Layers:
    """Painted metal: even lacquer with chips down to a primer and to bare or rusty metal."""
    field = gaussian(rng, size, rng.uniform(0.45, 0.7), rng.uniform(2, 5))
    share = rng.uniform(0.0, 0.4) ** 1.5
    bare = covering(field, share, 0.05)
    primer = covering(field, share + rng.uniform(0.0, 0.06), 0.05)
    metal = layers(size, metal_colour(rng) * rng.uniform(0.5, 1.0), rng.uniform(0.15, 0.6), 1.0, name="metal")
    if rng.random() < 0.4:
        metal = rusted(rng, size, metal)
    peel = with_slope(gaussian(rng, size, 0.05, 12.0), rng.uniform(0.0, 0.04))
    painted = metal.covered(1 - bare, hsv_colour(0.05, rng.uniform(0, 0.4), rng.uniform(0.3, 0.8)), 0.7, 0.0, lift=0.002)
    roughness = rng.uniform(0.06, 0.7)
    painted = painted.covered(1 - primer, np.clip(random_colour(rng), 0.02, 0.88), roughness, 0.0, lift=0.003)
    return Layers(
        painted.basecolor, painted.roughness, painted.metallic, painted.height + peel * (1 - bare), f"painted {metal.name}"
    )
