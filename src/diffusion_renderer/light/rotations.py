"""Per-frame rotations R of a light: camera-space direction d sees the panorama at ``d_world = R d`` (CONVENTIONS, Lighting)."""

from __future__ import annotations

import math
from functools import reduce

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.geometry import rotation_x, rotation_y
from diffusion_renderer.core.types import Camera


def camera_fixed(frames: int) -> Float[Tensor, "{frames} 3 3"]:
    """A light that stays with the camera: the identity in every frame (the published behaviour)."""
    return repeat(torch.eye(3), "i j -> frames i j", frames=frames)


def world_fixed(camera: Camera) -> Float[Tensor, "frames 3 3"]:
    """A light that stays with the world: the rotation of each frame's camera-to-world pose."""
    return camera.rotation.clone()


def rotating(frames: int) -> Float[Tensor, "{frames} 3 3"]:
    """A light that turns once around the vertical, ``Ry(2 pi i / (n - 1))``, both ends included; one frame does not turn."""
    return torch.stack([rotation_y(2 * math.pi * i / max(frames - 1, 1)) for i in range(frames)])


def elevated(frames: int, degrees: float) -> Float[Tensor, "{frames} 3 3"]:
    """The published ``cam_elevation``: ``Rx(degrees)`` in every frame."""
    return repeat(rotation_x(math.radians(degrees)), "i j -> frames i j", frames=frames)


def yawed(frames: int, degrees: float) -> Float[Tensor, "{frames} 3 3"]:
    """A static turn about the vertical, ``Ry(degrees)`` in every frame."""
    return repeat(rotation_y(math.radians(degrees)), "i j -> frames i j", frames=frames)


def compose(*rotations: Float[Tensor, "_ 3 3"]) -> Float[Tensor, "_ 3 3"]:
    """Product of rotations, frame by frame: the last one given acts first on the camera-space direction.

    ``compose(yawed(n, 90), world_fixed(camera))`` turns a light that is fixed to the world by 90 degrees about the world's
    vertical. Stacks of one frame go with any number of frames.
    """
    return reduce(torch.matmul, rotations)
