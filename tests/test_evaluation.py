"""Metrics, baselines and protocols, on clips made by formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from synthetic import synthetic_clip

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.evaluation import EvaluateOptions, evaluate
from diffusion_renderer.evaluation.baselines import base_color_times_light, best_constant, best_constant_normal
from diffusion_renderer.evaluation.metrics import ANGLE, PSNR, RMSE
from diffusion_renderer.evaluation.protocols import score_forward, score_inverse, table

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


def test_a_perfect_inverse_renderer_wins_everywhere() -> None:
    clips = [synthetic_clip(seed) for seed in range(3)]
    truth = {clip.clip.name: clip.gbuffer for clip in clips}
    scores = {(s.what, s.baseline_name): s for s in score_inverse(clips, lambda clip: truth[clip.name])}
    assert scores["basecolor", "input frame"].model == pytest.approx(100.0)
    assert scores["normal", "best constant"].model < 0.1
    assert all(score.wins == score.clips == 3 for score in scores.values())


def test_the_best_constants_tie_with_themselves() -> None:
    clips = [synthetic_clip(seed) for seed in range(3)]
    masks = [clip.gbuffer.mask[:, 0] for clip in clips]

    def mean(name: str) -> torch.Tensor:
        values = [getattr(clip.gbuffer, name).movedim(1, -1)[mask] for clip, mask in zip(clips, masks, strict=True)]
        return torch.cat(values).mean(dim=0)[None, :, None, None]

    def constant(clip: Clip) -> GBuffer:
        one = torch.ones(len(clip), 1, *clip.frames.shape[-2:])
        flat = {name: mean(name) * one for name in ("roughness", "metallic")}
        return GBuffer(basecolor=one.expand(-1, 3, -1, -1), normal=one.expand(-1, 3, -1, -1), depth=one, **flat)

    scores = {(s.what, s.baseline_name): s for s in score_inverse(clips, constant)}
    for name in ("roughness", "metallic"):
        score = scores[name, "best constant"]
        assert score.model == pytest.approx(score.baseline, rel=1e-5)


def test_a_perfect_forward_renderer_wins_and_mean_images_are_seen() -> None:
    clips = [synthetic_clip(seed) for seed in range(3)]
    truth = {clip.gbuffer.name: clip.clip for clip in clips}
    scores = {s.baseline_name: s for s in score_forward(clips, lambda g, e, r: truth[g.name])}
    assert {"mean image", "base colour x mean light"} <= scores.keys()
    assert all(s.model == pytest.approx(100.0) and s.wins == 3 for s in scores.values())
    assert all(math.isfinite(s.baseline) and s.baseline < 40 for s in scores.values())


def test_a_clip_without_surface_does_not_count() -> None:
    clip = synthetic_clip(0)
    empty = replace(clip, gbuffer=replace(clip.gbuffer, mask=torch.zeros_like(clip.gbuffer.mask)))
    scores = score_inverse([clip, empty], lambda c: clip.gbuffer)
    assert all(score.clips == 1 for score in scores if score.what != "basecolor, whole picture")


def test_the_table_reads_as_markdown_and_csv() -> None:
    clips = [synthetic_clip(0)]
    result = table("a title", score_inverse(clips, lambda clip: clips[0].gbuffer))
    lines = result.markdown().splitlines()
    assert lines[0] == "**a title**" and lines[2].count("|") == lines[4].count("|")
    assert len(result.csv().splitlines()) == 1 + len(result.rows)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(InputError, match="inverse"):
        evaluate("inverze", EvaluateOptions())
