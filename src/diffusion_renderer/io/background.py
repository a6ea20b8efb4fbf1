"""Writing behind the network's back: pieces are encoded and written on a thread while the next ones are computed."""

from __future__ import annotations

from collections import deque
from threading import Condition, Thread
from types import TracebackType
from typing import Generic, Protocol, TypeVar, runtime_checkable

from diffusion_renderer.core.types import Clip, GBuffer

Piece = TypeVar("Piece", Clip, GBuffer)
#: Bytes of pieces that may wait: 16 frames of 5 buffers at 720p.
LIMIT = 1 << 29


@runtime_checkable
class PieceWriter(Protocol[Piece]):
    """What is made faster: `ClipWriter` and `GBufferWriter` are such writers."""

    def __enter__(self) -> object: ...

    def write(self, piece: Piece, /) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> object: ...


class BackgroundWriter(Generic[Piece]):
    """A writer whose `write` returns at once: a thread of its own calls the given writer's, piece by piece, in order.

    A context manager. Its end waits until everything is written and then ends the given writer. What a write raises is raised
    by the next call of `write`, or at the end; nothing is written after it. When the block fails, or is interrupted, pieces
    that wait are dropped, the piece at hand is finished, and the given writer is told: so there are whole files only.

    The pieces must not be changed after they were handed over. It makes nothing faster where the network keeps every core busy.

    Parameters
    ----------
    writer : does the work; is used by one thread at a time.
    limit : bytes of pieces that wait or are being written; `write` waits for room. A single larger piece is taken when nothing
        else waits, so that the peak is one piece above the larger of the two.
    """

    def __init__(self, writer: PieceWriter, limit: int = LIMIT) -> None:
        self._writer, self._limit = writer, limit
        self._waiting: deque[Piece] = deque()
        self._held, self._ended = 0, False
        self._error: BaseException | None = None
        self._changed = Condition()
        # Not a daemon: those are stopped in the middle of a file when the interpreter ends.
        self._thread = Thread(target=self._work, name="background-writer")

    def __enter__(self) -> BackgroundWriter:
        self._writer.__enter__()
        self._thread.start()
        return self

    def write(self, piece: Piece) -> None:
        """Hand a piece over; waits while too much is waiting. Raises what an earlier piece's writing raised."""
        size = piece_bytes(piece)
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not self._held or self._held + size <= self._limit)
            self._raise()
            self._held += size
            self._waiting.append(piece)
            self._changed.notify_all()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._changed:
                self._ended = True
                if error is not None:
                    self._waiting.clear()
                self._changed.notify_all()
            self._thread.join()
            if error is None:
                self._raise()
        except BaseException as raised:
            # A write failed, or the wait was interrupted: the given writer must not take what it has for complete.
            self._stop()
            self._writer.__exit__(type(raised), raised, raised.__traceback__)
            raise
        self._writer.__exit__(kind, error, trace)

    def _stop(self) -> None:
        """Drop what waits and let the thread end."""
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """The thread: write what is handed over until the end, or until something fails."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._ended)
                if not self._waiting:
                    return
                piece = self._waiting.popleft()
            try:
                self._writer.write(piece)
            except BaseException as error:  # all of it is raised again, by the thread that hands pieces over
                with self._changed:
                    self._error = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._held -= piece_bytes(piece)
                self._changed.notify_all()


def piece_bytes(piece: Clip | GBuffer) -> int:
    """Bytes of a piece's tensors."""
    tensors = [piece.frames] if isinstance(piece, Clip) else [tensor for _, tensor in piece.tensors()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
