"""InteriorVerse's test split (Zhu et al., SIGGRAPH Asia 2022): all buffers of rendered rooms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen.readers import read_interiorverse
from diffusion_renderer.evaluation.metrics import METRICS
from diffusion_renderer.evaluation.public.benchmark import Benchmark, Case, Estimate, Pair

_ALBEDO = ("psnr", "si-psnr", "ssim", "lpips", "si-lpips")
_COLUMNS = {
    "basecolor": _ALBEDO,
    "normal": ("angle-mean", "angle-median"),
    "depth": ("absrel", "delta1"),
    "roughness": ("rmse",),
    "metallic": ("rmse",),
}


def read(folder: Path) -> Iterator[Case]:
    """The stills of the scenes in test.txt."""
    return (Case(sample) for sample in read_interiorverse(folder, "test"))


def compare(task: str, case: Case, estimate: Estimate, light: int) -> dict[str, Pair]:
    """Every buffer that the estimate has; base colour as sRGB, the others as they are."""
    if not isinstance(estimate, GBuffer):
        return {}
    truth, pairs = case.sample.gbuffer, {}
    for what in _COLUMNS:
        value, true = getattr(estimate, what), getattr(truth, what)
        if value is None:
            continue
        if what == "basecolor":
            # The curve clamps, which would make an infinite value the brightest one.
            value = torch.where(value.isfinite(), srgb_oetf(value), torch.nan)
            true = srgb_oetf(true)
        pairs[what] = Pair(value, true, truth.mask)
    return pairs


INTERIORVERSE = Benchmark(
    name="interiorverse",
    source="Zhu et al., Learning-based inverse rendering of complex indoor scenes with differentiable Monte Carlo raytracing, "
    "SIGGRAPH Asia 2022 (the data); base colour up to a scale per channel as in DiffusionRenderer, CVPR 2025, section 5",
    rules="Pixels whose buffers are all valid. Base colour as sRGB in [0, 1], as it is and after the best scale per channel "
    "(si-); normals as angles; depth after the best scale and shift; roughness and metallic as they are.",
    limits=(
        "there is no official protocol: papers that report on this split need not agree on masks, scales, colour space and "
        "size, so that only systems that are all run here compare; pictures are compared in full size",
        "LPIPS is AlexNet's; papers rarely say which one theirs is",
    ),
    columns={"inverse": tuple((what, METRICS[name]) for what, names in _COLUMNS.items() for name in names)},
    read=read,
    compare=compare,
)
