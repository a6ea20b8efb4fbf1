"""Shading normals for corners that have none."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.assets.surface import NORMAL, POSITION, face_vectors

#: Corners at one place that touch more triangles than this are shaded flat: the pairs below would grow with its square.
_MOST_NEIGHBOURS = 64
#: Corners closer than this, in a model of radius 1, are at one place.
_SAME_PLACE = 1e-6


def completed(corners: Float[np.ndarray, "faces 3 columns"], crease: float) -> Float[np.ndarray, "faces 3 columns"]:
    """Corners with unit normals: those at hand are kept, missing (zero or not finite) ones are computed.

    ``crease`` in degrees: 0 for flat triangles (what glTF asks for), else smooth across edges less sharp than this.
    """
    corners = corners.copy()
    normals = np.nan_to_num(corners[..., NORMAL], nan=0.0, posinf=0.0, neginf=0.0)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    missing = length[..., 0] < 1e-20
    normals = normals / np.maximum(length, 1e-20)
    if missing.any():
        weighted = face_vectors(corners)
        flat = weighted / np.maximum(np.linalg.norm(weighted, axis=-1, keepdims=True), 1e-30)
        made = np.repeat(flat[:, None], 3, 1) if crease <= 0 else _smooth(corners[..., POSITION], weighted, flat, crease)
        normals[missing] = made[missing]
    corners[..., NORMAL] = normals
    return corners


def _smooth(positions: np.ndarray, weighted: np.ndarray, flat: np.ndarray, crease: float) -> np.ndarray:
    """Per corner the area-weighted mean of the triangles that meet there at less than ``crease`` degrees."""
    rounded = np.round(positions.reshape(-1, 3) / _SAME_PLACE).astype(np.int64)
    _, place = np.unique(rounded, axis=0, return_inverse=True)
    order = np.argsort(place.ravel(), kind="stable")
    count = np.bincount(place.ravel())
    start = np.cumsum(count) - count
    owner, size = np.repeat(np.arange(len(count)), count), np.repeat(count, count)
    first = np.repeat(start, count)
    size = np.where(size > _MOST_NEIGHBOURS, 0, size)
    # All pairs of corners at one place: `one` looks at `other`.
    one = np.repeat(np.arange(len(owner)), size)
    other = np.repeat(first, size) + np.arange(len(one)) - np.repeat(np.cumsum(size) - size, size)
    face_one, face_other = order[one] // 3, order[other] // 3
    near = np.einsum("ni,ni->n", flat[face_one], flat[face_other]) >= np.cos(np.radians(crease))
    total = np.zeros((len(order), 3))
    np.add.at(total, order[one[near]], weighted[face_other[near]])
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where(length > 0, total / np.maximum(length, 1e-30), np.repeat(flat, 3, 0)).reshape(-1, 3, 3)
