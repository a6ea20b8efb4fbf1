"""Folders of shards as a mixture: sources, sizes, the cache, and shards that are broken."""

from __future__ import annotations

import io
import logging
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from synthetic import synthetic_clip
from test_training_data import real_clip, video_only, without, write

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap
from diffusion_renderer.training.data import DataSource, load_frames, load_mixture, loading

# --- folders ----------------------------------------------------------------------------------------------------------


def test_folders_become_sources_and_sizes_stores(tmp_path: Path) -> None:
    a = write(tmp_path / "a", synthetic_clip(0), synthetic_clip(1, size=16), synthetic_clip(2), shard_size=3)
    b = DataSource(write(tmp_path / "b", real_clip(3), real_clip(4)).path, 2.0)
    mixture = load_mixture((replace(a, weight=1.0), b), tmp_path / "cache")
    assert [(source.name, source.weight, len(source.stores)) for source in mixture.sources] == [("a", 1.0, 2), ("b", 2.0, 1)]
    assert [store.size for store in mixture.stores] == [(16, 16), (32, 32), (32, 32)]
    assert [store.keys for store in mixture.stores] == [
        ("shard-000000/00000001",),
        ("shard-000000/00000000", "shard-000000/00000002"),
        ("shard-000000/00000000", "shard-000001/00000001"),
    ]
    assert mixture.stores[2].real.all() and len(mixture) == 13 and mixture.skipped == ()
    drawn = mixture.draw(torch.Generator().manual_seed(0), 1, {1: 1.0}, estimated=True)
    assert drawn.source.name == "b" and drawn.keys[0].startswith("b/shard-00000")
    with pytest.raises(InputError, match="one size; found 16x16, 32x32"):
        _ = mixture.single
    with pytest.raises(InputError, match="one size"):
        load_frames((a.path,), tmp_path / "cache")


