"""Output folders of other systems: every accepted layout is read, every mistake is listed, NaN is kept; exported inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import synthetic_clip

from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Relit
from diffusion_renderer.evaluation.export import export_inputs
from diffusion_renderer.evaluation.predictions import Expected, Predictions
from diffusion_renderer.io import read_cameras, read_clip, read_environment, read_gbuffer, write_clip, write_gbuffer
from diffusion_renderer.io.exr import write_exr
from diffusion_renderer.io.images import write_image
from diffusion_renderer.io.video import write_video

W, H = 16, 12
FORWARD = Expected("shot", "sky", 4, (W, H))
INVERSE = Expected("shot", "", 3, (32, 32), ("basecolor", "normal", "depth", "roughness", "metallic"))


def frames(count: int = 4) -> torch.Tensor:
    """Frames that 8 bits hold exactly; frame i is recognised by its red."""
    image = torch.randint(0, 256, (count, 3, H, W), generator=torch.Generator().manual_seed(1)) / 255
    image[:, 0] = (torch.arange(count)[:, None, None] + 1) / 255
    return image


def save(folder: Path, images: torch.Tensor, pattern: str = "{:04d}.rgb.png", first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        write_image(folder / pattern.format(index + first), image)


def predictions(folder: Path) -> Predictions:
    return Predictions(folder, "other")


def mistakes(folder: Path, *expected: Expected) -> str:
    with pytest.raises(InputError) as caught:
        predictions(folder).check(expected)
    assert "\n" not in str(caught.value)
    return caught.value.found


@pytest.mark.parametrize(
    ("place", "pattern", "first"),
    [
        ("shot_sky", "{:04d}.rgb.png", 0),
        ("shot_sky", "{:04d}.png", 0),
        ("shot_sky", "frame{}.png", 1),
        ("shot/sky", "{:04d}.rgb.png", 0),
        ("shot/sky", "0000.{:04d}.rgb.png", 0),
    ],
)
def test_frames_of_every_layout_come_back_exactly(tmp_path: Path, place: str, pattern: str, first: int) -> None:
    save(tmp_path / place, frames(), pattern, first)
    predictions(tmp_path).check([FORWARD])
    clip = predictions(tmp_path).load("shot", "sky")
    assert torch.equal(clip.frames, frames()) and clip.name == "shot_sky"


def test_our_own_writers_are_read(tmp_path: Path) -> None:
    write_clip(Clip(frames(), fps=12.0, name="shot_sky"), tmp_path, formats=("png", "exr"))
    predictions(tmp_path).check([FORWARD])
    clip = predictions(tmp_path).load("shot", "sky")
    # The EXR is preferred: half floats of linear light, worst measured 0.0001.
    assert (clip.frames - frames()).abs().max() < 0.001 and clip.fps == 12.0


@pytest.mark.parametrize("name", ["shot_sky.rgb.mp4", "shot_sky.mp4", "shot/sky.mp4"])
def test_videos_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    grey = torch.linspace(0.2, 0.8, 4)[:, None, None, None].expand(4, 3, H, W)
    write_video(tmp_path / name, grey, 24.0)
    predictions(tmp_path).check([FORWARD])
    # H.264 of flat grey frames: measured exact.
    assert (predictions(tmp_path).load("shot", "sky").frames - grey).abs().max() < 0.02
    assert "has 4 frames instead of 5" in mistakes(tmp_path, FORWARD._replace(frames=5))
    assert "has 16x12 instead of 16x16" in mistakes(tmp_path, FORWARD._replace(size=(16, 16)))


def test_a_still_may_be_one_image(tmp_path: Path) -> None:
    write_image(tmp_path / "shot_sky.png", frames()[0])
    predictions(tmp_path).check([FORWARD._replace(frames=1)])
    assert torch.equal(predictions(tmp_path).load("shot", "sky").frames, frames()[:1])


def test_nan_and_infinity_in_frames_survive(tmp_path: Path) -> None:
    place = tmp_path / "shot_sky"
    place.mkdir()
    linear = srgb_eotf(frames()).numpy()
    linear[2, 1, 3, 4], linear[3, 2, 5, 6] = np.nan, np.inf
    for index, image in enumerate(linear):
        write_exr(place / f"{index:04d}.rgb.exr", dict(zip("RGB", image, strict=True)))
    predictions(tmp_path).check([FORWARD])
    loaded = predictions(tmp_path).load("shot", "sky").frames
    assert loaded.isnan().nonzero().tolist() == [[2, 1, 3, 4], [3, 2, 5, 6]]


def test_missing_clips_and_frames_are_listed(tmp_path: Path) -> None:
    save(tmp_path / "shot_sky", frames())
    for index in (1, 2):
        (tmp_path / "shot_sky" / f"{index:04d}.rgb.png").unlink()
    save(tmp_path / "shot_sun", frames(5))
    found = mistakes(tmp_path, FORWARD, FORWARD._replace(light="sun"), FORWARD._replace(light="moon"))
    assert found == "shot_sky lacks the frames 1-2; shot_sun has 5 frames instead of 4; shot_moon is missing"


def test_frames_counted_from_one_miss_the_right_number(tmp_path: Path) -> None:
    save(tmp_path / "shot_sky", frames(), "{}.png", first=1)
    (tmp_path / "shot_sky" / "3.png").unlink()
    assert mistakes(tmp_path, FORWARD) == "shot_sky lacks the frames 3"


def test_wrong_sizes_and_unreadable_files_are_listed(tmp_path: Path) -> None:
    save(tmp_path / "shot_sky", frames())
    write_image(tmp_path / "shot_sky" / "0002.rgb.png", torch.zeros(3, 8, 8))
    whole = (tmp_path / "shot_sky" / "0003.rgb.png").read_bytes()
    (tmp_path / "shot_sky" / "0003.rgb.png").write_bytes(whole[: len(whole) // 2])
    found = mistakes(tmp_path, FORWARD)
    assert "8x8 instead of 16x12 (0002)" in found and "frame 0003: cannot be read" in found


def test_ten_mistakes_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    found = mistakes(tmp_path, *(FORWARD._replace(light=f"l{index}") for index in range(13)))
    assert found.count("is missing") == 10 and found.endswith("and 3 more")


def test_a_float_tiff_is_refused_because_it_would_lose_nan(tmp_path: Path) -> None:
    save(tmp_path / "shot_sky", frames(), "{:04d}.tif")
    assert ".tif" in mistakes(tmp_path, FORWARD)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing there"):
        predictions(tmp_path / "absent")
    with pytest.raises(InputError, match="a prediction of shot_sky"):
        predictions(tmp_path).load("shot", "sky")


# G-buffers


def truth() -> GBuffer:
    return replace(synthetic_clip(3).gbuffer, name="shot")


@pytest.mark.parametrize("formats", [("png",), ("exr",), ("png", "exr")])
def test_buffers_are_read_as_io_reads_them(tmp_path: Path, formats: tuple[str, ...]) -> None:
    write_gbuffer(truth(), tmp_path, formats=formats)
    predictions(tmp_path).check([INVERSE])
    loaded, reference = predictions(tmp_path).load_buffers("shot"), read_gbuffer(tmp_path / "shot")
    assert loaded.present == reference.present and set(loaded.present) == set(INVERSE.buffers)
    for name in INVERSE.buffers:
        assert torch.equal(getattr(loaded, name), getattr(reference, name)), name
    assert predictions(tmp_path).buffers(["shot"]) == loaded.present


def test_buffers_from_videos(tmp_path: Path) -> None:
    write_gbuffer(truth(), tmp_path, formats=("mp4",), buffers=("roughness", "normal"))
    wanted = INVERSE._replace(buffers=("normal", "roughness"))
    predictions(tmp_path).check([wanted])
    loaded = predictions(tmp_path).load_buffers("shot", ("roughness",))
    # H.264 at the rim of the sphere: measured 0.0056 on average.
    assert loaded.present == ("roughness",) and (loaded.roughness - truth().roughness).abs().mean() < 0.03
    assert predictions(tmp_path).buffers(["shot"]) == ("roughness", "normal")
    assert "shot has no metallic" in mistakes(tmp_path, INVERSE)


def test_nan_in_buffers_survives(tmp_path: Path) -> None:
    spoilt = truth()
    basecolor, depth = spoilt.basecolor.clone(), spoilt.depth.clone()
    basecolor[1, 2, 3, 4], basecolor[0, 0, 0, 0], depth[2, 0, 5, 6] = torch.nan, torch.inf, torch.nan
    write_gbuffer(replace(spoilt, basecolor=basecolor, depth=depth), tmp_path, formats=("exr",))
    with pytest.raises(InputError, match="NaN"):  # what `io` does, for inputs
        read_gbuffer(tmp_path / "shot")
    predictions(tmp_path).check([INVERSE])
    loaded = predictions(tmp_path).load_buffers("shot")
    assert loaded.basecolor.isnan().nonzero().tolist() == [[1, 2, 3, 4]] and loaded.basecolor[0, 0, 0, 0] == torch.inf
    assert loaded.depth.isnan().nonzero().tolist() == [[2, 0, 5, 6]]
    assert torch.equal(loaded.depth.isinf(), truth().depth.isinf() & ~depth.isnan())


def test_one_buffer_per_exr_under_any_usual_letters(tmp_path: Path) -> None:
    (tmp_path / "shot").mkdir()
    value = np.full((H, W), 0.25, np.float32)
    write_exr(tmp_path / "shot" / "0000.roughness.exr", dict.fromkeys("RGB", value))
    write_exr(tmp_path / "shot" / "0000.depth.exr", {"distance": 8 * value})
    write_exr(tmp_path / "shot" / "0000.normal.exr", {"X": 0 * value, "Y": 0 * value, "Z": 4 * value})
    loaded = predictions(tmp_path).load_buffers("shot")
    assert (loaded.roughness == 0.25).all() and (loaded.depth == 2).all() and (loaded.normal[:, 2] == 1).all()
    write_exr(tmp_path / "shot" / "0000.metallic.exr", {"A": value, "B": value})
    with pytest.raises(InputError, match="channels Y"):
        predictions(tmp_path).load_buffers("shot")


def test_missing_buffers_are_listed_by_frame(tmp_path: Path) -> None:
    write_gbuffer(truth(), tmp_path)
    (tmp_path / "shot" / "0001.roughness.png").unlink()
    for index in range(3):
        (tmp_path / "shot" / f"{index:04d}.metallic.png").unlink()
    found = mistakes(tmp_path, INVERSE)
    assert "shot has no roughness (0001)" in found and "shot has no metallic (all frames)" in found
    assert "other is missing" in mistakes(tmp_path, INVERSE._replace(clip="other"))


# Exported inputs


def test_exported_inputs_come_back(tmp_path: Path) -> None:
    sample = synthetic_clip(0)
    lamp = EnvironmentMap(2 * sample.environment.radiance, "procedural lamp")
    turn = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]).expand(3, 3, 3)
    other = Relit(replace(sample.clip, frames=1 - sample.clip.frames), lamp, turn)
    sample = replace(sample, relit=(other,))
    told: list[str] = []
    folder = export_inputs([sample, synthetic_clip(1)], tmp_path / "inputs", told.append)
    assert told == ["sphere0", "sphere1"] and "R d" in (folder / "README.md").read_text()
    place = folder / "sphere0"
    # Half a step of 8 bits; half floats.
    assert (read_clip(place).frames - sample.clip.frames).abs().max() < 0.5 / 255 + 1e-6
    gbuffer = read_gbuffer(place)
    assert torch.allclose(gbuffer.depth, sample.gbuffer.depth, rtol=2.0**-10)
    assert torch.equal(gbuffer.mask, sample.gbuffer.mask)
    assert torch.equal(read_cameras(place).pose, sample.camera.pose)
    notes = json.loads((place / "clip.json").read_text())
    assert [light["name"] for light in notes["lights"]] == ["light", "lamp"] and notes["input_light"] == "light"
    assert notes["size"] == [32, 32] and notes["frames"] == 3 and notes["fps"] == sample.clip.fps
    assert torch.equal(torch.tensor(notes["lights"][1]["rotations"]), turn @ sample.camera.rotation)
    light = read_environment(place / notes["lights"][1]["file"])
    assert light.name == "lamp" and torch.allclose(light.radiance, lamp.radiance, rtol=2.0**-10)


def test_a_clip_with_frames_only_is_exported(tmp_path: Path) -> None:
    sample = replace(synthetic_clip(0), gbuffer=GBuffer(name="sphere0"), environment=None, camera=None)
    export_inputs([sample], tmp_path)
    assert len(read_clip(tmp_path / "sphere0")) == 3
    assert not (tmp_path / "sphere0" / "cameras.json").exists() and not (tmp_path / "sphere0" / "lights").exists()
