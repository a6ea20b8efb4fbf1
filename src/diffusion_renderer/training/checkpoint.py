"""Training checkpoints: tensors in safetensors, the rest in JSON, both written under another name and renamed when whole.

A checkpoint of step 1200 is the folder ``checkpoint-00001200`` with ``state.safetensors`` (``network.NAME``, ``ema.NAME`` and
``optimizer.MOMENT.NAME`` of every trainable parameter) and ``state.json``. It holds whole tensors, however many processes
share them, so that a run can go on with another number of processes. A folder ``checkpoint``, as earlier versions wrote it, is
read as well.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.training.ema import Ema

__all__ = ["Ema", "TrainState", "checkpoints", "newest", "read_state", "restore", "save", "whole"]

#: What AdamW keeps per parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_NAME = re.compile(r"checkpoint(-\d+|\.old)?")


@dataclass(frozen=True)
class TrainState:
    """Where a stage stands: optimiser steps done and seconds spent on them, over all its runs.

    Attributes
    ----------
    losses : of the last steps, oldest first: what an exploding loss is measured against.
    """

    step: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a stage's folder, by step, oldest first."""
    found = [path for path in folder.glob("checkpoint*") if _NAME.fullmatch(path.name) and (path / "state.json").is_file()]
    # Of an old-style pair with the same step the one that was renamed last, `checkpoint`, counts as newer.
    return sorted(found, key=lambda path: (read_state(path).step, not path.name.endswith(".old")))


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage's folder; None when there is none."""
    return next(reversed(checkpoints(folder)), None)


def read_state(path: Path) -> TrainState:
    """Step, seconds and last losses of one checkpoint. InputError when its ``state.json`` cannot be read."""
    try:
        values = json.loads((path / "state.json").read_text())
        return TrainState(int(values["step"]), float(values["seconds"]), tuple(map(float, values.get("losses", ()))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error


def save(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    state: TrainState,
    keep: int = 3,
    writes: bool = True,
) -> Path:
    """Write ``folder/checkpoint-STEP`` so that a kill at any moment leaves a whole one, and keep the ``keep`` newest.

    Every process calls it, for sharded tensors are gathered; only the one with ``writes`` holds them (in main memory: four
    times the trainable parameters) and touches the disk. Raises InputError when the disk is full or not writable: the
    checkpoints that were there stay, and what was begun is removed.
    """
    path = folder / f"checkpoint-{state.step:08d}"
    tensors = _gather(network, optimizer, ema, writes)
    if writes:
        part = folder / f"{path.name}.part"
        with _freed(part, folder):
            part.mkdir(parents=True)
            save_file(tensors, part / "state.safetensors")
            (part / "state.json").write_text(json.dumps(asdict(state)))
            for name in ("state.safetensors", "state.json"):
                _flush(part / name)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(part, path)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return path


def restore(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> TrainState:
    """Continue from the newest checkpoint of ``folder``, or from nothing when there is none.

    Raises InputError when the checkpoint does not fit the network (another preset) or cannot be read.
    """
    found = newest(folder)
    if found is None:
        return TrainState()
    try:
        with safe_open(found / "state.safetensors", "pt") as file:
            _check(found, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, network)
            _load(file, network, optimizer, ema)
    except (SafetensorError, OSError) as error:
        raise _unreadable(found, error) from error
    return read_state(found)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that processes share, gathered; others as they are. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shared(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor, sharded and placed as ``like`` is. Every process has the whole one, so nothing is sent."""
    placed = tensor.to(like.device, copy=True)
    if not isinstance(like, DTensor):
        return placed
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def _trainable(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)


def _gather(network: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, writes: bool) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, on the CPU; empty in the processes that do not write."""
    tensors: dict[str, Tensor] = {}
    for name, p in _trainable(network):
        moments = optimizer.state.get(p, {}).items()
        own = {f"network.{name}": p.detach(), f"ema.{name}": ema.shadow[name]}
        for key, value in {**own, **{f"optimizer.{key}.{name}": value.detach() for key, value in moments}}.items():
            gathered = whole(value)
            if writes:
                tensors[key] = gathered.cpu().contiguous()
    return tensors


def _check(path: Path, shapes: dict[str, tuple[int, ...]], network: nn.Module) -> None:
    """InputError unless the checkpoint is of this very network."""
    wanted = {f"network.{name}": tuple(p.shape) for name, p in _trainable(network)}
    saved = {name: shape for name, shape in shapes.items() if name.startswith("network.")}
    for name in (*wanted, *saved):
        if wanted.get(name) != saved.get(name):
            expected, found = ("nothing" if shape is None else str(shape) for shape in (wanted.get(name), saved.get(name)))
            key = name.removeprefix("network.")
            raise InputError(f"{key} of shape {expected} in {path}", found, "use another --out for another preset")


@torch.no_grad()
def _load(file: safe_open, network: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> None:
    """Read one tensor after the other, so that the file never lies in memory whole."""
    names = set(file.keys())
    for name, p in _trainable(network):
        p.copy_(_shared(file.get_tensor(f"network.{name}"), p))
        ema.shadow[name].copy_(_shared(file.get_tensor(f"ema.{name}"), p))
        if f"optimizer.exp_avg.{name}" not in names:
            continue
        state = {key: file.get_tensor(f"optimizer.{key}.{name}") for key in _MOMENTS}
        # The step counter stays on the CPU, where AdamW wants it.
        optimizer.state[p] = {key: value.clone() if key == "step" else _shared(value, p) for key, value in state.items()}


@contextmanager
def _freed(part: Path, folder: Path) -> Iterator[None]:
    """Remove ``part`` before and, when writing it fails, afterwards: the room that it took may be what others lack."""
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield
    except (OSError, SafetensorError) as error:
        last = newest(folder)
        advice = "make room, or permit writing there, and run the same command again"
        kept = "nothing was saved before" if last is None else f"{last.name} is intact"
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"room to write the checkpoint {part.with_suffix('')}", reason, f"{kept}; {advice}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _flush(path: Path) -> None:
    """Force a file to the disk, so that the renaming that follows cannot overtake it in a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _unreadable(path: Path, error: Exception) -> InputError:
    others = [other for other in path.parent.glob("checkpoint*") if other != path and (other / "state.json").is_file()]
    then = "go on from the one before" if others else "start the stage anew"
    return InputError(f"a readable checkpoint in {path}", str(error), f"delete that folder to {then}")
