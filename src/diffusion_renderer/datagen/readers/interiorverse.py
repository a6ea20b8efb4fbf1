"""InteriorVerse: photorealistic stills of indoor scenes with material and geometry (Zhu et al., SIGGRAPH Asia 2022).

Layout, as its documentation gives it (https://github.com/jingsenzhu/IndoorInverseRendering/tree/main/interiorverse):

    scenes_85/ (or dataset_85/; scenes_120/ the same at a wider angle)
        train.txt val.txt test.txt              one scene name per line
        <scene>/NNN_{im,albedo,depth,material,normal,mask}.exr

=============  =====================================================  =========================================
file           documented                                             here
=============  =====================================================  =========================================
im             linear radiance                                        clip, exposure by `EXPOSURE_RULE`
albedo         linear; with metallic, so it is the base colour        basecolor
material       R roughness, G metallic of a GGX BRDF, B unused        roughness, metallic
depth          millimetres, inf where invalid; z-depth is assumed     metres, +inf where invalid
normal         OpenGL camera axes (x right, y up, z to the viewer)    unit vectors
mask           1 valid, 0 invalid                                     mask, see below
=============  =====================================================  =========================================

The mask is False wherever one of the buffers is invalid: the file's mask is 0, depth is not finite or not positive, the normal
or the material is not finite, or roughness and metallic are both exactly 0 (what the authors' own loader leaves out).
Some copies hold normals as 0.5 n + 0.5: of the two readings the one that gives vectors closer to unit length is taken, for
every image anew. The horizontal field of view (85 or 120 degrees by the folder's name) goes to meta; poses are not published,
so there is no camera. Licence: research only, on request to the authors (see the website's terms).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen.readers.common import (
    EXPOSURE_RULE,
    PublicSet,
    choose_exposure,
    describe,
    display_clip,
    layout_error,
    masked,
    natural,
    read_channels,
    read_linear,
    relative,
    require_files,
    require_folder,
    require_stills,
    unit_normals,
)
from diffusion_renderer.datagen.settings import Sample

INTERIORVERSE = PublicSet(
    "interiorverse",
    "InteriorVerse terms of use (research only, on request)",
    "https://interiorverse.github.io",
    "scenes_85/<scene>/NNN_{im,albedo,depth,material,normal,mask}.exr, with scenes_85/{train,val,test}.txt for splits",
)
SPLITS = ("train", "val", "test")
LAYERS = ("im", "albedo", "depth", "material", "normal", "mask")
_ROOTS = ("scenes_85", "scenes_120", "dataset_85", "dataset_120")
_MILLIMETRE = 1e-3


def read_interiorverse(folder: str | Path, split: str | None = None, frames: int | None = None) -> Iterator[Sample]:
    """Every still as a sample of one frame; see the module for layout, units and conversions.

    ``folder`` holds scenes_85 and/or scenes_120, or is one of them. ``split`` is train, val or test by the lists in the folder;
    scenes of a list that are not on disk are passed over. Raises InputError at once for a wrong layout, an unknown split or
    ``frames`` above 1, and while iterating for an image with files missing. Images are decoded one at a time.
    """
    folder = require_folder(INTERIORVERSE, folder)
    require_stills(INTERIORVERSE, frames)
    images = [image for root in _roots(folder) for image in _images(root, split)]
    if not images:
        raise layout_error(INTERIORVERSE, folder, f"any <scene>/NNN_im.exr{f' of the split {split}' if split else ''}")
    return (_read(folder, image) for image in images)


def _roots(folder: Path) -> list[Path]:
    return [folder / name for name in _ROOTS if (folder / name).is_dir()] or [folder]


def _images(root: Path, split: str | None) -> list[Path]:
    """The NNN_im.exr of all scenes, or of those in the split's list."""
    if split is None:
        scenes = sorted(path.name for path in root.iterdir() if path.is_dir())
    else:
        check_name("split", split, SPLITS)
        require_files(INTERIORVERSE, root, [f"{split}.txt"])
        scenes = [line.strip() for line in (root / f"{split}.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    return [path for scene in scenes for path in sorted((root / scene).glob("*_im.exr"), key=lambda path: natural(path.name))]


def _read(folder: Path, image: Path) -> Sample:
    index = image.name.removesuffix("_im.exr")
    files = {layer: image.with_name(f"{index}_{layer}.exr") for layer in LAYERS}
    require_files(INTERIORVERSE, image.parent, [path.name for path in files.values()])
    depth = read_channels(files["depth"], 1) * _MILLIMETRE
    normal, encoding = _decode_normal(read_channels(files["normal"], 3))
    material = read_channels(files["material"], 3)[:2]
    mask = read_channels(files["mask"], 1) > 0.5
    mask = mask & depth.isfinite() & (depth > 0) & normal.isfinite().all(0, keepdim=True)
    mask = mask & material.isfinite().all(0, keepdim=True) & (material != 0).any(0, keepdim=True)
    scene = image.parent.name
    name = f"{image.parent.parent.name}_{scene}_{index}"
    linear = read_linear(image)[None]
    exposure = choose_exposure(linear, mask[None])
    clip = display_clip(linear, exposure, name)
    gbuffer = GBuffer(
        basecolor=masked(read_channels(files["albedo"], 3), mask)[None],
        normal=unit_normals(normal, mask)[None],
        depth=torch.where(mask, depth, torch.full_like(depth, torch.inf))[None],
        roughness=masked(material[:1], mask)[None],
        metallic=masked(material[1:], mask)[None],
        mask=mask[None],
        name=name,
    )
    converted = {
        "rgb": f"linear times exposure, sRGB; exposure: {EXPOSURE_RULE}",
        "basecolor": "albedo.exr, linear",
        "depth": "mm to m, assumed to be z-depth",
        "normal": encoding,
        "mask": "False where any of the buffers is invalid",
    }
    fov = re.search(r"_(85|120)$", image.parent.parent.name)
    more = {"exposure": exposure, "fov_x_deg": float(fov[1]) if fov else None}
    meta = describe(INTERIORVERSE, scene, clip, gbuffer, relative(list(files.values()), folder), converted, **more)
    return Sample(clip, gbuffer, meta=meta)


def _decode_normal(stored: Float[Tensor, "3 height width"]) -> tuple[Float[Tensor, "3 height width"], str]:
    """Normals in [-1, 1] and how they were stored: the reading whose vectors are closer to unit length."""
    pixels = stored.permute(1, 2, 0)
    pixels = pixels[pixels.isfinite().all(-1) & (pixels != 0).any(-1)]
    if len(pixels) == 0:
        return stored, "no direction in the file"
    plain, encoded = ((vectors.norm(dim=-1) - 1).abs().median() for vectors in (pixels, 2 * pixels - 1))
    return (2 * stored - 1, "2 v - 1") if encoded < plain else (stored, "as stored, in [-1, 1]")
