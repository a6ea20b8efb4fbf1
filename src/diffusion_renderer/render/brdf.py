"""The metallic-roughness BRDF of the data: Disney's diffuse lobe and a GGX specular lobe.

The model is that of Mitsuba's `principled` with base colour, roughness, metallic and its default specular (index of refraction
1.5), from the published formulas: Burley 2012, "Physically Based Shading at Disney" (diffuse lobe, Schlick's Fresnel term in
metals, alpha = roughness^2), Burley 2015 (retro-reflection apart); Walter et al. 2007, "Microfacet Models for Refraction
through Rough Surfaces" (GGX, Smith masking G1(v) G1(l)); Heitz 2018, "Sampling the GGX Distribution of Visible Normals".

Directions are unit vectors away from the surface, in any one frame. All arguments broadcast against one another. Everything is
differentiable, with finite gradients at grazing and normal incidence, at roughness 0 and 1, for black.

It cannot do transmission, coats, sheen or anisotropy, and light that scatters more than once between facets is lost: a rough
metal is up to a half darker than it should be, exactly as in the reference.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.geometry import dot

#: Index of refraction of dielectrics; reflects 4% at normal incidence.
ETA = 1.5
#: Smallest GGX width; smoother surfaces are rendered as this smooth.
MIN_ALPHA = 1e-3


def evaluate(
    normal: Float[Tensor, "*#shape 3"],
    view: Float[Tensor, "*#shape 3"],
    light: Float[Tensor, "*#shape 3"],
    basecolor: Float[Tensor, "*#shape 3"],
    roughness: Float[Tensor, "*#shape 1"],
    metallic: Float[Tensor, "*#shape 1"],
) -> Float[Tensor, "... 3"]:
    """BRDF times ``max(normal . light, 0)``, per steradian; 0 where ``light`` or ``view`` is below the surface."""
    diffuse = evaluate_diffuse(normal, view, light, basecolor, roughness, metallic)
    return diffuse + evaluate_specular(normal, view, light, basecolor, roughness, metallic)


def evaluate_diffuse(
    normal: Float[Tensor, "*#shape 3"],
    view: Float[Tensor, "*#shape 3"],
    light: Float[Tensor, "*#shape 3"],
    basecolor: Float[Tensor, "*#shape 3"],
    roughness: Float[Tensor, "*#shape 1"],
    metallic: Float[Tensor, "*#shape 1"],
) -> Float[Tensor, "... 3"]:
    """The diffuse lobe alone, as `evaluate`: ``(1 - metallic) basecolor / pi`` times `diffuse_shape` times the cosine."""
    nl, nv = dot(normal, light), dot(normal, view)
    half, _ = half_vector(view, light)
    shape = diffuse_shape(nv, nl, dot(half, light), roughness)
    above = (nl > 0) & (nv > 0)
    return torch.where(above, shape * nl / math.pi, 0.0) * (1 - metallic) * basecolor


def evaluate_specular(
    normal: Float[Tensor, "*#shape 3"],
    view: Float[Tensor, "*#shape 3"],
    light: Float[Tensor, "*#shape 3"],
    basecolor: Float[Tensor, "*#shape 3"],
    roughness: Float[Tensor, "*#shape 1"],
    metallic: Float[Tensor, "*#shape 1"],
) -> Float[Tensor, "... 3"]:
    """The specular lobe alone, as `evaluate`: ``F D G / (4 n.v)``."""
    half, vh = half_vector(view, light)
    fresnel = (1 - metallic) * fresnel_dielectric(vh) + metallic * schlick(basecolor, vh)
    return fresnel * _lobe(normal, view, light, half, roughness)


def microfacet(
    normal: Float[Tensor, "*#shape 3"],
    view: Float[Tensor, "*#shape 3"],
    light: Float[Tensor, "*#shape 3"],
    roughness: Float[Tensor, "*#shape 1"],
) -> Float[Tensor, "... 1"]:
    """``D G1(v) G1(l) / (4 n.v)``: the specular lobe times the cosine, without its Fresnel term."""
    return _lobe(normal, view, light, half_vector(view, light)[0], roughness)


def _lobe(normal: Tensor, view: Tensor, light: Tensor, half: Tensor, roughness: Tensor) -> Tensor:
    """`microfacet` for a half vector that is known."""
    nl, nv, alpha = dot(normal, light), dot(normal, view), alpha_of(roughness)
    above = (nl > 0) & (nv > 0)
    # G1(x) = 2 x / _smith(x), so that the two cosines below the fraction cancel and nothing is divided by 0.
    lobe = ggx(normal, half, alpha) * nl / (_smith(nl, alpha) * _smith(nv, alpha))
    return torch.where(above, lobe, 0.0)


def microfacet_of_lights(
    normal: Float[Tensor, "points 3"],
    view: Float[Tensor, "points 3"],
    light: Float[Tensor, "lights 3"],
    roughness: Float[Tensor, "points 1"],
) -> tuple[Float[Tensor, "lights points"], Float[Tensor, "lights points"]]:
    """`microfacet` of every point under every one of the lights, and the half vectors' cosines to the lights.

    For unit vectors. Products of matrices in place of vectors for each pair: a fraction of the time of a call per light.
    """
    # Points along rows: what is one number per point is then read in one go, and not once per short row.
    alpha, nv = alpha_of(roughness).mT, dot(normal, view).mT
    nl = light @ normal.mT
    # Of v + l, which is not made: the square of its length, and then its sine to the normal as in `ggx`.
    square = (2 + 2 * light @ view.mT).clamp_min(1e-12)
    x, y, z = light.unbind(-1)
    zero = torch.zeros_like(x)
    turned = (torch.stack(axis, dim=-1) for axis in ((zero, z, -y), (-z, zero, x), (y, -x, zero)))
    across = torch.linalg.cross(normal, view).mT.contiguous()
    sine2 = sum((part + axis @ normal.mT).square() for part, axis in zip(across, turned, strict=True))
    density = _ggx((nv + nl).square() / square, sine2 / square, alpha.square())
    lobe = density * nl / (_smith(nl, alpha) * _smith(nv, alpha))
    return torch.where((nl > 0) & (nv > 0), lobe, 0.0), 0.5 * square.sqrt()


def alpha_of(roughness: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Width of the GGX distribution, ``max(roughness^2, MIN_ALPHA)``."""
    return roughness.square().clamp_min(MIN_ALPHA)


