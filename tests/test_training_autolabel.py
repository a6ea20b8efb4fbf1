"""Real videos become shards: cuts, segments, labels, resumption, and what cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import read_shards
from diffusion_renderer.io import open_clip
from diffusion_renderer.training.autolabel import AutolabelOptions, absolute, autolabel
from diffusion_renderer.training.segments import find_cuts, histogram_changes, plan_segments, segments_of, shrink


def moving(frames: int, colour: tuple[float, float, float], height: int = 32, width: int = 48) -> torch.Tensor:
    """A lit gradient with a bright disc that wanders through it."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    shot = []
    for index in range(frames):
        disc = ((x - 0.2 - 0.5 * index / max(frames, 1)) ** 2 + (y - 0.5) ** 2 < 0.02).float()
        shot.append(torch.tensor(colour)[:, None, None] * (0.4 + 0.6 * x) * (1 - disc) + 0.9 * disc)
    return torch.stack(shot)


def video(path: Path, *shots: torch.Tensor) -> Path:
    return Clip(torch.cat(shots), name=path.stem).write(path)


class FakeInverse:
    """In place of a network: fixed buffers of the right shape. Counts its calls; fails for the names given."""

    settings = None

    def __init__(self, *broken: str) -> None:
        self.calls, self.broken = 0, broken

    def __call__(self, clip: Clip, *, seed: int = 0) -> GBuffer:
        self.calls += 1
        frames, (width, height) = len(clip), clip.size
        depth = torch.linspace(0, 1, height)[:, None].expand(frames, 1, height, width)
        normal = torch.tensor([0.6, 0.0, 0.8])[:, None, None].expand(frames, 3, height, width)
        one = torch.ones(frames, 1, height, width)
        if clip.name in self.broken:
            normal = normal * 0
        return GBuffer(0.5 * clip.frames, normal, depth, 0.5 * one, 0 * one, name=clip.name)

    def stream(self, clip: Clip, **options: object) -> Iterator[GBuffer]:
        yield self(clip)


def options(out: Path, *data: Path, **others: object) -> AutolabelOptions:
    return AutolabelOptions(data=data, out=out, segments=3, frames=4, size=16, progress=False, **others)


def white(clip: Clip, gbuffer: GBuffer, camera: Camera | None) -> EnvironmentMap:
    """A light estimator that does not look."""
    return EnvironmentMap(torch.ones(3, 128, 256), "white")


def test_cuts_are_found_and_motion_is_not_one() -> None:
    one, two = moving(10, (0.8, 0.2, 0.1)), moving(10, (0.1, 0.3, 0.8))
    flash = moving(1, (0.8, 0.2, 0.1)).add(0.05).clamp(0, 1)
    assert find_cuts(histogram_changes(torch.cat((one, two)))) == [10]
    assert find_cuts(histogram_changes(torch.cat((one, flash, one)))) == []
    assert find_cuts([]) == [] and find_cuts([0.9]) == [1]
    # Everything changes all the time: a shaken camera, not twenty cuts.
    assert find_cuts([0.5] * 20) == []


@pytest.mark.parametrize(("cuts", "total", "count", "frames"), [([], 100, 15, 4), ([33, 60], 100, 5, 8), ([3, 5], 40, 15, 8)])
def test_segments_are_apart_and_never_across_a_cut(cuts: list[int], total: int, count: int, frames: int) -> None:
    starts = plan_segments(cuts, total, count, frames)
    assert 1 <= len(starts) <= count and starts[-1] + frames <= total
    assert all(b - a >= frames for a, b in pairwise(starts))
    assert not any(start < cut < start + frames for start in starts for cut in cuts)


def test_segments_are_spread_evenly_and_a_short_video_gives_fewer() -> None:
    starts = plan_segments([], 1000, 5, 10)
    gaps = [b - a for a, b in pairwise(starts)]
    assert len(starts) == 5 and max(gaps) - min(gaps) <= 10 and starts[0] < 10 and starts[-1] >= 980
    assert plan_segments([], 25, 5, 10) == [1, 14]
    assert plan_segments([], 10, 5, 10) == [0] and plan_segments([], 9, 5, 10) == []


def test_frames_are_shrunk_by_area() -> None:
    image = torch.zeros(1, 3, 32, 64)
    image[..., :, 16:48] = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    square = shrink(image, 16)
    assert square.shape[-2:] == (16, 16)
    # The middle square, and nothing else: its mean is kept.
    assert torch.allclose(square.mean(), image[..., 16:48].mean(), atol=1e-6)
    assert shrink(image, 32, square=False).shape[-2:] == (24, 48)


def test_the_frames_of_a_segment_are_those_of_the_video(tmp_path: Path) -> None:
    shot = moving(12, (0.7, 0.5, 0.3), height=32, width=32)
    (tmp_path / "v").mkdir()
    folder = Clip(shot, name="v").write(tmp_path)
    parts = list(segments_of(open_clip(folder), 2, 5, 32))
    assert [part.start for part in parts] == plan_segments([], 12, 2, 5)
    for part in parts:
        # 8-bit files.
        assert torch.allclose(part.clip.frames, shot[part.start : part.start + 5], atol=0.003)


