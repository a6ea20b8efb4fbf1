"""Variations of a rendered clip that keep the physics: every epoch sees every frame differently.

They matter more here than in most trainings: the autoencoder of the `tiny` preset reads separate patches, so only a shifted
frame tells the networks that a patch's contents may lie elsewhere in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.resize import resize
from diffusion_renderer.training.data import DEPTH, IMAGES

#: Smallest part of a frame that is shown, as a share of its side.
LEAST_ZOOM = 0.7
#: How far the window may reach beyond the frame (whose edge is repeated there), as a share of its side.
MARGIN = 0.03
#: How often red, green and blue are permuted, the light is made stronger or weaker, and time runs backwards.
RECOLOUR_SHARE, EXPOSURE_SHARE, BACKWARDS_SHARE = 0.5, 0.5, 0.5
#: Darkest and brightest light, stops, where the video is what is learnt. Brighter frames burn, and what burns in the stored
#: ones is not known in less light.
EXPOSURE_STOPS = (-1.0, 0.5)
#: The same where it is only looked at: what burns or lies in the dark on a photograph has its buffers all the same.
SEEN_STOPS = (-1.75, 1.25)

_RGB, _BASE, _NORMAL = (IMAGES.index(name) for name in ("rgb", "basecolor", "normal"))


@dataclass(frozen=True)
class Variation:
    """One variation per clip, the same for all its frames and images.

    Attributes
    ----------
    side : side of the window that is shown, as a share of the frame's.
    centre : its centre (x, y); the frame spans [-1, 1].
    mirrored : left and right exchanged, in the normals' x and in the light as well.
    order : the channels that red, green and blue are taken from, in video, base colour and light.
    exposure : factor on the light and the linear video.
    backwards : the frames in opposite order, the light's with them. A clip shows no dynamics that this would betray.
    """

    side: Float[Tensor, "clips"]
    centre: Float[Tensor, "clips 2"]
    mirrored: Bool[Tensor, "clips"]
    order: Int[Tensor, "clips 3"]
    exposure: Float[Tensor, "clips"]
    backwards: Bool[Tensor, "clips"]

    @classmethod
    def draw(cls, count: int, generator: torch.Generator, exposure_stops: tuple[float, float] = EXPOSURE_STOPS) -> Variation:
        """Independent variations for ``count`` clips, in light of no less and no more than ``exposure_stops``.

        ``draw(1, generator)`` per clip, each with a generator of its own, and `stack` make a clip's variation independent of
        which others it is computed with.
        """

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        side = LEAST_ZOOM + (1 - LEAST_ZOOM) * uniform(count)
        reach = 1 - side + 2 * MARGIN
        orders = uniform(count, 3).argsort(dim=1)
        same = uniform(count, 1) >= RECOLOUR_SHARE
        low, high = exposure_stops
        stops = torch.where(uniform(count) < EXPOSURE_SHARE, low + (high - low) * uniform(count), torch.zeros(count))
        return cls(
            side=side,
            centre=(2 * uniform(count, 2) - 1) * reach[:, None],
            mirrored=uniform(count) < 0.5,
            order=torch.where(same, torch.arange(3), orders),
            exposure=2.0**stops,
            backwards=uniform(count) < BACKWARDS_SHARE,
        )

    @classmethod
    def stack(cls, variations: Sequence[Variation]) -> Variation:
        """The variations of a batch out of those of its clips, in their order."""
        return cls(**{field.name: torch.cat([getattr(v, field.name) for v in variations]) for field in fields(cls)})

    @classmethod
    def none(cls, count: int) -> Variation:
        """The variation that changes nothing."""
        return cls(
            side=torch.ones(count),
            centre=torch.zeros(count, 2),
            mirrored=torch.zeros(count, dtype=torch.bool),
            order=torch.arange(3).expand(count, 3),
            exposure=torch.ones(count),
            backwards=torch.zeros(count, dtype=torch.bool),
        )

    def to(self, device: torch.device) -> Variation:
        """The same on another device."""
        return Variation(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def images(
        self, images: UInt8[Tensor, "clips frames kinds 3 height width"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "clips frames kinds 3 _height _width"]:
        """Clips in the order of `data.IMAGES`, varied, in [0, 1]. Depth stays relative to what the window shows.

        Images behind those are more pictures of the frames, and vary as the video does. ``size`` is the (height, width) that
        they are made in, from the middle of the window where its shape is another; None for the frames' own.
        """
        images = self._expose(self._recolour(self.in_time(images).float() / 255))
        varied = self._sample(images, "bilinear", size)
        mirror = self.mirrored[:, None, None, None]
        varied[:, :, _NORMAL, 0] = torch.where(mirror, 1 - varied[:, :, _NORMAL, 0], varied[:, :, _NORMAL, 0])
        kind, channel = DEPTH
        # Interpolated values beside the background are no distances, so the range is taken from uninterpolated ones.
        depth = self._sample(images[:, :, kind : kind + 1, channel : channel + 1], "nearest", size)
        varied[:, :, kind, channel] = _relative(varied[:, :, kind, channel], depth[:, :, 0, 0])
        return varied

    def defined(
        self, masks: UInt8[Tensor, "clips frames height width"], size: tuple[int, int] | None = None
    ) -> Bool[Tensor, "clips frames _height _width"]:
        """Where the varied images are made of pixels whose ground truth is defined (not 0 in ``masks``) and of no other."""
        whole = self._sample(self.in_time(masks)[:, :, None, None].ne(0).float(), "bilinear", size)[:, :, 0, 0]
        # The four weights of a pixel add up to 1 but for rounding.
        return whole > 1 - 1e-3

    def environment(self, images: Float[Tensor, "clips frames 3 3 size size"]) -> Float[Tensor, "clips frames 3 3 size size"]:
        """Environment images (ldr, log, direction) as the varied clip's camera sees them, frame by frame.

        They are given in the order of the clip as it is stored: time is turned here. Their exposure is not changed: it is
        `exposure` times the radiance that they are made from.
        """
        images = self.in_time(images)
        seen = images[:, :, :2]
        order = self.order[:, None, None, :, None, None].expand_as(seen)
        seen = seen.gather(3, order)
        seen = torch.where(self.mirrored[:, None, None, None, None, None], seen.flip(-1), seen)
        return torch.cat((seen, images[:, :, 2:]), dim=2)

    def in_time(self, values: Shaped[Tensor, "clips frames *rest"]) -> Shaped[Tensor, "clips frames *rest"]:
        """Anything that belongs to the frames, such as the light's rotations, in the order of the varied clip.

        `images`, `defined` and `environment` do this themselves.
        """
        if values.shape[1] == 1 or not self.backwards.any():
            return values
        turned = values.clone()
        turned[self.backwards] = values[self.backwards].flip(1)
        return turned

    def _recolour(self, images: Tensor) -> Tensor:
        order = self.order[:, None, :, None, None].expand(-1, images.shape[1], -1, *images.shape[-2:])
        for kind in (_RGB, _BASE, *range(len(IMAGES), images.shape[2])):
            images[:, :, kind] = images[:, :, kind].gather(2, order)
        return images

    def _expose(self, images: Tensor) -> Tensor:
        changed = self.exposure != 1
        if not changed.any():
            return images
        factor = self.exposure[changed][:, None, None, None, None]
        for kind in (_RGB, *range(len(IMAGES), images.shape[2])):
            video = images[changed, :, kind]
            exposed = srgb_oetf((srgb_eotf(video) * factor).clamp(0, 1))
            # How bright a burnt pixel was is not known: it stays burnt in less light.
            images[changed, :, kind] = torch.where(video == 1, video, exposed)
        return images

    def _sample(self, images: Tensor, mode: str, size: tuple[int, int] | None) -> Tensor:
        """What the window of each clip shows, at ``size``."""
        height, width = images.shape[-2:] if size is None else size
        narrower = width * images.shape[-2] / (height * images.shape[-1])
        if mode == "bilinear" and size is not None:
            images = _reduced(images, size)
        theta = images.new_zeros(len(self.side), 2, 3)
        theta[:, 0, 0] = torch.where(self.mirrored, -self.side, self.side) * min(1.0, narrower)
        theta[:, 1, 1] = self.side * min(1.0, 1 / narrower)
        theta[:, :, 2] = self.centre
        grid = F.affine_grid(theta, [len(theta), 1, height, width], align_corners=False)
        flat = rearrange(images, "b f k c h w -> b (f k c) h w")
        sampled = F.grid_sample(flat, grid, mode=mode, padding_mode="border", align_corners=False)
        return sampled.unflatten(1, images.shape[1:4])


def _reduced(images: Float[Tensor, "clips frames kinds channels _h _w"], size: tuple[int, int]) -> Tensor:
    """Images no larger than the smallest window at ``size`` asks for, averaged: larger ones would show moire, for a window
    reads only four pixels for one."""
    share = min(1.0, max(size[0] / images.shape[-2], size[1] / images.shape[-1]) / LEAST_ZOOM)
    if share == 1:
        return images
    smaller = (round(images.shape[-1] * share), round(images.shape[-2] * share))
    return resize(images.flatten(0, 2), smaller).unflatten(0, images.shape[:3])


def _relative(depth: Float[Tensor, "clips frames height width"], sharp: Float[Tensor, "clips frames height width"]) -> Tensor:
    """Relative depth whose range is that of ``sharp`` in each clip; 1 is background and stays 1."""
    background = sharp >= 1
    flat = rearrange(sharp, "b f h w -> b (f h w)")
    near = flat.amin(dim=1)[:, None, None, None]
    far = torch.where(flat >= 1, torch.zeros_like(flat), flat).amax(dim=1)[:, None, None, None]
    scaled = ((depth - near) / (far - near).clamp_min(1 / 255)).clamp(0, 1)
    return torch.where(background, depth, scaled)
