"""Clips longer than the network's window: overlapping windows, blended where they overlap, denoised in order.

At every noise level the estimates of all windows are blended before the sampler goes on (after Bar-Tal et al. 2023, who do this
in space): neighbouring windows start from the same noise in the frames that they share and agree on them at every step. Nothing
of this asks for the whole clip at once: a frame's sample depends on the windows near it only, one window farther with every
call of the network. `sample_windows` goes along the clip like a wave, the first call of a window beside the second call of the
window before it, and lets frames go as soon as nothing waits for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

#: Denoised estimate of the frames of one window, given those frames, their noisy latents and the noise level.
WindowDenoiser = Callable[[slice, Tensor, Tensor], Tensor]
#: ``(denoise, x)`` to the sample. Must treat every element of ``x`` alike, and call ``denoise(x, sigma)`` at the same noise
#: levels whatever ``x`` is: the solvers of `diffusion` with their noise levels filled in.
Solve = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor], Tensor]


def plan_windows(frames: int, window: int, overlap: int) -> list[slice]:
    """Windows of ``window`` frames that cover the clip, each sharing at least ``overlap`` frames with the one before.

    The last window ends with the clip, so it may share more. A clip that fits into one window is one window.
    """
    if frames <= window:
        return [slice(0, frames)]
    starts = range(0, frames - window, max(1, window - overlap))
    return [slice(start, start + window) for start in (*starts, frames - window)]


def blend_weights(windows: list[slice], overlap: int) -> list[Float[Tensor, " _frames"]]:
    """Weight of each window's frames: 1, falling as a squared sine over ``overlap`` frames towards a neighbour, never 0.

    The outermost frames of a window are its worst: on a real clip two windows differed by 0.057 there and 0.021 inside (latents
    of the `tiny` weights). So they count for little, and the weights of two neighbours add up to 1.
    """
    weights = []
    for index, window in enumerate(windows):
        length = window.stop - window.start
        weight = torch.ones(length)
        ramp = torch.sin((torch.arange(min(overlap, length)) + 1) / (overlap + 1) * torch.pi / 2) ** 2
        if index > 0:
            weight[: len(ramp)] = ramp
        if index < len(windows) - 1:
            weight[length - len(ramp) :] = torch.minimum(weight[length - len(ramp) :], ramp.flip(0))
        weights.append(weight)
    return weights


def first_window(windows: list[slice], frame: int, calls: int = 1) -> int:
    """Index of the window to begin with, so that frames from ``frame`` on come out as if begun with the first.

    With each of the network's ``calls`` a frame comes to depend on the windows that share frames with those it depended on.
    """
    index = next(i for i, window in enumerate(windows) if window.stop > frame)
    for _ in range(calls - 1):
        index = next(i for i, window in enumerate(windows) if window.stop > windows[index].start)
    return index


@dataclass(frozen=True)
class Sampled:
    """Neighbouring frames that are done.

    Attributes
    ----------
    frames : which of the clip.
    latents : their sample.
    estimates : by window (an index), what each of the windows that share these frames said at the last call.
    weights : by window, how much of ``latents`` that is; the weights of a frame sum to 1.
    needed : the first frame that any window is still to be asked about.
    """

    frames: slice
    latents: Float[Tensor, "frames channels height width"]
    estimates: dict[int, Float[Tensor, "frames channels height width"]]
    weights: dict[int, Float[Tensor, " frames"]]
    needed: int


class _NotYet(Exception):
    """Carries what the sampler asks next out of it."""

    def __init__(self, x: Tensor, sigma: Tensor) -> None:
        super().__init__()
        self.asked = (x, sigma)


@dataclass
class _Segment:
    """Frames that the same windows share, and where the sampler is with them.

    The sampler is a function that calls us, so it is run again from the start with the answers known so far: a few sums per
    frame, nothing beside a call of the network.
    """

    frames: slice
    start: Tensor
    weights: dict[int, Tensor]
    answers: list[Tensor] = field(default_factory=list)
    estimates: dict[int, Tensor] = field(default_factory=dict)
    asked: tuple[Tensor, Tensor] | None = None
    result: Tensor | None = None

    def proceed(self, solve: Solve) -> None:
        """To the sampler's next question, or to its result."""
        known = iter(self.answers)

        def answer(x: Tensor, sigma: Tensor) -> Tensor:
            for estimate in known:
                return estimate
            raise _NotYet(x, sigma)

        self.asked = None
        try:
            self.result = solve(answer, self.start)
            self.answers.clear()
        except _NotYet as pause:
            self.asked = pause.asked
            self.estimates = {}

    def take(self, window: int, estimate: Tensor) -> bool:
        """Note what a window says; True when all have, and their blend is the answer."""
        self.estimates[window] = estimate
        if len(self.estimates) < len(self.weights):
            return False
        if len(self.weights) == 1:
            self.answers.append(estimate)
            return True
        total, weight_sum = torch.zeros_like(estimate), estimate.new_zeros(len(estimate), 1, 1, 1)
        for index, weight in self.weights.items():
            share = weight.to(estimate)[:, None, None, None]
            total += share * self.estimates[index]
            weight_sum += share
        self.answers.append(total / weight_sum)
        return True


