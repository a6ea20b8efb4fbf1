"""HyperSim: synthetic indoor scenes with reflectance, illumination and geometry (Roberts et al., ICCV 2021; Apple).

Layout, as its documentation gives it (https://github.com/apple/ml-hypersim); every file holds one array named ``dataset``:

    ai_VVV_NNN/
        images/scene_cam_XX_final_hdf5/frame.IIII.{color,diffuse_reflectance,diffuse_illumination,residual}.hdf5
        images/scene_cam_XX_geometry_hdf5/frame.IIII.{depth_meters,normal_cam,render_entity_id}.hdf5
        _detail/metadata_scene.csv                                    meters_per_asset_unit
        _detail/cam_XX/camera_keyframe_{positions,orientations}.hdf5
    metadata_images_split_scene_v1.csv                                needed for splits only
    metadata_camera_parameters.csv                                    per-scene intrinsics, when they are at hand

====================  =====================================================  ================================================
file                  documented                                             here
====================  =====================================================  ================================================
color                 linear; = reflectance * illumination + residual        clip; composed from the three when it is absent
diffuse_reflectance   "albedo" of the diffuse part                           diffuse_albedo (there is no base colour, roughness
                                                                             or metallic: these stay None)
depth_meters          Euclidean distance to the camera, metres               z-depth, metres: times -z of the pixel's unit ray
normal_cam            camera axes x right, y up, z away from the view        unit vectors, unchanged
render_entity_id      -1 where no geometry is seen                           mask False, depth +inf
positions             asset units, world +z up                               metres, world +y up
orientations          camera-to-world, camera axes as ours                   world +y up
====================  =====================================================  ================================================

Exposure: HyperSim's own rule with the sRGB curve (`EXPOSURE_RULE`), one per clip. Rays: ``M_cam_from_uv`` of
metadata_camera_parameters.csv when it lies in the folder (or in ``../analysis``), else HyperSim's default, a horizontal field
of view of 60 degrees (focal length 886.81 pixels at 1024 x 768). A few scenes are tilt-shift: z-depth is right for them, but
`Camera` has no place for the shift, and meta says so. Trajectories are sparse, so stills are the default; ``frames`` asks for
clips of consecutive frames. Licence: CC-BY-SA-3.0.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import Camera, GBuffer
from diffusion_renderer.datagen.readers.common import (
    EXPOSURE_RULE,
    Z_UP_TO_Y_UP,
    PublicSet,
    choose_exposure,
    describe,
    display_clip,
    in_clips,
    layout_error,
    masked,
    relative,
    require_folder,
    require_frames,
    unit_normals,
)
from diffusion_renderer.datagen.settings import Sample

HYPERSIM = PublicSet(
    "hypersim",
    "CC-BY-SA-3.0",
    "https://github.com/apple/ml-hypersim",
    "ai_VVV_NNN/images/scene_cam_XX_{final,geometry}_hdf5/frame.IIII.<layer>.hdf5",
)
SPLITS = ("train", "val", "test")
SPLIT_FILE = "metadata_images_split_scene_v1.csv"
CAMERA_FILE = "metadata_camera_parameters.csv"
#: Horizontal field of view of a scene without an entry in metadata_camera_parameters.csv, degrees.
DEFAULT_FOV = 60.0
_PARTS = ("diffuse_reflectance", "diffuse_illumination", "residual")


@dataclass(frozen=True)
class _Trajectory:
    """One camera of one scene and the frames that are on disk."""

    scene: Path
    camera: str
    frames: tuple[int, ...]

    def file(self, frame: int, layer: str) -> Path:
        kind = "final" if layer in ("color", *_PARTS) else "geometry"
        return self.scene / "images" / f"scene_{self.camera}_{kind}_hdf5" / f"frame.{frame:04d}.{layer}.hdf5"


def read_hypersim(folder: str | Path, split: str | None = None, frames: int | None = None) -> Iterator[Sample]:
    """Stills, or clips of ``frames`` consecutive frames of a trajectory; see the module for layout, units and conversions.

    ``folder`` holds scenes (ai_*) or is one. ``split`` (train, val, test) needs metadata_images_split_scene_v1.csv in it or in
    ``../analysis``. A clip does not reach across frames that are not there (HyperSim withheld some): what is left at the end of
    a run of frames is dropped, and a run shorter than a clip is one clip. Layers that were not downloaded are None; only the
    colour, or the three parts it is composed of, must be there. Raises InputError at once for a wrong layout or an unknown
    split, while iterating for unreadable files. Needs h5py.
    """
    folder = require_folder(HYPERSIM, folder)
    length = require_frames(frames, 1)
    chosen = None if split is None else _split_frames(folder, split)
    root = folder.parent if (folder / "images").is_dir() else folder
    clips = [
        (trajectory, group)
        for trajectory in _trajectories(folder, chosen)
        for run in _runs(trajectory.frames)
        for group in in_clips(run, length)
    ]
    if not clips:
        missing = "any frame.IIII.color.hdf5, or frame.IIII.{diffuse_reflectance,diffuse_illumination,residual}.hdf5"
        raise layout_error(HYPERSIM, folder, f"{missing}{f' of the split {split}' if split else ''}")
    return (_read(root, trajectory, group) for trajectory, group in clips)


def z_depth(
    distance: Float[Tensor, "*frames 1 height width"], cam_from_uv: Float[Tensor, "3 3"]
) -> Float[Tensor, "*frames 1 height width"]:
    """Euclidean distance along the pixel's ray to distance along -z, in the same unit.

    ``cam_from_uv`` takes (u, v, 1), u to the right and v up in [-1, 1] over the image's edges, to a direction in camera space.
    """
    height, width = distance.shape[-2:]
    u = (torch.arange(width, dtype=torch.float64) + 0.5) / width * 2 - 1
    v = 1 - (torch.arange(height, dtype=torch.float64) + 0.5) / height * 2
    vv, uu = torch.meshgrid(v, u, indexing="ij")
    rays = torch.stack((uu, vv, torch.ones_like(uu)), -1) @ cam_from_uv.double().T
    return distance * (-rays[..., 2] / rays.norm(dim=-1)).float()


def pinhole(fov_x: float, aspect: float) -> Float[Tensor, "3 3"]:
    """`z_depth`'s matrix of an ordinary camera: ``fov_x`` in degrees, ``aspect`` width over height."""
    tangent = math.tan(math.radians(fov_x) / 2)
    return torch.diag(torch.tensor([tangent, tangent / aspect, -1.0]))


