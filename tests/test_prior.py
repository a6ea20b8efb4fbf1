"""The classical picture that a forward renderer may be given: how it is made, what the pipeline and training do with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models_random import GROUPS, save_model
from safetensors.torch import load_file
from synthetic import synthetic_clip
from test_training import SMALL, options, trained_vae

from diffusion_renderer import editing
from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import rotation_y
from diffusion_renderer.core.types import Camera, EnvironmentMap
from diffusion_renderer.datagen.store.shards import write_samples
from diffusion_renderer.pipelines import DiffusionForwardRenderer, load_forward
from diffusion_renderer.pipelines.change import Drawn, guided_change
from diffusion_renderer.render import Prior, load_renderer
from diffusion_renderer.training import assemble, export, loop
from diffusion_renderer.training.data import Mixture, load_frames
from diffusion_renderer.training.env import EnvStage
from diffusion_renderer.training.forward import ForwardStage, widened
from diffusion_renderer.training.presets import TINY
from diffusion_renderer.training.variation import Variation

SAMPLE = synthetic_clip(1, frames=6)
LIGHT, CAMERA, STILL = SAMPLE.environment, SAMPLE.camera, SAMPLE.lookup


def outline() -> torch.Tensor:
    """Pixels of the ball with a neighbour that is none."""
    outside = torch.nn.functional.max_pool2d((~SAMPLE.gbuffer.mask).float(), 3, 1, 1) > 0
    return (outside & SAMPLE.gbuffer.mask).expand(-1, 3, -1, -1)


def test_it_is_split_sum_shading() -> None:
    """The test's panorama has fewer rows than are kept, so nothing is lost."""
    classical = load_renderer("splitsum", along=1, across=1, lights=16)
    expected = classical(SAMPLE.gbuffer, LIGHT, camera=CAMERA, rotations=STILL).frames
    made = Prior("splitsum", LIGHT)(SAMPLE.gbuffer, CAMERA, STILL)
    assert torch.allclose(made[~outline()], expected[~outline()], atol=1e-6)


def test_outlines_let_some_of_the_background_through() -> None:
    """A black ball before a panorama of radiance 0.5: its outline's linear values are shares of that, all else is as it was."""
    gbuffer = replace(SAMPLE.gbuffer, basecolor=0 * SAMPLE.gbuffer.basecolor, metallic=1 + 0 * SAMPLE.gbuffer.metallic)
    gbuffer = replace(gbuffer, normal=torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand_as(gbuffer.normal))
    grey = EnvironmentMap(torch.full((3, 16, 32), 0.5))
    linear = srgb_eotf(Prior("splitsum", grey)(gbuffer, CAMERA, STILL))
    # Fresnel's grazing light is what black metal reflects: measured at most 4e-3 of the 0.5.
    assert linear[gbuffer.mask.expand_as(linear) & ~outline()].max() < 5e-3
    assert torch.allclose(linear[~gbuffer.mask.expand_as(linear)], torch.tensor(0.5), atol=1e-4)
    # A neighbour beside it counts a sixth; the corner of a staircase has (1 - 25/36) of the background.
    shares = linear[outline()] / 0.5
    assert shares.min() > 1 / 36 - 1e-3 and shares.max() < 1 - 25 / 36 + 0.01
    assert 0.1 < shares.mean() < 0.3


def test_a_smaller_picture_shows_the_same() -> None:
    shade = Prior("splitsum", LIGHT)
    large = torch.nn.functional.avg_pool2d(shade(SAMPLE.gbuffer, CAMERA, STILL), 2)
    small = shade(SAMPLE.gbuffer, CAMERA, STILL, (16, 16))
    # At the outline a pixel is either the ball or not; mean difference measured: 0.012.
    assert small.shape == (6, 3, 16, 16) and (small - large).abs().mean() < 0.03


def test_relative_depth_and_parts_of_a_clip_show_the_same() -> None:
    """An inverse renderer's relative depth has no mask; whether depth is relative is a matter of the whole clip."""
    shade, whole = Prior("splitsum", LIGHT), SAMPLE.gbuffer
    depth = torch.where(whole.mask, (whole.depth - 2) / 2, 1.0)
    relative = replace(whole, depth=depth, mask=None)
    pictures = shade(relative, CAMERA, STILL)
    assert (pictures - shade(whole, CAMERA, STILL)).abs().mean() < 0.01
    part = relative[2:4]
    kept = shade(part, CAMERA[2:4], STILL[2:4], relative=True)
    assert torch.allclose(kept, pictures[2:4], atol=1e-6)


