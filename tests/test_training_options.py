"""Options of training and configuration files: what is accepted, what counts, what a mistake says."""

from __future__ import annotations

import json
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.training import STAGES, TrainOptions, stage_folder
from diffusion_renderer.training.config import FILE, HARMLESS, keep_record, read_config
from diffusion_renderer.training.data import DataSource
from diffusion_renderer.training.options import STUDENT_STEPS, Method


def write(folder: Path, text: str, name: str = "train.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_folders_come_as_paths_words_and_sources() -> None:
    given = (Path("a"), "b", "c=0.5", DataSource(Path("d"), 2.0))
    expected = [DataSource(Path("a")), DataSource(Path("b")), DataSource(Path("c"), 0.5), DataSource(Path("d"), 2.0)]
    assert list(TrainOptions(data=given).data) == expected
    # A path is taken as it is, whatever its name.
    assert TrainOptions(data=(Path("b=2"),)).data == (DataSource(Path("b=2")),)


@pytest.mark.parametrize("entry", ["shards=heavy", "shards=0", "shards=-1", "shards=inf", "shards=nan"])
def test_bad_weights_of_folders_are_refused(entry: str) -> None:
    with pytest.raises(InputError, match="DIR=WEIGHT"):
        TrainOptions(data=(entry,))


@pytest.mark.parametrize(
    "values",
    [
        {"max_steps": 0},
        {"max_minutes": 0.0},
        {"batch": 0},
        {"accumulate": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup": -1},
        {"seed": -1},
        {"save_minutes": 0.0},
        {"save_steps": 0},
        {"sheet_steps": -1},
        {"keep": 0},
        {"explode": 1.0},
        {"ema": 1.0},
        {"ema": -0.1},
        {"estimated_share": 1.1},
        {"max_bad": float("nan")},
        {"lora_rank": -1},
        {"precision": "fp16"},
        {"light": "lamp"},
        {"teacher": "vae"},
        {"student_steps": 3},
        {"method": "gan"},
        {"teacher_steps": 0},
        {"teacher_guidance": -1.0},
        {"device": "abacus"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_values_that_cannot_be_are_refused_by_name(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(InputError, match="a device" if name == "device" else f"--{name.replace('_', '-')}"):
        TrainOptions(**values)


@pytest.mark.parametrize(
    "values",
    [{"ema": 0.0}, {"estimated_share": 1.0}, {"max_bad": 0.0}, {"lora_rank": 0}, {"warmup": 0}, {"teacher_guidance": 0.0}],
)
def test_the_ends_of_the_ranges_will_do(values: dict[str, float]) -> None:
    TrainOptions(**values)


def test_methods_and_steps_are_those_of_the_students() -> None:
    from diffusion_renderer.training.students import LAST_SIGMA, METHODS

    assert get_args(Method) == METHODS
    assert STUDENT_STEPS == tuple(LAST_SIGMA)


def test_students_have_a_folder_each() -> None:
    options = TrainOptions(out=Path("run"), teacher="inverse", student_steps=2)
    assert stage_folder("distill", options) == Path("run/distill-inverse-2")
    assert stage_folder("forward", options) == Path("run/forward")


def test_a_table_counts_before_what_stands_at_the_top(tmp_path: Path) -> None:
    config = read_config(
        write(tmp_path, 'preset = "tiny"\nbatch = 8\nseed = 3\ndata = ["a", "b=2"]\n[forward]\nbatch = 16\nmax-steps = 70\n')
    )
    assert config.options("inverse") == {"preset": "tiny", "batch": 8, "seed": 3, "data": ("a", "b=2")}
    assert config.options("forward") == {**config.options("inverse"), "batch": 16, "max_steps": 70}


def test_json_is_read_alike(tmp_path: Path) -> None:
    toml = read_config(write(tmp_path, 'learning_rate = 1\nout = "run"\n[env]\naugment = false\ndata = "a"\n'))
    text = json.dumps({"learning_rate": 1, "out": "run", "max_minutes": None, "env": {"augment": False, "data": "a"}})
    other = read_config(write(tmp_path, text, "train.json"))
    assert toml.options("env") == {"learning_rate": 1.0, "out": Path("run"), "augment": False, "data": ("a",)}
    assert other.options("env") == {**toml.options("env"), "max_minutes": None}


def test_every_option_can_stand_in_a_file(tmp_path: Path) -> None:
    """What a stage's record says is a configuration file that gives the same options."""
    options = TrainOptions(data=(Path("a"), "b=2"), out=Path("run"), max_minutes=3.0, save_steps=5, teacher_guidance=1.2)
    keep_record(tmp_path, "forward", "tiny", options)
    read = read_config(tmp_path / FILE).options("forward")
    assert read.pop("preset") == "tiny"
    assert TrainOptions(**read) == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batsh = 8", r"an option in .*train.toml; found 'batsh'; did you mean batch\?"),
        ("[forward]\nlearning-rat = 1.0", r"table \[forward\]; found 'learning-rat'; did you mean learning_rate\?"),
        ("[forwrad]\nbatch = 1", r"found 'forwrad'; did you mean forward\?"),
        ("[inverse]\nout = 'x'", r"table \[inverse\]; found 'out'"),
        ("[all]\nrendr = 1.0", r"table \[all\]; found 'rendr'; did you mean render\?"),
        ("[autolabel]\nsegmnts = 1", r"table \[autolabel\]; found 'segmnts'; did you mean segments\?"),
        ("batch = 'many'", r'batch in .* to be a whole number; found "many"'),
        ("batch = 1.5", "batch in .* to be a whole number; found 1.5"),
        ("batch = true", "batch in .* to be a whole number; found true"),
        ("[forward]\naugment = 1", r"augment in .*\[forward\] to be true or false; found 1"),
        ("explode = false", "explode in .* to be a number; found false"),
        ("out = 3", "out in .* to be a path in quotes; found 3"),
        ("precision = 'fp61'", "precision in .*: one of bf16, fp32; found 'fp61'"),
        ("forward = 3", r"names and values in .*\[forward\]; found 3"),
        ("batch = ", "readable TOML in .*train.toml"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("a.json", "{", "readable JSON"), ("a.json", "[1]", "names and values"), ("a.yaml", "batch: 1", ".toml or .json")],
)
def test_files_of_other_forms_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_config(write(tmp_path, text, name))


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_config(tmp_path / "none.toml")


def test_a_continued_run_is_warned_of_what_changes_its_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = TrainOptions(data=(Path("a"),), batch=8)
    other = replace(first, data=(*first.data, DataSource(Path("b"), 2.0)), batch=16, max_steps=9, keep=5, student_steps=4)
    with caplog.at_level(logging.WARNING):
        assert keep_record(tmp_path, "inverse", "tiny", first) == []
        # Nothing has been trained yet.
        assert keep_record(tmp_path, "inverse", "tiny", other) == []
        (tmp_path / "checkpoint-00000001").mkdir()
        assert keep_record(tmp_path, "inverse", "tiny", other) == []
        assert not caplog.records
        assert keep_record(tmp_path, "inverse", "small", first) == ["preset", "data", "batch"]
    (record,) = caplog.records
    assert "batch 8 (before: 16)" in record.message and '["a"] (before: ["a", "b=2"])' in record.message
    assert "\n" not in record.message
    assert json.loads((tmp_path / FILE).read_text())["preset"] == "small"


def test_only_options_are_called_harmless() -> None:
    assert HARMLESS <= {item.name for item in fields(TrainOptions)}
    assert "distill" in STAGES
