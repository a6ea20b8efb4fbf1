"""Asset files made here, one rule at a time, and the shared models: what is read, what is skipped and why."""

from __future__ import annotations

import json
import pickle
import re
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.assets import AssetLibrary, AssetLimits, SkippedAsset
from diffusion_renderer.datagen.assets.assemble import welded, wrapped
from diffusion_renderer.datagen.assets.bake import palette
from diffusion_renderer.datagen.assets.cutout import cut_out
from diffusion_renderer.datagen.assets.gltf_materials import _lookup, metallic_roughness
from diffusion_renderer.datagen.assets.images import sampled
from diffusion_renderer.datagen.assets.maps import classify
from diffusion_renderer.datagen.assets.normals import completed
from diffusion_renderer.datagen.assets.surface import soup
from diffusion_renderer.datagen.colour import srgb_decoded
from diffusion_renderer.datagen.objects import Asset
from diffusion_renderer.datagen.procedural.shapes import MAX_UV, sphere

# A closed tetrahedron that winds counter-clockwise seen from outside.
POINTS = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
FACES = np.uint16([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
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
    return {"pbrMetallicRoughness": {"baseColorFactor": [*colour, 1.0], "roughnessFactor": 0.4, "metallicFactor": 0.3} | more}


def loaded(folder: Path, gltf: Gltf, **limits: int) -> Asset:
    gltf.write(folder / "thing.glb")
    return AssetLibrary(models=folder, limits=AssetLimits(**limits)).model("thing")


def reason(folder: Path, gltf: Gltf, **limits: int) -> str:
    with pytest.raises(SkippedAsset) as error:
        loaded(folder, gltf, **limits)
    assert error.value.name == "thing"
    return error.value.reason


def shown(asset: Asset, part: int = 0) -> np.ndarray:
    """The base colour at the corners of a part's triangles, as a renderer would look it up."""
    mesh, material = asset.parts[part].mesh, asset.parts[part].material
    return sampled(material.basecolor, mesh.uv[mesh.faces])


def check_sane(asset: Asset, limits: AssetLimits) -> None:
    points = np.concatenate([part.mesh.positions for part in asset.parts])
    # float32 vertices: 6e-8 relative.
    assert np.linalg.norm(points, axis=-1).max() == pytest.approx(1, abs=1e-6)
    assert np.allclose(
        points.min(0), -points.max(0), atol=1e-3
    )  # a vertex dropped with a degenerate triangle moves it a little
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


# --- glTF: geometry ---------------------------------------------------------------------------------------------------


def test_factors_and_frame(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.mesh(flat(0.2, 0.5, 0.8))
    asset = loaded(tmp_path, gltf)
    check_sane(asset, AssetLimits())
    assert len(asset.parts) == 1 and len(asset.parts[0].mesh.faces) == 4
    # Factors are linear already; the palette keeps 8 bits (sRGB-encoded for the colour).
    assert np.allclose(shown(asset), [0.2, 0.5, 0.8], atol=0.005)
    assert np.allclose(asset.parts[0].material.roughness, 0.4, atol=0.003)
    assert np.allclose(asset.parts[0].material.metallic, 0.3, atol=0.003)
    assert asset.source.licence == "unknown" and asset.source.kind == "model"


def volume(asset: Asset) -> float:
    corners = np.concatenate([part.mesh.positions[part.mesh.faces] for part in asset.parts])
    return float(np.einsum("fi,fi->f", np.cross(corners[:, 0], corners[:, 1]), corners[:, 2]).sum() / 6)


@pytest.mark.parametrize("scale", [[1, 1, 1], [-1, 1, 1], [-2, -1, -1]])
@pytest.mark.parametrize("with_normals", [False, True])
def test_mirrored_nodes_keep_the_outside_outside(tmp_path: Path, scale: list[float], with_normals: bool) -> None:
    gltf = Gltf()
    outwards = POINTS - POINTS.mean(0)
    arrays = (
        {"NORMAL": (outwards / np.linalg.norm(outwards, axis=-1, keepdims=True)).astype(np.float32)} if with_normals else {}
    )
    gltf.mesh(flat(0.5, 0.5, 0.5), node={"scale": scale}, **arrays)
    asset = loaded(tmp_path, gltf)
    check_sane(asset, AssetLimits())
    assert volume(asset) > 0
    centre = asset.parts[0].mesh.positions.mean(0)
    outwards = asset.parts[0].mesh.positions - centre
    assert (np.einsum("vi,vi->v", outwards, asset.parts[0].mesh.normals) > 0).all()


def test_node_transforms_multiply_down_the_tree(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.mesh(flat(1, 0, 0))
    # Turned by 90 degrees about x (y to z), then doubled and moved by its parent.
    gltf.tree["nodes"][0]["rotation"] = [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]
    gltf.tree["nodes"].append({"children": [0], "scale": [1, 1, 4], "translation": [5, 6, 7]})
    gltf.tree["scenes"][0]["nodes"] = [1]
    extent = np.ptp(loaded(tmp_path, gltf).parts[0].mesh.positions, axis=0)
    assert extent / extent[0] == pytest.approx([1, 1, 4], rel=1e-5)


def test_a_skin_replaces_the_nodes_own_matrix(tmp_path: Path) -> None:
    gltf = Gltf()
    weights = np.float32([[1, 0, 0, 0]] * 4)
    gltf.mesh(flat(1, 0, 0), JOINTS_0=np.zeros((4, 4), np.uint8), WEIGHTS_0=weights, node={"scale": [9, 1, 1], "skin": 0})
    gltf.tree["nodes"].append({"scale": [1, 3, 1]})
    gltf.tree["skins"] = [{"joints": [1]}]
    gltf.tree["scenes"][0]["nodes"] = [0, 1]
    extent = np.ptp(loaded(tmp_path, gltf).parts[0].mesh.positions, axis=0)
    assert extent / extent[0] == pytest.approx([1, 3, 1], rel=1e-5)


def test_strips_and_lines(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.mesh(flat(1, 0, 0), faces=np.uint16([0, 1, 2, 3]))
    gltf.tree["meshes"][0]["primitives"][0]["mode"] = 5
    gltf.mesh(flat(0, 1, 0))
    gltf.tree["meshes"][1]["primitives"][0]["mode"] = 1
    asset = loaded(tmp_path, gltf)
    assert sum(len(part.mesh.faces) for part in asset.parts) == 2
    assert np.allclose(shown(asset), [1, 0, 0], atol=0.005)


# --- glTF: textures ---------------------------------------------------------------------------------------------------


def quadrants() -> np.ndarray:
    """Red, green over blue, white; 32 x 32."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16, :16, 0] = image[:16, 16:, 1] = image[16:, :16, 2] = image[16:, 16:] = 255
    return image


def textured(gltf: Gltf, pixels: np.ndarray, **more: Any) -> dict:
    return {"pbrMetallicRoughness": {"baseColorTexture": {"index": gltf.texture(pixels)}, "metallicFactor": 0, **more}}


def corner_colours(asset: Asset) -> dict[tuple, tuple]:
    """Colour by vertex of the tetrahedron: which coordinate is the large one."""
    mesh = asset.parts[0].mesh
    low = mesh.positions.min(0)
    keys = ((mesh.positions[mesh.faces] - low) > 1e-3).astype(int).reshape(-1, 3)
    return {tuple(map(int, k)): tuple(np.round(c, 2).tolist()) for k, c in zip(keys, shown(asset).reshape(-1, 3), strict=True)}


EXPECTED = {(0, 0, 0): (1, 0, 0), (1, 0, 0): (0, 1, 0), (0, 1, 0): (0, 0, 1), (0, 0, 1): (1, 1, 1)}


def test_the_first_row_of_an_image_lies_at_v_0(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.mesh(textured(gltf, quadrants()), TEXCOORD_0=UV)
    assert corner_colours(loaded(tmp_path, gltf)) == EXPECTED


def test_second_coordinates_normalised_integers_and_transforms(tmp_path: Path) -> None:
    gltf = Gltf()
    material = textured(gltf, quadrants())
    info = material["pbrMetallicRoughness"]["baseColorTexture"]
    # v' = 1 - v undone by the transform's negative scale.
    info |= {"texCoord": 1, "extensions": {"KHR_texture_transform": {"offset": [0, 1], "scale": [1, -1]}}}
    stored = np.round(np.stack((UV[:, 0], 1 - UV[:, 1]), -1) * 65535).astype(np.uint16)
    gltf.mesh(material, TEXCOORD_0=np.zeros((4, 2), np.float32), TEXCOORD_1=gltf.array(stored, normalized=True))
    assert corner_colours(loaded(tmp_path, gltf)) == EXPECTED


def test_a_texture_is_decoded_and_multiplied_by_its_factor(tmp_path: Path) -> None:
    gltf = Gltf()
    grey = np.full((8, 8, 3), 128, np.uint8)
    grey[:, 4:] = 255
    gltf.mesh(textured(gltf, grey, baseColorFactor=[0.5, 1, 0.25, 1]), TEXCOORD_0=UV * 0.1 + 0.15)
    # 128 / 255 in sRGB is 0.2159 in linear light.
    assert np.allclose(shown(loaded(tmp_path, gltf)), 0.2159 * np.array([0.5, 1, 0.25]), atol=0.001)


def test_metallic_roughness_and_normal_maps(tmp_path: Path) -> None:
    gltf = Gltf()
    material = textured(gltf, quadrants(), metallicFactor=0.5, roughnessFactor=0.8)
    packed = np.full((64, 64, 3), (0, 204, 102), np.uint8)
    material["pbrMetallicRoughness"]["metallicRoughnessTexture"] = {"index": gltf.texture(packed)}
    slope = np.full((16, 16, 3), (128, 203, 230), np.uint8)
    material["normalTexture"] = {"index": gltf.texture(slope), "scale": 2.0}
    gltf.mesh(material, TEXCOORD_0=UV, TANGENT=np.float32([[1, 0, 0, 1]] * 4))
    asset = loaded(tmp_path, gltf, texture_size=32)
    check_sane(asset, AssetLimits(texture_size=32))
    (surface,) = (part.material for part in asset.parts)
    assert surface.basecolor.shape == (32, 32, 3)
    assert np.allclose(surface.roughness, 0.8 * 0.8, atol=1e-3) and np.allclose(surface.metallic, 0.5 * 0.4, atol=1e-3)
    n = 2 * np.array([128, 203, 230]) / 255 - 1
    n[:2] *= 2
    assert np.allclose(surface.normal, n / np.linalg.norm(n), atol=1e-3)


@pytest.mark.parametrize(("turn", "expected"), [(1.0, {1}), (-1.0, {-1}), (None, {1, -1})])
def test_normal_maps_on_mirrored_triangles(tmp_path: Path, turn: float | None, expected: set[int]) -> None:
    """Tangents of w = -1 turn the map's green over; without tangents, the way in which the texture is laid on decides."""
    gltf = Gltf()
    material = textured(gltf, quadrants())
    material["normalTexture"] = {"index": gltf.texture(np.full((16, 16, 3), (128, 203, 230), np.uint8))}
    # This tetrahedron's texture is mirrored on some of its sides.
    tangents = {} if turn is None else {"TANGENT": np.float32([[1, 0, 0, turn]] * 4)}
    gltf.mesh(material, TEXCOORD_0=UV, **tangents)
    asset = loaded(tmp_path, gltf, texture_size=32)
    assert {int(np.sign(part.material.normal[..., 1].mean())) for part in asset.parts} == expected
    assert sum(len(part.mesh.faces) for part in asset.parts) == 4 and len(asset.parts) == len(expected)
    for part in asset.parts if turn is None else ():
        corner, uv = part.mesh.positions[part.mesh.faces], part.mesh.uv[part.mesh.faces]
        a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
        face = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        handed = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) * (face * part.mesh.normals[part.mesh.faces].sum(1)).sum(-1)
        assert (np.sign(handed) == -np.sign(part.material.normal[0, 0, 1])).all()
    (alone,) = loaded(tmp_path, gltf, texture_size=32, max_parts=1).parts
    assert len(alone.mesh.faces) == 4


def test_unlit_unstated_and_specular_glossiness(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.mesh({"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}, "extensions": {"KHR_materials_unlit": {}}})
    surface = loaded(tmp_path, gltf).parts[0].material
    assert np.allclose(surface.roughness, 0.6, atol=0.003) and surface.metallic.max() == 0
    glossy = {"diffuseFactor": [0, 0, 0, 1], "specularFactor": [0.9, 0.6, 0.3], "glossinessFactor": 0.7}
    gltf = Gltf()
    gltf.mesh({"extensions": {"KHR_materials_pbrSpecularGlossiness": glossy}})
    asset = loaded(tmp_path, gltf)
    assert np.allclose(shown(asset), [0.9, 0.6, 0.3], atol=0.02)
    surface = asset.parts[0].material
    assert surface.metallic.min() > 0.9 and np.allclose(surface.roughness, 0.3, atol=0.003)
    # A dielectric stays one, its colour up to the Fresnel share.
    colour, metallic = metallic_roughness(np.full((1, 1, 3), 0.5, np.float32), np.full((1, 1, 3), 0.04, np.float32))
    assert metallic.item() == 0 and np.allclose(colour, 0.5, atol=1e-6)


def test_the_rotation_of_a_texture_transform() -> None:
    # Counter-clockwise where v grows downwards: (0, 1) below the origin comes to (1, 0) at its right.
    info = {"extensions": {"KHR_texture_transform": {"rotation": np.pi / 2, "offset": [2, 3]}}}
    assert np.allclose(_lookup(info).apply(np.array([[0.0, 1.0], [1.0, 0.0]])), [[3, 3], [2, 2]], atol=1e-12)


def test_draco(tmp_path: Path) -> None:
    draco = pytest.importorskip("DracoPy")
    blob = draco.encode(POINTS, FACES.astype(np.uint32), quantization_bits=14, tex_coord=UV.astype(np.float64))
    unique = {a["attribute_type"]: a["unique_id"] for a in draco.decode(blob).attributes}
    gltf = Gltf()
    gltf.mesh(textured(gltf, quadrants()), TEXCOORD_0=UV)
    primitive = gltf.tree["meshes"][0]["primitives"][0]
    for index in (*primitive["attributes"].values(), primitive["indices"]):
        del gltf.tree["accessors"][index]["bufferView"]
    ids = {"POSITION": unique[0], "TEXCOORD_0": unique[3]}
    primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": gltf.view(blob), "attributes": ids}}
    asset = loaded(tmp_path, gltf)
    assert len(asset.parts[0].mesh.faces) == 4 and corner_colours(asset) == EXPECTED


# --- vertex colours and palettes --------------------------------------------------------------------------------------


def test_vertex_colours_vary_linearly_over_each_triangle(tmp_path: Path) -> None:
    gltf = Gltf()
    colours = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]])
    gltf.mesh(flat(1, 1, 1), COLOR_0=colours)
    asset = loaded(tmp_path, gltf)
    mesh, material = asset.parts[0].mesh, asset.parts[0].material
    corner = {(0, 0, 0): 0, (1, 0, 0): 1, (0, 1, 0): 2, (0, 0, 1): 3}
    # Each triangle of pure colours is divided in four; a vertex halfway between two has the mean colour.
    corners = np.array([list(key) for key in corner])
    places = (mesh.positions - mesh.positions.min(0)) / np.ptp(mesh.positions[:, 0])
    weights = np.linalg.lstsq(np.vstack((corners.T, np.ones(4))), np.vstack((places.T, np.ones(len(places)))), rcond=None)[0].T
    expected = (weights @ colours)[mesh.faces]
    assert len(mesh.faces) == 16
    for inside in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1 / 3, 1 / 3, 1 / 3), (0.5, 0.5, 0.0), (0.2, 0.1, 0.7)):
        found = sampled(material.basecolor, np.einsum("k,fkc->fc", inside, mesh.uv[mesh.faces]))
        # 8 bits, sRGB-encoded, at each of four texels: half a step is 0.0045 of linear light at the bright end.
        assert np.abs(found - np.einsum("k,fkc->fc", inside, expected)).max() < 0.006
    values = np.random.default_rng(3).uniform(0.4, 0.6, (300, 3, 5))
    uv, surface = palette(values, 64)
    centre = sampled(surface.basecolor, uv.mean(1))
    # Nothing is clipped here: 8 bits of each corner remain.
    assert np.abs(centre - values[..., :3].mean(1)).max() < 0.005


def test_a_palette_that_is_too_small_shows_means(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2000, 3, 5))
    uv, surface = palette(values, 32)
    assert surface.basecolor.shape[0] <= 32
    roughness = sampled(surface.roughness, uv)[..., 0]
    # 256 cells for five values: one bit each.
    assert (np.abs(roughness - values[..., 3].mean(1)[:, None]) < 0.51).all()
    assert np.ptp(roughness, axis=1).max() < 1e-6


def test_vertex_colours_multiply_a_texture(tmp_path: Path) -> None:
    gltf = Gltf()
    colours = np.uint8([[255, 255, 255, 255], [255, 255, 255, 255], [255, 255, 255, 255], [0, 0, 0, 255]])
    gltf.mesh(textured(gltf, quadrants()), TEXCOORD_0=UV, COLOR_0=gltf.array(colours, normalized=True))
    asset = loaded(tmp_path, gltf)
    check_sane(asset, AssetLimits())
    assert corner_colours(asset) == EXPECTED | {(0, 0, 1): (0, 0, 0)}


def test_untextured_materials_share_one_part_and_small_textures_are_merged(tmp_path: Path) -> None:
    gltf = Gltf()
    rng = np.random.default_rng(1)
    plain = rng.uniform(0.1, 0.9, (12, 3))
    for index, colour in enumerate(plain):
        gltf.mesh(flat(*map(float, colour)), node={"translation": [2.0 * index, 0, 0]})
    for index in range(4):
        size = 0.2 * (index + 1)
        gltf.mesh(
            textured(gltf, np.full((8, 8, 3), 60 * index, np.uint8)),
            TEXCOORD_0=UV,
            node={"translation": [0, 3.0 * index, 0], "scale": [size] * 3},
        )
    asset = loaded(tmp_path, gltf, max_parts=3)
    check_sane(asset, AssetLimits(max_parts=3))
    assert len(asset.parts) == 3
    colours = shown(asset, 2)
    assert np.ptp(colours, axis=1).max() < 1e-6  # nothing bleeds from cell to cell
    for colour in [*plain, *(srgb_decoded(np.full(3, 60 * index / 255)) for index in (0, 1))]:
        assert np.abs(colours[:, 0] - colour).max(-1).min() < 0.005
    assert len(loaded(tmp_path, gltf).parts) == 5


# --- transparency -----------------------------------------------------------------------------------------------------


def disc(size: int = 64) -> np.ndarray:
    """Green, opaque in a disc of radius 0.4."""
    at = (np.arange(size) + 0.5) / size - 0.5
    image = np.zeros((size, size, 4), np.uint8)
    image[..., 1] = 255
    image[..., 3] = 255 * (np.hypot(at[:, None], at) < 0.4)
    return image


SQUARE = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
SQUARE_UV = SQUARE[:, :2]


def areas(asset: Asset) -> np.ndarray:
    corners = np.concatenate([part.mesh.positions[part.mesh.faces] for part in asset.parts])
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1) / 2


