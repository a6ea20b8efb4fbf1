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

from diffusion_renderer.core.geometry import cross, dot, unit, vectors

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
    white, coloured = response(normal, view, light, roughness, metallic)
    return white + coloured * basecolor


def response(
    normal: Float[Tensor, "*#shape 3"],
    view: Float[Tensor, "*#shape 3"],
    light: Float[Tensor, "*#shape 3"],
    roughness: Float[Tensor, "*#shape 1"],
    metallic: Float[Tensor, "*#shape 1"],
) -> tuple[Float[Tensor, "... 1"], Float[Tensor, "... 1"]]:
    """`evaluate` in the two parts that it has for every colour: it is the first plus the second times the base colour."""
    nl, nv = dot(normal, light), dot(normal, view)
    cosine2, sine2, vh = _facets(normal, view, light)
    alpha, dielectric, edge = alpha_of(roughness), 1 - metallic, schlick_weight(vh)
    lobe = _ggx(cosine2, sine2, alpha.square()) * nl / (_smith(nl, alpha) * _smith(nv, alpha))
    diffuse = dielectric * diffuse_shape(nv, nl, vh, roughness) * nl / math.pi
    white = lobe * (dielectric * fresnel_dielectric(vh) + metallic * edge)
    coloured = lobe * metallic * (1 - edge) + diffuse
    above = (nl > 0) & (nv > 0)
    # A tensor of no dimensions: `where` takes twice as long with a number.
    zero = nl.new_zeros(())
    return torch.where(above, white, zero), torch.where(above, coloured, zero)


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
    shape = diffuse_shape(nv, nl, half_vector(view, light)[1], roughness)
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
    vh = half_vector(view, light)[1]
    fresnel = (1 - metallic) * fresnel_dielectric(vh) + metallic * schlick(basecolor, vh)
    return fresnel * microfacet(normal, view, light, roughness)


def microfacet(
    normal: Float[Tensor, "*#shape 3"],
    view: Float[Tensor, "*#shape 3"],
    light: Float[Tensor, "*#shape 3"],
    roughness: Float[Tensor, "*#shape 1"],
) -> Float[Tensor, "... 1"]:
    """``D G1(v) G1(l) / (4 n.v)``: the specular lobe times the cosine, without its Fresnel term."""
    nl, nv, alpha = dot(normal, light), dot(normal, view), alpha_of(roughness)
    cosine2, sine2, _ = _facets(normal, view, light)
    above = (nl > 0) & (nv > 0)
    # G1(x) = 2 x / _smith(x), so that the two cosines below the fraction cancel and nothing is divided by 0.
    lobe = _ggx(cosine2, sine2, alpha.square()) * nl / (_smith(nl, alpha) * _smith(nv, alpha))
    return torch.where(above, lobe, 0.0)


def _facets(
    normal: Float[Tensor, "*#shape 3"], view: Float[Tensor, "*#shape 3"], light: Float[Tensor, "*#shape 3"]
) -> tuple[Float[Tensor, "... 1"], Float[Tensor, "... 1"], Float[Tensor, "... 1"]]:
    """Of the half vector: squares of its cosine and sine to the normal, and its cosine to the light; all 0 where it is zero."""
    (nx, ny, nz), (vx, vy, vz), (lx, ly, lz) = normal.unbind(-1), view.unbind(-1), light.unbind(-1)
    # v + l, which is as long as 2 v.h.
    x, y, z = vx + lx, vy + ly, vz + lz
    square = x * x + y * y + z * z
    some = square.clamp_min(1e-12)
    # The squared sine from the cross product: 1 - cosine^2 has no digits left in float32 where the lobe is narrow.
    a, b, c = ny * z - nz * y, nz * x - nx * z, nx * y - ny * x
    cosine2, sine2 = (nx * x + ny * y + nz * z).square() / some, (a * a + b * b + c * c) / some
    # Clamped inside the root, whose gradient at 0 is infinite.
    cosine = torch.where(square > 1e-12, 0.5 * some.sqrt(), square.new_zeros(()))
    return cosine2[..., None], sine2[..., None], cosine[..., None]


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
    across = cross(normal, half)
    return _ggx(dot(normal, half).square(), dot(across, across), alpha.square())


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
    stretched = unit(torch.cat(torch.broadcast_tensors(alpha * vx, alpha * vy, vz), dim=-1))
    # The disc seen from `stretched` is a half disc and a half ellipse, as wide as the lower half of the hemisphere looks.
    # The tangent plane's basis must have its first axis horizontal for that.
    first, second = _horizontal(stretched, *tangents(stretched))
    u, w = uniform.unbind(-1)
    radius, angle = u.clamp_min(0.0).sqrt(), 2 * math.pi * w
    a, b = radius * angle.cos(), radius * angle.sin()
    share = 0.5 * (1 + stretched[..., 2])
    b = (1 - share) * (1 - a.square()).clamp_min(0.0).sqrt() + share * b
    c = (1 - a.square() - b.square()).clamp_min(0.0).sqrt()
    basis = zip(first.unbind(-1), second.unbind(-1), stretched.unbind(-1), strict=True)
    x, y, z = (a * i + b * j + c * k for i, j, k in basis)
    facet = vectors(alpha[..., 0] * x, alpha[..., 0] * y, z.clamp_min(1e-6))
    x, y, z = unit(facet).unbind(-1)
    basis = zip(tangent.unbind(-1), bitangent.unbind(-1), normal.unbind(-1), strict=True)
    half = vectors(*(x * i + y * j + z * k for i, j, k in basis))
    twice = 2 * dot(view, half)[..., 0]
    return unit(vectors(*(twice * h - v for h, v in zip(half.unbind(-1), view.unbind(-1), strict=True))))


def pdf_ggx_visible(
    normal: Float[Tensor, "*#shape 3"],
    view: Float[Tensor, "*#shape 3"],
    light: Float[Tensor, "*#shape 3"],
    roughness: Float[Tensor, "*#shape 1"],
) -> Float[Tensor, "... 1"]:
    """Density of `sample_ggx_visible` over solid angle, ``G1(v) D / (4 n.v)``; 0 for a ``view`` below the surface."""
    nl, nv, alpha = dot(normal, light), dot(normal, view), alpha_of(roughness)
    cosine2, sine2, vh = _facets(normal, view, light)
    density = _ggx(cosine2, sine2, alpha.square()) / (2 * _smith(nv, alpha))
    # The half vector is above the surface where the two together are.
    return torch.where((nv > 0) & (nl + nv > 0) & (vh > 0), density, density.new_zeros(()))


def tangents(normal: Float[Tensor, "*shape 3"]) -> tuple[Float[Tensor, "*shape 3"], Float[Tensor, "*shape 3"]]:
    """Two unit vectors that make a right-handed orthonormal basis with ``normal`` (Duff et al. 2017)."""
    x, y, z = normal.unbind(-1)
    sign = torch.where(z >= 0, 1.0, -1.0).to(z)
    a = -1 / (sign + z)
    b = x * y * a
    first = vectors(1 + sign * x.square() * a, sign * b, -sign * x)
    return first, vectors(b, sign + y.square() * a, -y)


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
