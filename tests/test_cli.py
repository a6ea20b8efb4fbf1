"""The command line without its work: every spelling of the contract, clear errors, a fast help."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffusion_renderer.cli import main
from diffusion_renderer.cli.app import COMMANDS, explain, parse
from diffusion_renderer.cli.record import make_output_folder
from diffusion_renderer.cli.values import flatten
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import BUFFERS


def words(line: str) -> list[str]:
    return line.split()


def test_the_contract_of_inverse():
    line = "inverse in.mp4 -o out --model svd --buffers basecolor normal --steps 4 --seed 7 --size 64x32 --format png exr mp4"
    command = parse(words(f"{line} --frames 5"))
    assert (command.input, command.out, command.model) == (Path("in.mp4"), Path("out"), "svd")
    assert command.buffer_names == ("basecolor", "normal")
    assert (command.steps, command.seed, command.size, command.frames) == (4, 7, (64, 32), 5)
    assert flatten(command.format) == ("png", "exr", "mp4")


def test_the_contract_of_forward():
    line = (
        "forward buffers --light a.hdr --light b.exr --rotate-light --light-frame world --cameras cameras.json"
        " --static-frame 3 --guidance 1.5 --lora-scale 0.5 -o out"
    )
    command = parse(words(line))
    assert command.gbuffers == Path("buffers") and command.out == Path("out")
    assert command.light_paths == (Path("a.hdr"), Path("b.exr"))
    assert command.rotate_light and command.light_frame == "world" and command.cameras == Path("cameras.json")
    assert (command.static_frame, command.guidance, command.lora_scale) == (3, 1.5, 0.5)


@pytest.mark.parametrize(
    "lights",
    ["--light a.hdr --light b.exr", "--light a.hdr b.exr", "--light=a.hdr --light=b.exr", "--light a.hdr b.exr --light a.hdr"],
)
def test_lights_repeat_or_follow_each_other(lights):
    command = parse(words(f"relight in.mp4 {lights} -o out"))
    assert command.light_paths == (Path("a.hdr"), Path("b.exr"))


@pytest.mark.parametrize("formats", ["--format png mp4", "--format png --format mp4", "--format=png --format mp4"])
def test_formats_repeat_or_follow_each_other(formats):
    assert flatten(parse(words(f"inverse in.mp4 -o out {formats}")).format) == ("png", "mp4")


@pytest.mark.parametrize("line", ["-o out in.mp4", "in.mp4 --out out", "in.mp4 --out=out", "--seed 0 in.mp4 -o out"])
def test_the_input_may_stand_anywhere_between_single_options(line):
    command = parse(words(f"inverse {line}"))
    assert (command.input, command.out) == (Path("in.mp4"), Path("out"))


def test_defaults():
    command = parse(words("relight in.mp4 --light a.hdr -o out"))
    assert (command.model, command.seed, command.light_frame, command.light_scale) == ("tiny", 0, None, None)
    values = (command.steps, command.size, command.frames, command.cameras, command.static_frame, command.guidance)
    assert values == (None,) * 6
    assert command.format == () and command.buffers == () and not command.rotate_light and not command.overwrite


def test_all_frames_and_negative_angles():
    command = parse(words("relight in.mp4 --light a.hdr -o out --frames all --light-rotation -90 --light-elevation=-30.5"))
    assert (command.frames, command.light_rotation, command.light_elevation) == (None, -90.0, -30.5)


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("2.5", 2.5), ("0", 0.0)])
def test_light_scale(text, value):
    assert parse(words(f"relight in.mp4 --light a.hdr -o out --light-scale {text}")).light_scale == value


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("inverse in.mp4 -o out --steps 0", "'0'"),
        ("inverse in.mp4 -o out --steps four", "'four'"),
        ("inverse in.mp4 -o out --seed -1", "'-1'"),
        ("inverse in.mp4 -o out --size 0x5", "'0x5'"),
        ("inverse in.mp4 -o out --size 12", "'12'"),
        ("inverse in.mp4 -o out --size 12x", "'12x'"),
        ("inverse in.mp4 -o out --frames 0", "'0'"),
        ("inverse in.mp4 -o out --frames 1.5", "'1.5'"),
        ("inverse in.mp4 -o out --format png jpg", "'jpg'"),
        ("inverse in.mp4 -o out --format", "none"),
        ("forward g --light a.hdr -o out --guidance nan", "'nan'"),
        ("forward g --light a.hdr -o out --guidance -1", "'-1'"),
        ("forward g --light a.hdr -o out --light-scale inf", "'inf'"),
        ("forward g --light a.hdr -o out --light-frame sky", "'sky'"),
        ("forward g --light a.hdr -o out --static-frame -1", "'-1'"),
        ("inverse in.mp4", "no -o OUT"),
        ("inverse -o out", "no INPUT"),
        ("inverse in.mp4 -o out --stepz 3", "--stepz"),
        ("inverse in.mp4 other.mp4 -o out", "other.mp4"),
        ("inverze in.mp4 -o out", "'inverze'"),
        ("weights", "nothing"),
        ("", "nothing"),
        ("dataset out --clips 0", "'0'"),
        ("evaluate colour", "'colour'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(line, found, capsys):
    assert main(words(line)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: expected ") and captured.err.count("\n") == 1
    assert f"found {found}" in captured.err or f"found unrecognized options: {found}" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("line", "guess"), [("inverze x", "inverse"), ("inverse in.mp4 -o out --stepz 3", "--steps")])
def test_a_misspelling_gets_a_suggestion(line, guess, capsys):
    assert main(words(line)) == 2
    assert f"did you mean {guess}?" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["inverse", str(tmp_path / "none.mp4"), "-o", str(tmp_path), "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.rstrip().splitlines()[-1].startswith("error: expected")


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (InputError("a", "b", "c"), 2, "error: expected a; found b; c"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (MemoryError(), 1, "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), 1, "--frames"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "--size"),
        (PermissionError(13, "Permission denied", "x.png"), 2, "Permission denied: x.png"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (ModuleNotFoundError("No module named 'mitsuba'", name="mitsuba"), 2, "diffusion-renderer[data]"),
        (ZeroDivisionError("division\nby zero"), 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_every_ending_has_a_line_and_a_status(error, status, says):
    code, line = explain(error)
    assert code == status and says in line and "\n" not in line


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["weights", "info"]])
def test_help_exits_with_0(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: diffusion-renderer" in shown
    assert "{None}" not in shown and "(default: None)" not in shown


def test_help_names_buffers_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["relight", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in shown for name in BUFFERS)
    assert "degrees" in shown and "pixels" in shown and "(default: tiny)" in shown and "(default: the model's own)" in shown


def test_help_and_mistakes_load_nothing_heavy():
    code = (
        "import sys; from diffusion_renderer.cli import main; status = main(['inverse', 'x', '-o', 'y', '--steps', '0']);"
        " print(status, [name for name in ('torch', 'numpy', 'diffusers', 'PIL', 'av') if name in sys.modules])"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "2 []"
    # 0.2 s measured; torch alone takes 1.5 s and more, and a busy machine is slower still.
    assert time.monotonic() - started < 5


def test_version_through_the_module():
    result = subprocess.run(
        [sys.executable, "-m", "diffusion_renderer", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("diffusion-renderer ")


def test_weights_list_needs_no_network(capsys):
    assert main(["weights", "list"]) == 0
    shown = capsys.readouterr().out
    assert "tiny" in shown and "nexuslrf/diffusion_renderer-inverse-svd" in shown


def test_stages_that_take_turns_share_one_bar(capsys: pytest.CaptureFixture) -> None:
    """The frames of a long clip are read, rendered and written piece by piece: three bars in all, not three for every piece."""
    from diffusion_renderer.cli.progress import Progress

    with Progress() as progress:
        progress.subject = "clip"
        for done in (1, 2, 3):
            for what in ("reading", "rendering", "writing"):
                progress(done, 3, what)
        progress.subject = "other"
        progress(1, 1, "reading")
    shown = capsys.readouterr().err
    assert [shown.count(f"clip: {what}:   0%") for what in ("reading", "rendering", "writing")] == [1, 1, 1]
    assert "clip: writing: 100%" in shown and "other: reading: 100%" in shown


def test_processes_of_one_run_begin_with_the_same_folder_at_the_same_time(tmp_path: Path) -> None:
    """They tried it with one file, which one of them deleted under the other's hands: seen in a training of two processes."""
    folder = tmp_path / "run"
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: make_output_folder(folder), range(800))) == {folder}
    assert list(folder.iterdir()) == []
