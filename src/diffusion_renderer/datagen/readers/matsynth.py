"""MatSynth: more than 4000 tileable materials (Vecchio and Deschaintre, CVPR 2024). It holds materials, not clips.

Layout read here: one folder per material at any depth, as the data set's own download script writes it
(https://huggingface.co/datasets/gvecchio/MatSynth): ``<split>/<category>/<name>/`` or ``<category>/<name>/`` with
``{basecolor,normal,roughness,metallic,...}.png`` and ``metadata.json`` (licence, authors, source). The parquet files of the
Hugging Face release are not read: export them first, as the error says.

Base colour is sRGB in the files and linear here; normals are OpenGL (green up), 0.5 n + 0.5; roughness and metallic are linear.
Height, displacement, opacity and specular are not used: a material with holes comes out solid. Licence: CC0-1.0 or CC-BY, for
each material in its metadata.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.resize import resize
from diffusion_renderer.datagen.objects import Source
from diffusion_renderer.datagen.procedural.materials import Material
from diffusion_renderer.datagen.readers.common import PublicSet, layout_error, require_files, require_folder

MATSYNTH = PublicSet(
    "matsynth",
    "CC0-1.0 or CC-BY, per material",
    "https://huggingface.co/datasets/gvecchio/MatSynth",
    "<category>/<name>/{basecolor,normal,roughness,metallic}.png with metadata.json",
)
#: Maps are averaged down to at most this many texels a side; the originals have 4096.
TEXTURE_SIZE = 1024
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_LEAST_ROUGHNESS = 0.05
_SPDX = {"cc0": "CC0-1.0", "cc0 1.0": "CC0-1.0", "cc-by 4.0": "CC-BY-4.0", "cc by 4.0": "CC-BY-4.0"}
_EXPORT = (
    'export it first: for row in datasets.load_dataset("gvecchio/MatSynth", split="train", streaming=True): '
    "row[map].save(<category>/<name>/<map>.png) for basecolor, normal, roughness, metallic; row['metadata'] into metadata.json"
)


def read_matsynth(folder: str | Path, size: int = TEXTURE_SIZE) -> Iterator[tuple[Material, Source]]:
    """Every material with where it comes from, one at a time, in order of their paths.

    Materials are at most ``size`` x ``size`` texels. Raises InputError at once for a folder without materials or with only
    parquet files, while iterating for a material that lacks one of the maps basecolor, roughness and metallic (a missing normal
    map means a surface without bumps).
    """
    folder = require_folder(MATSYNTH, folder)
    if size < 1:
        raise InputError("a texture size of 1 or more", str(size), f"leave it out for {TEXTURE_SIZE}")
    places = sorted({path.parent for path in folder.rglob("basecolor.*") if path.suffix.lower() in _SUFFIXES})
    if not places:
        if any(folder.rglob("*.parquet")) or any(folder.rglob("*.arrow")):
            raise InputError(f"folders of {MATSYNTH.name} materials in {folder}", "only parquet or arrow files", _EXPORT)
        raise layout_error(MATSYNTH, folder, "any <category>/<name>/basecolor.png")
    return (_read(place, size) for place in places)


def _read(place: Path, size: int) -> tuple[Material, Source]:
    maps = {name: _find(place, name) for name in ("basecolor", "roughness", "metallic", "normal")}
    missing = [f"{name}.png" for name, path in maps.items() if path is None and name != "normal"]
    require_files(MATSYNTH, place, missing)
    basecolor, roughness, metallic = (
        _map(maps[name], size, name == "basecolor") for name in ("basecolor", "roughness", "metallic")
    )
    normal = None if maps["normal"] is None else _normal(_map(maps["normal"], size))
    if len({image.shape[:2] for image in (basecolor, roughness, metallic, normal) if image is not None}) > 1:
        raise InputError(f"maps of one size in {place}", "maps of several sizes", "fetch the material again")
    material = Material(
        basecolor, np.clip(roughness[..., :1], _LEAST_ROUGHNESS, 1.0), metallic[..., :1].copy(), place.name, normal
    )
    return material, _source(place)


def _find(place: Path, name: str) -> Path | None:
    return next((place / f"{name}{suffix}" for suffix in _SUFFIXES if (place / f"{name}{suffix}").is_file()), None)


def _map(path: Path, size: int, srgb: bool = False) -> Float[np.ndarray, "rows columns channels"]:
    """A map in [0, 1], decoded to linear before it is averaged down."""
    from diffusion_renderer.io.images import read_image

    image = read_image(path)
    if srgb:
        image = srgb_eotf(image.expand(3, -1, -1))
    height, width = image.shape[-2:]
    shrink = min(1.0, size / max(height, width))
    image = resize(image[None], (max(1, round(width * shrink)), max(1, round(height * shrink))))[0]
    return np.moveaxis(image.clamp(0.0, 1.0).numpy(), 0, -1).astype(np.float32).copy()


def _normal(stored: Float[np.ndarray, "rows columns channels"]) -> Float[np.ndarray, "rows columns 3"]:
    vectors: Tensor = torch.from_numpy(2 * np.broadcast_to(stored, (*stored.shape[:2], 3)) - 1)
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


def _source(place: Path) -> Source:
    path = place / "metadata.json"
    if not path.is_file():
        return Source(place.name, "material", "unknown")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        licence, authors = content.get("license") or "unknown", content.get("authors") or []
    except (ValueError, AttributeError) as error:
        raise InputError(f"MatSynth's metadata as JSON in {path}", str(error), "fetch the material again") from error
    author = authors if isinstance(authors, str) else ", ".join(map(str, authors))
    return Source(place.name, "material", _SPDX.get(str(licence).lower(), str(licence)), author)
