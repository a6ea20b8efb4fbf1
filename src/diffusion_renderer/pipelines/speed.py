"""Running faster without changing the result beyond rounding: threads, memory layout, compiled networks, narrower numbers."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_renderer.pipelines.diffusion import DiffusionRenderer
from diffusion_renderer.pipelines.memory import Renderer, Say, is_out_of_memory

#: bfloat16 must be this much faster than float32 on a CPU to be worth its rounding (8 bits of mantissa).
WORTHWHILE = 1.3
#: Where a container's limit of processor time is written: microseconds per period, or "max".
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def default_dtype(device: torch.device) -> torch.dtype:
    """Of the networks: float32 on a CPU, elsewhere float16, which the published weights are made for."""
    return torch.float32 if device.type == "cpu" else torch.float16


def fastest_cpu_dtype(seconds: Callable[[torch.dtype], float] | None = None) -> torch.dtype:
    """float32, or bfloat16 where a measurement of a few hundredths of a second says that this processor gains by it.

    ``seconds`` measures a dtype; the default takes the best of three convolutions of a UNet's kind. Without matrix instructions
    for it (AMX, AVX512-BF16) bfloat16 is converted back and forth, and slower.
    """
    measure = seconds or _convolution_seconds
    return torch.bfloat16 if measure(torch.float32) > WORTHWHILE * measure(torch.bfloat16) else torch.float32


@torch.no_grad()
def _convolution_seconds(dtype: torch.dtype) -> float:
    layer, images = nn.Conv2d(128, 128, 3, padding=1).to(dtype), torch.zeros(4, 128, 32, 32, dtype=dtype)
    best = math.inf
    for _ in range(4):  # the first one sets up the kernel
        started = time.perf_counter()
        layer(images)
        best = min(best, time.perf_counter() - started)
    return best


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than a container's share of processor time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_LIMIT.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def set_threads() -> int:
    """Let PyTorch use as many threads as there are usable cores and no more; returns their number.

    In a container with half a machine's processor time PyTorch starts a thread per core of the machine, and they wait for each
    other. ``OMP_NUM_THREADS``, where it is set, has the last word.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
    return torch.get_num_threads()


def channels_last(renderer: Renderer) -> Renderer:
    """The renderer with its VAE's weights in the order that convolutions on tensor cores read; equal but for rounding.

    The renderer's networks are changed in place. Renderers that are not diffusion models are returned as they are.
    """
    if isinstance(renderer, DiffusionRenderer):
        for layer in renderer.checkpoint.vae.modules():
            if isinstance(layer, nn.Conv2d):  # the decoder's convolutions over time have another rank
                layer.to(memory_format=torch.channels_last)
    return renderer


def compiled(renderer: Renderer, say: Say | None = None, backend: str = "inductor") -> Renderer:
    """A renderer whose UNet and decoder are compiled by ``torch.compile`` at their first call, for every size anew.

    Where compiling or running the compiled network fails, the plain one takes over for good, and ``say`` is told in one line
    (default: printed on stderr). On CUDA the compiled networks are replayed as CUDA graphs. The scales of a LoRA are networks
    of their own, each compiled when it is first used. Renderers that are not diffusion models are returned as they are.
    """
    if not isinstance(renderer, DiffusionRenderer):
        return renderer
    tell = say or partial(print, file=sys.stderr, flush=True)
    options = {"mode": "reduce-overhead"} if renderer.unet.device.type == "cuda" else {}
    decoder = renderer.checkpoint.vae.decoder if renderer.codec.small is None else renderer.codec.small

    def compile_network(network: nn.Module) -> None:
        plain = network.forward
        network.forward = Compiled(plain, torch.compile(plain, backend=backend, dynamic=False, **options), tell)

    for network in (renderer.unet, decoder):
        compile_network(network)
    if renderer.checkpoint.lora is not None:
        renderer.checkpoint.lora.prepare = compile_network
    return renderer


class Compiled:
    """A function compiled, or itself from the first failure on."""

    def __init__(self, plain: Callable[..., Any], fast: Callable[..., Any], say: Say) -> None:
        self.plain, self.fast, self._say = plain, fast, say
        self.failed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        # It is bound to one network: a copy of that network must compile its own.
        raise copy.Error("a compiled network cannot be copied")

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not self.failed:
            try:
                return _owned(self.fast(*args, **options))
            except Exception as error:
                # Less memory, and not plain code, is the answer to that one.
                if is_out_of_memory(error):
                    raise
                self.failed = True
                reason = str(error).strip().splitlines()
                self._say(f"torch.compile failed, going on without it ({reason[0] if reason else type(error).__name__})")
        return self.plain(*args, **options)


def _owned(result: Any) -> Any:
    """A CUDA graph writes its next result into the same memory, so what leaves it is copied."""
    return result.clone() if isinstance(result, Tensor) and result.is_cuda else result
