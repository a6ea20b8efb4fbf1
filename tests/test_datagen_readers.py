"""Readers of public data sets together: names, wrong layouts, conversion to shards, and MatSynth's materials."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from public_sets import save_illumination, save_png, write_dl3dv, write_interiorverse, write_stanford_orb

from diffusion_renderer.cli import main
from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen import read_shards
from diffusion_renderer.datagen.readers import READERS, read_matsynth, read_public


def test_an_unknown_name_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean hypersim"):
        read_public("hyper-sim", tmp_path)
    for name in READERS:
        if name != "matsynth":
            with pytest.raises(InputError, match="nothing there; get the data set at https://"):
                read_public(name, tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("interiorverse", "NNN_im.exr"),
        ("hypersim", "frame.IIII.color.hdf5"),
        ("dl3dv", "transforms.json"),
        ("multi-illumination", "dir_N_mip2.exr"),
        ("stanford-orb", "blender_HDR or blender_LDR"),
    ],
)
def test_a_wrong_layout_says_what_is_missing(tmp_path: Path, name: str, missing: str) -> None:
    (tmp_path / "something").mkdir()
    with pytest.raises(InputError) as caught:  # at once, not at the first sample
        read_public(name, tmp_path)
    assert missing in caught.value.found and "laid out as" in caught.value.expected and "https://" in caught.value.advice


def test_importing_the_readers_needs_nothing_of_the_extra() -> None:
    heavy = "{'mitsuba', 'h5py', 'trimesh', 'fcl', 'manifold3d'}"
    code = f"import sys, diffusion_renderer.datagen.readers; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def write_multi_illumination(folder: Path) -> Path:
    save_illumination(folder / "kitchen", range(25), probes=True)
    return folder


WRITERS = {
    "interiorverse": write_interiorverse,
    "dl3dv": write_dl3dv,
    "multi-illumination": write_multi_illumination,
    "stanford-orb": write_stanford_orb,
}


@pytest.mark.parametrize("name", WRITERS)
def test_public_sets_become_shards(name: str, tmp_path: Path) -> None:
    """`dataset convert` on a small folder: what the set lacks is absent in the shards too, the rest comes back."""
    folder = WRITERS[name](tmp_path / "set")
    out = tmp_path / "shards"
    assert main(["dataset", "convert", name, str(folder), "-o", str(out), "--shard-size", "2"]) in (0, None)
    for stored, read in zip(read_shards(out), read_public(name, folder), strict=True):
        assert stored.gbuffer.present == read.gbuffer.present and len(stored.relit) == len(read.relit)
        assert (stored.environment is None) == (read.environment is None) and (stored.camera is None) == (read.camera is None)
        assert (stored.clip.frames - read.clip.frames).abs().max() <= 0.5 / 255 + 1e-6
        for buffer in read.gbuffer.present:
            if buffer != "depth":
                difference = getattr(stored.gbuffer, buffer) - getattr(read.gbuffer, buffer)
                assert difference.abs().max() < 0.02, buffer


# --- MatSynth ---------------------------------------------------------------------------------------------------------


def test_matsynth_materials(tmp_path: Path) -> None:
    place = tmp_path / "wood" / "oak"
    for name, value in (
        ("basecolor", (0.5, 0.25, 0.75)),
        ("roughness", (0.0,)),
        ("metallic", (1.0,)),
        ("normal", (0.5, 0.8, 0.9)),
    ):
        save_png(place / f"{name}.png", torch.tensor(value).view(-1, 1, 1).expand(-1, 8, 8))
    (place / "metadata.json").write_text(json.dumps({"license": "CC0", "authors": ["A", "B"]}))
    [(material, source)] = list(read_matsynth(tmp_path, size=4))
    assert material.basecolor.shape == (4, 4, 3) and material.roughness.shape == material.metallic.shape == (4, 4, 1)
    # Half a step of 8 bits.
    assert np.allclose(srgb_oetf(torch.from_numpy(material.basecolor)), [0.5, 0.25, 0.75], atol=0.5 / 255 + 1e-5)
    assert material.roughness.min() == np.float32(0.05) and (material.metallic == 1).all()
    assert np.allclose(material.normal, [0.0, 0.6, 0.8], atol=0.006) and material.normal.dtype == np.float32
    assert (source.name, source.kind, source.licence, source.author) == ("oak", "material", "CC0-1.0", "A, B")
    (place / "metallic.png").unlink()
    with pytest.raises(InputError, match=r"missing: metallic\.png"):
        next(read_matsynth(tmp_path))


def test_matsynth_is_not_clips_and_not_parquet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dataset --materials"):
        read_public("matsynth", tmp_path)
    with pytest.raises(InputError, match="missing: any"):
        read_matsynth(tmp_path)
    (tmp_path / "train-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="export it first"):
        read_matsynth(tmp_path)
