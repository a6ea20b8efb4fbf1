"""Single images: bit depths, grey, alpha, orientation, linear EXR, damage."""

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip
from diffusion_renderer.io import read_clip, read_image, write_clip, write_image
from diffusion_renderer.io.exr import read_exr, write_exr

HALF = 1e-3  # half float: 2^-11 relative


def picture(height: int = 5, width: int = 7) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [(".png", 0.002), (".tiff", 0.002), (".jpg", 0.03), (".webp", 0.03), (".exr", 0.002)]
)
def test_an_image_comes_back(tmp_path, suffix, tolerance):
    # A smooth picture: 8 bits round by 0.002, the lossy formats at quality 95 measure below 0.02.
    ramp = torch.linspace(0, 1, 32)
    image = torch.stack((ramp.expand(24, 32), ramp.flip(0).expand(24, 32), torch.full((24, 32), 0.4)))
    path = write_image(tmp_path / f"a{suffix}", image)
    assert (read_image(path) - image).abs().max() <= tolerance
    clip = read_clip(path)
    assert clip.frames.shape == (1, 3, 24, 32) and clip.frames.dtype == torch.float32 and clip.name == "a"


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_stay_exact(tmp_path, suffix, channels):
    image = (torch.arange(channels * 12).view(channels, 3, 4) * 1000 + 7) / 65535
    path = write_image(tmp_path / f"a{suffix}", image, bits=16)
    assert torch.equal((read_image(path) * 65535).round(), (image * 65535).round())
    assert read_clip(path).frames.shape == (1, 3, 3, 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".exr"])
def test_one_pixel_is_an_image(tmp_path, size, suffix):
    path = write_image(tmp_path / f"a{suffix}", torch.full((3, *size), 0.5))
    clip = read_clip(path)
    assert clip.frames.shape == (1, 3, *size)
    assert torch.allclose(clip.frames, torch.tensor(0.5), atol=0.01)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_of_png_and_tiff_becomes_rgb(tmp_path, mode):
    suffix = ".tiff" if mode == "CMYK" else ".png"
    Image.fromarray(np.full((4, 6), 255, np.uint8)).convert("L" if mode == "I;16" else mode).save(tmp_path / f"a{suffix}")
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 65535, np.uint16)).save(tmp_path / "a.png")
    clip = read_clip(tmp_path / f"a{suffix}")
    assert clip.frames.shape == (1, 3, 4, 6)
    assert torch.allclose(clip.frames, torch.tensor(1.0))


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_lies_over_black(tmp_path, bits):
    top = 2**bits - 1
    pixels = np.full((2, 2, 4), top, np.uint8 if bits == 8 else np.uint16)
    pixels[..., 3] = [[0, top // 2], [top, top]]
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    frame = read_clip(tmp_path / "a.png").frames[0]
    assert torch.allclose(frame[0], torch.tensor([[0.0, 0.5], [1.0, 1.0]]), atol=0.003)


def test_a_transparent_palette_lies_over_black(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 255, 255, 255, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert read_clip(tmp_path / "a.png").frames[0, :, 0].T.tolist() == [[0, 0, 0], [1, 0, 0]]


def test_a_turned_photograph_is_righted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_clip(tmp_path / "a.jpg").size == (4, 8)


def test_exr_is_linear_and_shown_at_exposure_one(tmp_path):
    linear = np.array([[[0.18, 0.5, 4.0], [np.nan, np.inf, -1.0]]], np.float32)
    write_exr(tmp_path / "a.exr", dict(zip("RGB", np.moveaxis(linear, -1, 0), strict=True)))
    frame = read_clip(tmp_path / "a.exr").frames[0]
    assert torch.allclose(frame[:, 0, 0], srgb_oetf(torch.tensor([0.18, 0.5, 1.0])), atol=HALF)
    assert torch.allclose(frame[:, 0, 1], torch.tensor([0.0, 1.0, 0.0]), atol=HALF)
    write_clip(Clip(picture()[None]), tmp_path / "b.exr")
    stored = read_exr(tmp_path / "b.exr")
    assert np.allclose(stored["G"], srgb_eotf(picture())[1].numpy(), rtol=HALF, atol=1e-6)


def test_exr_pictures_in_a_layer_and_in_grey(tmp_path):
    pixels = np.full((2, 3), 0.25, np.float32)
    write_exr(tmp_path / "layer.exr", {f"beauty.{letter}": pixels for letter in "RGB"} | {"depth.Z": pixels * 9})
    write_exr(tmp_path / "grey.exr", {"Y": pixels, "A": pixels})
    for name in ("layer", "grey"):
        assert torch.allclose(read_clip(tmp_path / f"{name}.exr").frames, srgb_oetf(torch.tensor(0.25)), atol=HALF)
    write_exr(tmp_path / "data.exr", {"depth.Z": pixels, "id.X": pixels})
    with pytest.raises(InputError, match=r"RGB channels .* depth.Z, id.X"):
        read_clip(tmp_path / "data.exr")


def test_float_tiff_is_display_referred_and_clipped(tmp_path):
    tifffile.imwrite(tmp_path / "a.tiff", np.array([[[-1, 0.5, 2], [np.nan, 0, 1]]], np.float32), photometric="rgb")
    assert read_image(tmp_path / "a.tiff").permute(1, 2, 0).tolist() == [[[0, 0.5, 1], [0, 0, 1]]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".exr"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_damaged_images_are_refused_in_one_line(tmp_path, suffix, damage):
    path = write_image(tmp_path / f"a{suffix}", picture(64, 64))
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"this is not an image"}[damage])
    with pytest.raises(InputError) as error:
        read_clip(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_image_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing there"):
        read_clip(tmp_path / "none.png")
    with pytest.raises(InputError, match="nothing there"):
        read_image(tmp_path / "none.png")


def test_sixteen_bit_values_beyond_the_range_are_clamped(tmp_path):
    path = write_image(tmp_path / "a.png", torch.tensor([[[-1.0, 2.0, float("nan")]]]))
    assert read_image(path).flatten().tolist() == [0, 1, 0]
