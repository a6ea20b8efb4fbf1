"""A call on a long clip: what it was asked, and where one that was stopped goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffusion_renderer.core.resize import Fit
from diffusion_renderer.pipelines.protocols import Progress


@dataclass(frozen=True)
class ResumePoint:
    """Where a stopped call goes on. `stream` makes them for its ``note``; a program may keep one as numbers, in a file.

    Attributes
    ----------
    frame : the first frame that has not come yet.
    depth : gain and offset of the relative depth of the window that this frame belongs to; a forward renderer has none.
    """

    frame: int = 0
    depth: tuple[float, float] = (1.0, 0.0)


#: Called with the point after the frames that have been used.
Note = Callable[[ResumePoint], None]


@dataclass(frozen=True)
class Call:
    """What one call of a renderer was asked.

    Attributes
    ----------
    frames : of the whole clip.
    point : where it begins.
    begin : the first frame that is decoded: of the piece in which the point lies.
    read : the first frame that is read: those before it have no influence on what is to come.
    """

    frames: int
    steps: int
    seed: int
    fit: Fit
    solver: str | None
    point: ResumePoint
    begin: int
    read: int
    note: Note | None
    progress: Progress | None

    def used(self, frame: int, depth: tuple[float, float] = (1.0, 0.0)) -> None:
        """Note that all frames before this one have been used; not at the clip's end, where nothing is to be gone on with."""
        if self.note is not None and frame < self.frames:
            self.note(ResumePoint(frame, depth))
