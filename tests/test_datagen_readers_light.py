"""Readers of sets with measured light: Multi-illumination with its mirror ball, Stanford-ORB with its panoramas."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from public_sets import HALF, H, W, directions, mirror_ball, save_illumination, save_png, smooth_radiance, write_stanford_orb

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import look_at
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.datagen.readers import read_public, unwrap_mirror_ball
from diffusion_renderer.light import sample_panorama

# --- Multi-illumination -----------------------------------------------------------------------------------------------


def test_the_mirror_ball_gives_back_its_panorama() -> None:
    panorama = unwrap_mirror_ball(mirror_ball(256, smooth_radiance), height=32)
    assert panorama.shape == (3, 32, 64)
    direction = directions(32)
    error = (panorama - smooth_radiance(direction).permute(2, 0, 1)).abs().amax(0)
    # Worst measured 0.00045 more than 37 degrees away from -z: bilinear reading of 256 pixels.
    assert error[direction[..., 2] > -0.8].max() < 0.002
    # What is behind the ball comes from its rim, and must not come from the background.
    assert panorama[0].max() < 3.0


def test_a_mirror_ball_shows_what_is_right_of_it_on_the_right() -> None:
    """One bright direction at a time, through `sample_panorama`, as the renderers read it."""
    for axis in torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]]):
        ball = mirror_ball(128, lambda d, axis=axis: ((d * axis).sum(-1, keepdim=True) > 0.9).float().expand(*d.shape[:-1], 3))
        environment = EnvironmentMap(unwrap_mirror_ball(ball))
        assert sample_panorama(environment, axis[None]).min() > 0.99
        assert sample_panorama(environment, torch.tensor([[0.6, 0.6, math.sqrt(0.28)]])).max() < 0.01


def test_multi_illumination_lights_and_exposure(tmp_path: Path) -> None:
    save_illumination(tmp_path / "everett_kitchen2", range(3), probes=True)
    save_illumination(tmp_path / "main_office", range(2), probes=True)
    samples = list(read_public("multi-illumination", tmp_path))
    assert [sample.meta["scene"] for sample in samples] == ["everett_kitchen2", "main_office"]
    json.dumps([sample.meta for sample in samples])
    sample = samples[0]
    assert len(sample.relit) == 2 and torch.equal(sample.lookup, torch.eye(3)[None])
    assert sample.gbuffer.present == () and sample.meta["fov_x_deg"] is None
    direction = torch.nn.functional.normalize(torch.tensor([[0.3, 0.5, 0.6]]), dim=-1)
    for index, (clip, environment) in enumerate(
        [(sample.clip, sample.environment)] + [(r.clip, r.environment) for r in sample.relit]
    ):
        exposure = sample.meta["lights"][index]["exposure"]
        assert torch.allclose(clip.frames, torch.tensor(0.8), atol=1e-3)
        assert exposure * 0.5 * (index + 1) == pytest.approx(float(srgb_eotf(torch.tensor(0.8))), rel=2 * HALF)
        # The probe gets the image's exposure. A ball of 32 pixels: worst measured 0.3%.
        expected = smooth_radiance(direction) * (index + 1) * exposure
        assert torch.allclose(sample_panorama(environment, direction), expected, rtol=0.02)
    assert [s.meta["scene"] for s in read_public("multi-illumination", tmp_path, split="test")] == ["everett_kitchen2"]
    assert [s.meta["scene"] for s in read_public("multi-illumination", tmp_path, split="train")] == ["main_office"]


def test_multi_illumination_without_probes(tmp_path: Path) -> None:
    save_illumination(tmp_path / "scene", range(3), probes=False)
    samples = list(read_public("multi-illumination", tmp_path / "scene"))
    assert [sample.meta["lights"][0]["direction"] for sample in samples] == [0, 1, 2]
    assert all(sample.environment is None and sample.camera is None and not sample.relit for sample in samples)
    assert samples[0].meta["files"] == ["scene/dir_0_mip2.exr"]


def test_multi_illumination_jpeg_is_shown_as_it_is(tmp_path: Path) -> None:
    save_png(tmp_path / "s" / "dir_0_mip2.jpg", torch.full((3, H, W), 0.6))
    save_png(tmp_path / "s" / "probes" / "dir_0_chrome256.jpg", torch.full((3, 32, 32), 0.5))
    [sample] = list(read_public("multi-illumination", tmp_path))
    assert torch.allclose(sample.clip.frames, torch.tensor(0.6), atol=1 / 255)
    assert torch.allclose(sample.environment.radiance, srgb_eotf(torch.tensor(0.5)), atol=2 / 255)
    save_png(tmp_path / "s" / "probes" / "dir_0_chrome256.jpg", torch.full((3, 32, 40), 0.5))
    with pytest.raises(InputError, match="square"):
        list(read_public("multi-illumination", tmp_path))


# --- Stanford-ORB -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stanford_orb(tmp_path: Path) -> Path:
    return write_stanford_orb(tmp_path)


def test_stanford_orb_ground_truth_and_light(stanford_orb: Path) -> None:
    train, *test = list(read_public("stanford-orb", stanford_orb))
    assert [sample.meta["split"] for sample in (train, *test)] == ["train", "test", "test"]
    assert train.gbuffer.present == () and train.environment is None and train.gbuffer.mask.sum() == 48
    json.dumps([sample.meta for sample in (train, *test)])
    sample = test[1]
    buffers, mask = sample.gbuffer, sample.gbuffer.mask
    assert sample.clip.name == "teapot_scene001_test_0003"
    assert (buffers.depth[mask] == 2).all() and torch.isinf(buffers.depth[~mask]).all()
    assert (
        torch.allclose(buffers.normal[0][:, mask[0, 0]].T, torch.tensor([0.0, 0.6, 0.8]))
        and (buffers.normal[0, :, 0, 0] == 0).all()
    )
    # Half a step of 8 bits.
    assert torch.allclose(srgb_oetf(buffers.basecolor[0][:, mask[0, 0]]), torch.tensor(0.5), atol=0.5 / 255 + 1e-5)
    assert buffers.roughness is None and buffers.metallic is None
    assert sample.camera.fov_x[0] == pytest.approx(math.degrees(0.5))
    assert torch.allclose(sample.camera.pose[0], look_at(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)))
    # The panorama is in camera space: direction d of the camera shows it at d, whatever the pose.
    assert torch.allclose(sample.lookup, torch.eye(3)[None], atol=1e-6)
    for direction in torch.nn.functional.normalize(
        torch.tensor([[0.9, 0.1, 0.4], [-0.5, 0.5, 0.2], [0.1, -0.3, -0.9]]), dim=-1
    ):
        expected = smooth_radiance(direction) * sample.meta["exposure"]
        # Bilinear reading of 16 rows: worst measured 0.7%.
        assert torch.allclose(sample_panorama(sample.environment, direction[None])[0], expected, rtol=0.02)
    assert torch.allclose(sample.clip.frames, torch.tensor(0.8), atol=1e-3)


def test_stanford_orb_splits_clips_and_missing_files(stanford_orb: Path) -> None:
    [clip] = list(read_public("stanford-orb", stanford_orb / "blender_HDR", split="test", frames=2))
    assert len(clip.clip) == len(clip.camera) == 2 and clip.environment is None and clip.gbuffer.depth.shape == (2, 1, H, W)
    assert clip.meta["files"][0] == "blender_HDR/teapot_scene001/test/0002.exr"
    shutil.copytree(stanford_orb / "blender_HDR" / "teapot_scene001", stanford_orb / "blender_LDR" / "teapot_scene001")
    for stem in ("0002", "0003"):
        save_png(stanford_orb / "blender_LDR" / "teapot_scene001" / "test" / f"{stem}.png", torch.full((3, H, W), 0.4))
    ldr = next(read_public("stanford-orb", stanford_orb / "blender_LDR", split="test"))
    assert torch.allclose(ldr.clip.frames, torch.tensor(0.4), atol=1e-3) and ldr.meta["exposure"] == 1.0
    with pytest.raises(InputError, match="did you mean test"):
        read_public("stanford-orb", stanford_orb, split="tests")
    (stanford_orb / "blender_HDR" / "teapot_scene001" / "test_mask" / "0002.png").unlink()
    with pytest.raises(InputError, match=r"missing: test_mask/0002\.png"):
        list(read_public("stanford-orb", stanford_orb, split="test"))
