"""The suites: what is in them, that they are rendered once, and that an interruption changes nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import synthetic_clip

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.settings import EVALUATION_SEED, EVALUATION_SEEDS, DatasetSettings
from diffusion_renderer.datagen.store import shards
from diffusion_renderer.datagen.store.encode import encode_exr
from diffusion_renderer.evaluation import suites
from diffusion_renderer.evaluation.leaks import assets_in
from diffusion_renderer.evaluation.suites import SUITES, Suite, find_suite, read_suite, render_suite

TINY = {"clips": 2, "frames": 2, "size": 32, "samples": 1, "lights": 2}


def tiny(**more: Any) -> Suite:
    """The variant of Mitsuba that compiles nothing, and no denoiser: 2 clips in seconds."""
    suite = find_suite("objects", **TINY | more)
    return replace(suite, settings=replace(suite.settings, variant="scalar_rgb", denoise=False))


# --- what they are ----------------------------------------------------------------------------------------------------


def test_the_suites_of_the_paper() -> None:
    assert {name: suite.clips for name, suite in SUITES.items()} == {"objects": 30, "scenes": 40, "small": 24}
    for name in ("objects", "scenes"):
        suite = find_suite(name)
        assert suite == SUITES[name] and suite.settings.family == name
        assert (suite.settings.frames, suite.settings.lights, suite.settings.width, suite.settings.height) == (24, 4, 128, 128)
    seeds = {suite.seed for suite in SUITES.values()}
    assert len(seeds) == 3 and seeds == EVALUATION_SEEDS


def test_small_is_what_was_scored_before_there_were_suites() -> None:
    settings = DatasetSettings(frames=4, width=128, height=128, samples=32)
    assert find_suite("small") == Suite("small", 24, settings, EVALUATION_SEED)


def test_numbers_can_be_replaced() -> None:
    suite = find_suite("scenes", clips=3, frames=5, size=512, samples=8, lights=2)
    chosen = suite.settings
    assert (suite.clips, chosen.frames, chosen.width, chosen.height, chosen.samples, chosen.lights) == (3, 5, 512, 512, 8, 2)
    assert chosen.panorama_height == 512 and chosen.split == "all" and suite.seed == SUITES["scenes"].seed


@pytest.mark.parametrize(("name", "guess"), [("object", "objects"), ("scene", "scenes"), ("Small", "small")])
def test_an_unknown_suite_names_the_nearest(name: str, guess: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {guess}"):
        find_suite(name)


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"frames": 0}, {"lights": 0}, {"size": 4}])
def test_bad_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least"):
        find_suite("objects", **wrong)


def panoramas(folder: Path, *names: str) -> Path:
    """Panoramas of one grey."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.exr").write_bytes(encode_exr(torch.ones(3, 32, 64)))
    return folder


def test_folders_of_assets_are_split(tmp_path: Path) -> None:
    folder = panoramas(tmp_path / "hdri", "dancing_hall_1k", "noon_grass_1k")
    suite = find_suite("objects", panoramas=folder)
    assert suite.settings.split == "test" and suite.settings.panoramas == folder
    (folder / "dancing_hall_1k.exr").unlink()
    with pytest.raises(InputError, match="a panorama of the split test"):
        render_suite(suite, tmp_path / "clips")


def test_whatever_decides_a_clip_decides_the_folder(tmp_path: Path) -> None:
    folder = panoramas(tmp_path / "hdri", "dancing_hall_1k")
    keys = [find_suite("objects", **more).key for more in ({}, {"size": 64}, {"lights": 1}, {"frames": 2}, {"clips": 2})]
    keys += [find_suite("objects", panoramas=folder).key, find_suite("scenes").key]
    other = replace(SUITES["objects"], settings=replace(SUITES["objects"].settings, depth=3))
    assert len({*keys, other.key}) == 8 and find_suite("objects").key == keys[0]
    assert keys[0].startswith("objects-30x24-128px-32spp-4lights-")


# --- rendering --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny suite in one go."""
    pytest.importorskip("mitsuba", reason="needs the extra `data` (mitsuba)")
    return render_suite(tiny(), tmp_path_factory.mktemp("suites"))


def test_a_suite_is_read_clip_by_clip(rendered: Path) -> None:
    clips = list(read_suite(rendered))
    assert [clip.meta["index"] for clip in clips] == [0, 1]
    for clip in clips:
        assert clip.clip.frames.shape == (2, 3, 32, 32) and len(clip.relit) == 1 and clip.meta["family"] == "objects"
        assert clip.meta["seed"] == SUITES["objects"].seed and clip.meta["renderer"]["split"] == "all"
    assert assets_in(rendered) == frozenset()


def test_an_interrupted_suite_continues_with_the_same_bytes(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, whole, done = tiny(), shards.render_unfinished, []

    def interrupted(drawn: Any, settings: DatasetSettings) -> Any:
        if drawn.index == 1:
            raise KeyboardInterrupt
        return whole(drawn, settings)

    def counted(drawn: Any, settings: DatasetSettings) -> Any:
        done.append(drawn.index)
        return whole(drawn, settings)

    monkeypatch.setattr(shards, "render_unfinished", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render_suite(suite, tmp_path)
    with pytest.raises(InputError, match="an unfinished one"):
        next(read_suite(tmp_path / suite.key))
    monkeypatch.setattr(shards, "render_unfinished", counted)
    seen: list[tuple[int, int, str]] = []
    out = render_suite(suite, tmp_path, progress=lambda *told: seen.append(told))
    assert done == [1]  # the first clip was kept
    assert seen == [(1, 2, "rendering clips"), (2, 2, "rendering clips")]
    assert out.name == rendered.name and len(list(out.glob("*.tar"))) == 2
    for path in sorted(rendered.glob("*.tar")):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_a_whole_suite_needs_no_renderer(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(suites, "generate_shards", refuse)
    assert render_suite(tiny(), rendered.parent) == rendered
    with pytest.raises(AssertionError, match="rendered again"):
        render_suite(tiny(clips=3), rendered.parent)


def test_assets_of_the_test_split_alone_are_used(tmp_path: Path) -> None:
    pytest.importorskip("mitsuba", reason="needs the extra `data` (mitsuba)")
    folder = panoramas(tmp_path / "hdri", "dancing_hall_1k", "noon_grass_1k", "street_lamp_1k")
    suite = tiny(clips=1, lights=4, panoramas=folder)
    suite = replace(suite, settings=replace(suite.settings, panorama_probability=1.0, panorama_height=16))
    out = render_suite(suite, tmp_path)
    assert assets_in(out) == {("panorama", "dancing_hall_1k")}
    index = json.loads((out / "index.json").read_text())
    assert index["settings"]["split"] == "test" and next(read_suite(out)).meta["renderer"]["split"] == "test"


def test_a_suite_with_training_assets_is_refused(rendered: Path, tmp_path: Path) -> None:
    """Clips of another origin in the suite's folder."""
    copy = tmp_path / rendered.name
    shutil.copytree(rendered, copy)
    meta = {"seed": 1, "assets": {"sources": [{"name": "noon_grass_1k", "kind": "panorama"}]}}
    shards.write_samples(tmp_path / "other", [replace(synthetic_clip(0), meta=meta)], progress=False)
    shutil.copy(tmp_path / "other/shard-000000.tar", copy / "shard-000001.tar")
    index = json.loads((copy / "index.json").read_text())
    index["shards"][1]["bytes"] = (copy / "shard-000001.tar").stat().st_size
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="panorama noon_grass_1k"):
        render_suite(tiny(), tmp_path)
