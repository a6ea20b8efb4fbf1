"""What a renderer must beat: constants, the input itself, base colour under the mean light."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.light import mean_radiance


def best_constant(values: Float[Tensor, "count channels"]) -> Float[Tensor, "channels"]:
    """The constant of least RMSE over all samples: their mean."""
    return values.mean(dim=0)


def best_constant_normal(normals: Float[Tensor, "count 3"], iterations: int = 200) -> Float[Tensor, "3"]:
    """The constant direction of least mean angular error over all samples: their geodesic median.

    Weiszfeld's iteration on the sphere: step along the mean of the unit tangents towards the samples, each weighted by the
    inverse of its angle. Started from the mean direction; samples at an angle of 0 or pi have no tangent and are left out.
    """
    centre = torch.nn.functional.normalize(normals.mean(dim=0), dim=0)
    for _ in range(iterations):
        cosine = (normals @ centre).clamp(-1 + 1e-6, 1 - 1e-6)
        angle = torch.acos(cosine)[:, None]
        tangent = (normals - cosine[:, None] * centre) / torch.sin(angle)
        step = tangent.sum(dim=0) / (1 / angle).sum()
        length = step.norm()
        if length < 1e-6:
            break
        centre = torch.nn.functional.normalize(centre * torch.cos(length) + step / length * torch.sin(length), dim=0)
    return centre


def base_color_times_light(
    basecolor: Float[Tensor, "frames 3 height width"], environment: EnvironmentMap
) -> Float[Tensor, "frames 3 height width"]:
    """Base colour lit evenly by the panorama's mean radiance, as sRGB; metallic and geometry are ignored."""
    return srgb_oetf(basecolor * mean_radiance(environment)[:, None, None])
