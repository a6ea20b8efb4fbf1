"""A small decoder in the place of the VAE's: a linear map per latent cell, and a light correction of its picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

#: Folder of the small decoder, beside ``vae``.
FOLDER = "decoder_small"
#: Copies of the features of the widest scale that live at once, and colour values of a pixel beside them.
LIVE_FEATURES, LIVE_COLOURS = 4, 12


class ResidualBlock(nn.Module):
    """Two convolutions around what comes in. No norm: it would erase a picture's absolute level (see LOG.md)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, x: Float[Tensor, "frames width height width2"]) -> Float[Tensor, "frames width height width2"]:
        return x + self.conv2(F.relu(self.conv1(x)))


class SmallDecoder(ModelMixin, ConfigMixin):
    """Latents of a VAE to images, frame by frame: any number of frames at once gives the same, and it sees no motion.

    A transposed convolution as wide as its stride makes the picture that is best among the linear ones; convolutions at
    ``scales`` times the latents' resolution correct it. The last layer is silent in a new decoder: it starts as the linear one.

    Parameters
    ----------
    latent_channels, factor : of the VAE: channels, and image pixels per latent pixel.
    scales : ascending resolutions at which features are computed, in latent pixels; each divides the next and ``factor``.
    widths, layers : channels and residual blocks of each scale.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        factor: int = 8,
        scales: Sequence[int] = (1, 4),
        widths: Sequence[int] = (96, 24),
        layers: Sequence[int] = (2, 1),
    ) -> None:
        super().__init__()
        if (
            any(after % before for before, after in pairwise((*scales, factor)))
            or len({*map(len, (scales, widths, layers))}) > 1
        ):
            raise ValueError(f"scales {scales} of widths {widths} and layers {layers} do not lead to a factor of {factor}")
        self.linear = nn.ConvTranspose2d(latent_channels, 3, kernel_size=factor, stride=factor)
        self.conv_in = nn.Conv2d(latent_channels, widths[0], kernel_size=3, padding=1)
        self.enlarge, self.guide = nn.ModuleList(), nn.ModuleList()
        for (scale, width), (finer, narrower) in pairwise(zip(scales, widths, strict=True)):
            self.enlarge.append(nn.Conv2d(width, narrower * (finer // scale) ** 2, kernel_size=1))
            self.guide.append(nn.Conv2d(3 * (factor // finer) ** 2, narrower, kernel_size=3, padding=1))
        self.levels = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count))) for width, count in zip(widths, layers, strict=True)
        )
        self.conv_out = nn.Conv2d(widths[-1], 3 * (factor // scales[-1]) ** 2, kernel_size=3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    @property
    def live_values(self) -> int:
        """Values held at the peak of an inference call, per pixel and frame of the image, in the networks' precision."""
        scales = zip(self.config.scales, self.config.widths, strict=True)
        finest = max(width * scale**2 for scale, width in scales) / self.config.factor**2
        return math.ceil(LIVE_FEATURES * finest) + LIVE_COLOURS

    @torch.no_grad()
    def set_linear(self, weight: Float[Tensor, "latent_channels 3 factor factor"], bias: Float[Tensor, "3"]) -> None:
        """Use this linear map of each latent cell to its patch."""
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)

    def forward(self, latents: Float[Tensor, "frames latent_channels height width"]) -> Float[Tensor, "frames 3 _h _w"]:
        """Images in [-1, 1] (not clamped) of latents in the VAE's own units, as ``vae.decode`` takes them."""
        picture = self.linear(latents)
        x = self.levels[0](F.relu(self.conv_in(latents)))
        for enlarge, guide, level, scale in zip(self.enlarge, self.guide, self.levels[1:], self.config.scales[1:], strict=True):
            # What the linear picture shows across the borders of cells is what there is to correct.
            shown = F.pixel_unshuffle(picture, self.config.factor // scale)
            wide = enlarge(x)
            x = level(F.relu(F.pixel_shuffle(wide, int((wide.shape[1] // guide.out_channels) ** 0.5)) + guide(shown)))
        return picture + F.pixel_shuffle(self.conv_out(x), self.config.factor // self.config.scales[-1])


def best_linear(
    pairs: Iterable[tuple[Float[Tensor, "_images channels _height _width"], Float[Tensor, "_images 3 _h _w"]]],
) -> tuple[Float[Tensor, "channels 3 factor factor"], Float[Tensor, "3"]]:
    """(weight, bias) for `SmallDecoder.set_linear` with the least squared error over pairs of latents and images in [-1, 1].

    For a linear encoder this is its least-squares inverse on the data. A tenth of a per mille of the latents' mean square is
    added to their moments (a ridge), so that latents that never vary do no harm.
    """
    gram, cross, factor = 0.0, 0.0, 1
    for latents, images in pairs:
        factor = images.shape[-1] // latents.shape[-1]
        cells = rearrange(latents.double(), "n c h w -> (n h w) c")
        cells = torch.cat((cells, torch.ones_like(cells[:, :1])), dim=1)
        patches = rearrange(images.double(), "n k (h p) (w q) -> (n h w) (k p q)", p=factor, q=factor)
        gram, cross = gram + cells.T @ cells, cross + cells.T @ patches
    channels = gram.shape[0] - 1
    ridge = 1e-4 * gram.diagonal()[:channels].mean()
    gram = gram + ridge * torch.diag(torch.tensor([1.0] * channels + [0.0], dtype=torch.float64, device=gram.device))
    solved = torch.linalg.solve(gram, cross)
    weight = rearrange(solved[:channels], "c (k p q) -> c k p q", k=3, p=factor).float()
    # One constant per colour: a transposed convolution has no more.
    return weight, rearrange(solved[channels], "(k r) -> k r", k=3).mean(dim=1).float()
