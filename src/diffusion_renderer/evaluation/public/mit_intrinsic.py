"""MIT intrinsic images (Grosse et al., ICCV 2009): reflectance and shading of single objects, up to scale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.readers.common import read_display
from diffusion_renderer.datagen.readers.mit_intrinsic import read_mit_intrinsic
from diffusion_renderer.evaluation.public.benchmark import Benchmark, Case, Estimate, Pair, albedo
from diffusion_renderer.evaluation.public.lmse import LMSE, SI_MSE

#: Reflectance below this is black: the shading behind it cannot be told.
_BLACK = 1e-4


def read(folder: Path) -> Iterator[Case]:
    """The 16 objects of the paper's tables."""
    samples = read_mit_intrinsic(folder, "evaluation")
    return (_case(folder, sample) for sample in samples)


def _case(folder: Path, sample: Sample) -> Case:
    picture = folder / sample.meta["files"][0]
    shading = read_display(picture.with_name("shading.png"))[None, :1]
    linear = read_display(picture)[None]
    if shading.shape[-2:] != linear.shape[-2:]:
        found = f"{shading.shape[-1]}x{shading.shape[-2]} and {linear.shape[-1]}x{linear.shape[-2]}"
        raise InputError(f"shading.png of the size of {picture}", found, "fetch the object again")
    return Case(sample, {"shading": shading, "linear": linear})


def compare(task: str, case: Case, estimate: Estimate, light: int) -> dict[str, Pair]:
    """Grey reflectance, and the shading that follows from it."""
    reflectance = albedo(estimate) if isinstance(estimate, GBuffer) else None
    if reflectance is None:
        return {}
    mask, truth = case.sample.gbuffer.mask, _grey(case.sample.gbuffer.diffuse_albedo)
    grey = _grey(reflectance)
    shading = torch.where(grey.abs() > _BLACK, _grey(case.extra["linear"]) / grey, 0.0)
    # A value that is not finite must stay one: `where` would make a black pixel of nan.
    shading = torch.where(grey.isfinite(), shading, torch.nan)
    return {"diffuse_albedo": Pair(grey, truth, mask), "shading": Pair(shading, case.extra["shading"], mask)}


def _grey(image: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames 1 height width"]:
    """The mean of the channels, as the authors' code makes grey images."""
    return image.mean(dim=1, keepdim=True)


MIT_INTRINSIC = Benchmark(
    name="mit-intrinsic",
    source="Grosse et al., Ground truth dataset and baseline evaluations for intrinsic image algorithms, ICCV 2009, and its "
    "code (intrinsic.py, comparison.py)",
    rules="Linear values; colour reflectance becomes grey as the mean of its channels. LMSE: windows of 20 pixels every 10, "
    "best scale in each. The paper's score of an object is the mean of the LMSE of reflectance and of shading. Shading is the "
    "input picture divided by the estimated reflectance. Reflectance is the diffuse albedo, else the base colour. 16 objects; "
    "the input is the picture without its mirror component, as in the authors' code.",
    limits=(
        "parameters are not tuned on the other objects (the paper's hold-one-out cross-validation): a network has none to tune",
        "later papers use other splits and LMSE of colour images; their figures do not compare",
        "si-MSE is not in the paper; one scale for the object",
    ),
    columns={"inverse": (("diffuse_albedo", LMSE), ("shading", LMSE), ("diffuse_albedo", SI_MSE), ("shading", SI_MSE))},
    read=read,
    compare=compare,
)
