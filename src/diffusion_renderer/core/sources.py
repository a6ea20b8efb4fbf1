"""Clips and G-buffers of any length, given in pieces, so that memory need not grow with the length.

`Clip` and `GBuffer`, which lie in memory, are such sources; so are the files that `io.open_clip` and `io.open_gbuffer` open. A
source can be gone through more than once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from diffusion_renderer.core.types import Clip, GBuffer


class _FrameSource(Protocol):
    """What both kinds of source say of themselves."""

    @property
    def name(self) -> str:
        """Names output files."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        ...

    def __len__(self) -> int:
        """Frames in all."""
        ...


@runtime_checkable
class ClipSource(_FrameSource, Protocol):
    """A clip in pieces."""

    def chunks(self, frames: int) -> Iterator[Clip]:
        """The clip in pieces of ``frames`` frames, the last may be shorter."""
        ...


@runtime_checkable
class GBufferSource(_FrameSource, Protocol):
    """The G-buffers of a clip in pieces, all with the same buffers."""

    def __getitem__(self, index: slice) -> GBufferSource:
        """Some of the frames."""
        ...

    def require(self, names: tuple[str, ...]) -> None:
        """InputError when one of ``names`` is absent."""
        ...

    def chunks(self, frames: int) -> Iterator[GBuffer]:
        """The G-buffers in pieces of ``frames`` frames, the last may be shorter."""
        ...

    def depth_range(self) -> tuple[float, float] | None:
        """Smallest and largest finite depth of the whole clip; None without one."""
        ...

    def has_relative_depth(self) -> bool:
        """Whether the whole clip's depth is relative; see `GBuffer.has_relative_depth`."""
        ...
