"""Clips from (seed, index), and shards: what is written is what comes back, whatever was interrupted in between."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mitsuba", reason="needs the extra `data` (mitsuba)")

import numpy as np
import torch

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen import DatasetSettings, generate_shards, read_shard, read_shards, render_clip, retrace
from diffusion_renderer.datagen.demo import demo_clip, demo_relit, full_turn
from diffusion_renderer.datagen.engine.variant import choose_variant, load_denoiser, works
from diffusion_renderer.datagen.generate import Drawn, render_unfinished
from diffusion_renderer.datagen.procedural.panoramas import list_panoramas, read_panorama
from diffusion_renderer.datagen.store import shards
from diffusion_renderer.datagen.store.encode import decode_clip, decode_exr, encode_clip, encode_exr

TINY = DatasetSettings(frames=2, width=24, height=16, samples=4, buffer_samples=2, panorama_height=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips in two shards."""
    out = tmp_path_factory.mktemp("dataset")
    generate_shards(out, TINY, clips=3, shard_size=2, seed=4, progress=False)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Every member of every shard."""
    found = {}
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_a_clip_comes_back_from_its_shard(dataset: Path) -> None:
    clips = list(read_shards(dataset))
    assert [clip.meta["index"] for clip in clips] == [0, 1, 2]
    for index, read in enumerate(clips):
        made = render_clip(4, index, replace(TINY, variant=choose_variant()))
        assert read.meta == json.loads(json.dumps(made.meta))
        assert read.clip.frames.shape == (2, 3, 16, 24) and read.clip.name == f"{index:08d}"
        # Half a step of 8 bits.
        assert (read.clip.frames - made.clip.frames).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal(read.gbuffer.mask, made.gbuffer.mask)
        assert (srgb_oetf(read.gbuffer.basecolor) - srgb_oetf(made.gbuffer.basecolor)).abs().max() <= 0.5 / 255 + 1e-5
        for name in ("roughness", "metallic"):
            assert (getattr(read.gbuffer, name) - getattr(made.gbuffer, name)).abs().max() <= 0.5 / 255 + 1e-6
        # Half a step per axis of [-1, 1] and the renormalisation: 0.0075 at most.
        assert (read.gbuffer.normal - made.gbuffer.normal).norm(dim=1).max() < 0.0075
        span = made.meta["far"] - made.meta["near"]
        mask = made.gbuffer.mask
        assert (read.gbuffer.depth[mask] - made.gbuffer.depth[mask]).abs().max() <= span / 65535
        assert torch.isinf(read.gbuffer.depth[~mask]).all()
        assert torch.equal(read.environment.radiance, made.environment.radiance)  # rounded to half floats before
        assert torch.equal(read.camera.pose, made.camera.pose) and torch.equal(read.camera.fov_x, made.camera.fov_x)


def test_clips_do_not_depend_on_the_split_into_shards(dataset: Path, tmp_path: Path) -> None:
    generate_shards(tmp_path, TINY, clips=3, shard_size=1, seed=4, progress=False)
    assert contents(tmp_path) == contents(dataset)


def test_seeds_and_indices_differ(dataset: Path) -> None:
    frames = [clip.clip.frames for clip in read_shards(dataset)] + [render_clip(5, 0, TINY).clip.frames]
    for i, first in enumerate(frames):
        assert all((first - second).abs().mean() > 0.01 for second in frames[:i])


def test_a_data_set_begun_before_there_was_a_split_goes_on(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "old")
    path = tmp_path / "old" / "index.json"
    index = json.loads(path.read_text())
    del index["settings"]["split"]
    path.write_text(json.dumps(index))
    assert generate_shards(tmp_path / "old", TINY, clips=3, shard_size=2, seed=4, progress=False)["complete"]
    with pytest.raises(InputError, match="another settings"):
        generate_shards(tmp_path / "old", replace(TINY, split="test"), clips=3, shard_size=2, seed=4, progress=False)


def test_data_sets_begun_before_a_setting_existed_go_on(dataset: Path, tmp_path: Path) -> None:
    """Whether their list names the later settings, at what is now their default, or does not."""
    asked = {"clips": 3, "shard_size": 2, "seed": 4, "progress": False}
    for number, named in enumerate(({}, {"walls": 0.0}, {"walls": 0.0, "prints": 0.0})):
        old = tmp_path / str(number)
        shutil.copytree(dataset, old)
        index = json.loads((old / "index.json").read_text())
        assert not {"walls", "prints"} & index["settings"].keys()
        index["settings"] |= named
        (old / "index.json").write_text(json.dumps(index))
        assert generate_shards(old, TINY, **asked)["complete"]
        with pytest.raises(InputError, match="another settings"):
            generate_shards(old, replace(TINY, prints=0.5), **asked)
    assert DatasetSettings.from_json(replace(TINY, prints=0.5).to_json()).prints == 0.5


def test_progress_can_be_a_function(dataset: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    shutil.copytree(dataset, tmp_path / "part")
    (tmp_path / "part" / "shard-000001.tar").unlink()
    generate_shards(tmp_path / "part", TINY, clips=3, shard_size=2, seed=4, progress=lambda *step: told.append(step))
    assert told == [(2, 3, "rendering clips"), (3, 3, "rendering clips")]


def test_an_interrupted_run_continues(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []

    def interrupted(drawn: Drawn, settings: DatasetSettings) -> object:
        if drawn.index == 2:
            raise KeyboardInterrupt
        rendered.append(drawn.index)
        return render_unfinished(drawn, settings)

    monkeypatch.setattr(shards, "render_unfinished", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_shards(tmp_path, TINY, clips=3, shard_size=2, seed=4, progress=False)
    assert [path.name for path in tmp_path.glob("*.tar")] == ["shard-000000.tar"]
    assert not json.loads((tmp_path / "index.json").read_text())["complete"]
    # What a killed process leaves behind.
    (tmp_path / "shard-000001.tar.part").write_bytes(b"half a shard")

    def recorded(drawn: Drawn, settings: DatasetSettings) -> object:
        rendered.append(drawn.index)
        return render_unfinished(drawn, settings)

    monkeypatch.setattr(shards, "render_unfinished", recorded)
    summary = generate_shards(tmp_path, TINY, clips=3, shard_size=2, seed=4, progress=False)
    assert rendered == [0, 1, 2]
    assert not list(tmp_path.glob("*.part"))
    assert summary["complete"] and summary["clips"] == 3 and summary["frames"] == 6
    assert summary["shards"] == json.loads((dataset / "index.json").read_text())["shards"]  # sha256 and all


def test_a_killed_run_resumes_with_identical_bytes(tmp_path: Path) -> None:
    """`kill -9` after the first shard, with a worker process; what is there afterwards is what one run makes."""
    settings = DatasetSettings(frames=1, width=24, height=16, samples=2)
    command = [sys.executable, "-m", "diffusion_renderer", "dataset", str(tmp_path / "killed"), "--clips", "12"]
    command += ["--frames", "1", "--size", "24x16", "--samples", "2", "--shard-size", "1", "--workers", "2", "--seed", "4"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("killed/shard-*.tar")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = {path.name for path in tmp_path.glob("killed/shard-*.tar")}
    assert 0 < len(before) < 12
    generate_shards(tmp_path / "killed", settings, clips=12, shard_size=1, seed=4, progress=False)
    generate_shards(tmp_path / "whole", settings, clips=12, shard_size=1, seed=4, progress=False)
    for path in sorted(tmp_path.glob("whole/shard-*.tar")):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
    assert len(list(tmp_path.glob("killed/shard-*.tar"))) == 12 and not list(tmp_path.glob("killed/*.part"))


def test_the_shard_split_does_not_change_a_clip(dataset: Path, tmp_path: Path) -> None:
    generate_shards(tmp_path, TINY, clips=3, shard_size=3, seed=4, progress=False)
    assert contents(tmp_path) == contents(dataset)


def test_several_runs_share_a_folder(dataset: Path, tmp_path: Path) -> None:
    """Each renders its shards; the last one finds all of them."""
    second = generate_shards(tmp_path, TINY, clips=3, shard_size=2, seed=4, only=(1, 2), progress=False)
    assert [shard["name"] for shard in second["shards"]] == ["shard-000001.tar"] and not second["complete"]
    both = generate_shards(tmp_path, TINY, clips=3, shard_size=2, seed=4, only=(0, 1), progress=False)
    assert both["complete"] and both["shards"] == json.loads((dataset / "index.json").read_text())["shards"]
    with pytest.raises(InputError, match="A below B"):
        generate_shards(tmp_path, TINY, clips=3, shard_size=2, seed=4, only=(2, 2), progress=False)


def test_a_dataset_can_grow(dataset: Path, tmp_path: Path) -> None:
    generate_shards(tmp_path, TINY, clips=1, shard_size=2, seed=4, progress=False)
    generate_shards(tmp_path, TINY, clips=2, shard_size=2, seed=4, progress=False)
    assert (tmp_path / "shard-000000.tar").read_bytes() == (dataset / "shard-000000.tar").read_bytes()


def test_a_run_out_of_time_starts_nothing(tmp_path: Path) -> None:
    summary = generate_shards(tmp_path, TINY, clips=3, shard_size=2, max_minutes=-1, progress=False)
    assert summary["clips"] == 0 and not summary["complete"] and not list(tmp_path.glob("*.tar"))


def test_worker_processes_write_the_same_shards(dataset: Path, tmp_path: Path) -> None:
    generate_shards(tmp_path, TINY, clips=3, shard_size=2, seed=4, workers=2, progress=False)
    assert contents(tmp_path) == contents(dataset)


def test_another_dataset_in_the_same_folder_is_refused(dataset: Path) -> None:
    with pytest.raises(InputError, match="another seed"):
        generate_shards(dataset, TINY, clips=3, shard_size=2, seed=5, progress=False)
    with pytest.raises(InputError, match="another settings"):
        generate_shards(dataset, replace(TINY, samples=5), clips=3, shard_size=2, seed=4, progress=False)


def test_other_assets_in_a_folder_of_the_same_name_are_refused(tmp_path: Path) -> None:
    """A run continued with other files would hold clips of two data sets."""
    for place in ("here", "there"):
        (tmp_path / place / "hdri").mkdir(parents=True)
        (tmp_path / place / "hdri" / f"{place}.exr").write_bytes(encode_exr(torch.ones(3, 16, 32)))
    make = lambda place: generate_shards(  # noqa: E731
        tmp_path / "out", replace(TINY, panoramas=tmp_path / place / "hdri"), clips=1, seed=4, progress=False
    )
    assert make("here")["clips"] == make("here")["clips"] == 1
    with pytest.raises(InputError, match="another assets"):
        make("there")


def test_broken_and_missing_shards_are_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shard-"):
        list(read_shards(tmp_path))
    whole = (dataset / "shard-000000.tar").read_bytes()
    broken = tmp_path / "shard-000000.tar"
    broken.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(InputError, match=r"shard-000000\.tar"):
        list(read_shard(broken))


def test_the_clip_is_its_panorama_where_nothing_was_hit() -> None:
    """Exposure 1: the stored panorama and the frames agree without any factor."""
    settings = replace(TINY, objects_share=1.0, samples=16, width=32, height=32)
    index = next(i for i in range(20) if not render_clip(1, i, settings).gbuffer.mask.all())
    rendered = render_clip(1, index, settings)
    away = torch.nn.functional.max_pool2d(rendered.gbuffer.mask.float(), 5, 1, 2) == 0
    away = away.expand_as(rendered.clip.frames)
    shown = srgb_eotf(rendered.clip.frames)[away]
    radiance = rendered.environment.radiance
    assert away.any() and radiance.min() <= shown.min() + 1e-3 and shown.max() <= radiance.max() + 1e-3
    assert rendered.meta["exposure"] != 1.0


def test_names_of_the_files_and_of_the_assets(dataset: Path) -> None:
    names = {name.split("/")[1] for name in contents(dataset) if name.startswith("00000001/")}
    buffers = ("rgb", "basecolor", "normal", "roughness", "metallic", "depth", "mask", "ids")
    frames = {f"{frame:04d}.{name}.png" for frame in range(2) for name in buffers}
    assert names == {"clip.json", "cameras.json", "light.exr"} | frames
    meta = json.loads(contents(dataset)["00000001/clip.json"])
    assert meta["assets"]["panorama"].startswith("procedural") and meta["seed"] == 4 and meta["index"] == 1
    assert meta["renderer"]["denoiser"] == ("oidn" if load_denoiser() else "none")


def test_light_files_are_half_floats() -> None:
    image = torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(0)) * 1000
    assert torch.equal(decode_exr(encode_exr(image)), image.half().float())


def test_panoramas_from_a_folder(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(InputError, match="no such file"):
        list_panoramas(tmp_path)
    image = torch.zeros(3, 32, 64)
    image[:, 8:10, 16:18] = torch.tensor([4.0, 8.0, 12.0])[:, None, None]
    image[0, 0, 0] = torch.nan
    (tmp_path / "lamp.exr").write_bytes(encode_exr(image))
    small = read_panorama(tmp_path / "lamp.exr", 16)
    assert small.shape == (16, 32, 3) and np.isfinite(small).all()
    assert np.allclose(small[4, 8], [4, 8, 12]) and small.sum() == pytest.approx(24)
    rendered = render_clip(0, 0, replace(TINY, panoramas=tmp_path, panorama_probability=1.0))
    assert rendered.meta["assets"]["panorama"] == "lamp" and str(tmp_path) not in json.dumps(rendered.meta)
    (tmp_path / "square.exr").write_bytes(encode_exr(torch.zeros(3, 32, 32)))
    (tmp_path / "torn.hdr").write_bytes(b"#?RADIANCE\n\n")
    for name in ("square.exr", "torn.hdr"):
        with pytest.raises(InputError, match=name):
            read_panorama(tmp_path / name, 16)


def test_shared_panoramas_light_clips(shared: Path) -> None:
    folder = shared / "assets" / "hdri"
    if not folder.is_dir():
        pytest.skip(f"needs panoramas in {folder}")
    rendered = render_clip(0, 1, replace(TINY, panoramas=folder, panorama_probability=1.0))
    assert rendered.meta["assets"]["panorama"] in {path.stem for path in folder.iterdir()}
    assert 0.02 < rendered.clip.frames.mean() < 0.8


def test_the_denoiser_removes_noise_and_keeps_the_mean() -> None:
    if load_denoiser() is None:
        pytest.skip("needs Open Image Denoise (pyoidn)")
    settings = replace(TINY, width=64, height=64, frames=1)
    truth = render_clip(2, 3, replace(settings, samples=256, denoise=False)).clip.frames
    error = {}
    for denoise in (False, True):
        frames = render_clip(2, 3, replace(settings, denoise=denoise)).clip.frames
        error[denoise] = float((frames - truth).square().mean())
    # 4 samples per pixel: a sixth of the squared error remained when measured.
    assert error[True] < 0.4 * error[False]


def test_the_demo_is_one_scene_under_three_lights_one_of_them_turning() -> None:
    settings = replace(TINY, frames=3)
    clip = demo_clip(settings)
    lights = list(demo_relit(settings))
    assert len(lights) == 3 and [light.rotates for light in lights] == [False, False, True]
    assert clip.gbuffer.mask.float().mean() > 0.5 and 0.2 < clip.clip.frames.mean() < 0.7
    assert clip.gbuffer.metallic.max() > 0.9
    for light in lights:
        assert light.clip.frames.shape == clip.clip.frames.shape and 0.2 < light.clip.frames.mean() < 0.7
        assert (light.clip.frames - clip.clip.frames).abs().mean() > 0.03
    turns = full_turn(3)
    assert torch.allclose(turns[0], torch.eye(3)) and torch.allclose(turns[2], torch.eye(3), atol=1e-6)
    assert torch.allclose(turns[1], torch.diag(torch.tensor([-1.0, 1.0, -1.0])), atol=1e-6)
    with pytest.raises(InputError, match="two frames"):
        full_turn(1)


def test_a_variant_that_does_not_work_is_an_input_error() -> None:
    assert works("scalar_rgb")
    if works("cuda_ad_rgb"):
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(InputError, match="cuda_ad_rgb"):
        choose_variant("cuda_ad_rgb")


def test_a_clip_of_one_frame_of_background_only_survives_encoding() -> None:
    rendered = render_clip(0, 0, replace(TINY, frames=1))
    empty = replace(
        rendered,
        gbuffer=replace(
            rendered.gbuffer,
            mask=torch.zeros_like(rendered.gbuffer.mask),
            depth=torch.full_like(rendered.gbuffer.depth, torch.inf),
        ),
        meta={**rendered.meta, "near": 0.0, "far": 0.0},
    )
    assert torch.isinf(decode_clip(encode_clip(empty)).gbuffer.depth).all()


def test_a_clip_that_is_traced_again_differs_by_noise_only(tmp_path: Path) -> None:
    settings = replace(TINY, lights=2, samples=64)
    generate_shards(tmp_path / "one", settings, clips=1, seed=3, progress=False)
    (sample,) = read_shards(tmp_path / "one")
    first, second = retrace(sample)
    for again, truth in ((first, sample.clip), (second, sample.relit[0].clip)):
        error = (again.frames - truth.frames).abs().mean().item()
        # Measured over three seeds: 0.004 to 0.016; the two lights differ by 0.19 to 0.30.
        assert 0 < error < 0.03
    assert (first.frames - second.frames).abs().mean() > 0.1
    with pytest.raises(InputError, match="rendered"):
        retrace(replace(sample, meta={}))


def test_settings_come_back_from_their_record(tmp_path: Path) -> None:
    settings = replace(TINY, motions=("light", "static"), panoramas=tmp_path)
    record = json.loads(json.dumps(settings.to_json()))
    assert DatasetSettings.from_json(record | {"denoiser": "oidn"}, panoramas=tmp_path) == settings
    with pytest.raises(InputError, match="panoramas"):
        DatasetSettings.from_json(record)
