"""Environment images against the published numbers and against analytic panoramas."""

import math
import re

import pytest
import torch
from safetensors.torch import load_file

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import equirect_to_direction, look_at, rotation_x, rotation_y
from diffusion_renderer.core.types import Camera, EnvironmentMap
from diffusion_renderer.io import read_environment
from diffusion_renderer.light import (
    camera_fixed,
    compose,
    elevated,
    environment_images,
    mean_radiance,
    rotating,
    sample_panorama,
    scale_exposure,
    world_fixed,
    yawed,
)
from diffusion_renderer.light.images import image_directions

# What the issue asks for. Measured: mean 7e-5, largest 2.5e-4, which is the rounding of the float16 they are stored in.
PUBLISHED_TOLERANCE = 0.005


def directions(height: int):
    v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(2 * height) + 0.5) / (2 * height), indexing="ij")
    return equirect_to_direction(u, v)


def smooth_panorama(height: int = 128) -> EnvironmentMap:
    """Radiance that says where it comes from: 1 + d."""
    return EnvironmentMap((1 + directions(height)).permute(2, 0, 1).contiguous())


def rotations_named(motion: str, frames: int):
    if motion == "rest":
        return camera_fixed(frames)
    if motion == "rotating":
        return rotating(frames)
    return elevated(frames, float(re.fullmatch(r"raised(-?[\d.]+)", motion)[1]))


def test_published_environment_images(published_environment):
    published = load_file(published_environment / "published.safetensors")
    entries = [key.rsplit(".", 2) for key in published if key.endswith(".env_ldr")]
    assert entries
    for panorama, motion, _ in entries:
        environment = read_environment(published_environment / f"{panorama}.hdr")
        expected = {name: published[f"{panorama}.{motion}.env_{name}"].float() for name in ("ldr", "log")}
        frames, size = expected["ldr"].shape[:2]
        images = environment_images(environment, rotations_named(motion, frames), size)
        for name, image in expected.items():
            difference = (getattr(images, name).permute(0, 2, 3, 1) - image).abs().mean()
            assert difference < PUBLISHED_TOLERANCE, f"{panorama} {motion} {name}"
    expected = published["env_nrm"].float()
    found = environment_images(environment, camera_fixed(1), expected.shape[0]).direction[0].permute(1, 2, 0)
    assert (found - expected).abs().mean() < PUBLISHED_TOLERANCE


def test_the_direction_image_is_mirrored_with_its_centre_behind_the_camera():
    direction = environment_images(smooth_panorama(), camera_fixed(2), 64).direction
    assert direction.shape == (2, 3, 64, 64)
    # Half a pixel beside the centre: sin(2 pi / 128) / 2 = 0.025.
    assert torch.allclose(direction[0, :, 32, 32], torch.tensor([0.5, 0.5, 1.0]), atol=0.026)
    assert direction[0, 0, 32, 48] > 0.99  # right side red: +x
    assert direction[0, 1, 0, :].min() > 0.99  # top up


@pytest.mark.parametrize("antialias", [False, True])
def test_images_show_the_radiance_of_their_direction(antialias):
    images = environment_images(smooth_panorama(), camera_fixed(1), 32, antialias)
    seen = 1 + image_directions(32)
    log = torch.expm1(_linear(images.log[0]) * math.log1p(10000.0))
    # Half a pixel of 32 over a full turn is 0.1 rad; point samples are far closer than that, averages lose a little contrast.
    assert (log.permute(1, 2, 0) - seen).abs().max() < (0.06 if antialias else 0.005)


def _linear(encoded):
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def test_tone_curves_of_a_constant_light():
    images = environment_images(EnvironmentMap(torch.full((3, 8, 16), 3.0)), camera_fixed(1), 4)
    reinhard = 3 * (1 + 3 / 256) / 4
    assert torch.allclose(_linear(images.ldr), torch.tensor(reinhard), atol=1e-5)
    assert torch.allclose(_linear(images.log), torch.tensor(math.log(4) / math.log(10001)), atol=1e-5)


@pytest.mark.parametrize("radiance", [0.0, 65504.0, math.nan, math.inf, -1.0])
def test_images_stay_in_range_for_any_radiance(radiance):
    images = environment_images(EnvironmentMap(torch.full((3, 4, 8), radiance)), rotating(2), 8)
    for image in (images.ldr, images.log, images.direction):
        assert image.min() >= 0 and image.max() <= 1  # also false for NaN


@pytest.mark.parametrize("rotation", [rotation_y(0.7), rotation_x(-0.4), rotation_y(2.0) @ rotation_x(0.9)])
def test_rotation_moves_the_light_as_d_world_is_r_d(rotation):
    images = environment_images(smooth_panorama(), rotation[None], 32)
    seen = 1 + torch.einsum("ij,hwj->hwi", rotation, image_directions(32))
    log = torch.expm1(_linear(images.log[0]) * math.log1p(10000.0)).permute(1, 2, 0)
    assert (log - seen).abs().max() < 0.005


