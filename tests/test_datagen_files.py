"""The files of a clip: every format gives back what went in, up to its bits; old shards are still read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_scene import exact_sample

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.settings import FORMATS
from diffusion_renderer.datagen.store.encode import decode_clip, encode_clip
from diffusion_renderer.datagen.store.files import decode_exr, decode_layers, decode_png, encode_exr, encode_png
from diffusion_renderer.io import read_gbuffer

#: (encoded values in [0, 1], normals): half a step, and for normals half a step per axis of [-1, 1] and the new length.
TOLERANCE = {"png8": (0.5 / 255 + 1e-5, 0.0075), "png16": (0.5 / 65535 + 1e-5, 3e-5), "exr": (2.5e-4, 1e-3)}


@pytest.mark.parametrize("format", FORMATS)
def test_a_clip_comes_back(format: str) -> None:
    made = exact_sample(moving=True)
    read = decode_clip(encode_clip(made, format))
    step, angle = TOLERANCE[format]
    frame_step = 0.5 / 255 if format == "png8" else 0.5 / 65535
    assert (read.clip.frames - made.clip.frames).abs().max() <= frame_step + 1e-6
    assert torch.equal(read.gbuffer.mask, made.gbuffer.mask) and torch.equal(read.ids, made.ids)
    assert (srgb_oetf(read.gbuffer.basecolor) - srgb_oetf(made.gbuffer.basecolor)).abs().max() <= 2 * step
    for name in ("roughness", "metallic"):
        assert (getattr(read.gbuffer, name) - getattr(made.gbuffer, name)).abs().max() <= step
    assert (read.gbuffer.normal - made.gbuffer.normal).norm(dim=1).max() < angle
    near, far = made.gbuffer.depth_range()
    mask = made.gbuffer.mask
    allowed = 0 if format == "exr" else (far - near) / 65535
    assert (read.gbuffer.depth - made.gbuffer.depth)[mask].abs().max() <= allowed
    assert torch.isinf(read.gbuffer.depth[~mask]).all()
    assert torch.equal(read.camera.pose, made.camera.pose) and torch.equal(read.camera.fov_x, made.camera.fov_x)
    assert torch.equal(read.environment.radiance, made.environment.radiance)
    assert read.environment.name == made.environment.name and (read.clip.name, read.clip.fps) == ("00000000", 12.0)
    assert torch.equal(read.light_rotation, made.light_rotation)
    (relit,) = read.relit
    assert (relit.clip.frames - made.relit[0].clip.frames).abs().max() <= frame_step + 1e-6
    assert torch.equal(relit.environment.radiance, made.relit[0].environment.radiance)
    assert (relit.clip.name, relit.environment.name) == ("evening", "evening")
    assert torch.equal(relit.light_rotation, made.relit[0].light_rotation)
    expected = made.meta if format == "png8" else {**made.meta, "format": format}
    assert read.meta == json.loads(json.dumps(expected))


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_clip_gives_the_same_bytes(format: str) -> None:
    files = encode_clip(exact_sample(), format)
    assert files == encode_clip(exact_sample(), format)
    assert files != encode_clip(exact_sample(index=1), format)


def test_one_format_can_become_another() -> None:
    files = encode_clip(decode_clip(encode_clip(exact_sample(), "exr")), "png8")
    assert "format" not in json.loads(files["clip.json"]) and "0000.normal.png" in files and "0000.gbuffer.exr" not in files


def test_names_of_the_files() -> None:
    always = {"clip.json", "cameras.json", "light.exr", "lights.json", "light_1.exr"}
    frame = {"rgb", "mask", "ids", "rgb_light1"}
    buffers = {"basecolor", "normal", "depth", "roughness", "metallic"}
    for format in FORMATS:
        images = frame | (set() if format == "exr" else buffers)
        expected = always | {f"{k:04d}.{name}.png" for k in range(3) for name in images}
        expected |= {f"{k:04d}.gbuffer.exr" for k in range(3) if format == "exr"}
        assert set(encode_clip(exact_sample(), format)) == expected


def test_bits_per_channel() -> None:
    for format, rgb, normal in (("png8", 8, 8), ("png16", 16, 16)):
        files = encode_clip(exact_sample(), format)
        # Byte 24 of a PNG is its bit depth.
        assert (files["0000.rgb.png"][24], files["0000.normal.png"][24], files["0000.depth.png"][24]) == (rgb, normal, 16)
        assert files["0000.mask.png"][24] == files["0000.ids.png"][24] == 8


def test_what_a_sample_lacks_has_no_file() -> None:
    frames = exact_sample().clip
    for format in FORMATS:
        files = encode_clip(Sample(frames, GBuffer()), format)
        assert set(files) == {"clip.json", *(f"{k:04d}.rgb.png" for k in range(3))}
        read = decode_clip(files)
        assert len(read.clip) == 3 and len(read.gbuffer) == 0
        assert (read.camera, read.environment, read.light_rotation, read.ids, read.relit) == (None, None, None, None, ())
        assert read.gbuffer.mask is None


@pytest.mark.parametrize("format", FORMATS)
def test_depth_without_a_mask_or_against_it(format: str) -> None:
    """Public data has holes: no depth where there is a surface, or no mask at all."""
    made = exact_sample()
    depth = made.gbuffer.depth.clone()
    depth[1, 0, 20:25, 20:25] = torch.inf
    near, far = made.gbuffer.depth_range()
    for mask in (None, made.gbuffer.mask, torch.ones_like(made.gbuffer.mask)):
        holed = replace(made, gbuffer=GBuffer(depth=depth, mask=mask), ids=None)
        read = decode_clip(encode_clip(holed, format)).gbuffer
        assert torch.equal(torch.isinf(read.depth), torch.isinf(depth)) and (read.mask is None) == (mask is None)
        known = torch.isfinite(depth)
        assert (read.depth - depth)[known].abs().max() <= 1.6 * (far - near) / 65535


def test_a_clip_of_background_only() -> None:
    made = exact_sample()
    empty = replace(
        made.gbuffer, mask=torch.zeros_like(made.gbuffer.mask), depth=torch.full_like(made.gbuffer.depth, torch.inf)
    )
    for format in FORMATS:
        assert torch.isinf(decode_clip(encode_clip(replace(made, gbuffer=empty), format)).gbuffer.depth).all()


def test_the_diffuse_albedo_is_stored_too() -> None:
    made = exact_sample()
    albedo = made.gbuffer.basecolor * (1 - made.gbuffer.metallic)
    for format in FORMATS:
        read = decode_clip(encode_clip(replace(made, gbuffer=GBuffer(diffuse_albedo=albedo)), format)).gbuffer
        assert read.present == ("diffuse_albedo",) and (read.diffuse_albedo - albedo).abs().max() < 0.005


def test_shards_from_before_the_new_files_are_read() -> None:
    files = encode_clip(exact_sample(), "png8")
    old = {name: data for name, data in files.items() if "light" not in name or name == "light.exr"}
    old = {name: data for name, data in old.items() if ".ids." not in name}
    read = decode_clip(old)
    assert read.ids is None and read.relit == () and read.light_rotation is None
    assert read.environment.name == "procedural-sky" and len(read.gbuffer) == 3


def test_missing_and_damaged_files_are_told() -> None:
    files = encode_clip(exact_sample(), "png8")
    with pytest.raises(KeyError, match=r"0001\.normal\.png"):
        decode_clip({name: data for name, data in files.items() if name != "0001.normal.png"})
    with pytest.raises(ValueError, match="3 cameras for 2 frames"):
        decode_clip({name: data for name, data in files.items() if name != "0002.rgb.png"})
    with pytest.raises(ValueError, match="PNG"):
        decode_clip({**files, "0001.normal.png": files["0001.normal.png"][:100]})
    with pytest.raises(ValueError, match="EXR"):
        decode_clip({**files, "light.exr": b"nothing"})
    with pytest.raises(ValueError, match="one size"):
        decode_clip({**files, "0001.rgb.png": encode_png(torch.zeros(3, 8, 8))})


def test_an_unknown_format_is_an_input_error() -> None:
    with pytest.raises(InputError, match="did you mean png8"):
        encode_clip(exact_sample(), "png9")


def test_the_files_are_what_io_reads(tmp_path: Path) -> None:
    """A clip unpacked from its shard is a folder of buffers like any other."""
    made = exact_sample()
    for name, data in encode_clip(made, "exr").items():
        (tmp_path / name).write_bytes(data)
    read = read_gbuffer(tmp_path)
    assert torch.equal(read.depth, made.gbuffer.depth)
    assert (read.normal - made.gbuffer.normal).abs().max() < 1e-3 and torch.equal(read.mask, made.gbuffer.mask)


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (3, 8), (1, 16), (3, 16)])
def test_png_holds_every_integer(channels: int, bits: int) -> None:
    top = 2**bits - 1
    values = torch.from_numpy(np.linspace(0, top, channels * 31 * 17).round().reshape(channels, 31, 17)).float()
    for compression in (None, 1, 9):
        read = decode_png(encode_png(values / top, bits, compression))
        assert read.shape == values.shape and torch.equal((read * top).round(), values)
    assert decode_png(encode_png(torch.full((1, 1, 1), torch.nan), bits)) == 0


def test_light_files_are_half_floats() -> None:
    image = torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(0)) * 1000
    image[0, 0, 0] = 1e9
    assert torch.equal(decode_exr(encode_exr(image)), image.clamp(max=65504).half().float())


def test_the_layers_of_an_exr_carry_the_names_of_the_conventions() -> None:
    layers = decode_layers(encode_clip(exact_sample(), "exr")["0001.gbuffer.exr"])
    assert {name: len(image) for name, image in layers.items()} == {
        "basecolor": 3,
        "normal": 3,
        "depth": 1,
        "roughness": 1,
        "metallic": 1,
    }
