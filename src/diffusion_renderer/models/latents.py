"""The contract between pixels and latents, in one class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.models.autoencoder import AutoencoderKLTemporalDecoder
from diffusion_renderer.models.small_decoder import SmallDecoder


@dataclass(frozen=True)
class LatentCodec:
    """Network images in [0, 1] to latents and back through the video VAE.

    Images are mapped to [-1, 1]; the latent is the mode of the posterior. Latents are scaled by the VAE's factor except where
    ``scaled=False`` asks for the posterior's own units (the condition of the published inverse renderer).

    Attributes
    ----------
    chunk : frames encoded or decoded at once. The decoder is temporal: it cannot see across chunks.
    small : decodes in the place of the VAE's decoder, frame by frame; None for the VAE's own.
    half : decode in bfloat16 (autocast). Images of the `tiny` weights change by 0.001 on average and 0.008 at most.
    """

    vae: AutoencoderKLTemporalDecoder
    chunk: int = 8
    half: bool = False
    small: SmallDecoder | None = None

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def framewise(self) -> bool:
        """Whether frames are decoded each by itself, so that ``chunk`` changes nothing."""
        return self.small is not None

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.vae.config.latent_channels

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "frames 3 height width"], scaled: bool = True
    ) -> Float[Tensor, "frames channels _height _width"]:
        """Latents on the VAE's device, in its dtype. Sides must be multiples of `factor`."""
        parts = []
        for part in images.split(self.chunk):
            part = part.to(self.vae.device, self.vae.dtype)
            parts.append(self.vae.encode(2 * part - 1).latent_dist.mode())
        latents = torch.cat(parts)
        return latents * self.vae.config.scaling_factor if scaled else latents

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "frames channels height width"]) -> Float[Tensor, "frames 3 _height _width"]:
        """Images in [0, 1] from scaled latents. More frames than a chunk are decoded in pieces, which shows at the joints.

        It does not with a ``small`` decoder, which looks at one frame at a time.
        """
        parts = []
        for part in latents.split(self.chunk):
            part = part.to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor
            with torch.autocast(self.vae.device.type, dtype=torch.bfloat16, enabled=self.half):
                images = self.vae.decode(part, num_frames=len(part)).sample if self.small is None else self.small(part)
            parts.append((0.5 * images.to(self.vae.dtype) + 0.5).clamp(0.0, 1.0))
        return torch.cat(parts)
