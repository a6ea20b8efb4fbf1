"""Clips and G-buffers in pieces: the same results as in memory, and never more than a few full-size frames at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models_random import save_model

from diffusion_renderer import io
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.sources import ClipSource, GBufferSource
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.editing import Shot, hold_frame, play
from diffusion_renderer.pipelines import load_forward, load_inverse

FRAMES = 11


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(random(FRAMES, 3, 20, 24), fps=12.0, name="shot")


@pytest.fixture(scope="module")
def gbuffer() -> GBuffer:
    normal = torch.nn.functional.normalize(random(FRAMES, 3, 20, 24, seed=1) - 0.5, dim=1)
    depth, rough, metal = (random(FRAMES, 1, 20, 24, seed=seed) for seed in (2, 3, 4))
    # Depth grows along the clip, so that a piece's own range is not the clip's; the sky is infinitely far.
    depth = depth + torch.arange(FRAMES)[:, None, None, None]
    depth[:, :, :2] = math.inf
    return GBuffer(random(FRAMES, 3, 20, 24), normal, depth, rough, metal, fps=12.0, name="shot")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "inverse", "inverse")
    save_model(folder / "forward", "forward")
    return folder


LIGHT = EnvironmentMap(random(3, 16, 32, seed=5) * 3)


def test_types_and_files_are_sources(clip: Clip, gbuffer: GBuffer, tmp_path: Path) -> None:
    clip.write(tmp_path)
    gbuffer.write(tmp_path / "buffers")
    for source in (clip, io.open_clip(tmp_path / "shot")):
        assert isinstance(source, ClipSource)
        assert (source.name, source.fps, source.size, len(source)) == ("shot", 12.0, (24, 20), FRAMES)
    for source in (gbuffer, io.open_gbuffer(tmp_path / "buffers")):
        assert isinstance(source, GBufferSource)
        assert (source.name, source.fps, source.size, len(source)) == ("shot", 12.0, (24, 20), FRAMES)


@pytest.mark.parametrize("name", ["shot.mp4", "shot"])
def test_an_opened_clip_gives_what_reading_gives(clip: Clip, tmp_path: Path, name: str) -> None:
    clip.write(tmp_path / name if name.endswith("mp4") else tmp_path)
    whole, opened = io.read_clip(tmp_path / name), io.open_clip(tmp_path / name)
    for _ in range(2):  # a source can be gone through again
        pieces = list(opened.chunks(4))
        assert [len(piece) for piece in pieces] == [4, 4, 3]
        assert torch.equal(torch.cat([piece.frames for piece in pieces]), whole.frames)
    assert len(io.open_clip(tmp_path / name, frames=5)) == 5
    assert torch.equal(Clip.join(io.open_clip(tmp_path / name, frames=5).chunks(3), 5).frames, whole.frames[:5])


@pytest.mark.parametrize("formats", [("png",), ("exr",), ("mp4",)])
def test_opened_gbuffers_give_what_reading_gives(gbuffer: GBuffer, tmp_path: Path, formats: tuple[str, ...]) -> None:
    gbuffer.write(tmp_path, formats=formats)
    whole, opened = io.read_gbuffer(tmp_path / "shot"), io.open_gbuffer(tmp_path / "shot")
    for source, first, last in ((opened, 0, FRAMES), (opened[3:9], 3, 9), (opened[2:][1:4], 3, 6)):
        joined = GBuffer.join(source.chunks(4), len(source))
        assert joined.present == whole.present
        for name in whole.present:
            assert torch.equal(getattr(joined, name), getattr(whole, name)[first:last])
    assert opened.depth_range() == whole.depth_range()
    assert opened.has_relative_depth() == whole.has_relative_depth()
    opened.require(("normal",))


def test_pieces_that_do_not_fill_what_was_promised_are_refused(clip: Clip, gbuffer: GBuffer) -> None:
    with pytest.raises(ValueError, match="11 came"):
        Clip.join(clip.chunks(4), 12)
    with pytest.raises(ValueError, match="11 came"):
        GBuffer.join(gbuffer.chunks(4), 12)


def test_a_buffer_that_ends_early_is_refused_when_opened(gbuffer: GBuffer, tmp_path: Path) -> None:
    gbuffer.write(tmp_path)
    (tmp_path / "shot" / "0007.depth.png").unlink()
    with pytest.raises(InputError, match="missing: 0007"):
        io.open_gbuffer(tmp_path / "shot")


def test_layers_that_end_early_are_refused_on_the_way(gbuffer: GBuffer, tmp_path: Path) -> None:
    gbuffer[:6].write(tmp_path, formats=("exr",))
    with io.GBufferWriter(tmp_path / "other", "shot", 12.0, ("exr",), ("normal",), None) as writer:
        writer.write(gbuffer)
    for index in range(6, FRAMES):
        name = f"{index:04d}.gbuffer.exr"
        (tmp_path / "other" / "shot" / name).rename(tmp_path / "shot" / name)
    opened = io.open_gbuffer(tmp_path / "shot")
    with pytest.raises(InputError, match="from frame 0006 on"):
        list(opened.chunks(3))


def test_written_in_pieces_is_written_whole(gbuffer: GBuffer, clip: Clip, tmp_path: Path) -> None:
    formats, names = ("png", "exr", "mp4"), gbuffer.present
    io.write_gbuffer(gbuffer, tmp_path / "whole", formats=formats)
    io.write_clip(clip, tmp_path / "whole", formats=formats)
    with io.GBufferWriter(tmp_path / "pieces", "shot", 12.0, formats, names, gbuffer.depth_range()) as writer:
        for piece in gbuffer.chunks(4):
            writer.write(piece)
    with io.ClipWriter(tmp_path / "pieces", "shot", 12.0, formats) as writer:
        for piece in clip.chunks(4):
            writer.write(piece)
    whole = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert whole == {path.relative_to(tmp_path / "pieces") for path in (tmp_path / "pieces").rglob("*") if path.is_file()}
    for path in (path for path in whole if path.suffix == ".png"):
        assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "pieces" / path).read_bytes()
    assert torch.equal(io.read_gbuffer(tmp_path / "whole/shot").depth, io.read_gbuffer(tmp_path / "pieces/shot").depth)


def test_a_failure_leaves_no_video(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), io.ClipWriter(tmp_path, "shot", 12.0, ("mp4",)) as writer:
        writer.write(clip)
        raise RuntimeError
    with pytest.raises(InputError, match="at least one frame"), io.VideoWriter(tmp_path / "none.mp4", 12.0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_streams_are_the_calls_in_pieces(models: Path, clip: Clip, gbuffer: GBuffer) -> None:
    inverse, forward = load_inverse(models / "inverse", device="cpu"), load_forward(models / "forward", device="cpu")
    pieces = list(inverse.stream(clip, steps=1))
    assert max(len(piece) for piece in pieces) <= inverse.codec.chunk
    whole = inverse(clip, steps=1)
    for name in whole.present:
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
    relit = list(forward.stream(gbuffer, LIGHT, steps=1))
    assert max(len(piece) for piece in relit) <= forward.codec.chunk
    assert torch.equal(torch.cat([piece.frames for piece in relit]), forward(gbuffer, LIGHT, steps=1).frames)


def test_files_are_rendered_like_memory(models: Path, gbuffer: GBuffer, tmp_path: Path) -> None:
    gbuffer.write(tmp_path, formats=("exr",))
    forward = load_forward(models / "forward", device="cpu")
    from_files = forward(io.open_gbuffer(tmp_path / "shot"), LIGHT, steps=1)
    assert torch.equal(from_files.frames, forward(io.read_gbuffer(tmp_path / "shot"), LIGHT, steps=1).frames)


class Watched:
    """A clip that notes how many of its pieces are alive at once."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.name, self.fps, self.size = clip, clip.name, clip.fps, clip.size
        self.alive = self.most = 0

    def __len__(self) -> int:
        return len(self.clip)

    def chunks(self, frames: int) -> Iterator[Clip]:
        import weakref

        for piece in self.clip.chunks(frames):
            own = Clip(piece.frames.clone(), piece.fps, piece.name)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(own.frames, self._gone)
            yield own

    def _gone(self) -> None:
        self.alive -= 1


