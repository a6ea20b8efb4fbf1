"""How each buffer becomes a network image in [0, 1] and back.

Base colour and diffuse albedo are sRGB-encoded, normals are ``0.5 n + 0.5``, depth is relative per clip, roughness and metallic
are linear. One-channel buffers are repeated to three channels and read back as the mean of the three. PNG files hold the same
encoding, with one channel where the buffer has one.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.geometry import lengths
from diffusion_renderer.core.types import BUFFER_CHANNELS, GBuffer

#: Relative depth from here on is background where no mask says.
RELATIVE_BACKGROUND = 1 - 1e-3
#: Normals shorter than this are background.
LEAST_NORMAL = 0.1


def surface_mask(gbuffer: GBuffer, relative: bool) -> Bool[Tensor, "frames 1 height width"]:
    """Where G-buffers show a surface and not the background, by depth, normal and, where there is one, the mask.

    The background is where the depth is not a positive finite number (``relative`` depth may be 0, and is background from
    `RELATIVE_BACKGROUND` on where there is no mask), the mask is False, or the normal is (nearly) the zero vector.
    """
    depth = gbuffer.depth
    seen = torch.isfinite(depth) & (depth >= 0 if relative else depth > 0)
    if gbuffer.mask is not None:
        seen = seen & gbuffer.mask
    elif relative:
        seen = seen & (depth < RELATIVE_BACKGROUND)
    return seen & (lengths(gbuffer.normal, dim=1) > LEAST_NORMAL)


def relative_depth(
    depth: Float[Tensor, "frames 1 height width"], depth_range: tuple[float, float] | None = None
) -> Float[Tensor, "frames 1 height width"]:
    """``(d - d_min) / (d_max - d_min)`` over the clip's finite pixels: near 0, far 1, background (not finite) 1.

    ``depth_range`` is (d_min, d_max) of the whole clip where ``depth`` is only a part of it; see `GBuffer.depth_range`. A clip
    without any finite depth, or of one constant depth, has no scale: its surface pixels become 0.
    """
    valid = torch.isfinite(depth)
    if not valid.any():
        return torch.ones_like(depth)
    near, far = depth_range or (float(depth[valid].min()), float(depth[valid].max()))
    scaled = (depth - near) / (far - near) if far > near else torch.zeros_like(depth)
    return torch.where(valid, scaled, torch.ones_like(depth)).clamp(0.0, 1.0)


def encode_buffer(
    name: str, value: Float[Tensor, "frames channels height width"], depth_range: tuple[float, float] | None = None
) -> Float[Tensor, "frames channels height width"]:
    """Memory to encoded image in [0, 1], channels unchanged. ``name`` is one of `BUFFERS`; for ``depth_range`` see
    `relative_depth`."""
    if name in ("basecolor", "diffuse_albedo"):
        return srgb_oetf(value)
    if name == "normal":
        return (0.5 * value + 0.5).clamp(0.0, 1.0)
    if name == "depth":
        return relative_depth(value, depth_range)
    return value.clamp(0.0, 1.0)


def decode_buffer(
    name: str, image: Float[Tensor, "frames channels height width"]
) -> Float[Tensor, "frames out_channels height width"]:
    """Encoded image in [0, 1] to memory; the inverse of `encode_buffer` (depth stays relative).

    Normals are made unit length; where the encoded vector is shorter than 0.25 (the grey of the background) they become 0.
    """
    if BUFFER_CHANNELS[name] == 1 and image.shape[1] == 3:
        image = image.mean(dim=1, keepdim=True)
    image = image.clamp(0.0, 1.0)
    if name in ("basecolor", "diffuse_albedo"):
        return srgb_eotf(image)
    if name == "normal":
        vector = 2 * image - 1
        length = lengths(vector, dim=1)
        return torch.where(length < 0.25, torch.zeros_like(vector), vector / length.clamp_min(1e-6))
    return image


def network_image(
    name: str, value: Float[Tensor, "frames channels height width"], depth_range: tuple[float, float] | None = None
) -> Float[Tensor, "frames 3 height width"]:
    """Memory to the three-channel network image in [0, 1]."""
    image = encode_buffer(name, value, depth_range)
    return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image
