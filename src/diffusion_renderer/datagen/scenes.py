"""Random scenes: what stands where, what it is made of, how the camera moves, what lights it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from diffusion_renderer.core.geometry import look_at
from diffusion_renderer.core.types import Camera, EnvironmentMap
from diffusion_renderer.datagen.materials import Material, random_material
from diffusion_renderer.datagen.panoramas import file_panorama, list_panoramas, procedural_panorama
from diffusion_renderer.datagen.settings import DatasetSettings
from diffusion_renderer.datagen.shapes import Mesh, plane, random_shape, transformed

#: Meshes in every scene; those that a scene does not need are shrunk out of sight, so that all scenes share one kernel.
SLOTS = 5


@dataclass(frozen=True)
class SceneObject:
    """A mesh in world space and what it is made of."""

    mesh: Mesh
    material: Material


@dataclass(frozen=True)
class SceneSpec:
    """A scene without any renderer's objects in it.

    Attributes
    ----------
    family : "scene" (objects on a ground) or "objects" (before the bare panorama).
    objects : at most `SLOTS`.
    camera : one pose per frame.
    environment : linear radiance, before any exposure, fixed to the world.
    brightness : the mean that the display-referred frames should have; the exposure is set from it.
    """

    family: str
    objects: tuple[SceneObject, ...]
    camera: Camera
    environment: EnvironmentMap
    brightness: float


def random_scene(rng: np.random.Generator, settings: DatasetSettings) -> SceneSpec:
    """Draw a scene; it depends on ``rng`` and ``settings`` alone."""
    family = "objects" if rng.random() < settings.objects_share else "scene"
    objects = _floating(rng) if family == "objects" else _on_ground(rng)
    standing = [item for item in objects if item.mesh.name != "plane"]
    points = np.concatenate([item.mesh.positions for item in standing])
    middle = (points.min(0) + points.max(0)) / 2
    extent = float(np.linalg.norm(points - middle, axis=-1).max())
    camera = random_orbit(rng, middle, extent, settings, lowest=-10.0 if family == "objects" else 6.0)
    environment = random_environment(rng, settings)
    return SceneSpec(family, tuple(objects), camera, environment, float(rng.uniform(0.3, 0.58)))


def random_environment(rng: np.random.Generator, settings: DatasetSettings) -> EnvironmentMap:
    """A panorama from the settings' folder or a procedural one; its name says which."""
    if settings.panoramas is not None and rng.random() < settings.panorama_probability:
        files = list_panoramas(settings.panoramas)
        path = files[int(rng.integers(0, len(files)))]
        name, image = path.name, file_panorama(rng, path, settings.panorama_height)
    else:
        kind, image = procedural_panorama(rng, settings.panorama_height)
        name = f"procedural {kind}"
    return EnvironmentMap(torch.from_numpy(image).permute(2, 0, 1).contiguous(), name)


def _random_rotation(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def _yaw(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _turned(rng: np.random.Generator, mesh: Mesh, upright: float) -> Mesh:
    """The mesh upright with a random yaw, or (with probability 1 - ``upright``) turned in any way."""
    rotation = _yaw(rng.uniform(0, 2 * np.pi)) if rng.random() < upright else _random_rotation(rng)
    return transformed(mesh, rotation, np.zeros(3))


def _on_ground(rng: np.random.Generator) -> list[SceneObject]:
    """A ground and one to four objects resting on it, apart from each other; now and then one hovers above it."""
    half_size = float(np.exp(rng.uniform(np.log(2.5), np.log(14.0))))
    ground = plane(half_size, min(2 * half_size / rng.uniform(0.8, 4.0), 24.0))
    ground = transformed(ground, _yaw(rng.uniform(0, 2 * np.pi)), np.zeros(3))
    objects = [SceneObject(ground, random_material(rng))]
    taken: list[tuple[np.ndarray, float]] = []
    for _ in range(int(rng.integers(1, SLOTS))):
        scale = rng.uniform(0.35, 1.0)
        mesh = _turned(rng, random_shape(rng), upright=0.65)
        mesh = replace(mesh, positions=mesh.positions * scale)
        reach = float(np.linalg.norm(mesh.positions[:, [0, 2]], axis=-1).max())
        place = _free_place(rng, reach, taken)
        if place is None:
            continue
        taken.append((place, reach))
        lift = -mesh.positions[:, 1].min() + (rng.uniform(0.1, 0.8) if rng.random() < 0.08 else 0.0)
        objects.append(SceneObject(transformed(mesh, np.eye(3), np.array([place[0], lift, place[1]])), random_material(rng)))
    return objects


def _free_place(rng: np.random.Generator, reach: float, taken: list[tuple[np.ndarray, float]]) -> np.ndarray | None:
    """Centre of a free circle of radius ``reach`` near the middle, or None after too many tries."""
    for attempt in range(40):
        place = rng.uniform(-1, 1, 2) * (0.6 + 0.04 * attempt)
        if all(np.linalg.norm(place - other) > reach + radius + 0.02 for other, radius in taken):
            return place
    return None


def _floating(rng: np.random.Generator) -> list[SceneObject]:
    """One centred object; sometimes two or three, kept apart by their bounding spheres."""
    count = int(rng.choice([1, 2, 3], p=[0.7, 0.18, 0.12]))
    if count == 1:
        return [SceneObject(_turned(rng, random_shape(rng), upright=0.4), random_material(rng))]
    objects = []
    for index in range(count):
        scale = rng.uniform(0.6, 1.0)
        mesh = _turned(rng, random_shape(rng), upright=0.3)
        angle = 2 * np.pi * index / count
        offset = 1.1 / np.sin(np.pi / count) * np.array([np.cos(angle), 0.0, np.sin(angle)]) + rng.uniform(-0.05, 0.05, 3)
        objects.append(
            SceneObject(transformed(replace(mesh, positions=mesh.positions * scale), np.eye(3), offset), random_material(rng))
        )
    return objects


def random_orbit(
    rng: np.random.Generator, middle: np.ndarray, extent: float, settings: DatasetSettings, lowest: float
) -> Camera:
    """A camera on an arc around ``middle``, at such a distance that a sphere of radius ``extent`` about fills the frame.

    Elevation lies between ``lowest`` and 65 degrees, the arc between 5 and 80 degrees over the clip; the field of view stays.
    """
    n = settings.frames
    fov = float(rng.uniform(30, 65))
    shorter = min(1.0, settings.height / settings.width)
    distance = extent / np.sin(np.arctan(np.tan(np.radians(fov / 2)) * shorter)) * rng.uniform(0.75, 1.35)
    distance = max(distance, 1.25 * extent)
    time = np.linspace(0.0, 1.0, n)
    azimuth = rng.uniform(0, 360) + rng.choice([-1, 1]) * rng.uniform(5, 80) * time
    elevation = np.clip(rng.uniform(lowest, 65) + rng.uniform(-10, 10) * (time - 0.5), lowest, 68)
    distance = distance * (1 + rng.uniform(-0.12, 0.12) * (time - 0.5))
    target = middle + rng.uniform(-0.2, 0.2, 3) * extent
    if lowest > 0:
        target[1] = max(target[1], 0.0)
    azimuth, elevation = np.radians(azimuth), np.radians(elevation)
    around = np.stack((np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)), -1)
    eyes = torch.from_numpy(target + distance[:, None] * around).float()
    poses = torch.stack([look_at(eye, torch.from_numpy(target).float()) for eye in eyes])
    return Camera(poses, torch.full((n,), fov))
