"""A clip for tests of what is read of it, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from diffusion_renderer.core.types import Clip


@dataclass
class Watched:
    """A clip that says which of its pieces have been read, by their first frame."""

    clip: Clip
    read: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.clip, name)

    def __len__(self) -> int:
        return len(self.clip)

    def chunks(self, frames: int) -> Iterator[Clip]:
        for start in range(0, len(self.clip), frames):
            self.read.append(start)
            yield self.clip[start : start + frames]
