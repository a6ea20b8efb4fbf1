"""Stanford-ORB: real objects in real places, with scans, materials and lights (Kuang et al., NeurIPS 2023).

Layout, as its documentation gives it (https://github.com/StanfordORB/Stanford-ORB):

    blender_HDR/ (or blender_LDR/)
        <object>_scene00N/{train,test}/NNNN.exr (.png in LDR), {train,test}_mask/NNNN.png, transforms_{train,test}.json
    ground_truth/<object>_scene00N/                                          for test images
        surface_normal/NNNN.npy, z_depth/NNNN.npy, pseudo_gt_albedo/NNNN.{png,npy}, env_map/NNNN.exr

=================  ============================================================  =============================================
file               documented, or read from the authors' evaluation code         here
=================  ============================================================  =============================================
HDR, LDR image     linear EXR, sRGB PNG; the whole photograph                    clip; exposure by `EXPOSURE_RULE` in the mask
mask               the object                                                    mask
surface_normal     camera space, the camera axes of transforms.json              unit vectors, 0 outside the mask
z_depth            distance along -z, 0 for the background                       +inf outside the mask
pseudo_gt_albedo   sRGB PNG; a .npy is taken as linear; k_d of a material fit    basecolor, as nvdiffrec's k_d is base colour
                   with nvdiffrec under studio light, known up to a scale
env_map            equirectangular in *camera* space, one per test image,        rolled by half its width to our axes, times
                   skylibs' axes: centre -z, right half +x, top +y               the exposure; lookup is the identity
transform_matrix   camera-to-world, OpenGL camera axes                           unchanged: the world is the object's own
                                                                                 frame, whose up axis is not documented
=================  ============================================================  =============================================

Image and env_map are taken to have one scale (they are "aligned with image captures"), in LDR at exposure 1. Roughness and
metallic do not exist. transforms_novel.json (other scenes' cameras) is not read. Test images come as stills with everything
above; train images have no ground truth. With ``frames`` above 1, clips of unordered views come without a light, because every
view has its own. Licence: not stated with the code; see the website.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen.readers.common import (
    EXPOSURE_RULE,
    PublicSet,
    choose_exposure,
    describe,
    display_clip,
    exposed,
    in_clips,
    layout_error,
    masked,
    read_display,
    read_linear,
    relative,
    require_files,
    require_folder,
    require_frames,
    unit_normals,
)
from diffusion_renderer.datagen.readers.transforms import View, camera_of, read_transforms
from diffusion_renderer.datagen.settings import Sample

STANFORD_ORB = PublicSet(
    "stanford-orb",
    "see the website",
    "https://stanfordorb.github.io",
    "blender_HDR/<object>_scene00N/{train,test}/NNNN.exr (or blender_LDR and .png) with {train,test}_mask and "
    "transforms_{train,test}.json, and ground_truth/<object>_scene00N",
)
SPLITS = ("train", "test")
_IMAGES = ("blender_HDR", "blender_LDR")


def read_stanford_orb(folder: str | Path, split: str | None = None, frames: int | None = None) -> Iterator[Sample]:
    """Stills, or clips of ``frames`` views; train and test images, or those of ``split``. See the module.

    ``folder`` holds blender_HDR (taken first) or blender_LDR, or is one of them; ground_truth lies beside these and may be
    absent. Raises InputError at once for a wrong layout, while iterating for missing images and masks.
    """
    folder = require_folder(STANFORD_ORB, folder)
    length = require_frames(frames, 1)
    if split is not None:
        check_name("split", split, SPLITS)
    root = folder.parent if folder.name in _IMAGES else folder
    images = folder if folder.name in _IMAGES else next((root / name for name in _IMAGES if (root / name).is_dir()), None)
    if images is None:
        raise layout_error(STANFORD_ORB, folder, "blender_HDR or blender_LDR")
    parts = (split,) if split else SPLITS
    found = [
        (scene, part)
        for scene in sorted(path for path in images.iterdir() if path.is_dir())
        for part in parts
        if (scene / f"transforms_{part}.json").is_file()
    ]
    if not found:
        raise layout_error(STANFORD_ORB, folder, f"any <object>_scene00N/transforms_{split or 'test'}.json")
    return (sample for scene, part in found for sample in _read_scene(root, scene, part, length))


def camera_panorama(stored: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
    """An env_map (centre column -z, right half +x) with CONVENTIONS' axes (centre column +z, right half -x)."""
    return stored.roll(stored.shape[-1] // 2, dims=-1)


def _read_scene(root: Path, scene: Path, part: str, length: int) -> Iterator[Sample]:
    views, _ = read_transforms(scene / f"transforms_{part}.json")
    for group in in_clips(views, length):
        yield _read(root, scene, part, group)


def _read(root: Path, scene: Path, part: str, views: Sequence[View]) -> Sample:
    suffix = ".png" if scene.parent.name == "blender_LDR" else ".exr"
    stems = [Path(view.file_path).name.removesuffix(suffix) for view in views]
    require_files(
        STANFORD_ORB, scene, [name for stem in stems for name in (f"{part}/{stem}{suffix}", f"{part}_mask/{stem}.png")]
    )
    images = [scene / part / f"{stem}{suffix}" for stem in stems]
    masks = [scene / f"{part}_mask" / f"{stem}.png" for stem in stems]
    name = f"{scene.name}_{part}_{stems[0]}"
    mask = torch.stack([read_display(path)[:1] > 0.5 for path in masks])
    clip, exposure = _clip(images, mask, name)
    truth = root / "ground_truth" / scene.name
    files = [*images, *masks]
    gbuffer = _buffers(truth if part == "test" else None, stems, mask, name, files)
    camera = camera_of(list(views))
    environment, rotation = _light(truth, stems, part, exposure, camera, files)
    converted = {
        "rgb": f"linear times exposure, sRGB; exposure: {EXPOSURE_RULE}" if suffix == ".exr" else "as stored",
        "basecolor": "pseudo ground truth, up to a scale",
        "light": "camera space, rolled by half its width, times the exposure",
        "camera": "as stored; which way is up is not documented",
    }
    more = {"exposure": exposure, "split": part}
    meta = describe(STANFORD_ORB, scene.name, clip, gbuffer, relative(files, root), converted, **more)
    return Sample(clip, gbuffer, environment, camera, meta, light_rotation=rotation)


def _clip(images: Sequence[Path], mask: Bool[Tensor, "frames 1 h w"], name: str) -> tuple[Clip, float]:
    linear = images[0].suffix == ".exr"
    frames = torch.stack([read_linear(path) if linear else read_display(path) for path in images])
    if frames.shape[-2:] != mask.shape[-2:]:
        found = f"{frames.shape[-1]}x{frames.shape[-2]} and {mask.shape[-1]}x{mask.shape[-2]}"
        raise InputError(f"image and mask of one size for {images[0]}", found, "fetch the scene again")
    exposure = choose_exposure(frames, mask) if linear else 1.0
    return (display_clip(frames, exposure, name) if linear else Clip(frames, name=name)), exposure


def _buffers(truth: Path | None, stems: list[str], mask: Bool[Tensor, "frames 1 h w"], name: str, files: list[Path]) -> GBuffer:
    """Mask, and the buffers whose files are there for every view; those are added to ``files``."""
    if truth is None:
        return GBuffer(mask=mask, name=name)
    normal = _stack([truth / "surface_normal" / f"{stem}.npy" for stem in stems], mask, files)
    depth = _stack([truth / "z_depth" / f"{stem}.npy" for stem in stems], mask, files)
    albedo = _stack([truth / "pseudo_gt_albedo" / f"{stem}.png" for stem in stems], mask, files)
    if albedo is None:
        albedo = _stack([truth / "pseudo_gt_albedo" / f"{stem}.npy" for stem in stems], mask, files)
    if depth is not None:
        depth = torch.where(mask & depth.isfinite() & (depth > 0), depth, torch.full_like(depth, torch.inf))
    return GBuffer(
        basecolor=None if albedo is None else masked(albedo, mask),
        normal=None if normal is None else unit_normals(normal, mask),
        depth=depth,
        mask=mask,
        name=name,
    )


def _stack(paths: list[Path], mask: Bool[Tensor, "frames 1 h w"], files: list[Path]) -> Float[Tensor, "frames c h w"] | None:
    """One buffer of all views at the images' size (nearest pixel where the file has another), or None."""
    if not all(path.is_file() for path in paths):
        return None
    files.extend(paths)
    stack = torch.stack([srgb_eotf(read_display(path)) if path.suffix == ".png" else _array(path) for path in paths])
    size = (mask.shape[-2], mask.shape[-1])
    return stack if stack.shape[-2:] == size else torch.nn.functional.interpolate(stack, size=size, mode="nearest-exact")


def _array(path: Path) -> Float[Tensor, "c h w"]:
    try:
        array = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"a readable NumPy array in {path}", str(error), "fetch the file again") from error
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(np.moveaxis(array, -1, 0).copy())


def _light(
    truth: Path, stems: list[str], part: str, exposure: float, camera: Camera, files: list[Path]
) -> tuple[EnvironmentMap | None, Float[Tensor, "frames 3 3"] | None]:
    """A still's panorama in camera space, and the rotation from the world to it, so that the lookup is the identity."""
    path = truth / "env_map" / f"{stems[0]}.exr"
    if part != "test" or len(stems) > 1 or not path.is_file():
        return None, None
    files.append(path)
    radiance = camera_panorama(read_linear(path))
    return exposed(radiance, exposure, f"{truth.name} {stems[0]}"), camera.rotation.transpose(-1, -2).contiguous()
