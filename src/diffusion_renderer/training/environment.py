"""Stage `env`: the environment encoder, trained to keep the panorama readable at every level, then frozen."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models import EnvEncoder
from diffusion_renderer.training.autoencoder import load_vae
from diffusion_renderer.training.data import FrameStore
from diffusion_renderer.training.initial import initialize
from diffusion_renderer.training.lights import random_light_images
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset


class PanoramaHeads(nn.Module):
    """The encoder with one throw-away linear decoder per level.

    Level i paints the tone-mapped panorama (ldr and log images) at 1 / 2^i of full size, each of its cells one patch. A head of
    its own for every level makes each of them carry the light: the UNet's inner levels read the coarse ones only.
    """

    def __init__(self, encoder: EnvEncoder, patch: int) -> None:
        super().__init__()
        self.encoder, self.patch = encoder, patch
        self.heads = nn.ModuleList(nn.Conv2d(width, 6 * patch**2, kernel_size=1) for width in encoder.config.channels)

    def forward(self, latents: Float[Tensor, "batch frames channels height width"]) -> list[Float[Tensor, "images 6 _h _w"]]:
        """The panorama of every frame as each level remembers it."""
        features = [rearrange(level, "b f c h w -> (b f) c h w") for level in self.encoder(latents)]
        patches = [head(level) for head, level in zip(self.heads, features, strict=True)]
        return [F.pixel_shuffle(level, self.patch) for level in patches]


class EnvStage:
    """L2 reconstruction of the panorama in the encoder's tone-mapped space (paper, section 4.2)."""

    name = "env"
    learning_rate = 1e-3

    def __init__(self, preset: Preset, store: FrameStore, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.preset, self.store, self.batch = preset, store, options.batch
        self.device = find_device(options.device)
        self.vae = load_vae(options.out).to(self.device)
        self.network = PanoramaHeads(preset.env_encoder(), preset.factor)
        initialize(self.network.encoder)
        self.network.to(self.device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean over the levels of the squared error of the panorama that they remember."""
        images = random_light_images(self.store, self.batch, self.preset.env_size, generator).to(self.device)
        with torch.no_grad():
            latents = encode_lights(self.vae, images)
        errors = self._errors(self.network(latents[:, None]), images)
        return torch.stack(errors).mean(), {f"level{i}": error.item() for i, error in enumerate(errors)}

    def _errors(self, painted: list[Tensor], images: Float[Tensor, "batch 3 3 size size"]) -> list[Tensor]:
        target = rearrange(images[:, :2], "b k c h w -> b (k c) h w")
        return [F.mse_loss(level.float(), F.adaptive_avg_pool2d(target, level.shape[-1])) for level in painted]

    def sheet(self) -> Tensor:
        """Four lights: their ldr and log images above what the finest level remembers."""
        images = random_light_images(self.store, 4, self.preset.env_size, torch.Generator().manual_seed(0)).to(self.device)
        painted = self.network(encode_lights(self.vae, images)[:, None])[0]
        target = rearrange(images[:, :2], "b k c h w -> b (k c) h w")
        return rearrange(torch.stack((target, painted)), "t b (k c) h w -> c (t k h) (b w)", c=3)

    def export(self, folder: Path) -> None:
        """Write ``folder/env_encoder``; the heads are thrown away."""
        self.network.encoder.save_pretrained(folder / "env_encoder")


def encode_lights(vae: nn.Module, images: Float[Tensor, "count 3 3 size size"]) -> Float[Tensor, "count channels _h _w"]:
    """Scaled latents of the three environment images, concatenated in the encoder's order."""
    flat = rearrange(images, "n k c h w -> (n k) c h w")
    latents = vae.encode(2 * flat - 1).latent_dist.mode() * vae.config.scaling_factor
    return rearrange(latents, "(n k) c h w -> n (k c) h w", k=images.shape[1])


def load_env_encoder(run: Path) -> EnvEncoder:
    """The trained environment encoder of a run folder; InputError when its stage has not run."""
    folder = run / "env" / "env_encoder"
    if not (folder / "config.json").exists():
        raise InputError(f"a trained environment encoder in {folder}", "none", "run `diffusion-renderer train env` first")
    return EnvEncoder.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
