"""Which buffers share one network image.

The published networks give each buffer an image of its own and repeat one-channel buffers three times. A preset may instead
pack up to three one-channel buffers into the channels of one image, so that one pass of the network makes all of them. An image
group is the tuple of buffer names that share an image, in channel order; a group of one is the published case.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.encoding import decode_buffer, encode_buffer, network_image
from diffusion_renderer.core.types import BUFFER_CHANNELS, BUFFERS, DEFAULT_BUFFERS, GBuffer

#: Groups of several buffers; the domain-embedding index of a pack follows those of the six buffers.
PACKS: tuple[tuple[str, ...], ...] = (("depth", "roughness", "metallic"),)
#: The domain-embedding index of a network that makes all its groups in one pass, their latents concatenated.
JOINT_INDEX = len(BUFFERS) + len(PACKS)
#: One image per buffer, in the order in which the published forward renderer reads them.
UNPACKED: tuple[tuple[str, ...], ...] = tuple((name,) for name in DEFAULT_BUFFERS)


def embedding_index(group: tuple[str, ...]) -> int:
    """Row of the learned domain embedding for a group: 0 to 5 for a buffer, 6 and up for a pack of `PACKS`."""
    return BUFFERS.index(group[0]) if len(group) == 1 else len(BUFFERS) + PACKS.index(group)


def pack_image(
    gbuffer: GBuffer, group: tuple[str, ...], depth_range: tuple[float, float] | None = None
) -> Float[Tensor, "frames 3 height width"]:
    """The network image in [0, 1] of a group; its buffers must be present. For ``depth_range`` see `relative_depth`."""
    gbuffer.require(group)
    if len(group) == 1:
        return network_image(group[0], getattr(gbuffer, group[0]), depth_range)
    return torch.cat([encode_buffer(name, getattr(gbuffer, name), depth_range) for name in group], dim=1)


def unpack_image(group: tuple[str, ...], image: Float[Tensor, "frames 3 height width"]) -> dict[str, Tensor]:
    """The buffers of a group in their memory encoding; the inverse of `pack_image` (depth stays relative)."""
    if len(group) == 1:
        return {group[0]: decode_buffer(group[0], image)}
    channels = torch.split(image, [BUFFER_CHANNELS[name] for name in group], dim=1)
    return {name: decode_buffer(name, channel) for name, channel in zip(group, channels, strict=True)}
