"""Videos of any length: the same result as from the whole clip at once, in order, with bounded reading, from any point on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from models_random import save_model
from torch import Tensor
from watched_clip import Watched

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import rotation_y
from diffusion_renderer.core.store import BoundedStore, content_key, tensor_bytes
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.diffusion import SOLVERS
from diffusion_renderer.models import attention
from diffusion_renderer.pipelines import DiffusionForwardRenderer, DiffusionInverseRenderer, load_forward, load_inverse
from diffusion_renderer.pipelines.depth import DepthAlignment, apply_lines, fit_depth
from diffusion_renderer.pipelines.held import HeldFrames
from diffusion_renderer.pipelines.noise import frame_noise
from diffusion_renderer.pipelines.resuming import ResumePoint
from diffusion_renderer.pipelines.seams import border_pairs, handover_pairs, seam_ratio
from diffusion_renderer.pipelines.windows import Sampled, blend_weights, first_window, plan_windows, sample_windows

SIGMAS = torch.tensor([9.0, 4.0, 2.0, 0.7, 0.0])
CASES = [(3, 4, 1), (11, 4, 1), (13, 6, 4), (5, 1, 0)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def inverse(tmp_path_factory: pytest.TempPathFactory) -> DiffusionInverseRenderer:
    folder = save_model(tmp_path_factory.mktemp("models") / "inverse", "inverse", decode_chunk=2)
    return load_inverse(folder, device="cpu")


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> DiffusionForwardRenderer:
    folder = save_model(tmp_path_factory.mktemp("models") / "forward", "forward", decode_chunk=2)
    return load_forward(folder, device="cpu")


def toy(window: slice, x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser in which every frame of a window depends on all others, on the window and on the noise level."""
    return 0.5 * x / (1 + sigma) + 0.3 * x.mean(dim=0, keepdim=True).tanh() + 0.05 * (window.start % 5)


