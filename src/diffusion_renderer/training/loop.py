"""The one training loop; a stage says what is trained, on what and by which loss.

It runs on Accelerate: one process, or several that `accelerate launch` or `torchrun` start, each with a copy of the network
(DDP) or with a shard of it (FSDP2). How many there are changes the speed, not the result: a step is planned for all of them.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io.atomic import make_folder
from diffusion_renderer.training import checkpoint
from diffusion_renderer.training.checkpoint import TrainState
from diffusion_renderer.training.ema import Ema
from diffusion_renderer.training.logs import Logs, open_logs
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.steps import Item, Part, Stage, micro_batches

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Stage", "TrainState", "join_processes", "learning_rate_at", "leave_processes", "run"]

log = logging.getLogger(__name__)

#: Steps between lines of the log.
LOG_STEPS = 20
#: The loss is compared with the median of so many before it, once there are so many.
REMEMBERED, COMPARED_FROM = 200, 20
#: Samples that a message names at most.
NAMED = 8


@dataclass(frozen=True)
class _Engine:
    """A stage ready to train: ``network`` is what is called, ``stage.network`` what is inside the wrapper."""

    stage: Stage
    options: TrainOptions
    accelerator: Accelerator
    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    folder: Path


@dataclass(frozen=True)
class _Clock:
    """What is due by the time, in this process; the main process decides for all."""

    options: TrainOptions
    before: float
    start: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Spent on the stage, over all its runs."""
        return self.before + time.monotonic() - self.start

    def due(self, saved: float) -> tuple[bool, bool]:
        """Whether to stop, and whether to save, where the last checkpoint was written at ``saved``."""
        now, limit = time.monotonic(), self.options.max_minutes
        return limit is not None and now >= self.start + 60 * limit, now - saved > 60 * self.options.save_minutes


@dataclass(frozen=True)
class _Result:
    """Of one step: the loss and the norm of the gradient of all processes, the values of this one, what is due for all."""

    loss: float
    gradient: float
    samples: int
    values: tuple[dict[str, float], ...]
    stop: bool
    save: bool


