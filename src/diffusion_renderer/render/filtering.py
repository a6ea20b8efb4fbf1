"""Smoothing noisy shading across a surface, but not over its edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.render.surface import Surface

#: Exponent of the cosine between two normals, and the distance from a pixel's tangent plane, as a share of its depth, at which
#: weights have fallen to 1/e. On 16 stills a sharper pair (64, 0.02) was 0.1 dB worse.
NORMAL_POWER, PLANE_SHARE = 16, 0.05
#: One row of the binomial kernel.
_ROW = (1.0, 4.0, 6.0, 4.0, 1.0)


def cross_bilateral(values: Float[Tensor, "frames channels height width"], seen: Surface) -> Tensor:
    """Mean of 5 x 5 pixels that lie on about the same surface (joint bilateral filter; Petschnigg et al. 2004), shape kept.

    Binomial weights times those of normals and of the distance from the pixel's tangent plane. 0 where nothing is seen. What
    changes within a surface, such as a shadow's edge, is blurred over two pixels.
    """
    normal, position = seen.normal.movedim(-1, 1), seen.position.movedim(-1, 1)
    coverage = seen.coverage.movedim(-1, 1)
    row = values.new_tensor(_ROW)
    kernel = torch.outer(row, row).flatten()
    total, weight = torch.zeros_like(values), torch.zeros_like(coverage)
    near = (PLANE_SHARE * position[:, 2:3].abs()).clamp_min(1e-9)
    padded = [F.pad(x, (2, 2, 2, 2), mode="replicate") for x in (values, normal, position)]
    # Beyond the picture nothing is seen.
    around = F.pad(coverage, (2, 2, 2, 2))
    height, width = values.shape[-2:]
    for place in range(25):
        rows, columns = slice(place // 5, place // 5 + height), slice(place % 5, place % 5 + width)
        value, other, point = (x[..., rows, columns] for x in padded)
        cosine = (normal * other).sum(dim=1, keepdim=True).clamp_min(0.0)
        off = ((point - position) * normal).sum(dim=1, keepdim=True) / near
        share = kernel[place] * around[..., rows, columns] * cosine.pow(NORMAL_POWER) * torch.exp(-off.square())
        total, weight = total + share * value, weight + share
    return coverage * total / weight.clamp_min(1e-9)
