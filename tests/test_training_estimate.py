"""Rendered clips with estimated buffers: which light they are estimated under, and who may train on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from synthetic import synthetic_clip
from test_training import SMALL, options

from diffusion_renderer.cli import main
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Relit, Sample, read_shards
from diffusion_renderer.datagen.store.shards import write_samples
from diffusion_renderer.render import Prior
from diffusion_renderer.training import estimate as module
from diffusion_renderer.training.data import Mixture, load_frames, store_clips
from diffusion_renderer.training.data.held_out import HeldOut
from diffusion_renderer.training.estimate import EstimateOptions, estimate
from diffusion_renderer.training.inverse import InverseStage


class FrameAsColour:
    """In place of a network: base colour is the frame, so that it tells which light it was seen under."""

    settings = None

    def __call__(self, clip: Clip, *, seed: int = 0) -> GBuffer:
        frames, (width, height) = len(clip), clip.size
        depth = torch.linspace(0, 1, height)[:, None].expand(frames, 1, height, width)
        normal = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(frames, 3, height, width)
        one = torch.ones(frames, 1, height, width)
        return GBuffer(clip.frames, normal, depth, 0.5 * one, 0 * one, name=clip.name)

    def stream(self, clip: Clip, **options: object) -> Iterator[GBuffer]:
        yield self(clip)


def lit(lights: int, seed: int = 3, **meta: object) -> Sample:
    """A sphere; light k makes the frames a constant grey of k / 8, its panorama too."""
    sample = synthetic_clip(seed, frames=2, size=16)

    def under(number: int) -> Relit:
        frames = torch.full_like(sample.clip.frames, number / 8)
        radiance = torch.full_like(sample.environment.radiance, number / 8)
        return Relit(Clip(frames, name=sample.clip.name), EnvironmentMap(radiance, f"grey {number}"))

    first, *others = (under(number) for number in range(1, lights + 1))
    return replace(sample, clip=first.clip, environment=first.environment, relit=tuple(others), meta=meta)


def shards(folder: Path, *samples: Sample) -> Path:
    write_samples(folder, samples, progress=False)
    return folder


def asked(data: Path, out: Path) -> EstimateOptions:
    return EstimateOptions(data=(data,), out=out, progress=False)


def test_each_light_is_the_answer_once_and_the_question_once(tmp_path: Path) -> None:
    done = estimate(asked(shards(tmp_path / "in", lit(3)), tmp_path / "out"), inverse=FrameAsColour())
    made = list(read_shards(tmp_path / "out"))
    assert (done["clips"], done["passed"], len(made)) == (3, 0, 3)
    seen, buffers, panoramas = ([round(8 * float(x.amax())) for x in images] for images in zip(*map(_three, made), strict=True))
    assert seen == panoramas == [1, 2, 3]
    assert buffers == [2, 3, 1], "estimated under the light of the frames: their shading would be a hint"
    for sample, light in zip(made, ("grey 2", "grey 3", "grey 1"), strict=True):
        assert sample.meta["estimated"]["light"] == light
        assert torch.equal(sample.camera.pose, lit(3).camera.pose)
        # Relative depth, spread from 1 to 3; 1 of the fake is background.
        known = sample.gbuffer.depth[torch.isfinite(sample.gbuffer.depth)]
        assert 1 <= float(known.min()) and float(known.max()) <= 3


def _three(sample: Sample) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return sample.clip.frames, sample.gbuffer.basecolor, sample.environment.radiance


def test_clips_under_one_light_and_real_ones_are_passed(tmp_path: Path) -> None:
    data = shards(tmp_path / "in", lit(1), lit(2), lit(2, real=True))
    done = estimate(asked(data, tmp_path / "out"), inverse=FrameAsColour())
    assert (done["clips"], done["passed"]) == (2, 2)


def test_nothing_to_estimate_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--lights 2"):
        estimate(asked(shards(tmp_path / "in", lit(1)), tmp_path / "out"), inverse=FrameAsColour())


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    data = shards(tmp_path / "in", lit(2))
    (data / "shard-000009.tar").write_bytes(b"no archive")
    told = replace(asked(data, tmp_path / "out"), max_bad=0.5)
    assert list(estimate(told, inverse=FrameAsColour())["skipped"]) == [str(data / "shard-000009.tar")]
    with pytest.raises(InputError, match="shard-000009"):
        estimate(replace(told, max_bad=0.1), inverse=FrameAsColour())


def test_only_the_forward_renderer_trains_on_estimates(tmp_path: Path) -> None:
    """From shards, and again from what was kept of them."""
    estimate(asked(shards(tmp_path / "in", lit(2)), tmp_path / "out"), inverse=FrameAsColour())
    for _ in range(2):
        store = load_frames((tmp_path / "out",), tmp_path / "cache")
        assert store.estimated.tolist() == [True, True] and not store.real.any()
        assert not store.measured.any()
        assert InverseStage.usable(_Asking(), store).tolist() == [False] * 4
    truth = store_clips([lit(2)])
    assert truth.measured.all() and InverseStage.usable(_Asking(), truth).all()


def test_nothing_is_calibrated_on_estimates(tmp_path: Path) -> None:
    data = shards(tmp_path / "in", lit(2), lit(1, seed=4, real=True))
    estimate(asked(data, tmp_path / "out"), inverse=FrameAsColour())
    assert len(HeldOut([tmp_path / "out"], 8)) == 0
    assert [sample.meta.get("real", False) for sample in HeldOut([data, tmp_path / "out"], 8)] == [False]


class _Asking:
    preset = SMALL


def test_training_sees_a_clip_under_all_its_lights(tmp_path: Path) -> None:
    store = store_clips([lit(3), lit(1, seed=4)], ["a", "b"])
    assert store.keys == ("a", "a/light1", "a/light2", "b")
    assert store.clip.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    grey = store.take(torch.arange(8))[:, 0].amax(dim=(1, 2, 3))
    assert grey.tolist() == [32, 32, 64, 64, 96, 96, 32, 32]
    assert torch.equal(store.light[:, 0, 0, 0], torch.tensor([0.125, 0.25, 0.375, 0.125]))


def test_pictures_of_estimates_are_those_of_relative_depth(tmp_path: Path) -> None:
    """What a renderer is given there: depth without a scale has no rays to trace."""
    estimate(asked(shards(tmp_path / "in", lit(2)), tmp_path / "out"), inverse=FrameAsColour())
    store = load_frames((tmp_path / "out",), tmp_path / "cache", prior="ssrt")
    pictures = store.take_prior(torch.arange(4))
    assert torch.equal(pictures[:, 0], pictures[:, 1])
    first = next(iter(read_shards(tmp_path / "out")))
    plain = Prior("splitsum", first.environment)(first.gbuffer, first.camera, first.lookup)
    assert torch.equal(pictures[:2, 0], plain.clamp(0, 1).mul(255).round().to(torch.uint8))
    assert len(torch.unique(pictures[0, 0])) > 2, "a picture, not a plain one"
    # Of the truth there are two: one traced, one not.
    truth = load_frames((tmp_path / "in",), tmp_path / "cache", prior="ssrt").take_prior(torch.arange(4))
    assert not torch.equal(truth[:, 0], truth[:, 1])


def test_estimates_train_the_adapter_and_the_truth_the_network(tmp_path: Path) -> None:
    from diffusion_renderer.training.adapters import AdaptedUNet
    from diffusion_renderer.training.env import EnvStage
    from diffusion_renderer.training.forward import ForwardStage
    from diffusion_renderer.training.vae import VaeStage, load_vae

    estimate(asked(shards(tmp_path / "in", lit(2)), tmp_path / "out"), inverse=FrameAsColour())
    data = Mixture.of(load_frames((tmp_path / "in", tmp_path / "out"), tmp_path / "cache"))
    told = options(tmp_path / "run", 1)
    for stage, name in ((VaeStage, "vae"), (EnvStage, "env")):
        stage(SMALL, data, told).export(told.out / name)
    stage = ForwardStage(SMALL, load_vae(told.out), data, told)
    store = data.stores[0]
    assert stage.usable(store).all() and stage.share == 0.5 and isinstance(stage.network, AdaptedUNet)
    for step in range(4):
        for part in stage.plan(step):
            drawn = {frame for item in part.items for frame in item.frames}
            assert all(store.measured[frame] != part.estimated for frame in drawn)
            losses, _ = stage.losses(stage.network, part)
            assert torch.isfinite(losses).all()
    stage.export(told.out / "forward")
    assert json.loads((told.out / "forward/renderer.json").read_text())["relative_lora_scale"] == 1.0


def test_the_command_line_passes_it_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    seen: list[EstimateOptions] = []
    result = {"clips": 4, "passed": 1, "skipped": {"bad.tar": "no\narchive"}}
    monkeypatch.setattr(module, "estimate", lambda told: seen.append(told) or result)
    assert main(["train", "estimate", "--data", "a", "b", "--model", "mine", "--seed", "2", "-o", str(tmp_path)]) == 0
    assert seen == [EstimateOptions(data=(Path("a"), Path("b")), out=tmp_path, model="mine", seed=2)]
    printed = capsys.readouterr()
    assert "4 clips" in printed.err and "1 left out" in printed.err and "bad.tar: no archive" in printed.err
    assert str(tmp_path) in printed.out
    assert main(["train", "estimate", "--data", "a"]) == 2
    assert "-o OUT" in capsys.readouterr().err