def learning_rate_at(step: int, peak: float, max_steps: int, warmup: int = 100, decay: float = 0.6) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last share ``decay`` of ``max_steps``."""
    decay_from = int((1 - decay) * max_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * min(1.0, max(0.0, (max_steps - step) / max(1, max_steps - decay_from)))


def run(stage: Stage, options: TrainOptions) -> TrainState:
    """Train until ``max_steps`` or ``max_minutes``; continue from the last checkpoint; always leave an exported network.

    Every process of a run calls it with its own copy of the same stage, placed on the device that `join_processes` gave. What
    is random comes from (seed, step, item), so that a run that was stopped and continued sees the same data and noise as one
    that was not: on a CPU, with the same number of processes, it ends with the same bits.

    Raises InputError for a loss that is not finite or explodes (before the step is taken: the checkpoints stay as they were),
    for a checkpoint that does not fit, for a full disk.
    """
    folder = make_folder(options.out / stage.name)
    accelerator = _accelerator(stage.device, options.precision)
    stage.network.train()
    if options.checkpointing:
        _save_activations(stage.network)
    spare = copy.deepcopy(stage.network).cpu() if accelerator.is_fsdp2 and accelerator.is_main_process else None
    engine = _prepare(stage, options, accelerator, folder)
    state = checkpoint.restore(folder, stage.network, engine.optimizer, engine.ema)
    with open_logs(folder, stage.name, state.step, options.max_steps, options.tensorboard, accelerator.is_main_process) as logs:
        state = _train(engine, state, logs)
        _finish(engine, state, logs, spare)
    log.info("%s: %d steps in %.1f min, written to %s", stage.name, state.step, state.seconds / 60, folder)
    return state


def join_processes(device: str | None = None) -> torch.device:
    """Meet the other processes of the run, where a launcher started several, and give the device that this one computes on.

    To be called before a stage is built: with several GPUs each process has its own. ``device`` is as in `TrainOptions`.
    """
    from accelerate.state import AcceleratorState, PartialState

    found = find_device(device)
    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=found.type == "cpu")
    return found if state.num_processes == 1 else state.device


def leave_processes() -> None:
    """Part from the other processes at the end of the program. Does nothing where there are none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _accelerator(device: torch.device, precision: str) -> Accelerator:
    """Accelerate as the launcher's environment configures it. InputError for the first FSDP, which the loop cannot save.

    A stage may follow another one of the same program, with another device or precision, so Accelerate's memory of the last
    one is cleared; the process group stays.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        device_placement=False,
        # Given here, for otherwise the launcher's environment could divide the loss once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # Adapters, and conditions that a part does not have, leave parameters without gradient. The search for them costs less
        # than the noise of the measurement: two processes, 40 convolutions, 87 ms of CPU a step with it and 86 ms without.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    kind = str(accelerator.distributed_type).rsplit(".", 1)[-1]
    if kind == "FSDP" and not accelerator.is_fsdp2:
        raise InputError("FSDP of version 2", "version 1", "set fsdp_version: 2 in Accelerate's configuration (FSDP_VERSION=2)")
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "FSDP"):
        raise InputError("one process, DDP or FSDP2", kind, "choose one of these in Accelerate's configuration")
    if kind == "MULTI_CPU" and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        log.warning("Accelerate shards networks on GPUs only: every process keeps a whole copy")
    return accelerator


def _prepare(stage: Stage, options: TrainOptions, accelerator: Accelerator, folder: Path) -> _Engine:
    """Optimiser and average of the network, and the wrapper that several processes call."""
    trainable = [p for p in stage.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, foreach=True)
    network, _ = accelerator.prepare(stage.network, optimizer)
    return _Engine(stage, options, accelerator, network, optimizer, Ema(stage.network, options.ema), folder)


def _save_activations(network: nn.Module) -> None:
    """Gradient checkpointing, in every module that can do it; says so when none can."""
    able = [
        module
        for module in network.modules()
        if hasattr(module, "enable_gradient_checkpointing") and getattr(module, "_supports_gradient_checkpointing", True)
    ]
    for module in able:
        module.enable_gradient_checkpointing()
    if not able:
        log.warning("%s cannot keep fewer activations: gradient checkpointing is left out", type(network).__name__)


def _train(engine: _Engine, state: TrainState, logs: Logs) -> TrainState:
    """Steps until a limit, with checkpoints, log and pictures on the way; ends with a checkpoint."""
    stage, options = engine.stage, engine.options
    peak = options.learning_rate or stage.learning_rate
    clock = _Clock(options, state.seconds)
    logged = saved = clock.start
    saved_step, samples, stop = state.step, 0, False
    while state.step < options.max_steps and not stop:
        rate = learning_rate_at(state.step, peak, options.max_steps, options.warmup, options.decay)
        result = _take_step(engine, state, rate, clock.due(saved))
        state = TrainState(state.step + 1, clock.seconds(), (*state.losses, result.loss)[-REMEMBERED:])
        stop, samples = result.stop, samples + result.samples
        logs.advance()
        if state.step % LOG_STEPS == 0 or state.step == options.max_steps or stop:
            now = time.monotonic()
            times = {"seconds": round(state.seconds, 1), "rate": rate}
            speed = {"samples_per_second": round(samples / max(now - logged, 1e-9), 2)}
            logs.row(state.step, {**times, **_row(engine.accelerator, result), **speed})
            logged, samples = now, 0
        if options.sheet_steps and state.step % options.sheet_steps == 0:
            # Every process draws it, for a sharded network needs them all.
            logs.sheet(f"sheet-{state.step:06d}", _picture(stage), state.step)
        if result.save or (options.save_steps and state.step % options.save_steps == 0):
            _save(engine, state)
            saved, saved_step = time.monotonic(), state.step
    if state.step > saved_step:
        _save(engine, state)
    return state


def _take_step(engine: _Engine, state: TrainState, rate: float, due: tuple[bool, bool]) -> _Result:
    """One optimiser step. The gradient is that of sum over parts of weight x mean over the part's items, over all processes."""
    accelerator = engine.accelerator
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    engine.optimizer.zero_grad(set_to_none=True)
    parts = engine.stage.plan(state.step)
    losses, values = _backward(engine, parts)
    wishes = torch.tensor([float(wish and accelerator.is_main_process) for wish in due], device=losses.device)
    agreed = accelerator.reduce(torch.cat([losses, wishes]), "sum").cpu()
    losses, wishes = agreed[:-2], agreed[-2:]
    loss = _check_losses(engine, parts, losses, state)
    gradient = _clip(engine)
    if not math.isfinite(gradient):
        raise _stopped(engine, "a finite gradient", gradient, state.step, [item for part in parts for item in part.items])
    engine.optimizer.step()
    engine.ema.update(engine.stage.network, state.step)
    return _Result(loss, gradient, sum(len(part.items) for part in parts), values, *(wishes > 0).tolist())