@pytest.mark.parametrize("mode", ["MASK", "BLEND", "OPAQUE"])
def test_alpha_becomes_geometry(tmp_path: Path, mode: str) -> None:
    gltf = Gltf()
    faces = np.uint16([[0, 1, 2], [0, 2, 3]])
    gltf.mesh(textured(gltf, disc()) | {"alphaMode": mode}, faces, POSITION=SQUARE, TEXCOORD_0=SQUARE_UV)
    gltf.mesh(flat(1, 0, 0), node={"translation": [0, 0, -3]})
    asset = loaded(tmp_path, gltf)
    check_sane(asset, AssetLimits())
    leaf = next(part for part in asset.parts if part.material.name != "palette").mesh
    corners = leaf.positions[leaf.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1).sum() / 2
    unit = np.ptp(asset.parts[1].mesh.positions[:, 0])  # the tetrahedron is as wide as the square
    expected = 1.0 if mode == "OPAQUE" else np.pi * 0.4**2
    # 0.4 % less than the disc measured; its edge is ragged by half a texel of 64.
    assert area / unit**2 == pytest.approx(expected, rel=0.01)
    radius = np.hypot(*(leaf.uv - 0.5).T)
    assert radius.max() < (0.42 if mode != "OPAQUE" else 0.71)


