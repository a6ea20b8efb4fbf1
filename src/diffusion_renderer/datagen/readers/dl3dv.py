"""DL3DV-10K: real videos with camera poses, no buffers (Ling et al., CVPR 2024).

Layout (https://github.com/DL3DV-10K/Dataset): ``<subset>/<scene>/transforms.json`` beside ``images/``, or ``images_2``,
``images_4``, ``images_8`` at a fraction of the size; the benchmark puts both into ``<scene>/nerfstudio``. transforms.json is
nerfstudio's: focal length and width of the full-size images, camera-to-world poses with OpenGL camera axes.

Clips are images in order of their file names. World: nerfstudio's has +z up, so poses are turned to +y up; as the poses come
from COLMAP, up is right only as far as nerfstudio's alignment is, and the unit of length is arbitrary. Lens distortion is left
in the images; its coefficients go to meta. Every buffer is None, and so is the light. Licence: DL3DV-10K terms of use and
CC-BY-NC-4.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, GBuffer
from diffusion_renderer.datagen.readers.common import (
    Z_UP_TO_Y_UP,
    PublicSet,
    describe,
    in_clips,
    layout_error,
    read_display,
    relative,
    require_folder,
    require_frames,
)
from diffusion_renderer.datagen.readers.transforms import View, camera_of, read_transforms
from diffusion_renderer.datagen.settings import Sample

DL3DV = PublicSet(
    "dl3dv",
    "DL3DV-10K terms of use (CC-BY-NC-4.0)",
    "https://dl3dv-10k.github.io/DL3DV-10K",
    "<subset>/<scene>/transforms.json beside images_4/ (or images_8, images_2, images)",
)
#: Frames per clip unless the caller says.
CLIP_FRAMES = 24
#: Folders of the same images at several sizes, in the order in which they are taken: a quarter of 4K first.
IMAGE_FOLDERS = ("images_4", "images_8", "images_2", "images")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def read_dl3dv(folder: str | Path, split: str | None = None, frames: int | None = None) -> Iterator[Sample]:
    """Clips of ``frames`` consecutive frames (`CLIP_FRAMES` by default) with their cameras; see the module.

    ``folder`` holds scenes at any depth or is one. The data set has no splits: ``split`` names one of its subset folders (1K,
    2K, ...). What is left at the end of a scene is dropped; a scene shorter than a clip is one clip. Raises InputError at once
    for a wrong layout, while iterating for unreadable cameras and for images that are missing.
    """
    folder = require_folder(DL3DV, folder)
    length = require_frames(frames, CLIP_FRAMES)
    if split is not None and not (folder / split).is_dir():
        raise layout_error(DL3DV, folder, f"the subset folder {split} (the data set has no other splits)")
    files = sorted((folder / split if split else folder).rglob("transforms.json"))
    if not files:
        raise layout_error(DL3DV, folder, "any transforms.json")
    return (sample for path in files for sample in _read_scene(folder, path, length))


def _read_scene(folder: Path, path: Path, length: int) -> Iterator[Sample]:
    views, content = read_transforms(path)
    where = path.parent if path.parent.name != "nerfstudio" else path.parent.parent
    scene = where.relative_to(folder).as_posix() if where != folder else folder.name
    distortion = {key: content[key] for key in _DISTORTION if content.get(key)}
    for group in in_clips(views, length):
        images = [_image(path.parent, view) for view in group]
        first = Path(group[0].file_path).stem
        name = f"{scene.replace('/', '_')}_{first}"
        clip = Clip(_stack([read_display(image) for image in images], path), name=name)
        gbuffer = GBuffer(name=name)
        converted = {"camera": "world +z up (nerfstudio) to +y up; arbitrary unit of length"}
        files = relative([path, *images], folder)
        meta = describe(DL3DV, scene, clip, gbuffer, files, converted, distortion=distortion)
        yield Sample(clip, gbuffer, camera=camera_of(group, torch.tensor(Z_UP_TO_Y_UP)), meta=meta)


def _image(folder: Path, view: View) -> Path:
    name = Path(view.file_path).name
    for images in (*IMAGE_FOLDERS, str(Path(view.file_path).parent)):
        if (folder / images / name).is_file():
            return folder / images / name
    raise layout_error(DL3DV, folder, f"{name} in {', '.join(IMAGE_FOLDERS)}")


def _stack(images: list[torch.Tensor], path: Path) -> torch.Tensor:
    sizes = {tuple(image.shape[-2:]) for image in images}
    if len(sizes) > 1:
        found = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise InputError(f"images of one size beside {path}", found, "fetch the scene again")
    return torch.stack(images)
