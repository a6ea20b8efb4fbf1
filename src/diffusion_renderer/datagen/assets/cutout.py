"""Transparency as geometry: triangles are divided along the edge of an alpha map, and what lies in a hole is dropped.

So rendering needs no opacity, and every buffer sees the same outline.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion_renderer.datagen.assets.images import sampled
from diffusion_renderer.datagen.assets.surface import UV

#: Triangles are divided until their longest edge spans no more texels than this; the outline is a straight line in each.
_STEP = 2.0
_MOST_ROUNDS = 40


def cut_out(
    corners: Float[np.ndarray, "faces 3 columns"], alpha: Float[np.ndarray, "rows columns2 1"], cutoff: float, budget: int
) -> Float[np.ndarray, "faces2 3 columns"]:
    """The triangles, or parts of triangles, where alpha (bilinear, repeated) is at least ``cutoff``.

    Triangles wholly inside or outside stay whole. The others are halved at their longest edge until they span about two
    texels, or until there are ``budget`` triangles (then the outline is coarse); there it is interpolated linearly along the
    edges. Details thinner than two texels may be lost.
    """
    counts = _Counts(alpha[..., 0] >= cutoff)
    size = np.array([alpha.shape[1], alpha.shape[0]])
    kept, edge = [corners[:0]], [corners[:0]]
    active = corners
    for _ in range(_MOST_ROUNDS):
        texels = active[..., UV] * size
        solid, empty = counts.classify(texels)
        kept.append(active[solid])
        active, texels = active[~solid & ~empty], texels[~solid & ~empty]
        length = _edge_lengths(texels)
        fine = length.max(1, initial=0.0) <= _STEP
        edge.append(active[fine])
        active, length = active[~fine], length[~fine]
        # One triangle at the edge becomes at most two.
        total = sum(map(len, kept)) + 2 * sum(map(len, edge)) + 4 * len(active)
        if len(active) == 0 or total > budget:
            break
        active = _halved(active, length.argmax(1))
    edge.append(active)
    return np.concatenate((*kept, _clipped(np.concatenate(edge), alpha, cutoff)))


class _Counts:
    """How many texels of a rectangle of a repeating mask are set, by a summed-area table (Crow 1984)."""

    def __init__(self, mask: Bool[np.ndarray, "rows columns"]) -> None:
        self.rows, self.columns = mask.shape
        self._sums = np.zeros((2 * self.rows + 1, 2 * self.columns + 1), np.int64)
        self._sums[1:, 1:] = np.tile(mask, (2, 2)).cumsum(0, dtype=np.int64).cumsum(1)

    def classify(self, texels: Float[np.ndarray, "faces 3 2"]) -> tuple[Bool[np.ndarray, "faces"], Bool[np.ndarray, "faces"]]:
        """Which triangles can only meet set texels, and which only others; texels that bilinear lookup reads count as met."""
        low = np.floor(texels.min(1) - 0.5).astype(np.int64)
        span = np.floor(texels.max(1) - 0.5).astype(np.int64) + 2 - low
        width, height = np.minimum(span[:, 0], self.columns), np.minimum(span[:, 1], self.rows)
        left, top = low[:, 0] % self.columns, low[:, 1] % self.rows
        s = self._sums
        inside = s[top + height, left + width] - s[top, left + width] - s[top + height, left] + s[top, left]
        return inside == width * height, inside == 0


def _edge_lengths(texels: np.ndarray) -> Float[np.ndarray, "faces 3"]:
    return np.linalg.norm(texels[:, [1, 2, 0]] - texels, axis=-1)


def _turned(corners: np.ndarray, first: Int[np.ndarray, "faces"]) -> np.ndarray:
    """Each triangle with its corners in the same cyclic order, beginning at corner ``first``."""
    order = (first[:, None] + np.arange(3)) % 3
    return np.take_along_axis(corners, order[..., None], 1)


def _halved(corners: np.ndarray, longest: Int[np.ndarray, "faces"]) -> np.ndarray:
    a, b, c = np.moveaxis(_turned(corners, longest), 1, 0)
    middle = (a + b) / 2
    return np.concatenate((np.stack((a, middle, c), 1), np.stack((middle, b, c), 1)))


def _clipped(corners: np.ndarray, alpha: np.ndarray, cutoff: float) -> np.ndarray:
    """The part of each triangle where alpha, linear between its values at the corners, is at least the cutoff.

    Triangles whose corners all lie on one side are kept or dropped as a whole, as their centre says.
    """
    height = sampled(alpha, corners[..., UV])[..., 0] - cutoff
    above = height >= 0
    number = above.sum(1)
    # Three corners alike say nothing about what lies between them: thin details, or large triangles when the budget is spent.
    centre = sampled(alpha, corners[..., UV].mean(1))[..., 0] >= cutoff
    pieces = [corners[np.isin(number, (0, 3)) & centre]]
    for single in (1, 2):
        some = number == single
        # Begin at the corner that differs from the other two.
        first = (above[some] if single == 1 else ~above[some]).argmax(1)
        a, b, c = np.moveaxis(_turned(corners[some], first), 1, 0)
        h = np.take_along_axis(height[some], (first[:, None] + np.arange(3)) % 3, 1)
        on_b, on_c = (a + (h[:, :1] / (h[:, :1] - h[:, k : k + 1])) * (other - a) for k, other in ((1, b), (2, c)))
        if single == 1:
            pieces.append(np.stack((a, on_b, on_c), 1))
        else:
            pieces += [np.stack((on_b, b, c), 1), np.stack((on_b, c, on_c), 1)]
    return np.concatenate(pieces)
