"""G-buffers in all formats, mixed and incomplete folders."""

import math

import numpy as np
import OpenEXR
import pytest
import torch
from torch.nn.functional import normalize

import diffusion_renderer as dr
from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import BUFFERS, GBuffer
from diffusion_renderer.io import list_gbuffers, read_gbuffer, write_gbuffer, write_image
from diffusion_renderer.io.exr import read_exr, write_exr

BYTE = 0.5 / 255 + 1e-6  # rounding to 8 bits
HALF = 2**-11  # rounding to half floats, relative


def gbuffer(frames: int = 3, height: int = 6, width: int = 8, name: str = "shot") -> GBuffer:
    """All buffers, with a background in the top row."""
    torch.manual_seed(0)
    basecolor, metallic = torch.rand(frames, 3, height, width), torch.rand(frames, 1, height, width)
    normal = normalize(torch.randn(frames, 3, height, width), dim=1)
    depth = 1 + 9 * torch.rand(frames, 1, height, width)
    normal[:, :, 0], depth[:, :, 0] = 0, math.inf
    return GBuffer(
        basecolor=basecolor,
        metallic=metallic,
        roughness=torch.rand(frames, 1, height, width),
        normal=normal,
        depth=depth,
        diffuse_albedo=basecolor * (1 - metallic),
        mask=depth.isfinite(),
        fps=12.0,
        name=name,
    )


def test_png_round_trip(tmp_path):
    original = gbuffer()
    folder = original.write(tmp_path)
    assert folder == tmp_path / "shot"
    expected = {f"{index:04d}.{name}.png" for index in range(3) for name in (*BUFFERS, "mask")}
    assert {path.name for path in folder.iterdir()} == expected | {"clip.json"}
    back = dr.GBuffer.read(folder)
    assert (back.present, back.fps, back.name) == (BUFFERS, 12, "shot")
    assert torch.equal(back.mask, original.mask)
    for name in ("basecolor", "diffuse_albedo", "roughness", "metallic"):
        difference = encode_buffer(name, getattr(back, name)) - encode_buffer(name, getattr(original, name))
        assert difference.abs().max() <= BYTE
    assert (back.depth - encode_buffer("depth", original.depth)).abs().max() < 1 / 65535  # 16 bits
    assert back.normal[:, :, 0].eq(0).all()
    cosine = (back.normal * original.normal).sum(dim=1)[:, 1:]
    assert cosine.min() > math.cos(math.radians(0.5))  # 8 bits cost 0.4 degrees at most


def test_exr_round_trip_is_exact_to_half_floats(tmp_path):
    original = gbuffer()
    folder = write_gbuffer(original, tmp_path, formats=("exr",))
    assert {path.name for path in folder.glob("*.exr")} == {f"{index:04d}.gbuffer.exr" for index in range(3)}
    channels = set(read_exr(folder / "0000.gbuffer.exr"))
    assert channels >= {f"basecolor.{c}" for c in "RGB"} | {f"normal.{c}" for c in "XYZ"} | {
        "depth.Z",
        "roughness.Y",
        "metallic.Y",
    }
    back = read_gbuffer(folder)
    for name, tensor in original.tensors():
        assert torch.allclose(getattr(back, name).float(), tensor.float(), rtol=HALF, atol=1e-7), name
    assert back.depth[:, :, 0].isinf().all()  # absolute, background at infinity


def test_exr_is_preferred_to_png(tmp_path):
    write_gbuffer(gbuffer(), tmp_path, formats=("png", "exr"))
    assert read_gbuffer(tmp_path / "shot").depth.isinf().any()


def test_videos_are_read_where_there_are_no_frames(tmp_path):
    original = gbuffer(frames=2, height=32, width=32)
    original = GBuffer(
        basecolor=torch.full_like(original.basecolor, 0.2), roughness=torch.full_like(original.roughness, 0.7), fps=12
    )
    assert write_gbuffer(original, tmp_path, formats=("mp4",)) == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"clip.basecolor.mp4", "clip.roughness.mp4"}
    assert list_gbuffers(tmp_path) == [tmp_path / "clip"]
    for path in (tmp_path, tmp_path / "clip"):
        back = read_gbuffer(path)
        assert back.present == ("basecolor", "roughness") and back.fps == 12
        assert torch.allclose(back.basecolor, original.basecolor, atol=0.02)
        assert torch.allclose(back.roughness, original.roughness, atol=0.02)


