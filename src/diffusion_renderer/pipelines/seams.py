"""Whether a long video shows where one window of the network hands over to the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.pipelines.windows import blend_weights


def frame_changes(video: Float[Tensor, "frames channels height width"]) -> Float[Tensor, " pairs"]:
    """Mean absolute change from each frame to the next, over all pixels and channels; infinite depths count as 1."""
    video = torch.where(video.isfinite(), video, 1.0)
    return torch.stack([(after - before).abs().mean() for before, after in pairwise(video)])


def border_pairs(windows: Sequence[slice]) -> list[int]:
    """Pairs of neighbouring frames (by the first of them) in which the share of a window grows or falls.

    From the last frame that one window makes alone to the first that the next one makes alone; ``windows`` are those of
    `plan_windows`.
    """
    pairs = set()
    for index in range(1, len(windows)):
        pairs.update(range(windows[index].start - 1, windows[index - 1].stop))
    return sorted(pairs)


def handover_pairs(windows: Sequence[slice], overlap: int) -> list[int]:
    """Pairs of neighbouring frames in which the shares of the windows change faster than in the average pair.

    For windows that share half of their frames or more, where every pair lies between two windows: there `border_pairs` are
    all pairs. ``windows`` and ``overlap`` are those of `plan_windows`.
    """
    frames = windows[-1].stop
    shares = torch.zeros(len(windows), frames)
    for share, window, weight in zip(shares, windows, blend_weights(list(windows), overlap), strict=True):
        share[window] = weight
    shares /= shares.sum(dim=0)
    changes = shares.diff(dim=1).abs().sum(dim=0)
    return [pair for pair, change in enumerate(changes.tolist()) if change > float(changes.mean()) + 1e-6]


def seam_ratio(video: Float[Tensor, "frames channels height width"], borders: Sequence[int]) -> float:
    """Mean frame-to-frame change at borders over that inside windows: 1 where nothing shows.

    Content that moves more at borders by chance raises it as well: compare it with the ratio of the video that was read.

    Parameters
    ----------
    borders : pairs of frames as `border_pairs` or `handover_pairs` lists them.

    Raises InputError when there are no borders, or nothing but borders.
    """
    changes = frame_changes(video)
    at_border = torch.zeros(len(changes), dtype=torch.bool)
    at_border[[pair for pair in borders if 0 <= pair < len(changes)]] = True
    if bool(at_border.all()) or not bool(at_border.any()):
        found = f"{int(at_border.sum())} border pairs of {len(changes)}"
        raise InputError("a video with pairs of frames at borders and inside windows", found, "give a longer video")
    inside = float(changes[~at_border].mean())
    return float(changes[at_border].mean()) / max(inside, 1e-12)
