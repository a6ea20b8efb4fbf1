"""What is evaluated, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvaluateOptions:
    """Everything that an evaluation is told beside the task.

    Attributes
    ----------
    models : renderers to score: short names, folders or ids; the others are compared with the first. For `forward` and
        `relight` a classical renderer's name will do as well.
    baselines : what stands beside them; None for the usual ones of the task (`entries.USUAL_BASELINES`).
    predictions : output folders of other systems, ``DIR`` or ``NAME=DIR``.
    suites : names of `suites.SUITES`.
    data : a folder of shards to score on, in place of the suites; with ``benchmark``, the folder of its data.
    benchmark : name of a public benchmark (`public.BENCHMARKS`), scored by its own protocol in place of the suites.
    metrics : names of `metrics.METRICS`; empty for the usual ones.
    out : the tables are written here, what they are computed from below it (rendered clips, figures per clip).
    clips, frames, size, samples, lights : override the suites' numbers; None keeps them.
    models_folder, materials, panoramas : folders of assets; those of the split "test" are shown in the suites' clips.
    steps : network calls per image; None for the model's own.
    lora_scale : strength of the models' LoRA; None for the model's own, 0 for the ablation without it.
    workers : processes that score clips side by side, each with renderers of its own.
    """

    models: tuple[str, ...] = ("tiny",)
    baselines: tuple[str, ...] | None = None
    predictions: tuple[str, ...] = ()
    suites: tuple[str, ...] = ("small",)
    data: Path | None = None
    benchmark: str | None = None
    metrics: tuple[str, ...] = ()
    out: Path = Path("evaluation-out")
    clips: int | None = None
    frames: int | None = None
    size: int | None = None
    samples: int | None = None
    lights: int | None = None
    models_folder: Path | None = None
    materials: Path | None = None
    panoramas: Path | None = None
    steps: int | None = None
    lora_scale: float | None = None
    workers: int = 1
