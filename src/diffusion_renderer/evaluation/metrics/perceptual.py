"""Metrics of pictures as people see them, from libraries: SSIM and LPIPS (torchmetrics), FLIP (flip-evaluator)."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import one_line
from diffusion_renderer.evaluation.metrics.base import Context, Metric, box, gathered, neutral_outside, not_installed
from diffusion_renderer.evaluation.metrics.pixelwise import scaled

#: Set to 1, this environment variable allows LPIPS to download the weights of its backbone.
DOWNLOAD = "DIFFUSION_RENDERER_DOWNLOAD"
#: The extra that brings torchmetrics and flip-evaluator.
EXTRA = "diffusion-renderer[evaluation]"
#: The box that LPIPS looks at is at least this wide and high, for its backbone halves a picture five times. AlexNet cannot be
#: applied below `LPIPS_SMALLEST`.
LPIPS_LEAST, LPIPS_SMALLEST = 64, 32
#: Pixels per degree of visual angle at which FLIP looks: its own default, a 0.7 m wide display of 3840 pixels, 0.7 m away.
FLIP_PIXELS_PER_DEGREE = 67.02


def ssim(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window of sigma 1.5 (11 x 11), K1 = 0.01, K2 = 0.03, range 1, per
    channel; the map is averaged over pixels that count, channels and frames. Frame by frame, so time does not enter."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    e, t = neutral_outside(estimate, counted), neutral_outside(truth, counted)
    maps = [
        structural_similarity_index_measure(e[i : i + 1], t[i : i + 1], data_range=1.0, return_full_image=True)[1]
        for i in range(len(e))
    ]
    return float(gathered(torch.cat(maps), counted).mean())


def flip(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """FLIP for LDR pictures (Andersson et al. 2020): mean of the error map over pixels that count and frames.

    Seen at `FLIP_PIXELS_PER_DEGREE`, as one pixel of the picture on one of the display. Values beyond [0, 1] are shown as a
    display does, clamped.
    """
    from flip_evaluator import evaluate

    e, t = (_displayed(neutral_outside(p, counted)) for p in (estimate, truth))
    maps = [_flip_map(evaluate, a, b) for a, b in zip(t, e, strict=True)]
    return float(gathered(torch.stack(maps), counted).mean())


def _flip_map(evaluate, truth: Tensor, estimate: Tensor) -> Float[Tensor, "1 height width"]:
    images = [np.ascontiguousarray(rearrange(p, "c h w -> h w c").cpu().numpy(), np.float32) for p in (truth, estimate)]
    error, _, _ = evaluate(*images, "LDR", inputsRGB=True, applyMagma=False, computeMeanError=False, parameters={})
    return rearrange(torch.from_numpy(np.array(error, np.float32)), "h w 1 -> 1 h w")


def _displayed(picture: Tensor) -> Tensor:
    return picture.float().clamp(0.0, 1.0)


def lpips(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Learned perceptual distance (Zhang et al. 2018), AlexNet with the linear layers of version 0.1; mean over frames.

    Cut to the box around the mask, at least `LPIPS_LEAST` pixels where the picture has them: the distances of the backbone's
    layers are averaged over the picture, and their receptive fields are too wide for a mean over single pixels. Values are
    clamped to [0, 1], which is all the network was made for.
    """
    rows, columns = box(counted, LPIPS_LEAST)
    e, t = (_displayed(neutral_outside(p, counted))[..., rows, columns] for p in (estimate, truth))
    network = lpips_network()
    device = next(network.parameters()).device
    with torch.no_grad():
        distances = [float(network(e[i : i + 1].to(device), t[i : i + 1].to(device))) for i in range(len(e))]
    return sum(distances) / len(distances)


def si_lpips(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """LPIPS after `pixelwise.scaled`."""
    return lpips(scaled(estimate, truth, counted), truth, counted, context)


@cache
def lpips_network():
    """torchmetrics' LPIPS on images in [0, 1]; its backbone's weights come from the torch hub cache, else are downloaded."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    return _Stateless(metric.net)


class _Stateless(torch.nn.Module):
    """The network alone: torchmetrics' module would keep every score that it has seen."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.network(first, second, normalize=True)


def torchmetrics_missing() -> str | None:
    """Why SSIM is unavailable."""
    return not_installed("torchmetrics", f"torchmetrics ({EXTRA})")


def flip_missing() -> str | None:
    """Why FLIP is unavailable."""
    return not_installed("flip_evaluator", f"flip-evaluator ({EXTRA})")


def lpips_missing() -> str | None:
    """Why LPIPS is unavailable: a package, or the weights of AlexNet."""
    missing = torchmetrics_missing() or not_installed("torchvision", "torchvision, which holds AlexNet,")
    if missing or any(Path(torch.hub.get_dir(), "checkpoints").glob("alexnet-*.pth")):
        return missing
    if os.environ.get(DOWNLOAD) != "1":
        return f"AlexNet's weights are not in torch's hub cache (set {DOWNLOAD}=1 to download them)"
    return _download_failure()


@cache
def _download_failure() -> str | None:
    """Why the weights cannot be downloaded; tried once, for every try may wait for a network that is not there."""
    try:
        lpips_network()
    except (OSError, RuntimeError) as error:
        return f"AlexNet's weights cannot be downloaded ({one_line(f'{type(error).__name__}: {error}')})"
    return None


SSIM = Metric("SSIM", "", True, ssim, 1.0, -1.0, "map", ("sRGB",), least_size=11, reason=torchmetrics_missing)
FLIP = Metric("FLIP", "", False, flip, 0.0, 1.0, "map", ("sRGB",), reason=flip_missing)
LPIPS = Metric("LPIPS", "", False, lpips, 0.0, 1.0, "box", ("sRGB",), least_size=LPIPS_SMALLEST, reason=lpips_missing)
SI_LPIPS = Metric("si-LPIPS", "", False, si_lpips, 0.0, 1.0, "box", ("sRGB",), least_size=LPIPS_SMALLEST, reason=lpips_missing)
