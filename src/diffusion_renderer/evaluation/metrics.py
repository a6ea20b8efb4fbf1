"""Metrics: each knows its name, unit and direction, and which pixels count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """A number for an estimate against the truth, both ``frames channels height width``, over the pixels of a mask.

    ``better(a, b)`` tells whether a beats b, so that nobody else needs to know the direction.
    """

    name: str
    unit: str
    higher_is_better: bool
    compute: Callable[[Tensor, Tensor, Tensor], float]

    def __call__(
        self,
        estimate: Float[Tensor, "frames channels height width"],
        truth: Float[Tensor, "frames channels height width"],
        mask: Bool[Tensor, "frames 1 height width"],
    ) -> float:
        return self.compute(estimate, truth, mask)

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is the better value."""
        return a > b if self.higher_is_better else a < b


def mean_squared_error(estimate: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean over the mask's pixels and all channels; nan for an empty mask."""
    error = ((estimate - truth) ** 2).mean(dim=1, keepdim=True)
    return error[mask].mean().item()


def psnr(estimate: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], dB; at most 100."""
    return -10 * torch.log10(torch.tensor(max(mean_squared_error(estimate, truth, mask), 1e-10))).item()


def rmse(estimate: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Root of the mean squared error."""
    return mean_squared_error(estimate, truth, mask) ** 0.5


def angles(estimate: Tensor, truth: Tensor) -> Float[Tensor, "frames 1 height width"]:
    """Angle between vectors, degrees. Vectors need not be unit; a zero vector counts as 90 degrees."""
    cosine = torch.nn.functional.cosine_similarity(estimate, truth, dim=1, eps=1e-8).clamp(-1, 1)
    return torch.rad2deg(torch.acos(cosine))[:, None]


def mean_angular_error(estimate: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean angle between normals, degrees."""
    return angles(estimate, truth)[mask].mean().item()


PSNR = Metric("PSNR", "dB", True, psnr)
RMSE = Metric("RMSE", "", False, rmse)
ANGLE = Metric("mean angular error", "deg", False, mean_angular_error)