def test_mistakes() -> None:
    with pytest.raises(InputError, match="splitsum"):
        Prior("splitsun", LIGHT)
    with pytest.raises(InputError, match="6 rotations"):
        Prior("splitsum", LIGHT)(SAMPLE.gbuffer, CAMERA, STILL[:2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings: dict[str, Any] = {"groups": GROUPS, "prior": "splitsum", "decode_chunk": 4}
    return save_model(tmp_path_factory.mktemp("model"), "forward", conditions=len(GROUPS) + 1, **settings)


def test_the_pipeline_is_given_the_picture(folder: Path) -> None:
    """In pieces of four frames, turned as the light is, behind the G-buffers' latents."""
    forward = load_forward(folder, device="cpu", prior=Prior)
    seen: list[torch.Tensor] = []
    encode = forward.encode
    forward.encode = lambda image: seen.append(image) or encode(image)
    turns = torch.stack([rotation_y(0.5 * frame) for frame in range(6)])
    relit = forward(SAMPLE.gbuffer, LIGHT, camera=CAMERA, rotations=turns)
    expected = Prior("splitsum", LIGHT)(SAMPLE.gbuffer, CAMERA, turns)
    assert relit.frames.shape == (6, 3, 32, 32) and torch.isfinite(relit.frames).all()
    assert torch.allclose(torch.cat([seen[3], seen[7]]), expected, atol=1e-5)


def test_the_light_and_the_field_of_view_reach_the_result(folder: Path) -> None:
    forward = load_forward(folder, device="cpu", prior=Prior)
    first = forward(SAMPLE.gbuffer, LIGHT, camera=CAMERA).frames
    assert torch.equal(first, forward(SAMPLE.gbuffer, LIGHT, camera=CAMERA).frames)
    narrow = Camera(CAMERA.pose, torch.full_like(CAMERA.fov_x, 10.0))
    dark = EnvironmentMap(0.1 * LIGHT.radiance)
    assert not torch.equal(first, forward(SAMPLE.gbuffer, LIGHT, camera=narrow).frames)
    assert not torch.allclose(first, forward(SAMPLE.gbuffer, dark, camera=CAMERA).frames, atol=1e-3)


def test_a_model_that_needs_the_picture_is_not_loaded_without(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"load it with diffusion_renderer\.load_forward"):
        load_forward(folder, device="cpu")
    narrow = save_model(tmp_path, "forward", groups=GROUPS, conditions=len(GROUPS), prior="splitsum")
    with pytest.raises(InputError, match="4 condition images"):
        load_forward(narrow, device="cpu", prior=Prior)
    wrong = save_model(tmp_path / "wrong", "forward", groups=GROUPS, conditions=len(GROUPS) + 1, prior=3)
    with pytest.raises(InputError, match="prior 3"):
        load_forward(wrong, device="cpu", prior=Prior)


def test_a_network_that_has_nothing_to_add_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    """At the G-buffers' size, whether depth is metric or an inverse renderer made it."""
    settings: dict[str, Any] = {"groups": GROUPS, "prior": "splitsum", "residual": True, "initial_noise": False}
    model = save_model(tmp_path, "forward", conditions=len(GROUPS) + 1, decode_chunk=4, **settings)
    forward = load_forward(model, device="cpu", prior=Prior)
    for parameter in forward.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    shade, still = Prior("splitsum", LIGHT), torch.eye(3).expand(6, 3, 3)
    relit = forward(SAMPLE.gbuffer, LIGHT, camera=CAMERA, size=(16, 16), steps=1)
    assert torch.allclose(relit.frames, shade(SAMPLE.gbuffer, CAMERA, still), atol=1e-6)
    depth = torch.where(SAMPLE.gbuffer.mask, (SAMPLE.gbuffer.depth - 2) / 2, 1.0)
    # Its nearest pixel need not be at 0.
    estimated = replace(SAMPLE.gbuffer, depth=depth.clamp_min(0.2), mask=None)
    expected = shade(estimated, CAMERA, still)
    assert torch.allclose(forward(estimated, LIGHT, camera=CAMERA, size=(16, 16), steps=1).frames, expected, atol=1e-6)
    # With the network's weights something is added.
    other = load_forward(model, device="cpu", prior=Prior)(SAMPLE.gbuffer, LIGHT, camera=CAMERA, size=(16, 16), steps=1)
    assert (other.frames - relit.frames).abs().mean() > 0.003, "of surfaces only: a third of the pixels"
    with pytest.raises(InputError, match="residual without a prior"):
        wrong = save_model(tmp_path / "wrong", "forward", groups=GROUPS, conditions=len(GROUPS), residual=True)
        load_forward(wrong, device="cpu")


@pytest.mark.parametrize("size", [None, (16, 16)], ids=["same size", "smaller inside"])
def test_what_lies_behind_is_left_alone(tmp_path: Path, size: tuple[int, int] | None) -> None:
    """The picture's background is the panorama itself: a network can only make it worse."""
    settings: dict[str, Any] = {"groups": GROUPS, "prior": "splitsum", "residual": True, "initial_noise": False}
    model = save_model(tmp_path, "forward", conditions=len(GROUPS) + 1, **settings)
    forward, still = load_forward(model, device="cpu", prior=Prior), torch.eye(3).expand(6, 3, 3)
    depth = torch.where(SAMPLE.gbuffer.mask, (SAMPLE.gbuffer.depth - 2) / 2, 1.0)
    for gbuffer in (SAMPLE.gbuffer, replace(SAMPLE.gbuffer, depth=depth.clamp_min(0.2), mask=None)):
        relit = forward(gbuffer, LIGHT, camera=CAMERA, size=size, steps=1).frames
        change = (relit - Prior("splitsum", LIGHT)(gbuffer, CAMERA, still)).abs()
        seen = SAMPLE.gbuffer.mask.expand_as(change)
        assert change[seen].mean() > 0.01
        # Exact but for the order of rounding in the shading of a whole clip and of its pieces.
        assert change[~seen].max() < 1e-6


def test_small_differences_are_taken_for_noise(tmp_path: Path) -> None:
    """Every pixel of the change is drawn towards 0 by the threshold, before it is filtered."""
    settings: dict[str, Any] = {"groups": GROUPS, "prior": "splitsum", "residual": True, "initial_noise": False}
    seen: list[tuple[torch.Tensor, ...]] = []

    class Watched(DiffusionForwardRenderer):
        def changed(self, change: torch.Tensor, small: Drawn, large: Drawn, noise: float, sharp: bool = True) -> torch.Tensor:
            assert sharp, "of metric depth"
            made = super().changed(change, small, large, noise, sharp)
            smaller = change.sign() * (change.abs() - noise).clamp_min(0)
            seen.append((made, large.frames + guided_change(smaller, small, large)))
            return made

    frames = {}
    for noise in (0.0, 0.02):
        model = save_model(tmp_path / f"{noise}", "forward", conditions=len(GROUPS) + 1, residual_noise=noise, **settings)
        renderer = Watched(load_forward(model, device="cpu", prior=Prior).checkpoint, Prior)
        frames[noise] = renderer(SAMPLE.gbuffer, LIGHT, camera=CAMERA, steps=1).frames
    # Measured: 6e-8.
    assert seen and all(torch.allclose(made, expected, atol=1e-6) for made, expected in seen)
    picture = Prior("splitsum", LIGHT)(SAMPLE.gbuffer, CAMERA, torch.eye(3).expand(6, 3, 3))
    assert (frames[0.02] - picture).abs().mean() < (frames[0.0] - picture).abs().mean()
    with pytest.raises(InputError, match="residual_noise 2"):
        wrong = save_model(tmp_path / "wrong", "forward", conditions=len(GROUPS) + 1, residual_noise=2, **settings)
        load_forward(wrong, device="cpu", prior=Prior)


def test_training_stores_the_pictures_and_varies_them_as_the_video(tmp_path: Path) -> None:
    write_samples(tmp_path / "data", [synthetic_clip(seed) for seed in (1, 2)], progress=False)
    store = load_frames((tmp_path / "data",), tmp_path / "cache", "splitsum")
    index = torch.tensor([[0], [4]])
    pictures = store.take_prior(index)
    assert pictures.shape == (2, 1, 1, 3, 32, 32) and not load_frames((tmp_path / "data",), tmp_path / "cache").prior
    # Read from files as 8-bit buffers.
    truth = synthetic_clip(1)
    expected = Prior("splitsum", truth.environment)(truth.gbuffer, truth.camera, truth.lookup)[0]
    assert (pictures[0, 0, 0].float() / 255 - expected).abs().mean() < 0.01
    # A picture that equals the video is varied into the varied video.
    images = store.take(index)
    both = torch.cat((images, images[:, :, :1]), dim=2)
    varied = Variation.draw(2, torch.Generator().manual_seed(3)).images(both)
    assert torch.equal(varied[:, :, 0], varied[:, :, -1]) and not torch.equal(varied[:, :, 0], both[:, :, 0] / 255)


def test_weights_without_the_picture_go_on_as_they_were() -> None:
    small = replace(TINY, latent_channels=4, prior=None, forward_widths=(32, 32, 32, 32), env_widths=(32, 32, 32, 32))
    old, new = small.forward_unet().eval(), replace(small, prior="splitsum").forward_unet().eval()
    new.load_state_dict(widened(old.state_dict(), new))
    x = torch.randn(1, 1, 20, 16, 16, generator=torch.Generator().manual_seed(0))
    light = [torch.randn(1, 1, 32, 2, 2, generator=torch.Generator().manual_seed(1))] * 4
    ids, level = torch.zeros(1, 3), torch.zeros(1)
    before, after = old(x[:, :, :16], level, light, ids), new(x, level, light, ids)
    assert torch.equal(before, after), "the new channels count for nothing yet"


def test_a_renderer_trained_with_the_picture_is_loaded_and_run(tmp_path: Path) -> None:
    write_samples(tmp_path / "data", [synthetic_clip(seed) for seed in (1, 2)], progress=False)
    store = load_frames((tmp_path / "data",), tmp_path / "cache", "splitsum")
    run, preset, data = tmp_path / "run", replace(SMALL, prior="splitsum", residual=True), Mixture.of(store)
    vae = trained_vae(run, data)
    loop.run(EnvStage(preset, data, options(run, 1)), options(run, 1))
    loop.run(ForwardStage(preset, vae, data, options(run, 1)), options(run, 1))
    assemble(run, tmp_path / "model")
    forward = editing.load_forward(tmp_path / "model", device="cpu")
    assert forward.settings.prior == "splitsum" and forward.settings.residual
    assert forward(SAMPLE.gbuffer, LIGHT, camera=CAMERA).frames.shape == (6, 3, 32, 32)
    with pytest.raises(InputError, match="pictures of splitsum"):
        ForwardStage(preset, vae, Mixture.of(load_frames((tmp_path / "data",), tmp_path / "cache")), options(run, 1))


def test_display_encoding() -> None:
    """A white furnace: the background of the picture is the panorama, encoded."""
    flat = EnvironmentMap(torch.full((3, 8, 16), 0.25))
    picture = Prior("splitsum", flat)(SAMPLE.gbuffer, CAMERA, STILL)
    outside = ~SAMPLE.gbuffer.mask.expand_as(picture)
    assert torch.allclose(picture[outside], srgb_oetf(torch.tensor(0.25)), atol=1e-4)


def test_a_network_that_made_the_whole_frame_begins_with_the_picture(tmp_path: Path) -> None:
    """And one that made the difference is no start for one that is to make the whole frame."""
    whole = save_model(tmp_path / "whole/forward", "forward", groups=GROUPS, conditions=len(GROUPS) + 1, prior="splitsum")
    export.unpack(whole.parent, tmp_path / "run", residual=True)
    weights = load_file(next((tmp_path / "run/forward/unet").glob("*.safetensors")))
    before = load_file(next((whole / "unet").glob("*.safetensors")))
    assert all(not value.any() for name, value in weights.items() if name.startswith("conv_out."))
    assert all(torch.equal(value, before[name]) for name, value in weights.items() if not name.startswith("conv_out."))
    export.unpack(whole.parent, tmp_path / "same", residual=False)
    assert load_file(next((tmp_path / "same/forward/unet").glob("*.safetensors")))["conv_out.weight"].any()
    settings = json.loads((whole / "renderer.json").read_text())
    (whole / "renderer.json").write_text(json.dumps(settings | {"residual": True}))
    with pytest.raises(InputError, match="a model with"):
        export.unpack(whole.parent, tmp_path / "other", residual=False)


def test_an_uncut_picture_goes_on_beyond_white_and_is_the_same_below() -> None:
    bright = EnvironmentMap(6 * LIGHT.radiance, LIGHT.name)
    shade = Prior("ssrt", bright)
    cut, uncut = (shade(SAMPLE.gbuffer, CAMERA, STILL, relative=True, uncut=value) for value in (False, True))
    # Rounding of the curve at white: 6e-8.
    assert torch.allclose(uncut.clamp(max=1.0), cut, rtol=0, atol=1e-6) and uncut.max() > 1.1
    # No step at white: brightness and its slope go on, with the light's own.
    light = torch.tensor([0.98, 1.0, 1.02])
    shown = [
        Prior("splitsum", EnvironmentMap(value.expand(3, 8, 16)))(SAMPLE.gbuffer, CAMERA, STILL, uncut=True) for value in light
    ]
    behind = ~SAMPLE.gbuffer.mask.expand(-1, 3, -1, -1)
    below, white, above = (picture[behind].mean() for picture in shown)
    assert above - white == pytest.approx(float(white - below), rel=0.05) and white == pytest.approx(1.0, abs=1e-4)