def test_videos_become_shards_and_are_not_labelled_twice(tmp_path: Path) -> None:
    one = video(tmp_path / "one.mp4", moving(9, (0.8, 0.2, 0.1)), moving(9, (0.1, 0.3, 0.8)))
    inverse = FakeInverse()
    done = autolabel(options(tmp_path / "out", one), inverse=inverse, estimator=white)
    assert (done["clips"], done["labelled"], done["reused"], inverse.calls) == (3, 3, 0, 3)
    clips = list(read_shards(tmp_path / "out"))
    assert [clip.meta["segment"] for clip in clips] == [0, 1, 2]
    for clip in clips:
        assert clip.meta["real"] is True and clip.meta["source"] == "one.mp4" and clip.meta["light"]["source"] == "function"
        assert clip.clip.frames.shape == (4, 3, 16, 16) and clip.gbuffer.depth.shape == (4, 1, 16, 16)
        assert clip.environment.radiance.shape == (3, 64, 128) and torch.equal(clip.lookup, torch.eye(3).expand(4, 3, 3))
        assert str(tmp_path) not in str(clip.meta)
    two = video(tmp_path / "two.mp4", moving(9, (0.2, 0.6, 0.3)))
    done = autolabel(options(tmp_path / "out", one, two), inverse=inverse, estimator=white)
    assert (done["clips"], done["labelled"], done["reused"], inverse.calls) == (5, 2, 3, 5)
    again = autolabel(options(tmp_path / "out", one), inverse=FakeInverse(), estimator=white)
    assert (again["clips"], again["labelled"]) == (3, 0) and len(list(read_shards(tmp_path / "out"))) == 3


def test_a_run_that_is_stopped_goes_on(tmp_path: Path) -> None:
    path = video(tmp_path / "one.mp4", moving(16, (0.8, 0.2, 0.1)))

    class Stopped(FakeInverse):
        def __call__(self, clip: Clip, *, seed: int = 0) -> GBuffer:
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().__call__(clip, seed=seed)

    class Same(Stopped):
        """Goes by the name of `Stopped`, for the model's name is part of what a label is."""

        __call__ = FakeInverse.__call__

    Same.__name__ = "Stopped"
    with pytest.raises(KeyboardInterrupt):
        autolabel(options(tmp_path / "out", path), inverse=Stopped(), estimator=white)
    done = autolabel(options(tmp_path / "out", path), inverse=Same(), estimator=white)
    assert (done["labelled"], done["reused"], done["clips"]) == (1, 2, 3)


def test_what_cannot_be_used_is_skipped_and_named(tmp_path: Path) -> None:
    good = video(tmp_path / "good.mp4", moving(13, (0.8, 0.2, 0.1)))
    short = video(tmp_path / "short.mp4", moving(3, (0.8, 0.2, 0.1)))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(good.read_bytes()[:300])
    segment = f"good-{plan_segments([], 13, 3, 4)[1]:06d}"
    done = autolabel(options(tmp_path / "out", broken, short, good), inverse=FakeInverse(segment))
    assert done["clips"] == 2 and set(done["skipped"]) == {"broken.mp4", "short.mp4", segment}
    assert "4 frames in a row" in done["skipped"]["short.mp4"] and "only background" in done["skipped"][segment]
    with pytest.raises(InputError, match=r"none .*short\.mp4"):
        autolabel(options(tmp_path / "none", short), inverse=FakeInverse())


def test_lights_from_files_and_a_missing_one(tmp_path: Path) -> None:
    path = video(tmp_path / "one.mp4", moving(13, (0.8, 0.2, 0.1)))
    lights = tmp_path / "lights"
    lights.mkdir()
    first, second, _ = plan_segments([], 13, 3, 4)
    EnvironmentMap(torch.full((3, 8, 16), 2.0)).write(lights / f"one-{first:06d}.hdr")
    EnvironmentMap(torch.full((3, 8, 16), 3.0)).write(lights / f"one-{second:06d}.exr")
    done = autolabel(options(tmp_path / "out", path, light_dir=lights), inverse=FakeInverse())
    assert done["clips"] == 2 and any("no such file" in reason for reason in done["skipped"].values())
    EnvironmentMap(torch.full((3, 8, 16), 5.0)).write(lights / "one.exr")
    done = autolabel(options(tmp_path / "out", path, light_dir=lights), inverse=FakeInverse())
    found = [float(clip.environment.radiance.mean()) for clip in read_shards(tmp_path / "out")]
    assert not done["skipped"] and found == pytest.approx([2.0, 3.0, 5.0], rel=0.01)


def test_labels_are_what_a_data_set_may_hold() -> None:
    frames = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = FakeInverse()(Clip(frames))
    away = torch.tensor([0.6, 0.0, -0.8])[:, None, None].expand(2, 3, 8, 8)
    stored = absolute(GBuffer(**{**dict(made.tensors()), "normal": away}))
    seen = stored.mask.expand_as(stored.normal)
    # Relative depth 1, the last row, is background.
    assert stored.mask[0, 0, :, 0].tolist() == [True] * 7 + [False]
    assert (stored.depth[stored.mask] >= 1).all() and torch.isinf(stored.depth[~stored.mask]).all()
    assert torch.allclose(stored.normal.norm(dim=1)[stored.mask[:, 0]], torch.tensor(1.0)) and (stored.normal[~seen] == 0).all()
    # Rays lean by less than the camera's field of view.
    assert (stored.normal[:, 2][stored.mask[:, 0]] > -0.5).all()


@pytest.mark.parametrize("values", [{"segments": 0}, {"frames": 0}, {"size": 15}, {"size": 20}, {"shard_size": 0}])
def test_bad_options_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(InputError, match="--"):
        AutolabelOptions(**{"data": (), "out": Path("out")} | values)


def test_nothing_to_label_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --data"):
        autolabel(options(tmp_path / "out"))
    with pytest.raises(InputError, match="nothing there"):
        autolabel(options(tmp_path / "out", tmp_path / "missing.mp4"))
