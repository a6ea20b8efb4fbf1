"""Evaluation: renderers and their baselines on clips with ground truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TASKS = ("inverse", "forward")


@dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated, and on what.

    Attributes
    ----------
    data : a folder of shards; None renders ``clips`` clips of ``frames`` frames and ``size`` pixels, seed
        `datagen.EVALUATION_SEED`, into ``out / "clips"`` (kept there for the next run).
    panoramas : folder of panoramas to light half of the rendered clips with; None for procedural lights only.
    steps : network calls per image; None for the model's own.
    """

    model: str = "tiny"
    data: Path | None = None
    out: Path = Path("evaluation-out")
    clips: int = 24
    frames: int = 4
    size: int = 128
    samples: int = 32
    panoramas: Path | None = None
    steps: int | None = None


def evaluate(task: str, options: EvaluateOptions, progress: Callable[[int, int, str], None] | None = None):
    """Score a model on one task; writes ``<task>.md`` and ``<task>.csv`` below ``options.out`` and returns the table."""
    from diffusion_renderer.core.names import check_name
    from diffusion_renderer.evaluation.protocols import score_forward, score_inverse, table
    from diffusion_renderer.pipelines import load_forward, load_inverse

    check_name("evaluation task", task, TASKS)
    clips = _clips(options)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(clips), task)

    if task == "inverse":
        inverse = load_inverse(options.model)
        scores = score_inverse(clips, lambda clip: inverse(clip, steps=options.steps), tick)
    else:
        forward = load_forward(options.model)
        scores = score_forward(clips, lambda g, e, r: forward(g, e, rotations=r, steps=options.steps), tick)
    frames = sum(len(clip.clip) for clip in clips)
    result = table(f"{task}, model {options.model}, {len(clips)} clips, {frames} frames", scores)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{task}.md").write_text(result.markdown() + "\n")
    (options.out / f"{task}.csv").write_text(result.csv())
    return result


def _clips(options: EvaluateOptions) -> list:
    """The clips to score, rendered when no data was given."""
    from diffusion_renderer.datagen import EVALUATION_SEED, DatasetSettings, generate_shards, read_shards

    if options.data is not None:
        return list(read_shards(options.data))
    size = options.size
    key = f"{options.clips}x{options.frames}-{size}px-{options.samples}spp" + ("-panoramas" if options.panoramas else "")
    folder = options.out / "clips" / key
    settings = DatasetSettings(
        frames=options.frames, width=size, height=size, samples=options.samples, panoramas=options.panoramas
    )
    generate_shards(folder, settings, clips=options.clips, shard_size=options.clips, seed=EVALUATION_SEED)
    return list(read_shards(folder))