def _backward(engine: _Engine, parts: tuple[Part, ...]) -> tuple[Float[Tensor, "items"], tuple[dict[str, float], ...]]:
    """Gradients of this process's share of the parts; the losses of its items, 0 for those of others; its values to log.

    Values are given with the ``count`` of the samples that they stand for. A piece that was filled up with a repeated sample
    has it twice in its values (not in its loss).
    """
    accelerator, processes = engine.accelerator, engine.accelerator.num_processes
    pieces = [
        (number, index, piece, weights)
        for number, part in enumerate(parts)
        for index, (piece, weights) in enumerate(
            micro_batches(part, engine.options.accumulate, accelerator.process_index, processes)
        )
    ]
    device = engine.stage.device
    losses = [torch.zeros(len(part.items), device=device) for part in parts]
    values = []
    for done, (number, index, piece, weights) in enumerate(pieces, 1):
        # Gradients are sent once, with the last piece, summed up.
        with nullcontext() if done == len(pieces) else accelerator.no_sync(engine.network):
            with accelerator.autocast():
                found, extra = engine.stage.losses(engine.network, piece)
            found = found.float()
            # The processes' gradients are averaged; the sum is wanted.
            accelerator.backward(processes * (found * weights.to(found.device)).sum())
        start = (index * processes + accelerator.process_index) * len(piece.items)
        mine = losses[number][start : start + len(piece.items)]
        mine.copy_(found.detach()[: len(mine)])
        prefix = "estimated_" if piece.estimated else ""
        values.append({"count": float(len(mine)), **{prefix + name: float(value) for name, value in extra.items()}})
    return torch.cat(losses), tuple(values)


def _clip(engine: _Engine) -> float:
    """Clip the gradient to norm 1; the norm before, over all processes."""
    norm = engine.accelerator.clip_grad_norm_([p for group in engine.optimizer.param_groups for p in group["params"]], 1.0)
    return checkpoint.whole(norm).item()


def _row(accelerator: Accelerator, result: _Result) -> dict[str, float]:
    """The values to log of a step: means over the items of all processes. Every process must call it."""
    from accelerate.utils import gather_object

    pieces = gather_object(list(result.values)) if accelerator.num_processes > 1 else result.values
    sums: dict[str, tuple[float, float]] = {}
    for piece in pieces:
        for name, value in piece.items():
            if name != "count" and piece["count"]:
                total, count = sums.get(name, (0.0, 0.0))
                sums[name] = (total + piece["count"] * value, count + piece["count"])
    means = {name: round(total / count, 6) for name, (total, count) in sorted(sums.items())}
    return {"loss": round(result.loss, 6), "grad": round(result.gradient, 4), **means}


