"""What is counted and measured for the inference benchmark: work, memory, the rate of matrix products, seconds per stage."""

from __future__ import annotations

import contextlib
import math
import platform
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Clock = Literal["wall", "cpu"]
#: The stages of a job. What is in none of them (environment images, classical pictures, packing, copies) is "other".
STAGES = ("encode", "denoise", "decode", "light")


@dataclass
class Work:
    """Of some operations: those in floating point (a multiplication and an addition are two), bytes read and written, number.

    Operations that only change how a tensor is seen are left out, so that ``launches`` is about the number of kernels that an
    eager run launches. ``bytes`` counts every operation's inputs and outputs: what leaves the caches is less.
    """

    flops: int = 0
    bytes: int = 0
    launches: int = 0

    def add(self, flops: int, *values: Tensor) -> None:
        """One operation that reads and writes ``values``."""
        self.flops += int(flops)
        self.bytes += sum(value.numel() * value.element_size() for value in values)
        self.launches += 1


class Meter(TorchDispatchMode):
    """Counts the operations of every stage with torch's own formulas (`torch.utils.flop_counter`)."""

    def __init__(self, stage: Callable[[], str] = lambda: "all") -> None:
        super().__init__()
        self.stage, self.work = stage, defaultdict[str, Work](Work)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view:
            formula = _ATTENTION.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
            flops = 0 if formula is None else formula(*args, **kwargs, out_val=out)
            self.work[self.stage()].add(flops, *_tensors((args, kwargs, out)))
        return out


class FusedAttention(TorchFunctionMode):
    """Counts attention as one operation and makes an output without contents, as a fused kernel would on a GPU."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        self.work.add(_attention(query, key), query, key, value, out)
        return out


def count_on_paper(call: Callable[[], Any]) -> Work:
    """The work of ``call`` on networks and tensors of the meta device: nothing is computed, any size fits anywhere."""
    with torch.no_grad(), torch.device("meta"), Meter() as meter, FusedAttention(meter.work["all"]):
        call()
    return meter.work["all"]


def _attention(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Two matrix products: of queries and keys, of weights and values."""
    return 4 * math.prod(query.shape[:-1]) * key.shape[-2] * query.shape[-1]


#: torch's table knows the GPU's fused kernels, not the CPU's.
_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass
class Stages:
    """Seconds and calls of every stage of the networks that are watched, and which stage is running.

    On a GPU events in its queue are timed, so that nothing waits for the watch. Networks inside a compiled graph are not seen.
    """

    device: torch.device
    clock: Clock = "wall"
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    current: str = "other"
    _spans: list[tuple[str, Any, Any]] = field(default_factory=list)

    def watch(self, unet: nn.Module, vae: Any, encoder: nn.Module | None, small: nn.Module | None = None) -> None:
        """Time these networks from now on."""
        _watch_call(unet, self.timed("denoise"))
        if encoder is not None:
            _watch_call(encoder, self.timed("light"))
        if small is not None:
            _watch_call(small, self.timed("decode"))
        vae.encode, vae.decode = self.timed("encode")(vae.encode), self.timed("decode")(vae.decode)

    def timed(self, stage: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that counts a function's time to ``stage``."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                if torch.compiler.is_compiling():
                    return function(*args, **kwargs)
                outer, self.current = self.current, stage
                start = self._mark()
                try:
                    return function(*args, **kwargs)
                finally:
                    self._spans.append((stage, start, self._mark()))
                    self.calls[stage] += 1
                    self.current = outer

            return run

        return decorate

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds and calls of every stage since the last time, which are then forgotten."""
        wait(self.device)
        seconds = dict.fromkeys(STAGES, 0.0)
        for stage, start, end in self._spans:
            seconds[stage] += start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start
        calls, self.calls = self.calls, dict.fromkeys(STAGES, 0)
        self._spans.clear()
        return seconds, calls

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return read_clock(self.clock)
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _watch_call(network: nn.Module, decorate: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Around ``network(...)`` as a whole: outside its hooks, and outside its compiled graph where it has one."""
    kind = type(network)
    network.__class__ = type(kind.__name__, (kind,), {"__call__": decorate(kind.__call__), "__module__": kind.__module__})


def read_clock(clock: Clock) -> float:
    """Seconds: of the wall, or of the processor over all threads of this process, which other programs do not disturb."""
    return time.perf_counter() if clock == "wall" else time.process_time()


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype, clock: Clock = "wall", seconds: float = 2.0) -> float:
    """Floating point operations per second of the best of many products of large square matrices."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, begun = 0.0, time.perf_counter()
    a @ b
    while not best or time.perf_counter() - begun < seconds:
        wait(device)
        start = read_clock(clock)
        for _ in range(4):
            a @ b
        wait(device)
        best = max(best, 4 * 2 * size**3 / (read_clock(clock) - start))
    return best


class PeakMemory:
    """Largest memory since `reset`, bytes: allocated on a GPU, else resident in this process.

    Where the system cannot forget its largest value (anything but Linux), that of the whole process is given.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        """Forget what was."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int:
        """The largest since then."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        scale = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def count_launches(call: Callable[[], Any]) -> int:
    """Kernels that a GPU runs during ``call``, and graphs that are launched as one, counted by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    names: Iterator[str] = (event.name for event in profiler.events())
    return sum(name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")) for name in names)
