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
#: Standard deviation of the neighbourhood whose mean a burnt place keeps, pixels of the working size. Chosen by eye on two real
#: clips; rendered clips of 128 x 128 do not tell (0.01 dB).
TEXTURE_REACH = 4.0
#: Change from which on a burnt place is taken to be darkened altogether.
DARKENED = 0.1


@dataclass(frozen=True)
class Drawn:
    """Classical pictures of some frames, sRGB: cut at 1, with 1 where they show a surface, and as they were before."""

    frames: Float[Tensor, "frames 3 height width"]
    surface: Float[Tensor, "frames 1 height width"]
    uncut: Float[Tensor, "frames 3 height width"]

    @classmethod
    def of(cls, uncut: Float[Tensor, "frames 3 height width"], surface: Float[Tensor, "frames 1 height width"]) -> Drawn:
        """Pictures that may be brighter than 1."""
        return cls(uncut.clamp(max=1.0), surface, uncut)

    @classmethod
    def stack(cls, parts: Sequence[Drawn]) -> Drawn:
        """Several, one after the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("frames", "surface", "uncut")))

    def frame_by_frame(self) -> list[Drawn]:
        """Each frame by itself."""
        split = (self.frames.split(1), self.surface.split(1), self.uncut.split(1))
        return [Drawn(*parts) for parts in zip(*split, strict=True)]

    @property
    def brightness(self) -> Float[Tensor, "frames 1 height width"]:
        """Mean of red, green and blue."""
        return self.frames.mean(dim=1, keepdim=True)


def textured(
    frames: Float[Tensor, "frames 3 _height _width"], small: Drawn, large: Drawn
) -> Float[Tensor, "frames 3 _height _width"]:
    """The frames with the texture of the uncut picture where the picture is burnt.

    A change darkens a burnt patch to what it should be on the whole, but at 1 the picture has no texture left. There the frame
    is the uncut picture, brought to the frame's mean nearby. Where nothing is burnt, or darkened, frames stay what they are.

    Parameters
    ----------
    frames : pictures with their change, at the size of ``large``.
    """
    burnt = ((large.uncut > 1.0).any(dim=1, keepdim=True) & (large.surface > 0)).float()
    if not bool(burnt.any()):
        return frames
    work, full = (small.frames.shape[-1], small.frames.shape[-2]), (large.frames.shape[-1], large.frames.shape[-2])
    surface = small.surface.clamp_min(1e-3)
    share = smoothed(surface, TEXTURE_REACH)
    means = [smoothed(resize(values, work) * surface, TEXTURE_REACH) / share for values in (frames, large.uncut)]
    gain = resize(means[0] / means[1].clamp_min(1e-3), full)
    darker = (large.frames - frames).mean(dim=1, keepdim=True).div(DARKENED).clamp(0.0, 1.0)
    where = resize(smoothed(resize(burnt * darker, work), 1.0), full).clamp(0.0, 1.0) * large.surface
    return frames + where * (large.uncut * gain - frames)


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
