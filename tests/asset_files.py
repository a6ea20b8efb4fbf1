"""Asset files put together by hand, and what holds for every asset that is read. Used by the tests of the readers of assets."""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_renderer.datagen.assets import AssetLibrary, AssetLimits
from diffusion_renderer.datagen.assets.images import sampled
from diffusion_renderer.datagen.objects import Asset
from diffusion_renderer.datagen.procedural.shapes import MAX_UV

#: A closed tetrahedron that winds counter-clockwise seen from outside.
POINTS = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
FACES = np.uint16([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
#: Texture coordinates of its corners, one in each quadrant of an image.
UV = np.float32([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]])


class Gltf:
    """A GLB file put together by hand."""

    def __init__(self) -> None:
        self.data = b""
        self.tree: dict[str, Any] = {"asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}]}

    def view(self, data: bytes) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        views = self.tree.setdefault("bufferViews", [])
        views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)})
        self.data += data
        return len(views) - 1

    def array(self, values: np.ndarray, **extra: Any) -> int:
        kinds = {"float32": 5126, "uint16": 5123, "uint8": 5121, "uint32": 5125}
        width = values.shape[1] if values.ndim == 2 else 1
        entry = {"bufferView": self.view(values.tobytes()), "componentType": kinds[str(values.dtype)], "count": len(values)}
        entry |= {"type": ["SCALAR", "VEC2", "VEC3", "VEC4"][width - 1], **extra}
        self.tree.setdefault("accessors", []).append(entry)
        return len(self.tree["accessors"]) - 1

    def texture(self, pixels: np.ndarray) -> int:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        self.tree.setdefault("images", []).append({"bufferView": self.view(file.getvalue()), "mimeType": "image/png"})
        self.tree.setdefault("textures", []).append({"source": len(self.tree["images"]) - 1})
        return len(self.tree["textures"]) - 1

    def mesh(self, material: dict | None = None, faces: np.ndarray = FACES, node: dict | None = None, **arrays: Any) -> None:
        arrays = {"POSITION": POINTS, **arrays}
        primitive = {
            "attributes": {name: value if isinstance(value, int) else self.array(value) for name, value in arrays.items()}
        }
        primitive["indices"] = self.array(faces.reshape(-1))
        if material is not None:
            self.tree.setdefault("materials", []).append(material)
            primitive["material"] = len(self.tree["materials"]) - 1
        self.tree.setdefault("meshes", []).append({"primitives": [primitive]})
        nodes = self.tree.setdefault("nodes", [])
        nodes.append({"mesh": len(self.tree["meshes"]) - 1, **(node or {})})
        self.tree["scenes"][0]["nodes"] = list(range(len(nodes)))

    def write(self, path: Path) -> None:
        self.tree["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(self.tree).encode()
        text += b" " * (-len(text) % 4)
        data = self.data + b"\0" * (-len(self.data) % 4)
        body = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(data), 0x004E4942) + data
        path.write_bytes(struct.pack("<III", 0x46546C67, 2, 12 + len(body)) + body)


def flat(*colour: float, **more: Any) -> dict:
    """A material without textures; ``colour`` is linear."""
    return {"pbrMetallicRoughness": {"baseColorFactor": [*colour, 1.0], "roughnessFactor": 0.4, "metallicFactor": 0.3} | more}


def loaded(folder: Path, gltf: Gltf, **limits: int) -> Asset:
    """The file as the library reads it."""
    gltf.write(folder / "thing.glb")
    return AssetLibrary(models=folder, limits=AssetLimits(**limits)).model("thing")


def shown(asset: Asset, part: int = 0) -> np.ndarray:
    """The base colour at the corners of a part's triangles, as a renderer would look it up."""
    mesh, material = asset.parts[part].mesh, asset.parts[part].material
    return sampled(material.basecolor, mesh.uv[mesh.faces])


def check_sane(asset: Asset, limits: AssetLimits) -> None:
    """What holds for every model: unit size at the origin, unit normals to the outside, values in range, within the limits."""
    points = np.concatenate([part.mesh.positions for part in asset.parts])
    # float32 vertices: 6e-8 relative.
    assert np.linalg.norm(points, axis=-1).max() == pytest.approx(1, abs=1e-6)
    # A vertex dropped with a degenerate triangle moves it a little.
    assert np.allclose(points.min(0), -points.max(0), atol=1e-3)
    assert len(asset.parts) <= limits.max_parts
    for part in asset.parts:
        mesh, material = part.mesh, part.material
        assert mesh.uv.min() >= 0 and mesh.uv.max() < MAX_UV and len(mesh.faces) > 0
        assert np.allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-5)
        a, b, c = (mesh.positions[mesh.faces[:, i]] for i in range(3))
        assert ((np.cross(b - a, c - a) * mesh.normals[mesh.faces].sum(1)).sum(-1) >= 0).all()
        shape = material.basecolor.shape[:2]
        assert material.roughness.shape[:2] == material.metallic.shape[:2] == shape and max(shape) <= limits.texture_size
        assert 0 <= material.basecolor.min() and material.basecolor.max() <= 1 and material.basecolor.dtype == np.float32
        assert 0.05 - 1e-6 <= material.roughness.min() and material.roughness.max() <= 1
        assert 0 <= material.metallic.min() and material.metallic.max() <= 1
        if material.normal is not None:
            assert material.normal.shape[:2] == shape
            assert np.allclose(np.linalg.norm(material.normal, axis=-1), 1, atol=1e-3)


def quadrants() -> np.ndarray:
    """Red, green over blue, white; 32 x 32."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16, :16, 0] = image[:16, 16:, 1] = image[16:, :16, 2] = image[16:, 16:] = 255
    return image


def textured(gltf: Gltf, pixels: np.ndarray, **more: Any) -> dict:
    """A dielectric with these colours (sRGB, 8 bits); ``more`` are further entries."""
    return {"pbrMetallicRoughness": {"baseColorTexture": {"index": gltf.texture(pixels)}, "metallicFactor": 0, **more}}


def corner_colours(asset: Asset) -> dict[tuple, tuple]:
    """Colour by vertex of the tetrahedron: which coordinate is the large one."""
    mesh = asset.parts[0].mesh
    low = mesh.positions.min(0)
    keys = ((mesh.positions[mesh.faces] - low) > 1e-3).astype(int).reshape(-1, 3)
    return {tuple(map(int, k)): tuple(np.round(c, 2).tolist()) for k, c in zip(keys, shown(asset).reshape(-1, 3), strict=True)}


#: `corner_colours` of the tetrahedron on which `quadrants` is laid with `UV`.
QUADRANT_COLOURS = {(0, 0, 0): (1, 0, 0), (1, 0, 0): (0, 1, 0), (0, 1, 0): (0, 0, 1), (0, 0, 1): (1, 1, 1)}


def save(path: Path, *values: int, size: int = 16) -> None:
    """An image of one colour, 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), values, np.uint8)).save(path)