def test_one_buffer_exr_files_are_linear(tmp_path):
    pixels = np.full((2, 4), 0.25, np.float32)
    for frame in ("0000", "0001"):
        write_exr(tmp_path / f"{frame}.basecolor.exr", dict.fromkeys("RGB", pixels))
        write_exr(tmp_path / f"{frame}.normal.exr", {"X": 0 * pixels, "Y": 0 * pixels, "Z": 4 * pixels})
        write_exr(tmp_path / f"{frame}.depth.exr", {"Z": 12 * pixels})
        write_exr(tmp_path / f"{frame}.roughness.exr", {"anything": pixels})
        write_exr(tmp_path / f"{frame}.metallic.exr", dict.fromkeys("RGB", pixels))
    back = read_gbuffer(tmp_path)
    assert back.basecolor.eq(0.25).all() and back.depth.eq(3).all()
    assert back.roughness.eq(0.25).all() and back.metallic.eq(0.25).all()
    assert back.normal[0, :, 0, 0].tolist() == [0, 0, 1]
    assert back.mask.all() and len(back) == 2


def test_published_names_are_read_in_order(tmp_path):
    for chunk, frame, value in ((0, 0, 0.0), (0, 1, 0.2), (1, 0, 0.4), (1, 1, 0.6)):
        write_image(tmp_path / f"{chunk:04d}.{frame:04d}.roughness.png", torch.full((3, 2, 2), value))
        write_image(tmp_path / f"{chunk:04d}.{frame:04d}.basecolor.jpg", torch.full((3, 8, 8), value))
    back = read_gbuffer(tmp_path, buffers=["roughness"])
    assert back.roughness[:, 0, 0, 0].tolist() == pytest.approx([0, 0.2, 0.4, 0.6], abs=BYTE)
    assert back.present == ("roughness",)
    assert len(read_gbuffer(tmp_path, buffers=("basecolor",))) == 4


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_channel_buffers_may_be_grey_or_rgb(tmp_path, bits, channels):
    write_image(tmp_path / "0000.metallic.png", torch.full((channels, 2, 3), 0.6), bits=bits)
    assert read_gbuffer(tmp_path).metallic.flatten().tolist() == pytest.approx([0.6] * 6, abs=BYTE)


def test_the_mask_comes_from_normals_or_depth_or_is_unknown(tmp_path):
    original = gbuffer()
    write_gbuffer(GBuffer(normal=original.normal, name="normal"), tmp_path)
    assert torch.equal(read_gbuffer(tmp_path / "normal").mask, original.mask)
    write_gbuffer(GBuffer(depth=original.depth, name="depth"), tmp_path, formats=("exr",))
    assert torch.equal(read_gbuffer(tmp_path / "depth").mask, original.mask)
    write_gbuffer(GBuffer(roughness=original.roughness, name="rough"), tmp_path)
    assert read_gbuffer(tmp_path / "rough").mask is None


def test_several_sets_are_listed_and_one_must_be_chosen(tmp_path):
    for name in ("b10", "b9"):
        write_gbuffer(gbuffer(1, name=name), tmp_path / "out")
    assert [path.name for path in list_gbuffers(tmp_path / "out")] == ["b9", "b10"]
    with pytest.raises(InputError, match="2 clips"):
        read_gbuffer(tmp_path / "out")
    assert list_gbuffers(tmp_path / "out" / "b9") == [tmp_path / "out" / "b9"]
    assert read_gbuffer(tmp_path / "out" / "b10").name == "b10"


def test_writing_a_selection(tmp_path):
    folder = write_gbuffer(gbuffer(1), tmp_path, buffers=("depth", "normal"))
    assert {path.name for path in folder.glob("*.png")} == {"0000.depth.png", "0000.normal.png", "0000.mask.png"}


def test_a_missing_frame_is_listed(tmp_path):
    folder = write_gbuffer(gbuffer(4), tmp_path)
    (folder / "0002.normal.png").unlink()
    with pytest.raises(InputError, match=r"normal only in 3 \(missing: 0002\)"):
        read_gbuffer(folder)
    assert len(read_gbuffer(folder, buffers=("basecolor",))) == 4  # the advice works


