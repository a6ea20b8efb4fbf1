"""The autoencoder: diffusers' own, with one more setting."""

from __future__ import annotations

from collections.abc import Sequence

import diffusers
from diffusers.configuration_utils import register_to_config

from diffusion_renderer.models.norms import PUBLISHED_GROUPS, set_norm_groups


class AutoencoderKLTemporalDecoder(diffusers.AutoencoderKLTemporalDecoder):
    """Stable Video Diffusion's autoencoder under its published class name; loads published folders unchanged.

    ``norm_num_groups`` is the number of groups of its group norms, 32 as published unless a narrow network needs fewer (see
    `models.norms`). All other parameters as in diffusers.
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