def ggx(
    normal: Float[Tensor, "*#shape 3"], half: Float[Tensor, "*#shape 3"], alpha: Float[Tensor, "*#shape 1"]
) -> Float[Tensor, "... 1"]:
    """Density of facet normals (Walter et al. 2007, eq. 33), per steradian."""
    normal, half = torch.broadcast_tensors(normal, half)
    cosine2 = dot(normal, half).square()
    # The squared sine from the cross product: 1 - cosine^2 has no digits left in float32 where the lobe is narrow.
    across = torch.linalg.cross(normal, half)
    return _ggx(cosine2, dot(across, across), alpha.square())


def _ggx(cosine2: Tensor, sine2: Tensor, alpha2: Tensor) -> Tensor:
    """`ggx` from the squares of the half vector's cosine and sine to the normal and of the width."""
    # Of unit vectors the bracket is at least MIN_ALPHA^2. The zero vector stands for opposite directions (`half_vector`): their
    # value does not count, but an infinite one would make the gradients of the others NaN.
    return alpha2 / (math.pi * (cosine2 * alpha2 + sine2).clamp_min(0.1 * MIN_ALPHA**2).square())


def diffuse_shape(
    nv: Float[Tensor, "*#shape"],
    nl: Float[Tensor, "*#shape"],
    lh: Float[Tensor, "*#shape"],
    roughness: Float[Tensor, "*#shape"],
) -> Float[Tensor, "..."]:
    """Disney's diffuse lobe relative to a Lambertian one (Burley 2015, eq. 4), from cosines; ``lh``: light and half vector."""
    fv, fl = schlick_weight(nv), schlick_weight(nl)
    retro = 2 * roughness * lh.square()
    return (1 - 0.5 * fv) * (1 - 0.5 * fl) + retro * (fv + fl + fv * fl * (retro - 1))


