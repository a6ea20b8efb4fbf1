"""OBJ files made here: texture, constants, normals."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from asset_files import FACES, POINTS, QUADRANT_COLOURS, UV, check_sane, corner_colours, quadrants, shown
from PIL import Image

from diffusion_renderer.datagen.assets import AssetLibrary, AssetLimits, SkippedAsset


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
    assert corner_colours(asset) == QUADRANT_COLOURS
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
