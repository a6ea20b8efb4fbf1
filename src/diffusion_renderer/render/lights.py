"""A panorama split into its bright spots, as distant lights, and the rest.

The sun of a sky is 10^4 times as bright as the sky. The far tail of a rough lobe and its end at the horizon then decide how a
surface looks, and no filtered panorama holds these to the accuracy that takes. So, as game engines do, what stands out is lit
with the BRDF itself, and the panorama without it is filtered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import luminance
from diffusion_renderer.core.panorama import row_solid_angle
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.render import brdf
from diffusion_renderer.render.prefilter import at_rows, grid_directions

#: What exceeds this many times the mean of the panorama (itself clipped so) stands out.
STANDS_OUT = 2.0
#: Points lit at once on a CPU: what they need of 16 lights stays in its cache.
CHUNK = 2**13
#: Rows of the panorama and of the cells in which what stands out is gathered to one light each.
ROWS, CELL_ROWS = 128, 32


@dataclass(frozen=True)
class DistantLights:
    """Lights at infinity: unit directions, and irradiance at right angles (radiance times solid angle)."""

    direction: Float[Tensor, "lights 3"]
    irradiance: Float[Tensor, "lights 3"]

    def reflected(
        self,
        normal: Float[Tensor, "points 3"],
        view: Float[Tensor, "points 3"],
        basecolor: Float[Tensor, "points 3"],
        roughness: Float[Tensor, "points 1"],
        metallic: Float[Tensor, "points 1"],
    ) -> Float[Tensor, "points 3"]:
        """Radiance towards ``view`` by the specular lobe."""
        size = CHUNK if normal.device.type == "cpu" else max(1, len(normal))
        points = (tensor.split(size) for tensor in (normal, view, basecolor, roughness, metallic))
        return torch.cat([self._reflected(*chunk) for chunk in zip(*points, strict=True)])

    def _reflected(self, normal: Tensor, view: Tensor, basecolor: Tensor, roughness: Tensor, metallic: Tensor) -> Tensor:
        lobe, cosine = brdf.microfacet_of_lights(normal, view, self.direction, roughness)
        # Summed over the lights by Fresnel term, before the colours come in: `brdf.schlick` is linear in them.
        weight = brdf.schlick_weight(cosine)
        dielectric, straight, grazing = (
            (self.irradiance.mT @ (lobe * factor)).mT for factor in (brdf.fresnel_dielectric(cosine), 1 - weight, weight)
        )
        return (1 - metallic) * dielectric + metallic * (basecolor * straight + grazing)


def split_lights(environment: EnvironmentMap, count: int) -> tuple[DistantLights, EnvironmentMap]:
    """At most ``count`` lights, the strongest, and the panorama without them at `ROWS` rows; no light is lost.

    Linear in the panorama but for what is chosen; differentiable.
    """
    radiance = at_rows(environment, ROWS)
    area = row_solid_angle(*radiance.shape[-2:], radiance.device).to(radiance)
    brightness = luminance(radiance)[0]
    with torch.no_grad():
        limit = _limit(brightness, area)
        kept = (limit / brightness.clamp_min(1e-12)).clamp_max(1.0)
    excess = radiance * (1 - kept)
    cell = ROWS // CELL_ROWS
    flux = rearrange(excess * area[:, None], "c (h a) (w b) -> (h w) (a b) c", a=cell, b=cell)
    directions = rearrange(grid_directions(ROWS).to(radiance), "(h a) (w b) i -> (h w) (a b) i", a=cell, b=cell)
    strength = flux.mean(dim=-1)
    with torch.no_grad():
        chosen = strength.sum(dim=1).topk(min(count, len(strength))).indices
        chosen = chosen[strength[chosen].sum(dim=1) > 0]
        taken = torch.zeros(len(strength), device=radiance.device).index_fill(0, chosen, 1.0)
        taken = repeat(taken, "(h w) -> (h a) (w b)", h=CELL_ROWS, a=cell, b=cell)
    towards = einsum(strength[chosen], directions[chosen], "n p, n p i -> n i")
    lights = DistantLights(torch.nn.functional.normalize(towards, dim=-1), flux[chosen].sum(dim=1))
    return lights, EnvironmentMap(radiance - excess * taken, environment.name)


def _limit(brightness: Float[Tensor, "rows columns"], area: Float[Tensor, " rows"]) -> float:
    """`STANDS_OUT` times the mean brightness of what does not exceed the limit itself."""
    weight = area[:, None] / (area.sum() * brightness.shape[1])
    limit = float(brightness.max())
    for _ in range(20):
        limit = STANDS_OUT * float((brightness.clamp_max(limit) * weight).sum())
    return limit
