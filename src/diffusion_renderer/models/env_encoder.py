"""The environment encoder: the encoder half of a UNet, features of the light at several resolutions (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import DownBlock2D
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_renderer.models.norms import PUBLISHED_GROUPS, set_norm_groups


class EnvEncoder(ModelMixin, ConfigMixin):
    """Latents of the environment images to one feature map per level; no attention, no temporal layers, no time embedding.

    Parameters
    ----------
    in_channels : latent channels times the number of environment images.
    channels : width of each level. The first keeps the latents' resolution, each further one halves it.
    num_res_blocks : residual blocks per level.
    in_labels : names of the environment images, in the order in which their latents are concatenated.
    norm_num_groups : groups of every group norm (see `models.norms`).
    latent_encoder : True: the input are latents. The published checkpoints know no other kind, nor does this class.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 12,
        channels: Sequence[int] = (320, 640, 1280, 1280),
        num_res_blocks: int = 2,
        in_labels: Sequence[str] = ("env_ldr", "env_log", "env_nrm"),
        latent_encoder: bool = True,
        norm_num_groups: int = PUBLISHED_GROUPS,
    ) -> None:
        super().__init__()
        if not latent_encoder:
            raise ValueError("EnvEncoder reads latents: latent_encoder must be true")
        self.conv_in = nn.Conv2d(in_channels, channels[0], kernel_size=3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock2D(
                in_channels=channels[max(level - 1, 0)],
                out_channels=width,
                temb_channels=None,
                num_layers=num_res_blocks,
                resnet_eps=1e-6,  # the published numbers tell it from 1e-5: mean error 3e-5 against 9e-5
                add_downsample=level > 0,
            )
            for level, width in enumerate(channels)
        )
        set_norm_groups(self, norm_num_groups)

    def forward(
        self, latents: Float[Tensor, "batch frames in_channels height width"]
    ) -> list[Float[Tensor, "batch frames _c _h _w"]]:
        """Features of each level, finest first: level i has ``channels[i]`` and 1 / 2^i of the latents' resolution."""
        hidden = self.conv_in(rearrange(latents, "b f c h w -> (b f) c h w"))
        features = []
        for block in self.down_blocks:
            hidden, _ = block(hidden)
            features.append(rearrange(hidden, "(b f) c h w -> b f c h w", b=latents.shape[0]))
        return features