def _check_losses(engine: _Engine, parts: tuple[Part, ...], losses: Float[Tensor, "items"], state: TrainState) -> float:
    """The loss of the step from those of its items. InputError when it is not finite or far above the last ones.

    All processes have the same losses here, so all of them stop, or none.
    """
    pairs = list(zip([item for part in parts for item in part.items], losses.tolist(), strict=True))
    split = losses.split([len(part.items) for part in parts])
    loss = sum(part.weight * own.double().mean().item() for part, own in zip(parts, split, strict=True))
    if not math.isfinite(loss):
        bad = [item for item, value in pairs if not math.isfinite(value)]
        raise _stopped(engine, "a finite loss", loss, state.step, bad)
    if len(state.losses) >= COMPARED_FROM:
        limit = engine.options.explode * statistics.median(state.losses)
        if loss > limit:
            worst = sorted((pair for pair in pairs if pair[1] > limit), key=lambda pair: -pair[1]) or pairs
            expected = f"a loss below {limit:.4g} ({engine.options.explode:g} times the usual one)"
            raise _stopped(engine, expected, loss, state.step, [item for item, _ in worst])
    return loss


def _stopped(engine: _Engine, expected: str, found: float, step: int, items: list[Item]) -> InputError:
    """The error that names the step, the samples and the last good checkpoint."""
    keys = list(dict.fromkeys(item.key or f"frames {item.frames[0]} to {item.frames[-1]}" for item in items))
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    last = checkpoint.newest(engine.folder)
    again = "start again" if last is None else f"the last good checkpoint is {last}: go on from it"
    return InputError(
        f"{expected} in stage {engine.stage.name}",
        f"{found:.4g} at step {step}, samples {', '.join(keys[:NAMED])}{more}",
        f"{again} with a lower --learning-rate, or without these samples",
    )


def _save(engine: _Engine, state: TrainState) -> None:
    """Write a checkpoint; where the main process cannot, all of them end."""
    accelerator = engine.accelerator
    failure = None
    try:
        network, keep, writes = engine.stage.network, engine.options.keep, accelerator.is_main_process
        checkpoint.save(engine.folder, network, engine.optimizer, engine.ema, state, keep, writes)
    except InputError as error:
        failure = error
    failures = accelerator.reduce(torch.tensor(float(failure is not None), device=engine.stage.device), "sum").item()
    if failure is not None:
        raise failure
    if failures:
        raise InputError("a checkpoint by the main process", "that it could not write it", "see what it says")


def _finish(engine: _Engine, state: TrainState, logs: Logs, spare: nn.Module | None) -> None:
    """Put the average in the place of the network, draw a last picture and export it; in the main process alone."""
    stage, accelerator = engine.stage, engine.accelerator
    engine.ema.copy_to(stage.network)
    if accelerator.is_fsdp2:
        # A sharded network stays sharded for good, so its tensors go into the copy that was put by before.
        tensors = {name: checkpoint.whole(p.detach()).cpu() for name, p in stage.network.named_parameters()}
        if spare is not None:
            spare.load_state_dict(tensors, strict=False)
            stage.network = spare.to(stage.device)
    else:
        accelerator.unwrap_model(engine.network, keep_fp32_wrapper=False)
    # Accelerate would otherwise take the network for a wrapped one when it is trained on.
    vars(stage.network).pop("_is_accelerate_prepared", None)
    stage.network.eval()
    if accelerator.is_main_process:
        logs.sheet("sheet-final", _picture(stage), state.step)
        try:
            stage.export(engine.folder)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"room to write the network into {engine.folder}", str(error), "make room and run the same command again"
            ) from error
    accelerator.wait_for_everyone()


def _picture(stage: Stage) -> Float[Tensor, "3 height width"]:
    training = stage.network.training
    stage.network.eval()
    with torch.no_grad():
        picture = stage.sheet()
    stage.network.train(training)
    return picture
