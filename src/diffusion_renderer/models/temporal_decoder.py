"""The blocks of the VAE's temporal decoder as a CPU computes them best: a pixel's channels side by side in memory, no copies.

diffusers' blocks compute the same. On a CPU their convolution over frames is one over volumes, for which oneDNN has slow
kernels (on one thread torch takes its own, slower still), and every block copies what it blends in. The UNets, whose pictures
are an eighth as wide, gain nothing by it and keep diffusers' blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.upsampling import Upsample2D
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

#: What each of the four rows of a transposed kernel takes of the three of the plain one: in an image whose rows are repeated, a
#: kernel meets one row twice.
_TAKEN = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


class FramesConv(nn.Conv3d):
    """A convolution over frames, kernel (3, 1, 1), that takes the pixels of a frame in one row as well as volumes."""

    def forward(
        self, frames: Float[Tensor, "batch channels frames *pixels"]
    ) -> Float[Tensor, "batch out_channels frames *pixels"]:
        """Pixels in a row are a picture whose height is the frames; (height, width) is a volume."""
        if frames.ndim == 5:
            return super().forward(frames)
        return F.conv2d(frames, self.weight[..., 0], self.bias, padding=(1, 0))


class EnlargingConv(nn.Conv2d):
    """A 3 x 3 convolution, padded by one, that can double its input first, which saves five ninths of the work."""

    def forward(
        self, images: Float[Tensor, "batch channels height width"], enlarge: bool = False
    ) -> Float[Tensor, "batch out_channels _height _width"]:
        """With ``enlarge`` it is the convolution of the images with every pixel repeated twice in each direction."""
        if not enlarge:
            return super().forward(images)
        # Four neighbours of the doubled image are one pixel: together both steps are a transposed convolution of 4 x 4.
        taken = self.weight.new_tensor(_TAKEN)
        weight = einsum(self.weight, taken, taken, "o i y x, a y, b x -> i o a b")
        weight = weight.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(images, weight, self.bias, stride=2, padding=1)


class FramesResBlock(SpatioTemporalResBlock):
    """diffusers' residual block in space and then in time, of a temporal decoder (no time embedding, a learned blend).

    Equal but for rounding. On other devices than a CPU it is diffusers' own.
    """

    def forward(
        self,
        hidden_states: Float[Tensor, "batch_frames channels height width"],
        temb: Float[Tensor, "batch_frames time_channels"] | None = None,
        image_only_indicator: Float[Tensor, "batch frames"] | None = None,
    ) -> Float[Tensor, "batch_frames out_channels height width"]:
        """``image_only_indicator`` tells the number of clips and frames by its shape; its values mean nothing to the blend."""
        if hidden_states.device.type != "cpu" or temb is not None or image_only_indicator is None:
            return super().forward(hidden_states, temb, image_only_indicator)
        clips, height = len(image_only_indicator), hidden_states.shape[-2]
        space, time = self.spatial_res_block, self.temporal_res_block
        images = hidden_states.contiguous(memory_format=torch.channels_last)
        change = space.conv2(_activated(space.norm2(space.conv1(_activated(space.norm1(images))))))
        images = (images if space.conv_shortcut is None else space.conv_shortcut(images)) + change
        # No copy. In two steps, for in one the stride of a single clip is any number, and torch then does not see that channels
        # are last.
        row = rearrange(rearrange(images, "(b f) c h w -> b f (h w) c", b=clips), "b f p c -> b c f p")
        change = time.conv2(_activated(time.norm2(time.conv1(_activated(time.norm1(row))))))
        # The blend of the images and of the images with the change is the images with a share of the change.
        row = torch.addcmul(row, torch.sigmoid(self.time_mixer.mix_factor).to(change), change)
        return rearrange(row, "b c f (h w) -> (b f) c h w", h=height)


class FramesUpsample(Upsample2D):
    """diffusers' upsampling, nearest pixel and convolution, as one transposed convolution on a CPU where it doubles."""

    def forward(
        self,
        hidden_states: Float[Tensor, "batch_frames channels height width"],
        output_size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch_frames out_channels _height _width"]:
        """``output_size`` is (height, width) where it is not twice the input's."""
        if hidden_states.device.type != "cpu" or output_size is not None:
            return super().forward(hidden_states, output_size)
        return self.conv(hidden_states.contiguous(memory_format=torch.channels_last), enlarge=True)


def use_frames_blocks(decoder: nn.Module) -> None:
    """Let the blocks of diffusers' temporal decoder compute as those here; its parameters and their names stay."""
    # Classes and not methods of objects: views of a network are copies, and theirs must use their own layers.
    for module in decoder.modules():
        if type(module) is SpatioTemporalResBlock:
            module.__class__ = FramesResBlock
            for conv in (module.temporal_res_block.conv1, module.temporal_res_block.conv2):
                conv.__class__ = FramesConv
        elif type(module) is Upsample2D:
            module.__class__, module.conv.__class__ = FramesUpsample, EnlargingConv


def use_diffusers_blocks(decoder: nn.Module) -> None:
    """Undo `use_frames_blocks`."""
    for module in decoder.modules():
        if isinstance(module, (FramesResBlock, FramesUpsample, FramesConv, EnlargingConv)):
            module.__class__ = type(module).__base__


def _activated(values: Tensor) -> Tensor:
    """SiLU, in place where no gradient needs the values."""
    return F.silu(values, inplace=not torch.is_grad_enabled())
