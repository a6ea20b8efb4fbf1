"""Temporal stability, and the motion of surfaces that it follows, on exact geometry."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from exact_scene import exact_sample
from test_metrics import EVERYWHERE, pictures, still
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.evaluation.metrics import METRICS, Context, video
from diffusion_renderer.evaluation.motion import Motion, motion_of


def test_flicker_has_its_amplitude_and_a_constant_error_none() -> None:
    truth = pictures()[:1].repeat(4, 1, 1, 1)
    mask = EVERYWHERE[:1].repeat(4, 1, 1, 1)
    sign = torch.tensor([1.0, -1, 1, -1])[:, None, None, None]
    temporal, context = METRICS["temporal"], still(4)
    assert temporal(truth + 0.2 * pictures(seed=3)[:1], truth, mask, context) == pytest.approx(0.0, abs=1e-6)
    assert temporal(truth + 0.05 * sign, truth, mask, context) == pytest.approx(0.1, abs=1e-6)
    # What the truth itself changes is not held against the estimate; missing it is.
    brighter = truth + 0.03 * torch.arange(4.0)[:, None, None, None]
    assert temporal(brighter + 0.1, brighter, mask, context) == pytest.approx(0.0, abs=1e-6)
    assert temporal(truth, brighter, mask, context) == pytest.approx(0.03, abs=1e-6)


def test_temporal_needs_motion_and_two_frames() -> None:
    one = pictures()[:1]
    with pytest.raises(InputError, match="motion"):
        METRICS["temporal"](one, one, EVERYWHERE[:1])
    assert math.isnan(METRICS["temporal"](one, one, EVERYWHERE[:1], still(1)))


@pytest.mark.parametrize(("moving", "with_ids"), [(False, True), (False, False), (True, True)])
def test_motion_follows_the_surfaces_of_an_exact_scene(moving: bool, with_ids: bool) -> None:
    """Without ids, depth alone must find what the ball hides."""
    sample = exact_sample(frames=3, size=(96, 72), moving=moving)
    texture = world_texture(sample)
    motion = motion_of(sample if with_ids else replace(sample, ids=None))
    for number in (1, 2):  # floor and ball
        surface = sample.ids[:-1, 0] == number
        # Measured at least 0.75 of the floor and 0.74 of the ball; the rest is at edges, hidden, or out of the picture.
        assert (motion.valid & surface).sum() > 0.7 * surface.sum()
    assert not (motion.valid & ~sample.gbuffer.mask[:-1, 0]).any()
    followed = torch.stack([video.change(texture, motion, pair) for pair in range(2)]).abs().mean(dim=1)
    ignored = (texture[1:] - texture[:-1]).abs().mean(dim=1)
    # A smooth texture that is fixed to the surfaces: what remains is bilinear reading. Measured: mean 1.2% of what it is
    # without motion, largest 0.0046 where that mean is 0.033.
    assert followed[motion.valid].mean() < 0.03 * ignored[motion.valid].mean()
    assert followed[motion.valid].max() < 0.01


def world_texture(sample) -> Tensor:
    """Colours that are a smooth function of the point on the object at rest."""
    from diffusion_renderer.datagen.store.reprojection import lift

    points = torch.stack([lift(d[0].double(), sample.camera, i) for i, d in enumerate(sample.gbuffer.depth)])
    poses = sample.meta["assets"]["objects"][1].get("poses")
    if poses is not None:
        shift = torch.tensor(poses, dtype=torch.float64)[:, None, None, :3, 3]
        points = torch.where((sample.ids[:, 0] == 2)[..., None], points - shift, points)
    colours = 0.5 + 0.25 * torch.sin(2.5 * points) + 0.1 * torch.cos(1.5 * points.flip(-1))
    return torch.where(sample.gbuffer.mask, colours.movedim(-1, 1), 0.0).float()


@pytest.mark.parametrize("moving", [False, True])
def test_an_error_painted_on_the_surfaces_is_stable_and_one_on_the_screen_is_not(moving: bool) -> None:
    sample = exact_sample(frames=3, size=(96, 72), moving=moving)
    truth, mask, context = sample.clip.frames, sample.gbuffer.mask, Context(motion=motion_of(sample))
    painted = truth + 0.2 * world_texture(sample)
    screen = truth + 0.2 * world_texture(sample)[:1]
    temporal = METRICS["temporal"]
    assert temporal(truth, truth, mask, context) == 0.0
    # Measured 0.00008 against 0.0067 to 0.0088.
    assert temporal(painted, truth, mask, context) < 0.0003
    assert temporal(screen, truth, mask, context) > 0.003
    assert temporal(painted, truth, mask, still(3, 72, 96)) > 0.003


def test_motion_asks_for_what_it_needs() -> None:
    sample = exact_sample(moving=True)
    for broken, message in (
        (replace(sample, camera=None), "cameras"),
        (replace(sample, gbuffer=replace(sample.gbuffer, depth=None)), "depth"),
        (replace(sample, camera=sample.camera[:2]), "2 poses and 3 frames"),
        (replace(sample, ids=None), "ids"),
    ):
        with pytest.raises(InputError, match=message):
            motion_of(broken)
    single = motion_of(exact_sample(frames=1))
    assert single.target.shape == (0, 48, 64, 2) and single.valid.shape == (0, 48, 64)


def resting(sample):
    """Two frames of a camera at rest."""
    gbuffer = replace(sample.gbuffer, depth=sample.gbuffer.depth[:1].repeat(2, 1, 1, 1))
    camera = replace(sample.camera, pose=sample.camera.pose[:1].repeat(2, 1, 1))
    return replace(sample, camera=camera, gbuffer=gbuffer, ids=sample.ids[:1].repeat(2, 1, 1, 1))


def test_a_resting_camera_leaves_every_pixel_where_it_is() -> None:
    motion = motion_of(resting(exact_sample(frames=2)))
    # Measured 1e-14 pixels.
    assert (motion.target - Motion.still(2, 48, 64).target)[motion.valid].abs().max() < 1e-4
    assert motion.valid.float().mean() > 0.3


def test_a_point_is_not_found_on_another_object() -> None:
    sample = resting(exact_sample(frames=2))
    before = motion_of(sample)
    sample.ids[1, 0, 40:44, 10:14] = 2  # floor, which another object of the same depth hides now
    after = motion_of(sample)
    lost = before.valid & ~after.valid
    assert lost[0, 40:44, 10:14].all() and lost.sum() == 16
