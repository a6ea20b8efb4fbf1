"""Metrics of clips as clips: flicker on the surfaces, and ColorVideoVDP."""

from __future__ import annotations

import math
from functools import cache

from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.evaluation.metrics.base import Context, Metric, box, neutral_outside, not_installed
from diffusion_renderer.evaluation.motion import Motion

#: The display that ColorVideoVDP simulates; 75.4 pixels per degree. Its own default.
JOD_DISPLAY = "standard_4k"
#: The smallest picture that ColorVideoVDP is given.
JOD_LEAST = 64


def change(
    clip: Float[Tensor, "frames channels height width"], motion: Motion, pair: int
) -> Float[Tensor, "channels height width"]:
    """``x[t + 1](q) - x[t](p)`` for t = ``pair`` and every pixel p of frame t.

    q is where the surface point of p is in frame t + 1. Without meaning where the motion is not valid.
    """
    return motion.read(pair, clip[pair + 1]) - clip[pair]


def temporal_instability(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Mean of ``|(e[t+1](q) - e[t](p)) - (g[t+1](q) - g[t](p))|`` over channels, pixels and pairs of frames.

    e is the estimate, g the truth, p a pixel of frame t and q the place of its surface point in frame t + 1 by the truth's
    geometry and poses. Zero for the truth itself, and for an error that stays the same on the surface; an estimate that jumps
    by d from frame to frame has d. What the truth itself changes (moving lights, highlights) is not held against anybody.

    Only points that both frames see count, and only where all four pixels around q do; edges of depth and the background do
    not. An error that is constant on the screen while the camera moves is a change on the surface, and counts. Blind to slow
    drift: the frames compared are neighbours. nan for a clip of one frame, and when no point is seen twice.
    """
    motion = context.motion
    total, pixels = 0.0, 0
    for pair in range(len(truth) - 1):
        seen = _seen_twice(motion, pair, counted)
        error = change(neutral_outside(estimate, counted), motion, pair) - change(neutral_outside(truth, counted), motion, pair)
        total += float(error.abs().mean(dim=0)[seen].double().sum())
        pixels += int(seen.sum())
    return total / pixels if pixels else math.nan


def _seen_twice(motion: Motion, pair: int, counted: Bool[Tensor, "frames 1 height width"]) -> Bool[Tensor, "height width"]:
    """Pixels of the first frame whose point counts in both."""
    # Four weights of a float32 sum to 1 within 1e-6; a pixel that is not there takes away its whole weight.
    there = motion.read(pair, counted[pair + 1].float())[0] > 1 - 1e-4
    return motion.valid[pair] & counted[pair, 0] & there


def jod(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Quality by ColorVideoVDP (Mantiuk et al. 2024), in just-objectionable differences: 10 for no visible one.

    Seen on `JOD_DISPLAY` at ``context.fps``, cut to the box around the mask: the model pools over the whole picture. Strong
    distortions go below 0. A clip of one frame is judged as a still image.
    """
    rows, columns = box(counted, JOD_LEAST)
    shown = [neutral_outside(p, counted).float().clamp(0.0, 1.0)[..., rows, columns] for p in (estimate, truth)]
    frames_per_second = context.fps if len(truth) > 1 else 0
    quality, _ = _model().predict(*shown, dim_order="FCHW", frames_per_second=frames_per_second)
    return float(quality)


@cache
def _model():
    from pycvvdp import cvvdp

    return cvvdp(display_name=JOD_DISPLAY, quiet=True)


def jod_missing() -> str | None:
    """Why JOD is unavailable."""
    return not_installed("pycvvdp", "cvvdp")


TEMPORAL = Metric(
    "temporal instability",
    "",
    False,
    temporal_instability,
    worst=2.0,
    spaces=("sRGB", "linear"),
    needs_clip=True,
    needs_motion=True,
)
JOD = Metric("JOD", "", True, jod, 10.0, -math.inf, "box", ("sRGB",), least_size=JOD_LEAST, reason=jod_missing)
