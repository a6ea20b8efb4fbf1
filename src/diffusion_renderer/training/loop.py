"""The one training loop; a stage says what is trained, on what and by which loss."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_renderer.training import checkpoint
from diffusion_renderer.training.checkpoint import Ema, TrainState
from diffusion_renderer.training.options import TrainOptions

log = logging.getLogger(__name__)


@runtime_checkable
class Stage(Protocol):
    """A stage of the paper's training: a network, a loss, a picture to look at, and the folder it ends in."""

    name: str
    network: nn.Module
    learning_rate: float
    device: torch.device

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step and what to log beside it. Data order and noise come from ``generator`` alone."""

    def sheet(self) -> Tensor:
        """A picture, 3 height width in [0, 1], of what the network does now."""

    def export(self, folder: Path) -> None:
        """Write the network in diffusers' folder format."""


def learning_rate_at(step: int, peak: float, max_steps: int, warmup: int = 100) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last 60 % of ``max_steps``."""
    decay_from = int(0.4 * max_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * min(1.0, max(0.0, (max_steps - step) / max(1, max_steps - decay_from)))


def run(stage: Stage, options: TrainOptions) -> TrainState:
    """Train until ``max_steps`` or ``max_minutes``; continue from the last checkpoint; always leave an exported network.

    Every step's randomness comes from (seed, step), so that a run that was stopped and continued sees the same data and noise
    as one that was not. A loss that is not finite stops the run before the step is taken: the last checkpoint stays as it was.
    """
    folder = options.out / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    stage.network.train()
    peak = options.learning_rate or stage.learning_rate
    trainable = [p for p in stage.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=peak, betas=(0.9, 0.99), weight_decay=0.01, foreach=True)
    ema = Ema(stage.network)
    state = checkpoint.restore(folder, stage.network, optimizer, ema)
    start = saved = time.monotonic()
    before = state.seconds
    deadline = None if options.max_minutes is None else start + 60 * options.max_minutes
    with tqdm(total=options.max_steps, initial=state.step, desc=stage.name, unit="step", mininterval=5) as bar:
        while state.step < options.max_steps and (deadline is None or time.monotonic() < deadline):
            rate = learning_rate_at(state.step, peak, options.max_steps)
            values = _step(stage, optimizer, ema, state.step, rate, options)
            state = TrainState(state.step + 1, before + time.monotonic() - start)
            bar.update()
            if state.step % 20 == 0:
                bar.set_postfix(values, refresh=False)
                _append_csv(
                    folder / "log.csv", {"step": state.step, "seconds": round(state.seconds, 1), "rate": rate, **values}
                )
            if options.sheet_steps and state.step % options.sheet_steps == 0:
                _write_sheet(stage, folder / f"sheet-{state.step:06d}.png")
            if time.monotonic() - saved > 60 * options.save_minutes:
                checkpoint.save(folder, stage.network, optimizer, ema, state)
                saved = time.monotonic()
    checkpoint.save(folder, stage.network, optimizer, ema, state)
    ema.copy_to(stage.network)
    stage.network.eval()
    _write_sheet(stage, folder / "sheet-final.png")
    stage.export(folder)
    log.info("%s: %d steps in %.1f min, written to %s", stage.name, state.step, state.seconds / 60, folder)
    return state


def _step(
    stage: Stage, optimizer: torch.optim.Optimizer, ema: Ema, step: int, rate: float, options: TrainOptions
) -> dict[str, float]:
    """One optimiser step; returns the values to log."""
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(stage.device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
        loss, values = stage.loss(step, generator)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{stage.name}: the loss became {loss.item()} at step {step}; the last checkpoint is kept")
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    ema.update(stage.network, step)
    return {"loss": round(loss.item(), 6), "grad": round(norm.item(), 4), **{k: round(v, 6) for k, v in values.items()}}


def _append_csv(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def _write_sheet(stage: Stage, path: Path) -> None:
    from PIL import Image

    training = stage.network.training
    stage.network.eval()
    with torch.no_grad():
        picture = stage.sheet().cpu().clamp(0, 1).mul(255).round().byte()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    stage.network.train(training)
