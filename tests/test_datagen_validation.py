"""Validation: an exact clip passes, and every planted fault is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_scene import exact_sample, trace, write_dataset, write_index, write_shard

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera, Clip, GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.settings import FORMATS
from diffusion_renderer.datagen.store.clip_checks import MAX_HIDDEN, Findings, check_reprojection
from diffusion_renderer.datagen.store.encode import encode_clip
from diffusion_renderer.datagen.store.files import decode_png, encode_exr, encode_labels, encode_png
from diffusion_renderer.datagen.store.reprojection import DepthMap, compare_frames
from diffusion_renderer.datagen.store.validation import CHECKS, Report, validate

Files = dict[str, bytes]


def check(folder: Path, files: Files) -> Report:
    """The report about a data set of one clip."""
    write_shard(folder, [files])
    return validate(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_an_exact_clip_passes(tmp_path: Path, format: str) -> None:
    done = []
    report = validate(write_dataset(tmp_path, 3, format), lambda *step: done.append(step))
    assert report.ok, report.to_text()
    assert (report.shards, report.clips, report.frames) == (1, 3, 9)
    assert set(report.passed) == set(CHECKS) and min(report.passed.values()) > 0
    assert "no faults" in report.to_text() and done[-1][:2] == (1, 1)


def test_a_clip_of_frames_only_passes(tmp_path: Path) -> None:
    """What a public data set lacks is not asked for."""
    clip = exact_sample().clip
    report = check(tmp_path, encode_clip(Sample(clip, replace(exact_sample().gbuffer, depth=None, normal=None))))
    assert report.ok, report.to_text()
    assert report.passed["reprojection"] == report.passed["poses"] == report.passed["light"] == 0


def change_json(files: Files, name: str, change: Callable[[dict], None]) -> Files:
    value = json.loads(files[name])
    change(value)
    return {**files, name: json.dumps(value).encode()}


def set_pose(row: int, column: int, value: float) -> Callable[[dict], None]:
    def change(cameras: dict) -> None:
        cameras["frames"][1]["transform_matrix"][row][column] += value

    return change


def scaled_normals(files: Files) -> Files:
    image = decode_png(files["0001.normal.png"])
    return {**files, "0001.normal.png": encode_png(0.5 + 0.9 * (image - 0.5))}


def turned_normals(files: Files) -> Files:
    return {**files, "0001.normal.png": encode_png(1 - decode_png(files["0001.normal.png"]))}


def light(value: float) -> bytes:
    radiance = torch.ones(3, 16, 32)
    radiance[1, 4, 5] = value
    return encode_exr(radiance)


def mirrored(cameras: dict) -> None:
    for row in cameras["frames"][1]["transform_matrix"][:3]:
        row[0] = -row[0]


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {key: data for key, data in files.items() if key != name}


#: (what is done to the files of a png8 clip, the check that must notice, the frame that must be named)
FAULTS: dict[str, tuple[Callable[[Files], Files], str, int | None]] = {
    "a camera moved aside": (lambda f: change_json(f, "cameras.json", set_pose(0, 3, 0.1)), "reprojection", 1),
    "a camera further away": (lambda f: change_json(f, "cameras.json", set_pose(2, 3, 0.2)), "reprojection", 1),
    "depth scaled": (
        lambda f: change_json(f, "clip.json", lambda m: m.update(near=1.15 * m["near"], far=1.15 * m["far"])),
        "reprojection",
        1,
    ),
    "an object whose motion is not told": (
        lambda f: change_json(f, "clip.json", lambda m: m["assets"]["objects"][1].pop("poses")),
        "reprojection",
        1,
    ),
    "a pose that is no rotation": (lambda f: change_json(f, "cameras.json", set_pose(0, 0, 0.05)), "poses", 1),
    "a mirrored pose": (lambda f: change_json(f, "cameras.json", mirrored), "poses", 1),
    "a field of view of 0": (
        lambda f: change_json(f, "cameras.json", lambda c: c["frames"][2].update(fov_x_deg=0.0)),
        "poses",
        2,
    ),
    "a light that does not turn rigidly": (
        lambda f: change_json(
            f, "lights.json", lambda v: v["light_rotation"].__setitem__(2, [[2, 0, 0], [0, 1, 0], [0, 0, 1]])
        ),
        "poses",
        2,
    ),
    "NaN in the light": (lambda f: {**f, "light.exr": light(torch.nan)}, "light", None),
    "negative light": (lambda f: {**f, "light_1.exr": light(-1.0)}, "light", None),
    "a black light": (lambda f: {**f, "light.exr": encode_exr(torch.zeros(3, 16, 32))}, "light", None),
    "a square light": (lambda f: {**f, "light.exr": encode_exr(torch.ones(3, 16, 16))}, "light", None),
    "normals that are too short": (scaled_normals, "normals", 1),
    "normals that look away": (turned_normals, "facing", 1),
    "a frame without its roughness": (without("0001.roughness.png"), "files", 1),
    "a last frame that is missing": (
        lambda f: {k: d for k, d in f.items() if not k.startswith("0002.")},
        "files",
        2,
    ),
    "a frame too many": (lambda f: {**f, "0003.rgb.png": f["0002.rgb.png"]}, "files", 3),
    "no cameras": (without("cameras.json"), "files", None),
    "no clip.json": (without("clip.json"), "files", None),
    "a relit frame that is missing": (without("0001.rgb_light1.png"), "files", 1),
    "a damaged PNG": (lambda f: {**f, "0001.depth.png": f["0001.depth.png"][:80]}, "decoding", None),
    "a mask of another size": (
        lambda f: {**f, **{f"{k:04d}.mask.png": encode_png(torch.ones(1, 8, 8)) for k in range(3)}},
        "sizes",
        None,
    ),
    "a black frame": (lambda f: {**f, "0001.rgb.png": encode_png(torch.zeros(3, 48, 64))}, "brightness", 1),
    "a burnt frame": (lambda f: {**f, "0001.rgb_light1.png": encode_png(torch.ones(3, 48, 64))}, "brightness", 1),
    "no exposure": (lambda f: change_json(f, "clip.json", lambda m: m.update(exposure=0.0)), "exposure", None),
    "near behind the camera": (lambda f: change_json(f, "clip.json", lambda m: m.update(near=-1.0)), "near_far", None),
    "depth that does not fill its range": (
        lambda f: {
            **f,
            **{f"{k:04d}.depth.png": encode_png(0.2 + 0.5 * decode_png(f[f"{k:04d}.depth.png"]), 16) for k in range(3)},
        },
        "near_far",
        None,
    ),
    "ids of objects that are not there": (
        lambda f: change_json(f, "clip.json", lambda m: m["assets"]["objects"].pop()),
        "ids",
        0,
    ),
    "ids beside the mask": (
        lambda f: {**f, "0001.ids.png": encode_labels(torch.ones(1, 48, 64, dtype=torch.uint8))},
        "ids",
        1,
    ),
    "a clip.json without its rate": (lambda f: change_json(f, "clip.json", lambda m: m.pop("fps")), "decoding", None),
    "objects that are no list": (lambda f: change_json(f, "clip.json", lambda m: m.update(assets=None)), "decoding", None),
    "an index out of order": (lambda f: change_json(f, "clip.json", lambda m: m.update(index=7)), "order", None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(name: str, tmp_path: Path, unchecked: None) -> None:
    spoil, what, frame = FAULTS[name]
    report = check(tmp_path, spoil(encode_clip(exact_sample(moving=True), "png8")))
    assert not report.ok
    named = [fault for fault in report.faults if fault.check == what]
    assert named, report.to_text()
    assert named[0].shard == "shard-000000.tar" and named[0].clip == "00000000"
    assert frame is None or frame in {fault.frame for fault in named}
    text = str(named[0])
    assert "expected" in text and "found" in text and "\n" not in text and text in report.to_text()


def test_faults_that_only_exr_can_hold(tmp_path: Path) -> None:
    made = exact_sample()
    metallic = made.gbuffer.metallic.clone()
    metallic[1, 0, 5, 5] = torch.nan
    spoiled = {
        "range": replace(made.gbuffer, metallic=metallic),
        "depth": replace(made.gbuffer, depth=torch.where(made.gbuffer.mask, -made.gbuffer.depth, torch.inf)),
        "normals": replace(made.gbuffer, normal=1.05 * made.gbuffer.normal),
    }
    for what, gbuffer in spoiled.items():
        report = check(tmp_path / what, encode_clip(replace(made, gbuffer=gbuffer), "exr"))
        assert what in report.failed, report.to_text()


def test_faults_of_the_archive(tmp_path: Path) -> None:
    path = write_dataset(tmp_path) / "shard-000000.tar"
    whole = path.read_bytes()

    def failed(data: bytes, indexed: bool) -> set[str]:
        path.write_bytes(data)
        if indexed:
            index = json.loads((tmp_path / "index.json").read_text())
            index["shards"][0] |= {"bytes": len(data)}
            (tmp_path / "index.json").write_text(json.dumps(index))
        return set(validate(tmp_path).failed)

    assert failed(whole, True) == set()
    middle = whole.index(b"IDAT") + 40
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    assert {"checksum", "decoding"} <= failed(flipped, True)
    assert {"archive", "checksum", "index"} <= failed(whole[: len(whole) // 2 - 300], True)
    assert {"archive"} <= failed(whole.rstrip(b"\0"), True)
    assert {"checksum", "index", "archive"} <= failed(b"", False)


def test_faults_of_the_folder(tmp_path: Path) -> None:
    files = encode_clip(exact_sample())
    report = check(tmp_path, files)
    assert report.ok
    (tmp_path / "shard-000001.tar").write_bytes((tmp_path / "shard-000000.tar").read_bytes())
    report = validate(tmp_path)  # a shard more than the index says; its clip has the index of the first one
    assert {"index", "order"} <= set(report.failed)
    write_index(tmp_path)
    (tmp_path / "shard-000000.tar").unlink()
    report = validate(tmp_path)
    assert any(fault.shard == "shard-000000.tar" and fault.found == "no such file" for fault in report.faults)
    (tmp_path / "index.json").unlink()
    assert "index" in validate(tmp_path).failed
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(InputError, match=r"shard-\*\.tar"):
        validate(tmp_path)


def test_a_file_that_comes_twice(tmp_path: Path) -> None:
    import tarfile

    path = write_dataset(tmp_path, 1) / "shard-000000.tar"
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("00000000/clip.json"))
    write_index(tmp_path)
    report = validate(tmp_path)
    assert any(fault.check == "archive" and "twice" in fault.found for fault in report.faults)


def test_all_faults_are_counted_and_some_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_renderer.datagen.store import validation

    monkeypatch.setattr(validation, "MAX_FAULTS", 2)
    files = encode_clip(exact_sample())
    report = check(tmp_path, {name: data for name, data in files.items() if ".depth." not in name})
    assert len(report.faults) == 2 and report.failed["files"] == 3 and "... and 1 more" in report.to_text()


# --- depth against poses, without files -------------------------------------------------------------------------------


def shares(sample: Sample, camera: Camera, scale: float = 1.0, motions: dict | None = None) -> float:
    """The least agreement over neighbouring frames and both directions."""
    pairs = [(0, 1), (1, 0), (1, 2), (2, 1)]
    maps = [DepthMap.of(scale * depth) for depth in sample.gbuffer.depth[:, 0]]
    return min(compare_frames(maps, camera, *pair, 0.0, sample.ids, motions).share for pair in pairs)


@pytest.mark.parametrize("moving", [False, True])
def test_small_errors_show_at_128_pixels(moving: bool) -> None:
    sample = exact_sample(size=(128, 96), moving=moving)
    motions = {2: torch.tensor(sample.meta["assets"]["objects"][1]["poses"], dtype=torch.float64)} if moving else {}
    # Measured: 1.000 without an error; 0.92 or less with each of these.
    assert shares(sample, sample.camera, motions=motions) > 0.999
    assert shares(sample, sample.camera, 1.03, motions) < 0.95
    assert shares(sample, sample.camera, 0.97, motions) < 0.95
    pose = sample.camera.pose.clone()
    pose[1, 0, 3] += 0.02
    assert shares(sample, Camera(pose, sample.camera.fov_x), motions=motions) < 0.95
    assert shares(sample, Camera(sample.camera.pose, sample.camera.fov_x + 2), motions=motions) < 0.95
    if moving:
        assert shares(sample, sample.camera) < 0.9


def test_what_the_ball_hides_is_no_contradiction() -> None:
    sample = exact_sample(2, size=(128, 96), moving=False)
    camera = sample.camera
    pair = compare_frames([DepthMap.of(depth) for depth in sample.gbuffer.depth[:, 0]], camera, 1, 0)
    assert pair.hidden > 20 and pair.contradict == 0 and pair.agree > 1000


# --- what turns -------------------------------------------------------------------------------------------------------


def turning_ball(who: str, shift: float = 0.0) -> Sample:
    """Two frames of a ball alone, which looks the same from all sides: one picture, two stories about it.

    Either the camera goes round the ball ("camera") or the ball turns the other way before a camera at rest ("ball"), by 100
    degrees, so that most of what one frame shows is behind the ball in the other. ``shift`` is how far the ball is said to move
    away from the camera at rest, which it does not.
    """
    angle = np.radians(100.0)
    turn = np.eye(4)
    turn[0, 0] = turn[2, 2] = np.cos(angle)
    turn[0, 2], turn[2, 0] = np.sin(angle), -np.sin(angle)
    pose = np.eye(4)
    pose[2, 3] = 4.0
    seen = trace(pose, 30.0, 96, 128, np.zeros(3))
    ball = torch.tensor(seen["ids"] == 2)
    depth = torch.where(ball, torch.tensor(seen["depth"]).float(), torch.inf).expand(2, 1, -1, -1)
    normal = (torch.tensor(seen["normal"]).float().permute(2, 0, 1) * ball).expand(2, -1, -1, -1)
    poses = [pose, turn @ pose] if who == "camera" else [pose, pose]
    item: dict = {"name": "ball"}
    if who == "ball":
        motion = np.linalg.inv(turn)
        motion[2, 3] = -shift
        item["poses"] = [np.eye(4).tolist(), motion.tolist()]
    return Sample(
        Clip(torch.full((2, 3, 96, 128), 0.5)),
        GBuffer(normal=normal, depth=depth),
        camera=Camera(torch.tensor(np.stack(poses), dtype=torch.float32), torch.full((2,), 30.0)),
        meta={"format": "exr", "assets": {"objects": [item]}},
        ids=ball.to(torch.uint8).expand(2, 1, -1, -1),
    )


def without_normals(sample: Sample) -> Sample:
    return replace(sample, gbuffer=replace(sample.gbuffer, normal=None))


def reprojected(sample: Sample) -> Findings:
    """What the check says about both directions."""
    findings = Findings()
    check_reprojection(sample, findings)
    assert findings.passed["reprojection"] + len(findings.faults) == 2  # neither direction was left out for want of pixels
    return findings


def test_what_turns_away_from_the_camera_is_not_hidden() -> None:
    sample = turning_ball("camera")
    maps = [DepthMap.of(depth) for depth in sample.gbuffer.depth[:, 0]]
    pair = compare_frames(maps, sample.camera, 0, 1, normals=sample.gbuffer.normal)
    # Measured: 726 pixels agree. By depth alone 79% are hidden, and nobody can tell that from a camera behind a wall.
    assert (pair.hidden, pair.contradict) == (0, 0) and pair.agree > 500
    assert compare_frames(maps, sample.camera, 0, 1).hidden_share > MAX_HIDDEN + 0.1
    assert not reprojected(sample).faults
    faults = reprojected(without_normals(sample)).faults
    assert len(faults) == 2 and all("79% hidden" in found for *_, found in faults)


def test_what_turns_itself_is_not_hidden() -> None:
    """Even without normals, for it is known to turn; the same picture with a camera that goes round is a fault (above)."""
    assert not reprojected(without_normals(turning_ball("ball"))).faults
    assert not reprojected(turning_ball("ball")).faults


def test_normals_turn_with_their_object() -> None:
    """A ball that turns and a camera that goes round it see the same, so the same pixels take part."""
    pairs = []
    for who in ("camera", "ball"):
        sample = turning_ball(who)
        maps = [DepthMap.of(depth) for depth in sample.gbuffer.depth[:, 0]]
        poses = sample.meta["assets"]["objects"][0].get("poses")
        motions = {1: torch.tensor(poses, dtype=torch.float64)} if poses else None
        pairs.append(compare_frames(maps, sample.camera, 0, 1, 0.0, sample.ids, motions, sample.gbuffer.normal))
    # Measured: equal. Rounding could move a pixel over a threshold.
    assert abs(pairs[0].agree - pairs[1].agree) <= 3 and pairs[0].hidden == pairs[1].hidden == 0


@pytest.mark.parametrize("spoil", [lambda sample: sample, without_normals])
def test_a_wrong_motion_of_what_turns_is_still_a_fault(spoil: Callable[[Sample], Sample]) -> None:
    # 0.1 of a distance of 3.2 to 4.
    assert reprojected(spoil(turning_ball("ball", shift=0.1))).faults
    assert reprojected(spoil(turning_ball("ball", shift=-0.1))).faults
