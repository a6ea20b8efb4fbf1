"""An inverse renderer that sees frames of every size at one size, in training as later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_preset import SMALL
from synthetic import synthetic_clip

from diffusion_renderer.models.checkpoint import load_checkpoint
from diffusion_renderer.pipelines.inverse import DiffusionInverseRenderer
from diffusion_renderer.training import TrainOptions, loop
from diffusion_renderer.training.data import Mixture, Source, store_clips
from diffusion_renderer.training.inverse import InverseStage
from diffusion_renderer.training.presets import SVD, TINY
from diffusion_renderer.training.vae import VaeStage, load_vae

SCALED = replace(SMALL, inverse_size=32)


def options(out: Path) -> TrainOptions:
    settings = {"max_steps": 2, "batch": 4, "sheet_steps": 0, "precision": "fp32", "device": "cpu", "warmup": 0}
    return TrainOptions(out=out, **settings)


@pytest.fixture(scope="module")
def data() -> Mixture:
    sizes = ((16, 2), (48, 2))
    stores = tuple(store_clips([synthetic_clip(i, frames=4, size=size) for i in range(n)]) for size, n in sizes)
    return Mixture((Source("both", None, stores),))


@pytest.fixture(scope="module")
def stage(data: Mixture, tmp_path_factory: pytest.TempPathFactory) -> InverseStage:
    out = tmp_path_factory.mktemp("scaled")
    loop.run(VaeStage(SCALED, data, options(out)), options(out))
    return InverseStage(SCALED, load_vae(out), data, options(out))


def test_every_step_has_as_many_images_and_they_are_of_one_size(stage: InverseStage) -> None:
    seen = set()
    for step in range(20):
        (part,) = stage.plan(step)
        clean = stage.conditions(part).clean
        assert clean.shape[-2:] == (16, 16)  # the small autoencoder halves 32 x 32
        assert sum(len(item.frames) for item in part.items) == 4
        seen.add(part.store.size)
    assert seen == {(16, 16), (48, 48)}


def test_frames_as_they_are_give_latents_of_their_own_size(data: Mixture, stage: InverseStage) -> None:
    plain = InverseStage(SMALL, stage.vae, data, stage.options)
    sizes = {tuple(plain.conditions(plain.plan(step)[0]).clean.shape[-2:]) for step in range(20)}
    assert sizes == {(8, 8), (24, 24)}


def test_training_and_inference_agree_on_the_size(stage: InverseStage) -> None:
    loop.run(stage, stage.options)
    out = stage.options.out / "inverse"
    assert json.loads((out / "renderer.json").read_text())["working_area"] == 32 * 32
    # The autoencoder of a run lies in another folder than that of a model.
    (stage.options.out / "vae" / "vae").rename(stage.options.out / "inverse" / "vae")
    renderer = DiffusionInverseRenderer(load_checkpoint(out, "inverse", device=torch.device("cpu"), dtype=torch.float32))
    for side in (16, 48):
        width, height = renderer.fit((side, side)).padded
        assert (height, width) == SCALED.image_size("inverse", (side, side)) == (32, 32)
    assert len(renderer(synthetic_clip(0, frames=1, size=48).clip)) == 1


@pytest.mark.parametrize("frame", [(128, 128), (480, 640), (720, 1280), (1920, 1080)])
def test_images_have_about_the_area_and_sides_that_the_network_takes(frame: tuple[int, int]) -> None:
    height, width = TINY.image_size("inverse", frame)
    assert height % 64 == width % 64 == 0
    # Sides are rounded to 64 pixels, of about 192: a third either way.
    assert 0.66 < height * width / 192**2 < 1.34


def test_forward_renderers_and_other_presets_take_frames_as_they_are() -> None:
    assert TINY.image_size("forward", (256, 256)) is None
    assert SVD.image_size("inverse", (256, 256)) is None
    assert TINY.counted_area("forward") == 128**2 and SVD.counted_area("inverse") == 512**2
    assert TINY.renderer_settings("inverse")["working_area"] == 192**2
    assert TINY.renderer_settings("forward")["working_area"] == 128**2
