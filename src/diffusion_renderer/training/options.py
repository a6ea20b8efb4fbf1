"""What a training run is told: which data, how long, how often to report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models import LightCondition

#: The stages in the order in which they depend on each other.
STAGES = ("vae", "env", "inverse", "forward")


@dataclass(frozen=True)
class TrainOptions:
    """Options shared by every stage. A run with the same ``out`` continues where the last one stopped.

    Attributes
    ----------
    data : folders of shards written by ``diffusion-renderer dataset``.
    out : run folder; each stage keeps its checkpoints, CSV log and sample sheets in a folder of its own below it.
    max_steps : optimiser steps in all, over every run of the stage; the learning rate decays to zero towards it.
    max_minutes : wall-clock limit of this run, minutes; None for no limit.
    batch : images per optimiser step (a clip of n frames counts n).
    learning_rate : peak of AdamW's learning rate; None for the stage's own.
    seed : of the data order, the noise and the initial weights.
    save_minutes : minutes between checkpoints.
    sheet_steps : steps between sample sheets; 0 for none.
    augment : the diffusion stages see every clip in a random window, mirror, colours and exposure (`training.variation`).
    start_from : a model folder, as `assemble` writes it, whose networks a new run goes on from; None to start from nothing. A
        forward renderer of another ``light`` is left out.
    light : how the forward renderer is told the light: by the environment encoder, or by plain concatenation, the paper's
        ablation, which needs no stage `env` (see `models.lighting`).
    precision : of the network's forward pass; weights and optimiser are float32.
    device : where the stage trains, such as ``cuda``; None takes a GPU where there is one. Random numbers are drawn on the CPU,
        so that every device sees the same data and noise.
    """

    data: tuple[Path, ...] = ()
    out: Path = Path("runs/tiny")
    max_steps: int = 4000
    max_minutes: float | None = None
    batch: int = 24
    learning_rate: float | None = None
    seed: int = 0
    save_minutes: float = 4.0
    sheet_steps: int = 1000
    augment: bool = True
    start_from: Path | None = None
    light: LightCondition = "encoder"
    precision: Literal["bf16", "fp32"] = "bf16"
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch", "save_minutes"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} above 0", str(getattr(self, name)), "give a larger number")
        find_device(self.device)
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise InputError("--max-minutes above 0", str(self.max_minutes), "leave it out for no limit")
