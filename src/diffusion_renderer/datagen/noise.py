"""Seamless random fields: the stuff textures and skies are made of. All are numpy arrays of float32."""

from __future__ import annotations

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


def cells(
    rng: np.random.Generator, size: int, count: int
) -> tuple[Float[np.ndarray, "size size"], Float[np.ndarray, "size size"]]:
    """Periodic Voronoi cells: distance to the nearest border in [0, 1], and one random value per cell."""
    points = rng.random((count, 2))
    values = rng.random(count)
    axis = (np.arange(size) + 0.5) / size
    delta = np.abs(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)[:, :, None] - points)
    distance = np.linalg.norm(np.minimum(delta, 1 - delta), axis=-1)
    order = np.argsort(distance, axis=-1)
    nearest = np.take_along_axis(distance, order[..., :2], axis=-1)
    return normalised(nearest[..., 1] - nearest[..., 0]), values[order[..., 0]].astype(np.float32)


def smoothstep(edge0: float, edge1: float, x: np.ndarray) -> np.ndarray:
    """Cubic step from 0 at ``edge0`` to 1 at ``edge1``; the edges may be in either order but not equal."""
    t = np.clip((x - edge0) / (edge1 - edge0), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