def _read(root: Path, trajectory: _Trajectory, frames: Sequence[int]) -> Sample:
    colour, files, composition = _colour(trajectory, frames)
    layers = {
        layer: _layer(trajectory, frames, layer, files) for layer in ("diffuse_reflectance", "depth_meters", "normal_cam")
    }
    distance, mask = layers["depth_meters"], _mask(trajectory, frames, layers["depth_meters"], files)
    rays, fov, shifted = _intrinsics(root, trajectory.scene.name, colour.shape[-1] / colour.shape[-2])
    depth = None
    if distance is not None:
        depth = torch.where(mask, z_depth(distance, rays), torch.full_like(distance, torch.inf))
    seen = torch.ones_like(colour[:, :1], dtype=torch.bool) if mask is None else mask
    name = f"{trajectory.scene.name}_{trajectory.camera}_{frames[0]:04d}"
    exposure = choose_exposure(colour, mask)
    clip = display_clip(colour, exposure, name)
    albedo, normal = layers["diffuse_reflectance"], layers["normal_cam"]
    gbuffer = GBuffer(
        normal=None if normal is None else unit_normals(normal, seen),
        depth=depth,
        diffuse_albedo=None if albedo is None else masked(albedo, seen),
        mask=mask,
        name=name,
    )
    converted = {
        "rgb": f"linear times exposure, sRGB; exposure: {EXPOSURE_RULE}",
        "depth": "distance along the ray to z-depth, metres",
        "camera": "asset units to metres, world +z up to +y up",
    }
    more = {
        "exposure": exposure,
        "frames": list(frames),
        "fov_x_deg": fov,
        "tilt_shift": shifted,
        "composition_error": composition,
    }
    meta = describe(HYPERSIM, trajectory.scene.name, clip, gbuffer, relative(files, root), converted, **more)
    return Sample(clip, gbuffer, camera=_camera(root, trajectory, frames, fov), meta=meta)


