"""A video cut into short clips for training: spread evenly, never across a cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip
from diffusion_renderer.io import ClipFile

#: Bins of each colour axis of a frame's histogram.
BINS = 6
#: Frames are compared at about this many pixels.
COMPARED = 64 * 64
#: A cut changes at least this share of a frame's histogram ...
CUT = 0.35
#: ... and this many times what the frames around it change: a shaken camera or a flash changes many frames in a row.
STANDS_OUT = 3.0
#: Frames on either side of a possible cut that are compared with it.
NEIGHBOURS = 4
#: Sides of frames that keep their shape are multiples of this, pixels.
MULTIPLE = 8


@dataclass(frozen=True)
class Segment:
    """Frames ``start`` to ``start + len(clip) - 1`` of a video, at the training size."""

    number: int
    start: int
    clip: Clip


def segments_of(video: ClipFile, count: int, frames: int, size: int, *, square: bool = True) -> Iterator[Segment]:
    """At most ``count`` segments of ``frames`` consecutive frames, evenly spaced, none across a cut; a short video gives fewer.

    The video is decoded twice, a frame at a time, so that its length does not matter for memory. With ``square`` the middle of
    each frame becomes ``size`` x ``size`` pixels; else the whole frame becomes about as many, its shape kept to within
    multiples of `MULTIPLE`. Raises InputError for a video that cannot be decoded, or without ``frames`` frames between cuts.
    """
    changes = histogram_changes(video.images())
    starts = plan_segments(find_cuts(changes), len(changes) + 1, count, frames)
    if not starts:
        found = f"{len(changes) + 1} frames in all" if len(changes) < frames else "none between its cuts"
        advice = "give a longer video, or fewer frames"
        raise InputError(f"a video with {frames} frames in a row", f"{found} in {video.name}", advice)
    kept: list[Tensor] = []
    number = 0
    for index, image in enumerate(video.images()):
        if index >= starts[number]:
            kept.append(shrink(image[None], size, square=square)[0])
        if len(kept) == frames:
            clip = Clip(torch.stack(kept), video.fps, f"{video.name}-{starts[number]:06d}")
            yield Segment(number, starts[number], clip)
            kept, number = [], number + 1
            if number == len(starts):
                return


def plan_segments(cuts: list[int], total: int, count: int, frames: int) -> list[int]:
    """First frames of the segments: each shot is filled with segments spread evenly over it, of which ``count`` are taken.

    ``cuts`` are the first frames of the shots but the first, in order.
    """
    starts = []
    for first, end in zip([0, *cuts], [*cuts, total], strict=True):
        fit = (end - first) // frames
        spare = end - first - fit * frames
        # Half a gap before the first and after the last.
        starts += [first + k * frames + round(spare * (k + 0.5) / fit) for k in range(fit)]
    if len(starts) <= count:
        return starts
    return [starts[round(k * (len(starts) - 1) / max(count - 1, 1))] for k in range(count)]


def histogram_changes(images: Iterable[Float[Tensor, "3 height width"]]) -> list[float]:
    """Share of the colour histogram that changes from each frame to the next, 0 to 1."""
    changes, last = [], None
    for image in images:
        histogram = colour_histogram(image)
        if last is not None:
            changes.append(float((histogram - last).abs().sum() / 2))
        last = histogram
    return changes


def colour_histogram(image: Float[Tensor, "3 height width"]) -> Float[Tensor, " bins"]:
    """Shares of the pixels in each of `BINS`^3 colours; a pixel between bins counts for both, so that noise does little."""
    step = max(1, int((image.shape[-1] * image.shape[-2] / COMPARED) ** 0.5))
    small = torch.nn.functional.avg_pool2d(image[None], step)[0].flatten(1) * (BINS - 1)
    low = small.floor().clamp(0, BINS - 2)
    above = small - low
    total = torch.zeros(BINS**3)
    for corner in range(8):
        bits = torch.tensor([corner >> axis & 1 for axis in range(3)])[:, None]
        weight = torch.where(bits == 1, above, 1 - above).prod(dim=0)
        index = ((low + bits) * torch.tensor([BINS**2, BINS, 1])[:, None]).sum(dim=0).long()
        total.index_add_(0, index, weight)
    return total / total.sum()


def find_cuts(changes: list[float]) -> list[int]:
    """Frames that begin a new shot: a large change that stands out from the changes around it.

    Finds hard cuts between pictures of different colours. It cannot find fades, nor cuts between views of one place in the
    same light.
    """
    cuts = []
    for index, change in enumerate(changes):
        around = changes[max(0, index - NEIGHBOURS) : index] + changes[index + 1 : index + 1 + NEIGHBOURS]
        usual = sorted(around)[len(around) // 2] if around else 0.0
        if change >= CUT and change >= STANDS_OUT * usual:
            cuts.append(index + 1)
    return cuts


def shrink(
    images: Float[Tensor, "frames 3 _h _w"], size: int, *, square: bool = True
) -> Float[Tensor, "frames 3 _height _width"]:
    """Frames at the training size, by area: a pixel is the mean of what it covers. See `segments_of`."""
    height, width = images.shape[-2:]
    if square:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images, target = images[..., top : top + side, left : left + side], (size, size)
    else:
        shape = (height / width) ** 0.5
        target = tuple(max(1, round(size * s / MULTIPLE)) * MULTIPLE for s in (shape, 1 / shape))
    return torch.nn.functional.interpolate(images, size=target, mode="area")
