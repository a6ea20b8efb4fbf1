"""What a residual model adds to a picture: along the picture, on surfaces only, without the grid of its latents."""

from __future__ import annotations

import pytest
import torch

from diffusion_renderer.core.resize import resize
from diffusion_renderer.pipelines.change import Drawn, guided_change, textured


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def drawn(frames: torch.Tensor, surface: torch.Tensor | None = None) -> Drawn:
    return Drawn.of(frames, torch.ones_like(frames[:, :1]) if surface is None else surface)


def half() -> torch.Tensor:
    """Surface on the left."""
    return (torch.arange(48) < 24).float().expand(1, 1, 32, 48)


def test_nothing_stays_nothing() -> None:
    picture = drawn(noise(2, 3, 32, 48))
    assert torch.equal(guided_change(torch.zeros(2, 3, 32, 48), picture, picture), torch.zeros(2, 3, 32, 48))


@pytest.mark.parametrize("scale", [1, 3])
def test_what_lies_behind_neither_changes_nor_counts(scale: int) -> None:
    """An even change of the surface stays as it is up to its outline, whatever stands beside it."""
    surface, picture = half(), noise(1, 3, 32, 48)
    large = Drawn.of(resize(picture, (48 * scale, 32 * scale)), surface.repeat_interleave(scale, 2).repeat_interleave(scale, 3))
    change = torch.where(surface > 0, 0.1, 7.0).expand(1, 3, 32, 48)
    found = guided_change(change, Drawn.of(picture, surface), large)
    assert torch.equal(found * (1 - large.surface), torch.zeros_like(found))
    # Rounding of means and their quotients: measured 2e-7.
    assert torch.allclose(found[..., : 24 * scale], torch.tensor(0.1), atol=1e-5)


def test_a_line_in_the_pictures_brightness_is_kept() -> None:
    """The lit side darker, the shaded side brighter: straight in the picture, up to what counts as even (1 % of the slope)."""
    picture = drawn(noise(1, 1, 32, 48).expand(1, 3, 32, 48))
    change = (0.2 - 0.3 * picture.frames) * torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    found = guided_change(change, picture, picture)
    assert (found - change).abs().max() < 0.01 * change.abs().max()


def test_a_grid_on_an_even_surface_is_smoothed_and_an_edge_of_the_picture_kept() -> None:
    grid = 0.05 * ((torch.arange(64) // 4 % 2) * 2.0 - 1).expand(1, 3, 64, 64)
    even = drawn(torch.full((1, 3, 64, 64), 0.5))
    inner = (..., slice(12, -12), slice(12, -12))
    assert guided_change(grid, even, even)[inner].abs().mean() < 0.2 * grid.abs().mean()
    edge = (torch.arange(64) >= 32).float().expand(1, 3, 64, 64)
    shown = drawn(0.3 + 0.4 * edge)
    found = guided_change(0.1 * edge, shown, shown)
    step = found[..., 32] - found[..., 31]
    assert (step > 0.09).all()


def test_edges_are_those_of_the_large_picture() -> None:
    """A soft edge of the change, made at a quarter of the size, falls on the picture's sharp one."""
    sharp = 0.3 + 0.4 * (torch.arange(128) >= 66).float().expand(1, 3, 64, 128)
    small = resize(sharp, (32, 16))
    found = guided_change(0.25 * (small - 0.3), drawn(small), drawn(sharp))
    assert (found[..., 66] - found[..., 65] > 0.08).all() and found[..., 60:65].max() < 0.02


def test_details_that_the_network_has_not_seen_keep_their_contrast() -> None:
    """A fine pattern on a ramp that the change flattens: the pattern is flattened with it, or left as it is."""
    ramp = torch.linspace(0.2, 0.8, 128).expand(1, 3, 64, 128)
    shown = drawn(ramp + 0.05 * (-1.0) ** torch.arange(128))
    small = drawn(resize(ramp, (32, 16)))
    change = 0.5 * (0.5 - small.frames)
    contrast = {
        sharp: (shown.frames + guided_change(change, small, shown, sharp)).diff(dim=-1).abs().mean() for sharp in (True, False)
    }
    # Half of 0.1, and 0.1, with the ramp's own differences in them.
    assert contrast[True] == pytest.approx(0.05, abs=0.004) and contrast[False] == pytest.approx(0.1, abs=0.004)


def test_frames_do_not_touch_each_other() -> None:
    picture, change = noise(3, 3, 32, 48), noise(3, 3, 32, 48, seed=1) - 0.5
    together = guided_change(change, drawn(picture), drawn(picture))
    pairs = zip(change.split(1), map(drawn, picture.split(1)), strict=True)
    alone = torch.cat([guided_change(one, shown, shown) for one, shown in pairs])
    assert torch.allclose(together, alone, atol=1e-6)


def stripes(bright: float, dark: float) -> torch.Tensor:
    """Of four pixels, 64 x 128."""
    return torch.where(torch.arange(128) // 4 % 2 == 0, bright, dark).expand(1, 3, 64, 128)


def test_a_burnt_patch_that_is_darkened_keeps_its_texture_and_the_mean_that_it_was_given() -> None:
    """Cut at white, the stripes are gone. The frame has their contrast again, about the mean that the change has left."""
    large, small = drawn(stripes(2.0, 1.5)), drawn(resize(stripes(2.0, 1.5), (32, 16)))
    assert bool((large.frames == 1).all())
    found = textured(large.frames - 0.4, small, large)
    is_bright = large.uncut > 1.75
    # 0.4 % measured: each stripe is a pixel of the working size, which the means nearby do not smooth away altogether.
    assert found[is_bright].mean() / found[~is_bright].mean() == pytest.approx(2.0 / 1.5, rel=0.02)
    assert found.mean() == pytest.approx(0.6, rel=0.02)


def test_what_is_not_burnt_stays_what_it_is() -> None:
    picture = noise(1, 3, 64, 128)
    frames = picture - 0.2
    assert textured(frames, drawn(resize(picture, (32, 16))), drawn(picture)) is frames
    # Far from a burnt corner, and behind the surfaces, too.
    burnt = picture.clone()
    burnt[..., :8, :8] = 3.0
    found = textured(frames, drawn(resize(burnt, (32, 16))), drawn(burnt))
    assert torch.equal(found[..., 48:], frames[..., 48:]) and not torch.equal(found[..., :8, :8], frames[..., :8, :8])
    nothing = torch.zeros(1, 1, 64, 128)
    behind = drawn(resize(burnt, (32, 16)), resize(nothing, (32, 16)))
    assert torch.equal(textured(frames, behind, drawn(burnt, nothing)), frames)
    # Burnt, and not darkened.
    large = drawn(burnt)
    assert torch.equal(textured(large.frames, drawn(resize(burnt, (32, 16))), large), large.frames)