def test_buffers_of_different_sizes_are_listed(tmp_path, unchecked):
    folder = write_gbuffer(gbuffer(1), tmp_path)
    write_image(folder / "0000.depth.png", torch.zeros(1, 6, 9))
    with pytest.raises(InputError, match=r"basecolor 1 frames of 8x6.*depth 1 frames of 9x6"):
        read_gbuffer(folder)


def test_frames_of_different_sizes_are_listed(tmp_path):
    folder = write_gbuffer(gbuffer(2), tmp_path)
    write_image(folder / "0001.depth.png", torch.zeros(1, 6, 9))
    with pytest.raises(InputError, match=r"8x6 in frame 0000, 9x6 in frame 0001|9x6 in frame 0001, 8x6 in frame 0000"):
        read_gbuffer(folder)


@pytest.mark.parametrize(("buffer", "value"), [("basecolor.R", math.nan), ("depth.Z", math.nan), ("normal.X", math.inf)])
def test_values_that_are_no_numbers_name_the_file(tmp_path, buffer, value):
    folder = write_gbuffer(gbuffer(2), tmp_path, formats=("exr",))
    channels = read_exr(folder / "0001.gbuffer.exr")
    channels[buffer][2, 3] = value
    write_exr(folder / "0001.gbuffer.exr", channels)
    with pytest.raises(InputError, match=r"0001\.gbuffer\.exr; found NaN or infinity in 1 pixels"):
        read_gbuffer(folder)


def test_unknown_buffer_names_get_a_suggestion(tmp_path):
    folder = write_gbuffer(gbuffer(1), tmp_path)
    with pytest.raises(InputError, match=r"did you mean roughness\?"):
        read_gbuffer(folder, buffers=("rougness",))
    with pytest.raises(InputError, match=r"did you mean basecolor\?"):
        write_gbuffer(gbuffer(1), tmp_path, buffers=("base_color",))
    write_image(tmp_path / "typo" / "0000.normals.png", torch.zeros(3, 2, 2))
    with pytest.raises(InputError, match=r"unknown buffer names normals; did you mean normal\?"):
        read_gbuffer(tmp_path / "typo")


def test_missing_buffers_are_none_unless_asked_for(tmp_path):
    folder = write_gbuffer(GBuffer(roughness=torch.rand(1, 1, 2, 2)), tmp_path)
    assert read_gbuffer(folder).basecolor is None
    with pytest.raises(InputError, match=r"missing: normal"):
        read_gbuffer(folder, buffers=("roughness", "normal"))
    with pytest.raises(InputError, match=r"missing: normal"):
        write_gbuffer(GBuffer(roughness=torch.rand(1, 1, 2, 2)), tmp_path, buffers=("normal",))


def test_what_is_no_gbuffer_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "frames" / "0000.png", torch.zeros(3, 2, 2))
    for path in ("absent", "empty", "frames", "frames/0000.png"):
        with pytest.raises(InputError):
            read_gbuffer(tmp_path / path)
    for path in ("absent", "empty", "frames"):
        with pytest.raises(InputError):
            list_gbuffers(tmp_path / path)
    with pytest.raises(InputError, match="G-buffers to write"):
        write_gbuffer(GBuffer(), tmp_path)
    with pytest.raises(InputError, match="output format"):
        write_gbuffer(gbuffer(1), tmp_path, formats=("tiff",))


def test_depth_of_nothing_is_infinite_whatever_number_stands_for_it(tmp_path):
    pixels = np.array([[0.4, 0.9], [1e10, np.inf]], np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Z": pixels}) as file:
        file.write(str(tmp_path / "0000.depth.exr"))
    read = read_gbuffer(tmp_path)
    assert torch.equal(read.depth[0, 0], torch.tensor([[0.4, 0.9], [torch.inf, torch.inf]]))
    assert read.depth_range() == pytest.approx((0.4, 0.9)) and not read.has_relative_depth()
    assert read.mask.flatten().tolist() == [True, True, False, False]


def test_one_pixel(tmp_path):
    original = gbuffer(1, 1, 1)
    for formats in (("png",), ("exr",)):
        folder = write_gbuffer(original, tmp_path / formats[0], formats=formats)
        assert read_gbuffer(folder).size == (1, 1)
