"""What is kept while a clip passes: frames still needed, and a bounded store of latents that were made before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from threading import Lock
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Value = TypeVar("Value")


class HeldFrames:
    """Frames that come in pieces, from the first one still needed to the last one asked for. Read once, forwards.

    Parameters
    ----------
    pieces : "frames ..." tensors, neighbours of one shape.
    first : the number of the first frame that ``pieces`` give.
    """

    def __init__(self, pieces: Iterator[Tensor], first: int = 0) -> None:
        self._pieces, self._first = iter(pieces), first
        self._held: list[Tensor] = []

    @property
    def stop(self) -> int:
        """One behind the last frame that was read."""
        return self._first + sum(map(len, self._held))

    def __getitem__(self, frames: slice) -> Tensor:
        """Some frames; reads on as far as they need. IndexError for frames that were let go or never come."""
        while self.stop < frames.stop and (piece := next(self._pieces, None)) is not None:
            self._held.append(piece)
        if frames.start < self._first or frames.stop > self.stop:
            raise IndexError(f"frames {frames.start} to {frames.stop} of those from {self._first} to {self.stop}")
        parts, begin = [], self._first
        for piece in self._held:
            part = piece[max(frames.start - begin, 0) : max(frames.stop - begin, 0)]
            if len(part):
                parts.append(part)
            begin += len(piece)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def add(self, piece: Tensor) -> None:
        """Hand over the piece behind those held, of frames that come from elsewhere."""
        self._held.append(piece)

    def forget(self, before: int) -> None:
        """Let pieces go that lie before a frame as a whole."""
        while self._held and self._first + len(self._held[0]) <= before:
            self._first += len(self._held.pop(0))


class BoundedStore(Generic[Value]):
    """Values by key, of at most ``limit`` bytes in all; those not used for longest go first. Threads may share one.

    A value is made outside the lock: two threads that ask for the same new key at the same time both make it.

    Parameters
    ----------
    limit : bytes.
    size : bytes of a value.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self.limit, self._size = limit, size
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._bytes, self._lock = 0, Lock()

    @property
    def bytes(self) -> int:
        """Held now."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key; made, and kept when it fits at all, where it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        taken = self._size(value)
        with self._lock:
            if taken <= self.limit and key not in self._values:
                self._values[key] = (value, taken)
                self._bytes += taken
            while self._bytes > self.limit:
                self._bytes -= self._values.popitem(last=False)[1][1]
        return value


def content_key(images: Float[Tensor, "frames channels height width"], *more: Hashable) -> tuple[Hashable, ...]:
    """A key of what images hold, not of which object they are: 16 bytes of BLAKE2b, with ``more`` that decides the value."""
    flat = images.detach().to("cpu").contiguous()
    digest = hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).digest()
    return (digest, tuple(images.shape), images.dtype, *more)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
