"""Frames of a passing clip that are still needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


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
