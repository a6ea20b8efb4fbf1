"""Stage `env`: the environment encoder, trained to keep the panorama readable at every level, then frozen."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models import EnvEncoder
from diffusion_renderer.training.data import FrameStore, Mixture, draw_part
from diffusion_renderer.training.images import evenly
from diffusion_renderer.training.initial import initialize
from diffusion_renderer.training.lights import light_images, varied_light_images
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.steps import Item, Part
from diffusion_renderer.training.vae import load_vae


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
    """L2 reconstruction of the panorama in the encoder's tone-mapped space (paper, section 4.2).

    An item is the light of one clip, real or not: as its frame sees it, or where the options ask for variation turned,
    recoloured and brightened at random.
    """

    name = "env"

    def __init__(self, preset: Preset, data: Mixture, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.preset, self.data, self.options = preset, data, options
        self.learning_rate = preset.learning_rate(self.name)
        self.device = find_device(options.device)
        self.vae = load_vae(options.out).to(self.device)
        self.network: nn.Module = PanoramaHeads(preset.env_encoder(), preset.factor)
        initialize(self.network.encoder)
        self.network.to(self.device)

    def plan(self, step: int) -> tuple[Part, ...]:
        """As many lights as the step has images."""
        # The lights of small frames are no smaller: the number does not follow the frames' size.
        part = draw_part(self.data, step, self.options.seed, self.options.batch, {1: 1.0}, accept=lit)
        return (part,)

    def losses(self, network: nn.Module, part: Part) -> tuple[Float[Tensor, "items"], dict[str, float]]:
        """Mean over the levels of the squared error of the panorama that they remember."""
        images = torch.stack([self._images(item, part, self.options.augment) for item in part.items]).to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            latents = encode_lights(self.vae, images)
        errors = self._errors(network(latents[:, None]), images)
        return torch.stack(errors).mean(dim=0), {f"level{i}": error.mean().item() for i, error in enumerate(errors)}

    def _images(self, item: Item, part: Part, varied: bool) -> Float[Tensor, "3 3 size size"]:
        """The environment images of an item."""
        store, frame, size = part.store, item.frames[0], self.preset.env_size
        radiance = store.light[store.clip[frame]].float()
        if varied:
            return varied_light_images(radiance, size, item.generator("light"))[0]
        return light_images(radiance, store.rotation[frame][None], size)[0]

    def _errors(self, painted: list[Tensor], images: Float[Tensor, "items 3 3 size size"]) -> list[Float[Tensor, "items"]]:
        target = rearrange(images[:, :2], "b k c h w -> b (k c) h w")
        return [
            (level.float() - F.adaptive_avg_pool2d(target, level.shape[-1])).square().flatten(1).mean(dim=1)
            for level in painted
        ]

    def sheet(self) -> Tensor:
        """Four lights: their ldr and log images above what the finest level remembers."""
        store, index = max(evenly(self.data, 4, lit), key=lambda found: len(found[1]))
        items = tuple(Item((frame,), seed=0) for frame in index[:4].tolist())
        images = torch.stack([self._images(item, Part(items, store), varied=False) for item in items]).to(self.device)
        painted = self.network(encode_lights(self.vae, images)[:, None])[0]
        target = rearrange(images[:, :2], "b k c h w -> b (k c) h w")
        return rearrange(torch.stack((target, painted)), "t b (k c) h w -> c (t k h) (b w)", c=3)

    def export(self, folder: Path) -> None:
        """Write ``folder/env_encoder``; the heads are thrown away."""
        self.network.encoder.save_pretrained(folder / "env_encoder")


def lit(store: FrameStore) -> Bool[Tensor, "total"]:
    """Frames of clips with a light."""
    return store.lit


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
