"""Stage `vae`: the small autoencoder of a preset, shared by both renderers."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models import AutoencoderKLTemporalDecoder
from diffusion_renderer.training.data import IMAGES, FrameStore
from diffusion_renderer.training.initial import initialize_autoencoder
from diffusion_renderer.training.lights import random_light_images
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset

#: Weight of the differences of neighbouring pixels (edges) beside L1.
EDGE_WEIGHT = 0.5
#: Frames whose patches define the latent space.
BASIS_FRAMES = 512
#: Noise on the latents, as a share of their deviation: what the diffusion models make is never exact.
LATENT_NOISE = 0.03
#: Side of the training crops, pixels.
CROP = 64
#: Frames of the crops that train the decoder's temporal layers.
CLIP_FRAMES = 4


class VaeStage:
    """The decoder, by L1 + edges on crops of every kind of image that the renderers encode: video, buffers, environment images.

    The encoder is linear and has a closed form, the principal components of the data's patches, so it is not trained: the
    diffusion stages may start before the decoder is done.
    """

    name = "vae"
    learning_rate = 4e-4

    def __init__(self, preset: Preset, store: FrameStore, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.device = find_device(options.device)
        self.network = preset.vae()
        initialize_autoencoder(self.network)
        self.network.encoder.set_basis(principal_patches(store, preset.latent_channels, preset.factor))
        for part in (self.network.encoder, self.network.quant_conv):
            part.requires_grad_(False)
        self.network.register_to_config(scaling_factor=self._scaling(store))
        self.network.to(self.device)
        self.preset, self.store, self.batch = preset, store, options.batch
        self.starts = store.starts(CLIP_FRAMES)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """One step in four sees clips, so that the temporal layers learn; the others see stills."""
        frames = CLIP_FRAMES if step % 4 == 0 and len(self.starts) else 1
        images = self._crops(frames, generator).to(self.device)
        with torch.no_grad():
            latents = self.network.encode(2 * images - 1).latent_dist.mode()
            latents = latents + LATENT_NOISE * latents.std() * torch.randn(latents.shape, generator=generator).to(latents)
        decoded = self.network.decode(latents, num_frames=frames).sample.float()
        target = 2 * images - 1
        l1 = (decoded - target).abs().mean()
        edges = sum((decoded.diff(dim=dim) - target.diff(dim=dim)).abs().mean() for dim in (-1, -2))
        mse = ((decoded - target) ** 2).mean().item() / 4
        return l1 + EDGE_WEIGHT * edges, {"psnr": -10 * torch.log10(torch.tensor(mse)).item()}

    def _crops(self, frames: int, generator: torch.Generator) -> Float[Tensor, "images 3 crop crop"]:
        """Random crops; one in eight stills is an environment image."""
        height, width = self.store.size
        crop = min(CROP, height, width)
        starts = self.starts if frames > 1 else torch.arange(len(self.store))
        count = max(1, self.batch // frames)
        crops = []
        for index in starts[torch.randint(len(starts), (count,), generator=generator)].tolist():
            kind, top, left = (
                int(torch.randint(high, (), generator=generator)) for high in (len(IMAGES), height - crop + 1, width - crop + 1)
            )
            clip = self.store.take(index + torch.arange(frames))
            crops.append(clip[:, kind, :, top : top + crop, left : left + crop])
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
        images = rearrange(self.store.take(picks).float() / 255, "n k c h w -> (n k) c h w").to(self.device)
        decoded = self.network.decode(self.network.encode(2 * images - 1).latent_dist.mode(), num_frames=1).sample
        both = torch.stack((images, 0.5 * decoded + 0.5))
        return rearrange(both, "t (n k) c h w -> c (n t h) (k w)", n=len(picks))

    def export(self, folder: Path) -> None:
        """Write ``folder/vae``."""
        self.network.save_pretrained(folder / "vae")

    @torch.no_grad()
    def _scaling(self, store: FrameStore) -> float:
        """The factor that gives the latents unit variance over the data."""
        picks = torch.linspace(0, len(store) - 1, min(64, len(store))).long()
        images = rearrange(store.take(picks).float() / 255, "n k c h w -> (n k) c h w")
        return float(1 / self.network.encode(2 * images - 1).latent_dist.mode().std())


def principal_patches(store: FrameStore, count: int, size: int) -> Float[Tensor, "count 3 size size"]:
    """The ``count`` patches whose coordinates keep most of the energy of the data's images, mapped to [-1, 1], whitened.

    They are the leading eigenvectors of the patches' second moments (not centred, so that latent 0 stays mid-grey), divided by
    the deviation of their coordinate: all latent channels vary alike. Without that the brightness of patches drowns their
    detail, and the networks learn several times more slowly (see LOG.md).
    """
    picks = torch.linspace(0, len(store) - 1, min(BASIS_FRAMES, len(store))).long()
    images = rearrange(store.take(picks).float() / 127.5 - 1, "n k c h w -> (n k) c h w")
    patches = rearrange(images, "n c (h p) (w q) -> (n h w) (c p q)", p=size, q=size)
    energy, vectors = torch.linalg.eigh((patches.T @ patches).double() / len(patches))
    deviation = energy.flip(0)[:count].clamp_min(1e-8).sqrt()
    basis = (vectors.flip(1)[:, :count] / deviation).T.float()
    return rearrange(basis, "n (c p q) -> n c p q", c=3, p=size)


def load_vae(run: Path) -> AutoencoderKLTemporalDecoder:
    """The trained autoencoder of a run folder; InputError when its stage has not run."""
    folder = run / "vae" / "vae"
    if not (folder / "config.json").exists():
        raise InputError(f"a trained autoencoder in {folder}", "none", "run `diffusion-renderer train vae` first")
    return AutoencoderKLTemporalDecoder.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
