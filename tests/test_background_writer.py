"""Writing on a thread while the network computes: what is written, in which order, and what happens when something fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

import pytest
import torch

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, GBuffer
from diffusion_renderer.io import ClipWriter, GBufferWriter
from diffusion_renderer.io.background import BackgroundWriter, piece_bytes


def clip_of(frames: int, seed: int = 0, size: int = 16) -> Clip:
    return Clip(torch.rand(frames, 3, size, size, generator=torch.Generator().manual_seed(seed)), fps=12.0, name="shot")


class Recorder:
    """A slow writer that notes what it is told."""

    def __init__(self, seconds: float = 0.0, fail_at: int | None = None) -> None:
        self.seconds, self.fail_at = seconds, fail_at
        self.pieces: list[Clip] = []
        self.threads: set[str] = set()
        self.ended_with: list[type | None] = []
        self.gate = threading.Event()
        self.gate.set()

    def __enter__(self) -> Recorder:
        return self

    def write(self, piece: Clip) -> None:
        self.gate.wait(10)
        time.sleep(self.seconds)
        if len(self.pieces) == self.fail_at:
            raise InputError("room on the disk", "none", "make room")
        self.threads.add(threading.current_thread().name)
        self.pieces.append(piece)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended_with.append(kind)


def test_everything_is_written_in_order_on_one_other_thread() -> None:
    recorder, pieces = Recorder(0.001), [clip_of(1, seed) for seed in range(30)]
    with BackgroundWriter(recorder) as writer:
        for piece in pieces:
            writer.write(piece)
    assert [id(piece) for piece in recorder.pieces] == [id(piece) for piece in pieces]
    assert recorder.threads == {"background-writer"} and recorder.ended_with == [None]


def test_computing_and_writing_overlap() -> None:
    """Ten pieces of 30 ms to compute and 30 ms to write: 0.6 s in turn; 0.33 s when they overlap."""
    started = time.monotonic()
    with BackgroundWriter(Recorder(0.03)) as writer:
        for seed in range(10):
            time.sleep(0.03)
            writer.write(clip_of(1, seed))
    # Sleeping needs no core, so that a busy machine adds little; half of the gain is asked for.
    assert time.monotonic() - started < 0.48


def test_a_full_writer_makes_the_network_wait() -> None:
    recorder, piece = Recorder(), clip_of(2)
    recorder.gate.clear()
    handed: list[int] = []

    def compute() -> None:
        with BackgroundWriter(recorder, limit=2 * piece_bytes(piece)) as writer:
            for index in range(5):
                writer.write(piece)
                handed.append(index)

    thread = threading.Thread(target=compute)
    thread.start()
    time.sleep(0.2)
    assert handed == [0, 1]  # the one being written counts
    recorder.gate.set()
    thread.join(10)
    assert handed == [0, 1, 2, 3, 4] and len(recorder.pieces) == 5


def test_a_piece_above_the_limit_is_taken_alone() -> None:
    recorder = Recorder()
    with BackgroundWriter(recorder, limit=1) as writer:
        for seed in range(3):
            writer.write(clip_of(1, seed))
    assert len(recorder.pieces) == 3


def test_a_failed_write_surfaces_and_nothing_is_written_after_it() -> None:
    recorder = Recorder(fail_at=2)
    with pytest.raises(InputError, match="room on the disk"):
        with BackgroundWriter(recorder, limit=1) as writer:
            for seed in range(20):
                writer.write(clip_of(1, seed))
    assert len(recorder.pieces) == 2 and recorder.ended_with == [InputError]


def test_the_last_write_failing_surfaces_at_the_end() -> None:
    recorder = Recorder(0.02, fail_at=0)
    with pytest.raises(InputError, match="room on the disk"):
        with BackgroundWriter(recorder) as writer:
            writer.write(clip_of(1))
    assert recorder.ended_with == [InputError]


def test_an_interrupt_leaves_whole_files_only(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        with BackgroundWriter(ClipWriter(tmp_path, "shot", 12.0, ("png", "mp4"))) as writer:
            for seed in range(4):
                writer.write(clip_of(4, seed, 64))
            raise KeyboardInterrupt
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not any(name.startswith(".") or name.endswith(".mp4") for name in files)
    assert len(files) % 4 == 0  # a piece is written whole or not at all
    assert not [thread for thread in threading.enumerate() if thread.name == "background-writer"]


def test_files_are_those_of_the_plain_writer(tmp_path: Path) -> None:
    pieces = [GBuffer(basecolor=clip_of(3, seed).frames, roughness=clip_of(3, seed + 9).frames[:, :1]) for seed in range(3)]
    formats = ("png", "exr", "mp4")
    with GBufferWriter(tmp_path / "plain", "shot", 12.0, formats) as plain:
        for piece in pieces:
            plain.write(piece)
    with BackgroundWriter(GBufferWriter(tmp_path / "behind", "shot", 12.0, formats)) as behind:
        for piece in pieces:
            behind.write(piece)
    expected = {path.relative_to(tmp_path / "plain"): path.read_bytes() for path in (tmp_path / "plain").rglob("*.*")}
    found = {path.relative_to(tmp_path / "behind"): path.read_bytes() for path in (tmp_path / "behind").rglob("*.*")}
    assert found == expected and len(found) == 9 * 3 + 2 + 1