def fresnel_dielectric(cosine: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Exact unpolarised reflectance of an interface of index `ETA`, from outside, at this cosine of incidence."""
    c = cosine.clamp(0.0, 1.0)
    t = torch.sqrt(1 - (1 - c.square()) / ETA**2)
    across, along = (c - ETA * t) / (c + ETA * t), (ETA * c - t) / (ETA * c + t)
    return 0.5 * (across.square() + along.square())


def schlick(f0: Float[Tensor, "*#shape channels"], cosine: Float[Tensor, "*#shape 1"]) -> Float[Tensor, "... channels"]:
    """Schlick's approximation of the Fresnel term: ``f0`` at normal incidence, 1 at grazing."""
    return f0 + (1 - f0) * schlick_weight(cosine)


def schlick_weight(cosine: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Schlick's weight, ``(1 - cosine)^5``."""
    rest = (1 - cosine).clamp(0.0, 1.0)
    # By hand: `pow` takes several times as long.
    return rest.square().square() * rest


def half_vector(
    view: Float[Tensor, "*#shape 3"], light: Float[Tensor, "*#shape 3"]
) -> tuple[Float[Tensor, "... 3"], Float[Tensor, "... 1"]]:
    """The unit vector half way between the two, and its cosine to either. Opposite directions give the zero vector and 0."""
    total = view + light
    square = dot(total, total)
    # Of unit vectors |v + l| = 2 v.h; clamped inside the root, whose gradient at 0 is infinite.
    length = torch.sqrt(square.clamp_min(1e-12))
    return total / length, torch.where(square > 1e-12, 0.5 * length, 0.0)


def sample_ggx_visible(
    normal: Float[Tensor, "*#shape 3"],
    view: Float[Tensor, "*#shape 3"],
    roughness: Float[Tensor, "*#shape 1"],
    uniform: Float[Tensor, "*#shape 2"],
) -> Float[Tensor, "... 3"]:
    """Light directions: ``view`` mirrored at facets drawn from those that it sees (Heitz 2018, listing in its appendix).

    ``uniform``: two numbers in [0, 1) for each direction. Some directions fall below the surface, where the BRDF is 0; their
    share of `pdf_ggx_visible` is there too. A ``view`` below the surface is taken as grazing.
    """
    alpha = alpha_of(roughness)
    tangent, bitangent = tangents(normal)
    vx, vy, vz = dot(view, tangent), dot(view, bitangent), dot(view, normal).clamp_min(1e-6)
    # Stretched so that the facets become a hemisphere.
    stretched = torch.nn.functional.normalize(torch.cat(torch.broadcast_tensors(alpha * vx, alpha * vy, vz), dim=-1), dim=-1)
    first, second = tangents(stretched)
    u, w = uniform.unbind(-1)
    radius, angle = u.clamp_min(0.0).sqrt()[..., None], (2 * math.pi * w)[..., None]
    a, b = radius * angle.cos(), radius * angle.sin()
    # The disc seen from `stretched` is a half disc and a half ellipse, as wide as the lower half of the hemisphere looks.
    # The tangent plane's basis must have its first axis horizontal for that.
    first, second = _horizontal(stretched, first, second)
    share = 0.5 * (1 + stretched[..., 2:])
    b = (1 - share) * (1 - a.square()).clamp_min(0.0).sqrt() + share * b
    c = (1 - a.square() - b.square()).clamp_min(0.0).sqrt()
    facet = a * first + b * second + c * stretched
    facet = torch.cat((alpha * facet[..., :2], facet[..., 2:].clamp_min(1e-6)), dim=-1)
    facet = torch.nn.functional.normalize(facet, dim=-1)
    half = facet[..., :1] * tangent + facet[..., 1:2] * bitangent + facet[..., 2:] * normal
    return torch.nn.functional.normalize(2 * dot(view, half) * half - view, dim=-1)


def pdf_ggx_visible(
    normal: Float[Tensor, "*#shape 3"],
    view: Float[Tensor, "*#shape 3"],
    light: Float[Tensor, "*#shape 3"],
    roughness: Float[Tensor, "*#shape 1"],
) -> Float[Tensor, "... 1"]:
    """Density of `sample_ggx_visible` over solid angle, ``G1(v) D / (4 n.v)``; 0 for a ``view`` below the surface."""
    nv, alpha = dot(normal, view), alpha_of(roughness)
    half, vh = half_vector(view, light)
    density = ggx(normal, half, alpha) / (2 * _smith(nv, alpha))
    return torch.where((nv > 0) & (dot(normal, half) > 0) & (vh > 0), density, 0.0)


def tangents(normal: Float[Tensor, "*shape 3"]) -> tuple[Float[Tensor, "*shape 3"], Float[Tensor, "*shape 3"]]:
    """Two unit vectors that make a right-handed orthonormal basis with ``normal`` (Duff et al. 2017)."""
    x, y, z = normal.unbind(-1)
    sign = torch.where(z >= 0, 1.0, -1.0).to(z)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack((1 + sign * x.square() * a, sign * b, -sign * x), dim=-1)
    return first, torch.stack((b, sign + y.square() * a, -y), dim=-1)


def _horizontal(axis: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The basis turned about ``axis`` until its first vector has z = 0 and the second points up; not turned about +z."""
    up = torch.cat((second[..., 2:], first[..., 2:]), dim=-1)
    length = up.norm(dim=-1, keepdim=True)
    turn = torch.where(length > 1e-6, up / length.clamp_min(1e-6), up.new_tensor((1.0, 0.0)))
    c, s = turn[..., :1], turn[..., 1:]
    return c * first - s * second, s * first + c * second


def _smith(cosine: Float[Tensor, "*#shape"], alpha: Float[Tensor, "*#shape"]) -> Float[Tensor, "..."]:
    """``x + sqrt(a^2 + (1 - a^2) x^2)``, the denominator of Smith's G1 for GGX (Walter et al. 2007, eq. 34)."""
    cosine = cosine.clamp_min(0.0)
    alpha2 = alpha.square()
    return cosine + torch.sqrt(alpha2 + (1 - alpha2) * cosine.square())
