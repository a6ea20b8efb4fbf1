"""The scene that ships with the project: one arranged still life, and its ground truth under three lights.

Its seed is one number where a dataset's clip has two (seed, index), so that no dataset can contain it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import look_at, rotation_y
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap
from diffusion_renderer.datagen.generate import render_relit, render_scene
from diffusion_renderer.datagen.objects import SceneObject, solid
from diffusion_renderer.datagen.procedural.materials import Material, painted_material
from diffusion_renderer.datagen.procedural.panoramas import panorama_of_kind
from diffusion_renderer.datagen.procedural.shapes import Mesh, centred, plane, rounded_box, sphere, torus, transformed, vase
from diffusion_renderer.datagen.scenes import SceneSpec
from diffusion_renderer.datagen.settings import DatasetSettings, Sample

#: What the shipped clip was rendered with.
DEMO_SETTINGS = DatasetSettings(frames=24, width=192, height=128, samples=64, buffer_samples=4, fps=12.0)
_DEMO_SEED = 20_250_611
_BRIGHTNESS = 0.45


@dataclass(frozen=True)
class DemoLight:
    """A light of the demo and the clip's ground truth under it.

    Attributes
    ----------
    environment : the panorama, exposure included.
    rotates : False for a light fixed to the world. True for one that turns once about the vertical axis of the *camera's* frame
        during the clip: ``R = Ry(2 pi i / (n - 1))``.
    clip : the ground truth.
    """

    environment: EnvironmentMap
    rotates: bool
    clip: Clip


def demo_clip(settings: DatasetSettings = DEMO_SETTINGS) -> Sample:
    """The input clip of the demo with its ground truth, under its own light."""
    rendered = render_scene(demo_scene(settings), settings, _DEMO_SEED, "demo")
    return replace(rendered, meta={"seed": _DEMO_SEED, "index": 0, **rendered.meta})


def demo_relit(settings: DatasetSettings = DEMO_SETTINGS) -> Iterator[DemoLight]:
    """The demo's scene under each of its three lights, the last one rotating."""
    spec = demo_scene(settings)
    for name, kind, seed, rotates in (
        ("sunny", "sky", 15, False),
        ("studio", "studio", 13, False),
        ("rotating_dusk", "gradients", 9, True),
    ):
        radiance = panorama_of_kind(np.random.default_rng([_DEMO_SEED, 0, seed]), kind, settings.panorama_height)
        light = EnvironmentMap(torch.from_numpy(radiance).permute(2, 0, 1).contiguous(), name)
        rotations = full_turn(settings.frames) if rotates else None
        clip, light = render_relit(spec, light, rotations, settings, brightness=_BRIGHTNESS, mitsuba_seed=_DEMO_SEED)
        yield DemoLight(light, rotates, clip)


def full_turn(frames: int) -> Float[Tensor, "frames 3 3"]:
    """Ry(2 pi i / (n - 1)) for every frame, both ends included. Raises InputError for fewer than two frames."""
    if frames < 2:
        raise InputError("at least two frames for a rotating light", str(frames), "give more frames")
    return torch.stack([rotation_y(2 * math.pi * i / (frames - 1)) for i in range(frames)])


def demo_scene(settings: DatasetSettings = DEMO_SETTINGS) -> SceneSpec:
    """A vase, a brass ball, a painted box and a ring on a wooden table; the camera moves along an arc of 50 degrees."""
    rng = np.random.default_rng([_DEMO_SEED])
    wood = painted_material(rng, "wood", [(0.16, 0.07, 0.03), (0.42, 0.23, 0.11)], (0.5, 0.3))
    glaze = painted_material(rng, "clouds", [(0.05, 0.22, 0.32), (0.10, 0.45, 0.42), (0.75, 0.80, 0.72)], (0.12, 0.35))
    brass = painted_material(rng, "clouds", [(0.85, 0.66, 0.33), (0.92, 0.78, 0.48)], (0.12, 0.28), (1.0, 1.0))
    paint = painted_material(rng, "checker", [(0.62, 0.06, 0.05), (0.82, 0.78, 0.70)], (0.7, 0.45))
    steel = painted_material(rng, "photo", [(0.45, 0.16, 0.06), (0.58, 0.58, 0.60)], (0.85, 0.25), (0.0, 1.0))
    objects = (
        solid(plane(2.6, 3.0), wood),
        _standing(vase(rng), glaze, 0.88, (-0.55, -0.55), 0.3),
        _standing(sphere(), brass, 0.46, (0.62, 0.45), 0.0),
        _standing(rounded_box(rng), paint, 0.78, (0.85, -0.75), 0.5),
        _standing(torus(rng), steel, 0.52, (-0.6, 0.78), 0.0),
    )
    radiance = panorama_of_kind(np.random.default_rng([_DEMO_SEED, 0, 0]), "room", settings.panorama_height)
    environment = EnvironmentMap(torch.from_numpy(radiance).permute(2, 0, 1).contiguous(), "procedural room")
    return SceneSpec("demo", objects, _arc(settings.frames), environment, _BRIGHTNESS)


def _standing(mesh: Mesh, material: Material, radius: float, place: tuple[float, float], yaw: float) -> SceneObject:
    c, s = radius * math.cos(yaw), radius * math.sin(yaw)
    mesh = transformed(centred(mesh), np.array([[c, 0.0, s], [0.0, radius, 0.0], [-s, 0.0, c]]), np.zeros(3))
    lift = float(-mesh.positions[:, 1].min())
    return solid(transformed(mesh, np.eye(3), np.array([place[0], lift, place[1]])), material)


def _arc(frames: int) -> Camera:
    angles = torch.linspace(-25.0, 25.0, frames).deg2rad() if frames > 1 else torch.zeros(1)
    target, elevation, distance = torch.tensor([0.05, 0.55, 0.0]), math.radians(22), 5.0
    around = torch.stack(
        (angles.sin() * math.cos(elevation), torch.full_like(angles, math.sin(elevation)), angles.cos() * math.cos(elevation)),
        -1,
    )
    poses = torch.stack([look_at(target + distance * direction, target) for direction in around])
    return Camera(poses, torch.full((frames,), 45.0))
