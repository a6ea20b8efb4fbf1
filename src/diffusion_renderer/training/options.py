"""What a training run is told: which data, how long, how often to report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.models import LightCondition
from diffusion_renderer.training.data import DataSource

#: The stages that train a network, in the order in which they depend on each other.
STAGES = ("vae", "decoder", "env", "inverse", "forward", "distill")

Precision = Literal["bf16", "fp32"]
Renderer = Literal["inverse", "forward"]
#: How a student is taught; see `training.students`.
Method = Literal["regression", "trajectory", "consistency"]
#: Network calls per result that a student can be trained for.
STUDENT_STEPS = (1, 2, 4)

#: Smallest value of each number, and whether that value itself will do.
_LEAST = {
    "max_steps": (1, True),
    "max_minutes": (0, False),
    "batch": (1, True),
    "accumulate": (1, True),
    "learning_rate": (0, False),
    "warmup": (0, True),
    "seed": (0, True),
    "save_minutes": (0, False),
    "save_steps": (1, True),
    "sheet_steps": (0, True),
    "keep": (1, True),
    "explode": (1, False),
    "lora_rank": (0, True),
    "teacher_steps": (1, True),
    "teacher_guidance": (0, True),
}
#: Numbers that are shares: from 0 to 1, and whether 1 itself will do.
_SHARES = {"decay": True, "ema": False, "estimated_share": True, "max_bad": True}
_CHOICES = {
    "precision": get_args(Precision),
    "light": get_args(LightCondition),
    "teacher": get_args(Renderer),
    "method": get_args(Method),
}


@dataclass(frozen=True)
class TrainOptions:
    """Options shared by every stage. A run with the same ``out`` continues where the last one stopped.

    Every value is checked: InputError names the option, what it may be and what it was.

    Attributes
    ----------
    data : folders of shards written by ``diffusion-renderer dataset`` or ``train autolabel``, with their weights in the
        mixture. Paths become folders without a weight, words are read as ``DIR`` or ``DIR=WEIGHT``: all are `DataSource`s then.
    out : run folder; each stage keeps its checkpoints, CSV log and sample sheets in a folder of its own below it.
    max_steps : optimiser steps in all, over every run of the stage; the learning rate decays towards it.
    max_minutes : wall-clock limit of this run, minutes; None for no limit.
    batch : images of the preset's size per optimiser step, over all processes (a clip of n frames counts n).
    accumulate : pieces in which each process computes its share of a step, one after the other: less memory, same result.
    checkpointing : the networks keep fewer activations and compute them twice: less memory, about a third more time.
    learning_rate : peak of AdamW's learning rate; None for the preset's own of the stage.
    warmup : steps over which the learning rate grows to its peak.
    decay : share of ``max_steps``, at the end, over which the learning rate falls to zero; 0 leaves it at its peak.
    ema : decay per step of the averaged weights, which are what is exported.
    seed : of the data order, the noise and the initial weights.
    save_minutes, save_steps : minutes and steps between checkpoints; no checkpoints by steps when None.
    keep : newest checkpoints that are kept.
    explode : a loss this many times above its running median stops the run.
    sheet_steps : steps between sample sheets; 0 for none.
    tensorboard : write the log for TensorBoard too; needs the package ``tensorboard``.
    augment : the diffusion stages see every clip in a random window, mirror, colours and exposure (`training.variation`).
    max_bad : largest share of the shards that may be damaged or empty; they are skipped.
    start_from : what a new run goes on from: a model folder as `assemble` writes it, or for a preset with Stable Video
        Diffusion's sizes that model, a folder or an id of the Hugging Face hub. None to start from nothing. A forward renderer
        of another ``light`` is left out.
    light : how the forward renderer is told the light: by the environment encoder, or by plain concatenation, the paper's
        ablation, which needs no stage `env` (see `models.lighting`).
    lora_rank : of the adapter that `forward` trains on clips with estimated buffers; None for the preset's own, or those of the
        adapter that the run goes on from. 0 trains the network itself on such clips, for real ones the paper's ablation.
    estimated_share : weight of the loss of clips with estimated buffers in `forward`, where the data has others, too.
    precision : of the network's forward pass; weights and optimiser are float32.
    device : where the stage trains, such as ``cuda``; None takes a GPU where there is one. Random numbers are drawn on the CPU,
        so that every device sees the same data and noise.
    teacher, student_steps, method : of `distill`: which renderer of the run is the teacher, network calls per result of its
        student, and how it is taught (`training.students`).
    teacher_steps, teacher_guidance : network calls per result of the teacher and its classifier-free guidance, which the
        student learns to do without; guidance None for the teacher's own.
    """

    data: tuple[DataSource | Path | str, ...] = ()
    out: Path = Path("runs/tiny")
    max_steps: int = 4000
    max_minutes: float | None = None
    batch: int = 24
    accumulate: int = 1
    checkpointing: bool = False
    learning_rate: float | None = None
    warmup: int = 100
    decay: float = 0.6
    ema: float = 0.999
    seed: int = 0
    save_minutes: float = 4.0
    save_steps: int | None = None
    keep: int = 3
    explode: float = 20.0
    sheet_steps: int = 1000
    tensorboard: bool = False
    augment: bool = True
    max_bad: float = 0.1
    start_from: Path | str | None = None
    light: LightCondition = "encoder"
    lora_rank: int | None = None
    estimated_share: float = 0.5
    precision: Precision = "bf16"
    device: str | None = None
    teacher: Renderer = "forward"
    student_steps: int = 1
    method: Method = "trajectory"
    teacher_steps: int = 16
    teacher_guidance: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", tuple(_source(entry) for entry in self.data))
        for name, (least, included) in _LEAST.items():
            _check_least(name, getattr(self, name), least, included)
        for name, included in _SHARES.items():
            value = getattr(self, name)
            if not (0 <= value < 1 or (included and value == 1)):
                bound = "to 1" if included else "to below 1"
                raise InputError(f"--{_flag(name)} from 0 {bound}", str(value), "give a share")
        for name, valid in _CHOICES.items():
            check_name(f"--{_flag(name)}", getattr(self, name), valid)
        if self.student_steps not in STUDENT_STEPS:
            valid = ", ".join(map(str, STUDENT_STEPS))
            raise InputError(f"--student-steps: one of {valid}", str(self.student_steps), f"choose one of {valid}")
        find_device(self.device)


def _source(entry: DataSource | Path | str) -> DataSource:
    """A folder of shards as it may be given: whole, as a path, as a word of the command line."""
    if isinstance(entry, DataSource):
        return entry
    return DataSource(entry) if isinstance(entry, Path) else DataSource.parse(entry)


def _check_least(name: str, value: float | None, least: float, included: bool) -> None:
    """InputError for a number below its bound or not finite; None is left to mean what it means."""
    if value is None:
        return
    if not math.isfinite(value) or value < least or (value == least and not included):
        bound = f"of at least {least:g}" if included else f"above {least:g}"
        advice = "leave it out for no limit" if name == "max_minutes" else "give a larger number"
        raise InputError(f"--{_flag(name)} {bound}", str(value), advice)


def _flag(name: str) -> str:
    return name.replace("_", "-")