def _colour(trajectory: _Trajectory, frames: Sequence[int]) -> tuple[Float[Tensor, "frames 3 h w"], list[Path], float | None]:
    """Linear colour, the files it came from, and how far colour and its parts disagree (mean difference over mean colour)."""
    files: list[Path] = []
    colour = _layer(trajectory, frames, "color", files)
    parts = [_layer(trajectory, frames, layer, files) for layer in _PARTS]
    composed = None if any(part is None for part in parts) else parts[0] * parts[1] + parts[2]
    if colour is None and composed is None:
        missing = [layer for layer in _PARTS if not trajectory.file(frames[0], layer).is_file()]
        raise layout_error(HYPERSIM, trajectory.scene, f"color, and of its parts {', '.join(missing)}, of {trajectory.camera}")
    if colour is None:
        return composed.clamp_min(0.0), files, None
    error = None
    if composed is not None:
        error = float((composed - colour).abs().mean() / colour.abs().mean().clamp_min(1e-6))
    return colour.clamp_min(0.0), files, error


def _layer(
    trajectory: _Trajectory, frames: Sequence[int], layer: str, files: list[Path]
) -> Float[Tensor, "frames c h w"] | None:
    """One layer of all frames, None when a frame lacks it; what is not finite becomes finite, except in depth.

    The paths are added to ``files``.
    """
    paths = [trajectory.file(frame, layer) for frame in frames]
    if not all(path.is_file() for path in paths):
        return None
    files.extend(path for path in paths if path not in files)
    arrays = [np.asarray(_dataset(path), dtype=np.float32) for path in paths]
    stack = torch.from_numpy(np.stack([array[..., None] if array.ndim == 2 else array for array in arrays]))
    stack = stack.permute(0, 3, 1, 2).contiguous()
    return stack if layer == "depth_meters" else stack.nan_to_num(0.0, posinf=65504.0, neginf=0.0)


def _mask(
    trajectory: _Trajectory, frames: Sequence[int], distance: Float[Tensor, "frames 1 h w"] | None, files: list[Path]
) -> Bool[Tensor, "frames 1 h w"] | None:
    """Where geometry is seen: an entity with a finite, positive distance, by as many of the two as there are."""
    entity = _layer(trajectory, frames, "render_entity_id", files)
    valid = None if distance is None else distance.isfinite() & (distance > 0)
    if entity is None:
        return valid
    return (entity != -1) if valid is None else (entity != -1) & valid


def _dataset(path: Path) -> np.ndarray:
    try:
        import h5py
    except ImportError as error:
        raise InputError("h5py for HyperSim's files", "it is not installed", "install the extra `data`") from error
    try:
        with h5py.File(path, "r") as file:
            return file["dataset"][...]
    except (OSError, KeyError) as error:
        raise InputError(f"an HDF5 file with an array `dataset` at {path}", str(error), "fetch the file again") from error


def _trajectories(folder: Path, chosen: dict[tuple[str, str], set[int]] | None) -> Iterator[_Trajectory]:
    scenes = [folder] if (folder / "images").is_dir() else sorted(path for path in folder.glob("ai_*") if path.is_dir())
    for scene in scenes:
        for final in sorted((scene / "images").glob("scene_cam_*_final_hdf5")):
            camera = final.name.removeprefix("scene_").removesuffix("_final_hdf5")
            found: dict[str, set[int]] = {layer: set() for layer in ("color", *_PARTS)}
            for path in final.iterdir():
                match = re.fullmatch(r"frame\.(\d+)\.(\w+)\.hdf5", path.name)
                if match and match[2] in found:
                    found[match[2]].add(int(match[1]))
            frames = found["color"] | set.intersection(*(found[layer] for layer in _PARTS))
            if chosen is not None:
                frames &= chosen.get((scene.name, camera), set())
            yield _Trajectory(scene, camera, tuple(sorted(frames)))


