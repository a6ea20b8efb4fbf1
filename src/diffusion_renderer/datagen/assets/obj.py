"""Wavefront OBJ with its MTL materials, as `Piece` per material. Geometry by trimesh, materials here.

The PBR keys (Pr, Pm, map_Pr, map_Pm, norm) are those of the common extension. Cannot do: height maps under map_Bump (only
normal maps), texture options such as ``-s`` (left out), groups, smoothing groups.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from diffusion_renderer.datagen.assets.images import alpha_of, decode, rgb, to_linear, to_unit
from diffusion_renderer.datagen.assets.limits import AssetLimits, Unusable
from diffusion_renderer.datagen.assets.surface import (
    UNKNOWN_ROUGHNESS,
    Piece,
    Surface,
    alpha_surface,
    constant,
    soup,
    unit_normals,
)
from diffusion_renderer.datagen.colour import srgb_decoded

#: Texture options and how many values follow each at most.
_OPTIONS = {"-blendu": 1, "-blendv": 1, "-boost": 1, "-mm": 2, "-o": 3, "-s": 3, "-t": 3, "-texres": 1, "-clamp": 1, "-bm": 1}
_OPTIONS |= {"-imfchan": 1, "-type": 1, "-cc": 1}


def read_obj(path: Path, limits: AssetLimits) -> list[Piece]:
    """One piece per material. Raises Unusable; trimesh's own errors pass through."""
    if path.stat().st_size > limits.max_file_bytes:
        raise Unusable(f"{path.name} has {path.stat().st_size} bytes, more than {limits.max_file_bytes}")
    try:
        import trimesh
    except ImportError as error:
        raise Unusable("OBJ files need trimesh; install the extra 'data'") from error
    scene = trimesh.load_scene(path, process=False, maintain_order=True)
    materials = _materials(path, limits.texture_size)
    pieces = []
    for geometry in scene.geometry.values():
        if not isinstance(geometry, trimesh.Trimesh) or len(geometry.faces) == 0:
            continue
        name = getattr(getattr(geometry.visual, "material", None), "name", None)
        surface = materials.get(name) or Surface(
            constant(0.5, 0.5, 0.5), constant(UNKNOWN_ROUGHNESS), constant(0.0), stated=False, name="none"
        )
        pieces.append(_piece(geometry, surface))
    if sum(len(piece.corners) for piece in pieces) > limits.max_faces:
        raise Unusable(f"more than {limits.max_faces} triangles")
    return pieces


def _piece(geometry: object, surface: Surface) -> Piece:
    uv = getattr(geometry.visual, "uv", None)
    if uv is not None:
        uv = np.asarray(uv, np.float64) * [1.0, -1.0] + [0.0, 1.0]  # OBJ has v = 0 at the bottom of the image
    colours = None
    if geometry.visual.kind == "vertex":
        colours = srgb_decoded(np.asarray(geometry.visual.vertex_colors)[:, :3] / 255.0)
        surface = Surface(constant(1.0, 1.0, 1.0), constant(UNKNOWN_ROUGHNESS), constant(0.0), name="vertex colours")
    # Only what the file states: trimesh makes up smooth normals on demand.
    stated = "vertex_normals" in geometry._cache
    normals = np.asarray(geometry.vertex_normals, np.float64) if stated else None
    faces = np.asarray(geometry.faces, np.int64)
    return Piece(soup(np.asarray(geometry.vertices, np.float64), faces, normals, uv, colours), surface, uv is not None)


# --- materials --------------------------------------------------------------------------------------------------------


def _materials(path: Path, longest: int) -> dict[str, Surface]:
    entries: dict[str, dict[str, str]] = {}
    for name in re.findall(r"^\s*mtllib\s+(.+?)\s*$", path.read_text(errors="replace"), re.MULTILINE):
        file = _beside(path, name)
        if file is not None:
            entries |= _parsed(file.read_text(errors="replace"))
    return {name: _surface(path, name, entry, longest) for name, entry in entries.items()}


def _parsed(text: str) -> dict[str, dict[str, str]]:
    """Key (lower case) to the rest of the line, per material."""
    entries: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key.lower() == "newmtl":
            current = entries.setdefault(" ".join(value.split()), {})
        elif key and not key.startswith("#"):
            current[key.lower()] = value.strip()
    return entries


