"""What becomes of a model's triangles: palettes of colours, alpha cut into geometry, normals, texture coordinates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from asset_files import QUADRANT_COLOURS, UV, Gltf, check_sane, corner_colours, flat, loaded, quadrants, shown, textured

from diffusion_renderer.datagen.assets import AssetLimits
from diffusion_renderer.datagen.assets.assemble import welded, wrapped
from diffusion_renderer.datagen.assets.bake import palette
from diffusion_renderer.datagen.assets.cutout import cut_out
from diffusion_renderer.datagen.assets.images import sampled
from diffusion_renderer.datagen.assets.normals import completed
from diffusion_renderer.datagen.assets.surface import soup
from diffusion_renderer.datagen.colour import srgb_decoded
from diffusion_renderer.datagen.procedural.shapes import MAX_UV, sphere


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
    assert corner_colours(asset) == QUADRANT_COLOURS | {(0, 0, 1): (0, 0, 0)}


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


# --- normals and texture coordinates ----------------------------------------------------------------------------------


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
