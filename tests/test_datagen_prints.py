"""Printed sheets under the things of a scene. None of it needs Mitsuba but the last test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen import DatasetSettings, render_clip
from diffusion_renderer.datagen.procedural.materials import printed_material
from diffusion_renderer.datagen.procedural.prints import printed
from diffusion_renderer.datagen.scenes import random_scene

PLAIN = DatasetSettings(frames=2, width=32, height=32, family="scenes", panorama_height=16)
PRINTED = replace(PLAIN, prints=1.0)


def drawn(seed: int, settings: DatasetSettings):
    return random_scene(np.random.default_rng(seed), settings)


def test_a_print_is_a_sheet_with_thin_marks_and_never_metal() -> None:
    dark, unseen, marked = 0, 0, []
    for seed in range(40):
        made = printed(np.random.default_rng(seed), 128)
        luminance = made.basecolor @ np.array([0.2126, 0.7152, 0.0722], np.float32)
        assert made.metallic.max() == 0
        sheet = np.median(luminance)
        marked.append(float((np.abs(luminance - sheet) > max(0.35 * sheet, 0.02)).mean()))
        unseen += bool(np.ptp(luminance) < 0.02)
        dark += made.name.startswith("dark")
    # A quarter of the inks are of any colour, that of the sheet among them.
    assert unseen <= 4
    # Fine rasters with their soft rims take as much as the sheet; most often marks are thin.
    assert 0.05 < np.median(marked) < 0.35 and np.mean(np.array(marked) > 0.5) < 0.25
    # Binomial with p = 0.45: within three deviations.
    assert 9 <= dark <= 27


def test_lines_close_at_the_texture_s_borders() -> None:
    """Neighbours across the border differ no more often than neighbours inside."""
    inside, across = [], []
    for seed in range(40):
        colour = printed(np.random.default_rng(seed), 64).basecolor
        for axis in (0, 1):
            change = np.abs(np.diff(colour, axis=axis, append=colour.take([0], axis=axis))).max(-1) > 0.05
            inside.append(change.take(range(63), axis=axis).mean())
            across.append(change.take([63], axis=axis).mean())
    # Rows of lines may lie on the border in one texture and not in another; the mean over 80 borders is what counts.
    assert np.mean(across) < 1.5 * np.mean(inside)


def test_worn_prints_stay_within_what_surfaces_can_be() -> None:
    for seed in range(12):
        made = printed_material(np.random.default_rng(seed), 64)
        assert made.normal is None and "print" in made.name
        assert made.basecolor.min() >= 0.015 and made.basecolor.max() <= 0.97
        assert made.roughness.min() >= 0.05 and made.roughness.max() <= 1 and made.metallic.max() == 0


def test_without_prints_scenes_are_what_they_were_and_with_them_the_same_things_stand_there() -> None:
    too = 0
    for seed in range(12):
        plain, sheet = drawn(seed, PLAIN), drawn(seed, PRINTED)
        assert (plain.camera.pose == sheet.camera.pose).all() and plain.brightness == sheet.brightness
        assert (plain.environment.radiance == sheet.environment.radiance).all()
        assert "print" in sheet.objects[0].parts[0].material.name
        for one, other in zip(plain.objects, sheet.objects, strict=True):
            assert np.array_equal(one.positions, other.positions)
            assert (one.poses is None) == (other.poses is None)
        assert not any("print" in part.material.name for item in plain.objects for part in item.parts)
        too += sum("print" in part.material.name for item in sheet.objects[1:] for part in item.parts)
    assert too > 0
    half = ["print" in drawn(seed, replace(PLAIN, prints=0.5)).objects[0].parts[0].material.name for seed in range(40)]
    assert 10 < sum(half) < 30


def test_with_walls_as_well_the_ground_is_printed_and_walls_are_not_lost() -> None:
    room = drawn(3, replace(PRINTED, walls=1.0)).objects[0]
    assert "print" in room.parts[0].material.name and len(room.parts) > 1


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(InputError, match="prints between 0 and 1"):
        DatasetSettings(prints=1.5)


def test_a_printed_ground_is_rendered_as_no_metal() -> None:
    pytest.importorskip("mitsuba")
    sample = render_clip(5, 0, replace(PRINTED, frames=1, samples=4))
    ground = sample.ids == 1
    assert ground.any()
    # Pixels at the borders of other things are mixtures.
    assert float(sample.gbuffer.metallic[ground].median()) == 0
    assert "print" in str(sample.meta["assets"]["objects"][0])