def test_triangles_inside_and_outside_of_holes_stay_whole() -> None:
    alpha = np.zeros((32, 32, 1), np.float32)
    alpha[:, :16] = 1
    corners = np.zeros((3, 3, 11))
    corners[0, :, 6:8] = [[0.1, 0.1], [0.4, 0.1], [0.1, 0.4]]
    corners[1, :, 6:8] = [[0.6, 0.1], [0.9, 0.1], [0.6, 0.4]]
    corners[2, :, 6:8] = [[-0.9, 2.1], [-0.6, 2.1], [-0.9, 2.4]]  # the first one in another tile
    kept = cut_out(corners, alpha, 0.5, 100)
    assert np.array_equal(kept, corners[[0, 2]])
    corners[0, :, 6:8] = [[0.2, 0.1], [0.9, 0.1], [0.2, 0.9]]
    assert len(cut_out(corners[:1], alpha, 0.5, 20)) <= 20
    # No room to divide: what shows at its centre stays.
    corners[1, :, 6:8] = [[0.9, 0.1], [1.6, 0.1], [0.9, 0.9]]
    assert len(cut_out(corners[1:2], alpha, 0.5, 1)) == 1


def test_clear_glass_is_dropped_unless_it_is_all(tmp_path: Path) -> None:
    gltf = Gltf()
    glass = flat(0, 0, 1) | {"alphaMode": "BLEND"}
    glass["pbrMetallicRoughness"]["baseColorFactor"][3] = 0.2
    gltf.mesh(glass)
    assert len(loaded(tmp_path, gltf).parts[0].mesh.faces) == 4
    gltf.mesh(flat(1, 0, 0), node={"translation": [3, 0, 0]})
    assert np.allclose(shown(loaded(tmp_path, gltf)), [1, 0, 0], atol=0.005)


