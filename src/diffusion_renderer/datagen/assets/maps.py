"""Material folders: which file is which map, by the names that the usual libraries give, and how to read them.

Known: ambientCG (``Rock020_1K-JPG_NormalGL.jpg``), Poly Haven (``rock_nor_gl_1k.png``, ``rock_arm_1k.jpg``), MatSynth and
three.js (``basecolor.png``, ``diffuse.jpg``) and common synonyms. Height, occlusion, specular and opacity maps are not used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_renderer.datagen.assets.images import read, rgb, to_linear, to_unit
from diffusion_renderer.datagen.assets.limits import AssetLimits, Unusable
from diffusion_renderer.datagen.assets.surface import Surface, constant, material, unit_normals
from diffusion_renderer.datagen.procedural.materials import Material

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".exr", ".bmp", ".tga")
#: Names of each map, best first: several words may be written apart.
_NAMES = {
    "basecolor": ("basecolor", "basecolour", "albedo", "color", "colour", "col", "diffuse", "diff"),
    "normal_gl": ("normalgl", "norgl", "normalopengl", "nrmgl"),
    "normal_dx": ("normaldx", "nordx", "normaldirectx", "nrmdx"),
    "normal": ("normal", "normals", "nor", "nrm", "norm", "normalmap"),
    "roughness": ("roughness", "rough", "rgh"),
    "glossiness": ("glossiness", "gloss"),
    "metallic": ("metallic", "metalness", "metal", "mtl"),
    "packed": ("arm", "orm", "aorm"),
}
_UNUSED = (
    "ao",
    "ambientocclusion",
    "occlusion",
    "height",
    "displacement",
    "disp",
    "specular",
    "spec",
    "opacity",
    "bump",
    "mask",
)
_KIND_OF = {name: kind for kind, names in _NAMES.items() for name in names} | dict.fromkeys(_UNUSED, "unused")
_RANK = {name: rank for names in _NAMES.values() for rank, name in enumerate(names)}
#: Words that say nothing: resolution, file format, a trailing number.
_NOISE = re.compile(r"\d+k|\d{1,2}|\d{3,5}x\d{3,5}|png|jpe?g|exr|tiff?|\d+px|lin|srgb|map")
DEFAULT_ROUGHNESS, DEFAULT_METALLIC = 0.7, 0.0


@dataclass(frozen=True)
class MapFiles:
    """The files of one material by kind of map, and the folder that they lie in."""

    folder: Path
    files: dict[str, Path]


def classify(stem: str) -> tuple[str, str, int] | None:
    """What is in front of the map's name (lower case), the kind of map, and its rank among synonyms; None for other files."""
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", stem).lower()) if word]
    end = len(words)
    while end > 1 and _NOISE.fullmatch(words[end - 1]):
        end -= 1
    for count in (3, 2, 1):
        name = "".join(words[max(end - count, 0) : end])
        if count <= end and name in _KIND_OF:
            front = words[: end - count]
            while len(front) > 1 and re.fullmatch(r"\d+k|png|jpe?g|exr|tiff?", front[-1]):
                front.pop()
            return "_".join(front), _KIND_OF[name], _RANK.get(name, 0)
    return None


def find_materials(root: Path) -> dict[str, MapFiles]:
    """Every material below ``root`` by name; no file is opened.

    A folder whose maps share one prefix (or have none) is one material, named by its path below ``root``. A folder with maps
    of several prefixes holds one material per prefix.
    """
    found: dict[str, MapFiles] = {}
    folders = sorted({path.parent for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES})
    for folder in folders:
        groups = _groups(folder)
        place = "" if folder == root else folder.relative_to(root).as_posix()
        for prefix, files in groups.items():
            single = len(groups) == 1 and (place or not prefix)
            name = (place or root.name) if single else "/".join(part for part in (place, prefix) if part)
            found[name] = MapFiles(folder, files)
    return dict(sorted(found.items()))


def _groups(folder: Path) -> dict[str, dict[str, Path]]:
    """Kind to file, by prefix. Files in a folder of one prefix and of none belong together."""
    groups: dict[str, dict[str, tuple[int, Path]]] = {}
    for path in sorted(folder.iterdir()):
        parts = classify(path.stem) if path.suffix.lower() in _SUFFIXES else None
        if parts is None:
            continue
        prefix, kind, rank = parts
        group = groups.setdefault(prefix, {})
        if kind not in group or rank < group[kind][0]:
            group[kind] = (rank, path)
    plain = groups.pop("", None)
    if plain is not None:
        if len(groups) == 1:
            prefix = next(iter(groups))
            groups[prefix] = plain | groups[prefix]
        else:
            groups[""] = plain
    named = {prefix: {k: path for k, (_, path) in group.items() if k != "unused"} for prefix, group in groups.items()}
    return {prefix: files for prefix, files in named.items() if files}


def read_material(name: str, maps: MapFiles, limits: AssetLimits) -> Material:
    """The material. Roughness 0.7, metallic 0 and no bumps where maps are missing.

    Raises Unusable without a base colour map, for maps that cannot be read, and for files over the limit.
    """
    files = maps.files
    if "basecolor" not in files:
        raise Unusable(f"no base colour map among {', '.join(sorted(path.name for path in files.values()))}")
    for path in files.values():
        if path.stat().st_size > limits.max_file_bytes:
            raise Unusable(f"{path.name} has more than {limits.max_file_bytes} bytes")
    colour, linear = read(files["basecolor"], limits.texture_size)
    colour = rgb(to_unit(colour) if linear else to_linear(colour))
    roughness, metallic = _reflection(files, limits.texture_size)
    surface = Surface(np.clip(colour, 0.0, 1.0), roughness, metallic, _normal(files, limits.texture_size), name=name)
    return material(surface, limits.texture_size)


def _reflection(files: dict[str, Path], longest: int) -> tuple[np.ndarray, np.ndarray]:
    roughness, metallic = constant(DEFAULT_ROUGHNESS), constant(DEFAULT_METALLIC)
    if "packed" in files:  # occlusion, roughness, metallic
        packed = rgb(_values(files["packed"], longest))
        roughness, metallic = packed[..., 1:2], packed[..., 2:3]
    if "glossiness" in files and "packed" not in files:
        roughness = 1.0 - _values(files["glossiness"], longest)[..., :1]
    if "roughness" in files:
        roughness = _values(files["roughness"], longest)[..., :1]
    if "metallic" in files:
        metallic = _values(files["metallic"], longest)[..., :1]
    return np.clip(roughness, 0.0, 1.0), np.clip(metallic, 0.0, 1.0)


def _normal(files: dict[str, Path], longest: int) -> np.ndarray | None:
    kind = next((kind for kind in ("normal_gl", "normal", "normal_dx") if kind in files), None)
    if kind is None:
        return None
    pixels = _values(files[kind], longest)
    if pixels.shape[-1] < 3:
        raise Unusable(f"{files[kind].name} is grey, so not a normal map")
    vectors = 2 * pixels[..., :3] - 1
    if kind == "normal_dx":  # DirectX has y down in the image
        vectors = vectors * np.float32([1.0, -1.0, 1.0])
    return unit_normals(vectors)


def _values(path: Path, longest: int) -> np.ndarray:
    return to_unit(read(path, longest)[0])
