"""Whether a long video shows where one window of the network hands over to the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError


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


def seam_ratio(video: Float[Tensor, "frames channels height width"], borders: Sequence[int]) -> float:
    """Mean frame-to-frame change at borders over that inside windows: 1 where nothing shows.

    Content that moves more at borders by chance raises it as well: compare it with the ratio of the video that was read.

    Parameters
    ----------
    borders : pairs of frames as `border_pairs` lists them.

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
