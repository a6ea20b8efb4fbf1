"""glTF files made here, one rule at a time: geometry, textures, compression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from asset_files import (
    FACES,
    POINTS,
    QUADRANT_COLOURS,
    UV,
    Gltf,
    check_sane,
    corner_colours,
    flat,
    loaded,
    quadrants,
    shown,
    textured,
)

from diffusion_renderer.datagen.assets import AssetLimits
from diffusion_renderer.datagen.assets.gltf_materials import _lookup, metallic_roughness
from diffusion_renderer.datagen.objects import Asset


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


# --- textures ---------------------------------------------------------------------------------------------------------


def test_the_first_row_of_an_image_lies_at_v_0(tmp_path: Path) -> None:
    gltf = Gltf()
    gltf.mesh(textured(gltf, quadrants()), TEXCOORD_0=UV)
    assert corner_colours(loaded(tmp_path, gltf)) == QUADRANT_COLOURS


def test_second_coordinates_normalised_integers_and_transforms(tmp_path: Path) -> None:
    gltf = Gltf()
    material = textured(gltf, quadrants())
    info = material["pbrMetallicRoughness"]["baseColorTexture"]
    # v' = 1 - v undone by the transform's negative scale.
    info |= {"texCoord": 1, "extensions": {"KHR_texture_transform": {"offset": [0, 1], "scale": [1, -1]}}}
    stored = np.round(np.stack((UV[:, 0], 1 - UV[:, 1]), -1) * 65535).astype(np.uint16)
    gltf.mesh(material, TEXCOORD_0=np.zeros((4, 2), np.float32), TEXCOORD_1=gltf.array(stored, normalized=True))
    assert corner_colours(loaded(tmp_path, gltf)) == QUADRANT_COLOURS


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
    assert len(asset.parts[0].mesh.faces) == 4 and corner_colours(asset) == QUADRANT_COLOURS
