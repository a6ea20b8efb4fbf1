"""The autoencoder: diffusers' own, with two more settings."""

from __future__ import annotations

from collections.abc import Sequence

import diffusers
import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_renderer.models.norms import PUBLISHED_GROUPS, set_norm_groups
from diffusion_renderer.models.temporal_decoder import use_frames_blocks

#: Logarithm of the variance that a `PatchEncoder` reports: the smallest that diffusers' posterior distinguishes from zero.
DETERMINISTIC = -30.0


class PatchEncoder(nn.Module):
    """Linear coordinates of every ``size`` x ``size`` patch, without noise; their basis is what `set_basis` was given.

    What is linear in pixels (brightness, a copy) is linear in latents, and encoding costs nothing. A convolutional encoder with
    group norms, by contrast, codes every patch relative to its picture; small networks learned little on such latents (see
    LOG.md). The basis has orthogonal patches, each as long as its coordinate's deviation is short.
    """

    def __init__(self, in_channels: int, latent_channels: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 2 * latent_channels, kernel_size=size, stride=size)
        nn.init.zeros_(self.conv.bias)
        with torch.no_grad():
            self.conv.weight[latent_channels:] = 0.0
            self.conv.bias[latent_channels:] = DETERMINISTIC

    @torch.no_grad()
    def set_basis(self, basis: Float[Tensor, "latent_channels in_channels size size"]) -> None:
        """Use these patches as the axes of the latent space."""
        self.conv.weight[: basis.shape[0]] = basis

    @property
    def deviation(self) -> Float[Tensor, "latent_channels"]:
        """Pixel deviation that one unit of each latent channel stands for: one over the length of its patch."""
        return 1 / self.conv.weight[: self.conv.out_channels // 2].flatten(1).norm(dim=1)

    @property
    def local_colour(self) -> Float[Tensor, "latent_channels in_channels"]:
        """What one unit of each latent channel adds to the mean colour of its patch, of an image in [-1, 1]."""
        weight = self.conv.weight[: self.conv.out_channels // 2]
        return (weight * self.deviation[:, None, None, None] ** 2).mean(dim=(2, 3))

    def forward(self, images: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch moments _h _w"]:
        """Mean and logarithm of the variance, concatenated, as diffusers' encoders give them."""
        return self.conv(images)


class AutoencoderKLTemporalDecoder(diffusers.AutoencoderKLTemporalDecoder):
    """Stable Video Diffusion's autoencoder under its published class name; loads published folders unchanged.

    ``norm_num_groups`` is the number of groups of its group norms, 32 as published unless a narrow network needs fewer (see
    `models.norms`). ``patch_encoder`` replaces the encoder by one linear map per patch, `PatchEncoder`. All other parameters
    as in diffusers. On a CPU the decoder's blocks compute the same in another order (`models.temporal_decoder`).
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        latent_channels: int = 4,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        force_upcast: bool = True,
        norm_num_groups: int = PUBLISHED_GROUPS,
        patch_encoder: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            force_upcast=force_upcast,
        )
        set_norm_groups(self, norm_num_groups)
        use_frames_blocks(self.decoder)
        if patch_encoder:
            self.encoder = PatchEncoder(in_channels, latent_channels, 2 ** (len(block_out_channels) - 1))
            nn.init.dirac_(self.quant_conv.weight)
            nn.init.zeros_(self.quant_conv.bias)
