"""What the stages draw from: what is kept of a clip, and which items come how often."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from synthetic import synthetic_clip

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.store.shards import write_samples
from diffusion_renderer.training.data import (
    BUFFERS5,
    DEPTH,
    GROUPS,
    IMAGES,
    DataSource,
    FrameStore,
    Mixture,
    Source,
    concatenate,
    draw_part,
    load_frames,
    store_clips,
)
from diffusion_renderer.training.steps import derived_seed

DRAWS = 1500


def write(folder: Path, *clips: Sample, shard_size: int = 1, image_format: str = "png8") -> DataSource:
    write_samples(folder, clips, shard_size=shard_size, image_format=image_format, progress=False)
    return DataSource(folder)


def without(clip: Sample, *buffers: str) -> Sample:
    return replace(clip, gbuffer=replace(clip.gbuffer, **dict.fromkeys(buffers)))


def video_only(seed: int, frames: int = 1, size: int = 32) -> Sample:
    whole = synthetic_clip(seed, frames, size)
    return replace(whole, gbuffer=GBuffer(), environment=None, camera=None)


def real_clip(seed: int, frames: int = 2, size: int = 32) -> Sample:
    return replace(synthetic_clip(seed, frames, size), meta={"real": True})


def lit(store: FrameStore) -> torch.Tensor:
    return store.lit


def within(share: float, expected: float, draws: int) -> bool:
    """Three standard errors of a share."""
    return abs(share - expected) <= 3 * math.sqrt(expected * (1 - expected) / draws)


# --- what is kept of a clip -------------------------------------------------------------------------------------------


def test_missing_buffers_are_black_and_marked() -> None:
    whole = synthetic_clip(0)
    store = store_clips([whole, without(whole, "roughness"), without(whole, "normal", "depth")])
    index = torch.tensor([0, 3, 6])
    full, rough, flat = store.take(index)
    expected = [[True] * 5, [True, True, True, False, True], [True, False, False, True, True]]
    assert store.present[index].tolist() == expected and BUFFERS5.index("roughness") == 3
    packed, normal = len(IMAGES) - 1, IMAGES.index("normal")
    assert not rough[packed, GROUPS[-1].index("roughness")].any() and full[packed, GROUPS[-1].index("roughness")].any()
    assert not flat[normal].any() and not flat[DEPTH[0], DEPTH[1]].any()
    # What is there is as in the whole clip.
    assert torch.equal(rough[packed, [0, 2]], full[packed, [0, 2]]) and torch.equal(rough[:packed], full[:packed])
    assert store.having(("normal", "metallic"))[index].tolist() == [True, True, False]
    with pytest.raises(InputError, match="did you mean normal"):
        store.having(("normals",))


def test_a_clip_without_light_or_poses_is_taken_and_marked() -> None:
    clip = synthetic_clip(0)
    store = store_clips([replace(clip, environment=None), replace(clip, camera=None), clip, video_only(1, frames=3)])
    assert store.has_light.tolist() == [False, False, True, False]
    assert store.lit.tolist() == [False] * 6 + [True] * 3 + [False] * 3
    assert not store.light[:2].any() and store.light[2].min() > 0
    assert torch.equal(store.rotation[:6], torch.eye(3).expand(6, 3, 3))
    assert not store.present[-1].any() and store.take(torch.tensor(9))[0].any()


def test_real_clips_say_so_and_clips_have_names() -> None:
    store = store_clips([synthetic_clip(4), real_clip(5)])
    assert store.real.tolist() == [False, True] and store.keys == ("sphere4", "sphere5")
    assert store_clips([synthetic_clip(4)], keys=["other"]).keys == ("other",)


def test_frames_beside_buffers_of_another_size_are_refused() -> None:
    clip = synthetic_clip(0)
    with pytest.raises(InputError, match="32x32 pixels; found 16x16"):
        store_clips([replace(clip, gbuffer=synthetic_clip(0, size=16).gbuffer)])
    with pytest.raises(InputError, match="one size"):
        store_clips([clip, synthetic_clip(0, size=16)])
    with pytest.raises(InputError, match="clips to train on"):
        store_clips([])


def test_values_that_are_no_numbers_or_too_large_do_no_harm() -> None:
    clip = synthetic_clip(0, frames=1)
    base = clip.gbuffer.basecolor.clone()
    base[:, :, 16, 16], base[:, :, 16, 15] = math.nan, 1.3
    store = store_clips([replace(clip, gbuffer=replace(clip.gbuffer, basecolor=base))])
    image = store.take(torch.tensor(0))[IMAGES.index("basecolor")]
    assert image[:, 16, 16].tolist() == [0, 0, 0] and image[:, 16, 15].tolist() == [255, 255, 255]
    assert store.take_defined(torch.tensor(0))[16, 16] == 0 and store.take_defined(torch.tensor(0)).sum() == 32 * 32 - 1


# --- where ground truth is defined ------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["png8", "exr"])
def test_masks_of_public_sets_say_what_is_known_and_others_do_not(image_format: str, tmp_path: Path) -> None:
    clip = synthetic_clip(0, frames=1)
    public = replace(clip, meta={"dataset": "stanford-orb"})
    store = load_frames((write(tmp_path / "a", clip, public, image_format=image_format).path,), tmp_path / "cache")
    inside = clip.gbuffer.mask[0, 0]
    defined = store.take_defined(torch.tensor([[0], [1]]))
    assert defined.shape == (2, 1, 32, 32) and bool(defined[0].all())
    assert torch.equal(defined[1, 0].bool(), inside)
    again = load_frames((tmp_path / "a",), tmp_path / "cache")
    assert torch.equal(again.take_defined(torch.tensor([[0], [1]])), defined)


@pytest.mark.parametrize("image_format", ["png8", "png16", "exr"])
def test_holes_on_surfaces_are_not_defined(image_format: str, tmp_path: Path) -> None:
    """A window without depth, and a bolt without a normal, within the sphere; nothing else, through every format."""
    clip = synthetic_clip(0, frames=2)
    depth, normal = clip.gbuffer.depth.clone(), clip.gbuffer.normal.clone()
    depth[0, :, 16, 10:14] = math.inf
    normal[1, :, 12:14, 16] = 0.0
    holed = replace(clip, gbuffer=replace(clip.gbuffer, depth=depth, normal=normal), meta={})
    store = load_frames((write(tmp_path / "a", holed, image_format=image_format).path,), tmp_path / "cache")
    expected = torch.ones(2, 32, 32, dtype=torch.uint8)
    expected[0, 16, 10:14] = 0
    expected[1, 12:14, 16] = 0
    assert torch.equal(store.take_defined(torch.arange(2)), expected)


def test_the_data_engine_is_exact_everywhere() -> None:
    clip = synthetic_clip(0, frames=1)
    normal = clip.gbuffer.normal.clone()
    normal[:, :, 16, 16] = 0.0  # a mean over opposite sides of a thin part
    odd = replace(clip, gbuffer=replace(clip.gbuffer, normal=normal))
    assert store_clips([odd]).defined
    assert not store_clips([replace(odd, meta={"renderer": {"frames": 1}})]).defined


def test_concatenated_masks_are_ones_where_there_were_none() -> None:
    public = store_clips([replace(synthetic_clip(0, frames=2), meta={"dataset": "interiorverse"})])
    whole = store_clips([synthetic_clip(1, frames=3)])
    both = concatenate([whole, public])
    assert bool(both.take_defined(torch.arange(3)).all())
    assert torch.equal(both.take_defined(torch.arange(3, 5)), public.take_defined(torch.arange(2)))
    assert not concatenate([whole, whole]).defined


# --- stores -----------------------------------------------------------------------------------------------------------


def test_concatenation_keeps_clips_apart() -> None:
    a, b = store_clips([synthetic_clip(0), real_clip(1)]), store_clips([video_only(2, frames=2)])
    both = concatenate([a, b])
    assert both.clip.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert both.keys == ("sphere0", "sphere1", "sphere2")
    assert both.real.tolist() == [False, True, False] and both.has_light.tolist() == [True, True, False]
    assert torch.equal(both.take(torch.tensor([[1, 6]]))[0, 1], b.images[0][1])
    with pytest.raises(InputError, match="16x16, 32x32"):
        concatenate([a, store_clips([synthetic_clip(0, size=16)])])


def test_starts_leave_out_what_does_not_pass() -> None:
    store = store_clips([synthetic_clip(0, frames=4), synthetic_clip(1, frames=3)])
    assert store.starts(2).tolist() == [0, 1, 2, 4, 5]
    passing = torch.tensor([True, True, False, True, True, True, True])
    assert store.starts(2, passing).tolist() == [0, 4, 5]
    assert store.starts(1, passing).tolist() == [0, 1, 3, 4, 5, 6]
    assert len(store.starts(8)) == 0


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_nothing_straddles_and_every_clip_is_reached() -> None:
    store = store_clips([synthetic_clip(seed, frames=n, size=8) for seed, n in enumerate((3, 2, 4, 1, 5))])
    generator = torch.Generator().manual_seed(0)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(300):
        drawn = Mixture.of(store).draw(generator, 4, {1: 0.5, 3: 0.5})
        for frames, key in zip(drawn.index.tolist(), drawn.keys, strict=True):
            assert {store.keys[store.clip[frame]] for frame in frames} == {key}
            assert frames == list(range(frames[0], frames[0] + len(frames)))
            seen[tuple(frames)] += 1
    # Every frame as a still, every run of three within the clips of 3, 4 and 5 frames.
    assert set(seen) == {(i,) for i in range(15)} | {
        (0, 1, 2),
        (5, 6, 7),
        (6, 7, 8),
        *((i, i + 1, i + 2) for i in (10, 11, 12)),
    }


def test_lengths_come_by_their_shares_and_fill_the_step() -> None:
    mixture = Mixture.of(store_clips([synthetic_clip(seed, frames=8, size=8) for seed in range(3)]))
    generator = torch.Generator().manual_seed(1)
    shapes = Counter(tuple(mixture.draw(generator, 24, {1: 0.7, 4: 0.1, 8: 0.1, 5: 0.1}).index.shape) for _ in range(DRAWS))
    assert set(shapes) == {(24, 1), (6, 4), (3, 8), (4, 5)}
    # The shares are of steps. Five frames do not divide 24, so such steps have 20 images, which changes nothing here: there
    # is one store only.
    for shape, share in (((24, 1), 0.7), ((6, 4), 0.1), ((3, 8), 0.1), ((4, 5), 0.1)):
        assert within(shapes[shape] / DRAWS, share, DRAWS)


def test_lengths_that_the_data_lack_go_to_the_others() -> None:
    mixture = Mixture.of(store_clips([synthetic_clip(seed, frames=4, size=8) for seed in range(2)]))
    generator = torch.Generator().manual_seed(2)
    lengths = Counter(mixture.draw(generator, 8, {1: 0.5, 4: 0.25, 8: 0.25}).index.shape[1] for _ in range(DRAWS))
    assert set(lengths) == {1, 4} and within(lengths[4] / DRAWS, 1 / 3, DRAWS)
    assert mixture.draw(generator, 2, {4: 1.0}).index.shape == (1, 4), "there is always an item"


def image_shares(mixture: Mixture, seed: int, **options: object) -> dict[str, float]:
    """Share of the images that come from every source and frame size, over many steps."""
    generator, images = torch.Generator().manual_seed(seed), Counter()
    for _ in range(DRAWS):
        drawn = mixture.draw(generator, 16, {1: 0.75, 4: 0.25}, **options)
        images[f"{drawn.source.name} {drawn.store.size[0]}"] += drawn.index.numel()
    return {name: count / images.total() for name, count in images.items()}


def test_sources_share_the_images_by_weight_whatever_their_size() -> None:
    """Source b: a third as many frames, of two sizes, of which the larger give steps of a quarter of the images."""
    a = store_clips([synthetic_clip(seed, frames=4, size=8) for seed in range(6)])
    small = store_clips([synthetic_clip(9, frames=4, size=8)])
    large = store_clips([synthetic_clip(10, frames=4, size=16)])
    mixture = Mixture((Source("a", 1.0, (a,)), Source("b", 3.0, (small, large))))
    shares = image_shares(mixture, 3)
    # Steps of 16 images and of 4 are mixed, so a share varies more than that of as many equal steps: by the delta method as
    # that of 0.52 (a), 0.57 and 0.89 (b) times DRAWS.
    assert within(shares["a 8"], 0.25, DRAWS // 2)
    assert within(shares["b 8"], 0.375, DRAWS // 2) and within(shares["b 16"], 0.375, DRAWS // 2)


def test_sources_without_weights_mix_as_one_pile() -> None:
    a = store_clips([synthetic_clip(seed, frames=4, size=8) for seed in range(3)])
    b = store_clips([synthetic_clip(9, frames=4, size=8)])
    mixture = Mixture((Source("a", None, (a,)), Source("b", None, (b,))))
    assert within(image_shares(mixture, 4)["a 8"], 0.75, DRAWS)
    # Only what may be drawn counts: with one of the three clips of a, both sources count alike.
    assert within(image_shares(mixture, 5, accept=first_or_ninth)["a 8"], 0.5, DRAWS)
    with pytest.raises(InputError, match=r"none for b; give each a weight"):
        Mixture((Source("a", 1.0, (a,)), Source("b", None, (b,))))


def first_or_ninth(store: FrameStore) -> torch.Tensor:
    return torch.tensor([key in ("sphere0", "sphere9") for key in store.keys])[store.clip]


def test_larger_frames_come_in_smaller_numbers() -> None:
    store = store_clips([synthetic_clip(0, frames=4, size=16)])
    generator = torch.Generator().manual_seed(0)
    assert Mixture.of(store).draw(generator, 8, {1: 1.0}).index.shape == (8, 1)
    assert Mixture.of(store).draw(generator, 8, {1: 1.0}, area=8 * 8).index.shape == (2, 1)
    assert Mixture.of(store).draw(generator, 8, {4: 1.0}, area=32 * 32).index.shape == (8, 4)
    assert Mixture.of(store).draw(generator, 3, {1: 1.0}, area=8 * 8).index.shape == (1, 1)


def test_only_what_is_accepted_is_drawn() -> None:
    store = store_clips([synthetic_clip(0, frames=2), video_only(1, frames=2), real_clip(2)])
    mixture = Mixture.of(store)
    generator = torch.Generator().manual_seed(0)

    def clips(**options: object) -> set[int]:
        index = torch.cat([mixture.draw(generator, 8, {1: 1.0}, **options).index for _ in range(20)])
        return set(store.clip[index].flatten().tolist())

    assert clips() == {0, 1, 2}
    assert clips(accept=lit) == {0, 2} and clips(estimated=True) == {2} and clips(estimated=False, accept=lit) == {0}
    with pytest.raises(InputError, match=r"clips with estimated buffers of at least 4 frames .* train autolabel"):
        mixture.draw(generator, 8, {4: 1.0}, estimated=True)


def test_a_part_depends_on_seed_and_step_alone() -> None:
    mixture = Mixture.of(store_clips([synthetic_clip(0), real_clip(1), synthetic_clip(2)]))
    lengths = {1: 0.5, 2: 0.5}
    part = draw_part(mixture, 7, 3, 6, lengths)
    assert part.items == draw_part(mixture, 7, 3, 6, lengths).items
    assert [item.seed for item in part.items] == [derived_seed(3, 7, number) for number in range(len(part.items))]
    assert part.store is mixture.single and part.items[0].key.startswith("sphere")
    others = [draw_part(mixture, step, seed, 6, lengths).items for step, seed in ((8, 3), (7, 4))]
    assert all(items != part.items for items in others)
    real, synthetic = (draw_part(mixture, 7, 3, 6, lengths, estimated=real, weight=0.5) for real in (True, False))
    assert real.estimated and not synthetic.estimated and real.weight == 0.5
    assert not {item.seed for item in real.items} & {item.seed for item in synthetic.items}
