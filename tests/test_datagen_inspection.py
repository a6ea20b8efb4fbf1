"""Inspection: the sheets show the clips, the statistics count them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_scene import exact_sample, write_dataset, write_shard
from PIL import Image

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.store.encode import encode_clip
from diffusion_renderer.datagen.store.inspection import chart, choose_clips, inspect, overview_cell, paint
from diffusion_renderer.datagen.store.statistics import assets_of, bars, light_levels


def test_everything_is_written_and_counted(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", 3)
    out = tmp_path / "out"
    steps = []
    result = inspect(folder, out, cell=64, progress=lambda *step: steps.append(step))
    assert {path.name for path in out.iterdir()} == {
        *("clips.png", "buffers.png", "histograms.png"),
        *("statistics.md", "statistics.json"),
    }
    assert result == json.loads((out / "statistics.json").read_text()) and steps[-1] == (3, 3, "clips")
    assert (result["clips"], result["frames"], result["sizes"]) == (3, 9, {"64x48": 3})
    assert result["families"] == {"objects": 3} and result["motions"] == {"orbit": 3, "object-translation": 1}
    assert result["assets"] == {"panorama: procedural-sky": 3, "procedural: ball": 3} and result["licences"] == {
        "Apache-2.0": 6
    }
    sample = exact_sample()
    assert (
        result["spread"]["brightness"]["min"]
        <= float(sample.clip.frames.mean())
        <= result["spread"]["brightness"]["max"] + 1e-3
    )
    assert result["spread"]["near"]["min"] == pytest.approx(sample.gbuffer.depth_range()[0], rel=0.1)
    for counts in result["histograms"].values():
        assert sum(counts) == pytest.approx(1)
    # The roughness is 0.4 on all surfaces: column 12 of 32.
    assert result["histograms"]["roughness"][12] == 1
    text = (out / "statistics.md").read_text()
    assert "3 clips, 9 frames" in text and "| object-translation | 1 |" in text and "█" in text


def test_the_sheet_shows_the_first_or_the_middle_frame(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", 1)
    frames = exact_sample().clip.frames
    for middle in (False, True):
        inspect(folder, tmp_path / "out", cell=64, middle=middle)
        sheet = np.asarray(Image.open(tmp_path / "out" / "clips.png").convert("RGB"), np.float32) / 255
        # The picture of 64 x 48 with its strip of 12 rows lies in the lower right corner, 12 pixels from the edges.
        shown = torch.from_numpy(sheet[-72:-24, -76:-12].copy()).permute(2, 0, 1)
        errors = [float((shown - frame).abs().mean()) for frame in frames]
        assert errors.index(min(errors)) == (1 if middle else 0) and min(errors) < 0.01


def test_clips_are_spread_over_the_shards(tmp_path: Path) -> None:
    files = encode_clip(Sample(exact_sample(1).clip, GBuffer()))
    for shard in range(2):
        write_shard(tmp_path, [files] * 4, shard)
    assert [clip for _, clip, _ in choose_clips(tmp_path, 4)] == ["00000000", "00000002", "00000004", "00000006"]
    assert len(choose_clips(tmp_path, 100)) == 8


def test_a_clip_of_frames_only_is_shown(tmp_path: Path) -> None:
    write_shard(tmp_path / "set", [encode_clip(Sample(exact_sample().clip, GBuffer()))])
    result = inspect(tmp_path / "set", tmp_path / "out", cell=32)
    assert list(result["histograms"]) == ["rgb"] and "near" not in result["spread"]


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shard-\*\.tar"):
        inspect(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="clips of at least 1"):
        inspect(tmp_path, tmp_path / "out", 0)
    path = write_dataset(tmp_path, 1) / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    middle = data.index(b"IDAT") + 40
    data[middle] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"shard-000000\.tar.*validate"):
        inspect(tmp_path, tmp_path / "out")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"shard-000000\.tar"):
        inspect(tmp_path, tmp_path / "out")


def test_parts_of_the_pictures() -> None:
    sample = exact_sample(1)
    assert overview_cell(sample, 0, 64).shape == (3, 60, 64)
    colours = paint(sample.ids[0])
    assert {tuple(c) for c in colours.flatten(1).T.tolist()} == {
        tuple(paint(torch.tensor([[[k]]], dtype=torch.uint8)).flatten().tolist()) for k in range(3)
    }
    drawn = chart([0.0, 1.0, 0.5], height=10, bar=2)
    filled = (drawn[0] > 0.3).sum(0).tolist()
    assert filled == [0, 0, 10, 10, 5, 5]
    assert bars([0, 1, 0.5]) == " █▅"


def test_light_levels_weigh_by_solid_angle() -> None:
    even = light_levels(EnvironmentMap(torch.full((3, 16, 32), 2.0)))
    assert even["light_mean"] == pytest.approx(2) and even["light_contrast"] == pytest.approx(1)
    pole, equator = torch.zeros(3, 16, 32), torch.zeros(3, 16, 32)
    pole[:, 0], equator[:, 8] = 1.0, 1.0
    assert light_levels(EnvironmentMap(equator))["light_mean"] > 5 * light_levels(EnvironmentMap(pole))["light_mean"]
    assert light_levels(EnvironmentMap(torch.zeros(3, 16, 32)))["light_contrast"] == 0


def test_assets_are_found_however_deep_they_lie() -> None:
    source = {"name": "fox", "kind": "model", "licence": "CC0-1.0", "author": "someone"}
    assets = {
        "panorama": "lamp.exr",
        "objects": [{"name": "a", "parts": [{"source": source}], "poses": [[[1]]]}, {"shape": "cube"}],
    }
    assert list(assets_of(assets)) == [("model", "fox", "CC0-1.0"), ("panorama", "lamp.exr", "unknown")]
    assets["sources"] = [{"name": "lamp.exr", "kind": "panorama", "licence": "CC-BY-4.0", "author": "someone"}]
    assert ("panorama", "lamp.exr", "CC-BY-4.0") in list(assets_of(assets)) and len(list(assets_of(assets))) == 2


def test_assets_of_old_clips() -> None:
    assets = {"panorama": "procedural sky", "objects": [{"shape": "cube", "material": "wood"}]}
    assert list(assets_of(assets)) == [("procedural", "cube", "Apache-2.0"), ("panorama", "procedural sky", "Apache-2.0")]
    assert list(assets_of({})) == []