def _runs(frames: Sequence[int]) -> list[list[int]]:
    """Split where a number is missing."""
    runs: list[list[int]] = []
    for frame in frames:
        if not runs or frame != runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(frame)
    return runs


def _beside(folder: Path, name: str) -> Path | None:
    """A metadata file in the data set's folder, or where the authors' tools keep it."""
    places = (folder / name, folder.parent / name, folder / "analysis" / name, folder.parent / "analysis" / name)
    return next((path for path in places if path.is_file()), None)


def _split_frames(folder: Path, split: str) -> dict[tuple[str, str], set[int]]:
    check_name("split", split, SPLITS)
    path = _beside(folder, SPLIT_FILE)
    if path is None:
        raise layout_error(HYPERSIM, folder, f"{SPLIT_FILE}, from evermotion_dataset/analysis of the website")
    chosen: dict[tuple[str, str], set[int]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row.get("split_partition_name") == split:
                chosen.setdefault((row["scene_name"], row["camera_name"]), set()).add(int(row["frame_id"]))
    return chosen


def _parameters(root: Path, scene: str) -> dict[str, str]:
    """The scene's row of metadata_camera_parameters.csv; empty without one."""
    path = _beside(root, CAMERA_FILE)
    if path is None:
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return next((row for row in csv.DictReader(file) if row.get("scene_name") == scene), {})


def _intrinsics(root: Path, scene: str, aspect: float) -> tuple[Float[Tensor, "3 3"], float, bool]:
    """(matrix for `z_depth`, horizontal field of view in degrees, whether the lens is shifted or tilted)."""
    row = _parameters(root, scene)
    if not row:
        return pinhole(DEFAULT_FOV, aspect), DEFAULT_FOV, False
    matrix = torch.tensor([[float(row[f"M_cam_from_uv_{i}{j}"]) for j in range(3)] for i in range(3)])
    left, right = (matrix @ torch.tensor([u, 0.0, 1.0]) for u in (-1.0, 1.0))
    cosine = torch.dot(left, right) / (left.norm() * right.norm())
    shifted = bool((matrix - torch.diag(matrix.diagonal())).abs().max() > 1e-4)
    return matrix, math.degrees(math.acos(float(cosine))), shifted


def _camera(root: Path, trajectory: _Trajectory, frames: Sequence[int], fov: float) -> Camera | None:
    """Poses in metres with +y up; None when the files or the scene's unit are not on disk."""
    folder = trajectory.scene / "_detail" / trajectory.camera
    files = [folder / f"camera_keyframe_{what}.hdf5" for what in ("positions", "orientations")]
    unit = _metres_per_unit(root, trajectory.scene)
    if unit is None or not all(path.is_file() for path in files):
        return None
    positions, orientations = (torch.from_numpy(np.asarray(_dataset(path), np.float64)) for path in files)
    if max(frames) >= len(positions):
        raise InputError(f"a pose for frame {max(frames)} in {folder}", f"{len(positions)} poses", "fetch the files again")
    poses = torch.eye(4, dtype=torch.float64).repeat(len(frames), 1, 1)
    poses[:, :3, :3] = orientations[list(frames)]
    poses[:, :3, 3] = positions[list(frames)] * unit
    turned = torch.tensor(Z_UP_TO_Y_UP, dtype=torch.float64) @ poses
    return Camera(turned.float(), torch.full((len(frames),), fov))


def _metres_per_unit(root: Path, scene: Path) -> float | None:
    path = scene / "_detail" / "metadata_scene.csv"
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                if len(row) >= 2 and row[0].strip() == "meters_per_asset_unit":
                    return float(row[1])
    value = _parameters(root, scene.name).get("settings_units_info_meters_scale")
    return None if value is None else float(value)