def test_the_cache_gives_what_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = replace(without(synthetic_clip(1), "metallic"), meta={"dataset": "interiorverse"})
    data = write(tmp_path / "a", synthetic_clip(0), public, video_only(2), shard_size=2)
    first = load_frames((data.path,), tmp_path / "cache")
    monkeypatch.setattr("diffusion_renderer.training.data.loading.read_shard", lambda path: pytest.fail("decoded again"))
    again = load_frames((data.path,), tmp_path / "cache")
    index = torch.arange(len(first))
    assert torch.equal(again.take(index), first.take(index)) and again.keys == first.keys
    for name in ("clip", "rotation", "light", "present", "real", "has_light"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    assert torch.equal(again.take_defined(index), first.take_defined(index)) and again.defined


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    data = write(tmp_path / "a", synthetic_clip(0))
    first = load_frames((data.path,), tmp_path / "cache")
    whole = first.take(torch.arange(3)).clone()
    for path in (tmp_path / "cache").iterdir():
        content = path.read_bytes()
        path.unlink()  # the store above still has the old file mapped
        path.write_bytes(content[: len(content) // 2])
    assert torch.equal(load_frames((data.path,), tmp_path / "cache").take(torch.arange(3)), whole)


def test_pictures_of_a_classical_renderer_are_black_where_they_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that makes every frame grey stands in here; tests/test_prior.py has the real one."""
    made = []

    def grey(name: str, light: EnvironmentMap) -> Callable[..., torch.Tensor]:
        made.append(name)
        return lambda gbuffer, camera, rotations: torch.full_like(gbuffer.basecolor, 0.4)

    monkeypatch.setattr("diffusion_renderer.render.Prior", grey)
    clips = synthetic_clip(0, 1), video_only(1), without(synthetic_clip(3, 1), "depth"), synthetic_clip(2, 1, size=16)
    data = write(tmp_path / "a", *clips, shard_size=4)
    for _ in range(2):
        small, large = load_mixture((data,), tmp_path / "cache", prior="splitsum").stores
        assert small.take_prior(torch.tensor([0])).eq(102).all()
        assert large.take_prior(torch.arange(3)).flatten(1).unique(dim=1).tolist() == [[102], [0], [0]]
    assert made == ["splitsum"] * 2, "made once, then kept"


def test_sources_on_the_command_line(tmp_path: Path) -> None:
    assert DataSource.parse("data/a") == DataSource(Path("data/a"))
    assert DataSource.parse("data/a=0.5") == DataSource(Path("data/a"), 0.5)
    odd = tmp_path / "weight=3"
    odd.mkdir()
    assert DataSource.parse(str(odd)) == DataSource(odd) and DataSource.parse(f"{odd}=2") == DataSource(odd, 2.0)
    for text, message in (("a=b", "DIR=WEIGHT"), ("a=-1", "above 0"), ("a=nan", "above 0"), ("a=inf", "above 0")):
        with pytest.raises(InputError, match=message):
            DataSource.parse(text)


def test_folders_without_shards_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    whole = write(tmp_path / "a", synthetic_clip(0))
    for folder, message in (("empty", "none in .*empty"), ("absent", "no folder .*absent")):
        with pytest.raises(InputError, match=message):
            load_mixture((whole, DataSource(tmp_path / folder)), tmp_path / "cache")
    with pytest.raises(InputError, match="diffusion-renderer dataset"):
        load_mixture((), tmp_path / "cache")


# --- faults -----------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_between_files(path: Path) -> None:
    """Without the archive's end, which tarfile does not miss."""
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1]
    content = path.read_bytes()[: end.offset_data + -(-end.size // 512) * 512]
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) > 2


def empty_archive(path: Path) -> None:
    tarfile.open(path, "w").close()


def foreign_files(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in ("readme.txt", "images/0001.jpg"):
            entry = tarfile.TarInfo(name)
            entry.size = 5
            tar.addfile(entry, io.BytesIO(b"hello"))


def foreign_json(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("00000000/clip.json")
        entry.size = 2
        tar.addfile(entry, io.BytesIO(b"[]"))


def break_an_image(path: Path) -> None:
    with tarfile.open(path) as tar:
        image = tar.getmember("00000000/0000.basecolor.png")
    content = bytearray(path.read_bytes())
    middle = image.offset_data + image.size // 2
    content[middle : middle + 32] = bytes(32)
    path.write_bytes(content)


def lose_an_image(path: Path) -> None:
    with tarfile.open(path) as tar:
        kept = [(member, tar.extractfile(member).read()) for member in tar if "0000.depth" not in member.name]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in kept:
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "unexpected end of data|cut off"),
        (cut_between_files, "cut off"),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(b"\x89PNG nothing of the kind" * 100), "invalid header|truncated header"),
        (empty_archive, "no clip in it"),
        (foreign_files, "no file clip.json"),
        (foreign_json, "."),
        (break_an_image, "PNG"),
        (lose_an_image, "no file 0000.depth.png"),
    ],
)
def test_a_broken_shard_is_skipped_and_named(
    damage: Callable[[Path], None], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write(tmp_path / "a", synthetic_clip(0, frames=2, size=16), synthetic_clip(1, frames=2, size=16))
    broken = tmp_path / "a" / "shard-000000.tar"
    damage(broken)
    with caplog.at_level(logging.WARNING):
        mixture = load_mixture((data,), tmp_path / "cache", max_bad=0.5)
    assert [store.keys for store in mixture.stores] == [("shard-000001/00000001",)]
    (skipped,) = mixture.skipped
    assert skipped.name == str(broken) and str(broken) in caplog.text
    assert re.search(reason, skipped.reason), skipped.reason
    with pytest.raises(InputError, match=r"at most 10% broken; found 1 of 2 broken: .*shard-000000.tar"):
        load_mixture((data,), tmp_path / "cache")


def test_too_many_broken_shards_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    clip = synthetic_clip(0, frames=1, size=8)
    data = write(tmp_path / "a", *[clip] * 10)
    for number in range(5):
        truncate(tmp_path / "a" / f"shard-{number:06d}.tar")
    assert len(load_mixture((data,), tmp_path / "cache", max_bad=0.5).skipped) == 5
    with pytest.raises(InputError, match=r"5 of 10 broken: .*000000.*000001.*000002.*; \.\.\.; .*--max-bad") as caught:
        load_mixture((data,), tmp_path / "cache", max_bad=0.4)
    assert "000003" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_source_that_is_wholly_broken_is_refused_whatever_the_limit(tmp_path: Path) -> None:
    clip = synthetic_clip(0, frames=1, size=8)
    whole, broken = write(tmp_path / "a", *[clip] * 3), write(tmp_path / "b", clip)
    truncate(tmp_path / "b" / "shard-000000.tar")
    with pytest.raises(InputError, match=r"1 of 1 broken: .*b"):
        load_mixture((whole, broken), tmp_path / "cache", max_bad=1.0)


def test_a_seed_of_evaluations_is_no_fault_to_skip(tmp_path: Path) -> None:
    clip = synthetic_clip(0, frames=1, size=8)
    data = write(tmp_path / "a", clip, replace(clip, meta={"seed": 777_777}))
    with pytest.raises(InputError, match="evaluation seed"):
        load_mixture((data,), tmp_path / "cache", max_bad=1.0)


def test_a_full_disk_is_not_taken_for_a_broken_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "a", synthetic_clip(0, frames=1, size=8))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffusion_renderer.training.data.loading.save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        load_mixture((data,), tmp_path / "cache", max_bad=1.0)
    assert not list((tmp_path / "cache").iterdir())


def test_a_shard_made_again_is_decoded_again(tmp_path: Path) -> None:
    data = write(tmp_path / "a", synthetic_clip(0, frames=1, size=8))
    before = load_frames((data.path,), tmp_path / "cache").take(torch.tensor(0)).clone()
    shutil.rmtree(data.path)
    write(tmp_path / "a", synthetic_clip(5, frames=1, size=8))
    assert not torch.equal(load_frames((data.path,), tmp_path / "cache").take(torch.tensor(0)), before)


def test_clips_as_their_videos_are(tmp_path: Path) -> None:
    """8-bit frames pass through shard, cache and store unchanged."""
    frames = (torch.arange(3 * 8 * 8).reshape(1, 3, 8, 8) % 256).float() / 255
    clip = replace(synthetic_clip(0, frames=1, size=8), clip=Clip(frames))
    store = load_frames((write(tmp_path / "a", clip).path,), tmp_path / "cache")
    assert torch.equal(store.take(torch.tensor([0]))[:, 0], (frames * 255).round().to(torch.uint8))


def test_shards_that_are_loaded_side_by_side_share_the_processor() -> None:
    """Each with its part of PyTorch's threads, which are all there again afterwards, whatever happens."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        seen: list[int] = []
        loading._load_all([lambda: (seen.append(torch.get_num_threads()), ())[1]] * 3, max_bad=0.0)
        assert seen == [4 // loading.THREADS] * 3 and torch.get_num_threads() == 4

        def fails() -> tuple:
            raise InputError("a shard", "none", "render one")

        with pytest.raises(InputError):
            loading._load_all([fails], max_bad=0.0)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
