"""`train` and `train all` from end to end, on a preset of a few thousand parameters and clips made by formula."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_preset import SMALL
from synthetic import synthetic_clip

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.store import shards
from diffusion_renderer.datagen.store.encode import encode_clip
from diffusion_renderer.training import TrainOptions, loop, train
from diffusion_renderer.training import presets as presets_module
from diffusion_renderer.training.session import (
    MANY_STEPS,
    PHASES,
    STAGES,
    Session,
    SessionOptions,
    _Clock,
    keep_figures,
    run_session,
)


@pytest.fixture(autouse=True)
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets_module.PRESETS, "small", SMALL)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Clips by formula in place of the path tracer, everything around it as it is; lists (kind of data set, clip)."""
    made: list[tuple[str, int]] = []

    def clips(span: range, seed: int, settings: Any) -> Iterator[tuple[int, dict[str, bytes]]]:
        for clip in span:
            made.append((f"{settings.frames}x{settings.width}", clip))
            sample = synthetic_clip(clip, frames=settings.frames, size=settings.width)
            yield clip, encode_clip(replace(sample, meta={"name": f"{clip:08d}", "seed": seed}), settings.format)

    monkeypatch.setattr(shards, "encoded_clips", clips)
    monkeypatch.setattr(shards, "choose_variant", lambda variant: "scalar_rgb")
    return made


def stages(out: Path, **others: Any) -> dict[str, TrainOptions]:
    options = TrainOptions(**{"out": out, "max_steps": MANY_STEPS, "batch": 4, "precision": "fp32", "device": "cpu"} | others)
    return dict.fromkeys(STAGES, options)


def short(**others: Any) -> SessionOptions:
    """Ends by its numbers of clips and steps; the minutes are those of a slow machine."""
    return SessionOptions(**{"max_minutes": 20.0, "clips": 4, "shard_images": 4, "workers": 1, "calibrate_clips": 8} | others)


def learning_rates(folder: Path) -> list[float]:
    with (folder / "log.csv").open() as file:
        return [float(row["rate"]) for row in csv.DictReader(file)]


def test_a_session_makes_a_model_and_the_next_one_goes_on(rendered: list, tmp_path: Path) -> None:
    from diffusion_renderer.pipelines import load_forward, load_inverse

    run = tmp_path / "run"
    first = run_session(short(), stages(run, max_steps=3), "small")
    assert sorted({path.parent.name for path in run.rglob("shard-*.tar")}) == ["procedural-1x32px", "procedural-4x32px"]
    assert first.images == 4 * 1 + 4 * 4 and first.number == 1
    assert first.steps == dict.fromkeys(STAGES, 3)
    assert json.loads((run / "forward" / "config.json").read_text())["preset"] == "small"

    clip = synthetic_clip(0, frames=2, size=32)
    gbuffer = load_inverse(first.model / "inverse", device="cpu")(clip.clip)
    relit = load_forward(first.model / "forward", device="cpu")(gbuffer, clip.environment)
    assert relit.frames.shape == (2, 3, 32, 32) and torch.isfinite(relit.frames).all()

    second = run_session(short(clips=6), stages(run, max_steps=5), "small")
    assert second.number == 2 and second.minutes > first.minutes
    # Further clips only, but for the last shard of stills, which was cut short; the networks that others are built on stay.
    assert second.images == 6 * 1 + 6 * 4 and rendered.count(("4x32", 0)) == 1
    assert second.steps == {"vae": 3, "decoder": 3, "env": 3, "inverse": 5, "forward": 5}


def test_a_session_calibrates_on_clips_of_its_own(rendered: list, tmp_path: Path) -> None:
    """They are of another seed than those that are trained on, and no stage reads them."""
    from diffusion_renderer.datagen.store.shards import read_metas

    told = {name: options for name, options in stages(tmp_path, max_steps=2).items() if name in ("vae", "inverse")}
    done = run_session(short(calibrate_clips=10), told, "small")
    assert {fitted.name for fitted in done.fitted} == {"basecolor", "roughness", "metallic"}
    assert all(fitted.clips == 5 for fitted in done.fitted)
    seeds = {where: {meta["seed"] for shard in (tmp_path / where).rglob("*.tar") for meta in read_metas(shard)}
             for where in ("data", "held-out")}  # fmt: skip
    assert seeds["data"].isdisjoint(seeds["held-out"])
    assert json.loads((tmp_path / "inverse" / "config.json").read_text())["data"] == [
        str(tmp_path / "data" / name) for name in ("procedural-1x32px", "procedural-4x32px")
    ]
    taken = {fitted.name: list(fitted.fits) for fitted in done.fitted if fitted.accepted}
    assert json.loads((done.model / "inverse" / "renderer.json").read_text()).get("calibration", {}) == taken


