"""``transforms.json`` as NeRF's Blender scenes, Instant NGP and nerfstudio write it.

Format: https://docs.nerf.studio/quickstart/data_conventions.html. Camera axes are ours (OpenGL); poses are camera-to-world.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera
from diffusion_renderer.datagen.readers.common import natural

#: How far from orthonormal a rotation may be; poses written with four decimals pass.
_RIGID_TOLERANCE = 1e-3
_SHAPE = '{"fl_x" and "w", or "camera_angle_x"; "frames": [{"file_path", "transform_matrix": 4x4}, ...]}'


@dataclass(frozen=True)
class View:
    """One image and its camera.

    Attributes
    ----------
    file_path : as written, relative to the JSON file; the suffix may be left out.
    pose : camera-to-world, in the file's world.
    fov_x : horizontal, degrees.
    """

    file_path: str
    pose: Float[Tensor, "4 4"]
    fov_x: float


def read_transforms(path: Path) -> tuple[list[View], dict[str, Any]]:
    """The views in order of their file names, and everything else that the file says.

    Intrinsics of a frame win over those of the file. Raises InputError for JSON of another shape, a pose that is not rigid, and
    cameras that are not perspective. Lens distortion is not undone.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        frames = content.pop("frames")
        views = [_view(path, {**content, **frame}) for frame in frames]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"cameras in {path} as {_SHAPE}", reason, "fetch the file again") from error
    if not views:
        raise InputError(f"cameras in {path} as {_SHAPE}", "no frames", "fetch the file again")
    return sorted(views, key=lambda view: natural(view.file_path)), content


def camera_of(views: list[View], world: Float[Tensor, "4 4"] | None = None) -> Camera:
    """The views' cameras; ``world`` turns the file's world into ours."""
    poses = torch.stack([view.pose for view in views])
    poses = poses if world is None else world.double() @ poses
    return Camera(poses.float(), torch.tensor([view.fov_x for view in views]))


def _view(path: Path, frame: dict[str, Any]) -> View:
    model = frame.get("camera_model", "OPENCV")
    if model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"):
        raise InputError(f"a perspective camera in {path}", str(model), "undistort the images first")
    if "camera_angle_x" in frame and "fl_x" not in frame:
        fov = math.degrees(float(frame["camera_angle_x"]))
    else:
        fov = math.degrees(2 * math.atan(float(frame["w"]) / (2 * float(frame["fl_x"]))))
    pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
    if pose.shape != (4, 4) or not _rigid(pose):
        raise InputError(
            f"a rigid 4x4 camera-to-world matrix for {frame['file_path']} in {path}", str(pose.tolist()), "fetch the file again"
        )
    return View(str(frame["file_path"]), pose, fov)


def _rigid(pose: Float[Tensor, "4 4"]) -> bool:
    rotation, bottom = pose[:3, :3], pose.new_tensor([0.0, 0.0, 0.0, 1.0])
    error = max((rotation.T @ rotation - torch.eye(3).to(pose)).abs().max(), (pose[3] - bottom).abs().max())
    return bool(pose.isfinite().all() and error < _RIGID_TOLERANCE and torch.linalg.det(rotation) > 0)
