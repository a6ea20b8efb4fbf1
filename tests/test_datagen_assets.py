"""The library of assets: names, sources, what is skipped and why, and the shared models."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from asset_files import POINTS, UV, Gltf, check_sane, flat, loaded, quadrants, save, textured

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.assets import AssetLibrary, AssetLimits, SkippedAsset


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


# --- what is skipped --------------------------------------------------------------------------------------------------


def reason(folder: Path, gltf: Gltf, **limits: int) -> str:
    with pytest.raises(SkippedAsset) as error:
        loaded(folder, gltf, **limits)
    assert error.value.name == "thing"
    return error.value.reason


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
