"""MIT multi-illumination (Murmann et al., ICCV 2019): a real scene under one flash direction, relit to others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.readers import read_multi_illumination
from diffusion_renderer.evaluation.metrics import METRICS
from diffusion_renderer.evaluation.public.benchmark import Benchmark, Case, Estimate, Pair, pooled

#: The input's direction (a flash from behind the camera) and those to relight to, of the authors' relighting evaluation.
SOURCE, TARGETS = 0, (5, 7, 12, 4, 16, 6, 17, 11)
#: Pictures are compared at mip level 3, 750 x 500.
WIDTH = 750
#: Pixels of the pictures in which meta.json gives the boxes of the two balls.
_FULL = (6020, 4024)


def read(folder: Path) -> Iterator[Case]:
    """The test scenes that have a probe for every light."""
    samples = read_multi_illumination(folder, "test")
    return (_case(folder, sample) for sample in samples)


def _case(folder: Path, sample: Sample) -> Case:
    directions = [light["direction"] for light in sample.meta["lights"]]
    chosen = [directions.index(target) for target in TARGETS if target in directions]
    if not sample.relit or directions[0] != SOURCE or not chosen:
        expected = f"the directions {SOURCE} and some of {', '.join(map(str, TARGETS))} with probes in {sample.meta['scene']}"
        found = f"the directions {', '.join(map(str, directions))}" if sample.relit else "no probe for every direction"
        raise InputError(expected, found, "fetch the scene's images and its chrome probes of one format")
    relit = tuple(replace(other, clip=_small(other.clip)) for other in (sample.relit[index - 1] for index in chosen))
    lights = [sample.meta["lights"][index] for index in (0, *chosen)]
    clip = _small(sample.clip)
    scene = folder / sample.meta["scene"]
    without = _outside_balls(scene if scene.is_dir() else folder, clip)
    return Case(replace(sample, clip=clip, relit=relit, meta={**sample.meta, "lights": lights}), {"mask": without.float()})


def _small(clip: Clip) -> Clip:
    """The clip averaged down to the compared size, in linear light; what was clipped stays clipped."""
    if clip.frames.shape[-1] < 2 * WIDTH:
        return clip
    return replace(clip, frames=srgb_oetf(pooled(srgb_eotf(clip.frames), WIDTH)))


def _outside_balls(scene: Path, clip: Clip) -> Bool[Tensor, "1 1 height width"]:
    """Every pixel but those in the boxes of the two balls, which a system need not paint; all without a meta.json."""
    width, height = clip.size
    mask = torch.ones(1, 1, height, width, dtype=torch.bool)
    path = scene / "meta.json"
    if not path.is_file():
        return mask
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        boxes = [notes[ball]["bounding_box"] for ball in ("chrome", "gray")]
        edges = [(box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]) for box in boxes]
    except (ValueError, KeyError, TypeError) as error:
        expected = f'{{"chrome": {{"bounding_box": {{"x", "y", "w", "h"}}}}, "gray": ...}} in {path}'
        raise InputError(expected, f"{type(error).__name__}: {error}", "fetch the file again, or remove it") from error
    for left, top, right, bottom in edges:
        columns = slice(int(left / _FULL[0] * width), int(-(-right * width // _FULL[0])))
        rows = slice(int(top / _FULL[1] * height), int(-(-bottom * height // _FULL[1])))
        mask[..., rows, columns] = False
    return mask


def compare(task: str, case: Case, estimate: Estimate, light: int) -> dict[str, Pair]:
    """The relit frame against the photograph under that light, as sRGB."""
    if not isinstance(estimate, Clip):
        return {}
    truth = case.sample.relit[light - 1].clip if light else case.sample.clip
    return {"rgb": Pair(estimate.frames, truth.frames, case.extra["mask"] > 0.5)}


MULTI_ILLUMINATION = Benchmark(
    name="multi-illumination",
    source="Murmann et al., A dataset of multi-illumination images in the wild, ICCV 2019, and the relighting "
    "evaluation in its code",
    rules="Test scenes (everett_*) at 750 x 500: from direction 0 to directions 5, 7, 12, 4, 16, 6, 17 and 11. sRGB in [0, 1] "
    "after each photograph's own exposure (its 90th percentile at 0.8), without the boxes of the two balls.",
    limits=(
        "the target light is the chrome ball unwrapped: it holds at the ball's place, and what is behind the ball is lost",
        "the authors divide linear light by its 90th percentile and encode with gamma 1/2.2; here luminance and the sRGB curve",
        "the field of view is unknown; G-buffers are estimates, there are no true ones",
        "the boxes in meta.json are taken to be in pixels of 6020 x 4024; this is read from users' code, not documented",
        "later papers draw random pairs of directions and correct colours per picture; their figures do not compare",
    ),
    columns={"relight": tuple(("rgb", METRICS[name]) for name in ("psnr", "si-psnr", "ssim", "lpips", "rmse"))},
    read=read,
    compare=compare,
)
