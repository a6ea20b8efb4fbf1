"""Presets: the sizes of the networks that this project trains, as typed objects."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusion_renderer.core.packing import UNPACKED
from diffusion_renderer.models import (
    CONCATENATED,
    AutoencoderKLTemporalDecoder,
    EnvEncoder,
    Kind,
    LightCondition,
    SmallDecoder,
    UNetCustomSpatioTemporalConditionModel,
)

_DOWN, _CROSS_DOWN = "DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"
_UP, _CROSS_UP = "UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"


#: Levels of the forward renderer's UNet that have attention, which is where it sees the light.
FORWARD_ATTENTION = (0, 1, 2)


@dataclass(frozen=True)
class LearningRates:
    """Peak of AdamW's learning rate in each stage. The defaults are for networks that start from nothing."""

    vae: float = 4e-4
    decoder: float = 1e-3
    env: float = 1e-3
    inverse: float = 1.5e-3
    forward: float = 1.5e-3
    distill: float = 3e-4


@dataclass(frozen=True)
class Preset:
    """Sizes of the four networks and the way images are fed to them; the classes are the published ones.

    Attributes
    ----------
    groups : image groups: buffers that share a network image (see `core.packing`).
    latent_channels, vae_widths : of the autoencoder; n widths give a latent 2^(n-1) times smaller than the image.
    inverse_widths, forward_widths : of the four levels of each UNet.
    env_widths, env_size : of the environment encoder, and the side of the square images that it reads, pixels.
    size : side of the training images, pixels: the reference of all sizes. Other sizes come from the data (`data.Mixture`).
    inverse_size : side of the square that has as many pixels as the images of the inverse renderer, in training as later:
        frames of any size are scaled to it. None: in training as the data are, later about ``size``.
    window : longest clip seen in training, frames.
    joint : the inverse renderer makes all groups in one pass, their latents concatenated. False: one buffer per pass, named by
        the domain embedding (paper, section 4.1), and every training sample is one random buffer.
    patch_encoder : the autoencoder's encoder is one linear map per patch (see `models.autoencoder`).
    frozen_vae : the autoencoder is taken as it is (from Stable Video Diffusion, see `training.svd`) and has no stage.
    vae_scale : factor of the latents of a frozen autoencoder; the stage `vae` measures that of another.
    decoder_scales, decoder_widths, decoder_layers : of the small decoder (see `models.small_decoder`).
    decoder_teacher : share of the small decoder's loss that is taken to what the full one makes, the rest to the images.
    layers : residual blocks per level of UNets, autoencoder and environment encoder.
    head_width : channels of one attention head of the UNets.
    inverse_attention : levels of the inverse renderer's UNet that have attention; see `FORWARD_ATTENTION` for the other.
    clip_frames, clip_share : lengths of the clips of training, frames, and the share of the steps that see clips, not stills.
    prior : the classical renderer whose picture the forward renderer is given beside the G-buffers; None for none.
    lora_rank, lora_attention : of the forward renderer's adapter, and whether it changes the layers of attention only.
    residual : the forward renderer makes the difference between the video and that picture, in latents, not the video itself.
    norm_groups : of the autoencoder and the environment encoder; the UNets keep the published 32.
    sigma_max : the largest noise level, from which sampling starts.
    start_weight : share of training samples that sit at ``sigma_max``, where a one-step sampler works. The rest follow the
        log-normal of EDM around ``sigma_mean`` with ``sigma_std`` (natural logarithms).
    one_step : the exported renderers sample in one step that starts from zero; False: as the published ones do.
    learning_rates : peaks of the stages' learning rates.
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
    inverse_size: int | None = None
    joint: bool = True
    patch_encoder: bool = True
    frozen_vae: bool = False
    vae_scale: float = 1.0
    decoder_scales: tuple[int, ...] = (1, 4)
    decoder_widths: tuple[int, ...] = (96, 24)
    decoder_layers: tuple[int, ...] = (2, 1)
    decoder_teacher: float = 0.5
    layers: int = 1
    head_width: int = 32
    inverse_attention: tuple[int, ...] = (1, 2)
    clip_frames: tuple[int, ...] = (4, 8)
    clip_share: float = 0.25
    sigma_max: float = 700.0
    start_weight: float = 0.95
    sigma_mean: float = 1.0
    sigma_std: float = 1.6
    one_step: bool = True
    context_channels: int = 64
    time_channels: int = 32
    norm_groups: int = 8
    prior: str | None = None
    residual: bool = False
    lora_rank: int = 16
    lora_attention: bool = True
    labels: tuple[str, ...] = field(default=("env_ldr", "env_log", "env_nrm"))
    learning_rates: LearningRates = LearningRates()

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel."""
        return 2 ** (len(self.vae_widths) - 1)

    @property
    def lengths(self) -> dict[int, float]:
        """Share of the steps that see clips of each length, frames; stills are of one frame. The shares add up to 1.

        Clips longer than the window are left out.
        """
        clips = [frames for frames in self.clip_frames if frames <= self.window]
        if not clips:
            return {1: 1.0}
        return {1: 1 - self.clip_share} | dict.fromkeys(clips, self.clip_share / len(clips))

    def side(self, kind: Kind) -> int:
        """Side of the square that has as many pixels as a renderer's images."""
        return self.inverse_size if kind == "inverse" and self.inverse_size is not None else self.size

    def image_size(self, kind: Kind, frame: tuple[int, int]) -> tuple[int, int] | None:
        """(height, width) that frames of (height, width) are scaled to in training; None: they are taken as they are."""
        if kind == "forward" or self.inverse_size is None:
            return None
        scale, multiple = self.inverse_size / math.sqrt(frame[0] * frame[1]), self.factor * 2 ** (len(self.inverse_widths) - 1)
        return max(1, round(frame[0] * scale / multiple)) * multiple, max(1, round(frame[1] * scale / multiple)) * multiple

    def counted_area(self, kind: Kind) -> int:
        """Pixels of an image, as a batch counts them; 0: every frame counts as one image, for all are scaled to one size."""
        return self.size**2 if kind == "forward" or self.inverse_size is None else 0

    def learning_rate(self, stage: str) -> float:
        """Peak of the stage's learning rate; all students share that of `distill`."""
        return getattr(self.learning_rates, stage.split("-")[0])

    def vae(self) -> AutoencoderKLTemporalDecoder:
        """The autoencoder, untrained."""
        return AutoencoderKLTemporalDecoder(
            block_out_channels=self.vae_widths,
            down_block_types=("DownEncoderBlock2D",) * len(self.vae_widths),
            latent_channels=self.latent_channels,
            layers_per_block=self.layers,
            sample_size=self.size,
            scaling_factor=self.vae_scale,
            force_upcast=self.frozen_vae,
            norm_num_groups=self.norm_groups,
            patch_encoder=self.patch_encoder,
        )

    def small_decoder(self) -> SmallDecoder:
        """The small decoder, untrained; scales finer than the image are left out."""
        count = sum(scale <= self.factor for scale in self.decoder_scales)
        sizes = (self.decoder_scales, self.decoder_widths, self.decoder_layers)
        return SmallDecoder(self.latent_channels, self.factor, *(values[:count] for values in sizes))

    def _unet_options(self, widths: tuple[int, ...], attention: tuple[int, ...]) -> dict[str, Any]:
        levels = range(len(widths))
        return {
            "sample_size": self.size // self.factor,
            "block_out_channels": widths,
            "down_block_types": tuple(_CROSS_DOWN if level in attention else _DOWN for level in levels),
            "up_block_types": tuple(_CROSS_UP if level in attention else _UP for level in reversed(levels)),
            "layers_per_block": self.layers,
            "num_attention_heads": tuple(width // self.head_width for width in widths),
            "addition_time_embed_dim": self.time_channels,
            "projection_class_embeddings_input_dim": 3 * self.time_channels,
            "num_frames": self.window,
        }

    def inverse_unet(self) -> UNetCustomSpatioTemporalConditionModel:
        """The inverse renderer's UNet, untrained: noisy buffer latents and clip latent in.

        It makes the latents of all image groups in one pass where the preset is ``joint``, of one group else.
        """
        made = len(self.groups) if self.joint else 1
        return UNetCustomSpatioTemporalConditionModel(
            in_channels=(made + 1) * self.latent_channels,
            out_channels=made * self.latent_channels,
            cross_attention_dim=self.context_channels,
            temporal_cross_attention_dim=self.context_channels,
            **self._unet_options(self.inverse_widths, self.inverse_attention),
        )

    def forward_unet(self, light: LightCondition = "encoder") -> UNetCustomSpatioTemporalConditionModel:
        """The forward renderer's UNet, untrained: noise and one latent per image group in, the light by cross-attention.

        With ``light="concat"`` the light's latents are further input, and nothing else is different (see `models.lighting`).
        """
        return UNetCustomSpatioTemporalConditionModel(
            in_channels=(1 + len(self.groups) + (self.prior is not None) + CONCATENATED[light]) * self.latent_channels,
            out_channels=self.latent_channels,
            cross_attention_dim=self.env_widths,
            temporal_cross_attention_dim=None,
            context_embedding_type=None,
            multi_res_encoder_hidden_states=True,
            **self._unet_options(self.forward_widths, FORWARD_ATTENTION),
        )

    def env_encoder(self) -> EnvEncoder:
        """The environment encoder, untrained."""
        return EnvEncoder(
            in_channels=len(self.labels) * self.latent_channels,
            channels=self.env_widths,
            num_res_blocks=self.layers,
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

    def renderer_settings(self, kind: Kind) -> dict[str, Any]:
        """What ``renderer.json`` of an exported renderer says of how it is run (see `pipelines.settings`)."""
        sizes = {
            "groups": [list(group) for group in self.groups],
            "working_area": self.side(kind) ** 2,
            "env_size": self.env_size,
            "window": self.window,
        }
        if self.one_step:
            same = {"default_steps": 1, "default_guidance": 1.0, "condition_scaled": True, "initial_noise": False}
            # Windows of few frames show where they meet; half of each is cheap beside decoding (see docs/performance.md).
            same["overlap"] = self.window // 2
            same["half"] = True
            # Small images, a soft decoder: the frames know where things end (see docs/buffers.md).
            frames = {"guided": True} if kind == "inverse" else {}
            return {**sizes, **same, **frames, "env_antialias": True}
        if kind == "inverse":
            return {**sizes, "default_steps": 20, "default_guidance": 1.0, "condition_scaled": False}
        guided = {"default_steps": 20, "default_guidance": 1.2, "condition_scaled": True, "timestep_spacing": "trailing"}
        return {**sizes, **guided}

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
    inverse_size=192,
    window=8,
    prior="ssrt",
    residual=True,
    lora_rank=7,
    lora_attention=False,
    decoder_teacher=0.0,
)

#: The published sizes, to start from Stable Video Diffusion (`training.svd`). Samples follow the noise levels of SVD's own
#: training for 25 frames (log-normal, mean 1.0, deviation 1.6; Blattmann et al. 2023, appendix D). The shares of lengths and
#: the learning rates are a starting point that nobody has measured here.
SVD = Preset(
    name="svd",
    groups=UNPACKED,
    latent_channels=4,
    vae_widths=(128, 256, 512, 512),
    inverse_widths=(320, 640, 1280, 1280),
    forward_widths=(320, 640, 1280, 1280),
    env_widths=(320, 640, 1280, 1280),
    env_size=512,
    size=512,
    window=24,
    joint=False,
    patch_encoder=False,
    frozen_vae=True,
    vae_scale=0.18215,
    decoder_scales=(1, 2, 4),
    decoder_widths=(128, 64, 32),
    decoder_layers=(3, 3, 3),
    layers=2,
    head_width=64,
    inverse_attention=(0, 1, 2),
    clip_frames=(24,),
    clip_share=0.75,
    start_weight=0.0,
    one_step=False,
    context_channels=1024,
    time_channels=256,
    norm_groups=32,
    learning_rates=LearningRates(env=1e-4, inverse=3e-5, forward=3e-5, distill=1e-5),
)

PRESETS = {preset.name: preset for preset in (TINY, SVD)}