def _surface(path: Path, name: str, entry: dict[str, str], longest: int) -> Surface:
    colour, alpha = constant(*_numbers(entry.get("kd"), (0.8, 0.8, 0.8))), constant(_opacity(entry))
    if "map_kd" in entry:
        pixels = _image(path, entry["map_kd"], longest, required=True)
        # By the standard Kd multiplies the map; writers that leave Kd black beside a map do not mean black.
        tint = np.float32(_numbers(entry.get("kd"), (1.0, 1.0, 1.0)))
        colour = to_linear(rgb(pixels)) * (tint if tint.max() > 0 else 1.0)
        cut = alpha_of(pixels)
        alpha = alpha if cut is None else to_unit(cut) * alpha
    cut = _image(path, entry.get("map_d"), longest)
    if cut is not None:
        alpha = to_unit(cut[..., -1:] if cut.shape[-1] in (2, 4) else cut[..., :1])
    roughness, metallic = constant(_roughness(entry)), constant(*_numbers(entry.get("pm"), (0.0,)))
    for key, default in (("map_pr", roughness), ("map_pm", metallic)):
        pixels = _image(path, entry.get(key), longest)
        value = default if pixels is None else to_unit(pixels[..., :1])
        roughness, metallic = (value, metallic) if key == "map_pr" else (roughness, value)
    surface = Surface(
        np.clip(colour, 0.0, 1.0),
        np.clip(roughness, 0.0, 1.0),
        np.clip(metallic, 0.0, 1.0),
        _normal(path, entry, longest),
        name=name,
    )
    return alpha_surface(surface, alpha, 0.5, 2 * longest)


def _opacity(entry: dict[str, str]) -> float:
    return _numbers(entry["d"].replace("-halo", ""), (1.0,))[0] if "d" in entry else 1.0 - _numbers(entry.get("tr"), (0.0,))[0]


def _roughness(entry: dict[str, str]) -> float:
    """Pr, or else from the Phong exponent: GGX alpha^2 = 2 / (n + 2) (Walter et al. 2007), roughness = sqrt(alpha)."""
    if "pr" in entry:
        return _numbers(entry["pr"], (UNKNOWN_ROUGHNESS,))[0]
    if "ns" not in entry:
        return UNKNOWN_ROUGHNESS
    return float((2.0 / (max(_numbers(entry["ns"], (10.0,))[0], 0.0) + 2.0)) ** 0.25)


def _normal(path: Path, entry: dict[str, str], longest: int) -> np.ndarray | None:
    for key in ("norm", "map_kn", "map_bump", "bump"):
        pixels = _image(path, entry.get(key), longest)
        if pixels is None or pixels.shape[-1] < 3:
            continue
        vectors = 2 * to_unit(pixels[..., :3]) - 1
        # A normal map is mostly straight up; a grey height map is not.
        if vectors[..., 2].mean() > 0.5 and np.abs(vectors[..., :2].mean((0, 1))).max() < 0.25:
            return unit_normals(vectors)
    return None


def _numbers(text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in (text or "").split())
    except ValueError:
        return default
    return values[: len(default)] if len(values) >= len(default) else default


def _image(path: Path, reference: str | None, longest: int, required: bool = False) -> np.ndarray | None:
    """The texture that a line names. Raises Unusable when a required one is missing or cannot be read."""
    file = None if reference is None else _beside(path, _without_options(reference))
    try:
        if file is not None:
            return decode(file.read_bytes(), longest)
    except (Unusable, OSError):
        if required:
            raise
    if required:
        raise Unusable("its base colour texture is missing")
    return None


def _without_options(reference: str) -> str:
    words = reference.split()
    position = 0
    while position < len(words) and words[position] in _OPTIONS:
        count, option = 0, _OPTIONS[words[position]]
        position += 1
        while count < option and position < len(words) - 1 and _is_value(words[position]):
            position, count = position + 1, count + 1
    return " ".join(words[position:])


def _is_value(word: str) -> bool:
    return word in ("on", "off", "r", "g", "b", "m", "l", "z", "sphere") or re.fullmatch(r"[-+.\deE]+", word) is not None


def _beside(path: Path, reference: str) -> Path | None:
    """The file that a reference means: relative to the OBJ, or else by its name alone (writers leave their own paths in)."""
    relative = Path(reference.strip('"').replace("\\", "/"))
    for candidate in (relative, Path("textures") / relative.name, Path(relative.name)):
        if not candidate.is_absolute() and (path.parent / candidate).is_file():
            return path.parent / candidate
    return None
