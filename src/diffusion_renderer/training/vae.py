"""Stage `vae`: the autoencoder of a preset, shared by both renderers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models import AutoencoderKLTemporalDecoder
from diffusion_renderer.training.crops import draw_crop, sample_images
from diffusion_renderer.training.data import Mixture, draw_part
from diffusion_renderer.training.images import evenly, network_images
from diffusion_renderer.training.initial import initialize_autoencoder
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.steps import Part

#: Weight of the differences of neighbouring pixels (edges) beside L1.
EDGE_WEIGHT = 0.5
#: Weight of the KL divergence of a latent from a standard normal, mean over the latent's elements: as light as in latent
#: diffusion models (Rombach et al. 2022, section 3.1), enough to keep latents from growing without bound.
KL_WEIGHT = 1e-6
#: Frames whose patches define the latent space of a linear encoder, and frames that its scale is measured on.
BASIS_FRAMES, SCALE_FRAMES = 512, 64
#: Noise on latents that have none of their own, as a share of their deviation: what the diffusion models make is never exact.
LATENT_NOISE = 0.03
#: Share of the steps that see stills and clips: crops of so many frames train the decoder's temporal layers.
LENGTHS = {1: 0.75, 4: 0.25}
#: Share of the stills that are environment images.
LIGHT_SHARE = 1 / 9


class VaeNetwork(nn.Module):
    """What is trained of an autoencoder: images to latents, noise on them, and back.

    Its parameters have the autoencoder's names. Latents of a linear encoder get a little noise, others that of their posterior.
    """

    def __init__(self, vae: AutoencoderKLTemporalDecoder, latent_noise: float | None) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.decoder = vae.encoder, vae.quant_conv, vae.decoder
        self.latent_noise = latent_noise

    def forward(
        self, images: Float[Tensor, "items frames 3 height width"], noise: Float[Tensor, "items frames channels _height _width"]
    ) -> tuple[Float[Tensor, "items frames 3 height width"], Float[Tensor, "items"]]:
        """Images in [-1, 1] as they come back, with unit noise given, and the KL divergence per element of each latent."""
        items, frames = images.shape[:2]
        mean, logarithm = self.quant_conv(self.encoder(images.flatten(0, 1))).chunk(2, dim=1)
        # diffusers' own bounds of the logarithm of the variance.
        mean, logarithm = mean.float(), logarithm.float().clamp(-30, 20)
        deviation = (0.5 * logarithm).exp() if self.latent_noise is None else self.latent_noise
        divergence = 0.5 * (mean**2 + logarithm.exp() - 1 - logarithm)
        still = torch.zeros(items, frames, dtype=mean.dtype, device=mean.device)
        decoded = self.decoder(mean + deviation * noise.flatten(0, 1), num_frames=frames, image_only_indicator=still)
        return decoded.float().unflatten(0, (items, frames)), divergence.unflatten(0, (items, frames)).flatten(1).mean(dim=1)

    def enable_gradient_checkpointing(self) -> None:
        """Keep fewer activations."""
        for half in (self.encoder, self.decoder):
            if hasattr(half, "gradient_checkpointing"):
                half.gradient_checkpointing = True


class VaeStage:
    """L1 + edges + light KL on crops of every kind of image that the renderers encode: video, buffers, environment images.

    A linear encoder (`models.autoencoder.PatchEncoder`) has a closed form, the principal components of the data's patches, and
    is not trained: the diffusion stages may start before the decoder is done. Another learns together with its decoder.

    Raises InputError for a preset whose autoencoder is taken as it is.
    """

    name = "vae"

    def __init__(self, preset: Preset, data: Mixture, options: TrainOptions) -> None:
        if preset.frozen_vae:
            expected = "a preset whose autoencoder is trained, such as tiny"
            advice = "leave the stage out: its autoencoder comes with --start-from"
            raise InputError(expected, f"{preset.name}, which keeps that of Stable Video Diffusion", advice)
        torch.manual_seed(options.seed)
        self.device = find_device(options.device)
        self.preset, self.data, self.options = preset, data, options
        self.learning_rate = preset.learning_rate(self.name)
        self.vae = preset.vae()
        initialize_autoencoder(self.vae)
        noise = None
        if preset.patch_encoder:
            self.vae.encoder.set_basis(
                principal_patches(sample_images(self.data, self.preset, BASIS_FRAMES), preset.latent_channels, preset.factor)
            )
            for half in (self.vae.encoder, self.vae.quant_conv):
                half.requires_grad_(False)
            noise = LATENT_NOISE / self._measure_scale()
        self.network: nn.Module = VaeNetwork(self.vae.to(self.device), noise)

    def plan(self, step: int) -> tuple[Part, ...]:
        """Stills, or now and then clips."""
        area = self.preset.size**2
        return (draw_part(self.data, step, self.options.seed, self.options.batch, LENGTHS, area=area),)

    def losses(self, network: nn.Module, part: Part) -> tuple[Float[Tensor, "items"], dict[str, float]]:
        """L1 + edges + KL of every item, and the peak signal-to-noise ratio, dB."""
        crops = [draw_crop(item, part, self.preset, lights=LIGHT_SHARE) for item in part.items]
        target = 2 * torch.stack(crops).to(self.device) - 1
        size = (self.preset.latent_channels, target.shape[-2] // self.preset.factor, target.shape[-1] // self.preset.factor)
        shape = (target.shape[1], *size)
        noise = torch.stack([torch.randn(shape, generator=item.generator("noise")) for item in part.items])
        decoded, divergence = network(target, noise.to(self.device))
        error = decoded - target
        losses = edge_loss(error)
        if not self.preset.patch_encoder:
            losses = losses + KL_WEIGHT * divergence
        return losses, {"psnr": -10 * torch.log10((error.detach() ** 2).mean() / 4).item()}

    def sheet(self) -> Tensor:
        """Three frames; every kind of image above its reconstruction."""
        store, index = next(evenly(self.data, 3))
        images = network_images(store, index[:3, None], self.preset.groups)[0][:, 0]
        flat = rearrange(images, "n k c h w -> (n k) c h w").to(self.device)
        vae = self.autoencoder()
        decoded = vae.decode(vae.encode(2 * flat - 1).latent_dist.mode(), num_frames=1).sample
        both = torch.stack((flat, 0.5 * decoded + 0.5))
        return rearrange(both, "t (n k) c h w -> c (n t h) (k w)", n=len(images))

    def export(self, folder: Path) -> None:
        """Write ``folder/vae``."""
        vae = self.autoencoder()
        self._measure_scale()
        vae.save_pretrained(folder / "vae")

    def autoencoder(self) -> AutoencoderKLTemporalDecoder:
        """The autoencoder as it is trained now: the loop may have put another network of the same parameters in place."""
        network = self.network
        self.vae.encoder, self.vae.quant_conv, self.vae.decoder = network.encoder, network.quant_conv, network.decoder
        return self.vae

    @torch.no_grad()
    def _measure_scale(self) -> float:
        """Set the factor that gives the latents unit variance over the data."""
        device = next(self.vae.parameters()).device
        images = sample_images(self.data, self.preset, SCALE_FRAMES)
        modes = [self.vae.encode(some.to(device)).latent_dist.mode().flatten() for some in images]
        scale = float(1 / torch.cat(modes).std())
        self.vae.register_to_config(scaling_factor=scale)
        return scale


def principal_patches(samples: Iterable[Tensor], count: int, size: int) -> Float[Tensor, "{count} 3 {size} {size}"]:
    """The ``count`` patches whose coordinates keep most of the energy of images in [-1, 1], whitened.

    They are the leading eigenvectors of the patches' second moments (not centred, so that latent 0 stays mid-grey), divided by
    the deviation of their coordinate: all latent channels vary alike. Without that the brightness of patches drowns their
    detail, and the networks learn several times more slowly (see LOG.md).
    """
    moments, patches_seen = torch.zeros(3 * size**2, 3 * size**2, dtype=torch.float64), 0
    for images in samples:
        patches = rearrange(images, "n c (h p) (w q) -> (n h w) (c p q)", p=size, q=size)
        moments += (patches.T @ patches).double()
        patches_seen += len(patches)
    energy, vectors = torch.linalg.eigh(moments / patches_seen)
    deviation = energy.flip(0)[:count].clamp_min(1e-8).sqrt()
    basis = (vectors.flip(1)[:, :count] / deviation).T.float()
    return rearrange(basis, "n (c p q) -> n c p q", c=3, p=size)


def load_vae(run: Path) -> AutoencoderKLTemporalDecoder:
    """The trained autoencoder of a run folder; InputError when its stage has not run."""
    folder = run / "vae" / "vae"
    if not (folder / "config.json").exists():
        raise InputError(f"a trained autoencoder in {folder}", "none", "run `diffusion-renderer train vae` first")
    return AutoencoderKLTemporalDecoder.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)


def edge_loss(error: Float[Tensor, "items frames 3 height width"]) -> Float[Tensor, "items"]:
    """L1 of every item's error, and of its differences of neighbouring pixels."""
    return _mean(error.abs()) + EDGE_WEIGHT * sum(_mean(error.diff(dim=dim).abs()) for dim in (-1, -2))


def _mean(values: Float[Tensor, "items frames 3 _h _w"]) -> Float[Tensor, "items"]:
    return values.flatten(1).mean(dim=1)
