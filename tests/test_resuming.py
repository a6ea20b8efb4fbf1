"""A stopped `inverse`, `forward` or `relight` goes on in the middle of a clip and ends with the files of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest
import torch
from models_random import GROUPS, save_model

import diffusion_renderer as dr
from diffusion_renderer import io
from diffusion_renderer.cli import main
from diffusion_renderer.cli.record import RECORD, Result
from diffusion_renderer.cli.resuming import STATE, Continued, NotingWriter, State
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.pipelines.diffusion import DiffusionRenderer
from diffusion_renderer.pipelines.resuming import ResumePoint

#: Windows of 4 frames that share 1, pieces of 2: three windows and one call of a network for each of them.
FRAMES = 9
BUFFERS = ("--buffers", "normal", "depth")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, settings = tmp_path_factory.mktemp("model"), {"groups": GROUPS, "decode_chunk": 2, "default_guidance": 1.0}
    save_model(folder / "inverse", "inverse", joint=True, **settings)
    save_model(folder / "forward", "forward", conditions=len(GROUPS), **settings)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole macroblocks: for other sizes x264 gives other bytes now and then (see test_cli_rendering)."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(1)
    dr.Clip(torch.rand(FRAMES, 3, 16, 32, generator=generator), 12.0, "shot").write(folder / "shot.mp4")
    for name in ("sun", "sky"):
        dr.EnvironmentMap(torch.rand(3, 8, 16, generator=generator)).write(folder / f"{name}.exr")
    return folder


@pytest.fixture(scope="module")
def whole(model: Path, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The output folder of an undisturbed run of a command line; each is run once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*words: str) -> Path:
        if words not in made:
            made[words] = tmp_path_factory.mktemp("whole")
            assert main([*words, "--model", str(model), "-o", str(made[words])]) == 0
        return made[words]

    return run


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Callable[..., int]:
    """Run a command line to ``out``; returns the exit status."""
    return lambda *words: main([*map(str, words), "--model", str(model), "-o", str(tmp_path / "out")])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != RECORD
    }


def noted(folder: Path) -> int | None:
    """The frame at which a result goes on."""
    state = folder / STATE
    return json.loads(state.read_text())["frame"] if state.is_file() else None


class Calls:
    """Counts the networks' calls; one of them fails, once the frames before it are on the disk.

    The wait is the test's: whether the writer is done with the piece before when a network fails is chance.
    """

    def __init__(self, stop: int, error: type[BaseException] | BaseException, folder: Path, frame: int | None) -> None:
        self.count, self._stop, self._error = 0, stop, error
        self._folder, self._frame = folder, frame

    def __call__(self, renderer: DiffusionRenderer, *args: object, **options: object) -> torch.Tensor:
        self.count += 1
        if self.count == self._stop:
            end = time.monotonic() + 60
            while noted(self._folder) != self._frame and time.monotonic() < end:
                time.sleep(0.01)
            raise self._error
        return PREDICT(renderer, *args, **options)


PREDICT = DiffusionRenderer.predict_batch


def calls_of(
    work: Callable[[], object],
    stop: int = 0,
    folder: Path = Path(),
    frame: int | None = None,
    error: type[BaseException] | BaseException = KeyboardInterrupt,
) -> int:
    """How often the networks are called. With ``stop``, that call fails, once ``frame`` is noted in ``folder``."""
    calls = Calls(stop, error, folder, frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionRenderer, "predict_batch", lambda *args, **options: calls(*args, **options))
        work()
    return calls.count


def test_buffers_go_on_at_the_window_that_failed(run, whole, inputs, tmp_path, capsys, unchecked):
    line = ("inverse", str(inputs / "shot.mp4"), *BUFFERS, "--format", "png", "mp4")
    expected, out = whole(*line), tmp_path / "out"
    assert calls_of(lambda: run(*line), 3, out / "shot", 4) == 3
    assert not (out / "shot.normal.mp4").exists()
    capsys.readouterr()
    assert calls_of(lambda: run(*line)) == 2  # frame 4 comes of the second window
    assert f"shot: goes on with frame 4 of {FRAMES}" in capsys.readouterr().err
    assert contents(out) == contents(expected)


def test_out_of_memory_goes_on_at_the_window(run, whole, inputs, tmp_path, capsys, unchecked):
    line = ("inverse", str(inputs / "shot.mp4"), *BUFFERS, "--format", "png", "mp4")
    expected, full = whole(*line), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    # The third window fails; then the second, of which frame 4 comes, and the third.
    assert calls_of(lambda: run(*line), 3, tmp_path / "out" / "shot", 4, full) == 3 + 2
    assert capsys.readouterr().err.count("out of memory: going on with") == 1
    made, plain = (dr.GBuffer.read(folder / "shot") for folder in (tmp_path / "out", expected))
    assert set(contents(tmp_path / "out")) == set(contents(expected))
    for name in ("normal", "depth"):
        difference = (getattr(made, name) - getattr(plain, name)).abs()
        assert not difference[:4].any()
        # Sliced layers add up in another order: one step of 16 bits measured in depth (1.5e-5), none in normals, of whose 8
        # bits one step is 0.016 at most.
        assert float(difference.max()) < 0.02


def relight_line(inputs: Path) -> tuple[str, ...]:
    lights = ("--light", str(inputs / "sun.exr"), str(inputs / "sky.exr"))
    return ("relight", str(inputs / "shot.mp4"), *lights, "--rotate-light", "--format", "png")


def test_a_relight_goes_on_at_the_light_and_the_frame(run, whole, inputs, tmp_path, capsys, unchecked):
    line, out = relight_line(inputs), tmp_path / "out"
    expected = whole(*line)
    # The buffers' three windows, the first light's three, two of the second light's.
    assert calls_of(lambda: run(*line), 9, out / "shot_sky", 4) == 9
    assert noted(out / "shot") is None and noted(out / "shot_sun") is None
    capsys.readouterr()
    assert calls_of(lambda: run(*line)) == 2
    said = capsys.readouterr().err
    assert said.count("complete already") == 2 and f"shot_sky: goes on with frame 4 of {FRAMES}" in said
    assert contents(out) == contents(expected)


def test_a_writer_that_failed_goes_on(run, whole, inputs, tmp_path, monkeypatch, capsys, unchecked):
    buffers = whole(*relight_line(inputs))
    line = ("forward", str(buffers / "shot"), "--light", str(inputs / "sun.exr"), "--rotate-light", "--format", "png")

    class FullDisk(io.ClipWriter):
        def write(self, clip: dr.Clip) -> None:
            if self._count + len(clip) > 5:
                raise OSError(28, "No space left on device")
            super().write(clip)

    with monkeypatch.context() as patch:
        patch.setattr(io, "ClipWriter", FullDisk)
        assert run(*line) == 2
    assert noted(tmp_path / "out" / "shot_sun") == 4
    assert calls_of(lambda: run(*line)) == 2
    assert "goes on with frame 4" in capsys.readouterr().err
    expected = {name: data for name, data in contents(buffers).items() if name.startswith("shot_sun/")}
    assert contents(tmp_path / "out") == expected and len(expected) == FRAMES + 1


def test_a_video_alone_is_made_again(run, inputs, tmp_path, capsys, unchecked):
    line = ("inverse", str(inputs / "shot.mp4"), "--buffers", "normal", "--format", "mp4")
    assert calls_of(lambda: run(*line), 3) == 3
    assert calls_of(lambda: run(*line)) == 3
    assert "goes on" not in capsys.readouterr().err
    assert len(dr.Clip.read(tmp_path / "out" / "shot.normal.mp4")) == FRAMES


def test_after_a_kill_the_files_are_the_same(run, whole, model, inputs, tmp_path, capsys, unchecked):
    line = ("inverse", str(inputs / "shot.mp4"), *BUFFERS, "--format", "png", "mp4")
    expected, out = whole(*line), tmp_path / "out"
    program = """
