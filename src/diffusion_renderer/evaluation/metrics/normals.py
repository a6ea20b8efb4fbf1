"""Metrics of normals: angles to the truth."""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.evaluation.metrics.base import Context, Metric, gathered

#: Shorter vectors have no direction.
SHORTEST = 1e-6
#: Angles, degrees, below which the share of normals is reported.
THRESHOLDS = (5.0, 7.5, 11.25, 22.5, 30.0)


def angles(estimate: Float[Tensor, "pixels 3"], truth: Float[Tensor, "pixels 3"]) -> Float[Tensor, "pixels"]:
    """Angle between vectors, degrees. They need not be unit; a zero vector counts as 90 degrees from every other."""
    # The arc tangent is exact at 0 and 180 degrees, where the arc cosine loses half the digits.
    across, along = torch.linalg.cross(estimate, truth).norm(dim=-1), (estimate * truth).sum(dim=-1)
    known = (estimate.norm(dim=-1) > SHORTEST) & (truth.norm(dim=-1) > SHORTEST)
    return torch.where(known, torch.rad2deg(torch.atan2(across, along)), 90.0)


def _errors(estimate: Tensor, truth: Tensor, counted: Tensor) -> Float[Tensor, "pixels"]:
    """Angular errors where the truth has a direction: a zero vector there means that nothing was hit."""
    e, t = gathered(estimate, counted), gathered(truth, counted)
    known = t.norm(dim=-1) > SHORTEST
    return angles(e[known], t[known])


def mean_angle(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Mean angle, degrees; nan when the truth has no direction anywhere."""
    return float(_errors(estimate, truth, counted).mean())


def median_angle(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Median angle, degrees; the lower one of two middle values."""
    errors = _errors(estimate, truth, counted)
    return float(errors.median()) if len(errors) else math.nan


def share_within(degrees: float, estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Share of the normals with an angle below ``degrees``, %."""
    return 100 * float((_errors(estimate, truth, counted) < degrees).double().mean())


ANGLE = Metric("mean angular error", "deg", False, mean_angle, worst=180.0, spaces=("vector",))
MEDIAN_ANGLE = Metric("median angular error", "deg", False, median_angle, worst=180.0, spaces=("vector",))
SHARES = {
    f"angle<{limit:g}": Metric(f"< {limit:g}°", "%", True, partial(share_within, limit), 100.0, 0.0, spaces=("vector",))
    for limit in THRESHOLDS
}
