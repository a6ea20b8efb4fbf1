"""Where things stand and how they move: nothing floats, sinks in or meets another thing at any time. Needs no Mitsuba."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("fcl", reason="needs the extra `data` (python-fcl)")

import numpy as np
import torch

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import rotation_y
from diffusion_renderer.datagen import DatasetSettings
from diffusion_renderer.datagen.motion import (
    CAMERA_MOTIONS,
    OBJECT_MOTIONS,
    View,
    camera_path,
    light_turns,
    random_motions,
    random_view,
    sliding,
    turning,
)
from diffusion_renderer.datagen.objects import SceneObject, placed, solid
from diffusion_renderer.datagen.placement import Body, Occupied, at, onto_ground, rotation_to_rest
from diffusion_renderer.datagen.procedural.materials import constant_material
from diffusion_renderer.datagen.procedural.shapes import cuboid, joined, sphere, torus, transformed
from diffusion_renderer.datagen.scenes import MAX_ASSETS, MAX_PRIMITIVES, random_scene
from diffusion_renderer.datagen.settings import MOTIONS

GREY = constant_material((0.5, 0.5, 0.5), 0.5, 0.0)
FRAMES = 5


def scaled(mesh, *factors: float, offset: tuple[float, ...] = (0.0, 0.0, 0.0)):
    return transformed(mesh, np.diag(factors), np.array(offset))


def moved(item: SceneObject, frame: int) -> np.ndarray:
    pose = np.eye(4) if item.poses is None else item.poses[frame]
    return item.positions @ pose[:3, :3].T + pose[:3, 3]


def test_boxes_overlap_but_meshes_do_not() -> None:
    """A ball in a ring's hole touches nothing; beside the middle it does. Its box lies within the ring's all the time."""
    ring = solid(torus(np.random.default_rng(0)), GREY)
    ball = Body(solid(scaled(sphere(), 0.1, 0.1, 0.1), GREY))
    occupied = Occupied()
    occupied.add(Body(ring), at(np.zeros(3)))
    assert not occupied.free(ball, at(np.array([1.0, 0.0, 0.0])))
    # Two rods crossing at different heights: boxes overlap, triangles are apart, neither's middle is in the other's box.
    rod = Body(solid(scaled(cuboid(), 2.0, 0.1, 0.1), GREY))
    bridge = solid(
        joined(
            scaled(cuboid(), 0.1, 0.1, 2.0, offset=(1.0, 0.5, 0.0)), scaled(cuboid(), 0.1, 1.0, 0.1, offset=(1.0, -0.5, 2.0))
        ),
        GREY,
    )
    occupied = Occupied()
    occupied.add(rod, at(np.zeros(3)))
    assert occupied.free(Body(bridge), at(np.zeros(3)))
    assert not occupied.free(Body(bridge), at(np.array([0.0, -0.4, 0.0])))


def test_a_thing_inside_another_meets_it() -> None:
    occupied = Occupied()
    occupied.add(Body(solid(cuboid(), GREY)), at(np.zeros(3)))
    small = Body(solid(scaled(cuboid(), 0.1, 0.1, 0.1), GREY))
    assert not occupied.free(small, at(np.array([0.3, 0.2, 0.1]))) and occupied.free(small, at(np.array([0.0, 1.3, 0.0])))


def test_the_whole_way_must_be_free() -> None:
    occupied = Occupied()
    occupied.add(Body(solid(cuboid(), GREY)), at(np.array([5.0, 0.0, 0.0])))
    body = Body(solid(scaled(cuboid(), 0.5, 0.5, 0.5), GREY))
    way = np.concatenate([at(np.array([x, 0.0, 0.0])) for x in np.linspace(0, 10, 11)])
    assert occupied.free(body, way[:4]) and not occupied.free(body, way)
    assert occupied.free(body, way + at(np.array([0.0, 0.0, 3.0])) - at(np.zeros(3)))


def test_resting_on_a_face() -> None:
    """A flat box comes to lie on one of its six faces, on a large one mostly, wherever it started from."""
    flat = solid(scaled(cuboid(), 1.0, 0.1, 0.6), GREY)
    heights = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        start = placed(flat, rotation_y(float(rng.uniform(0, 6))).double().numpy() @ np.diag([1.0, -1.0, -1.0]))
        item = onto_ground(placed(start, rotation_to_rest(rng, start)))
        low, high = item.positions.min(0), item.positions.max(0)
        assert low[1] == pytest.approx(0, abs=1e-9) and np.allclose((low + high)[[0, 2]], 0, atol=1e-9)
        heights.append(round(float(high[1]), 3))
    assert set(heights) <= {0.2, 1.2, 2.0}
    # Large faces have 0.6 / (0.6 + 0.06 + 0.1) = 79 % of the area; 60 draws deviate by 5 %.
    assert heights.count(0.2) > 36


def test_turns_and_ways() -> None:
    rng = np.random.default_rng(0)
    centre = np.array([0.3, 0.0, -0.2])
    for poses in (turning(rng, centre, FRAMES), sliding(rng, 2.0, FRAMES)):
        assert np.allclose(poses[0], np.eye(4), atol=1e-6)
        assert np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3), atol=1e-6)
        assert np.allclose(poses[:, 1, :3], [0, 1, 0], atol=1e-6) and np.allclose(poses[:, 1, 3], 0, atol=1e-6)
    assert np.allclose(turning(rng, centre, FRAMES) @ [*centre, 1.0], [*centre, 1.0], atol=1e-6)
    light = light_turns(rng, FRAMES)
    assert torch.allclose(light[0], torch.eye(3)) and torch.allclose(light[:, 1, 1], torch.ones(FRAMES))


def test_camera_motions() -> None:
    view = random_view(np.random.default_rng(1), np.zeros(3), 1.0, 0.75, lowest=6.0)
    rest = camera_path(np.random.default_rng(0), view, ("light",), FRAMES)
    assert (rest.pose == rest.pose[0]).all()
    orbit = camera_path(np.random.default_rng(0), view, ("orbit",), FRAMES)
    steps = (orbit.pose[1:, :3, 3] - orbit.pose[:-1, :3, 3]).norm(dim=-1)
    assert steps.min() > 0
    swing = camera_path(np.random.default_rng(0), View(np.zeros(3), 3.0, 0.0, 0.5, 50.0, 0.1), ("oscillation",), 33)
    away = (swing.pose[:, :3, 3] - swing.pose[0, :3, 3]).norm(dim=-1)
    # It stays near and comes back: the way is longer than the farthest point.
    assert (swing.pose[1:, :3, 3] - swing.pose[:-1, :3, 3]).norm(dim=-1).sum() > 1.5 * away.max() > 0
    for camera in (rest, orbit, swing):
        assert (camera.pose[:, 1, 3] > 0).all()


def test_motions_are_mixed_and_go_together() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_motions(rng, MOTIONS[:-1], ground=True) for _ in range(400)]
    assert {name for names in drawn for name in names} == set(MOTIONS[:-1])
    for names in drawn:
        assert 1 <= len(names) <= 2 and sum(name in CAMERA_MOTIONS for name in names) <= 1
        assert sum(name in OBJECT_MOTIONS for name in names) <= 1
    assert 0.2 < np.mean([len(names) == 2 for names in drawn]) < 0.6
    assert not any("object-translation" in random_motions(rng, MOTIONS[:-1], ground=False) for _ in range(100))
    assert random_motions(rng, ("static",), ground=True) == ("static",)
    assert random_motions(rng, ("object-translation",), ground=False) == ("static",)


@pytest.mark.parametrize("index", range(12))
def test_scenes_have_nothing_floating_sunk_or_intersecting(index: int) -> None:
    settings = DatasetSettings(frames=FRAMES, family="scenes", panorama_height=16)
    spec = random_scene(np.random.default_rng([11, index]), settings)
    ground, *standing = spec.objects
    assert np.allclose(ground.positions[:, 1], 0) and 1 <= len(standing) <= MAX_ASSETS + MAX_PRIMITIVES
    half = np.abs(ground.positions).max()
    for item in standing:
        for frame in range(FRAMES):
            points = moved(item, frame)
            assert points[:, 1].min() == pytest.approx(0, abs=1e-6)
            assert np.linalg.norm(points[:, [0, 2]], axis=-1).max() < 1.5 * half
    import trimesh

    for frame in range(FRAMES):
        manager = trimesh.collision.CollisionManager()
        for number, item in enumerate(standing):
            faces, start = [], 0
            for part in item.parts:
                faces.append(part.mesh.faces + start)
                start += len(part.mesh.positions)
            manager.add_object(str(number), trimesh.Trimesh(moved(item, frame), np.concatenate(faces), process=False))
        assert not manager.in_collision_internal()
    # What is said to move does.
    assert any(item.poses is not None for item in standing) == any(name in OBJECT_MOTIONS for name in spec.motions)
    assert (spec.light_rotation is not None) == ("light" in spec.motions)
    assert bool((spec.camera.pose != spec.camera.pose[0]).any()) == any(name in CAMERA_MOTIONS for name in spec.motions)


def test_single_objects_have_no_ground() -> None:
    settings = DatasetSettings(frames=2, family="objects", panorama_height=16, lights=3)
    spec = random_scene(np.random.default_rng(3), settings)
    assert spec.family == "objects" and len(spec.objects) == 1 and len(spec.relights) == 2


def test_a_scene_depends_on_its_seed_alone() -> None:
    settings = DatasetSettings(frames=3, panorama_height=16)
    first, again, other = (random_scene(np.random.default_rng(seed), settings) for seed in (5, 5, 6))
    assert torch.equal(first.camera.pose, again.camera.pose) and not torch.equal(first.camera.pose, other.camera.pose)
    assert torch.equal(first.environment.radiance, again.environment.radiance)
    for a, b in zip(first.objects, again.objects, strict=True):
        assert np.array_equal(a.positions, b.positions)
        assert all(np.array_equal(p.material.basecolor, q.material.basecolor) for p, q in zip(a.parts, b.parts, strict=True))


def test_too_many_parts_are_refused() -> None:
    from diffusion_renderer.datagen.engine.mitsuba_scene import SLOTS, slots_of

    spec = random_scene(np.random.default_rng(3), DatasetSettings(frames=1, family="objects", panorama_height=16))
    part = spec.objects[0].parts[0]
    crowded = replace(spec, objects=(replace(spec.objects[0], parts=(part,) * (SLOTS[-1] + 1)),))
    with pytest.raises(InputError, match="fewer objects"):
        slots_of(crowded)
    assert len(slots_of(replace(spec, objects=(replace(spec.objects[0], parts=(part,) * 9),)))) == 16


def test_wrong_settings_are_named() -> None:
    with pytest.raises(InputError, match="oscillation"):
        DatasetSettings(motions=("oscilation",))
    with pytest.raises(InputError, match="scenes"):
        DatasetSettings(family="scene")
    with pytest.raises(InputError, match="png16"):
        DatasetSettings(format="png-16")
