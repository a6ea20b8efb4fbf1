"""The traced picture that a forward renderer may be given: shadows where depth is metric, split-sum shading where it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from exact_scene import exact_sample
from test_render_ssrt import ball, random_light, wall

from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.render import Prior, prior
from diffusion_renderer.render.filtering import cross_bilateral
from diffusion_renderer.render.ssrt import ScreenSpaceRayTracer
from diffusion_renderer.render.surface import surfaces

STILL = torch.eye(3)[None]
SAMPLE = exact_sample(frames=1, size=(64, 64))
FLOOR = replace(SAMPLE.gbuffer, metallic=torch.zeros(1, 1, 64, 64))
LIGHT = random_light(sun=20.0)


def reference() -> torch.Tensor:
    """Many rays, nothing filtered."""
    tracer = ScreenSpaceRayTracer(512, thickness=prior.THICKNESS, bounces=2, device="cpu")
    return tracer(FLOOR, LIGHT, camera=SAMPLE.camera).frames


def distance(picture: torch.Tensor, other: torch.Tensor) -> float:
    return (picture - other).square().mean().sqrt().item()


def test_few_filtered_rays_come_near_to_many() -> None:
    """Root mean squares from 512 rays, measured: split-sum 0.034, these 16 rays 0.010, 16 rays unfiltered 0.039."""
    truth = reference()
    few = ScreenSpaceRayTracer(prior.SAMPLES, steps=prior.STEPS, thickness=prior.THICKNESS, bounces=2, device="cpu")
    unfiltered = distance(few(FLOOR, LIGHT, camera=SAMPLE.camera).frames, truth)
    plain = distance(Prior("splitsum", LIGHT)(FLOOR, SAMPLE.camera, STILL), truth)
    traced = distance(Prior("ssrt", LIGHT)(FLOOR, SAMPLE.camera, STILL), truth)
    assert traced < 0.4 * plain and traced < 0.5 * unfiltered


def test_a_large_picture_has_the_shadows_of_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rays for 32 x 32 of 64 x 64 pixels: the details are those of split-sum. Measured: 0.016, split-sum 0.034."""
    monkeypatch.setattr(prior, "TRACED_AREA", 32 * 32)
    truth = reference()
    picture = Prior("ssrt", LIGHT)(FLOOR, SAMPLE.camera, STILL)
    assert distance(picture, truth) < 0.6 * distance(Prior("splitsum", LIGHT)(FLOOR, SAMPLE.camera, STILL), truth)


def test_relative_depth_has_no_scale_to_trace_with() -> None:
    near, far = FLOOR.depth_range()
    depth = torch.where(torch.isfinite(FLOOR.depth), (FLOOR.depth - near) / (far - near), 1.0)
    relative = replace(FLOOR, depth=depth.clamp_min(0.2), mask=None)
    pictures = [Prior(name, LIGHT)(relative, SAMPLE.camera, STILL) for name in prior.PRIORS]
    assert torch.equal(*pictures)


def test_a_smaller_picture_shows_the_same() -> None:
    shade = Prior("ssrt", LIGHT)
    large = torch.nn.functional.avg_pool2d(shade(FLOOR, SAMPLE.camera, STILL), 2)
    small = shade(FLOOR, SAMPLE.camera, STILL, (32, 32))
    # Rays differ, and outlines belong to one side or the other; mean difference measured: 0.010.
    assert small.shape == (1, 3, 32, 32) and (small - large).abs().mean() < 0.03


def test_the_background_is_the_panorama() -> None:
    picture = Prior("ssrt", LIGHT)(FLOOR, SAMPLE.camera, STILL)
    behind = ~FLOOR.mask.expand_as(picture)
    assert torch.equal(picture[behind], Prior("splitsum", LIGHT)(FLOOR, SAMPLE.camera, STILL)[behind])


def test_the_filter_keeps_what_is_constant_and_what_lies_behind() -> None:
    seen = surfaces(ball(32, 0.5, 0.0))
    covered = seen.coverage.movedim(-1, 1)
    smooth = cross_bilateral(torch.full((1, 3, 32, 32), 0.7), seen)
    assert torch.allclose(smooth, 0.7 * covered.expand(1, 3, -1, -1), atol=1e-6)


