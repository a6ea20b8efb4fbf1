"""Things printed or stuck on: letters, labels, stripes, each with its own colour and roughness."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.procedural.layers import Layers, random_colour
from diffusion_renderer.datagen.procedural.noise import smoothstep
from diffusion_renderer.datagen.procedural.weathering import local_frame

_STROKES = 4


def decorated(rng: np.random.Generator, base: Layers) -> Layers:
    """One to three stickers, lines of letters or stripes on any surface; print is flat, stickers lie on top."""
    for _ in range(int(rng.integers(1, 4))):
        kind = rng.choice(["letters", "sticker", "stripes"], p=[0.4, 0.4, 0.2])
        if kind == "letters":
            base = _printed(rng, base, letters(rng, base.size, rng.uniform(0.05, 0.2)))
        elif kind == "stripes":
            base = _printed(rng, base, _stripes(rng, base.size))
        else:
            base = _sticker(rng, base)
    return base


def _printed(rng: np.random.Generator, base: Layers, mask: np.ndarray) -> Layers:
    roughness = rng.uniform(0.08, 0.9) if rng.random() < 0.6 else None
    return base.covered(mask, np.clip(random_colour(rng), 0.02, 0.88), roughness, 0.0)


def _stripes(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Bands all around, of any width, single or in groups."""
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    mask = np.zeros(size, np.float32)
    place, width = rng.random(), rng.uniform(0.01, 0.08)
    for index in range(int(rng.integers(1, 4))):
        distance = np.abs((axis - place - 2.2 * index * width + 0.5) % 1.0 - 0.5)
        mask = np.maximum(mask, smoothstep(width + 1.0 / size, width, distance))
    mask = np.broadcast_to(mask, (size, size))
    return mask if rng.random() < 0.5 else mask.T


def _sticker(rng: np.random.Generator, base: Layers) -> Layers:
    """A disc or a rounded rectangle with a rim, letters or bars on it."""
    size, centre, angle, scale = base.size, rng.random(2), rng.normal(0, 0.3), rng.uniform(0.06, 0.22)
    x, y = local_frame(size, centre, angle, scale)
    soft = 1.0 / (size * scale)
    if rng.random() < 0.35:
        distance = np.hypot(x, y)
    else:
        corner, aspect = rng.uniform(0.05, 0.4), rng.uniform(0.45, 1.0)
        dx, dy = np.maximum(np.abs(x) - (1 - corner), 0), np.maximum(np.abs(y) - (aspect - corner), 0)
        distance = 1 - corner + np.hypot(dx, dy)
    roughness = rng.uniform(0.08, 0.85)
    base = base.covered(
        smoothstep(1.0, 1.0 - soft, distance), np.clip(random_colour(rng), 0.02, 0.88), roughness, 0.0, lift=0.002
    )
    ink, style = np.clip(random_colour(rng), 0.02, 0.88), rng.random()
    if style < 0.4:
        inside = smoothstep(0.9, 0.9 - soft, distance)
        return base.covered(inside * letters(rng, size, 0.45 * scale, centre, angle), ink)
    if style < 0.7:
        return base.covered(smoothstep(0.92, 0.92 - soft, distance) * smoothstep(0.82 - soft, 0.82, distance), ink)
    bars = smoothstep(-0.2, 0.2, np.sin(rng.uniform(6, 20) * x)) * (np.abs(y) < 0.3) * (np.abs(x) < 0.7)
    return base.covered(bars, ink)


def letters(
    rng: np.random.Generator, size: int, height: float, centre: np.ndarray | None = None, angle: float | None = None
) -> Float[np.ndarray, "size size"]:
    """A line of random signs, each of four straight strokes between points of a 3 x 4 raster; looks like text.

    ``height`` of a letter is in texture widths; the line takes at most 0.9 of the texture.
    """
    count = max(1, min(int(rng.integers(2, 8)), int(0.9 / (0.8 * height))))
    centre = rng.random(2) if centre is None else centre
    x, y = local_frame(size, centre, rng.normal(0, 0.25) if angle is None else angle, height)
    advance = 0.8
    position = x / advance + 0.5 * count
    letter = np.floor(position)
    within = (letter >= 0) & (letter < count) & (np.abs(y) < 0.7)
    mask = np.zeros((size, size), np.float32)
    rows, columns = np.nonzero(within)
    if len(rows) == 0:
        return mask
    index = letter[rows, columns].astype(np.int64)
    px, py = (position[rows, columns] - index - 0.5) * advance, y[rows, columns]
    ends = rng.integers(0, [3, 4], (count, _STROKES, 2, 2)) * np.array([0.25, 1 / 3]) - np.array([0.25, 0.5])
    ends[:, 1:, 0] = ends[:, :-1, 1]  # one stroke goes on from the end of the last
    distance = np.full(len(rows), np.inf, np.float32)
    for stroke in range(_STROKES):
        a, b = ends[index, stroke, 0].astype(np.float32), ends[index, stroke, 1].astype(np.float32)
        ab = b - a
        ax, ay = px - a[:, 0], py - a[:, 1]
        t = np.clip((ax * ab[:, 0] + ay * ab[:, 1]) / np.maximum((ab**2).sum(-1), 1e-9), 0, 1)
        distance = np.minimum(distance, np.hypot(ax - t * ab[:, 0], ay - t * ab[:, 1]))
    pen, soft = rng.uniform(0.05, 0.12), 1.0 / (size * height)
    mask[rows, columns] = smoothstep(pen + 0.5 * soft, pen - 0.5 * soft, distance)
    return mask
