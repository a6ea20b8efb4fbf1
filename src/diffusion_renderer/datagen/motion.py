"""What moves during a clip: the camera (orbit, oscillation), the light, an object (turning, sliding). Paper, section 4.1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from diffusion_renderer.core.geometry import look_at, rotation_y
from diffusion_renderer.core.types import Camera
from diffusion_renderer.datagen.settings import MOTIONS

CAMERA_MOTIONS, OBJECT_MOTIONS = ("orbit", "oscillation"), ("object-rotation", "object-translation")
#: How often a clip has a second motion.
_SECOND = 0.4


def random_motions(rng: np.random.Generator, allowed: tuple[str, ...], ground: bool) -> tuple[str, ...]:
    """One or two of ``allowed`` that can go together, in the order of `MOTIONS`. Sliding needs a ground."""
    choices = [name for name in allowed if name != "static" and (ground or name != "object-translation")]
    if not choices or ("static" in allowed and rng.random() < 1 / len(allowed)):
        return ("static",)
    first = str(rng.choice(choices))
    kinds = (CAMERA_MOTIONS, ("light",), OBJECT_MOTIONS)
    kind = next(group for group in kinds if first in group)
    others = [name for name in choices if name not in kind]
    drawn = [first, str(rng.choice(others))] if others and rng.random() < _SECOND else [first]
    return tuple(name for name in MOTIONS if name in drawn)


@dataclass(frozen=True)
class View:
    """Where a camera stands at rest: on a sphere around ``target``; angles in radians, ``fov_x`` in degrees."""

    target: Float[np.ndarray, 3]
    distance: float
    azimuth: float
    elevation: float
    fov_x: float
    lowest: float


def random_view(
    rng: np.random.Generator, middle: np.ndarray, extent: float, aspect: float, lowest: float, highest: float = 65.0
) -> View:
    """A view of a sphere of radius ``extent`` around ``middle`` that about fills the frame.

    ``aspect`` is height by width; the elevation lies between ``lowest`` and ``highest`` degrees.
    """
    fov = float(rng.uniform(30, 65))
    distance = extent / np.sin(np.arctan(np.tan(np.radians(fov / 2)) * min(1.0, aspect))) * rng.uniform(0.75, 1.35)
    target = middle + rng.uniform(-0.2, 0.2, 3) * extent
    if lowest > 0:
        target[1] = max(target[1], 0.0)
    elevation = np.radians(rng.uniform(lowest, highest))
    azimuth = rng.uniform(0, 2 * np.pi)
    return View(target, max(float(distance), 1.3 * extent), float(azimuth), float(elevation), fov, float(np.radians(lowest)))


def camera_path(rng: np.random.Generator, view: View, motions: tuple[str, ...], frames: int) -> Camera:
    """The poses of a clip: an arc (orbit), a swing to and fro (oscillation), or one place."""
    time = np.linspace(0.0, 1.0, frames)
    azimuth, elevation, distance = (np.full(frames, value) for value in (view.azimuth, view.elevation, view.distance))
    if "orbit" in motions:
        azimuth = azimuth + np.radians(rng.choice([-1, 1]) * rng.uniform(8, 90)) * time
        elevation = elevation + np.radians(rng.uniform(-10, 10)) * (time - 0.5)
        distance = distance * (1 + rng.uniform(-0.12, 0.12) * (time - 0.5))
    elif "oscillation" in motions:
        turn = 2 * np.pi * (rng.choice([0.5, 1.0, 2.0]) * time + rng.random())
        azimuth = azimuth + np.radians(rng.uniform(2, 12)) * np.sin(turn)
        elevation = elevation + np.radians(rng.uniform(0, 6)) * np.sin(turn + rng.uniform(0, 2 * np.pi))
        distance = distance * (1 + rng.uniform(0, 0.05) * np.sin(turn + rng.uniform(0, 2 * np.pi)))
    elevation = np.clip(elevation, view.lowest, np.radians(70))
    around = np.stack((np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)), -1)
    eyes = torch.from_numpy(view.target + distance[:, None] * around).float()
    target = torch.from_numpy(view.target).float()
    return Camera(torch.stack([look_at(eye, target) for eye in eyes]), torch.full((frames,), view.fov_x))


def light_turns(rng: np.random.Generator, frames: int) -> Float[torch.Tensor, "frames 3 3"]:
    """A turn of the light about the vertical axis, by 60 to 360 degrees over the clip, from rest."""
    turn = rng.choice([-1, 1]) * rng.uniform(np.pi / 3, 2 * np.pi)
    return torch.stack([rotation_y(float(turn * t)) for t in np.linspace(0, 1, frames)])


def turning(rng: np.random.Generator, centre: Float[np.ndarray, 3], frames: int) -> Float[np.ndarray, "frames 4 4"]:
    """A turn about the vertical axis through ``centre``, by 40 to 360 degrees over the clip, from rest."""
    turn = rng.choice([-1, 1]) * rng.uniform(np.radians(40), 2 * np.pi)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    for pose, t in zip(poses, np.linspace(0, 1, frames), strict=True):
        pose[:3, :3] = rotation_y(float(turn * t)).double().numpy()
        pose[:3, 3] = centre - pose[:3, :3] @ centre
    return poses


def sliding(rng: np.random.Generator, reach: float, frames: int) -> Float[np.ndarray, "frames 4 4"]:
    """A way along the plane, 0.3 to 1 times ``reach`` long, straight, slow at its ends."""
    direction, length = rng.uniform(0, 2 * np.pi), reach * rng.uniform(0.3, 1.0)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    time = np.linspace(0, 1, frames)
    way = length * time * time * (3 - 2 * time)
    poses[:, 0, 3], poses[:, 2, 3] = way * np.cos(direction), way * np.sin(direction)
    return poses