def test_the_filter_takes_noise_away() -> None:
    """On a wall all 25 weights are the kernel's: the deviation falls to sum w^2 = 70 / 256 of it."""
    seen = surfaces(wall(64, 0.5, 0.0))
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    inner = cross_bilateral(noise, seen)[..., 2:-2, 2:-2]
    # Neighbours share pixels, so 3600 values count as about 3600 / 14: a deviation of 5 % of the estimate.
    assert inner.std() == pytest.approx(70 / 256, rel=0.15)


def test_the_filter_does_not_cross_edges() -> None:
    """Two walls at other depths, then one wall folded by 60 degrees: neither side sees the other's value."""
    values = torch.zeros(1, 1, 16, 16)
    values[..., 8:] = 1
    step = wall(16, 0.5, 0.0)
    step.depth[..., 8:] = 4
    assert (cross_bilateral(values, surfaces(step)) - values).abs().max() < 1e-4
    fold = wall(16, 0.5, 0.0)
    tilted = fold.normal.clone()
    tilted[:, :, :, 8:] = torch.tensor([0.866, 0.0, 0.5]).view(1, 3, 1, 1)
    # 0.5 to the power of 16 times the neighbours' share of the kernel.
    assert (cross_bilateral(values, surfaces(replace(fold, normal=tilted))) - values).abs().max() < 1e-4


def test_values_are_display_values() -> None:
    picture = Prior("ssrt", random_light(sun=500.0))(FLOOR, SAMPLE.camera, STILL)
    assert picture.min() >= 0 and picture.max() <= 1 and torch.isfinite(picture).all()


def test_what_was_traced_for_a_small_picture_serves_the_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames in other pieces as well; another depth, light or rotation is traced anew, and what is kept is bounded."""
    monkeypatch.setattr(prior, "TRACED_AREA", 32 * 32)
    frames, traced = 3, []
    radiance = ScreenSpaceRayTracer.radiance

    def counted(self, seen, *rest, **named):
        traced.append(len(seen.depth))
        return radiance(self, seen, *rest, **named)

    turned = exact_sample(frames=frames, size=(64, 64))
    turns = torch.eye(3).expand(frames, 3, 3)
    plain = Prior("ssrt", LIGHT)(turned.gbuffer, turned.camera, turns)
    monkeypatch.setattr(ScreenSpaceRayTracer, "radiance", counted)
    shade = Prior("ssrt", LIGHT)
    shade(turned.gbuffer, turned.camera, turns, (32, 32))
    assert sum(traced) == frames
    parts = [shade(turned.gbuffer[some], turned.camera[some], turns[some]) for some in (slice(0, 2), slice(2, 3))]
    # Sums over the lights are rounded otherwise in pieces of another length.
    assert sum(traced) == frames and torch.allclose(torch.cat(parts), plain, atol=1e-5)

    moved = replace(turned.gbuffer, depth=1.01 * turned.gbuffer.depth)
    shade(moved, turned.camera, turns)
    shade(turned.gbuffer, turned.camera, turns * torch.tensor([-1.0, 1.0, -1.0]))
    assert sum(traced) == 3 * frames
    Prior("ssrt", random_light(sun=5.0))(turned.gbuffer, turned.camera, turns)
    assert sum(traced) == 4 * frames
    monkeypatch.setattr(prior, "KEPT", 2 * 3 * 32 * 32 * 4)
    shade = Prior("ssrt", LIGHT)
    shade(turned.gbuffer, turned.camera, turns)
    shade(turned.gbuffer[:1], turned.camera[:1], turns[:1])
    assert sum(traced) == 5 * frames + 1
    still = GBuffer(**{name: tensor[:1].expand(4, -1, -1, -1) for name, tensor in turned.gbuffer.tensors()})
    Prior("ssrt", LIGHT)(still, None, torch.eye(3).expand(4, 3, 3))
    assert sum(traced) == 5 * frames + 2
