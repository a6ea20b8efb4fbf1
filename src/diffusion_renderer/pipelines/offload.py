"""Networks that take turns on a device: only the part that runs lies there, the others' weights wait in main memory."""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

#: Children of a UNet and of a VAE that hold nearly all of their weights.
BLOCKS = ("down_blocks", "mid_block", "up_blocks", "encoder", "decoder")


class Offload:
    """Brings the weights of a block to the device before it runs, and takes those away that are in its way.

    What belongs to no block, and the first parameter of each network, stays on the device: it is little, and a network says
    that it is on the device of its first parameter. Weights are kept in main memory beside the copy on the device, so that
    taking them away copies nothing; they must not be changed while this is on. Copies do not overlap with compute.

    Parameters
    ----------
    networks : lists of module trees of one network each; the trees of a list share their parameters (a network and its views
        with an adapter).
    device : where the networks run.

    Attributes
    ----------
    mode : "none" lets everything lie on the device (weights may be changed then), "component" one network's blocks (encoder
        and decoder of a VAE are two), "group" one block.
    """

    def __init__(self, networks: Sequence[Sequence[nn.Module]], device: torch.device) -> None:
        self.device, self.mode = device, "none"
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
                self._masters.clear()
            else:
                self.park()

    def bring(self, block: str) -> None:
        """Make a block ready to run."""
        if self.mode == "none":
            return
        with self._lock:
            wanted = {block}
            if self.mode == "component":
                wanted = {other for other, part in self._component.items() if part == self._component[block]}
            # First away, then in: the peak is the larger of the two and not their sum.
            for other in self.present - wanted:
                self._put_away(other)
            for other in wanted & self._waiting:
                self._take(other)

    def park(self) -> None:
        """Take every block away, for another renderer on the same device. Nothing happens in mode "none"."""
        with self._lock:
            for block in self.present if self.mode != "none" else ():
                self._put_away(block)

    def _put_away(self, block: str) -> None:
        if block not in self._masters:
            self._masters[block] = [_in_main_memory(p.data, self.device) for p in self._parameters[block]]
        for parameter, master in zip(self._parameters[block], self._masters[block], strict=True):
            parameter.data = master
        self._waiting.add(block)

    def _take(self, block: str) -> None:
        self._waiting.discard(block)
        for parameter, master in zip(self._parameters[block], self._masters[block], strict=True):
            parameter.data = self._on_device(master)

    def _on_device(self, weights: Tensor) -> Tensor:
        return weights.to(self.device, non_blocking=True)


def _in_main_memory(weights: Tensor, device: torch.device) -> Tensor:
    on_cpu = weights.to("cpu")
    return on_cpu.pin_memory() if device.type == "cuda" else on_cpu


def _blocks(network: nn.Module) -> list[tuple[str, str]]:
    """(name, component) of each block; a network without known blocks is one block, called by the empty name."""
    found = []
    for name, child in network.named_children():
        if name in BLOCKS:
            parts = [f"{name}.{index}" for index in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
            component = name if name in ("encoder", "decoder") else ""
            found += [(part, component) for part in parts]
    return found or [("", "")]


def _hook(offload: Offload, block: str) -> Any:
    """A function and no bound method: module trees are copied, and copying them must not copy the offload."""

    def bring(module: nn.Module, arguments: tuple, options: dict) -> None:
        offload.bring(block)

    return bring
