"""Going on in the middle of a clip: beside the frames of an unfinished result, ``.resume.json`` says which frame is next.

It is written when all files of the frames before that frame are there, atomically, after every piece, and removed when the
result is complete. It counts for the very same settings only: a digest of all that decides the result stands in it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from diffusion_renderer.cli.record import Result
from diffusion_renderer.core.types import Clip, GBuffer
from diffusion_renderer.io import atomic_path
from diffusion_renderer.io.background import PieceWriter
from diffusion_renderer.pipelines.resuming import ResumePoint

#: Hidden, so that no reader of folders takes it for a frame or counts it in a fingerprint.
STATE = ".resume.json"


@dataclass(frozen=True)
class State:
    """Where an unfinished result goes on.

    Attributes
    ----------
    path : of the file.
    key : of the result (`Result.key`).
    """

    path: Path
    key: str

    @classmethod
    def of(cls, result: Result) -> State:
        """Beside the frames of a result."""
        return cls(result.root / result.name / STATE, result.key)

    def save(self, point: ResumePoint) -> None:
        """Note the point."""
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps({"key": self.key, "frame": point.frame, "depth": point.depth}), encoding="utf-8")

    def read(self) -> tuple[ResumePoint | None, str]:
        """The point and an empty text; without a point, why what is there cannot be used (nothing there: an empty text)."""
        try:
            noted = json.loads(self.path.read_text(encoding="utf-8"))
            gain, offset = noted["depth"]
            point, key = ResumePoint(int(noted["frame"]), (float(gain), float(offset))), noted["key"]
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError, KeyError, TypeError):
            return None, "what says where it was stopped cannot be read"
        if key != self.key:
            return None, "what was stopped was to be made of another input, by other networks or with other options"
        return point, ""

    def remove(self) -> None:
        """Take the file away, if it is there."""
        self.path.unlink(missing_ok=True)


class NotingWriter:
    """A writer that notes, when a piece has been written, that a run which is stopped goes on behind it.

    A renderer's `note` and the writing of the same frames happen on two threads and in any order: a point counts when both are
    done with the frames before it.
    """

    def __init__(self, writer: PieceWriter, state: State, first: int) -> None:
        self._writer, self._state, self._written = writer, state, first
        self._points: deque[ResumePoint] = deque()
        self._lock = Lock()

    def __enter__(self) -> NotingWriter:
        self._writer.__enter__()
        return self

    def note(self, point: ResumePoint) -> None:
        """The renderer is done with the frames before the point."""
        with self._lock:
            self._points.append(point)
            self._save()

    def write(self, piece: Clip | GBuffer) -> None:
        """Write a piece."""
        self._writer.write(piece)
        with self._lock:
            self._written += len(piece)
            self._save()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, trace)

    def _save(self) -> None:
        reached = None
        while self._points and self._points[0].frame <= self._written:
            reached = self._points.popleft()
        if reached is not None:
            self._state.save(reached)


class Continued:
    """One result that is made from where it was stopped, if it was, and can be stopped again.

    Parameters
    ----------
    can : whether the renderer and the formats allow it; otherwise every result is made from its first frame on.
    frames : of the whole result.
    files : those of the frames before a given one, relative to the root; all must be there to go on.
    say : is told in one line what is done with an unfinished result.
    """

    def __init__(
        self,
        result: Result,
        can: bool,
        frames: int,
        files: Callable[[int], Sequence[str]],
        say: Callable[[str], None],
        overwrite: bool = False,
    ) -> None:
        self._state, self._can = State.of(result), can
        self._writer: NotingWriter | None = None
        point, reason = self._state.read()
        if point is not None and not (can and 0 < point.frame < frames and _all_there(result.root, files(point.frame))):
            point, reason = None, "frames that were written are not there any more"
        self.point = None if overwrite else point
        if overwrite:
            return
        if self.point is not None:
            say(f"goes on with frame {self.point.frame} of {frames}")
        elif reason:
            say(f"begins again: {reason}")

    @property
    def first(self) -> int:
        """The first frame that is to be made."""
        return 0 if self.point is None else self.point.frame

    @property
    def options(self) -> dict[str, Any]:
        """For the renderer's `stream`."""
        return {"resume": self.point, "note": self._note} if self._can else {}

    def noting(self, writer: PieceWriter) -> PieceWriter:
        """The writer of the frames from `first` on, to be called just before they are written."""
        if self.point is None:
            self._state.remove()
        if not self._can:
            return writer
        self._writer = NotingWriter(writer, self._state, self.first)
        return self._writer

    def end(self) -> None:
        """The result is complete."""
        self._state.remove()

    def _note(self, point: ResumePoint) -> None:
        if self._writer is not None:
            self._writer.note(point)


def _all_there(root: Path, files: Sequence[str]) -> bool:
    return all((root / file).is_file() and (root / file).stat().st_size > 0 for file in files)
