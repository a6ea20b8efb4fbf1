"""What a training step is made of, so that it comes out alike however many processes and pieces compute it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Item:
    """One sample of a step: a clip, or a still as a clip of one frame.

    Attributes
    ----------
    frames : indices of its frames in the store that it was drawn from.
    seed : of everything that is random about it: noise, variation, dropped conditions. See `generator`.
    key : names the clip to the user, such as ``shard-000003/00000012``.
    """

    frames: tuple[int, ...]
    seed: int
    key: str = ""

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers for one purpose; other purposes of the same item do not disturb them."""
        return torch.Generator().manual_seed(derived_seed(self.seed, purpose))


@dataclass(frozen=True)
class Part:
    """Samples of a step that are computed alike: of one length, one frame size, one source.

    Attributes
    ----------
    store : whose frames the items are; what it is, is between the stage and its data.
    weight : of the mean of the items' losses in the loss of the step.
    estimated : the items' buffers are an inverse renderer's: those of real clips, and of rendered ones of `training.estimate`.
    """

    items: tuple[Item, ...]
    store: Any = None
    weight: float = 1.0
    estimated: bool = False


@runtime_checkable
class Stage(Protocol):
    """A stage of the paper's training: a network, a loss, a picture to look at, and the folder it ends in.

    ``network`` is what is trained: parameters that need gradients. ``losses`` is called with that network or a wrapper of it
    (several processes), and must reach the parameters through calling it only.
    """

    name: str
    network: nn.Module
    learning_rate: float
    device: torch.device

    def plan(self, step: int) -> tuple[Part, ...]:
        """The samples of a step. Depends on the run's seed and ``step`` alone, not on the process that asks."""

    def losses(self, network: nn.Module, part: Part) -> tuple[Float[Tensor, "items"], dict[str, float]]:
        """One loss per item, and values to log beside it. Everything random comes from the items' seeds."""

    def sheet(self) -> Tensor:
        """A picture, 3 height width in [0, 1], of what the network does now."""

    def export(self, folder: Path) -> None:
        """Write the network in diffusers' folder format."""


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits from numbers and words; another part gives an unrelated one, on every machine the same."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def micro_batches(part: Part, pieces: int, rank: int, processes: int) -> Iterator[tuple[Part, Float[Tensor, "items"]]]:
    """What process ``rank`` of ``processes`` computes of a part, in ``pieces`` pieces, with the weight of every item.

    The weights of all items of all processes add up to ``part.weight``. Every process gets as many pieces, all of the
    same number of items, for they wait for each other: where the items do not suffice, one is repeated with weight 0.
    """
    count = len(part.items)
    size = -(-count // (pieces * processes))
    for piece in range(-(-count // (size * processes))):
        start = (piece * processes + rank) * size
        mine = part.items[start : start + size]
        weights = torch.zeros(size)
        weights[: len(mine)] = part.weight / count
        yield replace(part, items=mine + part.items[:1] * (size - len(mine))), weights