# --- what is skipped --------------------------------------------------------------------------------------------------


def test_reasons_for_skipping(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.mesh(None)
    assert "neither a material" in reason(tmp_path, gltf)
    gltf = Gltf()
    gltf.mesh(flat(1, 0, 0))
    assert "more than 3 triangles" in reason(tmp_path, gltf, max_faces=3)
    assert "bytes" in reason(tmp_path, gltf, max_file_bytes=100)
    gltf.tree["accessors"][0]["count"] = 400
    assert "beyond its data" in reason(tmp_path, gltf)
    for points, expected in ((POINTS * 0, "no extent"), (POINTS * [1, 1, 0], "flat"), (POINTS * np.nan, "finite")):
        gltf = Gltf()
        gltf.mesh(flat(1, 0, 0), POSITION=points.astype(np.float32))
        assert expected in reason(tmp_path, gltf)
    gltf = Gltf()
    gltf.mesh(flat(1, 0, 0))
    gltf.tree["scenes"][0]["nodes"] = []
    assert "no triangles" in reason(tmp_path, gltf)
    gltf.tree["extensionsRequired"] = ["EXT_meshopt_compression"]
    assert "meshopt" in reason(tmp_path, gltf)
    gltf = Gltf()
    gltf.mesh(textured(gltf, quadrants()), TEXCOORD_0=UV)
    gltf.data = gltf.data.replace(b"IHDR", b"XXXX")
    assert "cannot be decoded" in reason(tmp_path, gltf)


def test_damaged_files_are_skipped_and_remembered(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.mesh(flat(1, 0, 0))
    gltf.write(tmp_path / "whole.glb")
    data = (tmp_path / "whole.glb").read_bytes()
    (tmp_path / "cut.glb").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.glb").write_bytes(b"")
    (tmp_path / "text.gltf").write_text("not JSON")
    (tmp_path / "odd.gltf").write_text("[1, 2]")
    (tmp_path / "nothing.obj").write_text("# nothing\n")
    library = AssetLibrary(models=tmp_path)
    for name in library.model_names:
        if name == "whole":
            library.model(name)
            continue
        for _ in range(2):
            with pytest.raises(SkippedAsset) as error:
                library.model(name)
        assert library.skipped[f"model {name}"] == error.value.reason and "\n" not in error.value.reason
    assert len(library.skipped) == 5
    assert pickle.loads(pickle.dumps(error.value)).reason == error.value.reason


# --- OBJ --------------------------------------------------------------------------------------------------------------


def write_obj(folder: Path, mtl: str) -> None:
    lines = [f"v {x} {y} {z}" for x, y, z in POINTS] + [f"vt {u} {1 - v}" for u, v in UV]
    lines += ["usemtl paint"] + [f"f {a + 1}/{a + 1} {b + 1}/{b + 1} {c + 1}/{c + 1}" for a, b, c in FACES.astype(int)]
    (folder / "thing.obj").write_text("mtllib thing.mtl\n" + "\n".join(lines) + "\n")
    (folder / "thing.mtl").write_text("newmtl paint\n" + mtl)


def test_obj_with_a_texture(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    Image.fromarray(quadrants()).save(tmp_path / "my map.png")
    slope = np.tile(np.uint8([[(128, 160, 240), (128, 96, 240)]]), (4, 4, 1))
    Image.fromarray(slope).save(tmp_path / "bump.png")
    write_obj(tmp_path, "Kd 1 1 1\nmap_Kd -s 1 1 1 C:\\work\\my map.png\nPr 0.3\nPm 1\nmap_Bump -bm 0.5 bump.png\n")
    asset = AssetLibrary(models=tmp_path).model("thing")
    check_sane(asset, AssetLimits())
    assert corner_colours(asset) == EXPECTED
    surface = asset.parts[0].material
    assert np.allclose(surface.roughness, 0.3) and np.allclose(surface.metallic, 1) and np.ptp(surface.normal[..., 1]) > 0.4


def test_normals_of_obj_files(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    write_obj(tmp_path, "Kd 1 1 1\n")
    faceted = AssetLibrary(models=tmp_path).model("thing").parts[0].mesh
    corners = faceted.positions[faceted.faces]
    flat_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat_normals /= np.linalg.norm(flat_normals, axis=-1, keepdims=True)
    # All edges of a tetrahedron are sharp. float32 positions: 1e-6.
    assert np.allclose(faceted.normals[faceted.faces], flat_normals[:, None], atol=1e-5)
    stated = "vn 0.6 0 0.8\n" + (tmp_path / "thing.obj").read_text()
    (tmp_path / "thing.obj").write_text(re.sub(r"(\d)/(\d)", r"\1/\2/1", stated))
    assert np.allclose(AssetLibrary(models=tmp_path).model("thing").parts[0].mesh.normals, [0.6, 0, 0.8], atol=1e-6)


def test_computed_normals_are_smooth_across_blunt_edges_only() -> None:
    mesh = sphere(32, 16)
    corners = soup(mesh.positions, mesh.faces)
    smooth = completed(corners, 40.0)
    # 11 degrees between facets: the area-weighted mean is within 2 degrees of the sphere's normal, but for the poles.
    away = np.abs(mesh.positions[mesh.faces][..., 1]) < 0.99
    agreement = (smooth[..., 3:6] * mesh.positions[mesh.faces]).sum(-1)
    assert agreement[away].min() > np.cos(np.radians(3))
    flat_shaded = completed(corners, 0.0)[..., 3:6]
    assert np.ptp(flat_shaded, axis=1).max() == 0 and np.abs(flat_shaded - smooth[..., 3:6]).max() > 0.05


def test_obj_constants(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    write_obj(tmp_path, "Kd 0.1 0.6 0.2\nNs 98\n")
    asset = AssetLibrary(models=tmp_path).model("thing")
    assert np.allclose(shown(asset), [0.1, 0.6, 0.2], atol=0.005)
    # alpha^2 = 2 / (98 + 2), roughness = sqrt(alpha) = 0.376.
    assert np.allclose(asset.parts[0].material.roughness, 0.376, atol=0.003)
    write_obj(tmp_path, "map_Kd missing.png\n")
    with pytest.raises(SkippedAsset, match="texture"):
        AssetLibrary(models=tmp_path).model("thing")
    (tmp_path / "thing.mtl").unlink()
    with pytest.raises(SkippedAsset, match="neither a material"):
        AssetLibrary(models=tmp_path).model("thing")


# --- texture coordinates ----------------------------------------------------------------------------------------------


def test_texture_coordinates_are_moved_by_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    near = rng.uniform(-5, 5, (50, 3, 2)) - 1000
    moved = wrapped(near)
    assert np.abs(moved - near - np.round(moved - near)).max() < 1e-9 and 0 <= moved.min()
    assert np.ptp((moved - near).reshape(-1, 2), axis=0).max() < 1e-9  # together
    far = rng.uniform(-5, 5, (50, 3, 2)) + 100 * np.arange(50)[:, None, None]
    moved = wrapped(far)
    assert np.abs(moved - far - np.round(moved - far)).max() < 1e-9 and 0 <= moved.min() and moved.max() < MAX_UV
    wide = wrapped(np.array([[[0.0, 0.0], [500.0, 1.0], [0.0, 1.0]]]))
    assert wide.max() < MAX_UV and wide[0, 1, 1] == 1


def test_welding_keeps_every_corner() -> None:
    rows = np.random.default_rng(0).integers(0, 3, (500, 8)).astype(float)
    vertices, index = welded(rows)
    assert np.array_equal(vertices[index], rows) and len(vertices) == len(np.unique(rows, axis=0))


# --- material folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("Rock020_1K-JPG_Color", ("rock020", "basecolor")),
        ("Rock020_1K-JPG_NormalGL", ("rock020", "normal_gl")),
        ("Rock020_1K-JPG_NormalDX", ("rock020", "normal_dx")),
        ("Rock020_1K-PNG_Metalness", ("rock020", "metallic")),
        ("Rock020_1K-PNG_AmbientOcclusion", ("rock020", "unused")),
        ("castle_brick_06_diff_1k", ("castle_brick_06", "basecolor")),
        ("castle_brick_06_nor_gl_4k", ("castle_brick_06", "normal_gl")),
        ("castle_brick_06_nor_dx_4k", ("castle_brick_06", "normal_dx")),
        ("castle_brick_06_arm_2k", ("castle_brick_06", "packed")),
        ("wall_col_01_1k", ("wall", "basecolor")),
        ("worn metal_rough_2k", ("worn_metal", "roughness")),
        ("basecolor", ("", "basecolor")),
        ("Base_Color", ("", "basecolor")),
        ("metallic", ("", "metallic")),
        ("Tiles-Glossiness", ("tiles", "glossiness")),
        ("height", ("", "unused")),
        ("preview", None),
    ],
)
def test_map_names(stem: str, expected: tuple[str, str] | None) -> None:
    found = classify(stem)
    assert (found and found[:2]) == expected


def save(path: Path, *values: int, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), values, np.uint8)).save(path)


def test_material_folders(tmp_path: Path) -> None:
    root = tmp_path / "materials"
    save(root / "a" / "Rock_1K_Color.png", 188, 188, 188)
    save(root / "a" / "Rock_1K_NormalDX.png", 128, 160, 240)
    save(root / "a" / "Rock_1K_Glossiness.png", 51, 51, 51)
    save(root / "b" / "brick_diff_1k.png", 10, 20, 30, size=64)
    save(root / "b" / "brick_arm_1k.png", 255, 102, 204)
    save(root / "b" / "brick_rough_1k.png", 153, 153, 153)
    save(root / "b" / "brick_nor_gl_1k.png", 128, 160, 240)
    save(root / "b" / "brick_nor_dx_1k.png", 0, 0, 240)
    save(root / "c" / "normal.png", 128, 128, 255)
    save(root / "flat_albedo.png", 255, 255, 255)
    save(root / "other_albedo.png", 0, 0, 0)
    depth = np.full((8, 8), 0x4080, np.uint16)
    (root / "other_roughness.png").write_bytes(imagecodecs.png_encode(depth))
    library = AssetLibrary(materials=root, limits=AssetLimits(texture_size=32))
    assert library.material_names == ("a", "b", "c", "flat", "other")
    rock, source = library.material("a")
    assert np.allclose(rock.basecolor, 0.5, atol=0.005) and np.allclose(rock.roughness, 0.8, atol=1e-3)
    assert rock.metallic.max() == 0 and (rock.normal[..., 1] < -0.2).all()  # y was down
    assert (source.kind, source.licence) == ("material", "unknown")
    brick, _ = library.material("b")
    assert brick.basecolor.shape == (32, 32, 3) and (brick.normal[..., 1] > 0.2).all()
    assert np.allclose(brick.roughness, 0.6, atol=1e-3) and np.allclose(brick.metallic, 0.8, atol=1e-3)
    with pytest.raises(SkippedAsset, match="no base colour"):
        library.material("c")
    assert list(library.skipped) == ["material c"]
    white, _ = library.material("flat")
    assert white.normal is None and np.allclose(white.roughness, 0.7) and white.metallic.max() == 0
    assert np.allclose(library.material("other")[0].roughness, 0x4080 / 65535, atol=1e-6)


# --- the library ------------------------------------------------------------------------------------------------------


def a_library(folder: Path) -> AssetLibrary:
    (folder / "models" / "000-001").mkdir(parents=True)
    (folder / "hdri").mkdir()
    (folder / "hdri" / "sky.hdr").write_bytes(b"never opened")
    gltf = Gltf()
    gltf.mesh(flat(1, 0, 0))
    gltf.write(folder / "models" / "000-001" / "abc.glb")
    save(folder / "materials" / "wood" / "basecolor.png", 9, 9, 9)
    (folder / "MANIFEST.csv").write_text(
        "path,kind,name,licence,author\nmaterials/wood/basecolor.png,material,wood,CC0-1.0,Ann\nhdri/sky.hdr,hdri,sky,CC-BY-4.0,Bo\n"
    )
    (folder / "models" / "annotations.json").write_text('{"abc": {"license": "by", "user": {"username": "Cy"}}}')
    return AssetLibrary.from_folder(folder)


def test_names_sources_and_identity(tmp_path: Path) -> None:
    library = a_library(tmp_path)
    assert (library.model_names, library.material_names, library.panorama_names) == (("abc",), ("wood",), ("sky",))
    assert library.panorama_path("sky") == tmp_path / "hdri" / "sky.hdr"
    found = {
        (kind, library.source(kind, name).licence, library.source(kind, name).author)
        for kind, name in (("model", "abc"), ("material", "wood"), ("panorama", "sky"))
    }
    assert found == {("model", "CC-BY-4.0", "Cy"), ("material", "CC0-1.0", "Ann"), ("panorama", "CC-BY-4.0", "Bo")}
    identity = library.to_json()
    assert identity["models"] == "models" and identity["panoramas"] == "hdri" and str(tmp_path) not in json.dumps(identity)
    assert identity["limits"]["max_parts"] == 7


def test_a_library_travels_without_its_cache_and_gives_the_same(tmp_path: Path) -> None:
    library = a_library(tmp_path)
    first = library.model("abc")
    assert library.model("abc") is first
    copy = pickle.loads(pickle.dumps(library))
    second = copy.model("abc")
    assert second is not first and np.array_equal(first.parts[0].mesh.positions, second.parts[0].mesh.positions)
    assert np.array_equal(first.parts[0].mesh.uv, second.parts[0].mesh.uv)


def test_names_that_are_not_unique_get_their_folder(tmp_path: Path) -> None:
    for name in ("x/scene.gltf", "y/scene.gltf"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    assert AssetLibrary(models=tmp_path).model_names == ("x/scene", "y/scene")


def test_mistakes_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="models, materials"):
        AssetLibrary.from_folder(tmp_path)
    with pytest.raises(InputError, match="a folder of models"):
        AssetLibrary(models=tmp_path / "none")
    with pytest.raises(InputError, match="max_parts"):
        AssetLimits(max_parts=0)
    library = a_library(tmp_path)
    for ask in (library.model, library.material, library.panorama_path, lambda name: library.source("model", name)):
        with pytest.raises(InputError, match="nobody"):
            ask("nobody")
    (tmp_path / "MANIFEST.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="licence"):
        AssetLibrary.from_folder(tmp_path).material("wood")


def test_importing_loads_no_heavy_library() -> None:
    code = "import sys, diffusion_renderer.datagen.assets; print({'trimesh', 'mitsuba', 'DracoPy', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


# --- the shared assets ------------------------------------------------------------------------------------------------

#: One of each kind: textured, skinned, many materials, glass, flat colours, vertex colours, large.
SOME = ("khronos_avocado", "khronos_fox", "market_delivery-truck", "muscle_car_chassis", "photorealistic_guitar", "toon_cat")


@pytest.mark.parametrize("name", SOME)
def test_shared_models(shared: Path, name: str) -> None:
    folder = shared / "assets"
    if not (folder / "models" / f"{name}.glb").is_file():
        pytest.skip(f"needs {name}.glb in {folder}")
    library = AssetLibrary.from_folder(folder, AssetLimits(texture_size=128))
    check_sane(library.model(name), library.limits)
    assert library.source("model", name).licence != "unknown"
