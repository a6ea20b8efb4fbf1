"""Solid angles of a panorama's pixels, and averaging a panorama down without losing light."""

from __future__ import annotations

import math

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor


def row_solid_angle(height: int, width: int, device: torch.device | None = None) -> Float[Tensor, " height"]:
    """Solid angle in steradians of one pixel in each row of an equirectangular panorama; ``width`` of each row sum to 4 pi."""
    edge = torch.linspace(0.0, math.pi, height + 1, dtype=torch.float64, device=device)
    # Exact over the pixel: the integral of sin(theta), not its value at the centre, which is 0 steradians short at the poles.
    return ((edge[:-1].cos() - edge[1:].cos()) * (2 * math.pi / width)).float()


def average_panorama(
    radiance: Float[Tensor, "3 height width"], height: int, width: int
) -> Float[Tensor, "3 out_height out_width"]:
    """Area-average linear radiance to ``height`` x ``width``, weighted by solid angle, so that a small sun keeps its energy.

    An axis that is already as small as asked is left alone: this function cannot enlarge.
    """
    rows, columns = radiance.shape[-2:]
    height, width = min(height, rows), min(width, columns)
    if (height, width) == (rows, columns):
        return radiance
    across = _overlap(columns, width, torch.ones(columns)).to(radiance.device)
    down = _overlap(rows, height, row_solid_angle(rows, columns)).to(radiance.device)
    narrow = einsum(across, radiance, "w columns, c rows columns -> c rows w")
    return einsum(down, narrow, "h rows, c rows w -> c h w")


def _overlap(size: int, target: int, weight: Float[Tensor, " size"]) -> Float[Tensor, "target size"]:
    """How much of each source cell lies in each target cell, times ``weight``; every row sums to 1."""
    start = torch.arange(size, dtype=torch.float64)
    edge = torch.arange(target + 1, dtype=torch.float64) * (size / target)
    shared = torch.minimum(start[None] + 1, edge[1:, None]) - torch.maximum(start[None], edge[:-1, None])
    shared = shared.clamp_min(0.0) * weight.double()
    return (shared / shared.sum(dim=1, keepdim=True)).float()
