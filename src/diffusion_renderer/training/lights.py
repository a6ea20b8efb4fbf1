"""Lights as training sees them: environment images of the stored panoramas, as they are or varied at random."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.geometry import rotation_x, rotation_y
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.light import environment_images


def light_images(
    radiance: Float[Tensor, "3 height width"], rotations: Float[Tensor, "frames 3 3"], size: int
) -> Float[Tensor, "frames 3 3 size size"]:
    """The three environment images of every frame, stacked in the encoder's order (ldr, log, direction)."""
    images = environment_images(EnvironmentMap(radiance), rotations, size, antialias=True)
    return torch.stack((images.ldr, images.log, images.direction), dim=1)


def varied_light_images(
    radiance: Float[Tensor, "3 height width"], size: int, generator: torch.Generator
) -> Float[Tensor, "1 3 3 size size"]:
    """Environment images of a panorama turned and tilted as cameras are, recoloured, up to three stops darker or brighter."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    rotation = rotation_y(uniform(-math.pi, math.pi)) @ rotation_x(uniform(-1.2, 0.4))
    varied = radiance[torch.randperm(3, generator=generator)] * 2 ** uniform(-3, 3)
    return light_images(varied, rotation[None], size)