import os, signal, sys
from diffusion_renderer.cli import main, resuming
save = resuming.State.save
def killed(state, point):
    save(state, point)
    if point.frame == 4:
        os.kill(os.getpid(), signal.SIGKILL)
resuming.State.save = killed
main(sys.argv[1:])
"""
    words = [*line, "--model", str(model), "-o", str(out)]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert noted(out / "shot") == 4
    assert run(*line) == 0
    assert "goes on with frame 4" in capsys.readouterr().err
    assert contents(out) == contents(expected)


def continued(result: Result, said: list[str], can: bool = True, overwrite: bool = False) -> Continued:
    """As `Session` makes it for a clip of nine frames in one buffer."""

    def files(before: int) -> list[str]:
        return [f"shot/{frame:04d}.normal.png" for frame in range(before)]

    return Continued(result, can, FRAMES, files, said.append, overwrite)


@pytest.mark.parametrize("change", ["nothing", "options", "frame", "empty frame", "note", "number", "overwrite"])
def test_what_cannot_be_continued_begins_again_and_says_so(tmp_path: Path, change: str) -> None:
    result, said, point = Result(tmp_path, "shot", "gbuffers", {"seed": 0}), [], ResumePoint(4, (0.9, 0.1))
    (tmp_path / "shot").mkdir()
    for frame in range(4):
        (tmp_path / "shot" / f"{frame:04d}.normal.png").write_bytes(b"picture")
    State.of(result).save(point if change != "number" else ResumePoint(FRAMES))
    if change == "options":
        result = Result(tmp_path, "shot", "gbuffers", {"seed": 1})
    elif change == "frame":
        (tmp_path / "shot" / "0002.normal.png").unlink()
    elif change == "empty frame":
        (tmp_path / "shot" / "0003.normal.png").write_bytes(b"")
    elif change == "note":
        (tmp_path / "shot" / STATE).write_text("cut sho")
    run = continued(result, said, overwrite=change == "overwrite")
    says = {"nothing": "goes on with frame 4 of 9", "options": "other options", "overwrite": "", "note": "cannot be read"}
    assert run.point == (point if change == "nothing" else None) and run.first == (4 if change == "nothing" else 0)
    assert len(said) == (change != "overwrite")
    assert all(says.get(change, "not there any more") in line and "\n" not in line for line in said)
    run.noting(Silent())
    assert noted(tmp_path / "shot") == (4 if change == "nothing" else None)
    run.end()
    assert noted(tmp_path / "shot") is None


def test_a_result_that_cannot_go_on_notes_nothing(tmp_path: Path) -> None:
    writer, said = Silent(), []
    run = continued(Result(tmp_path, "shot", "gbuffers", {}), said, can=False)
    assert run.options == {} and run.noting(writer) is writer and not said


class Silent:
    """A writer that keeps nothing."""

    def __enter__(self) -> Silent:
        return self

    def write(self, piece: dr.Clip) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


def test_a_point_counts_when_its_frames_are_both_used_and_written(tmp_path: Path) -> None:
    state, piece = State(tmp_path / "clip" / STATE, "key"), dr.Clip(torch.zeros(2, 3, 2, 2))
    writer = NotingWriter(Silent(), state, first=4)
    writer.note(ResumePoint(6))
    assert noted(tmp_path / "clip") is None
    writer.write(piece)
    assert noted(tmp_path / "clip") == 6
    writer.write(piece)
    assert noted(tmp_path / "clip") == 6
    writer.note(ResumePoint(8, (0.9, 0.1)))
    assert state.read() == (ResumePoint(8, (0.9, 0.1)), "")
    assert State(state.path, "other").read()[0] is None
    writer.note(ResumePoint(10))
    writer.note(ResumePoint(12))
    writer.write(dr.Clip(torch.zeros(5, 3, 2, 2)))
    assert noted(tmp_path / "clip") == 12


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def buffers_of(frames: int) -> dr.GBuffer:
    normal = torch.nn.functional.normalize(random(frames, 3, 16, 32, seed=1) - 0.5, dim=1)
    return dr.GBuffer(random(frames, 3, 16, 32), normal, random(frames, 1, 16, 32, seed=2), random(frames, 1, 16, 32, seed=3))


@pytest.mark.parametrize("formats", [("png", "mp4"), ("mp4", "exr"), ("exr", "png", "mp4")])
def test_videos_are_continued_from_the_files_beside_them(tmp_path: Path, formats: tuple[str, ...]) -> None:
    things = {io.ClipWriter: dr.Clip(random(7, 3, 16, 32, seed=4)), io.GBufferWriter: buffers_of(7)}
    for writer, thing in things.items():
        for folder, ends in (("whole", [7]), ("parts", [3, 7])):
            begin = 0
            for end in ends:
                with writer(tmp_path / folder, "shot", 12.0, formats, first=begin) as target:
                    target.write(thing[begin:end])
                begin = end
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert len([name for name in contents(tmp_path / "whole") if name.endswith(".mp4")]) == 1 + 4


@pytest.mark.parametrize("formats", [("mp4",), ("png", "mp4"), ("exr", "mp4")])
def test_a_video_without_the_frames_before_is_refused(tmp_path: Path, formats: tuple[str, ...]) -> None:
    for writer, thing in ((io.ClipWriter, dr.Clip(random(1, 3, 16, 32))), (io.GBufferWriter, buffers_of(1))):
        with pytest.raises(InputError, match="frames before the first"):
            with writer(tmp_path, "shot", 12.0, formats, first=2) as target:
                target.write(thing)
    assert not list(tmp_path.rglob("*.mp4"))