def test_a_light_at_rest_is_computed_once():
    still = environment_images(smooth_panorama(16), elevated(6, 20), 8)
    assert still.ldr.shape == (6, 3, 8, 8) and still.ldr.stride(0) == 0
    moving = environment_images(smooth_panorama(16), rotating(6), 8)
    assert moving.ldr.stride(0) != 0


def test_many_frames_equal_single_frames(monkeypatch):
    import diffusion_renderer.light.images as module

    together = environment_images(smooth_panorama(16), rotating(5), 8)
    monkeypatch.setattr(module, "CHUNK", 2 * 8 * 8)
    chunked = environment_images(smooth_panorama(16), rotating(5), 8)
    assert torch.equal(together.log, chunked.log)


def test_antialiasing_keeps_the_energy_of_a_small_sun():
    radiance = torch.zeros(3, 256, 512)
    radiance[:, 100, 300] = 5000.0
    sun = EnvironmentMap(radiance)
    v = (torch.arange(32) + 0.5) / 32
    weight = (math.pi * v).sin()[:, None]

    def energy(antialias: bool, degrees: float):
        log = environment_images(sun, yawed(1, degrees), 32, antialias).log[0, 0]
        return float(((torch.expm1(_linear(log) * math.log1p(10000.0))) * weight).sum() / weight.sum() / 32)

    truth = float(mean_radiance(sun)[0])
    angles = (0.0, 3.0, 7.7, 20.0)
    # 3% for the row grid, whose spacing is 30/31 of the average's, and for sin at centres instead of exact solid angles.
    assert all(abs(energy(True, angle) / truth - 1) < 0.05 for angle in angles)
    assert not all(abs(energy(False, angle) / truth - 1) < 0.5 for angle in angles)


def test_sampling_wraps_around_and_clamps_at_the_poles():
    radiance = torch.arange(8.0).expand(3, 4, 8).contiguous()
    environment = EnvironmentMap(radiance)
    seam = equirect_to_direction(torch.tensor([0.0, 1 / 16, 0.999999]), torch.full((3,), 0.5))
    # On the seam the first and the last column count half each.
    assert torch.allclose(sample_panorama(environment, seam)[:, 0], torch.tensor([3.5, 0.0, 3.5]), atol=1e-3)
    rows = EnvironmentMap(torch.arange(4.0)[:, None].expand(3, 4, 8).contiguous())
    poles = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    assert torch.allclose(sample_panorama(rows, poles)[:, 0], torch.tensor([0.0, 3.0]), atol=1e-3)


def test_sampling_is_differentiable_in_the_radiance():
    radiance = torch.ones(3, 4, 8, requires_grad=True)
    sample_panorama(EnvironmentMap(radiance), torch.tensor([[0.0, 0.0, 1.0]])).sum().backward()
    assert math.isclose(float(radiance.grad.sum()), 3.0, rel_tol=1e-5)


def test_mean_radiance_weighs_solid_angle():
    assert torch.allclose(mean_radiance(EnvironmentMap(torch.full((3, 8, 16), 2.0))), torch.tensor(2.0), atol=1e-5)
    # The mean of 1 + d over the sphere is 1.
    assert torch.allclose(mean_radiance(smooth_panorama(64)), torch.ones(3), atol=1e-3)


def test_exposure_scales_and_refuses_nonsense():
    assert torch.equal(scale_exposure(EnvironmentMap(torch.ones(3, 2, 4)), 2.5).radiance, torch.full((3, 2, 4), 2.5))
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError):
            scale_exposure(EnvironmentMap(torch.ones(3, 2, 4)), bad)


def test_a_turning_light_includes_both_ends():
    turning = rotating(5)
    assert torch.allclose(turning[0], torch.eye(3)) and torch.allclose(turning[-1], torch.eye(3), atol=1e-6)
    assert torch.allclose(turning[1], rotation_y(math.pi / 2))
    assert torch.allclose(rotating(1), torch.eye(3)[None])


def test_a_world_fixed_light_follows_the_pose():
    poses = torch.stack(
        [look_at(torch.tensor([2.0, 1.0, 3.0]), torch.zeros(3)), look_at(torch.tensor([-2.0, 1.0, 3.0]), torch.zeros(3))]
    )
    camera = Camera(poses, torch.full((2,), 50.0))
    assert torch.equal(world_fixed(camera), poses[:, :3, :3])
    # The camera looks down -z: the panorama straight ahead is the one in the direction of the target.
    ahead = world_fixed(camera)[0] @ torch.tensor([0.0, 0.0, -1.0])
    assert torch.allclose(ahead, -torch.nn.functional.normalize(torch.tensor([2.0, 1.0, 3.0]), dim=0), atol=1e-6)


def test_rotations_compose_last_first():
    found = compose(yawed(1, 90), elevated(3, 30))
    assert torch.allclose(found, (rotation_y(math.pi / 2) @ rotation_x(math.pi / 6)).expand(3, 3, 3), atol=1e-6)
