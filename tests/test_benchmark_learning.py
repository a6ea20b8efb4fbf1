"""The learning curve's benchmark: which shards a share takes, that it goes on, and that its scores mean what they say."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from synthetic import synthetic_clip
from test_training import SMALL, options

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import learning_curve
from learning_report import markdown, picture
from learning_scores import Stills, buffers, inverse_scores, score

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.store.shards import write_samples
from diffusion_renderer.training import export, presets
from diffusion_renderer.training.data import Mixture, store_clips
from diffusion_renderer.training.env import EnvStage
from diffusion_renderer.training.images import read_frames
from diffusion_renderer.training.vae import VaeStage
from diffusion_renderer.training.variation import Variation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards to train on, two clips held out, and an autoencoder."""
    folder = tmp_path_factory.mktemp("learning")
    clips = [synthetic_clip(seed, frames=1, size=16) for seed in range(8)]
    write_samples(folder / "shards", clips, 2, progress=False)
    write_samples(folder / "held", [synthetic_clip(seed, frames=2, size=16) for seed in (20, 21)], 2, progress=False)
    VaeStage(SMALL, Mixture.of(store_clips(clips)), options(folder, 1)).export(folder / "model")
    shutil.copytree(folder / "model" / "vae", folder / "vae" / "vae")
    EnvStage(SMALL, Mixture.of(store_clips(clips)), options(folder, 1)).export(folder / "model")
    return folder


def test_a_curve_is_written_and_gone_on_with(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "small", SMALL)
    out = tmp_path / "out"
    line = ["inverse", "--preset", "small", "--foundations", str(folder / "model"), "--data", str(folder / "shards")]
    line += ["--held-out", str(folder / "held"), "--batch", "2", "--device", "cpu", "--out", str(out), "--scores", "2"]
    line += ["--warmup", "0"]
    learning_curve.main([*line, "--steps", "2", "--shares", "1/4", "1"])
    record = json.loads((out / "inverse.json").read_text())
    told = [(row["share"], row["shards"], row["frames"], row["step"]) for row in record["rows"]]
    assert told == [("1/4", 1, 2, 1), ("1/4", 1, 2, 2), ("1", 4, 8, 1), ("1", 4, 8, 2)]
    assert all(row["scores"].keys() == {"basecolor", "normal", "depth", "roughness", "metallic"} for row in record["rows"])
    ElementTree.fromstring((out / "inverse.svg").read_text())
    # The rate is constant: nothing depends on how many steps were to come.
    rates = [line.split(",") for line in (out / "inverse-1" / "inverse" / "log.csv").read_text().splitlines()]
    assert rates[1][rates[0].index("rate")] == rates[-1][rates[0].index("rate")] and len(rates) == 3

    trained: list[tuple[str, int]] = []
    real = learning_curve.train

    def noted(stage: str, told: Any, preset: str) -> Any:
        trained.append((told.out.name, told.max_steps))
        return real(stage, told, preset)

    monkeypatch.setattr(learning_curve, "train", noted)
    learning_curve.main([*line, "--steps", "2", "--shares", "1/4", "1"])
    assert not trained
    learning_curve.main([*line, "--steps", "4", "--shares", "1/4"])
    assert trained == [("inverse-4", 4)] and len(json.loads((out / "inverse.json").read_text())["rows"]) == 5
    with pytest.raises(InputError, match="another seed"):
        learning_curve.main([*line, "--seed", "1"])


def test_a_forward_renderer_that_adds_nothing_is_the_classical_picture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = replace(SMALL, name="added", prior="splitsum", residual=True)
    monkeypatch.setitem(presets.PRESETS, "added", preset)
    line = ["forward", "--preset", "added", "--foundations", str(folder / "model"), "--data", str(folder / "shards")]
    line += ["--held-out", str(folder / "held"), "--batch", "2", "--device", "cpu", "--out", str(tmp_path)]
    learning_curve.main([*line, "--steps", "1", "--scores", "1", "--shares", "1/4"])
    record = json.loads((tmp_path / "forward.json").read_text())
    assert [row["scores"].keys() for row in record["rows"]] == [{"picture"}]

    run = tmp_path / "forward-4"
    export._silence(run / "forward" / "unet")
    stills = Stills.read([folder / "held"], 2, "splitsum")
    assert score("forward", preset, run, stills, folder / "model", "cpu") == record["baseline"]
    assert record["rows"][0]["scores"] != record["baseline"]


def test_shares_hold_each_other(folder: Path) -> None:
    every = learning_curve.chosen([folder / "shards"], Fraction(1))
    half, quarter = (learning_curve.chosen([folder / "shards"], Fraction(1, part)) for part in (2, 4))
    assert [len(every), len(half), len(quarter)] == [4, 2, 1] and set(quarter) < set(half) < set(every)
    with pytest.raises(InputError, match="1/2"):
        learning_curve.chosen([folder / "shards"], Fraction(2, 3))
    assert learning_curve.points(1600, 5) == [100, 200, 400, 800, 1600] and learning_curve.points(2, 5) == [1, 2]


def test_scores_of_what_is_known(folder: Path) -> None:
    """The truth itself, and the truth with an error of a known size on surfaces; outside of them nothing counts."""
    stills = Stills.read([folder / "held"], 10, None)
    (part,) = stills.parts()
    assert [item.frames for item in part.items] == [(0,), (2,)]
    index = torch.tensor([item.frames for item in part.items])
    images = read_frames(stills.store, index, SMALL.groups, Variation.none(2), torch.device("cpu")).buffers[:, 0]
    truth = buffers(SMALL, images)
    exact = inverse_scores(truth, truth)
    # float32's acos near 1 gives 0.03 degrees for equal vectors.
    assert len(exact) == 2 and exact[0]["basecolor"] == 100.0 and exact[0]["normal"] < 0.05 and exact[0]["roughness"] == 0.0
    background = (truth["depth"] >= 1).float()
    wrong = {**truth, "roughness": truth["roughness"] + 0.1 + 5 * background, "basecolor": truth["basecolor"] - 0.1}
    for found in inverse_scores(wrong, truth):
        assert found["roughness"] == pytest.approx(0.1, abs=1e-5) and found["basecolor"] == pytest.approx(20.0, abs=1e-3)
    turned = {**truth, "normal": truth["normal"][:, [1, 2, 0]]}
    assert inverse_scores(turned, truth)[0]["normal"] > 20


def test_the_report_has_a_line_per_score() -> None:
    row = {
        "share": "1/4",
        "shards": 3,
        "frames": 1500,
        "step": 100,
        "images": 2400,
        "seconds": 90.0,
        "scores": {"picture": 20.0},
    }
    rows = [row, {**row, "step": 200, "scores": {"picture": 21.5}}, {**row, "share": "1", "scores": {"picture": 19.0}}]
    record = {"settings": {"stage": "forward"}, "baseline": {"picture": 25.0}, "rows": rows}
    lines = markdown(record).splitlines()
    assert lines[2] == "| 3 (1/4) | 1,500 | 100 | 2,400 | 1.5 | 20.00 |" and "| 25.00 |" in lines[-1] and len(lines) == 6
    drawn = ElementTree.fromstring(picture(record))
    lines_drawn = [each for each in drawn.iter() if each.tag.endswith("polyline")]
    assert len(lines_drawn) == 2
    heights = [float(point.split(",")[1]) for point in lines_drawn[0].get("points").split()]
    assert heights[0] > heights[1]  # better is higher up
