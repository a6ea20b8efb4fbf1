"""How the two renderers are scored on clips with ground truth.

Buffers are compared where the camera saw a surface, base colour also over the whole picture, like relit frames. Base colour and
relit frames are compared as sRGB in [0, 1], normals as angles, roughness and metallic as they are, depth as relative depth. A
figure is the mean over clips of a clip's figure; a constant baseline is the best one for the very clips that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.evaluation.baselines import base_color_times_light, best_constant, best_constant_normal
from diffusion_renderer.evaluation.metrics import ANGLE, PSNR, RMSE, Metric
from diffusion_renderer.evaluation.tables import Table

Inverse = Callable[[Clip], GBuffer]
Forward = Callable[..., Clip]


@dataclass(frozen=True)
class Score:
    """One metric of one buffer: the model's mean over clips, the baseline's, and the clips on which the model is better."""

    what: str
    metric: Metric
    model: float
    baseline: float
    baseline_name: str
    wins: int
    clips: int

    def row(self) -> tuple[str | float, ...]:
        """A table row; the last cells put the model beside its baseline."""
        if self.metric.higher_is_better:
            shown = f"{self.model - self.baseline:+.2f} {self.metric.unit}"
        else:
            shown = f"x {self.model / self.baseline:.2f}" if self.baseline > 0 else "baseline is exact"
        unit = f" ({self.metric.unit})" if self.metric.unit else ""
        name = f"{self.metric.name}{unit}"
        return self.what, name, self.model, self.baseline, self.baseline_name, shown, f"{self.wins}/{self.clips}"


COLUMNS = ("buffer", "metric", "model", "baseline", "baseline is", "model against it", "clips won")


def _masks(clips: Sequence[Sample]) -> list[Bool[Tensor, "frames 1 height width"]]:
    return [clip.gbuffer.mask if clip.gbuffer.mask is not None else torch.isfinite(clip.gbuffer.depth) for clip in clips]


def _gathered(clips: Sequence[Sample], masks: Sequence[Tensor], name: str) -> Float[Tensor, "count channels"]:
    """Every valid value of a buffer, over all clips."""
    parts = (
        rearrange(encoded(clip.gbuffer, name), "f c h w -> f h w c")[m[:, 0]] for clip, m in zip(clips, masks, strict=True)
    )
    return torch.cat(list(parts))


def encoded(gbuffer: GBuffer, name: str) -> Float[Tensor, "frames channels height width"]:
    """A buffer as it is compared: normals as vectors, the others as encoded for the network."""
    value = getattr(gbuffer, name)
    return value if name == "normal" else encode_buffer(name, value)


def _score(what: str, metric: Metric, name: str, pairs: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]) -> Score:
    """Means and wins over (estimate, baseline, truth, mask) of every clip; a clip without a valid pixel does not count."""
    figures = [(metric(e, t, m), metric(b, t, m)) for e, b, t, m in pairs if m.any()]
    model, baseline = (sum(column) / len(figures) for column in zip(*figures, strict=True))
    return Score(what, metric, model, baseline, name, sum(metric.better(a, b) for a, b in figures), len(figures))


def score_inverse(clips: Sequence[Sample], inverse: Inverse, tick: Callable[[], None] = lambda: None) -> list[Score]:
    """Score an inverse renderer: every buffer against the best constant, base colour also against the input frame."""
    masks = _masks(clips)
    estimates = []
    for clip in clips:
        estimates.append(inverse(clip.clip))
        tick()
    scores = []
    for name, metric in (("basecolor", PSNR), ("normal", ANGLE), ("depth", RMSE), ("roughness", RMSE), ("metallic", RMSE)):
        values = _gathered(clips, masks, name)
        constant = best_constant_normal(values) if name == "normal" else best_constant(values)
        truths = [encoded(clip.gbuffer, name) for clip in clips]
        guesses = [encoded(estimate, name) for estimate in estimates]
        flat = [constant[None, :, None, None].expand_as(truth) for truth in truths]
        scores.append(_score(name, metric, "best constant", zip(guesses, flat, truths, masks, strict=True)))
        if name == "basecolor":
            inputs = [clip.clip.frames for clip in clips]
            scores.append(_score(name, metric, "input frame", zip(guesses, inputs, truths, masks, strict=True)))
            whole = [torch.ones_like(mask) for mask in masks]
            scores.append(
                _score("basecolor, whole picture", metric, "input frame", zip(guesses, inputs, truths, whole, strict=True))
            )
    return scores


def score_forward(
    clips: Sequence[Sample],
    forward: Callable[[GBuffer, EnvironmentMap, Tensor], Clip],
    tick: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Score a forward renderer, given true buffers and light: against the mean image and base colour times mean light."""
    truths = [clip.clip.frames for clip in clips]
    everywhere = [torch.ones_like(truth[:, :1], dtype=torch.bool) for truth in truths]
    estimates = []
    for clip in clips:
        estimates.append(forward(clip.gbuffer, clip.environment, clip.lookup).frames)
        tick()
    mean_image = torch.stack([truth.mean(dim=0) for truth in truths]).mean(dim=0)
    baselines = {
        "mean image": [mean_image.expand_as(truth) for truth in truths],
        "clip's mean colour": [truth.mean(dim=(0, 2, 3), keepdim=True).expand_as(truth) for truth in truths],
        "base colour x mean light": [base_color_times_light(clip.gbuffer.basecolor, clip.environment) for clip in clips],
        "base colour": [srgb_oetf(clip.gbuffer.basecolor) for clip in clips],
    }
    return [
        _score("relit frames", PSNR, name, zip(estimates, images, truths, everywhere, strict=True))
        for name, images in baselines.items()
    ]


def table(title: str, scores: Sequence[Score]) -> Table:
    """The scores as a table."""
    return Table(title, COLUMNS, tuple(score.row() for score in scores))
