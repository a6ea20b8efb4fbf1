"""The three images through which the forward renderer sees a light (paper section 3.2, "environment map encoding").

They are equirectangular in the camera's frame but square and mirrored: columns run from -x to +x in the lower index, so that
the centre of the direction image is (0.5, 0.5, 1) and its right side is red.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.panorama import average_panorama
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.light.radiance import sample_panorama

#: Radiance that the Reinhard curve maps to 1.
REINHARD_WHITE = 16.0
#: Radiance that the logarithmic image maps to 1.
LOG_WHITE = 10000.0
#: The published system reads panoramas through a cube map with faces of this many texels; see `_read_as_published`.
CUBE_SIZE = 512
#: Directions looked up at once: four frames of 512 x 512, about 100 MB of temporaries.
CHUNK = 2**20


@dataclass(frozen=True)
class EnvironmentImages:
    """A light as the environment encoder reads it, one image per frame, all in [0, 1].

    Attributes
    ----------
    ldr : sRGB of the Reinhard-compressed radiance.
    log : sRGB of the logarithm of the radiance.
    direction : ``0.5 d + 0.5`` of the camera-space direction of each pixel.

    A light at rest is one image expanded over the frames: clone before writing to it.
    """

    ldr: Float[Tensor, "frames 3 height width"]
    log: Float[Tensor, "frames 3 height width"]
    direction: Float[Tensor, "frames 3 height width"]


def environment_images(
    environment: EnvironmentMap, rotations: Float[Tensor, "frames 3 3"], size: int = 512, antialias: bool = False
) -> EnvironmentImages:
    """The three ``size`` x ``size`` images of a light, for every frame.

    Parameters
    ----------
    rotations : R of each frame; a pixel of camera-space direction d shows the panorama at ``d_world = R d``.
    antialias : False reads points of the panorama as the published system does, which misses or exaggerates a small sun when
        ``size`` is much smaller than the panorama. True averages the linear radiance over solid angle to the images' resolution
        first, so that the sun keeps its energy; the published numbers then no longer hold.
    """
    radiance = environment.radiance.nan_to_num(0.0, posinf=65504.0, neginf=0.0).clamp(0.0, 65504.0)
    if antialias:
        radiance = average_panorama(radiance, size, size)
    environment = replace(environment, radiance=radiance)
    rotations = rotations.to(radiance)
    frames = rotations.shape[0]
    still = frames > 0 and bool((rotations == rotations[:1]).all())
    distinct = rotations[:1] if still else rotations

    direction = image_directions(size).to(radiance)
    # Antialiased radiance already has the images' resolution: a second filter would only blur it.
    read = sample_panorama if antialias else _read_as_published
    ldr, log = [], []
    for part in distinct.split(max(1, CHUNK // size**2)):
        seen = read(environment, einsum(part, direction, "f i j, h w j -> f h w i"))
        seen = rearrange(seen, "f h w c -> f c h w")
        ldr.append(srgb_oetf(reinhard(seen)))
        log.append(srgb_oetf(torch.log1p(seen) / math.log1p(LOG_WHITE)))
    shape = (frames, 3, size, size)
    empty = radiance.new_zeros(shape)
    return EnvironmentImages(
        ldr=torch.cat(ldr).expand(shape) if ldr else empty,
        log=torch.cat(log).expand(shape) if log else empty,
        direction=rearrange(0.5 * direction + 0.5, "h w c -> 1 c h w").expand(shape),
    )


def image_directions(size: int) -> Float[Tensor, "{size} {size} 3"]:
    """Camera-space unit direction of each pixel of an environment image.

    Columns are sampled at pixel centres; rows from ``1 / size`` to ``1 - 1 / size`` with both ends included. That is what the
    published direction image shows: with rows at pixel centres too, the mean difference is 40 times larger (3.1e-3, not 8e-5).
    """
    if size < 2:
        raise ValueError(f"an environment image needs at least 2 x 2 pixels, not {size}")
    phi = 2 * math.pi * ((torch.arange(size) + 0.5) / size - 0.5)
    theta = math.pi * torch.linspace(1 / size, 1 - 1 / size, size)
    x = einsum(theta.sin(), phi.sin(), "h, w -> h w")
    z = einsum(theta.sin(), phi.cos(), "h, w -> h w")
    return torch.stack((x, theta.cos()[:, None].expand_as(x), z), dim=-1)


def reinhard(radiance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Extended Reinhard curve ``x (1 + x / 16^2) / (1 + x)``: 16 maps to 1, brighter exceeds it."""
    return radiance * (1 + radiance / REINHARD_WHITE**2) / (1 + radiance)


def _read_as_published(environment: EnvironmentMap, direction: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
    """Read the panorama through the texels of a cube map, bilinearly twice, as the published system does.

    Reading the panorama itself differs by up to 6.1e-3 (mean, a panorama full of leaves), the cube map by 5e-5. Only the four
    texels around each direction are computed, not the cube: its faces are never larger than what is asked for.
    """
    flat = direction.reshape(-1, 3)
    axis = flat.abs().argmax(dim=-1, keepdim=True)
    # The face is the plane where the largest component is +-1; a and b are the two others, in [-1, 1] on the face.
    major = flat.gather(-1, axis)
    a_axis, b_axis = (axis + 1) % 3, (axis + 2) % 3
    position = torch.cat((flat.gather(-1, a_axis), flat.gather(-1, b_axis)), dim=-1) / major.abs()
    texel = (position + 1) * (CUBE_SIZE / 2) - 0.5
    low = texel.floor()
    total = torch.zeros_like(flat)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        index = low + low.new_tensor(corner)
        weight = (1 - (texel - index).abs()).prod(dim=-1, keepdim=True)
        # Beyond the face's edge the plane is continued, which is the neighbouring face's texel to within a fraction of a texel.
        on_face = (index + 0.5) * (2 / CUBE_SIZE) - 1
        centre = torch.zeros_like(flat)
        centre = centre.scatter(-1, axis, major.sign()).scatter(-1, a_axis, on_face[:, :1]).scatter(-1, b_axis, on_face[:, 1:])
        total = total + weight * sample_panorama(environment, torch.nn.functional.normalize(centre, dim=-1))
    return total.reshape(direction.shape)
