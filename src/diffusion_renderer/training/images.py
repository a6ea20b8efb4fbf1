"""What the networks see of a part's frames, in pixels: a preset's images from the stored ones, varied, and where they count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from diffusion_renderer.core.types import BUFFER_CHANNELS
from diffusion_renderer.training.data import BUFFERS5, GROUPS, Accept, FrameStore, Mixture
from diffusion_renderer.training.steps import Part
from diffusion_renderer.training.variation import Variation

#: What stands where a buffer is not known, 8-bit: what the encodings of `core.encoding` say of background.
BACKGROUND = {"basecolor": 0, "normal": 128, "depth": 255, "roughness": 0, "metallic": 0}


def _places() -> dict[str, tuple[int, slice]]:
    """The stored image, and its channels, that hold each buffer."""
    found = {}
    for kind, group in enumerate(GROUPS, start=1):
        start = 0
        for name in group:
            found[name] = (kind, slice(start, start + BUFFER_CHANNELS[name]))
            start += BUFFER_CHANNELS[name]
    return found


PLACES = _places()


@dataclass(frozen=True)
class Frames:
    """Network images of some clips, in [0, 1].

    Attributes
    ----------
    video : the frames.
    buffers : one image per group of the preset.
    prior : the pictures that a classical renderer makes of the G-buffers, where they are asked for.
    defined : 1 where the group's ground truth is known, 0 where it is not; there the images show background.
    """

    video: Float[Tensor, "items frames 3 height width"]
    buffers: Float[Tensor, "items frames groups 3 height width"]
    prior: Float[Tensor, "items frames pictures 3 height width"] | None
    defined: Float[Tensor, "items frames groups height width"]


def frame_index(part: Part) -> Int[Tensor, "items frames"]:
    """Indices of a part's frames in its store."""
    return torch.tensor([item.frames for item in part.items])


def variation_of(part: Part, augment: bool, exposure_stops: tuple[float, float]) -> Variation:
    """How each item of a part is varied: drawn from its own seed, so that no other item matters."""
    if not augment:
        return Variation.none(len(part.items))
    return Variation.stack([Variation.draw(1, item.generator("variation"), exposure_stops) for item in part.items])


def read_frames(
    store: FrameStore,
    index: Int[Tensor, "items frames"],
    groups: tuple[tuple[str, ...], ...],
    variation: Variation,
    device: torch.device,
    size: tuple[int, int] | None = None,
) -> Frames:
    """The frames ``index`` of a store as the networks of a preset with these image groups see them.

    ``size`` is the (height, width) of the images; None for that of the frames.
    """
    pictures = [stored_images(store, index)]
    if store.prior:
        pictures.append(store.take_prior(index))
    variation = variation.to(device)
    images = variation.images(torch.cat(pictures, dim=2).to(device), size)
    known = variation.in_time(group_present(store, index, groups).to(device))[..., None, None].to(images)
    pixels = variation.defined(store.take_defined(index).to(device), size)[:, :, None].to(images)
    return Frames(
        video=images[:, :, 0],
        buffers=grouped(images, groups),
        prior=images[:, :, 1 + len(GROUPS) :] if store.prior else None,
        defined=known * pixels,
    )


def stored_images(store: FrameStore, index: Int[Tensor, "items frames"]) -> UInt8[Tensor, "items frames kinds 3 height width"]:
    """The images of `data.IMAGES`; background stands where a buffer is absent or undefined, whatever is stored there."""
    images, present = store.take(index), store.present[index]
    if bool(present.all()) and not store.defined:
        return images
    unknown = store.take_defined(index) == 0 if store.defined else torch.zeros_like(images[:, :, 0, 0], dtype=torch.bool)
    for name, (kind, channels) in PLACES.items():
        hidden = unknown | ~present[..., BUFFERS5.index(name), None, None]
        shown = images[:, :, kind, channels]
        images[:, :, kind, channels] = torch.where(hidden[:, :, None], BACKGROUND[name], shown)
    return images


def network_images(
    store: FrameStore, index: Int[Tensor, "items frames"], groups: tuple[tuple[str, ...], ...]
) -> tuple[Float[Tensor, "items frames kinds 3 height width"], Bool[Tensor, "items frames kinds"]]:
    """The video and the images of all groups, in [0, 1], as they are, and which of them the frames have."""
    images = stored_images(store, index).float() / 255
    known = group_present(store, index, groups)
    return (
        torch.cat((images[:, :, :1], grouped(images, groups)), dim=2),
        torch.cat((torch.ones_like(known[..., :1]), known), dim=-1),
    )


def grouped(
    images: Float[Tensor, "items frames kinds 3 height width"], groups: tuple[tuple[str, ...], ...]
) -> Float[Tensor, "items frames groups 3 height width"]:
    """The network images of ``groups``, out of the stored ones: a buffer of one channel alone fills all three."""
    if groups == GROUPS:
        return images[:, :, 1 : 1 + len(GROUPS)]
    channels = []
    for group in groups:
        found = [3 * PLACES[name][0] + i for name in group for i in range(*PLACES[name][1].indices(3))]
        channels += found * (3 // len(found))
    return images.flatten(2, 3)[:, :, channels].unflatten(2, (len(groups), 3))


def group_present(
    store: FrameStore, index: Int[Tensor, "*shape"], groups: tuple[tuple[str, ...], ...]
) -> Bool[Tensor, "*shape groups"]:
    """Whether each frame has ground truth of all buffers of each group."""
    present = store.present[index]
    return torch.stack([present[..., [BUFFERS5.index(name) for name in group]].all(dim=-1) for group in groups], dim=-1)


def evenly(data: Mixture, count: int, accept: Accept | None = None) -> Iterator[tuple[FrameStore, Int[Tensor, "frames"]]]:
    """About ``count`` frames of all stores, evenly spaced over them: the same ones every time."""
    choices = []
    for store in data.stores:
        kept = torch.ones(len(store), dtype=torch.bool) if accept is None else accept(store)
        choices.append((store, kept.nonzero()[:, 0]))
    total = sum(len(index) for _, index in choices)
    for store, index in choices:
        share = min(len(index), -(-count * len(index) // max(1, total)))
        if share:
            yield store, index[torch.linspace(0, len(index) - 1, share).long()]