def whole_clip(windows: list[slice], overlap: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The plain path: at every noise level the estimates of all windows of the whole clip, blended."""
    weights = blend_weights(windows, overlap)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        total, weight_sum = torch.zeros_like(x), torch.zeros(len(x), 1, 1, 1)
        for window, weight in zip(windows, weights, strict=True):
            total[window] += weight[:, None, None, None] * toy(window, x[window], sigma)
            weight_sum[window] += weight[:, None, None, None]
        return total / weight_sum

    return denoise


def stream(case: tuple[int, int, int], solver: str, x: Tensor, first: int = 0) -> Iterator[Sampled]:
    windows = plan_windows(*case)
    solve = SOLVERS[solver]
    return sample_windows(lambda ask, x: solve(ask, x, SIGMAS), toy, lambda part: x[part], windows, case[2], first)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_windows_in_order_are_the_whole_clip_at_once(case: tuple[int, int, int], solver: str) -> None:
    x = frame_noise(0, "x", case[0], (2, 3, 3)) * SIGMAS[0]
    parts = list(stream(case, solver, x))
    expected = SOLVERS[solver](whole_clip(plan_windows(*case), case[2]), x, SIGMAS)
    # The same sums of the same numbers; on other machines vectorised arithmetic may round the last place otherwise.
    torch.testing.assert_close(torch.cat([part.latents for part in parts]), expected, rtol=0, atol=1e-5)
    assert [part.frames.start for part in parts] == [0, *(part.frames.stop for part in parts[:-1])]
    for part in parts:
        torch.testing.assert_close(sum(part.weights.values()), torch.ones(len(part.latents)))


def test_frames_come_when_nothing_waits_for_them_and_few_are_held() -> None:
    """With 4 calls a frame waits for the 4 windows that it comes to depend on, whatever the clip's length."""
    behind = {}
    for frames in (60, 120):
        read = [0]

        def start(part: slice, read: list[int] = read) -> Tensor:
            read[0] = max(read[0], part.stop)
            return torch.ones(part.stop - part.start, 1, 1, 1)

        solve = lambda ask, x: SOLVERS["euler"](ask, x, SIGMAS)  # noqa: E731
        parts = sample_windows(solve, toy, start, plan_windows(frames, 8, 2), 2)
        behind[frames] = max(read[0] - min(part.frames.start, part.needed) for part in parts)
    assert behind[60] == behind[120] <= 5 * 8


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solver", ["unipc"])
def test_begun_in_the_middle_the_frames_are_the_same(case: tuple[int, int, int], solver: str) -> None:
    x = frame_noise(0, "x", case[0], (2, 3, 3)) * SIGMAS[0]
    whole = torch.cat([part.latents for part in stream(case, solver, x)])
    windows = plan_windows(*case)
    for frame in range(0, case[0], 3):
        first = first_window(windows, frame, len(SIGMAS) - 1)
        rest = torch.cat([part.latents for part in stream(case, solver, x, first)])[frame - windows[first].start :]
        torch.testing.assert_close(rest, whole[frame:], rtol=0, atol=1e-5)


def test_held_frames() -> None:
    read = []

    def pieces() -> Iterator[Tensor]:
        for start in range(4, 20, 4):
            read.append(start)
            yield torch.arange(start, start + 4)[:, None]

    held = HeldFrames(pieces(), 4)
    assert held[slice(6, 9)][:, 0].tolist() == [6, 7, 8] and read == [4, 8]
    held.forget(9)
    assert held[slice(8, 9)][:, 0].tolist() == [8]
    for gone in (slice(7, 9), slice(18, 21)):
        with pytest.raises(IndexError):
            held[gone]


def test_a_bounded_store_keeps_what_was_used_last() -> None:
    store, made = BoundedStore(3 * 8, tensor_bytes), []

    def get(key: int) -> Tensor:
        return store.get(key, lambda: made.append(key) or torch.zeros(2) + key)

    for key in (1, 2, 3, 1, 4, 1, 2):
        assert get(key)[0] == key and store.bytes <= store.limit
    assert made == [1, 2, 3, 4, 2]
    store.get(9, lambda: torch.zeros(100))
    assert store.bytes == 24


def test_content_decides_the_key() -> None:
    a = random(1, 3, 4, 4)
    assert content_key(a, True) == content_key(a.clone(), True)
    assert len({content_key(a, True), content_key(a, False), content_key(a + 1e-7, True), content_key(a.mT, True)}) == 4


def test_a_clip_is_read_once_and_no_faster_than_its_buffers_come(inverse: DiffusionInverseRenderer, unchecked: None) -> None:
    """Windows of 4 frames that share 1, pieces of 2: frames 0 to 2 are done when frame 3 has been read."""
    watched, ahead = Watched(Clip(random(22, 3, 16, 16))), []
    for index, _ in enumerate(inverse.stream(watched, buffers=("normal",), steps=1)):
        ahead.append(watched.read[-1] + 2 - 2 * (index + 1))
    assert max(ahead) <= 6 and len(ahead) == 11
    assert watched.read == sorted(set(watched.read))


def gbuffer_of(frames: int) -> GBuffer:
    normal = torch.nn.functional.normalize(random(frames, 3, 16, 16, seed=1) - 0.5, dim=1)
    ones = [random(frames, 1, 16, 16, seed=seed) for seed in (2, 3, 4)]
    return GBuffer(random(frames, 3, 16, 16), normal, 1 + ones[0], ones[1], ones[2])


LIGHT = EnvironmentMap(random(3, 16, 32, seed=5) * 3)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_stopped_call_goes_on_with_the_same_frames(
    inverse: DiffusionInverseRenderer, forward: DiffusionForwardRenderer, steps: int
) -> None:
    clip, points = Clip(random(13, 3, 16, 16)), []
    whole = inverse(clip, buffers=("depth",), steps=steps, note=points.append).depth
    assert [point.frame for point in points] == [2, 4, 6, 8, 10, 12]
    for point in (points[3],):
        rest = GBuffer.join(inverse.stream(clip, buffers=("depth",), steps=steps, resume=point), 13 - point.frame)
        # Windows of other batches of frames cannot differ: the same windows are computed. Measured: 0.
        torch.testing.assert_close(rest.depth, whole[point.frame :], rtol=0, atol=1e-6)
    gbuffer, rotations = gbuffer_of(13), torch.stack([rotation_y(0.2 * frame) for frame in range(13)])
    lit = forward(gbuffer, LIGHT, rotations=rotations, steps=steps).frames
    some = ResumePoint(7)
    rest = Clip.join(forward.stream(gbuffer, LIGHT, rotations=rotations, steps=steps, resume=some), 6).frames
    torch.testing.assert_close(rest, lit[7:], rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="from 0 to 12"):
        inverse.stream(clip, resume=ResumePoint(13))


def test_conditions_are_encoded_once_for_all_lights(
    forward: DiffusionForwardRenderer, inverse: DiffusionInverseRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gbuffer, encoded = gbuffer_of(3), []
    plain = type(forward.codec).encode
    monkeypatch.setattr(type(forward.codec), "encode", lambda *a, **k: encoded.append(len(a[1])) or plain(*a, **k))
    forward.kept_latents = BoundedStore(2**20, tensor_bytes)
    first = forward(gbuffer, LIGHT, steps=1).frames
    count = len(encoded)
    other = forward(gbuffer, EnvironmentMap(LIGHT.radiance.flip(2)), steps=1).frames
    assert (
        count == 2 * 5 + 3 and len(encoded) == count + 2
    )  # five images in two pieces, three of a light, whose directions are the same
    assert torch.equal(forward(gbuffer, LIGHT, steps=1).frames, first) and not torch.equal(first, other)
    forward.kept_latents = BoundedStore(0, tensor_bytes)
    assert torch.equal(forward(gbuffer, LIGHT, steps=1).frames, first)
    changed = GBuffer(gbuffer.basecolor * 0.9, gbuffer.normal, gbuffer.depth, gbuffer.roughness, gbuffer.metallic)
    assert not torch.equal(forward(changed, LIGHT, steps=1).frames, first)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_keys_and_values_of_a_light_at_rest_are_computed_once(
    forward: DiffusionForwardRenderer, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    condition = torch.cat([forward.encode(random(6, 3, 16, 16, seed=s)) for s in range(5)], dim=1)
    noise, light = frame_noise(0, "x", 6, (8, 4, 4)), random(1, 24, 8, 8)
    projected, plain = [], attention._projected
    monkeypatch.setattr(attention, "_projected", lambda *a: projected.append(a[0]) or plain(*a))
    kept = forward.denoise(condition, light, noise, 3, guidance=guidance)
    once = len(projected)
    projected.clear()
    monkeypatch.setattr(attention.Projections, "of", lambda self, *a: attention._projected(*a))
    assert torch.equal(kept, forward.denoise(condition, light, noise, 3, guidance=guidance))
    readers = {name for name, module in forward.unet.named_modules() if name.endswith("attn2") and hasattr(module, "to_k")}
    # Two windows of three steps; the branch without light reads one cell, of which no keys are computed.
    assert readers and len(projected) - once == len(readers) * (2 * 3 - 1)


def test_a_batch_of_groups_is_the_groups_one_by_one(tmp_path: Path) -> None:
    """In double precision: a network of a few channels, with norms over few values, makes 3e-4 of float32's rounding."""
    inverse = load_inverse(save_model(tmp_path / "inverse", "inverse", decode_chunk=2), device="cpu", dtype=torch.float64)
    clip = Clip(random(5, 3, 16, 16))
    single, batched = (inverse(clip, steps=2, batch_groups=size, align_depth=False) for size in (1, 3))
    for name, tensor in single.tensors():
        # Decoded images are float32 from there on.
        torch.testing.assert_close(getattr(batched, name), tensor, rtol=0, atol=1e-5, msg=name)


def test_a_fit_of_depths_is_the_line_between_them() -> None:
    depth = 0.2 + 0.5 * random(2, 1, 16, 16)
    assert fit_depth(depth, 0.8 * depth + 0.1) == pytest.approx((0.8, 0.1), abs=1e-5)
    background = depth.clone()
    background[..., :8] = 1.0
    assert fit_depth(background, 0.8 * depth + 0.1) == pytest.approx((0.8, 0.1), abs=1e-5)
    noise = [0.02 * torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    gain, _ = fit_depth(depth + noise[0], depth + noise[1]) or (0.0, 0.0)
    # Noise of the same size on both sides does not flatten the line; by chance of 512 pixels within 1 %.
    assert gain == pytest.approx(1.0, abs=0.01)
    for unfit in (torch.ones_like(depth), torch.full_like(depth, 0.5), random(2, 1, 16, 16, seed=9)):
        assert fit_depth(unfit, depth) is None


def test_windows_with_scales_of_their_own_come_on_one_scale() -> None:
    """Scene depth that drifts slowly, stretched and shifted by every window; latents are depth here."""
    frames, overlap = 60, 2
    windows = plan_windows(frames, 8, overlap)
    scene = 0.3 + 0.3 * random(1, 1, 12, 12) + 0.001 * torch.arange(frames)[:, None, None, None]
    own = [(0.8 + 0.4 * torch.rand(1).item(), 0.1 * torch.rand(1).item()) for _ in windows]
    own[0] = (1.0, 0.0)

    def denoise(window: slice, x: Tensor, sigma: Tensor) -> Tensor:
        gain, offset = own[windows.index(window)]
        return gain * scene[window] + offset

    solve = lambda ask, x: ask(x, torch.tensor(1.0))  # noqa: E731
    alignment, raw, lines = DepthAlignment(lambda latents: latents), [], []
    for part in sample_windows(solve, denoise, lambda part: scene[part], windows, overlap):
        alignment.add(part)
        raw.append(part.latents)
        lines.append(alignment.take(part.frames))
    before, after = torch.cat(raw), apply_lines(torch.cat(raw), torch.cat(lines))
    torch.testing.assert_close(after, scene, rtol=0, atol=1e-4)
    borders = border_pairs(windows)
    assert seam_ratio(before, borders) > 2
    assert seam_ratio(after, borders) == pytest.approx(1.0, abs=0.05)


def test_background_stays_and_depth_stays_in_range() -> None:
    depth = torch.tensor([0.0, 0.3, 0.9, 1.0]).reshape(1, 1, 2, 2)
    moved = apply_lines(depth, torch.tensor([[1.5, -0.2]]))
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.0, 0.25, 1.0, 1.0]))


def test_seams() -> None:
    still = torch.linspace(0, 1, 20)[:, None, None, None].expand(20, 1, 2, 2)
    windows = plan_windows(20, 8, 2)
    borders = border_pairs(windows)
    assert borders == [5, 6, 7, 11, 12, 13]
    assert handover_pairs(windows, 2) == borders
    # Half of the frames shared: shares of 0.10, 0.35, 0.65 and 0.90; the pair between two such stretches changes least.
    half = plan_windows(20, 8, 4)
    assert handover_pairs(half, 4) == [4, 5, 6, 8, 9, 10, 12, 13, 14] and len(border_pairs(half)) == 13
    assert seam_ratio(still, borders) == pytest.approx(1.0, abs=1e-4)
    jumping = still.clone()
    jumping[13:] += 0.5
    assert seam_ratio(jumping, borders) == pytest.approx(1 + 0.5 * 19 / 6, rel=1e-3)
    with pytest.raises(InputError, match="longer video"):
        seam_ratio(still[:6], borders)
