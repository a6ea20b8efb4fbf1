"""Fitting images to the networks and back."""

from __future__ import annotations

import pytest
import torch

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.resize import fit_size, resize

SIZES = [(1, 1), (1, 37), (640, 1), (64, 64), (71, 50), (1920, 1080), (33, 97)]


@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("multiple", [1, 16, 64])
@pytest.mark.parametrize("area", [None, 128 * 128])
def test_aspect_is_kept_and_the_multiple_met(source: tuple[int, int], multiple: int, area: int | None) -> None:
    fit = fit_size(source, multiple, area)
    scale = 1.0 if area is None else (area / (source[0] * source[1])) ** 0.5
    for side in (0, 1):
        assert fit.padded[side] % multiple == 0
        assert 0 <= fit.padded[side] - fit.inner[side] < multiple
        assert abs(fit.inner[side] - source[side] * scale) <= max(0.5, 1 - source[side] * scale)


@pytest.mark.parametrize("source", [size for size in SIZES if size[0] < 1000])
def test_there_and_back_keeps_size_and_constants(source: tuple[int, int]) -> None:
    fit = fit_size(source, 16, 32 * 32)
    images = torch.full((2, 3, source[1], source[0]), 0.25)
    there = fit.apply(images)
    assert there.shape[-2:] == (fit.padded[1], fit.padded[0])
    torch.testing.assert_close(there, torch.full_like(there, 0.25))
    torch.testing.assert_close(fit.undo(there), images)


def test_padding_alone_is_undone_exactly() -> None:
    images = torch.rand(1, 3, 50, 71, generator=torch.Generator().manual_seed(0))
    fit = fit_size((71, 50), 16)
    assert fit.padded == (80, 64)
    assert torch.equal(fit.undo(fit.apply(images)), images)
    assert torch.equal(fit.apply(images)[..., 63, 79], images[..., 49, 70])


def test_a_box_is_filled_without_distortion() -> None:
    assert fit_size((200, 100), 16, size=(64, 64)).inner == (64, 32)
    assert fit_size((20, 40), 16, area=7, size=(64, 64)).inner == (32, 64)


def test_shrinking_is_antialiased() -> None:
    """A checkerboard of single pixels becomes grey, not one of its two colours."""
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()[None, None]
    small = resize(board, (16, 16))
    # Worst measured: 0, the filter's weights are symmetric.
    assert (small - 0.5).abs().max() < 0.02


def test_sizes_without_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="0x5"):
        fit_size((0, 5), 16)
    with pytest.raises(InputError, match="64x0"):
        fit_size((5, 5), 16, size=(64, 0))
