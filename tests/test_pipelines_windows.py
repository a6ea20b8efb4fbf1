"""Windows over long clips, and the noise that they share."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from diffusion_renderer.pipelines.noise import frame_noise
from diffusion_renderer.pipelines.windows import WindowDenoiser, blend_weights, plan_windows, sample_windows


def blended(denoise: WindowDenoiser, windows: list[slice], overlap: int, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """What the windows' estimates at one noise level are blended to."""
    parts = sample_windows(lambda ask, x: ask(x, torch.tensor(sigma)), denoise, lambda part: x[part], windows, overlap)
    return torch.cat([part.latents for part in parts])


CASES = [(1, 4, 1), (4, 4, 1), (5, 4, 1), (10, 4, 2), (11, 4, 2), (23, 8, 2), (9, 1, 0), (30, 8, 7)]


@pytest.mark.parametrize(("frames", "window", "overlap"), CASES)
def test_windows_cover_the_clip(frames: int, window: int, overlap: int) -> None:
    windows = plan_windows(frames, window, overlap)
    assert windows[0].start == 0 and windows[-1].stop == frames
    for before, after in pairwise(windows):
        assert before.start < after.start and before.stop - after.start >= overlap
    assert all(w.stop - w.start == min(window, frames) for w in windows)


@pytest.mark.parametrize(("frames", "window", "overlap"), CASES)
def test_what_depends_on_frames_alone_is_blended_to_itself(frames: int, window: int, overlap: int) -> None:
    x = frame_noise(0, "x", frames, (2, 3, 3))
    clip = blended(lambda _, part, sigma: part * sigma, plan_windows(frames, window, overlap), overlap, x, 0.5)
    torch.testing.assert_close(clip, x * 0.5, rtol=0, atol=1e-6)


def test_windows_hand_over_along_a_squared_sine() -> None:
    windows = plan_windows(10, 6, 2)
    assert windows == [slice(0, 6), slice(4, 10)]
    x = torch.zeros(10, 1, 1, 1)
    found = blended(lambda window, part, _: torch.full_like(part, window.start / 4), windows, 2, x, 1.0)[:, 0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0, 0, 0, 0, 0.25, 0.75, 1, 1, 1, 1]))


def test_weights_are_never_zero() -> None:
    for frames, window, overlap in CASES:
        assert all(weight.min() > 0 for weight in blend_weights(plan_windows(frames, window, overlap), overlap))


def test_noise_depends_on_seed_purpose_and_frame_alone() -> None:
    long, short = frame_noise(7, "normal", 6, (4, 5, 5)), frame_noise(7, "normal", 2, (4, 5, 5))
    assert torch.equal(long[:2], short)
    assert not torch.equal(long[0], long[1])
    assert not torch.equal(short, frame_noise(8, "normal", 2, (4, 5, 5)))
    assert not torch.equal(short, frame_noise(7, "depth", 2, (4, 5, 5)))


def test_noise_is_unit_normal() -> None:
    noise = frame_noise(0, "x", 16, (4, 32, 32))
    # 65,536 numbers: the mean's standard error is 0.004, that of the deviation 0.003; four of them.
    assert noise.mean().abs() < 0.016 and (noise.std() - 1).abs() < 0.012
    # Neighbouring frames are independent: a correlation of 4,096 pairs has standard error 0.016.
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.08
