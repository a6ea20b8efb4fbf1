"""`train`: what is parsed, which of command line and file counts, what is passed on, what is printed, the exit status."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffusion_renderer import evaluation, training
from diffusion_renderer.cli import main
from diffusion_renderer.cli import train as command
from diffusion_renderer.cli.app import parse
from diffusion_renderer.cli.train_runs import session_options, stage_options
from diffusion_renderer.evaluation import EvaluateOptions
from diffusion_renderer.evaluation.metrics import METRICS
from diffusion_renderer.evaluation.results import Figure, Results
from diffusion_renderer.training import TrainOptions, autolabel, options, plan, session
from diffusion_renderer.training.config import Config, read_config
from diffusion_renderer.training.data import DataSource
from diffusion_renderer.training.session import Session


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What training is asked for, instead of training."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(training, "train", lambda *asked: seen.append(asked))
    return seen


def failure(capsys: pytest.CaptureFixture, *words: str) -> str:
    """The one line that a command ends with."""
    assert main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_names_are_those_of_the_options() -> None:
    assert command.STAGES == options.STAGES and command.METHODS == options._CHOICES["method"]
    assert command.PHASES == session.PHASES


def test_everything_is_passed_on(calls: list, tmp_path: Path) -> None:
    line = (
        "distill --data a b=0.5 --data c --preset tiny --max-steps 7 --max-minutes 2 --batch 3 --accumulate 2 --checkpointing"
        " --learning-rate 1e-4 --warmup 0 --decay 0 --ema 0.9 --seed 5 --save-minutes 1 --save-steps 9 --keep 2 --explode 7"
        " --sheet-steps 0 --tensorboard --no-augment --max-bad 0.5 --precision fp32 --start-from tiny --light concat"
        " --lora-rank 0 --estimated-share 0.25 --teacher inverse --student-steps 2 --method regression --teacher-steps 8"
        " --teacher-guidance 1.5 --device cpu"
    )
    assert main(["train", *line.split(), "-o", str(tmp_path)]) == 0
    expected = TrainOptions(
        data=("a", DataSource(Path("b"), 0.5), "c"),
        out=tmp_path,
        max_steps=7,
        max_minutes=2.0,
        batch=3,
        accumulate=2,
        checkpointing=True,
        learning_rate=1e-4,
        warmup=0,
        decay=0.0,
        ema=0.9,
        seed=5,
        save_minutes=1.0,
        save_steps=9,
        keep=2,
        explode=7.0,
        sheet_steps=0,
        tensorboard=True,
        augment=False,
        max_bad=0.5,
        precision="fp32",
        start_from="tiny",
        light="concat",
        lora_rank=0,
        estimated_share=0.25,
        teacher="inverse",
        student_steps=2,
        method="regression",
        teacher_steps=8,
        teacher_guidance=1.5,
        device="cpu",
    )
    assert calls == [("distill", expected, "tiny")]


def test_what_is_not_given_is_as_usual(calls: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "vae", "--data", "shards"]) == 0
    assert calls == [("vae", TrainOptions(data=("shards",), out=Path("runs/tiny")), "tiny")]


def test_the_command_line_counts_before_the_file(calls: list, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f'data = "a=2"\nout = "{tmp_path / "run"}"\nbatch = 8\nseed = 4\nwarmup = 50\n[forward]\nbatch = 16\nema = 0.5'
    )
    assert main(["train", "forward", "--config", str(file), "--seed", "0", "--warmup", "7"]) == 0
    expected = TrainOptions(data=("a=2",), out=tmp_path / "run", batch=16, ema=0.5, seed=0, warmup=7)
    assert calls == [("forward", expected, "tiny")]
    assert main(["train", "inverse", "--config", str(file), "--data", "b"]) == 0
    assert calls[1][1] == replace(expected, data=("b",), batch=8, ema=0.999, seed=4, warmup=50)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("forwrad --data a", "did you mean forward?"),
        ("vae --data a --preset tinny", "did you mean tiny?"),
        ("vae --data a --batsh 3", "did you mean --batch?"),
        ("vae", "at least one folder of shards"),
        ("vae --data a=much", "DIR=WEIGHT"),
        ("vae --data a --student-steps 2", "--student-steps with distill; found train vae"),
        ("vae --data a --segments 0", "--segments to be a whole number of at least 1"),
        ("distill --data a --student-steps 3", "--student-steps: one of 1, 2, 4"),
        ("forward --data a --estimated-share 2", "--estimated-share from 0 to 1"),
        ("inverse --data a --light concat", "found stage inverse"),
        ("all --share drawing=1", "--share to be one of render"),
        ("all --share render=much", "--share to be a number"),
        ("all --share render=0 vae=0 decoder=0 env=0 inverse=0 forward=0 calibrate=0 evaluate=0", "minutes above 0"),
        ("all --dry-run", "--dry-run with vae"),
        ("autolabel --data a", "-o OUT"),
        ("autolabel -o out", "--data with videos"),
        ("vae --data a --config none.yaml", ".toml or .json"),
    ],
)
def test_mistakes_are_one_line(line: str, message: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    words = line.split()
    out = [] if "-o" in words or words[0] == "autolabel" else ["-o", str(tmp_path)]
    assert message in failure(capsys, *words, *out)


def test_an_unknown_key_of_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run.toml").write_text("[forward]\nbatsh = 3\n")
    line = failure(capsys, "forward", "--config", str(tmp_path / "run.toml"))
    assert "run.toml, table [forward]" in line and "'batsh'" in line and "did you mean batch?" in line


def test_a_dry_run_prints_and_leaves_nothing(
    calls: list, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "describe", lambda preset, stage, asked: f"{preset.name} {stage} {asked.batch} images a step")
    out = tmp_path / "run"
    assert main(["train", "inverse", "--batch", "6", "--dry-run", "-o", str(out)]) == 0
    assert capsys.readouterr().out == "tiny inverse 6 images a step\n"
    assert not out.exists() and not calls


def test_labelling_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    seen: list[autolabel.AutolabelOptions] = []
    result = {"videos": 2, "clips": 3, "labelled": 3, "reused": 0, "skipped": {"bad.mp4": "too\nshort"}}
    monkeypatch.setattr(autolabel, "autolabel", lambda asked: seen.append(asked) or result)
    line = "autolabel --data a.mp4 clips --model mine --light-dir hdri --segments 3 --frames 8 --size 64 --seed 2"
    assert main(["train", *line.split(), "-o", str(tmp_path)]) == 0
    expected = autolabel.AutolabelOptions(
        data=(Path("a.mp4"), Path("clips")),
        out=tmp_path,
        model="mine",
        light_dir=Path("hdri"),
        segments=3,
        frames=8,
        size=64,
        seed=2,
    )
    assert seen == [expected]
    printed = capsys.readouterr()
    assert "3 clips of 2 videos" in printed.err and "bad.mp4: too short" in printed.err and str(tmp_path) in printed.out


def test_a_session_takes_its_own_table(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('max_minutes = 3\nmax_steps = 10\n[all]\nclips = 5\nrender = 0.5\nassets = "lib"\n[vae]\nbatch = 2\n')
    config = read_config(file)
    asked = parse(["train", "all", "--share", "render=0.25", "env=0", "--size", "64", "--evaluate-clips", "0"])
    found = session_options(asked, config)
    assert (found.max_minutes, found.clips, found.render, found.env, found.size) == (3.0, 5, 0.25, 0.0, 64)
    assert found.assets == (Path("lib"),) and found.evaluate_clips == 0 and found.vae == session.SessionOptions().vae
    assert session_options(parse(["train", "all", "--max-minutes", "9"]), config).max_minutes == 9.0
    assert stage_options(asked, config, "vae", max_steps=99)[1] == TrainOptions(batch=2, max_steps=10, max_minutes=3.0)
    assert stage_options(asked, Config(), "env", max_steps=99)[1].max_steps == 99


def test_everything_ends_with_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list[Any] = []
    model = tmp_path / "model"
    (model / "inverse").mkdir(parents=True)
    done = Session(1, model, 64, {"inverse": 9}, 1.5, 0.1)
    monkeypatch.setattr(session, "run_session", lambda *told: asked.append(told) or done)
    monkeypatch.setattr(evaluation, "evaluate", lambda *told: asked.append(told) or [scored(str(model))])
    line = ["train", "all", "--max-minutes", "1", "--evaluate-clips", "2", "--size", "32", "-o", str(tmp_path)]
    assert main(line) == 0
    (told, stages, preset), (task, scoring, _) = asked
    assert told == session.SessionOptions(max_minutes=1.0, evaluate_clips=2, size=32) and preset == "tiny"
    assert set(stages) == set(session.STAGES) and {each.out for each in stages.values()} == {tmp_path}
    assert {each.max_steps for each in stages.values()} == {session.MANY_STEPS}
    # There is no forward renderer in the model, so that none is scored.
    assert task == "inverse"
    assert scoring == EvaluateOptions(models=(str(model),), out=tmp_path / "evaluation", clips=2, size=32)
    (row,) = csv.DictReader((tmp_path / "learning.csv").open())
    assert (row["what"], row["metric"], float(row["mean"])) == ("basecolor", "PSNR", 21.0)
    assert "session 1: 64 frames rendered; steps: inverse 9" in capsys.readouterr().err
    assert main([*line[:4], "--evaluate-clips", "0", "-o", str(tmp_path)]) == 0 and len(asked) == 3


def scored(model: str) -> Results:
    """Two clips at 20 and 22 dB."""
    figures = [Figure(model, clip, "", "basecolor", "PSNR", value) for clip, value in (("a", 20.0), ("b", 22.0))]
    return Results("inverse", "small", "As it is.", (model,), (("basecolor", METRICS["psnr"]),), figures)
