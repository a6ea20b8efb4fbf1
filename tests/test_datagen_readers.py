"""Readers of public data sets: each on a small folder in the set's own layout, with content whose answer is known."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_renderer.cli import main
from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import equirect_to_direction, look_at
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.datagen import read_shards
from diffusion_renderer.datagen.readers import READERS, read_matsynth, read_public, unwrap_mirror_ball
from diffusion_renderer.io.exr import write_exr
from diffusion_renderer.io.images import write_image
from diffusion_renderer.light import sample_panorama

H, W = 12, 16
#: Half floats in EXR files: 11 bits of precision.
HALF = 2.0**-11


def save_exr(path: Path, pixels: np.ndarray, letters: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_exr(path, {letter: np.float32(pixels[..., index]) for index, letter in enumerate(letters)})


def save_png(path: Path, image: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, image)


def flat(*values: float) -> np.ndarray:
    """An image of one colour."""
    return np.broadcast_to(np.float32(values), (H, W, len(values))).copy()


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


# InteriorVerse


@pytest.fixture
def interiorverse(tmp_path: Path) -> Path:
    def scene(root: str, name: str, normal: np.ndarray) -> None:
        depth, mask, material = flat(2500.0), flat(1.0), flat(0.4, 0.25, 0.0)
        depth[0, 0], mask[1, 1], material[2, 2] = np.inf, 0.0, 0.0
        layers = {"im": flat(4.0, 4.0, 4.0), "albedo": flat(0.5, 0.25, 0.125), "normal": normal, "material": material}
        for layer, pixels in layers.items():
            save_exr(tmp_path / root / name / f"000_{layer}.exr", pixels)
        save_exr(tmp_path / root / name / "000_depth.exr", np.repeat(depth, 3, -1))
        save_exr(tmp_path / root / name / "000_mask.exr", mask, "Y")

    scene("scenes_85", "a", flat(0.0, 0.6, 0.8))
    scene("scenes_85", "b", flat(0.5, 0.8, 0.9))  # the same normal as 0.5 n + 0.5
    (tmp_path / "scenes_85" / "train.txt").write_text("b\nnot_downloaded\n")
    return tmp_path


def test_interiorverse_units_masks_and_normals(interiorverse: Path) -> None:
    samples = list(read_public("interiorverse", interiorverse))
    assert [sample.meta["scene"] for sample in samples] == ["a", "b"]
    for sample in samples:
        buffers, mask = sample.gbuffer, sample.gbuffer.mask
        assert (~mask).nonzero()[:, 2:].tolist() == [[0, 0], [1, 1], [2, 2]]
        assert torch.allclose(buffers.depth[mask], torch.tensor(2.5), rtol=HALF) and torch.isinf(buffers.depth[~mask]).all()
        seen = mask[0, 0]
        for name, value in (("basecolor", (0.5, 0.25, 0.125)), ("roughness", (0.4,)), ("metallic", (0.25,))):
            assert torch.allclose(getattr(buffers, name)[0][:, seen].T, torch.tensor(value), rtol=HALF), name
        # Half floats in the file: an angle of 0.001.
        assert torch.allclose(buffers.normal[0][:, seen].T, torch.tensor([0.0, 0.6, 0.8]), atol=1e-3)
        assert (buffers.normal[0][:, ~seen] == 0).all()
        # One colour everywhere: the 90th percentile is that colour.
        assert torch.allclose(sample.clip.frames, torch.tensor(0.8), atol=1e-4)
        assert sample.meta["exposure"] == pytest.approx(float(srgb_eotf(torch.tensor(0.8))) / 4)
        assert sample.environment is None and sample.camera is None and buffers.diffuse_albedo is None
        assert sample.meta["fov_x_deg"] == 85.0 and sample.meta["near"] == pytest.approx(2.5, rel=HALF)
    assert [sample.meta["converted"]["normal"] for sample in samples] == ["as stored, in [-1, 1]", "2 v - 1"]
    assert samples[0].meta["files"][0] == "scenes_85/a/000_im.exr"
    json.dumps(samples[0].meta)


def test_interiorverse_splits_and_missing_files(interiorverse: Path) -> None:
    assert [sample.meta["scene"] for sample in read_public("interiorverse", interiorverse, split="train")] == ["b"]
    with pytest.raises(InputError, match=r"missing: val\.txt"):
        read_public("interiorverse", interiorverse, split="val")
    with pytest.raises(InputError, match="separate stills"):
        read_public("interiorverse", interiorverse, frames=4)
    (interiorverse / "scenes_85" / "a" / "000_normal.exr").unlink()
    with pytest.raises(InputError, match=r"missing: 000_normal\.exr"):
        next(read_public("interiorverse", interiorverse))


# HyperSim


@pytest.fixture
def hypersim(tmp_path: Path) -> Path:
    """Three frames (0, 1, 3) of a camera before a plane at z = -3 m; frame 0 has no colour but its parts."""
    h5py = pytest.importorskip("h5py", reason="needs the extra `data` (h5py)")

    def save(path: str, array: np.ndarray) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(tmp_path / path, "w") as file:
            file["dataset"] = array

    x, y = np.meshgrid((np.arange(W) + 0.5) / W * 2 - 1, 1 - (np.arange(H) + 0.5) / H * 2)
    tangent = math.tan(math.radians(30))
    distance = 3.0 * np.sqrt(1 + (tangent * x) ** 2 + (tangent * H / W * y) ** 2)
    distance[0, 0] = np.nan
    entity = np.full((H, W), 7, np.int32)
    entity[0, 1] = -1
    rng = np.random.default_rng(0)
    reflectance, illumination = rng.uniform(0.1, 0.9, (H, W, 3)), rng.uniform(0.5, 4.0, (H, W, 3))
    residual = rng.uniform(0.0, 0.2, (H, W, 3))
    colour = reflectance * illumination + residual
    final, geometry = (f"ai_001_002/images/scene_cam_00_{kind}_hdf5/frame" for kind in ("final", "geometry"))
    for frame in (0, 1, 3):
        save(f"{geometry}.{frame:04d}.depth_meters.hdf5", np.float32(distance))
        save(f"{geometry}.{frame:04d}.normal_cam.hdf5", np.float16(flat(0.0, 0.0, 1.0)))
        save(f"{geometry}.{frame:04d}.render_entity_id.hdf5", entity)
        parts = {"diffuse_reflectance": reflectance, "diffuse_illumination": illumination, "residual": residual}
        for name, value in parts.items() if frame == 0 else {"color": colour, **parts}.items():
            save(f"{final}.{frame:04d}.{name}.hdf5", np.float32(value))
    # At (1, 2, 3) asset units, looking along world +y with +z up: camera x = x, y = z, z = -y.
    save("ai_001_002/_detail/cam_00/camera_keyframe_positions.hdf5", np.tile([1.0, 2.0, 3.0], (4, 1)))
    turned = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    save("ai_001_002/_detail/cam_00/camera_keyframe_orientations.hdf5", np.tile(turned, (4, 1, 1)))
    (tmp_path / "ai_001_002" / "_detail" / "metadata_scene.csv").write_text(
        "parameter_name,parameter_value\nmeters_per_asset_unit,0.5\n"
    )
    (tmp_path / "metadata_images_split_scene_v1.csv").write_text(
        "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name\n"
        "ai_001_002,cam_00,0,True,,train\nai_001_002,cam_00,3,True,,test\n"
    )
    return tmp_path


def test_hypersim_depth_colour_and_camera(hypersim: Path) -> None:
    samples = list(read_public("hypersim", hypersim))
    assert [sample.meta["frames"] for sample in samples] == [[0], [1], [3]]
    for sample in samples:
        buffers, mask = sample.gbuffer, sample.gbuffer.mask
        assert (~mask).nonzero()[:, 2:].tolist() == [[0, 0], [0, 1]]
        # A plane before the camera has one z-depth; float32 of a product of two.
        assert torch.allclose(buffers.depth[mask], torch.tensor(3.0), rtol=1e-6) and torch.isinf(buffers.depth[~mask]).all()
        assert buffers.present == ("normal", "depth", "diffuse_albedo")
        assert (buffers.normal[0, 2][mask[0, 0]] == 1).all() and (buffers.normal[0, :, 0, 0] == 0).all()
        expected = torch.eye(4)
        expected[:3, 3] = torch.tensor([0.5, 1.5, -1.0])
        assert torch.allclose(sample.camera.pose[0], expected) and sample.camera.fov_x.tolist() == [60.0]
    json.dumps([sample.meta for sample in samples])
    composed, given = samples[0], samples[1]
    assert torch.allclose(composed.clip.frames, given.clip.frames, atol=1e-6)
    assert given.meta["composition_error"] < 1e-6 and composed.meta["composition_error"] is None
    assert given.gbuffer.diffuse_albedo.max() < 0.9 and (given.clip.frames > 0.99).any()  # clipped, as it should be


def test_hypersim_exposure_puts_the_90th_percentile_at_display_0_8(hypersim: Path) -> None:
    sample = next(read_public("hypersim", hypersim))
    linear = srgb_eotf(sample.clip.frames)
    weights = torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)
    luminance = (linear * weights).sum(1, keepdim=True)[sample.gbuffer.mask]
    # A few of the pixels' channels are clipped, which lowers the luminance of the brightest only.
    assert float(srgb_oetf(luminance.quantile(0.9))) == pytest.approx(0.8, abs=0.02)


def test_hypersim_clips_do_not_cross_gaps_and_splits_are_read(hypersim: Path) -> None:
    clips = list(read_public("hypersim", hypersim, frames=2))
    assert [clip.meta["frames"] for clip in clips] == [[0, 1], [3]]
    assert clips[0].clip.frames.shape == (2, 3, H, W) and len(clips[0].camera) == 2
    assert [sample.meta["frames"] for sample in read_public("hypersim", hypersim, split="test")] == [[3]]
    with pytest.raises(InputError, match="split val"):
        read_public("hypersim", hypersim, split="val")


def test_hypersim_uses_the_scene_s_own_rays(hypersim: Path) -> None:
    """With M_cam_from_uv of a camera of 90 degrees, the same distances are another depth."""
    names = ",".join(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3))
    row = f"1,0,0,0,{H / W},0,0,0,-1"
    (hypersim / "metadata_camera_parameters.csv").write_text(f"scene_name,{names}\nai_001_002,{row}\n")
    sample = next(read_public("hypersim", hypersim))
    u, v = 1 / W, 1 / H  # the pixel right of and below the centre
    tangent = math.tan(math.radians(30))
    distance = 3.0 * math.sqrt(1 + (tangent * u) ** 2 + (tangent * H / W * v) ** 2)
    expected = distance / math.sqrt(1 + u**2 + (H / W * v) ** 2)
    assert float(sample.gbuffer.depth[0, 0, H // 2, W // 2]) == pytest.approx(expected, rel=1e-6)
    assert sample.camera.fov_x[0] == pytest.approx(90.0, abs=1e-3) and not sample.meta["tilt_shift"]


# DL3DV-10K


def save_transforms(path: Path, names: list[str], poses: list[torch.Tensor], **intrinsics: float | str) -> None:
    frames = [{"file_path": name, "transform_matrix": pose.tolist()} for name, pose in zip(names, poses, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**intrinsics, "frames": frames}))


@pytest.fixture
def dl3dv(tmp_path: Path) -> Path:
    """Five images, listed in the wrong order; frame i is grey i / 10, its camera at (i, 0, 2), upright in a z-up world."""
    upright = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 2], [0, 0, 0, 1]])
    names, poses = [], []
    for index in (3, 1, 5, 2, 4):
        save_png(tmp_path / "1K" / "abc" / "images_4" / f"frame_{index:05d}.png", torch.full((3, H, W), index / 10))
        pose = upright.clone()
        pose[0, 3] = index
        names.append(f"images/frame_{index:05d}.png")
        poses.append(pose)
    save_transforms(
        tmp_path / "1K" / "abc" / "transforms.json", names, poses, fl_x=1920.0, w=3840, camera_model="OPENCV", k1=0.1
    )
    return tmp_path


def test_dl3dv_clips_and_poses(dl3dv: Path) -> None:
    clips = list(read_public("dl3dv", dl3dv, frames=2))
    assert [clip.clip.frames[:, 0, 0, 0].mul(10).round().int().tolist() for clip in clips] == [[1, 2], [3, 4]]
    camera = clips[1].camera
    # Upright in a world with +z up is the identity in one with +y up; (i, 0, 2) becomes (i, 2, 0).
    assert torch.equal(camera.rotation, torch.eye(3).expand(2, 3, 3))
    assert camera.pose[:, :3, 3].tolist() == [[3.0, 2.0, 0.0], [4.0, 2.0, 0.0]]
    assert torch.allclose(camera.fov_x, torch.tensor(90.0))
    assert clips[0].gbuffer.present == () and clips[0].gbuffer.mask is None and clips[0].environment is None
    assert len(clips[0].gbuffer) == 0 and clips[0].gbuffer.depth_range() is None
    json.dumps([clip.meta for clip in clips])
    assert clips[0].meta["distortion"] == {"k1": 0.1} and clips[0].meta["near"] is None
    assert clips[0].meta["files"][1] == "1K/abc/images_4/frame_00001.png"
    whole = list(read_public("dl3dv", dl3dv, split="1K"))
    assert [len(clip.clip) for clip in whole] == [5]  # shorter than a clip: all of it


def test_dl3dv_errors(dl3dv: Path) -> None:
    with pytest.raises(InputError, match="subset folder 2K"):
        read_public("dl3dv", dl3dv, split="2K")
    path = dl3dv / "1K" / "abc" / "transforms.json"
    content = json.loads(path.read_text())
    (dl3dv / "1K" / "abc" / "images_4" / "frame_00002.png").unlink()
    with pytest.raises(InputError, match=r"missing: frame_00002\.png"):
        list(read_public("dl3dv", dl3dv))
    for change, message in (({"camera_model": "OPENCV_FISHEYE"}, "perspective"), ({"fl_x": None}, "cameras in")):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(InputError, match=message):
            list(read_public("dl3dv", dl3dv))
    content["frames"][0]["transform_matrix"][0][0] = 2.0
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="rigid"):
        list(read_public("dl3dv", dl3dv))


# MatSynth


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


# Multi-illumination


def smooth_radiance(direction: torch.Tensor) -> torch.Tensor:
    """A light without symmetry, positive, with every axis in it."""
    x, y, z = direction.unbind(-1)
    return torch.stack((1.5 + x, 1.5 + 0.8 * y + 0.3 * x * z, 1.5 + z), dim=-1)


def mirror_ball(size: int, radiance: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The ball as an orthographic camera sees it; magenta outside, so that reading the background shows."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-line, line, indexing="ij")
    inside = x**2 + y**2 < 1
    normal = torch.stack((x, y, (1 - x**2 - y**2).clamp_min(0).sqrt()), dim=-1)
    view = torch.tensor([0.0, 0.0, 1.0])
    reflected = 2 * normal[..., 2:] * normal - view
    return torch.where(inside[..., None], radiance(reflected), torch.tensor([9.0, 0.0, 9.0])).permute(2, 0, 1)


def directions(height: int) -> torch.Tensor:
    v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(2 * height) + 0.5) / (2 * height), indexing="ij")
    return equirect_to_direction(u, v)


def test_the_mirror_ball_gives_back_its_panorama() -> None:
    panorama = unwrap_mirror_ball(mirror_ball(256, smooth_radiance), height=32)
    assert panorama.shape == (3, 32, 64)
    direction = directions(32)
    error = (panorama - smooth_radiance(direction).permute(2, 0, 1)).abs().amax(0)
    # Worst measured 0.00045 more than 37 degrees away from -z: bilinear reading of 256 pixels.
    assert error[direction[..., 2] > -0.8].max() < 0.002
    # What is behind the ball comes from its rim, and must not come from the background.
    assert panorama[0].max() < 3.0


def test_a_mirror_ball_shows_what_is_right_of_it_on_the_right() -> None:
    """One bright direction at a time, through `sample_panorama`, as the renderers read it."""
    for axis in torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]]):
        ball = mirror_ball(128, lambda d, axis=axis: ((d * axis).sum(-1, keepdim=True) > 0.9).float().expand(*d.shape[:-1], 3))
        environment = EnvironmentMap(unwrap_mirror_ball(ball))
        assert sample_panorama(environment, axis[None]).min() > 0.99
        assert sample_panorama(environment, torch.tensor([[0.6, 0.6, math.sqrt(0.28)]])).max() < 0.01


def save_illumination(scene: Path, lights: range, probes: bool) -> None:
    ball = mirror_ball(32, smooth_radiance).permute(1, 2, 0).numpy()
    for light in lights:
        save_exr(scene / f"dir_{light}_mip2.exr", flat(*[0.5 * (light + 1)] * 3))
        if probes:
            save_exr(scene / "probes" / f"dir_{light}_chrome256.exr", ball * (light + 1))


def test_multi_illumination_lights_and_exposure(tmp_path: Path) -> None:
    save_illumination(tmp_path / "everett_kitchen2", range(3), probes=True)
    save_illumination(tmp_path / "main_office", range(2), probes=True)
    samples = list(read_public("multi-illumination", tmp_path))
    assert [sample.meta["scene"] for sample in samples] == ["everett_kitchen2", "main_office"]
    json.dumps([sample.meta for sample in samples])
    sample = samples[0]
    assert len(sample.relit) == 2 and torch.equal(sample.lookup, torch.eye(3)[None])
    assert sample.gbuffer.present == () and sample.meta["fov_x_deg"] is None
    direction = torch.nn.functional.normalize(torch.tensor([[0.3, 0.5, 0.6]]), dim=-1)
    for index, (clip, environment) in enumerate(
        [(sample.clip, sample.environment)] + [(r.clip, r.environment) for r in sample.relit]
    ):
        exposure = sample.meta["lights"][index]["exposure"]
        assert torch.allclose(clip.frames, torch.tensor(0.8), atol=1e-3)
        assert exposure * 0.5 * (index + 1) == pytest.approx(float(srgb_eotf(torch.tensor(0.8))), rel=2 * HALF)
        # The probe gets the image's exposure. A ball of 32 pixels: worst measured 0.3%.
        expected = smooth_radiance(direction) * (index + 1) * exposure
        assert torch.allclose(sample_panorama(environment, direction), expected, rtol=0.02)
    assert [s.meta["scene"] for s in read_public("multi-illumination", tmp_path, split="test")] == ["everett_kitchen2"]
    assert [s.meta["scene"] for s in read_public("multi-illumination", tmp_path, split="train")] == ["main_office"]


def test_multi_illumination_without_probes(tmp_path: Path) -> None:
    save_illumination(tmp_path / "scene", range(3), probes=False)
    samples = list(read_public("multi-illumination", tmp_path / "scene"))
    assert [sample.meta["lights"][0]["direction"] for sample in samples] == [0, 1, 2]
    assert all(sample.environment is None and sample.camera is None and not sample.relit for sample in samples)
    assert samples[0].meta["files"] == ["scene/dir_0_mip2.exr"]


def test_multi_illumination_jpeg_is_shown_as_it_is(tmp_path: Path) -> None:
    save_png(tmp_path / "s" / "dir_0_mip2.jpg", torch.full((3, H, W), 0.6))
    save_png(tmp_path / "s" / "probes" / "dir_0_chrome256.jpg", torch.full((3, 32, 32), 0.5))
    [sample] = list(read_public("multi-illumination", tmp_path))
    assert torch.allclose(sample.clip.frames, torch.tensor(0.6), atol=1 / 255)
    assert torch.allclose(sample.environment.radiance, srgb_eotf(torch.tensor(0.5)), atol=2 / 255)
    save_png(tmp_path / "s" / "probes" / "dir_0_chrome256.jpg", torch.full((3, 32, 40), 0.5))
    with pytest.raises(InputError, match="square"):
        list(read_public("multi-illumination", tmp_path))


# Stanford-ORB


@pytest.fixture
def stanford_orb(tmp_path: Path) -> Path:
    scene, truth = tmp_path / "blender_HDR" / "teapot_scene001", tmp_path / "ground_truth" / "teapot_scene001"
    mask = torch.zeros(1, H, W)
    mask[:, 3:9, 4:12] = 1
    for part, stem in (("train", "0001"), ("test", "0002"), ("test", "0003")):
        save_exr(scene / part / f"{stem}.exr", flat(0.25, 0.25, 0.25))
        save_png(scene / f"{part}_mask" / f"{stem}.png", mask)
        if part == "test":
            for folder, value in (("surface_normal", flat(0.0, 0.6, 0.8)), ("z_depth", flat(2.0)[..., 0] * mask[0].numpy())):
                (truth / folder).mkdir(parents=True, exist_ok=True)
                np.save(truth / folder / f"{stem}.npy", value)
            save_png(truth / "pseudo_gt_albedo" / f"{stem}.png", torch.full((3, H, W), 0.5))
            # skylibs' panorama: centre -z, right half +x.
            stored = smooth_radiance(directions(16) * torch.tensor([-1.0, 1.0, -1.0]))
            save_exr(truth / "env_map" / f"{stem}.exr", stored.numpy())
    pose = look_at(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
    save_transforms(scene / "transforms_train.json", ["./train/0001"], [pose], camera_angle_x=0.5)
    save_transforms(scene / "transforms_test.json", ["./test/0003", "./test/0002"], [pose, torch.eye(4)], camera_angle_x=0.5)
    return tmp_path


def test_stanford_orb_ground_truth_and_light(stanford_orb: Path) -> None:
    train, *test = list(read_public("stanford-orb", stanford_orb))
    assert [sample.meta["split"] for sample in (train, *test)] == ["train", "test", "test"]
    assert train.gbuffer.present == () and train.environment is None and train.gbuffer.mask.sum() == 48
    json.dumps([sample.meta for sample in (train, *test)])
    sample = test[1]
    buffers, mask = sample.gbuffer, sample.gbuffer.mask
    assert sample.clip.name == "teapot_scene001_test_0003"
    assert (buffers.depth[mask] == 2).all() and torch.isinf(buffers.depth[~mask]).all()
    assert (
        torch.allclose(buffers.normal[0][:, mask[0, 0]].T, torch.tensor([0.0, 0.6, 0.8]))
        and (buffers.normal[0, :, 0, 0] == 0).all()
    )
    # Half a step of 8 bits.
    assert torch.allclose(srgb_oetf(buffers.basecolor[0][:, mask[0, 0]]), torch.tensor(0.5), atol=0.5 / 255 + 1e-5)
    assert buffers.roughness is None and buffers.metallic is None
    assert sample.camera.fov_x[0] == pytest.approx(math.degrees(0.5))
    assert torch.allclose(sample.camera.pose[0], look_at(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)))
    # The panorama is in camera space: direction d of the camera shows it at d, whatever the pose.
    assert torch.allclose(sample.lookup, torch.eye(3)[None], atol=1e-6)
    for direction in torch.nn.functional.normalize(
        torch.tensor([[0.9, 0.1, 0.4], [-0.5, 0.5, 0.2], [0.1, -0.3, -0.9]]), dim=-1
    ):
        expected = smooth_radiance(direction) * sample.meta["exposure"]
        # Bilinear reading of 16 rows: worst measured 0.7%.
        assert torch.allclose(sample_panorama(sample.environment, direction[None])[0], expected, rtol=0.02)
    assert torch.allclose(sample.clip.frames, torch.tensor(0.8), atol=1e-3)


def test_stanford_orb_splits_clips_and_missing_files(stanford_orb: Path) -> None:
    [clip] = list(read_public("stanford-orb", stanford_orb / "blender_HDR", split="test", frames=2))
    assert len(clip.clip) == len(clip.camera) == 2 and clip.environment is None and clip.gbuffer.depth.shape == (2, 1, H, W)
    assert clip.meta["files"][0] == "blender_HDR/teapot_scene001/test/0002.exr"
    shutil.copytree(stanford_orb / "blender_HDR" / "teapot_scene001", stanford_orb / "blender_LDR" / "teapot_scene001")
    for stem in ("0002", "0003"):
        save_png(stanford_orb / "blender_LDR" / "teapot_scene001" / "test" / f"{stem}.png", torch.full((3, H, W), 0.4))
    ldr = next(read_public("stanford-orb", stanford_orb / "blender_LDR", split="test"))
    assert torch.allclose(ldr.clip.frames, torch.tensor(0.4), atol=1e-3) and ldr.meta["exposure"] == 1.0
    with pytest.raises(InputError, match="did you mean test"):
        read_public("stanford-orb", stanford_orb, split="tests")
    (stanford_orb / "blender_HDR" / "teapot_scene001" / "test_mask" / "0002.png").unlink()
    with pytest.raises(InputError, match=r"missing: test_mask/0002\.png"):
        list(read_public("stanford-orb", stanford_orb, split="test"))


def test_importing_the_readers_needs_nothing_of_the_extra() -> None:
    heavy = "{'mitsuba', 'h5py', 'trimesh', 'fcl', 'manifold3d'}"
    code = f"import sys, diffusion_renderer.datagen.readers; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["interiorverse", "dl3dv", "multi-illumination", "stanford-orb"])
def test_public_sets_become_shards(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`dataset convert` on a fixture: what the set lacks is absent in the shards too, the rest comes back."""
    if name == "multi-illumination":
        folder = tmp_path / "set"
        save_illumination(folder / "kitchen", range(25), probes=True)
    else:
        folder = request.getfixturevalue(name.replace("-", "_"))
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