@dataclass
class _Window:
    index: int
    frames: slice
    segments: list[_Segment]
    calls: int = 0

    @property
    def ready(self) -> bool:
        return all(part.asked is not None and len(part.answers) == self.calls for part in self.segments)

    @property
    def done(self) -> bool:
        return all(part.result is not None for part in self.segments)

    def call(self, denoise: WindowDenoiser, solve: Solve) -> None:
        asked = [part.asked for part in self.segments if part.asked is not None]
        x = asked[0][0] if len(asked) == 1 else torch.cat([each for each, _ in asked])
        estimate = denoise(self.frames, x, asked[0][1])
        self.calls += 1
        pieces = estimate.split([len(each) for each, _ in asked])
        for part, piece in zip(self.segments, pieces, strict=True):
            if part.take(self.index, piece):
                part.proceed(solve)


def sample_windows(
    solve: Solve,
    denoise: WindowDenoiser,
    start: Callable[[slice], Tensor],
    windows: Sequence[slice],
    overlap: int,
    first: int = 0,
) -> Iterator[Sampled]:
    """The sample of a clip, in order, each frame as soon as it is done.

    Held at a time: latents of about one window per call of the network, each with the answers that it had so far.

    Parameters
    ----------
    start : what the sampler starts from in some frames, "frames channels height width".
    windows, overlap : as `plan_windows` makes them.
    first : the window to begin with. Frames that it shares with windows before it come out otherwise than from the whole clip:
        `first_window` says which window to take.
    """
    weights = blend_weights(list(windows), overlap)
    live: deque[_Window] = deque()
    waiting: deque[_Segment] = deque()
    known: dict[int, _Segment] = {}
    for index in range(first, len(windows)):
        opened = _open(index, list(windows), weights, first, start, known)
        for part in opened.segments:
            if part.asked is None and part.result is None:
                part.proceed(solve)
                waiting.append(part)
        live.append(opened)
        while ready := [each for each in live if each.ready]:
            for each in ready:
                each.call(denoise, solve)
        while live and live[0].done:
            live.popleft()
        following = windows[index + 1].start if index + 1 < len(windows) else windows[-1].stop
        needed = min([each.frames.start for each in live] + [following])
        while waiting and (latents := waiting[0].result) is not None:
            part = waiting.popleft()
            known.pop(part.frames.start, None)
            shares = sum(part.weights.values())
            given = {window: weight / shares for window, weight in part.weights.items()}
            yield Sampled(part.frames, latents, part.estimates, given, needed)


def _open(
    index: int,
    windows: list[slice],
    weights: list[Tensor],
    first: int,
    start: Callable[[slice], Tensor],
    known: dict[int, _Segment],
) -> _Window:
    """A window with its segments: those that it shares with earlier windows, and new ones."""
    window = windows[index]
    near = [other for other in range(first, len(windows)) if _shares(windows[other], window)]
    edges = {edge for other in near for edge in (windows[other].start, windows[other].stop)}
    inside = sorted(edge for edge in edges if window.start <= edge <= window.stop)
    segments = []
    for begin, end in pairwise(inside):
        if begin not in known:
            frames = slice(begin, end)
            given = {
                other: weights[other][begin - windows[other].start : end - windows[other].start]
                for other in near
                if _shares(windows[other], frames)
            }
            known[begin] = _Segment(frames, start(frames), given)
        segments.append(known[begin])
    return _Window(index, window, segments)


def _shares(one: slice, other: slice) -> bool:
    return one.start < other.stop and other.start < one.stop
