"""Clips longer than the network's window: overlapping windows, blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

#: Denoised estimate of the frames of one window, given those frames, their noisy latents and the noise level.
WindowDenoiser = Callable[[slice, Tensor, Tensor], Tensor]


def plan_windows(frames: int, window: int, overlap: int) -> list[slice]:
    """Windows of ``window`` frames that cover the clip, each sharing at least ``overlap`` frames with the one before.

    The last window ends with the clip, so it may share more. A clip that fits into one window is one window.
    """
    if frames <= window:
        return [slice(0, frames)]
    starts = range(0, frames - window, max(1, window - overlap))
    return [slice(start, start + window) for start in (*starts, frames - window)]


def blend_weights(windows: list[slice], overlap: int) -> list[Float[Tensor, " _frames"]]:
    """Weight of each window's frames: 1, falling linearly over ``overlap`` frames towards a neighbouring window, never 0."""
    weights = []
    for index, window in enumerate(windows):
        length = window.stop - window.start
        weight = torch.ones(length)
        ramp = (torch.arange(min(overlap, length)) + 1) / (overlap + 1)
        if index > 0:
            weight[: len(ramp)] = ramp
        if index < len(windows) - 1:
            weight[length - len(ramp) :] = torch.minimum(weight[length - len(ramp) :], ramp.flip(0))
        weights.append(weight)
    return weights


def denoise_windows(
    denoise: WindowDenoiser, windows: list[slice], overlap: int
) -> Callable[[Float[Tensor, "frames channels height width"], Tensor], Float[Tensor, "frames channels height width"]]:
    """A denoiser of the whole clip out of one for windows: at every noise level the estimates of all windows are blended.

    Neighbouring windows see the same noise in the frames that they share, and agree on them at every step (after Bar-Tal et al.
    2023, who do this in space).
    """
    weights = blend_weights(windows, overlap)

    def denoise_clip(x: Tensor, sigma: Tensor) -> Tensor:
        if len(windows) == 1:
            return denoise(windows[0], x, sigma)
        total, weight_sum = torch.zeros_like(x), x.new_zeros(len(x), 1, 1, 1)
        for window, weight in zip(windows, weights, strict=True):
            share = weight.to(x)[:, None, None, None]
            total[window] += share * denoise(window, x[window], sigma)
            weight_sum[window] += share
        return total / weight_sum

    return denoise_clip
