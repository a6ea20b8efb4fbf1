"""Relative depth of neighbouring windows on one scale, so that it does not jump where one window hands over to the next."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.pipelines.windows import Sampled

#: Relative depths within this of 1 are background more or less; what changes depth fades out over them.
BACKGROUND_FADE = 0.05
#: Frames shared by two windows that are decoded from either of them, to compare their depths.
COMPARED_FRAMES = 2
#: Fewer pixels of surface than this part of the picture say nothing about scale.
LEAST_SURFACE = 0.02
#: Depths that agree less than this (Pearson) are of different scenes, as at a cut; then each window keeps its own scale.
LEAST_CORRELATION = 0.7
#: Every window's depth stays within these of what the network said: small errors of many windows must not add up.
GAINS, OFFSETS = (0.5, 2.0), (-0.5, 0.5)

#: Depth in [0, 1] of some latents, "frames 1 height width".
DecodeDepth = Callable[[Tensor], Tensor]


def surface_weight(depth: Float[Tensor, "frames 1 height width"]) -> Float[Tensor, "frames 1 height width"]:
    """1 on surfaces, falling to 0 where relative depth says background."""
    return ((1 - depth) / BACKGROUND_FADE).clamp(0.0, 1.0)


def fit_depth(
    other: Float[Tensor, "frames 1 height width"], reference: Float[Tensor, "frames 1 height width"]
) -> tuple[float, float] | None:
    """(gain, offset) that bring the depths of ``other`` to those of ``reference``, over the pixels that are surface in both.

    The least-squares line in both directions at once (the reduced major axis): the gain is the ratio of the standard
    deviations. A line fitted in one direction is too flat where both are noisy, and over many windows depth would go flat.
    It is then drawn to the identity by the share of the squared difference that it does not explain: where windows differ in
    other ways than scale, lines are chance, and chained over many windows they would drift.
    None where nothing can be said: hardly any surface, one constant depth, or depths that do not belong together.
    """
    seen = (other < 1 - BACKGROUND_FADE) & (reference < 1 - BACKGROUND_FADE)
    if seen.float().mean() < LEAST_SURFACE:
        return None
    pair = torch.stack((other[seen], reference[seen])).double()
    mean, deviation = pair.mean(dim=1), pair.std(dim=1, correction=0)
    if deviation.min() < 1e-3:
        return None
    correlation = ((pair[0] - mean[0]) * (pair[1] - mean[1])).mean() / deviation.prod()
    if correlation < LEAST_CORRELATION:
        return None
    gain = float(deviation[1] / deviation[0])
    offset = float(mean[1] - gain * mean[0])
    before, after = ((pair[0] - pair[1]) ** 2).mean(), ((gain * pair[0] + offset - pair[1]) ** 2).mean()
    explained = max(0.0, 1 - float(after / before.clamp_min(1e-12)))
    return 1 + explained * (gain - 1), explained * offset


class DepthAlignment:
    """Chains the windows of a clip: every window's depth is put on the scale of the one before it.

    With ``D = gain_i d_i + offset_i`` for the depth ``d_i`` of window i, the blend ``d = sum w_i d_i`` of the windows that
    share a frame is itself on the line ``D = (d + sum w_i offset_i / gain_i) / (sum w_i / gain_i)``: the decoded blend needs
    one gain and one offset per frame. Decoded depth is fitted and not latents, which are not affine in it.

    Parameters
    ----------
    decode : of the latents that windows estimate.
    first : (gain, offset) of the first window that is given.
    """

    def __init__(self, decode: DecodeDepth, first: tuple[float, float] = (1.0, 0.0)) -> None:
        self._decode, self._first = decode, first
        self._windows: dict[int, tuple[float, float]] = {}
        self._frames: dict[int, tuple[float, float]] = {}

    def window(self, index: int) -> tuple[float, float]:
        """(gain, offset) of a window, as far as it is known."""
        return self._windows.get(index, (1.0, 0.0))

    def add(self, part: Sampled) -> None:
        """Find the lines of a part's frames; parts come in the clip's order."""
        windows = sorted(part.estimates)
        for window in windows:
            if window not in self._windows:
                self._windows[window] = self._line(part, window)
        for window in [each for each in self._windows if each < windows[0]]:
            del self._windows[window]
        inverse, shift = torch.zeros(len(part.latents)), torch.zeros(len(part.latents))
        for window in windows:
            (gain, offset), weight = self._windows[window], part.weights[window]
            inverse, shift = inverse + weight / gain, shift + weight * offset / gain
        lines = torch.stack((1 / inverse, shift / inverse), dim=1).tolist()
        self._frames.update(zip(range(part.frames.start, part.frames.stop), map(tuple, lines), strict=True))

    def take(self, frames: slice) -> Float[Tensor, "frames 2"]:
        """Gain and offset of the decoded depth of each of the frames, which are then forgotten, as are those before them."""
        found = [self._frames[frame] for frame in range(frames.start, frames.stop)]
        self._frames = {frame: line for frame, line in self._frames.items() if frame >= frames.stop}
        return torch.tensor(found).reshape(-1, 2)

    def _line(self, part: Sampled, window: int) -> tuple[float, float]:
        if window - 1 not in part.estimates:
            return (1.0, 0.0) if self._windows else self._first
        middle = max(0, (len(part.latents) - COMPARED_FRAMES) // 2)
        some = slice(middle, middle + COMPARED_FRAMES)
        own, before = (self._decode(part.estimates[index][some]) for index in (window, window - 1))
        fitted = fit_depth(own, before)
        if fitted is None:
            return 1.0, 0.0
        gain, offset = self._windows[window - 1]
        chained = (gain * fitted[0], gain * fitted[1] + offset)
        return min(max(chained[0], GAINS[0]), GAINS[1]), min(max(chained[1], OFFSETS[0]), OFFSETS[1])


def apply_lines(
    depth: Float[Tensor, "frames 1 height width"], lines: Float[Tensor, "frames 2"]
) -> Float[Tensor, "frames 1 height width"]:
    """Depth on its lines, in [0, 1]; the background stays as it is."""
    gain, offset = (column[:, None, None, None] for column in lines.to(depth).unbind(dim=1))
    moved = (gain * depth + offset).clamp(0.0, 1.0)
    return depth + surface_weight(depth) * (moved - depth)