def test_a_small_decoder_is_trained_again_after_its_autoencoder(rendered: list, tmp_path: Path) -> None:
    told = {name: options for name, options in stages(tmp_path, max_steps=2).items() if name in ("vae", "decoder")}
    first = run_session(short(), told, "small")
    assert first.steps == {"vae": 2, "decoder": 2} and (first.model / "decoder_small").is_dir()
    told = {name: replace(options, max_steps=3) for name, options in told.items()}
    assert run_session(short(), told, "small").steps == {"vae": 2, "decoder": 2}
    data = tuple((tmp_path / "data").iterdir())
    train("vae", replace(told["vae"], data=data, max_steps=4), "small")
    assert run_session(short(), told, "small").steps == {"vae": 2, "decoder": 3}


def test_a_model_is_made_even_when_the_time_is_up(rendered: list, tmp_path: Path) -> None:
    """What is needed for a model gets a few steps, however long the rendering took; what is there is left."""
    hurried = short(max_minutes=1e-6)
    told = {stage: options for stage, options in stages(tmp_path, max_steps=2).items() if stage in ("vae", "env")}
    first = run_session(hurried, told, "small")
    assert first.left == 0.0 and first.steps.keys() == {"vae", "env"} and min(first.steps.values()) >= 1
    assert (first.model / "vae").is_dir() and (first.model / "env_encoder").is_dir()
    shards_made = list(rendered)
    assert len(shards_made) == 4 * 1 + 1  # the first shard of stills, the first of clips
    run_session(hurried, told, "small")
    assert rendered == shards_made