def test_a_long_clip_is_never_held_as_a_whole(models: Path) -> None:
    """Two pieces overlap while the loop variable changes; a third would mean that they are collected."""
    watched = Watched(Clip(random(40, 3, 20, 24), name="long"))
    inverse = load_inverse(models / "inverse", device="cpu")
    for _ in inverse.stream(watched, steps=1):
        pass
    assert watched.most <= 3
    assert len(watched) / inverse.codec.chunk > 4


def test_mistakes_show_before_the_first_piece_is_asked_for(models: Path, clip: Clip, gbuffer: GBuffer) -> None:
    inverse, forward = load_inverse(models / "inverse", device="cpu"), load_forward(models / "forward", device="cpu")
    with pytest.raises(InputError):
        inverse.stream(clip, steps=0)
    with pytest.raises(InputError):
        inverse.stream(clip[:0])
    with pytest.raises(InputError):
        forward.stream(gbuffer, LIGHT, rotations=torch.eye(3).expand(2, 3, 3))


def test_a_frame_of_files_is_held(gbuffer: GBuffer, tmp_path: Path) -> None:
    gbuffer.write(tmp_path, formats=("exr",))
    opened = io.open_gbuffer(tmp_path / "shot")
    held = hold_frame(opened, 4, 6)
    assert len(held) == 6
    assert torch.equal(held.depth[5], io.read_gbuffer(tmp_path / "shot").depth[4])
    played, rotations = play(opened, Shot(static_frame=4, frames=6))
    assert len(played) == len(rotations) == 6
