"""One evaluation from clips to report, on clips made by formula and renderers that are known."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import synthetic_clip

from diffusion_renderer.core.encoding import relative_depth
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Relit, Sample
from diffusion_renderer.datagen.store.shards import write_samples
from diffusion_renderer.editing import relit_name
from diffusion_renderer.evaluation import EvaluateOptions, clips, entries, evaluate, export, systems, tasks
from diffusion_renderer.evaluation.metrics import METRICS
from diffusion_renderer.evaluation.motion import Motion
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
    # A constant relative depth is not stretched: its error is the depth's spread and how far the mean is from the clip's.
    spheres = [relative_depth(sample.gbuffer.depth)[sample.gbuffer.mask] for sample in TRUTH.values()]
    best = torch.stack([depth.mean() for depth in spheres]).mean()
    assert constant == pytest.approx([(depth - best).square().mean().sqrt().item() for depth in spheres], abs=0.002)
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


def test_a_metric_that_becomes_available_is_computed(
    shards: Path, tmp_path: Path, known: Callable[..., Known], monkeypatch: pytest.MonkeyPatch
) -> None:
    known()
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr", "flip"), baselines=())
    flip = METRICS["flip"]
    monkeypatch.setitem(METRICS, "flip", replace(flip, reason=lambda: "its package is not installed"))
    (results,) = evaluate("forward", options)
    assert not values(results, "tiny", "rgb", "FLIP") and "not installed" in results.unavailable["FLIP"]
    monkeypatch.setitem(METRICS, "flip", replace(flip, compute=lambda *given: 0.25, reason=lambda: None))
    (results,) = evaluate("forward", options)
    assert values(results, "tiny", "rgb", "FLIP") == [0.25] * 6


def test_metrics_none_of_which_can_be_computed_are_refused(
    shards: Path, tmp_path: Path, known: Callable[..., Known], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = known()
    monkeypatch.setitem(METRICS, "flip", replace(METRICS["flip"], reason=lambda: "its package is not installed"))
    with pytest.raises(InputError, match="FLIP: its package is not installed"):
        evaluate("forward", EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("flip",)))
    assert renderer.calls == 0


def test_classical_renderers_follow_the_estimates_they_relight(
    shards: Path, tmp_path: Path, known: Callable[..., Known]
) -> None:
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr",), baselines=("splitsum",), steps=1)
    known(wrong=lambda values: 0.1 * values)
    (first,) = evaluate("relight", options)
    known()
    (other,) = evaluate("relight", replace(options, steps=2))
    (again,) = evaluate("relight", replace(options, steps=2, out=tmp_path / "anew"))
    assert values(other, "splitsum", "rgb", "PSNR") == values(again, "splitsum", "rgb", "PSNR")
    assert values(other, "splitsum", "rgb", "PSNR") != values(first, "splitsum", "rgb", "PSNR")


def test_true_gbuffers_make_classical_renderers_independent_of_the_model(
    shards: Path, tmp_path: Path, known: Callable[..., Known], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr",), baselines=("splitsum",))
    known()
    (first,) = evaluate("forward", options)
    monkeypatch.setattr(entries, "weights_of", lambda model: f"another {model}")
    renderer = known()
    load = systems.load_forward
    monkeypatch.setattr(systems, "load_forward", lambda name: load(name) if name == "tiny" else pytest.fail(f"{name} again"))
    (second,) = evaluate("forward", options)
    assert renderer.calls == 6 and list(second.figures) == list(first.figures)


def test_clips_of_one_name_are_refused(tmp_path: Path, known: Callable[..., Known]) -> None:
    renderer = known()
    other = replace(TRUTH["sphere2"], clip=replace(TRUTH["sphere2"].clip, name="sphere1"))
    write_samples(tmp_path / "clips", [TRUTH["sphere1"], other], progress=False)
    with pytest.raises(InputError, match="2 named sphere1"):
        evaluate("forward", EvaluateOptions(data=tmp_path / "clips", out=tmp_path / "out"))
    assert renderer.calls == 0


def test_the_report_shows_a_few_clips_and_no_pictures_of_others_are_kept(
    tmp_path: Path, known: Callable[..., Known], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"sphere{seed}": synthetic_clip(seed, frames=1, size=16) for seed in range(9)}
    for name, sample in many.items():
        monkeypatch.setitem(TRUTH, name, sample)
    write_samples(tmp_path / "clips", list(many.values()), progress=False)
    known(wrong=lambda frames: 0.9 * frames)
    options = EvaluateOptions(data=tmp_path / "clips", out=tmp_path / "out", metrics=("psnr",), baselines=("clip-mean",))
    (results,) = evaluate("forward", options)
    order = sorted(zip(values(results, "tiny", "rgb", "PSNR"), many, strict=True))
    shown = {name for _, name in (*order[:3], *order[-3:])}
    assert {(item.clip, item.system) for item in results.pictures} == {
        (clip, system) for clip in shown for system in ("truth", "tiny", "clip-mean")
    }
    assert (tmp_path / "out" / "forward-clips.html").read_text().count("<img") == len(shown) * (3 + 2)


def test_stills_have_no_flicker_and_nobody_fails(tmp_path: Path, known: Callable[..., Known]) -> None:
    still = {"sphere1": replace(TRUTH["sphere1"], clip=TRUTH["sphere1"].clip[:1], gbuffer=TRUTH["sphere1"].gbuffer[:1])}
    sample = replace(still["sphere1"], camera=TRUTH["sphere1"].camera[slice(0, 1)])
    write_samples(tmp_path / "clips", [sample], progress=False)
    known(wrong=lambda values: values[:1])
    options = EvaluateOptions(data=tmp_path / "clips", out=tmp_path / "out", models=("splitsum",), baselines=())
    (results,) = evaluate("forward", replace(options, metrics=("psnr", "temporal")))
    assert {figure.metric for figure in results.figures} == {"PSNR"} and not any(figure.failed for figure in results.figures)
    assert "two frames" in results.unavailable["temporal instability"]
    assert "temporal instability could not be computed" in (tmp_path / "out" / "forward-clips.md").read_text()


def test_what_the_truth_has_no_figure_for_is_nobodys_failure() -> None:
    context = Motion.still(2, 4, 4)
    unseen = Motion(context.target, torch.zeros_like(context.valid))
    frames = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    answer = tasks.Answer("sky", "rgb", "rgb", frames, frames.flip(0), torch.ones(2, 1, 4, 4, dtype=torch.bool))
    column = [("rgb", METRICS["temporal"])]
    assert list(tasks.figures(answer, "mine", TRUTH["sphere1"], column, unseen)) == []
    (figure,) = tasks.figures(answer, "mine", TRUTH["sphere1"], column, context)
    assert figure.value > 0
    broken = replace(answer, estimate=torch.full_like(frames, torch.nan))
    (figure,) = tasks.figures(broken, "mine", TRUTH["sphere1"], column, context)
    assert figure.failed and "not finite" in figure.failure


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


def test_predictions_that_were_changed_are_scored_again(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    known()
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr",), baselines=())
    options = replace(options, predictions=(str(tmp_path / "theirs"),))
    for factor in (0.5, 1.0):
        for name, sample in TRUTH.items():
            for light, dimmed in (("light", 1.0), ("dim", 0.7)):
                frames = Clip(factor * dimmed * sample.clip.frames, name=relit_name(name, light))
                frames.write(tmp_path / "theirs", formats=("png",))
        (results,) = evaluate("forward", options)
        assert (min(values(results, "theirs", "rgb", "PSNR")) > 45) == (factor == 1.0)


def test_predictions_may_be_named_like_anything(shards: Path, tmp_path: Path, known: Callable[..., Known]) -> None:
    known()
    options = EvaluateOptions(data=shards, out=tmp_path / "out", metrics=("psnr",), baselines=("constant", "splitsum"))
    given = export("inverse", options, tmp_path / "inputs") / "clips"
    for name in ("constant", "truth", "tiny"):
        shutil.copytree(given, tmp_path / name)
    folders = tuple(str(tmp_path / name) for name in ("constant", "truth", "tiny"))
    (results,) = evaluate("inverse", replace(options, predictions=folders))
    assert results.systems == ("tiny", "constant-2", "truth-2", "tiny-2", "constant")
    assert min(values(results, "constant-2", "basecolor", "PSNR")) > 45 > max(values(results, "constant", "basecolor", "PSNR"))


def test_folders_of_predictions_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert systems.folder_name("mine=some/where") == ("mine", Path("some/where"))
    assert systems.folder_name("some/where") == ("where", Path("some/where"))
    assert systems.folder_name("a=b") == ("a=b", Path("a=b")), "a folder of this very name"


def test_mistakes_are_told_before_clips_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "render_suite", lambda *given, **options: pytest.fail("rendered"))
    options = EvaluateOptions(out=tmp_path / "out")
    with pytest.raises(InputError, match="two lights"):
        evaluate("relight", replace(options, suites=("scenes",), lights=1))
    with pytest.raises(InputError, match="nothing there"):
        evaluate("forward", replace(options, predictions=(str(tmp_path / "nowhere"),)))
    with pytest.raises(InputError, match="--baseline pathtrace"):
        evaluate("forward", replace(options, models=("pathtrace",)))


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


def test_several_processes_find_what_one_finds(shards: Path, tmp_path: Path) -> None:
    """Torch's sums do not depend on the process, so figures are equal to the bit with as many threads."""

    def scored(out: str, **options: Any) -> list[Any]:
        told = EvaluateOptions(
            models=("splitsum",), baselines=("constant",), data=shards, metrics=("psnr",), out=tmp_path / out, **options
        )
        return evaluate("forward", told, lambda done, total, what: seen.append((done, total)))[0].figures

    seen: list[tuple[int, int]] = []
    alone = scored("alone")
    seen.clear()
    together = scored("together", workers=2)
    assert seen[0] == (0, 3) and (0, 6) in seen and (4, 6) in seen
    assert [(f.system, f.clip, f.light, f.what, f.part) for f in together] == [
        (f.system, f.clip, f.light, f.what, f.part) for f in alone
    ]
    # Worst difference measured between one thread and two: 0.
    assert [f.value for f in together] == pytest.approx([f.value for f in alone], rel=1e-5, nan_ok=True)
    assert len(list((tmp_path / "together" / "figures").rglob("splitsum/*.json"))) == len(TRUTH)


def test_an_error_in_a_process_is_raised_here(shards: Path, tmp_path: Path) -> None:
    """A clip without its base colour: no renderer can shade it."""
    bare = replace(TRUTH["sphere1"], gbuffer=replace(TRUTH["sphere1"].gbuffer, basecolor=None))
    write_samples(tmp_path / "bare", [bare, TRUTH["sphere2"]], progress=False)
    told = EvaluateOptions(models=("splitsum",), baselines=(), data=tmp_path / "bare", out=tmp_path / "out", workers=2)
    with pytest.raises(InputError, match="basecolor"):
        evaluate("forward", told)
