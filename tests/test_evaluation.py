"""Metrics, baselines and protocols, on clips made by formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from synthetic import synthetic_clip

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.geometry import look_at, rotation_y
from diffusion_renderer.core.types import Camera, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Relit
from diffusion_renderer.evaluation.baselines import Constants, base_color_times_light, best_constant, best_constant_normal
from diffusion_renderer.evaluation.metrics import ANGLE, PSNR, RMSE
from diffusion_renderer.evaluation.views import compared, views

ALL = torch.ones(1, 1, 4, 4, dtype=torch.bool)


def test_psnr_of_a_known_error() -> None:
    assert PSNR(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5), ALL) == pytest.approx(20.0, abs=1e-4)
    assert PSNR(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), ALL) == pytest.approx(100.0)


def test_metrics_look_only_under_the_mask() -> None:
    estimate, truth = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    estimate[..., 0] = 1.0
    mask = ALL.clone()
    mask[..., 0] = False
    assert RMSE(estimate, truth, mask) == 0.0
    assert RMSE(estimate, truth, ALL) == pytest.approx(0.5)


def test_angles_of_known_vectors() -> None:
    up, right = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    up[:, 1], right[:, 0] = 1.0, 1.0
    # acos near 1 in float32 keeps about 0.03 degrees.
    assert ANGLE(up, 5 * up, ALL) == pytest.approx(0.0, abs=0.05)
    assert ANGLE(up, right, ALL) == pytest.approx(90.0, abs=1e-3)
    assert ANGLE(torch.zeros(1, 3, 4, 4), right, ALL) == pytest.approx(90.0, abs=1e-3)


def test_metrics_know_their_direction() -> None:
    assert PSNR.better(30.0, 20.0) and not PSNR.better(20.0, 30.0)
    assert RMSE.better(0.1, 0.2) and ANGLE.better(10.0, 20.0)


def test_no_constant_beats_the_best_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(500, 3, generator=generator)
    best = best_constant(values)
    for _ in range(50):
        other = best + 0.1 * torch.randn(3, generator=generator)
        assert ((values - best) ** 2).mean() <= ((values - other) ** 2).mean()


def test_no_direction_beats_the_best_constant_normal() -> None:
    generator = torch.Generator().manual_seed(1)
    normals = torch.nn.functional.normalize(torch.randn(800, 3, generator=generator) + torch.tensor([0.0, 1.0, 0.5]), dim=1)
    best = best_constant_normal(normals)
    assert best.norm().item() == pytest.approx(1.0, abs=1e-5)

    def error(direction: torch.Tensor) -> float:
        return torch.acos((normals @ direction).clamp(-1, 1)).mean().item()

    for _ in range(100):
        other = torch.nn.functional.normalize(best + 0.3 * torch.randn(3, generator=generator), dim=0)
        assert error(best) <= error(other) + 1e-5


def test_base_colour_under_a_white_furnace_is_the_base_colour() -> None:
    basecolor = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(
        base_color_times_light(basecolor, EnvironmentMap(torch.ones(3, 8, 16))), srgb_oetf(basecolor), atol=1e-5
    )


def test_the_constants_of_clips_are_their_means() -> None:
    clips = [synthetic_clip(seed) for seed in range(3)]
    constants = Constants.measure(iter(clips))
    values = [clip.gbuffer.roughness[clip.gbuffer.mask] for clip in clips]
    # Each clip gives 4096 evenly spread values of its pixels, so clips of different coverage count alike.
    assert constants.values["roughness"].item() == pytest.approx(sum(v.mean().item() for v in values) / 3, abs=5e-3)
    frames = torch.cat([clip.clip.frames for clip in clips])
    assert torch.allclose(constants.image((32, 32))[0], frames.mean(dim=0), atol=1e-6)
    made = constants.buffers(clips[0])
    assert made.roughness.unique().numel() == 1 and made.size == (32, 32) and len(made) == 3
    assert torch.allclose(srgb_oetf(made.basecolor[0, :, 0, 0]), constants.values["basecolor"], atol=1e-5)


def test_other_clips_have_other_constants() -> None:
    one, other = (Constants.measure(iter([synthetic_clip(seed)])) for seed in (1, 2))
    assert one.digest() == Constants.measure(iter([synthetic_clip(1)])).digest() != other.digest()


def test_lights_have_short_distinct_names() -> None:
    clip = synthetic_clip(0)
    sky = replace(clip.environment, name="procedural sky")
    relit = tuple(Relit(clip.clip, environment) for environment in (sky, replace(sky, name="a b/c")))
    lit = views(replace(clip, environment=sky, relit=relit))
    assert [view.light for view in lit] == ["sky", "sky-2", "a-b-c"]
    assert all(torch.equal(view.rotations, clip.lookup) for view in lit)


def test_each_light_turns_as_it_was_rendered() -> None:
    clip = synthetic_clip(0)
    turn = torch.stack([rotation_y(0.3)] * 3)
    camera = Camera(look_at(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)).expand(3, 4, 4), torch.full((3,), 40.0))
    turned = replace(clip, camera=camera, relit=(Relit(clip.clip, clip.environment, turn),))
    first, second = views(turned)
    assert torch.allclose(first.rotations, camera.rotation) and torch.allclose(second.rotations, turn @ camera.rotation)


def test_what_is_not_finite_stays_so_when_it_is_compared() -> None:
    gbuffer = synthetic_clip(0).gbuffer
    for name in ("basecolor", "depth", "roughness"):
        for wrong in (math.nan, -math.inf):
            value = getattr(gbuffer, name).clone()
            value[0, 0, 5, 5] = wrong
            assert compared(replace(gbuffer, **{name: value}), name)[0, 0, 5, 5].isnan()
    assert compared(gbuffer, "depth")[~gbuffer.mask].eq(1).all(), "infinite depth is background"


def test_relative_depth_is_compared_as_it_is() -> None:
    gbuffer = GBuffer(depth=torch.full((1, 1, 4, 4), 0.3))
    assert compared(gbuffer, "depth").eq(0.3).all()
