"""Stage `vae`: the small autoencoder of a preset, shared by both renderers."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models import AutoencoderKLTemporalDecoder
from diffusion_renderer.training.data import FrameStore
from diffusion_renderer.training.initial import initialize_autoencoder
from diffusion_renderer.training.lights import random_light_images
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset

#: Weights of the loss beside L1: differences of neighbouring pixels (edges), and the Kullback-Leibler term.
EDGE_WEIGHT, KL_WEIGHT = 0.5, 1e-5
#: Side of the training crops, pixels.
CROP = 64
#: Frames of the crops that train the decoder's temporal layers.
CLIP_FRAMES = 4


class VaeStage:
    """L1 + edge + light KL on crops of every kind of image that the renderers encode: video, G-buffers, environment images."""

    name = "vae"
    learning_rate = 4e-4

    def __init__(self, preset: Preset, store: FrameStore, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.network = preset.vae()
        initialize_autoencoder(self.network)
        self.preset, self.store, self.batch = preset, store, options.batch
        self.starts = store.starts(CLIP_FRAMES)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """One step in four sees clips, so that the temporal layers learn; the others see stills."""
        frames = CLIP_FRAMES if step % 4 == 0 and len(self.starts) else 1
        images = self._crops(frames, generator)
        posterior = self.network.encode(2 * images - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = self.network.decode(posterior.mean + posterior.std * noise, num_frames=frames).sample.float()
        target = 2 * images - 1
        l1 = (decoded - target).abs().mean()
        edges = sum((decoded.diff(dim=dim) - target.diff(dim=dim)).abs().mean() for dim in (-1, -2))
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        mse = ((decoded - target) ** 2).mean().item() / 4
        loss = l1 + EDGE_WEIGHT * edges + KL_WEIGHT * kl
        return loss, {"psnr": -10 * torch.log10(torch.tensor(mse)).item(), "kl": kl.item()}

    def _crops(self, frames: int, generator: torch.Generator) -> Float[Tensor, "images 3 crop crop"]:
        """Random crops; one in eight stills is an environment image."""
        height, width = self.store.images.shape[-2:]
        crop = min(CROP, height, width)
        starts = self.starts if frames > 1 else torch.arange(len(self.store))
        count = max(1, self.batch // frames)
        crops = []
        for index in starts[torch.randint(len(starts), (count,), generator=generator)].tolist():
            kind, top, left = (
                int(torch.randint(high, (), generator=generator))
                for high in (self.store.images.shape[1], height - crop + 1, width - crop + 1)
            )
            crops.append(self.store.images[index : index + frames, kind, :, top : top + crop, left : left + crop])
        images = torch.cat(crops).float() / 255
        if frames == 1:
            lights = random_light_images(self.store, max(1, count // 8), self.preset.env_size, generator)
            kinds = torch.randint(3, (lights.shape[0],), generator=generator)
            chosen = lights[torch.arange(lights.shape[0]), kinds]
            images = torch.cat((images, F.interpolate(chosen, size=(crop, crop), mode="bilinear", antialias=True)))
        return images

    def sheet(self) -> Tensor:
        """Three frames; every kind of image above its reconstruction."""
        picks = torch.linspace(0, len(self.store) - 1, 3).long()
        images = rearrange(self.store.images[picks].float() / 255, "n k c h w -> (n k) c h w")
        decoded = self.network.decode(self.network.encode(2 * images - 1).latent_dist.mode(), num_frames=1).sample
        both = torch.stack((images, 0.5 * decoded + 0.5))
        return rearrange(both, "t (n k) c h w -> c (n t h) (k w)", n=len(picks))

    def export(self, folder: Path) -> None:
        """Write ``folder/vae`` with the scaling factor that gives its latents unit variance."""
        picks = torch.linspace(0, len(self.store) - 1, min(64, len(self.store))).long()
        images = rearrange(self.store.images[picks].float() / 255, "n k c h w -> (n k) c h w")
        with torch.no_grad():
            spread = torch.cat([self.network.encode(2 * part - 1).latent_dist.mode() for part in images.split(32)]).std()
        self.network.register_to_config(scaling_factor=float(1 / spread))
        self.network.save_pretrained(folder / "vae")


def load_vae(run: Path) -> AutoencoderKLTemporalDecoder:
    """The trained autoencoder of a run folder; InputError when its stage has not run."""
    folder = run / "vae" / "vae"
    if not (folder / "config.json").exists():
        raise InputError(f"a trained autoencoder in {folder}", "none", "run `diffusion-renderer train vae` first")
    return AutoencoderKLTemporalDecoder.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
