"""`dataset` and its actions: what is parsed, what is passed on, what is printed, the exit status."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exact_scene import exact_sample, write_dataset

from diffusion_renderer import datagen
from diffusion_renderer.cli import dataset as command
from diffusion_renderer.cli import main
from diffusion_renderer.cli.app import parse
from diffusion_renderer.datagen import readers, settings


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What generation is asked for, instead of rendering."""
    seen: list[dict[str, Any]] = []

    def generate(out: Path, chosen: settings.DatasetSettings, **options: Any) -> dict[str, Any]:
        seen.append({"out": out, "settings": chosen, **options})
        names = ["shard-000000.tar", "shard-000001.tar"]
        for name in names:
            if not (out / name).exists():
                (out / name).write_bytes(b"")
        skipped = {"bad.glb": "no\ntriangles", "odd.obj": "too large"}
        return {"shards": [{"name": name, "clips": 3} for name in names], "frames": 12, "skipped": skipped}

    monkeypatch.setattr(datagen, "generate_shards", generate)
    return seen


def test_the_names_of_the_options_are_those_of_the_settings() -> None:
    for name in ("FAMILIES", "MOTIONS", "FORMATS", "DENOISE_QUALITIES", "SPLITS"):
        assert getattr(command, name) == getattr(settings, name)
    assert {value for value in command.VARIANTS.values() if value} == set(settings.VARIANTS)


