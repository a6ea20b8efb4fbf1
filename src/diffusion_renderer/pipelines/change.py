"""What a residual model adds to a classical picture, without the grain of its latents.

The change comes out of latents of several pixels, at the size that the network sees: on even surfaces it shows their grid, and
its edges are soft. The picture knows where light and surfaces change. So nearby the change is taken for a straight line in the
picture's brightness (guided filter; He, Sun and Tang 2013), whose slope and offset are enlarged and read with the large picture
(He and Sun 2015, "Fast Guided Filter"). LOG.md has what was measured.

It cannot keep what has nothing to do with the picture's brightness and is smaller than the reach: a small shadow on an even
floor that the picture does not show becomes softer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.resize import resize
from diffusion_renderer.pipelines.guided import smoothed

#: Standard deviation of the filter's reach, pixels of the working size. 2 to 4 are as good, to 0.01 dB.
REACH = 3.0
#: Variance of the picture's brightness (sRGB) below which it is taken to be even: the change is then its mean.
EVEN = 1e-4


@dataclass(frozen=True)
class Drawn:
    """Classical pictures of some frames, sRGB, and 1 where they show a surface."""

    frames: Float[Tensor, "frames 3 height width"]
    surface: Float[Tensor, "frames 1 height width"]

    @classmethod
    def stack(cls, parts: Sequence[Drawn]) -> Drawn:
        """Several, one after the other."""
        return cls(torch.cat([part.frames for part in parts]), torch.cat([part.surface for part in parts]))

    def frame_by_frame(self) -> list[Drawn]:
        """Each frame by itself."""
        return [Drawn(*pair) for pair in zip(self.frames.split(1), self.surface.split(1), strict=True)]

    @property
    def brightness(self) -> Float[Tensor, "frames 1 height width"]:
        """Mean of red, green and blue."""
        return self.frames.mean(dim=1, keepdim=True)


def guided_change(
    change: Float[Tensor, "frames 3 h w"], small: Drawn, large: Drawn, sharp: bool = True
) -> Float[Tensor, "frames 3 _height _width"]:
    """The change at the size of ``large``, along what is bright and dark in it; 0 where it shows no surface.

    Parameters
    ----------
    change : differences of sRGB values at the size of ``small``, the same pictures at the network's size.
    sharp : the lines are read with ``large``, so that the change's edges are as sharp as that is. Without, they are read with
        ``small`` and the result is enlarged: where the change darkens what is bright, lines would take the contrast from
        details that the network has not seen, which are paint and not light.
    """
    surface, guide = small.surface, small.brightness
    share = smoothed(surface, REACH).clamp_min(1e-3)

    def mean(values: Tensor) -> Tensor:
        """Over the surfaces nearby."""
        return smoothed(values * surface, REACH) / share

    middle, level = mean(guide), mean(change)
    variance = (mean(guide * guide) - middle * middle).clamp_min(0.0)
    slope = (mean(guide * change) - middle * level) / (variance + EVEN)
    lines = mean(torch.cat((slope, level - slope * middle), dim=1))
    size = (large.frames.shape[-1], large.frames.shape[-2])
    if not sharp:
        slope, offset = lines.chunk(2, dim=1)
        return resize(slope * guide + offset, size) * large.surface
    slope, offset = resize(lines, size).chunk(2, dim=1)
    return (slope * large.brightness + offset) * large.surface
