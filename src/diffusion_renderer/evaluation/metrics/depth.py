"""Metrics of depth. An estimate is known up to scale and shift, so both are fitted first, once for the whole clip."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.encoding import relative_depth
from diffusion_renderer.evaluation.metrics.base import Context, Metric, gathered
from diffusion_renderer.evaluation.metrics.pixelwise import rmse

#: The ratio of depths below which delta1 calls a pixel right.
DELTA = 1.25


def aligned(estimate: Float[Tensor, "pixels"], truth: Float[Tensor, "pixels"]) -> Float[Tensor, "pixels"]:
    """``s e + t`` of least squared error against the truth, with s >= 0.

    The usual fit (Ranftl et al. 2020, "Towards Robust Monocular Depth Estimation", section 5, there in inverse depth) lets s be
    negative, which forgives an estimate that takes near for far; here s is then 0, so that all depths become the mean.
    """
    e, t = estimate - estimate.mean(), truth - truth.mean()
    variance, shared = (e * e).mean(), (e * t).mean()
    scale = (shared / variance).clamp_min(0.0) if variance > 1e-18 else torch.zeros_like(variance)
    return scale * e + truth.mean()


def _pairs(estimate: Tensor, truth: Tensor, counted: Tensor) -> tuple[Float[Tensor, "pixels"], Float[Tensor, "pixels"]]:
    """(aligned estimate, truth) where the truth is a depth: ratios to 0 mean nothing."""
    e, t = gathered(estimate, counted)[:, 0], gathered(truth, counted)[:, 0]
    e, t = e[t > 0], t[t > 0]
    return (aligned(e, t) if len(t) else t), t


def absolute_relative(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """AbsRel: mean of ``|a - d| / d`` with a the aligned estimate.

    An aligned depth of zero or less is no depth, but its error is as large as it is: it counts with ``|a - d| / d >= 1``.
    """
    a, d = _pairs(estimate, truth, counted)
    return float(((a - d).abs() / d).mean())


def delta1(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Share of pixels with ``max(a / d, d / a) < 1.25``, %; an aligned depth of zero or less is a miss."""
    a, d = _pairs(estimate, truth, counted)
    return 100 * float(((a > 0) & (a < DELTA * d) & (d < DELTA * a)).double().mean())


def relative_rmse(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """RMSE of relative depth, as the networks see it (`core.encoding.relative_depth`): the truth is brought to [0, 1] by its
    nearest and farthest finite depth of the clip, those outside the mask included; the estimate by `as_relative`. No other
    alignment."""
    return rmse(as_relative(estimate), relative_depth(truth), counted, context)


def as_relative(estimate: Float[Tensor, "frames 1 height width"]) -> Float[Tensor, "frames 1 height width"]:
    """An estimate of depth as relative depth: as it is where it lies in [0, 1], for so inverse renderers return it (stretched,
    the best constant would become 0), else by its own nearest and farthest finite depth, +inf being background, 1.

    Depth in scene units cannot be told from relative depth where all of it is below 1. nan stays only in the first case.
    """
    known = estimate[~estimate.isnan()]
    return estimate if bool(((known >= 0) & (known <= 1)).all()) else relative_depth(estimate)


ABSREL = Metric("AbsRel", "", False, absolute_relative, spaces=("depth",))
DELTA1 = Metric("delta1", "%", True, delta1, best=100.0, worst=0.0, spaces=("depth",))
DEPTH_RMSE = Metric("relative depth RMSE", "", False, relative_rmse, worst=1.0, spaces=("depth",))
