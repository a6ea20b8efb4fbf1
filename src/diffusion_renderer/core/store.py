"""Values that were made before, by the content they were made of, in bounded memory."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Value = TypeVar("Value")


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
