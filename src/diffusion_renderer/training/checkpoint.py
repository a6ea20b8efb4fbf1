"""Training checkpoints: tensors in safetensors, the rest in JSON, both written under another name and renamed when whole."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError


@dataclass(frozen=True)
class TrainState:
    """Where a stage stands: optimiser steps done and seconds spent on them, over all its runs."""

    step: int = 0
    seconds: float = 0.0


class Ema:
    """Exponential moving average of the trainable parameters, with the usual short memory at the start.

    After step t the decay is ``min(decay, (1 + t) / (10 + t))``.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the network's parameters as they are after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        named = dict(network.named_parameters())
        shadow = list(self.shadow.values())
        torch._foreach_lerp_(shadow, [named[name].detach() for name in self.shadow], 1 - decay)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Overwrite the network's parameters with their averages."""
        named = dict(network.named_parameters())
        for name, value in self.shadow.items():
            named[name].copy_(value)


def save(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, state: TrainState) -> None:
    """Write ``folder/checkpoint`` (network, optimiser moments, average) so that a kill at any moment leaves a whole one."""
    part, final, old = folder / "checkpoint.part", folder / "checkpoint", folder / "checkpoint.old"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    trainable = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    tensors: dict[str, Tensor] = {f"network.{name}": p.detach().contiguous() for name, p in trainable}
    tensors |= {f"ema.{name}": value.contiguous() for name, value in ema.shadow.items()}
    for name, p in trainable:
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value.detach().contiguous()
    save_file({name: value.cpu() for name, value in tensors.items()}, part / "state.safetensors")
    (part / "state.json").write_text(json.dumps({"step": state.step, "seconds": state.seconds}))
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(part, final)
    shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> TrainState:
    """Continue from ``folder/checkpoint``, or from nothing when there is none.

    Raises InputError when the checkpoint does not fit the network (another preset) or cannot be read.
    """
    found = next((folder / name for name in ("checkpoint", "checkpoint.old") if (folder / name / "state.json").exists()), None)
    if found is None:
        return TrainState()
    try:
        tensors = load_file(found / "state.safetensors")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"a readable checkpoint in {found}", str(error), "delete that folder to start the stage anew"
        ) from error
    with torch.no_grad():
        for name, p in network.named_parameters():
            if not p.requires_grad:
                continue
            saved = tensors.get(f"network.{name}")
            if saved is None or saved.shape != p.shape:
                shape = "nothing" if saved is None else str(tuple(saved.shape))
                raise InputError(f"{name} of shape {tuple(p.shape)} in {found}", shape, "use another --out for another preset")
            p.copy_(saved)
            ema.shadow[name].copy_(tensors[f"ema.{name}"])
            moments = ("step", "exp_avg", "exp_avg_sq")
            if f"optimizer.exp_avg.{name}" in tensors:
                state = {key: tensors[f"optimizer.{key}.{name}"] for key in moments}
                # The step counter stays on the CPU, where AdamW wants it.
                optimizer.state[p] = {
                    key: value.clone() if key == "step" else value.to(p.device, copy=True) for key, value in state.items()
                }
    return TrainState(**json.loads((found / "state.json").read_text()))
