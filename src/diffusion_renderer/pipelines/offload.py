"""Networks that take turns on a device: only the part that runs lies there, the others' weights wait in main memory."""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

#: Children of a UNet and of a VAE that hold nearly all of their weights, in the order in which they run.
BLOCKS = ("down_blocks", "mid_block", "up_blocks", "encoder", "decoder")


@runtime_checkable
class Copies(Protocol):
    """How weights get from main memory to a device."""

    def start(self, weights: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Their copies on the device, which need not be there yet, and a ticket for `wait`.

        They come after all that is computed so far, for they may take the memory that it has read.
        """

    def wait(self, ticket: Any) -> None:
        """What is computed from now on comes after the copies of the ticket."""


class DirectCopies:
    """One after the other with what is computed: a device without streams, or none at all."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self, weights: Sequence[Tensor]) -> tuple[list[Tensor], None]:
        """See `Copies`; the copies are there."""
        return [tensor.to(self.device) for tensor in weights], None

    def wait(self, ticket: None) -> None:
        """Nothing to wait for."""


class StreamCopies:
    """On a CUDA stream of their own, beside what is computed. Not run on a GPU so far.

    The copies' memory belongs to that stream in PyTorch's allocator: only a later copy can get it, and `start` lets it wait for
    the work that has read it. (`Tensor.record_stream` would be as safe, but a CPU that is ahead of the GPU would then be given
    new memory for one block after the other.)
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, weights: Sequence[Tensor]) -> tuple[list[Tensor], torch.cuda.Event]:
        """See `Copies`; weights must be in pinned memory to be copied while something is computed."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in weights]
            return copies, self.stream.record_event()

    def wait(self, ticket: torch.cuda.Event) -> None:
        """See `Copies`; the GPU waits, the CPU does not."""
        torch.cuda.current_stream(self.device).wait_event(ticket)


class Offload:
    """Brings the weights of a block to the device before it runs, and takes those away that are in its way.

    What belongs to no block, and the first parameter of each network, stays on the device: it is little, and a network says
    that it is on the device of its first parameter. Weights are kept in main memory beside the copy on the device, so that
    taking them away copies nothing; they must not be changed while this is on. Copies overlap with compute: those of a network
    are made in the order in which its blocks run, and each block waits for its own; where one block at a time is kept, the one
    that ran after it the last time is fetched while it runs. What runs on other streams than the caller's current one must
    wait for that one by itself.

    Parameters
    ----------
    networks : lists of module trees of one network each; the trees of a list share their parameters (a network and its views
        with an adapter).
    device : where the networks run.

    Attributes
    ----------
    mode : "none" lets everything lie on the device (weights may be changed then), "component" one network's blocks (encoder
        and decoder of a VAE are two), "group" one block and the next one.
    """

    def __init__(self, networks: Sequence[Sequence[nn.Module]], device: torch.device, copies: Copies | None = None) -> None:
        self.device, self.mode = device, "none"
        self._copies: Copies = copies or (StreamCopies(device) if device.type == "cuda" else DirectCopies(device))
        self._tickets: dict[str, Any] = {}
        self._last: str | None = None
        self._after: dict[str, str] = {}
        self._parameters: dict[str, list[nn.Parameter]] = {}
        self._component: dict[str, str] = {}
        self._masters: dict[str, list[Tensor]] = {}
        self._waiting: set[str] = set()
        self._lock = RLock()
        for index, trees in enumerate(networks):
            self._add(str(index), trees)

    def _add(self, network: str, trees: Sequence[nn.Module]) -> None:
        first = next(trees[0].parameters(), None)
        for name, component in _blocks(trees[0]):
            block = f"{network}/{name}"
            self._parameters[block] = [p for p in trees[0].get_submodule(name).parameters() if p is not first]
            self._component[block] = f"{network}/{component}"
            for tree in trees:
                tree.get_submodule(name).register_forward_pre_hook(_hook(self, block), with_kwargs=True)

    @property
    def present(self) -> set[str]:
        """The blocks whose weights are on the device."""
        return set(self._parameters) - self._waiting

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the weights that wait in main memory."""
        with self._lock:
            waiting = [parameter for block in self._waiting for parameter in self._parameters[block]]
        return sum(parameter.numel() * parameter.element_size() for parameter in waiting)

    def set_mode(self, mode: str) -> None:
        """Change what lies on the device from now on; with "none" everything is brought back."""
        with self._lock:
            self.mode = mode
            if mode == "none":
                for block in list(self._waiting):
                    self._take(block)
                for block in list(self._tickets):
                    self._arrive(block)
                self._masters.clear()
            else:
                self.park()

    def bring(self, block: str) -> None:
        """Make a block ready to run."""
        if self.mode == "none":
            return
        with self._lock:
            if self._last is not None and self._component[self._last] == self._component[block]:
                self._after[self._last] = block
            self._last = block
            # First away, then in: the peak is the larger of the two and not their sum.
            wanted = self._wanted(block)
            self._put_away(self.present.difference(wanted))
            for other in wanted:
                if other in self._waiting:
                    self._take(other)
            self._arrive(block)

    def _wanted(self, block: str) -> list[str]:
        """What is to be on the device while a block runs, in the order in which it is needed."""
        if self.mode == "component":
            names = [name for name, part in self._component.items() if part == self._component[block]]
            first = names.index(block)
            return names[first:] + names[:first]
        following = self._after.get(block, block)
        return [block] if following == block else [block, following]

    def park(self) -> None:
        """Take every block away, for another renderer on the same device. Nothing happens in mode "none"."""
        with self._lock:
            if self.mode != "none":
                self._put_away(self.present)
            self._last = None

    def _put_away(self, blocks: set[str]) -> None:
        for block in blocks:
            self._tickets.pop(block, None)
            if block not in self._masters:
                self._masters[block] = [_in_main_memory(p.data, self.device) for p in self._parameters[block]]
            for parameter, master in zip(self._parameters[block], self._masters[block], strict=True):
                parameter.data = master
            self._waiting.add(block)

    def _take(self, block: str) -> None:
        self._waiting.discard(block)
        copies, self._tickets[block] = self._copies.start(self._masters[block])
        for parameter, copy in zip(self._parameters[block], copies, strict=True):
            parameter.data = copy

    def _arrive(self, block: str) -> None:
        if block in self._tickets:
            self._copies.wait(self._tickets.pop(block))


def _in_main_memory(weights: Tensor, device: torch.device) -> Tensor:
    on_cpu = weights.to("cpu")
    return on_cpu.pin_memory() if device.type == "cuda" else on_cpu


def _blocks(network: nn.Module) -> list[tuple[str, str]]:
    """(name, component) of each block as they run; a network without known blocks is one block, called by the empty name."""
    children, found = dict(network.named_children()), []
    for name in BLOCKS:
        child = children.get(name)
        parts = [f"{name}.{index}" for index in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
        component = name if name in ("encoder", "decoder") else ""
        found += [(part, component) for part in parts if child is not None]
    return found or [("", "")]


def _hook(offload: Offload, block: str) -> Any:
    """A function and no bound method: module trees are copied, and copying them must not copy the offload."""

    def bring(module: nn.Module, arguments: tuple, options: dict) -> None:
        offload.bring(block)

    return bring
