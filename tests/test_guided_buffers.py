"""Buffers sharpened by the frames: edges come back, texture is not printed in, a stream is the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models_random import GROUPS, save_model
from torch import Tensor
from watched_clip import Watched

from diffusion_renderer.cli import main
from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.resize import resize
from diffusion_renderer.core.types import Clip, GBuffer
from diffusion_renderer.pipelines import DiffusionInverseRenderer, load_inverse
from diffusion_renderer.pipelines.guided import LEAST_ALIKE, guided_buffers, joint_upsampled, smoothed

PACKED = ("depth", "roughness", "metallic")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def softened(image: Tensor, size: tuple[int, int]) -> Tensor:
    """As a network with a soft decoder would give it: small, and blurred by three of its pixels."""
    return smoothed(resize(image, size), 3.0)


def two_halves(left: float, right: float, column: int = 51) -> Tensor:
    """96 x 128 pixels."""
    image = torch.full((1, 3, 96, 128), left)
    image[..., column:] = right
    return image


def test_an_edge_of_the_frame_is_an_edge_of_the_buffers() -> None:
    frame, truth = two_halves(0.3, 0.7), two_halves(0.2, 0.9)
    soft = softened(truth, (32, 24))
    normal = torch.stack((truth[:, 0], 1 - truth[:, 0], torch.full_like(truth[:, 0], 0.8)), dim=1)
    found = guided_buffers({PACKED: soft, ("normal",): softened(normal, (32, 24))}, frame)
    plain = resize(soft, (128, 96))[:, 1:2]
    # The pixels beside the edge: interpolation is off by 0.32 to 0.34, the guided buffer by 0.07 to 0.10: what blur took from
    # the two sides as wholes stays lost.
    beside = slice(49, 53)
    assert (plain - truth[:, :1])[..., beside].abs().min() > 0.25
    assert (found["roughness"] - truth[:, :1])[..., beside].abs().max() < 0.12
    torch.testing.assert_close(found["normal"].norm(dim=1), torch.ones(1, 96, 128))
    assert set(found) == {*PACKED, "normal"}


def test_what_is_constant_stays_so_whatever_the_frame_shows() -> None:
    images = {PACKED: torch.full((2, 3, 12, 16), 0.4), ("normal",): torch.tensor([0.5, 0.5, 1.0]).view(1, 3, 1, 1)}
    images[("normal",)] = images[("normal",)].expand(2, 3, 12, 16)
    found = guided_buffers(images, random(2, 3, 48, 64))
    for name in PACKED:
        # Means of one value: rounding of sums over 200 weights, 3e-7 measured.
        torch.testing.assert_close(found[name], torch.full((2, 1, 48, 64), 0.4), rtol=0, atol=1e-5)
    torch.testing.assert_close(found["normal"], torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(2, 3, 48, 64))


def test_texture_of_the_frame_is_not_printed_into_a_ramp() -> None:
    """A checkerboard over roughness that rises from left to right: rows of the board differ, those of roughness hardly."""
    board = ((torch.arange(96)[:, None] // 6 + torch.arange(128) // 6) % 2).float()
    ramp = torch.linspace(0.2, 0.8, 32).expand(1, 3, 24, 32)
    found = guided_buffers({PACKED: ramp}, (0.3 + 0.4 * board).expand(1, 3, 96, 128))["roughness"]
    # Not counting the borders, where means have one side only. Standard deviation along columns, where the truth has none:
    # 0.006 measured; the board's own is 0.2.
    inner = found[..., 8:-8, 16:-16]
    assert inner.std(dim=-2).max() < 0.012


def test_reflectance_has_the_frames_texture_without_its_shading() -> None:
    """Stripes under light that falls off: nearer to the truth than the soft estimate, and than the frame."""
    stripes = 0.2 + 0.5 * ((torch.arange(128) // 4) % 2).float()
    albedo = torch.stack((stripes, 0.8 * stripes, 0.5 * stripes))[None, :, None].expand(1, 3, 96, 128).contiguous()
    light = torch.linspace(0.3, 1.0, 96)[:, None]
    frame = srgb_oetf(albedo * light)
    soft = softened(srgb_oetf(albedo), (32, 24))
    found = guided_buffers({("basecolor",): soft}, frame)["basecolor"]

    def error(estimate: Tensor) -> float:
        return float((estimate - albedo).square().mean().sqrt())

    # Measured: 0.20 for the soft estimate, 0.17 for the frame, 0.065 for the guided one (0.027 where nothing keeps it near the
    # estimate).
    assert error(found) < 0.5 * min(error(srgb_eotf(resize(soft, (128, 96)))), error(srgb_eotf(frame)))


def test_black_stays_black_and_nothing_leaves_its_range() -> None:
    images, frames = {("basecolor",): torch.zeros(1, 3, 8, 8)}, random(1, 3, 16, 16)
    frames[..., :8] = 0.0
    # Rounding of (x + d) exp(log(...)) - d; 0 measured.
    torch.testing.assert_close(
        guided_buffers(images, frames)["basecolor"][..., :8], torch.zeros(1, 3, 16, 8), rtol=0, atol=1e-5
    )
    white = guided_buffers({("basecolor",): torch.ones(1, 3, 8, 8)}, frames)["basecolor"]
    assert 0 <= white.min() and white.max() <= 1


@pytest.mark.parametrize("size", [(16, 12), (12, 9), (8, 6)])
def test_frames_of_the_working_size_or_smaller(size: tuple[int, int]) -> None:
    """Filtered there, and scaled down; a mean of several pixels of random images differs from them."""
    soft, frames = random(2, 3, 12, 16), random(2, 3, size[1], size[0], seed=1)
    found = guided_buffers({PACKED: soft}, frames)["depth"]
    assert found.shape == (2, 1, size[1], size[0]) and bool(found.isfinite().all())
    assert found.std() < soft.std()


def nearest_three(count: int, wanted: int) -> list[tuple[Tensor, Tensor]]:
    """Of each of ``wanted`` pixels along an axis the small pixels and their weights, of a quadratic B-spline."""
    place = (torch.arange(wanted) + 0.5) * count / wanted - 0.5
    nearest = place.round().clamp(0, count - 1)
    aside = (place - nearest).clamp(-0.5, 0.5)
    weights = (0.5 * (0.5 - aside) ** 2, 0.75 - aside**2, 0.5 * (0.5 + aside) ** 2)
    return [((nearest.long() + step).clamp(0, count - 1), weight) for step, weight in zip((-1, 0, 1), weights, strict=True)]


@pytest.mark.parametrize(("small", "large"), [((12, 16), (48, 64)), ((9, 17), (50, 127)), ((5, 7), (6, 8))])
def test_enlarging_is_the_plain_form(small: tuple[int, int], large: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One neighbour after the other, every pixel looked up: slow, readable."""
    values, colours, guide = random(2, 5, *small), random(2, 3, *small, seed=1), random(2, 3, *large, seed=2)
    total, weights = torch.zeros(2, 5, *large), torch.zeros(2, 1, *large)
    for row, down in nearest_three(small[0], large[0]):
        for column, across in nearest_three(small[1], large[1]):
            apart = (colours[:, :, row][..., column] - guide).square().sum(dim=1, keepdim=True)
            weight = (torch.exp(-0.5 * apart / 0.05**2) + LEAST_ALIKE) * down[:, None] * across
            total, weights = total + weight * values[:, :, row][..., column], weights + weight
    monkeypatch.setattr("diffusion_renderer.pipelines.guided.STRIP", 600)
    # Squares of colours are expanded in the fast form: 1.4e-5 measured.
    torch.testing.assert_close(joint_upsampled(values, colours, guide, 0.05), total / weights, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> DiffusionInverseRenderer:
    settings = {"groups": GROUPS, "decode_chunk": 2, "working_area": 256, "guided": True}
    return load_inverse(save_model(tmp_path_factory.mktemp("models") / "guided", "inverse", **settings), device="cpu")


def test_a_stream_reads_once_and_goes_on_with_the_same_frames(guided: DiffusionInverseRenderer, unchecked: None) -> None:
    clip, points = Watched(Clip(random(11, 3, 32, 40))), []
    whole = guided(clip, note=points.append)
    assert clip.read == [0, 2, 4, 6, 8, 10]
    rest = GBuffer.join(guided.stream(clip, resume=points[2]), 11 - points[2].frame)
    assert points[2].frame == 6
    for name, tensor in rest.tensors():
        # The same windows, the same frames beside them. Measured: 0.
        torch.testing.assert_close(tensor, getattr(whole, name)[6:], rtol=0, atol=1e-6, msg=name)


def test_frames_do_not_influence_each_other() -> None:
    soft, frames = random(5, 3, 6, 8), random(5, 3, 24, 32, seed=1)
    whole = guided_buffers({PACKED: soft}, frames)["depth"]
    assert torch.equal(guided_buffers({PACKED: soft[2:4]}, frames[2:4])["depth"], whole[2:4])


def test_guidance_is_off_unless_the_model_or_the_call_asks_for_it(guided: DiffusionInverseRenderer, tmp_path: Path) -> None:
    clip = Clip(random(3, 3, 32, 40))
    settings = {"groups": GROUPS, "decode_chunk": 2, "working_area": 256}
    plain = load_inverse(save_model(tmp_path / "plain", "inverse", **settings), device="cpu")
    off, on = plain(clip), guided(clip)
    assert all(torch.equal(getattr(guided(clip, guided=False), name), tensor) for name, tensor in off.tensors())
    assert all(torch.equal(getattr(plain(clip, guided=True), name), tensor) for name, tensor in on.tensors())
    assert not torch.allclose(on.depth, off.depth, atol=1e-3)


def test_the_command_line_leaves_guidance_out_when_asked(guided: DiffusionInverseRenderer, tmp_path: Path) -> None:
    image = Clip(random(1, 3, 32, 40), name="shot").write(tmp_path / "shot") / "0000.rgb.png"
    made = {}
    for options in ((), ("--unguided",)):
        words = ["inverse", str(image), "-o", str(tmp_path / "out"), "--model", str(guided.checkpoint.folder), *options]
        assert main([*words, "--format", "exr", "--device", "cpu", "--buffers", "roughness"]) == 0
        (file,) = (tmp_path / "out").rglob("*.exr")
        made[options] = file.read_bytes()
    # The second is not taken for a result that is there already.
    assert made[()] != made["--unguided",]
