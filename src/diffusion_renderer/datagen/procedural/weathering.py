"""What use and weather do to a surface: scratches, smudges, fingerprints, dust, wet patches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.procedural.layers import Layers, earth_colour
from diffusion_renderer.datagen.procedural.noise import covering, gaussian, smoothstep


def scratched(rng: np.random.Generator, base: Layers) -> Layers:
    """Fine lines, mostly in one direction: on smooth surfaces rougher than these, on rough ones sometimes smoother."""
    lines = _lines(rng, base.size, int(rng.integers(15, 120)))
    rougher = float(base.roughness.mean()) < 0.5 or rng.random() < 0.5
    roughness = base.roughness + lines * np.float32(rng.uniform(0.15, 0.45) * (1 if rougher else -1))
    lighter = 1 + lines * np.float32(rng.uniform(-0.2, 0.35))
    depth = np.float32(rng.uniform(0.0, 0.12) / base.size)
    return replace(
        base,
        roughness=np.maximum(roughness, 0.05),
        basecolor=base.basecolor * lighter[..., None],
        height=base.height - depth * lines,
    )


def _lines(rng: np.random.Generator, size: int, count: int) -> Float[np.ndarray, "size size"]:
    """A mask of ``count`` thin, slightly bent, periodic lines, drawn by splatting points bilinearly."""
    steps = np.arange(int(1.2 * size), dtype=np.float32) / size
    direction = rng.normal(rng.uniform(0, np.pi), rng.choice([0.1, 0.5, 2.0]), (count, 1)).astype(np.float32)
    bend = rng.normal(0, 0.6, (count, 1)).astype(np.float32)
    length = (rng.uniform(0.03, 1.0, (count, 1)) ** 2).astype(np.float32)
    angle = direction + bend * steps * 0.5
    start = rng.random((2, count, 1)).astype(np.float32)
    x, y = (start[0] + steps * np.cos(angle)) * size, (start[1] + steps * np.sin(angle)) * size
    strength = rng.uniform(0.2, 1.0, (count, 1)).astype(np.float32) * smoothstep(0.0, 0.2, 1 - steps / length)
    kept = strength > 0.01
    x, y, strength = x[kept], y[kept], strength[kept]
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    x0, y0 = x0.astype(np.int64), y0.astype(np.int64)
    drawn = np.zeros(size * size)
    for dx, wx in ((0, 1 - fx), (1, fx)):
        for dy, wy in ((0, 1 - fy), (1, fy)):
            index = ((y0 + dy) % size) * size + (x0 + dx) % size
            drawn += np.bincount(index, weights=strength * wx * wy, minlength=size * size)
    return np.minimum(drawn, 1.0).astype(np.float32).reshape(size, size)


def smudged(rng: np.random.Generator, base: Layers) -> Layers:
    """Wiped and touched: broad streaks of changed roughness, now and then fingerprints."""
    streaks = gaussian(rng, base.size, rng.uniform(0.3, 0.6), 2.0, (1.0, rng.choice([1.0, 4.0])))
    change = np.float32(rng.uniform(0.03, 0.2)) * covering(streaks, rng.uniform(0.2, 0.6), rng.uniform(0.3, 2.0))
    for _ in range(int(rng.integers(1, 6)) if rng.random() < 0.5 else 0):
        change = np.maximum(change, np.float32(rng.uniform(0.1, 0.3)) * _fingerprint(rng, base.size))
    return replace(base, roughness=base.roughness + change)


def _fingerprint(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Curved ridges within an oval, a tenth of the texture or less."""
    x, y = local_frame(size, rng.random(2), rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.1))
    y = 0.72 * y
    oval = smoothstep(1.0, 0.6, x * x + 1.9 * y * y)
    ridges = 0.5 + 0.5 * np.sin(np.hypot(x - 0.15, y * rng.uniform(0.6, 1.4)) * rng.uniform(18, 28))
    return oval * (0.35 + 0.65 * ridges)


def local_frame(size: int, centre: np.ndarray, angle: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x, y of every texel in a turned frame at ``centre`` (u, v), in units of ``scale``; they wrap around.

    Right only within half a texture of the centre: what is drawn there must be smaller than that.
    """
    axis = (np.arange(size) + 0.5) / size
    du = (((axis - centre[0] + 0.5) % 1.0 - 0.5) / scale).astype(np.float32)[None, :]
    dv = (((axis - centre[1] + 0.5) % 1.0 - 0.5) / scale).astype(np.float32)[:, None]
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * du + s * dv, c * dv - s * du


def dusty(rng: np.random.Generator, base: Layers) -> Layers:
    """A thin uneven layer of dust, thicker in hollows: rough, dull, not metallic."""
    field = gaussian(rng, base.size, rng.uniform(0.4, 0.8), 2.0)
    span = float(np.ptp(base.height))
    if span > 0:
        field = field - 1.2 * (base.height - float(base.height.mean())) / max(float(base.height.std()), 1e-9)
        field = field / max(float(field.std()), 1e-9)
    mask = rng.uniform(0.25, 0.9) * covering(field, rng.uniform(0.15, 0.6), rng.uniform(0.5, 2.0))
    return base.covered(mask, earth_colour(rng, 0.35, 0.75), rng.uniform(0.85, 1.0), 0.0)


def wet(rng: np.random.Generator, base: Layers) -> Layers:
    """Puddles and damp: the film is smooth and level, and what it covers is darker (total reflection inside the film).

    The darkening follows porous materials: strong where the dry surface is rough, none where it is smooth or metallic.
    """
    field = gaussian(rng, base.size, 0.3, 2.0)
    if float(base.height.std()) > 0:
        field = field - 0.8 * (base.height - float(base.height.mean())) / float(base.height.std())
        field = field / max(float(field.std()), 1e-9)
    share = rng.uniform(0.1, 0.6)
    damp, film = covering(field, share + 0.12, 0.5), covering(field, share, 0.3)
    porous = np.clip(base.roughness, 0, 1) * (1 - base.metallic)
    darker = base.basecolor * (1 - 0.55 * (damp * porous)[..., None])
    roughness = base.roughness + film * (np.float32(rng.uniform(0.05, 0.12)) - base.roughness)
    level = np.float32(np.vdot(film, base.height) / max(float(film.sum()), 1e-6))
    return replace(base, basecolor=darker, roughness=roughness, height=base.height + film * (level - base.height))
