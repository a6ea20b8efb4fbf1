"""Networks: the UNet of both renderers, the environment encoder, the VAE's latents, checkpoints. They know no schedule."""

from diffusion_renderer.models.autoencoder import AutoencoderKLTemporalDecoder
from diffusion_renderer.models.checkpoint import (
    Checkpoint,
    Kind,
    check_decoder,
    check_kind,
    download_checkpoint,
    load_checkpoint,
)
from diffusion_renderer.models.env_encoder import EnvEncoder
from diffusion_renderer.models.latents import LatentCodec
from diffusion_renderer.models.lighting import CONCATENATED, LightCondition, LightInput, LightReader
from diffusion_renderer.models.lora import LoraNetwork
from diffusion_renderer.models.small_decoder import SmallDecoder
from diffusion_renderer.models.unet import UNetCustomSpatioTemporalConditionModel

__all__ = [
    "CONCATENATED",
    "AutoencoderKLTemporalDecoder",
    "Checkpoint",
    "EnvEncoder",
    "Kind",
    "LatentCodec",
    "LightCondition",
    "LightInput",
    "LightReader",
    "LoraNetwork",
    "SmallDecoder",
    "UNetCustomSpatioTemporalConditionModel",
    "check_decoder",
    "check_kind",
    "download_checkpoint",
    "load_checkpoint",
]
