"""Readers of sets with buffers or cameras: units, axes, masks and exposure of InteriorVerse, HyperSim and DL3DV-10K."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from public_sets import HALF, H, W, flat, write_dl3dv, write_interiorverse

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.readers import read_public

# --- InteriorVerse ----------------------------------------------------------------------------------------------------


@pytest.fixture
def interiorverse(tmp_path: Path) -> Path:
    return write_interiorverse(tmp_path)


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


# --- HyperSim ---------------------------------------------------------------------------------------------------------


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


# --- DL3DV-10K --------------------------------------------------------------------------------------------------------


@pytest.fixture
def dl3dv(tmp_path: Path) -> Path:
    return write_dl3dv(tmp_path)


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
