"""One evaluation from clips to report, on clips made by formula and renderers that are known."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import synthetic_clip

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Relit, Sample
from diffusion_renderer.datagen.store.shards import write_samples
from diffusion_renderer.editing import relit_name
from diffusion_renderer.evaluation import EvaluateOptions, evaluate, export, systems
from diffusion_renderer.evaluation.results import Results

TRUTH = {f"sphere{seed}": synthetic_clip(seed) for seed in (1, 2, 3)}


def two_lights(sample: Sample) -> Sample:
    """The clip, and the same one half as bright under half the light."""
    dim = EnvironmentMap(0.5 * sample.environment.radiance, "dim")
    return replace(sample, relit=(Relit(Clip(0.7 * sample.clip.frames, name=sample.clip.name), dim),))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_samples(tmp_path / "clips", [two_lights(sample) for sample in TRUTH.values()], shard_size=2, progress=False)
    return tmp_path / "clips"


class Known:
    """Renderers that make the truth, or ``wrong`` of it, and count their calls."""

    def __init__(self, wrong: Callable[[torch.Tensor], torch.Tensor] = lambda frames: frames, fails_at: int = 99) -> None:
        self.wrong, self.calls, self.fails_at = wrong, 0, fails_at

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt

    def inverse(self, clip: Clip, **options: Any) -> GBuffer:
        self._count()
        truth = TRUTH[clip.name].gbuffer
        return replace(truth, roughness=self.wrong(truth.roughness))

    def forward(self, gbuffer: GBuffer, light: EnvironmentMap, **options: Any) -> Clip:
        self._count()
        assert options["rotations"].shape == (len(gbuffer), 3, 3) and len(options["camera"]) == len(gbuffer)
        frames = TRUTH[gbuffer.name].clip.frames * (0.7 if light.name == "dim" else 1.0)
        return Clip(self.wrong(frames), name=gbuffer.name)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Known]:
    def use(**options: Any) -> Known:
        renderer = Known(**options)
        monkeypatch.setattr(systems, "load_inverse", lambda name: renderer.inverse)
        load = systems.load_forward if not hasattr(use, "load") else use.load
        use.load = load
        monkeypatch.setattr(systems, "load_forward", lambda name: load(name) if name in systems.CLASSICAL else renderer.forward)
        return renderer

    return use


def values(results: Results, system: str, what: str, metric: str) -> list[float]:
    return [
        figure.value
        for figure in results.figures
        if (figure.system, figure.what, figure.metric, figure.part) == (system, what, metric, "all")
    ]


def test_a_renderer_that_makes_the_truth_wins(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    known()
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr", "angle-mean", "rmse", "depth-rmse"))
    (inverse,) = evaluate("inverse", options)
    # Stored as 8-bit PNG; the truth that the renderer makes is not.
    assert min(values(inverse, "tiny", "basecolor", "PSNR")) > 45
    assert max(values(inverse, "tiny", "normal", "mean angular error")) < 0.6
    assert max(values(inverse, "tiny", "depth", "relative depth RMSE")) < 0.01
    constant = values(inverse, "constant", "depth", "relative depth RMSE")
    assert len(constant) == 3 and min(constant) > 0.1, "a constant relative depth is not stretched"
    (forward,) = evaluate("forward", options)
    assert len(values(forward, "tiny", "rgb", "PSNR")) == 6, "three clips under two lights"
    assert min(values(forward, "tiny", "surface", "PSNR")) > 45
    assert max(values(forward, "clip-mean", "rgb", "PSNR")) < 30
    for ending in (".md", ".csv", ".figures.csv", ".tex", ".html"):
        assert (tmp_path / "out" / f"forward-clips{ending}").is_file()
    rows = list(csv.reader((tmp_path / "out" / "forward-clips.figures.csv").open()))
    assert len(rows) - 1 == len(forward.figures)


def test_relighting_starts_from_the_first_light(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    renderer = known()
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr",), baselines=("splitsum", "input"))
    (results,) = evaluate("relight", options)
    assert renderer.calls == 6, "one inverse and one forward call a clip; splitsum shares the G-buffers"
    assert {figure.light for figure in results.figures} == {"dim"}
    assert min(values(results, "tiny", "rgb", "PSNR")) > 45
    truth = TRUTH["sphere1"].clip.frames
    error = ((0.7 * truth - truth) ** 2).mean()
    assert values(results, "input", "rgb", "PSNR")[0] == pytest.approx(-10 * torch.log10(error).item(), abs=0.1)
    assert len(values(results, "splitsum", "rgb", "PSNR")) == 3


def test_clips_of_one_light_cannot_be_relit(tmp_path: Path, known: Callable[..., Known]) -> None:
    known()
    write_samples(tmp_path / "clips", [TRUTH["sphere1"]], progress=False)
    with pytest.raises(InputError, match="two lights"):
        evaluate("relight", EvaluateOptions(data=tmp_path / "clips", out=tmp_path / "out", baselines=()))


def test_an_interrupted_evaluation_continues(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr",), baselines=("clip-mean",))
    known(fails_at=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate("forward", options)
    renderer = known()
    (results,) = evaluate("forward", options)
    assert renderer.calls == 4, "the first clip was complete, the second one is made again"
    (whole,) = evaluate("forward", replace(options, out=tmp_path / "other"))
    assert list(results.figures) == list(whole.figures)
    renderer = known()
    evaluate("forward", options)
    assert renderer.calls == 0


def test_other_metrics_are_computed_anew(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr",), baselines=())
    known()
    evaluate("forward", options)
    renderer = known()
    (results,) = evaluate("forward", replace(options, metrics=("psnr", "ssim")))
    assert renderer.calls == 6 and len(values(results, "tiny", "rgb", "SSIM")) == 6


def test_what_is_not_a_number_fails_the_clip(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    def broken(frames: torch.Tensor) -> torch.Tensor:
        wrong = frames.clone()
        wrong[0, :, 16, 16] = torch.nan
        return wrong

    known(wrong=broken)
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr",), baselines=("clip-mean",))
    (results,) = evaluate("forward", options)
    mine = [figure for figure in results.figures if figure.system == "tiny" and figure.part == "all"]
    assert all(figure.failed and figure.failure for figure in mine)
    assert "fail" in (tmp_path / "out" / "forward-clips.md").read_text()


def test_groups_of_materials_have_figures_of_their_own(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    known(wrong=lambda roughness: 0.5 * roughness)
    (results,) = evaluate("inverse", EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("rmse",), baselines=()))
    parts = {figure.part for figure in results.figures if figure.what == "roughness"}
    assert "all" in parts and parts & {"metal", "dielectric"}
    for name, sample in TRUTH.items():
        expected = 0.5 * sample.gbuffer.roughness[sample.gbuffer.mask].square().mean().sqrt().item()
        (found,) = [f.value for f in results.figures if (f.clip, f.what, f.part) == (name, "roughness", "all")]
        assert found == pytest.approx(expected, abs=0.003), "8-bit steps of 1/255"


def test_exported_clips_come_back_as_predictions(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    known()
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr", "angle-mean"), baselines=())
    export("forward", options, tmp_path / "inputs")
    given = tmp_path / "inputs" / "clips"
    assert (given / "sphere1" / "lights" / "dim.exr").is_file() and (given / "sphere1" / "0000.basecolor.png").is_file()
    (results,) = evaluate("inverse", replace(options, predictions=(f"copy={given}",)))
    assert results.systems == ("tiny", "copy")
    assert min(values(results, "copy", "basecolor", "PSNR")) > 45
    for name, sample in TRUTH.items():
        for light, factor in (("light", 1.0), ("dim", 0.7)):
            frames = Clip(factor * sample.clip.frames, name=relit_name(name, light))
            frames.write(tmp_path / "theirs", formats=("png",))
    (results,) = evaluate("forward", replace(options, predictions=(str(tmp_path / "theirs"),)))
    assert min(values(results, "theirs", "rgb", "PSNR")) > 45


def test_incomplete_predictions_are_listed(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    renderer = known()
    TRUTH["sphere1"].clip.write(tmp_path / "theirs" / "sphere1_light")
    options = EvaluateOptions(data=shards, out=tmp_path / "out", predictions=(str(tmp_path / "theirs"),))
    with pytest.raises(InputError, match="sphere2_light is missing"):
        evaluate("forward", options)
    assert renderer.calls == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": ("psnrr",)}, "psnr"),
        ({"baselines": ("spltsum",)}, "splitsum"),
        ({"models": ("tinny",)}, "tiny"),
        ({"suites": ("scene",)}, "scenes"),
        ({"metrics": ("angle-mean",)}, "mean something for forward"),
    ],
)
def test_unknown_names_name_the_nearest(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        evaluate("forward", EvaluateOptions(out=tmp_path, **options))


def test_an_unknown_task_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="inverse"):
        evaluate("inverze", EvaluateOptions(out=tmp_path))


def test_baselines_of_other_tasks_are_left_out() -> None:
    assert systems.applicable("inverse", ("splitsum", "ssrt", "constant", "constant")) == ("constant",)
    assert systems.applicable("forward", ("splitsum", "input")) == ("splitsum",)
