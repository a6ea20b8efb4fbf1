"""Fitting images to the sizes that a network takes, and back, without changing their aspect ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError


@dataclass(frozen=True)
class Fit:
    """How images of one size go to the network: scaled to ``inner``, then padded at the right and bottom to ``padded``.

    All sizes are (width, height) in pixels. The aspect ratio of ``inner`` is that of ``source`` up to rounding to whole pixels.
    """

    source: tuple[int, int]
    inner: tuple[int, int]
    padded: tuple[int, int]

    def apply(self, images: Float[Tensor, "frames channels _h _w"]) -> Float[Tensor, "frames channels _height _width"]:
        """Source images to the padded size. The edge pixels are repeated outwards, so that no false edge appears."""
        images = resize(images, self.inner)
        right, bottom = self.padded[0] - self.inner[0], self.padded[1] - self.inner[1]
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if right or bottom else images

    def undo(self, images: Float[Tensor, "frames channels _h _w"]) -> Float[Tensor, "frames channels _height _width"]:
        """Images of the padded size back to the source's size."""
        return resize(self.unpad(images), self.source)

    def unpad(self, images: Float[Tensor, "frames channels _h _w"]) -> Float[Tensor, "frames channels _height _width"]:
        """Images of the padded size without their padding, of size ``inner``."""
        width, height = self.inner
        return images[..., :height, :width]


def fit_size(source: tuple[int, int], multiple: int, area: int | None = None, size: tuple[int, int] | None = None) -> Fit:
    """Choose the working size of images of size ``source``.

    Parameters
    ----------
    source : (width, height), at least 1 x 1.
    multiple : both padded sides are multiples of this.
    area : aimed-for width times height, pixels; None keeps the source's own size.
    size : (width, height) of a box to fit into instead; it wins over ``area``.

    Raises InputError for a size without pixels.
    """
    for what, sides in (("image", source), ("size", size)):
        if sides is not None and min(sides) < 1:
            raise InputError(f"an {what} of at least 1 x 1 pixel", f"{sides[0]}x{sides[1]}", "give a larger one")
    if size is not None:
        scale = min(size[0] / source[0], size[1] / source[1])
    else:
        scale = math.sqrt(area / (source[0] * source[1])) if area is not None else 1.0
    inner = (max(1, round(source[0] * scale)), max(1, round(source[1] * scale)))
    padded = (-(-inner[0] // multiple) * multiple, -(-inner[1] // multiple) * multiple)
    return Fit(source, inner, padded)


def resize(
    images: Float[Tensor, "frames channels _h _w"], size: tuple[int, int]
) -> Float[Tensor, "frames channels _height _width"]:
    """Bilinear resize to (width, height), antialiased where it shrinks. Returns images of that size as they are."""
    if images.shape[-2:] == (size[1], size[0]):
        return images
    return F.interpolate(images, size=(size[1], size[0]), mode="bilinear", align_corners=False, antialias=True)
