"""Variations of training clips: what they must change together, and what they must leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from synthetic import synthetic_clip

from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.geometry import rotation_y
from diffusion_renderer.training.data import IMAGES, FrameStore, store_clips
from diffusion_renderer.training.lights import light_images
from diffusion_renderer.training.variation import BACKWARDS_SHARE, EXPOSURE_STOPS, LEAST_ZOOM, MARGIN, SEEN_STOPS, Variation

#: Depth's farthest surface is stored as 254 of 255 and given back as 1; the rest is exact to float32 interpolation.
CLOSE = 1 / 255 + 1e-5
RGB, BASE, NORMAL, PACKED = (IMAGES.index(name) for name in ("rgb", "basecolor", "normal", "depth+roughness+metallic"))


@pytest.fixture(scope="module")
def store() -> FrameStore:
    return store_clips([synthetic_clip(index, frames=3, size=32) for index in range(2)])


@pytest.fixture(scope="module")
def clips(store: FrameStore) -> torch.Tensor:
    return store.take(torch.arange(6).reshape(2, 3))


def none() -> Variation:
    return Variation.none(2)


def test_no_variation_changes_nothing(clips: torch.Tensor) -> None:
    assert torch.allclose(none().images(clips), clips.float() / 255, atol=CLOSE)


def test_images_of_another_size_show_the_same(clips: torch.Tensor) -> None:
    larger = none().images(clips, (48, 48))
    expected = F.interpolate(clips.flatten(0, 2).float() / 255, size=(48, 48), mode="bilinear").unflatten(0, clips.shape[:3])
    # Depth has its range taken anew, which is the only difference.
    assert torch.allclose(larger[:, :, (RGB, BASE, NORMAL)], expected[:, :, (RGB, BASE, NORMAL)], atol=1e-5)
    assert (larger[:, :, PACKED] - expected[:, :, PACKED]).abs().mean() < 0.02


def test_images_of_another_shape_are_cut_from_the_middle_and_not_stretched(clips: torch.Tensor) -> None:
    wide = none().images(clips, (32, 64))[:, :, RGB]
    middle = F.interpolate(clips[:, :, RGB, :, 8:24].flatten(0, 1).float() / 255, size=(32, 64), mode="bilinear")
    # At the cut's own edges one of them reads over the edge and the other does not.
    assert torch.allclose(wide.flatten(0, 1)[..., 1:-1, :], middle[..., 1:-1, :], atol=1e-5)


def test_large_frames_are_averaged_and_not_left_out_in_between() -> None:
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    board = (255 * ((rows + columns) % 2)).to(torch.uint8).expand(1, 1, len(IMAGES), 3, 128, 128)
    seen = Variation.none(1).images(board, (16, 16))[:, :, RGB]
    # Reading four pixels of 64 would give 0 and 1 or anything between, by where they lie.
    assert (seen[..., 1:-1, 1:-1] - 0.5).abs().max() < 0.02


def test_mirror_exchanges_sides_and_turns_normals(clips: torch.Tensor) -> None:
    varied = replace(none(), mirrored=torch.tensor([True, False])).images(clips)
    plain = clips.float() / 255
    assert torch.allclose(varied[0, :, RGB], plain[0, :, RGB].flip(-1), atol=1e-5)
    assert torch.allclose(varied[0, :, NORMAL, 0], 1 - plain[0, :, NORMAL, 0].flip(-1), atol=1e-5)
    assert torch.allclose(varied[0, :, NORMAL, 1:], plain[0, :, NORMAL, 1:].flip(-1), atol=1e-5)
    assert torch.allclose(varied[1], plain[1], atol=CLOSE)


def test_a_light_from_the_left_comes_from_the_right_in_the_mirror() -> None:
    radiance = torch.zeros(3, 32, 64)
    radiance[:, 16, 8] = 100.0
    lights = light_images(radiance, torch.eye(3)[None], 16)[None].expand(2, -1, -1, -1, -1, -1)
    turned = replace(none(), mirrored=torch.tensor([True, True])).environment(lights)
    # The panorama's mirror image about its centre column is the mirrored world; 1e-6 is float32 rounding.
    assert torch.allclose(turned[0, :, :2], light_images(radiance.flip(-1), torch.eye(3)[None], 16)[:, :2], atol=1e-6)
    assert torch.equal(turned[:, :, 2], lights[:, :, 2])


def test_colours_are_permuted_alike_in_video_base_colour_and_light(store: FrameStore, clips: torch.Tensor) -> None:
    order = torch.tensor([[2, 0, 1], [0, 1, 2]])
    recoloured = replace(none(), order=order)
    plain, varied = clips.float() / 255, recoloured.images(clips)
    for kind in (RGB, BASE):
        assert torch.allclose(varied[0, :, kind], plain[0, :, kind][:, order[0]], atol=1e-5)
    for kind in (NORMAL, PACKED):
        assert torch.allclose(varied[0, :, kind], plain[0, :, kind], atol=CLOSE)
    lights = torch.rand(2, 3, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = recoloured.environment(lights)
    assert torch.equal(seen[0, :, :2], lights[0, :, :2, order[0]])
    assert torch.equal(seen[:, :, 2], lights[:, :, 2])


def test_exposure_scales_linear_video_and_leaves_burnt_pixels() -> None:
    clips = torch.full((2, 1, len(IMAGES), 3, 8, 8), 128, dtype=torch.uint8)
    clips[:, :, PACKED, 0] = 255
    clips[:, :, RGB, :, :, 4:] = 255
    varied = replace(none(), exposure=torch.tensor([0.5, 1.0])).images(clips)
    plain = clips.float() / 255
    assert torch.allclose(srgb_eotf(varied[0, :, RGB, :, :, :4]), 0.5 * srgb_eotf(plain[0, :, RGB, :, :, :4]), atol=1e-5)
    assert torch.allclose(varied[0, :, RGB, :, :, 4:], torch.ones(()), atol=1e-5)
    assert torch.allclose(varied[:, :, BASE], plain[:, :, BASE], atol=1e-5)
    assert torch.allclose(varied[1], plain[1], atol=1e-5)


def test_a_window_shows_its_part_in_every_image_alike(clips: torch.Tensor) -> None:
    """Half the side around the middle of the right half: the values found there by hand."""
    window = replace(none(), side=torch.tensor([0.5, 1.0]), centre=torch.tensor([[0.5, 0.0], [0.0, 0.0]]))
    varied = window.images(clips)
    part = clips[0].float()[..., 8:24, 16:32] / 255
    expected = torch.nn.functional.interpolate(part.flatten(0, 1), size=(32, 32), mode="bilinear").unflatten(0, (3, 4))
    for kind in (RGB, BASE, NORMAL):  # the outermost ring interpolates with pixels that `part` no longer has
        assert torch.allclose(varied[0, :, kind, :, 1:-1, 1:-1], expected[:, kind, :, 1:-1, 1:-1], atol=1e-5)


def test_depth_stays_relative_to_what_the_window_shows() -> None:
    clips = torch.zeros(2, 1, len(IMAGES), 3, 32, 32, dtype=torch.uint8)
    clips[:, :, PACKED, 0] = torch.linspace(0, 250, 32).round().to(torch.uint8)
    clips[:, :, PACKED, 0, :4] = 255  # background
    window = replace(none(), side=torch.full((2,), 0.5))
    depth = window.images(clips)[0, 0, PACKED, 0]
    assert depth[8:].min() == 0.0 and depth[8:].max() == 1.0
    whole = none().images(clips)[0, 0, PACKED, 0]
    assert torch.equal(whole[:3], torch.ones(3, 32))
    assert torch.allclose(whole[5:], torch.linspace(0, 1, 32).expand(27, 32), atol=2 / 255)  # two roundings to 8 bits


def test_time_runs_backwards_in_every_image_and_in_the_light(clips: torch.Tensor) -> None:
    turned = replace(none(), backwards=torch.tensor([True, False]))
    assert torch.allclose(turned.images(clips)[0], none().images(clips)[0].flip(0), atol=1e-6)
    assert torch.equal(turned.images(clips)[1], none().images(clips)[1])
    lights = torch.rand(2, 3, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = turned.environment(lights)
    assert torch.equal(seen[0], lights[0].flip(0)) and torch.equal(seen[1], lights[1])
    rotations = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(turned.in_time(rotations)[0], rotations[0].flip(0))
    # The light turned before it is drawn, or the drawn light turned: the same.
    panorama = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(2))
    turns = torch.stack([rotation_y(angle) for angle in (0.0, 0.5, 1.0)])[None].expand(2, -1, -1, -1)
    drawn = torch.stack([light_images(panorama, turn, 8) for turn in turns])
    again = torch.stack([light_images(panorama, turn, 8) for turn in turned.in_time(turns)])
    assert torch.equal(turned.environment(drawn), again)


def test_a_still_has_no_time_to_turn(clips: torch.Tensor) -> None:
    turned = replace(none(), backwards=torch.tensor([True, True]))
    assert torch.equal(turned.images(clips[:, :1]), none().images(clips[:, :1]))


def test_a_batch_is_varied_as_its_clips_are_alone(clips: torch.Tensor) -> None:
    """So a clip's variation does not depend on which others it is computed with."""
    seeds = (11, 12)
    alone = [Variation.draw(1, torch.Generator().manual_seed(seed)) for seed in seeds]
    batch = Variation.stack(alone)
    assert batch.side.shape == (2,) and batch.order.shape == (2, 3) and not torch.equal(batch.side[0], batch.side[1])
    together = batch.images(clips)
    masks = torch.randint(2, (2, 3, 32, 32), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    for number, variation in enumerate(alone):
        # Interpolation of a batch and of one clip round alike on one thread: seen 0, allowed a few units of float32.
        assert torch.allclose(together[number], variation.images(clips[number : number + 1])[0], atol=1e-6)
        assert torch.equal(batch.defined(masks)[number], variation.defined(masks[number : number + 1])[0])


def test_where_truth_is_defined_moves_with_the_images() -> None:
    """A pixel counts as defined only when nothing undefined was mixed into it."""
    masks = torch.ones(2, 3, 32, 32, dtype=torch.uint8)
    assert bool(none().defined(masks).all())
    for seed in range(20):
        drawn = Variation.draw(2, torch.Generator().manual_seed(seed))
        assert bool(drawn.defined(masks).all()), "windows beyond the edge repeat what is defined"
    masks[0, 0, :, :20] = 0
    plain = none().defined(masks)
    assert torch.equal(plain, masks.bool())
    mirrored = replace(none(), mirrored=torch.tensor([True, False])).defined(masks)
    assert torch.equal(mirrored[0], plain[0].flip(-1))
    late = replace(none(), backwards=torch.tensor([True, False])).defined(masks)
    assert torch.equal(late[0], plain[0].flip(0))
    # The window is enlarged twice around the middle: it shows columns 8 to 24, of which those from 20 on are defined, but for
    # the first one, half a pixel of which is mixed with column 19.
    window = replace(none(), side=torch.tensor([0.5, 1.0])).defined(masks)
    assert window[0, 0, 0].tolist() == [False] * 25 + [True] * 7


def test_undefined_pixels_reach_no_defined_one(clips: torch.Tensor) -> None:
    """Whatever stands in undefined pixels, the others come out the same; depth's range excepted, which background keeps."""
    masks = torch.ones(2, 3, 32, 32, dtype=torch.uint8)
    masks[:, :, 5:20, 3:9] = 0
    spoilt = clips.clone()
    spoilt[:, :, :, :, 5:20, 3:9] = 255
    blank = clips.clone()
    blank[:, :, :, :, 5:20, 3:9] = 0
    blank[:, :, PACKED, 0, 5:20, 3:9] = 255  # undefined depth is stored as background
    for seed in range(10):
        drawn = Variation.draw(2, torch.Generator().manual_seed(seed))
        defined = drawn.defined(masks)[:, :, None, None].expand(-1, -1, len(IMAGES), 3, -1, -1)
        assert torch.equal(drawn.images(spoilt)[defined], drawn.images(blank)[defined])
        assert not torch.equal(drawn.images(spoilt), drawn.images(blank))


def test_what_is_only_looked_at_varies_more_in_brightness_than_what_is_learnt() -> None:
    from diffusion_renderer.training.forward import ForwardStage
    from diffusion_renderer.training.inverse import InverseStage

    assert InverseStage.exposure_stops == SEEN_STOPS and ForwardStage.exposure_stops == EXPOSURE_STOPS
    assert SEEN_STOPS[0] < EXPOSURE_STOPS[0] and SEEN_STOPS[1] > EXPOSURE_STOPS[1]


def test_drawn_variations_stay_in_their_ranges_and_follow_the_generator() -> None:
    drawn = Variation.draw(4000, torch.Generator().manual_seed(5))
    again = Variation.draw(4000, torch.Generator().manual_seed(5))
    assert torch.equal(drawn.centre, again.centre) and torch.equal(drawn.order, again.order)
    assert drawn.side.min() >= LEAST_ZOOM and drawn.side.max() <= 1
    # A window never reaches farther beyond the frame than the margin.
    assert (drawn.centre.abs().amax(dim=1) + drawn.side - 1).max() <= 2 * MARGIN + 1e-6
    for low, high in (EXPOSURE_STOPS, SEEN_STOPS):
        stops = Variation.draw(4000, torch.Generator().manual_seed(5), (low, high)).exposure.log2()
        # Of some 2,000 draws the outermost are within a hundredth of the range's ends.
        assert stops.min() == pytest.approx(low, abs=0.01 * (high - low)) and stops.min() >= low
        assert stops.max() == pytest.approx(high, abs=0.01 * (high - low)) and stops.max() <= high
    assert torch.equal(drawn.order.sort(dim=1).values, torch.arange(3).expand(4000, 3))
    # Three standard errors of a share of one half over 4000 draws are 0.024.
    assert drawn.mirrored.float().mean().item() == pytest.approx(0.5, abs=0.024)
    assert drawn.backwards.float().mean().item() == pytest.approx(BACKWARDS_SHARE, abs=0.024)
