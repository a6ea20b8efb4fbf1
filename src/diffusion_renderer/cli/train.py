"""`train`: the stages of training, clips with estimated buffers, and everything in one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from diffusion_renderer.cli import values
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name

# As in training.options and training.session, which are not imported here: the help must not load torch.
STAGES = ("vae", "decoder", "env", "inverse", "forward", "distill")
ACTIONS = (*STAGES, "autolabel", "estimate", "all")
METHODS = ("regression", "trajectory", "consistency")
PHASES = ("render", "vae", "decoder", "env", "inverse", "forward", "calibrate", "evaluate")
#: Options of one command only: the rest of the commands refuse them.
ONLY = {
    "model": ("autolabel", "estimate"),
    "light_dir": ("autolabel",),
    "segments": ("autolabel",),
    "frames": ("autolabel", "all"),
    "size": ("autolabel", "all"),
    "assets": ("all",),
    "share": ("all",),
    "evaluate_clips": ("all",),
    "teacher": ("distill",),
    "student_steps": ("distill",),
    "method": ("distill",),
    "teacher_steps": ("distill",),
    "teacher_guidance": ("distill",),
    "dry_run": STAGES,
}


def _count(option: str, least: int, default: str) -> Any:
    return Annotated[int | None, *values.one("N", values.count_at_least(option, least), default)]


def _number(option: str, least: float, what: str, default: str) -> Any:
    return Annotated[float | None, *values.one("X", values.number_at_least(option, least, what), default)]


def _choice(option: str, valid: tuple[str, ...], default: str) -> Any:
    return Annotated[str | None, *values.one("|".join(valid), values.choice(option, valid), default)]


def _several(metavar: str, parse: Any, option: str) -> Any:
    return Annotated[tuple[Annotated[tuple[Any, ...], values.several(metavar, parse, option)], ...], UseAppendAction]


def _share(text: str) -> tuple[str, float]:
    """PHASE=X."""
    name, _, number = text.partition("=")
    values.choice("--share", PHASES)(name)
    return name, values.number_at_least("--share", 0.0, "a share, such as render=0.5")(number)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one stage: vae first, then env, inverse and forward; forward needs vae and env, inverse vae. decoder makes a
    small decoder for vae; distill makes students of few steps of a renderer of the run; autolabel makes shards of real videos
    for forward, estimate of rendered clips under several lights; all does everything but distill within --max-minutes: render,
    train, assemble, calibrate, evaluate.

    Run again with the same -o to continue. Checkpoints, a CSV log, sample sheets, the settings (config.json) and the exported
    network go to OUT/<stage>; `weights assemble` makes a model folder of them. On several GPUs start it with `accelerate
    launch -m diffusion_renderer train ...` or torchrun.
    """

    stage: Annotated[Positional[str], arg(metavar="|".join(ACTIONS))]
    """What to train or do."""
    data: _several("DIR[=WEIGHT] ...", str, "--data") = ()  # type: ignore[valid-type]
    """Folders of shards written by `dataset` or by autolabel, with their weights in the mixture (default: by their frames).
    For autolabel: videos, or folders of videos; for estimate: shards of clips under two lights or more."""
    out: Annotated[Path | None, *values.one("OUT", Path, "runs/PRESET"), arg(aliases=["-o"])] = None
    """Run folder, shared by the stages; for autolabel and estimate, the folder of the shards."""
    preset: Annotated[str | None, *values.one("NAME", str, "tiny")] = None
    """Sizes of the networks: tiny, svd."""
    config: Annotated[Path | None, *values.one("FILE", Path, "none")] = None
    """Options in a .toml or .json file; what is given here counts more."""
    dry_run: values.Flag = False
    """Print sizes, memory and time, and train nothing."""
    max_steps: _count("--max-steps", 1, "4000; all: as many as there is time for") = None  # type: ignore[valid-type]
    """Optimiser steps in all, over every run of the stage."""
    max_minutes: _number("--max-minutes", 0.0, "minutes", "no limit; all: 60") = None  # type: ignore[valid-type]
    """Stop this run after this many minutes."""
    batch: _count("--batch", 1, "24") = None  # type: ignore[valid-type]
    """Images per step, over all processes."""
    accumulate: _count("--accumulate", 1, "1") = None  # type: ignore[valid-type]
    """Pieces in which a process computes its share of a step, to save memory."""
    checkpointing: values.Flag = False
    """Save memory by computing activations twice."""
    learning_rate: _number("--learning-rate", 0.0, "a rate", "the preset's own") = None  # type: ignore[valid-type]
    """Peak learning rate."""
    warmup: _count("--warmup", 0, "100") = None  # type: ignore[valid-type]
    """Steps to the peak learning rate."""
    decay: _number("--decay", 0.0, "a share", "0.6") = None  # type: ignore[valid-type]
    """Share of the steps, at the end, over which the learning rate falls to zero; 0 for none."""
    ema: _number("--ema", 0.0, "a decay per step below 1", "0.999") = None  # type: ignore[valid-type]
    """Decay of the averaged weights, which are exported."""
    seed: _count("--seed", 0, "0") = None  # type: ignore[valid-type]
    """Seed of data order, noise and initial weights."""
    save_minutes: _number("--save-minutes", 0.0, "minutes", "4") = None  # type: ignore[valid-type]
    """Minutes between checkpoints."""
    save_steps: _count("--save-steps", 1, "none by steps") = None  # type: ignore[valid-type]
    """Steps between checkpoints."""
    keep: _count("--keep", 1, "3") = None  # type: ignore[valid-type]
    """Newest checkpoints to keep."""
    explode: _number("--explode", 1.0, "a factor", "20") = None  # type: ignore[valid-type]
    """A loss so many times above its running median stops the run."""
    sheet_steps: _count("--sheet-steps", 0, "1000") = None  # type: ignore[valid-type]
    """Steps between sample sheets; 0 for none."""
    tensorboard: values.Flag = False
    """Write the log for TensorBoard too."""
    no_augment: values.Flag = False
    """Show clips as they are: no windows, mirrors, colours, exposures, reversals."""
    max_bad: _number("--max-bad", 0.0, "a share", "0.1") = None  # type: ignore[valid-type]
    """Largest share of the shards that may be damaged."""
    precision: _choice("--precision", ("bf16", "fp32"), "bf16") = None  # type: ignore[valid-type]
    """Of the networks' forward pass; weights are float32."""
    start_from: Annotated[str | None, *values.one("NAME|PATH", str, "nothing")] = None
    """A model whose networks a new run goes on from, such as tiny; for svd, a folder or id of Stable Video Diffusion too."""
    light: _choice("--light", ("encoder", "concat"), "encoder: cross-attention") = None  # type: ignore[valid-type]
    """How forward is told the light; concat, its latents beside the G-buffers', is an ablation and needs no env."""
    lora_rank: _count("--lora-rank", 0, "the preset's, or the adapter's") = None  # type: ignore[valid-type]
    """Of the adapter that forward trains on clips with estimated buffers; 0 trains the network itself on them."""
    estimated_share: _number("--estimated-share", 0.0, "a share", "0.5") = None  # type: ignore[valid-type]
    """Weight in forward of the clips with estimated buffers."""
    teacher: _choice("--teacher", ("inverse", "forward"), "forward") = None  # type: ignore[valid-type]
    """distill: which renderer of the run is the teacher."""
    student_steps: _count("--student-steps", 1, "1") = None  # type: ignore[valid-type]
    """distill: network calls of the student, 1, 2 or 4."""
    method: _choice("--method", METHODS, "trajectory") = None  # type: ignore[valid-type]
    """distill: how the student is taught."""
    teacher_steps: _count("--teacher-steps", 1, "16") = None  # type: ignore[valid-type]
    """distill: network calls of the teacher."""
    teacher_guidance: _number("--teacher-guidance", 0.0, "1 for none", "the teacher's own") = None  # type: ignore[valid-type]
    """distill: guidance of the teacher, which the student learns to do without."""
    assets: _several("DIR ...", Path, "--assets") = ()  # type: ignore[valid-type]
    """all: folders with models, materials and hdri; those for training are rendered beside procedural ones."""
    share: _several("PHASE=X ...", _share, "--share") = ()  # type: ignore[valid-type]
    """all: shares of the minutes: render vae decoder env inverse forward calibrate evaluate; 0 leaves one out."""
    evaluate_clips: _count("--evaluate-clips", 0, "8") = None  # type: ignore[valid-type]
    """all: clips to score the model on; 0 for none."""
    model: Annotated[str | None, *values.one("NAME|PATH", str, "tiny")] = None
    """autolabel, estimate: the inverse renderer."""
    light_dir: Annotated[Path | None, *values.one("DIR", Path, "estimated")] = None
    """autolabel: panoramas <clip>.hdr or .exr, by another estimator."""
    segments: _count("--segments", 1, "15") = None  # type: ignore[valid-type]
    """autolabel: clips per video."""
    frames: _count("--frames", 1, "24; all: the preset's longest clip") = None  # type: ignore[valid-type]
    """autolabel, all: frames per clip."""
    size: _count("--size", 8, "128; all: the preset's") = None  # type: ignore[valid-type]
    """autolabel, all: side of the frames, pixels."""
    device: Annotated[str | None, *values.one("DEVICE", str, "cuda if there is one, else cpu")] = None
    """Where to train: cpu, cuda, cuda:1."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Train until a limit is reached."""
        from diffusion_renderer.cli import train_runs

        check_name("training stage", self.stage, ACTIONS)
        for name, commands in ONLY.items():
            if train_runs.given(getattr(self, name)) and self.stage not in commands:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} with {' or '.join(commands)}", f"train {self.stage}", f"leave {option} out")
        others = {"autolabel": train_runs.autolabel, "estimate": train_runs.estimate, "all": train_runs.everything}
        others.get(self.stage, train_runs.one_stage)(self)
