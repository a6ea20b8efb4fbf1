"""Printed sheets that things lie on: mats, boards, table cloths, paper. Lines and letters on an even colour, never metal."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.procedural.decals import letters
from diffusion_renderer.datagen.procedural.layers import Layers, hsv_colour, layers, random_colour, varied
from diffusion_renderer.datagen.procedural.noise import fractal, smoothstep
from diffusion_renderer.datagen.procedural.patterns import grid

#: How often the sheet is dark (ink is light then), white (ink is dark) or of any colour.
_SHEETS = {"dark": 0.45, "white": 0.2, "coloured": 0.35}
#: How often it has a raster of lines, parallel lines, some lines in any direction, lines of letters; most have several.
_RASTER, _RULED, _LINES, _TEXT = 0.55, 0.2, 0.35, 0.35


def printed(rng: np.random.Generator, size: int) -> Layers:
    """A sheet printed in one ink or two. Lines are about one to four texels wide, so that they look thin from afar."""
    kind = str(rng.choice(list(_SHEETS), p=list(_SHEETS.values())))
    cloudy = fractal(rng, size, size, rng.uniform(0.2, 0.7))
    spread = float(rng.uniform(0.0, 0.08))
    base = layers(
        size,
        varied(_sheet_colour(rng, kind), 2 * cloudy - 1, spread),
        rng.uniform(0.2, 0.95) + spread * (cloudy - 0.5),
        name=f"{kind} print",
    )
    inks = [_ink(rng, kind) for _ in range(int(rng.integers(1, 3)))]
    rougher = rng.uniform(-0.2, 0.15) if rng.random() < 0.4 else 0.0
    shapes = ((_RASTER, _raster), (_RULED, _ruled), (_LINES, _straight), (_TEXT, _text))
    drawn = [shape(rng, size) for share, shape in shapes if rng.random() < share] or [_raster(rng, size)]
    for mask in drawn:
        base = base.covered(mask, inks[int(rng.integers(len(inks)))], base.roughness + np.float32(rougher))
    return base


def _sheet_colour(rng: np.random.Generator, kind: str) -> np.ndarray:
    if kind == "dark":
        return hsv_colour(rng.random(), rng.choice([rng.uniform(0, 0.15), rng.uniform(0.2, 0.9)]), rng.uniform(0.1, 0.35))
    if kind == "white":
        return hsv_colour(rng.uniform(0.05, 0.17), rng.uniform(0, 0.12), rng.uniform(0.8, 0.96))
    return np.clip(random_colour(rng), 0.02, 0.88)


def _ink(rng: np.random.Generator, kind: str) -> np.ndarray:
    if rng.random() < 0.25:
        return np.clip(random_colour(rng), 0.02, 0.88)
    value = rng.uniform(0.05, 0.3) if kind == "white" else rng.uniform(0.65, 0.97)
    return hsv_colour(rng.random(), rng.uniform(0, 0.15), value)


def _width(rng: np.random.Generator, size: int) -> float:
    """Of a line, in texture widths."""
    return float(rng.uniform(0.8, 3.5)) / size


def _drawn(distance: Float[np.ndarray, "size size"], width: float, size: int) -> Float[np.ndarray, "size size"]:
    """Where a line of ``width`` runs along the zeros of ``distance``, both in texture widths; its rim is a texel wide."""
    return smoothstep(0.5 * width + 0.5 / size, 0.5 * width - 0.5 / size, np.abs(distance)).astype(np.float32)


def _raster(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Squares or rectangles, now and then every few lines a bolder one."""
    columns = int(rng.integers(3, 17))
    rows = columns if rng.random() < 0.8 else int(rng.integers(3, 17))
    # No more ink than sheet.
    width, bold = min(_width(rng, size), 0.2 / max(columns, rows)), int(rng.choice([0, 2, 4, 5]))
    mask = np.zeros((size, size), np.float32)
    for axis, count in zip(grid(size), (columns, rows), strict=True):
        mask = np.maximum(mask, _drawn(_to_line(axis, count), width, size))
        if bold and count % bold == 0:
            mask = np.maximum(mask, _drawn(_to_line(axis, count // bold), 2 * width, size))
    return mask


def _ruled(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Parallel lines at equal distances."""
    axis, count = grid(size)[int(rng.integers(2))], int(rng.integers(3, 25))
    return _drawn(_to_line(axis, count), min(_width(rng, size), 0.3 / count), size)


def _straight(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """A few lines that close on themselves across the texture's borders, whatever their direction."""
    u, v = grid(size)
    mask = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(1, 5))):
        across = rng.integers(-2, 3, 2)
        if not across.any():
            continue
        turns = across[0] * u + across[1] * v + rng.random()
        mask = np.maximum(mask, _drawn(_to_line(turns, 1) / np.hypot(*across), _width(rng, size), size))
    return mask


def _text(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Lines of letters here and there."""
    rows = [letters(rng, size, rng.uniform(0.04, 0.25)) for _ in range(int(rng.integers(1, 6)))]
    return np.max(rows, axis=0)


def _to_line(position: np.ndarray, count: int) -> np.ndarray:
    """Distance to the nearest of ``count`` lines in [0, 1), with its sign."""
    return ((position * count + 0.5) % 1.0 - 0.5) / count
