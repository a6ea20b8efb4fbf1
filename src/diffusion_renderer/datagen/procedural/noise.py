"""Seamless random fields: the stuff textures and skies are made of. All are numpy arrays of float32."""

from __future__ import annotations

import functools
from statistics import NormalDist

import numpy as np
from jaxtyping import Float


def normalised(field: np.ndarray) -> np.ndarray:
    """Stretch to [0, 1]; a constant field becomes 0."""
    low, high = float(field.min()), float(field.max())
    return ((field - low) / (high - low) if high > low else np.zeros_like(field)).astype(np.float32)


def fractal(
    rng: np.random.Generator, height: int, width: int, roughness: float = 0.5, coarsest: float = 2.0
) -> Float[np.ndarray, "height width"]:
    """Periodic 1/f noise in [0, 1].

    ``roughness`` 0 gives smooth hills, 1 nearly white noise; features are no larger than 1/``coarsest`` of the image.
    """
    fy = np.fft.fftfreq(height)[:, None] * height
    fx = np.fft.rfftfreq(width)[None, :] * width
    frequency = np.hypot(fy, fx)
    amplitude = np.where(frequency < coarsest * 0.5, 0.0, 1.0) / np.maximum(frequency, coarsest) ** (3.0 - 2.5 * roughness)
    spectrum = amplitude * (rng.standard_normal(amplitude.shape) + 1j * rng.standard_normal(amplitude.shape))
    return normalised(np.fft.irfft2(spectrum, s=(height, width)))


def gaussian(
    rng: np.random.Generator,
    size: int | tuple[int, int],
    roughness: float = 0.5,
    coarsest: float = 2.0,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> Float[np.ndarray, "rows columns"]:
    """Periodic 1/f noise of mean 0 and deviation 1, nearly normally distributed.

    Several times as fast as `fractal` (single precision, cached frequencies) and anisotropic: features are ``stretch`` times as
    long along the rows' axis (v) and the columns' axis (u). ``size`` is that of a square, or (rows, columns); ``roughness`` and
    ``coarsest`` are as in `fractal`.
    """
    rows, columns = size if isinstance(size, tuple) else (size, size)
    fy, fx = _frequencies(rows, columns)
    squared = (fy * np.float32(stretch[0])) ** 2 + (fx * np.float32(stretch[1])) ** 2
    exponent = np.float32(-0.5 * (3.0 - 2.5 * roughness))
    amplitude = np.exp(exponent * np.log(np.maximum(squared, np.float32(coarsest**2))))
    amplitude[squared < (0.5 * coarsest) ** 2] = 0.0
    spectrum = rng.standard_normal((rows, columns // 2 + 1, 2), dtype=np.float32).view(np.complex64)[..., 0] * amplitude
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(rows, columns)).astype(np.float32)
    return field / np.float32(max(float(field.std()), 1e-20))


@functools.lru_cache(maxsize=8)
def _frequencies(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    fy = (np.fft.fftfreq(rows)[:, None] * rows).astype(np.float32)
    return fy, (np.fft.rfftfreq(columns)[None, :] * columns).astype(np.float32)


def covering(field: Float[np.ndarray, "rows columns"], share: float, soft: float) -> Float[np.ndarray, "rows columns"]:
    """A mask in [0, 1] that covers about ``share`` of a normally distributed field, its edges ``soft`` deviations wide."""
    edge = NormalDist().inv_cdf(min(max(1.0 - share, 1e-4), 1.0 - 1e-4))
    return smoothstep(edge - 0.5 * soft, edge + 0.5 * soft, field)


def slopes(height: Float[np.ndarray, "size size"]) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of a periodic height field (in texture widths) along u and along v, by central differences."""
    half = np.float32(0.5 * len(height))
    along_u, along_v = np.empty_like(height), np.empty_like(height)
    along_u[:, 1:-1] = height[:, 2:] - height[:, :-2]
    along_u[:, 0], along_u[:, -1] = height[:, 1] - height[:, -1], height[:, 0] - height[:, -2]
    along_v[1:-1] = height[2:] - height[:-2]
    along_v[0], along_v[-1] = height[1] - height[-1], height[0] - height[-2]
    along_u *= half
    along_v *= half
    return along_u, along_v


def with_slope(field: Float[np.ndarray, "size size"], slope: float) -> Float[np.ndarray, "size size"]:
    """The field scaled so that, as a height, the root mean square of its slope is ``slope``; a flat field stays flat."""
    along_u, along_v = slopes(field)
    mean_square = (float(np.vdot(along_u, along_u)) + float(np.vdot(along_v, along_v))) / field.size
    return field * np.float32(slope / max(mean_square, 1e-20) ** 0.5 if mean_square > 1e-16 else 0.0)


def cells(
    rng: np.random.Generator, size: int, count: int
) -> tuple[Float[np.ndarray, "size size"], Float[np.ndarray, "size size"]]:
    """Periodic Voronoi cells: distance to the nearest border in [0, 1], and one random value per cell."""
    points = rng.random((count, 2))
    values = rng.random(count)
    axis = (np.arange(size) + 0.5) / size
    delta = np.abs(axis[:, None, None] - points)
    delta = np.minimum(delta, 1 - delta) ** 2
    nearest, second = np.full((size, size), np.inf), np.full((size, size), np.inf)
    owner = np.zeros((size, size), np.int64)
    for index in range(count):
        squared = delta[:, None, index, 0] + delta[None, :, index, 1]
        owner[squared < nearest] = index
        np.minimum(second, np.maximum(nearest, squared), out=second)
        np.minimum(nearest, squared, out=nearest)
    return normalised(np.sqrt(second) - np.sqrt(nearest)), values[owner].astype(np.float32)


def pebbles(
    rng: np.random.Generator, size: int, per_side: int, jitter: float = 0.9
) -> tuple[Float[np.ndarray, "size size"], Float[np.ndarray, "size size"], Float[np.ndarray, "size size"]]:
    """Periodic Voronoi cells around ``per_side``^2 jittered grid points: cost does not depend on their number.

    Returns the distance to the nearest point, the distance to the border (second nearest minus nearest; both in cell widths),
    and one random value per cell. Points farther than the neighbouring grid cells are not looked at: for a jitter of 1 a border
    may lie slightly wrong.
    """
    offset = (0.5 + jitter * (rng.random((per_side, per_side, 2)) - 0.5)).astype(np.float32)
    value = rng.random((per_side, per_side)).astype(np.float32)
    axis = ((np.arange(size) + 0.5) * (per_side / size)).astype(np.float32)
    cell = axis.astype(np.int64)
    inside = axis - cell
    nearest = np.full((size, size), np.inf, np.float32)
    second, chosen = nearest.copy(), np.zeros_like(nearest)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            where = np.ix_((cell + row) % per_side, (cell + column) % per_side)
            point = offset[where]
            squared = (point[..., 0] + (row - inside)[:, None]) ** 2 + (point[..., 1] + (column - inside)) ** 2
            closer = squared < nearest
            chosen = np.where(closer, value[where], chosen)
            np.minimum(second, np.maximum(nearest, squared), out=second)
            np.minimum(nearest, squared, out=nearest)
    nearest = np.sqrt(nearest)
    return nearest, np.sqrt(second) - nearest, chosen


def smoothstep(edge0: float, edge1: float, x: np.ndarray) -> np.ndarray:
    """Cubic step from 0 at ``edge0`` to 1 at ``edge1``; the edges may be in either order but not equal."""
    t = np.clip((x - edge0) / (edge1 - edge0), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
