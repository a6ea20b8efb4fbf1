"""Walls behind the things of a scene. None of it needs Mitsuba but the last test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen import DatasetSettings, render_clip
from diffusion_renderer.datagen.scenes import _swept, random_scene
from diffusion_renderer.datagen.walls import HALF_SIZE, random_walls

OPEN = DatasetSettings(frames=4, width=32, height=32, family="scenes", panorama_height=16)
CLOSED = replace(OPEN, walls=1.0)


def drawn(seed: int, settings: DatasetSettings):
    return random_scene(np.random.default_rng(seed), settings)


@pytest.mark.parametrize("seed", range(12))
def test_everything_and_every_place_of_the_camera_lies_before_every_wall(seed: int) -> None:
    scene = drawn(seed, CLOSED)
    points = np.concatenate([_swept(item) for item in scene.objects[1:]])
    eyes = scene.camera.pose[:, :3, 3].double().numpy()
    walls = random_walls(np.random.default_rng(seed), scene.camera, points)
    for wall in walls:
        assert np.linalg.norm(wall.normal) == pytest.approx(1) and wall.normal[1] == 0
        assert (points @ wall.normal - wall.offset).min() > 0.01
        assert (eyes @ wall.normal - wall.offset).min() > 0.29
    # The first is in front of the camera, at no more than 40 degrees; the others are at right angles to it.
    ahead = points.mean(0) - eyes.mean(0)
    ahead = ahead[[0, 2]] / np.linalg.norm(ahead[[0, 2]])
    assert walls and -ahead @ walls[0].normal[[0, 2]] >= np.cos(np.radians(40)) - 1e-9
    assert all(abs(walls[0].normal @ other.normal) < 1e-9 for other in walls[1:])


def test_walls_stand_upright_where_they_should_and_face_what_they_are_behind() -> None:
    counts = set()
    for seed in range(20):
        room, ground = drawn(seed, CLOSED).objects[0], drawn(seed, OPEN).objects[0]
        assert np.array_equal(room.parts[0].mesh.positions, ground.parts[0].mesh.positions)
        points = np.concatenate([_swept(item) for item in drawn(seed, OPEN).objects[1:]])
        counts.add(len(room.parts) - 1)
        for part in room.parts[1:]:
            corners, normal = part.mesh.positions, part.mesh.normals[0]
            assert np.ptp(corners @ normal) < 1e-9 and np.ptp(corners[:, 1]) == pytest.approx(2 * HALF_SIZE)
            assert ((points - corners[0]) @ normal).min() > 0.01
            # Some of it is below the ground, which may end before it.
            assert corners[:, 1].min() < -1 and corners[:, 1].max() > 0
            a, b, c = corners[part.mesh.faces[0]]
            assert np.cross(b - a, c - a) @ normal > 0
    assert counts == {1, 2, 3}


def test_without_walls_scenes_are_what_they_were_and_with_them_nothing_else_changes() -> None:
    for seed in range(6):
        plain, closed = drawn(seed, OPEN), drawn(seed, CLOSED)
        assert (plain.camera.pose == closed.camera.pose).all() and plain.brightness == closed.brightness
        assert (plain.environment.radiance == closed.environment.radiance).all()
        for one, other in zip(plain.objects[1:], closed.objects[1:], strict=True):
            assert np.array_equal(one.positions, other.positions)
        assert len(plain.objects[0].parts) == 1
    half = [len(drawn(seed, replace(OPEN, frames=1, walls=0.5)).objects[0].parts) > 1 for seed in range(40)]
    # Binomial with p = 0.5: within three deviations.
    assert 10 < sum(half) < 30


def test_there_are_none_where_the_camera_is_behind_the_things() -> None:
    scene = drawn(0, CLOSED)
    points = np.concatenate([_swept(item) for item in scene.objects[1:]])
    pose = scene.camera.pose.clone()
    middle, eye = points.mean(0), pose[:-1, :3, 3].double().numpy().mean(0)
    pose[-1, :3, 3] = pose.new_tensor(middle + 3 * (middle - eye))
    around = replace(scene.camera, pose=pose)
    assert random_walls(np.random.default_rng(0), around, points) == ()


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(InputError, match="walls between 0 and 1"):
        DatasetSettings(walls=1.5)


def test_walls_hide_the_panorama_and_are_seen_as_part_of_the_ground() -> None:
    pytest.importorskip("mitsuba")
    shown = [
        [float((~render_clip(3, index, replace(settings, frames=1)).gbuffer.mask).float().mean()) for index in range(6)]
        for settings in (OPEN, CLOSED)
    ]
    assert sum(shown[1]) < 0.7 * sum(shown[0])
    assert all(after <= before + 0.01 for before, after in zip(*shown, strict=True))