@pytest.mark.parametrize("form", [["dataset"], ["dataset", "generate"]])
def test_everything_is_passed_on(form: list[str], tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    line = (
        "--clips 7 --frames 5 --fps 24 --size 64x32 --samples 9 --depth 4 --seed 3 --family scenes --motions orbit light"
        " --motions static --lights 2 --format exr --shard-size 2 --workers 6 --max-minutes 5 --variant scalar --no-denoise"
        " --denoise-quality high --shards 1:3"
    )
    assert main([*form, str(tmp_path / "out"), *line.split()]) == 0
    (call,) = calls
    chosen = call.pop("settings")
    assert call == {
        "out": tmp_path / "out",
        "clips": 7,
        "shard_size": 2,
        "seed": 3,
        "workers": 6,
        "max_minutes": 5.0,
        "only": (1, 3),
    }
    assert (chosen.frames, chosen.fps, chosen.width, chosen.height, chosen.samples, chosen.depth) == (5, 24.0, 64, 32, 9, 4)
    assert (chosen.family, chosen.motions, chosen.lights) == ("scenes", ("orbit", "light", "static"), 2)
    assert (chosen.format, chosen.variant, chosen.denoise, chosen.denoise_quality) == ("exr", "scalar_rgb", False, "high")


def test_defaults(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    assert main(["dataset", str(tmp_path)]) == 0
    assert calls[0]["settings"] == settings.DatasetSettings()
    # 0 workers: as many as there are cores, or one on a GPU; generate_shards decides.
    assert (calls[0]["clips"], calls[0]["workers"], calls[0]["max_minutes"]) == (64, 0, None)


def test_what_was_skipped_and_the_speed_are_told(
    tmp_path: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "shard-000000.tar"
    old.write_bytes(b"")
    os.utime(old, (1, 1))
    assert main(["dataset", str(tmp_path), "--frames", "2"]) == 0
    shown = capsys.readouterr()
    assert (
        "2 assets skipped:\n" in shown.err
        and "  bad.glb: no triangles\n" in shown.err
        and "  odd.obj: too large\n" in shown.err
    )
    # Only the shard that is new: 3 clips of 2 frames.
    assert "6 frames, " in shown.err and "frames/s" in shown.err
    assert shown.out.startswith(f"{tmp_path}\n")


def test_folders_of_assets(tmp_path: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assets, out = tmp_path / "assets", str(tmp_path / "out")
    (assets / "models").mkdir(parents=True)
    (assets / "hdri").mkdir()
    assert main(["dataset", out, "--assets", str(assets), "--panoramas", str(tmp_path)]) == 0
    chosen = calls[0]["settings"]
    assert (chosen.models, chosen.materials, chosen.panoramas) == (assets / "models", None, tmp_path)
    assert main(["dataset", out, "--assets", str(tmp_path / "nothing")]) == 2
    assert "folders models, materials, hdri" in capsys.readouterr().err


def test_the_split_of_the_assets(tmp_path: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", str(tmp_path / "out"), "--panoramas", str(tmp_path), "--split", "test"]) == 0
    assert calls[0]["settings"].split == "test"
    assert main(["dataset", str(tmp_path / "out"), "--split", "train"]) == 2
    assert "expected a folder of assets with --split train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("dataset out --family rooms", "'rooms'"),
        ("dataset out --motions", "none"),
        ("dataset out --motions orbit spin", "'spin'"),
        ("dataset out --format png", "'png'"),
        ("dataset out --variant gpu", "'gpu'"),
        ("dataset out --lights 0", "'0'"),
        ("dataset out --split val", "'val'"),
        ("dataset out --workers -1", "'-1'"),
        ("dataset generate out --depth 0", "'0'"),
        ("dataset generate", "no OUT"),
        ("dataset inspect", "no DIR"),
        ("dataset inspect set --clips 0", "'0'"),
        ("dataset validate set more", "unrecognized options: more"),
        ("dataset convert hypersim set", "no -o OUT"),
        ("dataset", "no OUT"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(line: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: expected ") and error.count("\n") == 1 and f"found {found}" in error


def test_a_misspelt_option_of_an_action_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "inspect", "set", "--clip", "3"]) == 2
    error = capsys.readouterr().err
    assert "dataset inspect --help" in error and "did you mean --clips?" in error


def test_a_folder_named_like_an_action_needs_a_path(tmp_path: Path) -> None:
    assert parse(["dataset", "./inspect"]).out == Path("inspect") and isinstance(
        parse(["dataset", "./inspect"]), command.Dataset
    )
    assert isinstance(parse(["dataset", "inspect", "set"]), command.Inspect)


@pytest.mark.parametrize("action", ["", *command.ACTIONS])
def test_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["dataset", *([action] if action else []), "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: diffusion-renderer dataset {action}".rstrip() in shown and "(default: None)" not in shown
    if not action:
        assert all(f"dataset {name}" in shown for name in command.ACTIONS)
        assert all(name in shown for name in command.MOTIONS)


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path / "set", 2)
    assert main(["dataset", "inspect", str(folder), "--clips", "1", "--cell", "32", "--middle"]) == 0
    assert str(folder / "inspection" / "clips.png") in capsys.readouterr().out
    assert json.loads((folder / "inspection" / "statistics.json").read_text())["clips"] == 1
    assert main(["dataset", "inspect", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["clips"] == 2


def test_validate_ends_with_0_or_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path / "set", 2)
    assert main(["dataset", "validate", str(folder)]) == 0
    assert "no faults" in capsys.readouterr().out
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-2048])
    assert main(["dataset", "validate", str(folder)]) == 1
    shown = capsys.readouterr()
    assert "shard-000000.tar: checksum: expected" in shown.out and "faults" in shown.out and "error" not in shown.err
    assert main(["dataset", "validate", str(tmp_path)]) == 2


def test_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def read(*arguments: Any, **options: Any) -> list[datagen.Sample]:
        seen.append((arguments, options))
        # As a reader gives them: without the data engine's record.
        return [replace(exact_sample(index=index), meta={}, ids=None) for index in range(3)]

    monkeypatch.setattr(readers, "read_public", read)
    out = tmp_path / "out"
    line = f"dataset convert hypersim {tmp_path} -o {out} --split test --frames 3 --format png16 --shard-size 2"
    assert main(line.split()) == 0
    assert seen == [(("hypersim", tmp_path), {"split": "test", "frames": 3})]
    assert len(list(out.glob("shard-*.tar"))) == 2
    clips = list(datagen.read_shards(out))
    assert [clip.meta["format"] for clip in clips] == ["png16"] * 3 and clips[0].clip.name == "00000000"
    assert main(["dataset", "validate", str(out)]) == 0
