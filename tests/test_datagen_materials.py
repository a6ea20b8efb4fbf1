"""Folders of material maps: which file is which map, and what is read from them."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from asset_files import save

from diffusion_renderer.datagen.assets import AssetLibrary, AssetLimits, SkippedAsset
from diffusion_renderer.datagen.assets.maps import classify


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
