"""Radiance of a panorama by direction, its mean, its exposure."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import direction_to_equirect
from diffusion_renderer.core.panorama import row_solid_angle
from diffusion_renderer.core.types import EnvironmentMap


def sample_panorama(environment: EnvironmentMap, direction: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
    """Radiance seen in each world-space unit direction, read bilinearly; wraps around in u and clamps in v.

    Differentiable in the radiance and, away from the poles, in the direction. It does not average: where directions lie
    further apart than pixels, small lights are missed.
    """
    radiance = environment.radiance
    width = radiance.shape[-1]
    u, v = direction_to_equirect(direction.reshape(-1, 3).to(radiance))
    # One column is repeated on either side, so that reading across the seam needs no special case.
    padded = torch.cat((radiance[..., -1:], radiance, radiance[..., :1]), dim=-1)
    x = 2 * (u * width + 1) / (width + 2) - 1
    grid = torch.stack((x, 2 * v - 1), dim=-1)
    value = torch.nn.functional.grid_sample(padded[None], grid[None, None], padding_mode="border", align_corners=False)
    return value[0, :, 0].T.reshape(direction.shape)


def mean_radiance(environment: EnvironmentMap) -> Float[Tensor, " 3"]:
    """Mean linear RGB radiance over all directions, weighted by solid angle."""
    height, width = environment.radiance.shape[-2:]
    weight = row_solid_angle(height, width, environment.radiance.device) / (4 * math.pi)
    return einsum(environment.radiance, weight, "c h w, h -> c")


def scale_exposure(environment: EnvironmentMap, factor: float) -> EnvironmentMap:
    """The same light ``factor`` times as bright. A negative or non-finite factor raises InputError."""
    if not (math.isfinite(factor) and factor >= 0):
        raise InputError("a finite light scale of 0 or more", str(factor), "give a number such as 1.5")
    return replace(environment, radiance=(environment.radiance * factor).clamp_max(65504.0))
