"""The specular lobe in pieces, and the diffuse lobe as polynomials: what the split-sum renderer multiplies panoramas with.

Karis 2013, "Real Shading in Unreal Engine 4", splits the reflected radiance into a panorama that is filtered by the lobe at
normal incidence and an integrated BRDF. Away from normal incidence the true lobe is long and leans towards the normal, so with
one look-up bright lights have the wrong shape. Here the sum is split after the lobe has been cut in pieces, each compact enough
to be a symmetric one; each has its own entry in the integrated BRDF and its own direction and width in the filtered panorama.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.render import brdf

#: Nodes of the tables along roughness (even steps) and along the cosine (even steps of its square root).
ROUGHNESS_NODES, COSINE_NODES = 24, 48
#: Facets along either axis of the quadrature at each node.
QUADRATURE = 32


@lru_cache(maxsize=4)
def lobe_table(along: int, across: int) -> Float[Tensor, "pieces 6 roughness cosines"]:
    """The pieces of the specular lobe of every roughness and cosine ``n.v``, by quadrature over `brdf`.

    The lobe is cut in ``along`` pieces in the plane of incidence and each of these in ``across`` pieces sideways (1 or even;
    one side of the symmetric lobe is stored, `mirrored` tells whether it stands for two). Entries: the mean direction, not
    normalised (its length is the mean cosine), along the mirror direction, towards the normal's side in the plane, sideways;
    the integral with the dielectric Fresnel term; with Schlick's, the factor of F0 and the rest.
    """
    roughness = torch.linspace(0.0, 1.0, ROUGHNESS_NODES)
    cosine = torch.linspace(0.0, 1.0, COSINE_NODES).square().clamp_min(1e-4)
    return torch.stack([_pieces(value, cosine, along, across) for value in roughness], dim=2)


def mirrored(across: int) -> bool:
    """Whether the pieces of `lobe_table` are those of one side only."""
    return across > 1


def _pieces(
    roughness: Float[Tensor, ""], cosine: Float[Tensor, " cosines"], along: int, across: int
) -> Float[Tensor, "pieces 6 cosines"]:
    """`lobe_table` at one roughness."""
    sides = max(1, across // 2)
    count = math.ceil(QUADRATURE**2 / (along * sides))
    uniform = _half_disc(along * sides * count)
    sine = (1 - cosine.square()).clamp_min(0.0).sqrt()
    zero = torch.zeros_like(cosine)
    normal = torch.tensor([0.0, 0.0, 1.0])
    view, mirror, inwards = (
        torch.stack(axes, dim=-1)[:, None] for axes in ((sine, zero, cosine), (-sine, zero, cosine), (cosine, zero, sine))
    )
    rough = roughness.expand(1)
    light = brdf.sample_ggx_visible(normal, view, rough, uniform)
    # Sorted in the plane of incidence, then sideways: pieces of equally many visible facets.
    light = _sorted(light, (light * inwards).sum(-1))
    light = rearrange(light, "c (a n) i -> c a n i", a=along)
    light = rearrange(_sorted(light, light[..., 1].abs()), "c a (s n) i -> c (a s) n i", s=sides)
    view, mirror, inwards = view[:, None], mirror[:, None], inwards[:, None]
    density = brdf.pdf_ggx_visible(normal, view, light, rough)
    lobe = brdf.microfacet(normal, view, light, rough) / density.clamp_min(1e-20)
    # Equal shares of the density; those below the surface have no weight but belong to the mean of a piece that has only them.
    share = 1 / (along * sides * count * (2 if mirrored(across) else 1))
    vh = brdf.half_vector(view, light)[1]
    weight = (1 - vh).clamp(0.0, 1.0).pow(5)
    integrals = [(lobe * factor).sum(dim=(-2, -1)) * share for factor in (brdf.fresnel_dielectric(vh), 1 - weight, weight)]
    held = lobe + 1e-6
    sideways = light[..., 1].abs() if mirrored(across) else torch.zeros_like(light[..., 1])
    axes = ((light * mirror).sum(-1), (light * inwards).sum(-1), sideways)
    mean = [(axis * held[..., 0]).sum(-1) / held[..., 0].sum(-1) for axis in axes]
    return rearrange(torch.stack([*mean, *integrals]), "entries cosines pieces -> pieces entries cosines")


def _half_disc(count: int) -> Float[Tensor, "{count} 2"]:
    """Evenly spread numbers for `brdf.sample_ggx_visible`, for the facets on one side of the plane of incidence.

    A Kronecker sequence of the golden ratio's generalisation to two dimensions (Roberts 2018): even for any count.
    """
    step = 1.32471795724474602596
    index = torch.arange(count, dtype=torch.float64)
    first, second = (0.5 + index / step) % 1.0, (0.5 + index / step**2) % 1.0
    # A quarter turn to either side of the axis that points sideways.
    return torch.stack((first, 0.5 * second - 0.25), dim=-1).float()


def _sorted(light: Float[Tensor, "*rows points 3"], key: Float[Tensor, "*rows points"]) -> Float[Tensor, "*rows points 3"]:
    return light.gather(-2, key.argsort(dim=-1)[..., None].expand_as(light))
