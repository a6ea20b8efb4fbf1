"""Presets: the sizes of the networks that this project trains, as typed objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from diffusion_renderer.models import (
    CONCATENATED,
    AutoencoderKLTemporalDecoder,
    EnvEncoder,
    LightCondition,
    UNetCustomSpatioTemporalConditionModel,
)

_DOWN, _CROSS_DOWN = "DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"
_UP, _CROSS_UP = "UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"


@dataclass(frozen=True)
class Preset:
    """Sizes of the four networks and the way images are fed to them; the classes are the published ones.

    Attributes
    ----------
    groups : image groups: buffers that share a network image (see `core.packing`).
    latent_channels, vae_widths : of the autoencoder (linear patch encoder, convolutional decoder); n widths give a latent
        2^(n-1) times smaller than the image.
    inverse_widths, forward_widths : of the four levels of each UNet.
    env_widths, env_size : of the environment encoder, and the side of the square images that it reads, pixels.
    size : side of the training images, pixels.
    window : longest clip seen in training, frames.
    prior : the classical renderer whose picture the forward renderer is given beside the G-buffers; None for none.
    residual : the forward renderer makes the difference between the video and that picture, in latents, not the video itself.
    norm_groups : of the autoencoder and the environment encoder; the UNets keep the published 32.
    sigma_max : the largest noise level, from which sampling starts.
    start_weight : share of training samples that sit at ``sigma_max``, where a one-step sampler works. The rest follow the
        log-normal of EDM around ``sigma_mean`` with ``sigma_std`` (natural logarithms).
    """

    name: str
    groups: tuple[tuple[str, ...], ...]
    latent_channels: int
    vae_widths: tuple[int, ...]
    inverse_widths: tuple[int, ...]
    forward_widths: tuple[int, ...]
    env_widths: tuple[int, ...]
    env_size: int
    size: int
    window: int
    sigma_max: float = 700.0
    start_weight: float = 0.95
    sigma_mean: float = 1.0
    sigma_std: float = 1.6
    context_channels: int = 64
    time_channels: int = 32
    norm_groups: int = 8
    prior: str | None = None
    residual: bool = False
    labels: tuple[str, ...] = field(default=("env_ldr", "env_log", "env_nrm"))

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel."""
        return 2 ** (len(self.vae_widths) - 1)

    def vae(self) -> AutoencoderKLTemporalDecoder:
        """The autoencoder, untrained."""
        return AutoencoderKLTemporalDecoder(
            block_out_channels=self.vae_widths,
            down_block_types=("DownEncoderBlock2D",) * len(self.vae_widths),
            latent_channels=self.latent_channels,
            layers_per_block=1,
            sample_size=self.size,
            scaling_factor=1.0,
            force_upcast=False,
            norm_num_groups=self.norm_groups,
            patch_encoder=True,
        )

    def _unet_options(self, widths: tuple[int, ...]) -> dict[str, Any]:
        return {
            "sample_size": self.size // self.factor,
            "block_out_channels": widths,
            "layers_per_block": 1,
            "num_attention_heads": tuple(width // 32 for width in widths),
            "addition_time_embed_dim": self.time_channels,
            "projection_class_embeddings_input_dim": 3 * self.time_channels,
            "num_frames": self.window,
        }

    def inverse_unet(self) -> UNetCustomSpatioTemporalConditionModel:
        """The inverse renderer's UNet, untrained: noisy buffer latents and clip latent in, attention at the inner levels.

        It makes the latents of all image groups in one pass.
        """
        return UNetCustomSpatioTemporalConditionModel(
            in_channels=(len(self.groups) + 1) * self.latent_channels,
            out_channels=len(self.groups) * self.latent_channels,
            down_block_types=(_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN),
            up_block_types=(_UP, _CROSS_UP, _CROSS_UP, _UP),
            cross_attention_dim=self.context_channels,
            temporal_cross_attention_dim=self.context_channels,
            **self._unet_options(self.inverse_widths),
        )

    def forward_unet(self, light: LightCondition = "encoder") -> UNetCustomSpatioTemporalConditionModel:
        """The forward renderer's UNet, untrained: noise and one latent per image group in, the light by cross-attention.

        With ``light="concat"`` the light's latents are further input, and nothing else is different (see `models.lighting`).
        """
        return UNetCustomSpatioTemporalConditionModel(
            in_channels=(1 + len(self.groups) + (self.prior is not None) + CONCATENATED[light]) * self.latent_channels,
            out_channels=self.latent_channels,
            down_block_types=(_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN),
            up_block_types=(_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP),
            cross_attention_dim=self.forward_widths,
            temporal_cross_attention_dim=None,
            context_embedding_type=None,
            multi_res_encoder_hidden_states=True,
            **self._unet_options(self.forward_widths),
        )

    def env_encoder(self) -> EnvEncoder:
        """The environment encoder, untrained."""
        return EnvEncoder(
            in_channels=len(self.labels) * self.latent_channels,
            channels=self.env_widths,
            num_res_blocks=1,
            in_labels=self.labels,
            norm_num_groups=self.norm_groups,
        )

    def scheduler_config(self) -> dict[str, Any]:
        """SVD's scheduler (EDM noise levels, v-prediction) in diffusers' file format."""
        return {
            "_class_name": "EulerDiscreteScheduler",
            "_diffusers_version": "0.42.0",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "final_sigmas_type": "zero",
            "interpolation_type": "linear",
            "num_train_timesteps": 1000,
            "prediction_type": "v_prediction",
            "sigma_max": self.sigma_max,
            "sigma_min": 0.002,
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "timestep_type": "continuous",
            "use_karras_sigmas": True,
        }

    def draw_sigma(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Noise levels of ``count`` training samples."""
        drawn = (self.sigma_mean + self.sigma_std * torch.randn(count, generator=generator)).exp().clamp(0.002, self.sigma_max)
        at_start = torch.rand(count, generator=generator) < self.start_weight
        return torch.where(at_start, torch.full_like(drawn, self.sigma_max), drawn)


TINY = Preset(
    name="tiny",
    groups=(("basecolor",), ("normal",), ("depth", "roughness", "metallic")),
    latent_channels=32,
    vae_widths=(32, 32, 64, 128),
    inverse_widths=(96, 96, 128, 96),
    forward_widths=(64, 96, 128, 128),
    env_widths=(64, 96, 128, 128),
    env_size=64,
    size=128,
    window=8,
    prior="splitsum",
    residual=True,
)

PRESETS = {preset.name: preset for preset in (TINY,)}
