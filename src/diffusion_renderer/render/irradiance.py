"""The diffuse lobe under a panorama, exactly: Disney's lobe is a polynomial in what a panorama can be filtered for.

With ``Fl = (1 - n.l)^5``, ``Fv = (1 - n.v)^5`` and ``s = roughness (1 + l.v)``, which is the lobe's ``2 roughness (l.h)^2``,
`brdf.diffuse_shape` is ``(1 - Fv / 2)(1 - Fl / 2) + s (Fv + Fl + Fv Fl (s - 1))``. It depends on ``l`` through ``n.l`` and
through powers of ``l.v`` up to the second, so it is enough to know the radiance, its first and its second moment in ``l``,
filtered by ``n.l`` and by ``n.l Fl``.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.geometry import dot
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.render import brdf
from diffusion_renderer.render.prefilter import DIFFUSE_ROWS, PanoramaStack, at_rows, convolve, grid_directions

#: Integrals over the sphere of the positive part of the cosine x, and of x (1 - x)^5.
COSINE_INTEGRAL, GRAZING_INTEGRAL = math.pi, 2 * math.pi / 42
#: Pairs of axes of a symmetric matrix.
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def diffuse_stack(environment: EnvironmentMap) -> PanoramaStack:
    """14 filtered RGB panoramas: moments 0 and 1 with the cosine, 0, 1 and 2 with the cosine times the grazing weight."""
    radiance = at_rows(environment, DIFFUSE_ROWS)
    axes = grid_directions(DIFFUSE_ROWS).to(radiance).unbind(-1)
    linear = [radiance, *(radiance * axis for axis in axes)]
    square = [radiance * axes[i] * axes[j] for i, j in _PAIRS]
    cosine = convolve(torch.cat(linear), lambda c: c.clamp_min(0.0), COSINE_INTEGRAL)
    grazing = convolve(torch.cat(linear + square), lambda c: c.clamp_min(0.0) * (1 - c).pow(5), GRAZING_INTEGRAL)
    return PanoramaStack.of(torch.cat((cosine, grazing))[:, None])


def diffuse_radiance(
    stack: PanoramaStack,
    normal: Float[Tensor, "points 3"],
    view: Float[Tensor, "points 3"],
    roughness: Float[Tensor, "points 1"],
) -> Float[Tensor, "points 3"]:
    """Radiance towards ``view`` of a white diffuse surface under the panorama of ``stack``; directions are the panorama's."""
    maps = stack.read(normal, torch.zeros_like(normal[:, 0])).unflatten(-1, (14, 3))
    x, y, z = view.split(1, dim=-1)
    r, fv = roughness, brdf.schlick_weight(dot(normal, view))
    # s = r + r (l.v), s^2 = r^2 (1 + 2 (l.v) + (l.v)^2), sorted by powers of l.v: the factor of each moment, then of each map.
    cosine, cosine1 = 1 - 0.5 * fv + r * fv, r * fv
    grazing2 = r.square() * fv
    grazing, grazing1 = -0.5 * (1 - 0.5 * fv) + r * (1 - fv) + grazing2, r * (1 - fv) + 2 * grazing2
    first = torch.cat((x, y, z), dim=-1)
    second = torch.cat((x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z), dim=-1)
    factors = torch.cat((cosine, cosine1 * first, grazing, grazing1 * first, grazing2 * second), dim=-1)
    return (factors[..., None] * maps).sum(dim=1).clamp_min(0.0) / math.pi
