"""``cameras.json``: ``{"frames": [{"transform_matrix": 4x4 camera-to-world, "fov_x_deg": float}, ...]}``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera
from diffusion_renderer.io.atomic import write_bytes
from diffusion_renderer.io.images import require_file

#: How far from orthonormal a rotation may be: poses written with four decimals pass, a scale of 1% does not.
RIGID_TOLERANCE = 1e-3
SHAPE = '{"frames": [{"transform_matrix": 4x4, "fov_x_deg": degrees}, ...]}'


def read_cameras(path: str | Path) -> Camera:
    """Read a camera file, or the ``cameras.json`` of a folder.

    Raises InputError for JSON that is not of this shape, and for poses that are not rigid (orthonormal, right-handed, last row
    0 0 0 1), naming the frame.
    """
    path = Path(path)
    path = path / "cameras.json" if path.is_dir() else path
    require_file(path)
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))["frames"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cameras in {path} as {SHAPE}", _reason(error), "write the file in this shape") from error
    if not isinstance(frames, list) or not frames:
        raise InputError(f"cameras in {path} as {SHAPE}", "no frames", "add one entry per frame")
    poses = [_pose(path, index, frame) for index, frame in enumerate(frames)]
    angles = [_angle(path, index, frame) for index, frame in enumerate(frames)]
    return Camera(torch.stack(poses), torch.tensor(angles))


def write_cameras(camera: Camera, path: str | Path) -> Path:
    """Write a camera file; a path without ``.json`` is a folder that gets ``cameras.json``."""
    path = Path(path)
    path = path if path.suffix.lower() == ".json" else path / "cameras.json"
    frames = [
        {"transform_matrix": pose.tolist(), "fov_x_deg": float(angle)}
        for pose, angle in zip(camera.pose, camera.fov_x, strict=True)
    ]
    return write_bytes(path, (json.dumps({"frames": frames}, indent=1) + "\n").encode())


def check_camera_count(camera: Camera, frames: int) -> None:
    """InputError unless there is one camera per frame."""
    if len(camera) != frames:
        raise InputError(
            f"one camera for each of the {frames} frames", f"{len(camera)} cameras", "give the cameras of this clip"
        )


def _pose(path: Path, index: int, frame: Any) -> Float[Tensor, "4 4"]:
    try:
        pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(path, index, "a 4x4 transform_matrix", _reason(error)) from error
    if pose.shape != (4, 4) or not pose.isfinite().all():
        found = "x".join(map(str, pose.shape)) if pose.shape != (4, 4) else "values that are not finite"
        raise _bad(path, index, "a 4x4 transform_matrix", found)
    rotation, bottom = pose[:3, :3], pose.new_tensor([0.0, 0.0, 0.0, 1.0])
    error = max((rotation.T @ rotation - torch.eye(3, dtype=pose.dtype)).abs().max(), (pose[3] - bottom).abs().max())
    if error > RIGID_TOLERANCE or torch.linalg.det(rotation) < 0:
        found = "a mirrored rotation" if error <= RIGID_TOLERANCE else f"a matrix {float(error):.3g} away from one"
        raise _bad(path, index, "a rigid camera-to-world matrix (rotation and translation, last row 0 0 0 1)", found)
    return pose.float()


def _angle(path: Path, index: int, frame: Any) -> float:
    angle = frame.get("fov_x_deg")
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not 0 < angle < 180:
        raise _bad(path, index, "fov_x_deg, the horizontal field of view between 0 and 180 degrees", repr(angle))
    return float(angle)


def _bad(path: Path, index: int, expected: str, found: str) -> InputError:
    return InputError(f"{expected} in frame {index} of {path}", found, "correct this entry")


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
