"""Stage `decoder`: a small decoder of the run's autoencoder, taught by the images and by the full decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.models import AutoencoderKLTemporalDecoder
from diffusion_renderer.models.small_decoder import FOLDER, best_linear
from diffusion_renderer.training.crops import draw_crop, sample_images
from diffusion_renderer.training.data import Mixture, draw_part
from diffusion_renderer.training.digest import mark_autoencoder, weights_digest
from diffusion_renderer.training.images import evenly, network_images
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.steps import Part
from diffusion_renderer.training.vae import edge_loss

#: Largest noise on latents, as a share of their deviation; every item draws its own from 0 on. The networks' estimates are
#: farther from the data than the noise that the full decoder has seen.
LARGEST_NOISE = 0.15
#: Frames from which the linear start is found.
LINEAR_FRAMES = 256
#: Latents that are encoded at once for it.
AT_ONCE = 32


class DecoderStage:
    """L1 + edges on crops of every kind of image that the renderers decode, from the encoder's latents with noise on them.

    The errors are those to the image and, with the share ``decoder_teacher`` of the preset, to what the full decoder makes of
    the same latents. The network starts as the linear map with the least squared error over the data. Stills only, for it has
    no temporal layers. Works with any autoencoder of the run, a frozen one too.
    """

    name = "decoder"

    def __init__(self, preset: Preset, vae: AutoencoderKLTemporalDecoder, data: Mixture, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.device = find_device(options.device)
        self.preset, self.data, self.options, self.vae = preset, data, options, vae.to(self.device)
        self.autoencoder = weights_digest(options.out / "vae" / "vae")
        self.learning_rate = preset.learning_rate(self.name)
        self.network: nn.Module = preset.small_decoder().to(self.device)
        self.network.set_linear(*best_linear(self._pairs()))

    def plan(self, step: int) -> tuple[Part, ...]:
        """Stills."""
        area = self.preset.size**2
        return (draw_part(self.data, step, self.options.seed, self.options.batch, {1: 1.0}, area=area),)

    def losses(self, network: nn.Module, part: Part) -> tuple[Float[Tensor, "items"], dict[str, float]]:
        """L1 + edges of every item, and the peak signal-to-noise ratio to the images, dB."""
        target = 2 * torch.cat([draw_crop(item, part, self.preset) for item in part.items]).to(self.device) - 1
        latents = self._encode(target)
        drawn = [item.generator("noise") for item in part.items]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=g) * torch.rand((), generator=g) for g in drawn])
        latents = latents + LARGEST_NOISE / self.vae.config.scaling_factor * noise.to(self.device)
        decoded, share = network(latents).float(), self.preset.decoder_teacher
        losses = (1 - share) * edge_loss((decoded - target)[:, None])
        if share:
            with torch.no_grad():
                taught = self.vae.decode(latents, num_frames=1).sample.float()
            losses = losses + share * edge_loss((decoded - taught)[:, None])
        return losses, {"psnr": -10 * torch.log10(((decoded.detach() - target) ** 2).mean() / 4).item()}

    @torch.no_grad()
    def sheet(self) -> Tensor:
        """Three frames; every kind of image above what the small and the full decoder make of it."""
        store, index = next(evenly(self.data, 3))
        images = network_images(store, index[:3, None], self.preset.groups)[0][:, 0]
        flat = rearrange(images, "n k c h w -> (n k) c h w").to(self.device)
        latents = self._encode(2 * flat - 1)
        made = [self.network(latents), self.vae.decode(latents, num_frames=1).sample]
        rows = torch.stack((flat, *(0.5 * each.float() + 0.5 for each in made)))
        return rearrange(rows, "t (n k) c h w -> c (n t h) (k w)", n=len(images))

    def export(self, folder: Path) -> None:
        """Write ``folder/decoder_small`` and which autoencoder it is for."""
        self.network.save_pretrained(folder / FOLDER)
        mark_autoencoder(folder / FOLDER, self.autoencoder)

    @torch.no_grad()
    def _encode(self, images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images channels _height _width"]:
        """Latents in the autoencoder's own units."""
        with torch.autocast(self.device.type, enabled=False):
            return self.vae.encode(images).latent_dist.mode()

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents and images of frames spread over the data."""
        for images in sample_images(self.data, self.preset, LINEAR_FRAMES):
            for some in images.to(self.device).split(AT_ONCE):
                yield self._encode(some), some
