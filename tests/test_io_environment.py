"""Panoramas and cameras."""

import json
import math

import numpy as np
import pytest
import torch

import diffusion_renderer as dr
from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import look_at
from diffusion_renderer.core.types import Camera, EnvironmentMap
from diffusion_renderer.io import check_camera_count, read_cameras, read_environment, write_environment, write_image
from diffusion_renderer.io.exr import write_exr
from diffusion_renderer.light import mean_radiance


def panorama(height: int = 8) -> EnvironmentMap:
    radiance = torch.rand(3, height, 2 * height, generator=torch.Generator().manual_seed(0)) * 10
    radiance[:, 2, 3] = 5000
    return EnvironmentMap(radiance, "sunny")


@pytest.mark.parametrize(("suffix", "relative"), [(".exr", 2**-11), (".hdr", 2**-7)])
def test_a_panorama_comes_back(tmp_path, suffix, relative):
    original = panorama()
    path = original.write(tmp_path / f"sunny{suffix}")
    back = dr.EnvironmentMap.read(path)
    assert back.name == "sunny" and back.radiance.dtype == torch.float32
    # RGBE shares the exponent: a channel's error is relative to the brightest of the three.
    brightest = original.radiance.amax(dim=0, keepdim=True)
    assert ((back.radiance - original.radiance).abs() <= relative * brightest).all()


def test_exr_values_are_cleaned(tmp_path):
    pixels = np.array([[np.nan, np.inf], [-3, 1e5]], np.float32).repeat(2, axis=1)
    write_exr(tmp_path / "a.exr", dict.fromkeys("RGB", pixels))
    assert read_environment(tmp_path / "a.exr").radiance[0].unique().tolist() == [0, 65504]


def test_one_channel_and_black_panoramas(tmp_path):
    write_exr(tmp_path / "grey.exr", {"Y": np.full((4, 8), 0.5, np.float32)})
    assert read_environment(tmp_path / "grey.exr").radiance.eq(0.5).all()
    for suffix in (".exr", ".hdr"):
        black = EnvironmentMap(torch.zeros(3, 4, 8)).write(tmp_path / f"black{suffix}")
        assert read_environment(black).radiance.eq(0).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_ordinary_image_is_decoded_to_linear(tmp_path, suffix):
    path = write_image(tmp_path / f"a{suffix}", torch.full((3, 8, 16), 0.5))
    assert torch.allclose(read_environment(path).radiance, srgb_eotf(torch.tensor(0.5)), atol=0.005)


@pytest.mark.parametrize(
    ("height", "width", "fits"), [(8, 16, True), (8, 17, True), (8, 15, True), (8, 18, False), (8, 8, False)]
)
@pytest.mark.parametrize("suffix", [".png", ".exr"])
def test_panoramas_are_two_to_one(tmp_path, height, width, fits, suffix):
    path = write_image(tmp_path / f"a{suffix}", torch.full((3, height, width), 0.5))
    if fits:
        assert read_environment(path).radiance.shape == (3, height, width)
    else:
        with pytest.raises(InputError, match=f"found {width}x{height}; convert it to a 2:1 panorama"):
            read_environment(path)


def test_a_smaller_height_keeps_the_light(tmp_path):
    path = write_environment(panorama(32), tmp_path / "a.exr")
    small, whole = read_environment(path, height=8), read_environment(path)
    assert small.radiance.shape == (3, 8, 16)
    assert torch.allclose(mean_radiance(small), mean_radiance(whole), rtol=1e-4)
    assert read_environment(path, height=64).radiance.shape == (3, 32, 64)  # never enlarged
    with pytest.raises(InputError, match="1 or more"):
        read_environment(path, height=0)


def test_hdr_as_other_programs_write_it(tmp_path):
    # Uncompressed pixels, two exposures: what was stored is 2 x 0.25 times the radiance.
    header = b"#?RADIANCE\n# made by hand\nEXPOSURE=2\nFORMAT=32-bit_rle_rgbe\nEXPOSURE= 0.25\n\n-Y 1 +X 2\n"
    (tmp_path / "a.hdr").write_bytes(header + bytes([128, 64, 0, 129] * 2))
    assert read_environment(tmp_path / "a.hdr").radiance[:, 0, 0].tolist() == pytest.approx([2.0, 1.0, 0.0], abs=0.02)


@pytest.mark.parametrize("suffix", [".hdr", ".exr", ".png"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_damaged_panoramas_are_refused_in_one_line(tmp_path, suffix, damage):
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        write_image(path, panorama(32).radiance / 10)
    else:
        write_environment(panorama(32), path)
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"this is no panorama"}[damage])
    with pytest.raises(InputError) as error:
        read_environment(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for name, message in (("a.txt", "convert it"), ("none.hdr", "nothing there"), ("", "a folder")):
        with pytest.raises(InputError, match=message):
            read_environment(tmp_path / name)
    with pytest.raises(InputError, match=r"\.exr or \.hdr"):
        write_environment(panorama(), tmp_path / "a.png")


def test_shared_panoramas_are_read(shared):
    files = sorted((shared / "assets" / "hdri").glob("*.hdr"))
    assert files
    for file in files[:4]:
        assert read_environment(file).radiance.shape == (3, 512, 1024)


def test_cameras_come_back(tmp_path):
    poses = torch.stack([look_at(torch.tensor([math.sin(a), 0.5, math.cos(a)]), torch.zeros(3)) for a in (0.0, 1.0, 2.0)])
    camera = Camera(poses, torch.tensor([40.0, 45.0, 50.5]))
    path = camera.write(tmp_path)
    assert path == tmp_path / "cameras.json"
    assert set(json.loads(path.read_text())["frames"][0]) == {"transform_matrix", "fov_x_deg"}
    for place in (tmp_path, path):
        back = dr.Camera.read(place)
        assert torch.equal(back.pose, camera.pose) and torch.equal(back.fov_x, camera.fov_x)


def test_the_number_of_cameras_is_checked():
    check_camera_count(Camera.identity(3), 3)
    with pytest.raises(InputError, match="4 frames; found 3 cameras"):
        check_camera_count(Camera.identity(3), 4)


def frame(matrix, fov=50.0):
    return {"transform_matrix": matrix, "fov_x_deg": fov}


IDENTITY = torch.eye(4).tolist()
MIRRORED = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0])).tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cameras in"),
        ("[1, 2]", "cameras in"),
        ('{"poses": []}', "no 'frames'"),
        ({"frames": []}, "no frames"),
        ({"frames": [{"fov_x_deg": 50}]}, "no 'transform_matrix'"),
        ({"frames": [frame(torch.eye(3).tolist())]}, "found 3x3"),
        ({"frames": [frame(IDENTITY), frame([[1, 2], [3]])]}, "frame 1"),
        ({"frames": [frame((2 * torch.eye(4)).tolist())]}, "rigid"),
        ({"frames": [frame(MIRRORED)]}, "a mirrored rotation"),
        ({"frames": [frame([[math.nan] * 4] * 4)]}, "not finite"),
        ({"frames": [frame(IDENTITY, 0)]}, "between 0 and 180"),
        ({"frames": [frame(IDENTITY, "wide")]}, "between 0 and 180"),
        ({"frames": [{"transform_matrix": IDENTITY}]}, "fov_x_deg"),
        ({"frames": ["pose"]}, "transform_matrix"),
    ],
)
def test_bad_cameras_are_refused(tmp_path, content, message):
    (tmp_path / "cameras.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        read_cameras(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_camera_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cameras\.json; found nothing there"):
        read_cameras(tmp_path)