def test_the_learning_rate_ends_with_the_minutes(rendered: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of steps comes from the measured speed, so that the decay is over when the time is."""
    asked: list[tuple[int, float | None]] = []
    monkeypatch.setattr(loop, "run", lambda stage, options: _pretend(asked, stage, options))
    session = short(max_minutes=4.0, vae=0, decoder=0, env=0, forward=0, render=0, calibrate=0, evaluate=0)
    train("vae", replace(stages(tmp_path)["vae"], data=(_shards(tmp_path),), max_steps=1), "small")
    run_session(session, {"inverse": replace(stages(tmp_path)["inverse"], data=(_shards(tmp_path),))}, "small")
    (_, probe), (target, left) = asked[1:]
    assert asked[1][0] == MANY_STEPS and probe == pytest.approx(0.15 * 4, rel=0.1)
    # The pretended speed is 2 steps a second.
    assert target == pytest.approx(int(120 * probe) + 120 * left, abs=2)


def _pretend(asked: list, stage: Any, options: TrainOptions) -> loop.TrainState:
    """In place of training: two steps per second of the minutes."""
    asked.append((options.max_steps, options.max_minutes))
    stage.export(options.out / stage.name)
    steps = min(options.max_steps, int(120 * (options.max_minutes or 0.1)))
    return loop.TrainState(steps, steps / 2)


def _shards(folder: Path) -> Path:
    from diffusion_renderer.datagen.store.shards import write_samples

    made = folder / "shards"
    if not made.exists():
        write_samples(made, [synthetic_clip(seed, frames=4, size=32) for seed in range(3)], 2, progress=False)
    return made


def test_a_stage_that_was_interrupted_is_taken_up_again(
    rendered: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network was exported by the first steps, but it has not had its time."""
    told = {"vae": stages(tmp_path, max_steps=2)["vae"]}
    real, calls = loop.run, []

    def stops(stage: Any, options: TrainOptions) -> loop.TrainState:
        calls.append(stage.name)
        state = real(stage, options)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return state

    monkeypatch.setattr(loop, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        run_session(short(), told, "small")
    assert (tmp_path / "vae" / "vae").is_dir()
    done = run_session(short(), told, "small")
    assert len(calls) > 1 and done.steps["vae"] == 2
    again = len(calls)
    run_session(short(), told, "small")
    assert len(calls) == again


def test_minutes_are_divided_among_what_is_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_renderer.training import session

    now = [0.0]
    monkeypatch.setattr(session.time, "monotonic", lambda: now[0])
    shares = dict(zip(PHASES, (4, 1, 0, 1, 2, 2, 0, 0), strict=True))
    clock = _Clock(SessionOptions(max_minutes=10, **shares))
    assert clock.begin("render") == 4.0
    now[0] = 60.0  # one minute, not four: nine are left for six shares
    clock.leave_out("vae")
    assert clock.begin("env") == pytest.approx(9 / 5)
    assert clock.begin("inverse") == pytest.approx(9 / 2)
    now[0] = 60 * 11.0
    assert clock.begin("forward") == 0.0 and clock.left == 0.0
    assert _Clock(SessionOptions(max_minutes=10, evaluate_clips=0, render=1, evaluate=1)).begin("evaluate") is None


def test_folders_of_assets_give_data_sets_of_their_own(rendered: list, tmp_path: Path) -> None:
    (tmp_path / "mine" / "hdri").mkdir(parents=True)
    (tmp_path / "other" / "mine" / "hdri").mkdir(parents=True)
    with pytest.raises(InputError, match="different names"):
        run_session(short(assets=(tmp_path / "mine", tmp_path / "other" / "mine")), stages(tmp_path / "run"), "small")
    with pytest.raises(InputError, match="materials"):
        run_session(short(assets=(tmp_path / "other",)), stages(tmp_path / "run"), "small")


def test_scenes_have_walls_and_prints_but_in_a_data_set_that_was_begun_without(rendered: list, tmp_path: Path) -> None:
    from diffusion_renderer.training.session_data import PRINTS, WALLS, render_data

    def chosen() -> list[dict[str, Any]]:
        folders = render_data(short(clips=2), SMALL, tmp_path, minutes=5.0)
        return [json.loads((folder / "index.json").read_text())["settings"] for folder in folders]

    for settings in chosen():
        assert (settings["walls"], settings["prints"]) == (WALLS, PRINTS) and 0 < PRINTS < 1
    for index in tmp_path.glob("*/index.json"):
        begun = json.loads(index.read_text())
        del begun["settings"]["walls"], begun["settings"]["prints"]
        index.write_text(json.dumps(begun))
        (index.parent / "shard-000000.tar").unlink()
    assert not any({"walls", "prints"} & settings.keys() for settings in chosen())
    assert all(any(folder.glob("shard-*.tar")) for folder in tmp_path.iterdir())


def test_a_session_without_any_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dataset"):
        run_session(short(render=0), stages(tmp_path), "small")


def test_one_process_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        run_session(short(), stages(tmp_path), "small")


def test_a_damaged_record_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text("{")
    with pytest.raises(InputError, match="record of sessions"):
        run_session(short(), stages(tmp_path), "small")


@pytest.mark.parametrize(
    "values",
    [
        {"max_minutes": 0.0},
        {"render": -1.0},
        dict.fromkeys(PHASES, 0.0),
        {"frames": 0},
        {"size": 4},
        {"workers": -1},
        {"clips": 0},
    ],
    ids=str,
)
def test_bad_options_of_a_session(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        SessionOptions(**values)


def test_the_learning_curve_grows_by_a_line_per_figure(tmp_path: Path) -> None:
    session = Session(2, tmp_path / "model", 640, {"inverse": 30, "forward": 20}, 12.345, 0.5)
    keep_figures(session, "inverse", [("basecolor", "psnr", 20.5), ("normal", "angle-mean", 9.25)])
    path = keep_figures(session, "forward", [("rgb", "psnr", 22.0)])
    rows = list(csv.DictReader(path.open()))
    assert [(row["task"], row["what"], row["mean"]) for row in rows] == [
        ("inverse", "basecolor", "20.5"),
        ("inverse", "normal", "9.25"),
        ("forward", "rgb", "22.0"),
    ]
    assert all((row["session"], row["images"], row["steps"]) == ("2", "640", "inverse=30 forward=20") for row in rows)


def test_a_stage_keeps_its_settings_and_the_device_of_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which device a process has, and how many there are, is the launcher's to say."""
    seen: list[TrainOptions] = []
    monkeypatch.setattr(loop, "join_processes", lambda device: torch.device("cpu", 0))
    monkeypatch.setattr(loop, "run", lambda stage, options: seen.append(options) or loop.TrainState(1, 1.0))
    options = TrainOptions(data=(_shards(tmp_path),), out=tmp_path, batch=3)
    train("vae", options, "small")
    assert seen == [replace(options, device="cpu:0")]
    record = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert record["batch"] == 3 and record["data"] == [str(_shards(tmp_path))] and record["preset"] == "small"


def test_only_the_main_process_keeps_records(tmp_path: Path) -> None:
    from diffusion_renderer.training import _prepare

    options = TrainOptions(data=(_shards(tmp_path),), out=tmp_path)
    data = _prepare("vae", options, SMALL, main=False)
    assert len(data.stores) == 1 and not (tmp_path / "vae").exists()
    _prepare("vae", options, SMALL, main=True)
    assert sorted(path.name for path in (tmp_path / "vae").iterdir()) == ["assets.json", "config.json"]


def test_going_on_with_other_settings_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = TrainOptions(data=(_shards(tmp_path),), out=tmp_path, batch=2, max_steps=1, precision="fp32", device="cpu")
    train("vae", options, "small")
    with caplog.at_level(logging.WARNING, "diffusion_renderer"):
        train("vae", replace(options, max_steps=2), "small")
        assert not [record for record in caplog.records if "other settings" in record.message]
        train("vae", replace(options, max_steps=2, seed=5), "small")
    assert [record.message for record in caplog.records if "other settings" in record.message] == [
        "vae goes on with other settings, which change its result: seed 5 (before: 0)"
    ]
