"""Errors of intrinsic images, up to scale: LMSE over windows and si-MSE (Grosse et al., ICCV 2009, and its code)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.evaluation.metrics import Context, Metric
from diffusion_renderer.evaluation.metrics.base import gathered

#: Side of LMSE's windows, pixels; they overlap by half.
WINDOW = 20


def local_mse(
    estimate: Float[Tensor, "frames channels height width"],
    truth: Float[Tensor, "frames channels height width"],
    mask: Bool[Tensor, "frames 1 height width"],
    window: int = WINDOW,
) -> float:
    """LMSE, the paper's equations 8 and 9: error after the best scale in each window, over the truth's energy in the windows.

    Windows of ``window`` x ``window`` pixels start every ``window // 2`` pixels from the top left; those that would leave the
    picture are left out, as in the authors' code, so that up to ``window // 2 - 1`` rows and columns at the far edges are not
    seen. Only pixels of the mask count. Each channel of each window has its own scale. 0 for a truth known up to a scale per
    window, 1 for an estimate of zero; nan when the truth is zero everywhere.
    """
    inside = mask.double()
    e, t = (torch.where(mask, image, 0.0).double() for image in (estimate, truth))
    energy_e, energy_t, shared = (_window_sums(product * inside, window) for product in (e * e, t * t, e * t))
    # With the best scale shared / energy_e, the error of a window is energy_t - shared^2 / energy_e.
    explained = torch.where(energy_e > 1e-12, shared**2 / energy_e.clamp_min(1e-12), 0.0)
    total = energy_t.sum()
    return float((energy_t - explained).clamp_min(0.0).sum() / total) if total > 0 else float("nan")


def _window_sums(values: Float[Tensor, "frames channels height width"], window: int) -> Float[Tensor, "frames channels _r _c"]:
    return torch.nn.functional.avg_pool2d(values, window, stride=max(1, window // 2)) * window**2


def scale_invariant_mse(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Mean squared error after the one best scale, over the pixels that count, channels and frames."""
    e, t = gathered(estimate, counted), gathered(truth, counted)
    energy = (e * e).sum()
    scale = (e * t).sum() / energy if energy > 0 else 0.0
    return float(((scale * e - t) ** 2).mean())


def _lmse(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    return local_mse(estimate, truth, counted)


LMSE = Metric("LMSE", "", False, _lmse, worst=1.0, spaces=("linear",), least_size=WINDOW)
SI_MSE = Metric("si-MSE", "", False, scale_invariant_mse, spaces=("linear",))
