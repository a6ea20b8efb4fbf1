"""Metrics of single values: PSNR, RMSE, MAE, and PSNR up to a scale."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.evaluation.metrics.base import Context, Metric, gathered

#: The PSNR of pictures that agree, dB. Without a cap one exact clip would make a mean infinite.
PSNR_CAP = 100.0


def mean_squared_error(estimate: Tensor, truth: Tensor, counted: Tensor) -> float:
    """Mean over pixels and channels."""
    return float(((gathered(estimate, counted) - gathered(truth, counted)) ** 2).mean())


def psnr(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], dB; at most `PSNR_CAP`. Of the mean squared error of the whole clip."""
    return -10 * math.log10(max(mean_squared_error(estimate, truth, counted), 10 ** (-PSNR_CAP / 10)))


def rmse(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Root of the mean squared error."""
    return mean_squared_error(estimate, truth, counted) ** 0.5


def mae(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Mean absolute error."""
    return float((gathered(estimate, counted) - gathered(truth, counted)).abs().mean())


def scaled(
    estimate: Float[Tensor, "frames channels height width"],
    truth: Float[Tensor, "frames channels height width"],
    counted: Bool[Tensor, "frames 1 height width"],
) -> Float[Tensor, "frames channels height width"]:
    """The estimate times one factor per channel for the whole clip: the one of least squared error over the pixels that count.

    The scale of base colour cannot be told from the light's; the paper's section 5 scores albedo this way ("three-channel
    scaling"). The factor is found in the values that are compared: with sRGB inputs it scales sRGB values, so that si-PSNR is
    never below PSNR; give linear values for a protocol that scales linear reflectance. A channel that is zero everywhere stays.
    """
    e, t = gathered(estimate, counted), gathered(truth, counted)
    energy = (e * e).sum(dim=0)
    factor = torch.where(energy > 0, (e * t).sum(dim=0) / energy.clamp_min(1e-30), 1.0)
    return (estimate.double() * factor[:, None, None]).float()


def si_psnr(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """PSNR after `scaled`."""
    return psnr(scaled(estimate, truth, counted), truth, counted, context)


PSNR = Metric("PSNR", "dB", True, psnr, best=PSNR_CAP, worst=-math.inf)
SI_PSNR = Metric("si-PSNR", "dB", True, si_psnr, best=PSNR_CAP, worst=-math.inf)
RMSE = Metric("RMSE", "", False, rmse)
MAE = Metric("MAE", "", False, mae)
