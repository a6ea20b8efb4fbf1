"""Images of 8 bits as what they were before they were rounded, as far as their neighbours tell."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

#: Values of an 8-bit channel above zero.
TOP = 255
#: Means are taken over squares of so many pixels: steps up to about that far apart are taken away, the widest first.
SQUARES = (32, 16, 8, 4)
#: Squares in which a mean is further than this from a pixel, in steps, show an edge, and are left to smaller ones.
SAME = 1.5
#: How far from whole numbers of steps values of 8 bits may be when read as float32.
ROUNDING = 1e-3


def without_steps(image: Float[Tensor, "channels height width"]) -> Float[Tensor, "channels height width"]:
    """An image in [0, 1] whose slow ramps are no stairs; one of more than 8 bits comes back as it is.

    No value moves by more than half a step, so that rounding gives the same 8 bits again: what is added lies within what the
    file leaves open. Slopes become even where steps are up to `SQUARES` pixels apart; edges and texture stay.

    Meant for normals: a mirror under a bright panorama shows a step of 1/127 in them as a line.
    """
    stored = image * TOP
    whole = stored.round()
    if image.numel() == 0 or float((stored - whole).abs().max()) > ROUNDING:
        return image
    smooth = whole
    for square in SQUARES:
        if square < min(image.shape[-2:]):
            mean = _mean(smooth, square)
            kept = torch.minimum(torch.maximum(mean, whole - 0.5), whole + 0.5)
            smooth = torch.where(_largest((mean - whole).abs(), square) <= SAME, kept, smooth)
    return (smooth / TOP).clamp(0.0, 1.0)


def _mean(image: Float[Tensor, "channels height width"], square: int) -> Float[Tensor, "channels height width"]:
    """Means over squares, interpolated between their middles; a ramp stays as it is."""
    height, width = image.shape[-2:]
    for _ in range(2):
        image = _continued(image, square).mT
    coarse = F.avg_pool2d(image[None], square)
    fine = F.interpolate(coarse, scale_factor=square, mode="bilinear", align_corners=False)[0]
    return fine[:, square : square + height, square : square + width]


def _largest(image: Float[Tensor, "channels height width"], square: int) -> Float[Tensor, "channels height width"]:
    """The largest value of the square that a pixel is in."""
    height, width = image.shape[-2:]
    coarse = F.max_pool2d(image[None], square, ceil_mode=True)
    return F.interpolate(coarse, scale_factor=square, mode="nearest")[0, :, :height, :width]


def _continued(image: Float[Tensor, "channels height width"], by: int) -> Float[Tensor, "channels height longer"]:
    """Beyond its left and right edge turned round the edge's value, so that slopes go on; to a multiple of ``by`` columns."""
    more = by + -image.shape[-1] % by
    before, after = image[..., :1], image[..., -1:]
    ahead = 2 * before - image[..., 1 : by + 1].flip(-1)
    behind = 2 * after - image[..., -by - 1 : -1].flip(-1)
    return torch.cat((ahead, image, behind, behind[..., -1:].expand(*behind.shape[:-1], more - by)), dim=-1)
