"""Metrics: known values, masks, failures, directions."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.evaluation.metrics import (
    DEFAULT_METRICS,
    MASK_RULES,
    METRICS,
    SPACES,
    WHAT_SPACE,
    Context,
    base,
    choose,
    perceptual,
    video,
)
from diffusion_renderer.evaluation.motion import Motion

HERE = [name for name, metric in METRICS.items() if metric.unavailable() is None]
EVERYWHERE = torch.ones(2, 1, 16, 24, dtype=torch.bool)


def pictures(channels: int = 3, seed: int = 0) -> Tensor:
    """Two frames of smooth colours between 0.2 and 0.7."""
    coarse = torch.rand(2, channels, 4, 6, generator=torch.Generator().manual_seed(seed))
    return 0.2 + 0.5 * torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")


def normals(seed: int = 0) -> Tensor:
    values = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


def turned(vectors: Tensor, degrees: Tensor) -> Tensor:
    """Vectors turned by the given angles (``frames height width``) about an axis at right angles to each."""
    axis = torch.nn.functional.normalize(torch.linalg.cross(vectors, vectors.roll(1, dims=1), dim=1), dim=1)
    angle = torch.deg2rad(degrees)[:, None]
    return vectors * angle.cos() + torch.linalg.cross(axis, vectors, dim=1) * angle.sin()


def still(frames: int = 2, height: int = 16, width: int = 24) -> Context:
    return Context(motion=Motion.still(frames, height, width))


def inputs(name: str) -> tuple[Tensor, Tensor, Context]:
    """(estimate, truth, context) that any metric of this space can be asked about."""
    space = METRICS[name].spaces[0]
    if space == "vector":
        return turned(normals(), torch.full((2, 16, 24), 9.0)), normals(), still()
    if space == "depth":
        # In scene units: an estimate that lies in [0, 1] would be taken for relative depth.
        return 4 * pictures(1, 1), 4 * pictures(1), still()
    return pictures(seed=1), pictures(), still()


# ------------------------------------------------------------------ every metric


@pytest.mark.parametrize("name", HERE)
def test_the_truth_has_the_best_value_and_an_error_a_worse_one(name: str) -> None:
    metric = METRICS[name]
    estimate, truth, context = inputs(name)
    perfect, found = (metric(x, truth, EVERYWHERE, context) for x in (truth, estimate))
    assert perfect == pytest.approx(metric.best, abs=1e-5)
    assert metric.better(metric.best, metric.worst) and not metric.better(found, perfect)
    assert min(metric.best, metric.worst) <= found <= max(metric.best, metric.worst)
    if not name.startswith("angle<"):
        assert metric.better(perfect, found)


@pytest.mark.parametrize("name", [name for name in HERE if name != "depth-rmse"])
def test_what_is_outside_the_mask_does_not_matter(name: str) -> None:
    metric = METRICS[name]
    estimate, truth, context = inputs(name)
    mask = EVERYWHERE.clone()
    mask[:, :, :, 15:] = False
    for garbage in (0.9, -3.0, math.nan, math.inf):
        other = torch.where(mask, estimate, garbage)
        assert metric(other, truth, mask, context) == metric(estimate, truth, mask, context)
    assert metric(estimate, truth, mask, context) != metric(estimate, truth, EVERYWHERE, context) or name.startswith("angle")


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_value_under_the_mask_is_no_figure(name: str, bad: float) -> None:
    estimate, truth, context = inputs(name)
    estimate = estimate.clone()
    estimate[1, 0, 3, 4] = bad
    assert math.isnan(METRICS[name](estimate, truth, EVERYWHERE, context))


@pytest.mark.parametrize("name", HERE)
def test_an_empty_mask_and_a_truth_without_values_are_no_figure(name: str) -> None:
    estimate, truth, context = inputs(name)
    assert math.isnan(METRICS[name](estimate, truth, torch.zeros_like(EVERYWHERE), context))
    assert math.isnan(METRICS[name](estimate, torch.full_like(truth, math.inf), EVERYWHERE, context))


def test_nan_is_never_better() -> None:
    for metric in METRICS.values():
        assert not metric.better(math.nan, metric.worst) and not metric.better(metric.best, math.nan)


def test_descriptions_are_complete_and_titles_differ() -> None:
    assert len({metric.name for metric in METRICS.values()}) == len(METRICS)
    for metric in METRICS.values():
        assert metric.mask_rule in MASK_RULES and set(metric.spaces) <= set(SPACES)


# ------------------------------------------------------------------ values


def test_constant_offsets() -> None:
    truth = pictures()
    estimate = truth + torch.tensor([0.1, -0.1, 0.1])[:, None, None]
    assert METRICS["psnr"](estimate, truth, EVERYWHERE) == pytest.approx(20.0, abs=1e-4)
    assert METRICS["rmse"](estimate, truth, EVERYWHERE) == pytest.approx(0.1, abs=1e-6)
    assert METRICS["mae"](estimate, truth, EVERYWHERE) == pytest.approx(0.1, abs=1e-6)
    estimate[0] = truth[0]  # half of the pixels: the mean square halves
    assert METRICS["psnr"](estimate, truth, EVERYWHERE) == pytest.approx(20.0 + 10 * math.log10(2), abs=1e-4)


def test_a_scale_per_channel_is_forgiven_by_si_psnr_alone() -> None:
    truth = pictures()
    estimate = truth * torch.tensor([0.5, 1.3, 0.8])[:, None, None]
    assert METRICS["si-psnr"](estimate, truth, EVERYWHERE) == pytest.approx(100.0)
    assert METRICS["psnr"](estimate, truth, EVERYWHERE) < 25
    # One scale for the clip, so frames that differ in scale are not forgiven.
    estimate[1] = 2 * estimate[1]
    assert METRICS["si-psnr"](estimate, truth, EVERYWHERE) < 25
    for seed in range(5):
        noisy = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed))
        assert METRICS["si-psnr"](noisy, truth, EVERYWHERE) >= METRICS["psnr"](noisy, truth, EVERYWHERE)
    assert METRICS["si-psnr"](torch.zeros_like(truth), truth, EVERYWHERE) == METRICS["psnr"](
        torch.zeros_like(truth), truth, EVERYWHERE
    )


def test_the_scale_is_found_under_the_mask() -> None:
    truth = pictures()
    mask = EVERYWHERE.clone()
    mask[..., :8] = False
    estimate = torch.where(mask, 0.5 * truth, 1.0 - truth)
    assert METRICS["si-psnr"](estimate, truth, mask) == pytest.approx(100.0)


def test_turned_normals() -> None:
    truth = normals()
    degrees = torch.tensor([3.0, 6.0, 10.0, 20.0, 25.0, 120.0]).repeat(2, 16, 4)
    estimate = 3 * turned(truth, degrees)
    # Measured 1e-6 and 4e-6 degrees: the float32 rotation of the test itself.
    assert METRICS["angle-mean"](estimate, truth, EVERYWHERE) == pytest.approx(float(degrees.mean()), abs=1e-3)
    assert METRICS["angle-median"](estimate, truth, EVERYWHERE) == pytest.approx(10.0, abs=1e-3)
    shares = {"5": 1, "7.5": 2, "11.25": 3, "22.5": 4, "30": 5}
    for limit, sixths in shares.items():
        assert METRICS[f"angle<{limit}"](estimate, truth, EVERYWHERE) == pytest.approx(100 * sixths / 6)


def test_normals_without_direction() -> None:
    truth = normals()
    assert METRICS["angle-mean"](torch.zeros_like(truth), truth, EVERYWHERE) == 90.0
    hole = truth.clone()
    hole[..., :12] = 0.0  # nothing was hit: such pixels do not count
    estimate = truth.clone()
    estimate[..., :12] = -1.0
    assert METRICS["angle-mean"](estimate, hole, EVERYWHERE) == pytest.approx(0.0, abs=1e-5)
    assert math.isnan(METRICS["angle-mean"](estimate, torch.zeros_like(truth), EVERYWHERE))
    assert math.isnan(METRICS["angle-median"](estimate, torch.zeros_like(truth), EVERYWHERE))
    assert math.isnan(METRICS["angle<5"](estimate, torch.zeros_like(truth), EVERYWHERE))


def test_affine_depth_is_exact_after_alignment() -> None:
    truth = 2 + 3 * pictures(1)
    for estimate in (0.1 * truth - 0.05, truth, (truth - truth.min()) / (truth.max() - truth.min())):
        assert METRICS["absrel"](estimate, truth, EVERYWHERE) == pytest.approx(0.0, abs=1e-6)
        assert METRICS["delta1"](estimate, truth, EVERYWHERE) == 100.0
    # One scale and shift for the clip: a frame with another scale is an error.
    other = truth.clone()
    other[1] = 1.5 * other[1]
    assert METRICS["absrel"](other, truth, EVERYWHERE) > 0.05


def test_depth_of_known_error() -> None:
    truth = torch.tensor([1.0, 2.0, 4.0, 5.0]).repeat(2, 1, 16, 6)
    flat = torch.ones_like(truth)  # best fit: the mean, 3
    assert METRICS["absrel"](flat, truth, EVERYWHERE) == pytest.approx((2 / 1 + 1 / 2 + 1 / 4 + 2 / 5) / 4)
    assert METRICS["delta1"](flat, truth, EVERYWHERE) == 0.0
    # Near for far is not forgiven: the same as no depth at all.
    assert METRICS["absrel"](-truth, truth, EVERYWHERE) == pytest.approx(METRICS["absrel"](flat, truth, EVERYWHERE))
    # The background is infinite and does not count.
    background = truth.clone()
    background[..., 0, :] = math.inf
    assert METRICS["absrel"](2 * truth + 1, background, EVERYWHERE) == pytest.approx(0.0, abs=1e-6)


def test_an_aligned_depth_below_zero_is_a_miss_and_counts_in_full() -> None:
    truth = torch.full((2, 1, 16, 24), 1.0)
    truth[:, :, ::2, 1::2] = 9.0
    truth[0, 0, 1, 0] = 0.1
    estimate = truth.clone()
    estimate[0, 0, 1, 0] = -3.0
    e, t = estimate.double().flatten(), truth.double().flatten()
    slope, shift = np.polyfit(e.numpy(), t.numpy(), 1)
    a = slope * e + shift
    assert a.min() < 0
    assert METRICS["absrel"](estimate, truth, EVERYWHERE) == pytest.approx(float(((a - t).abs() / t).mean()), rel=1e-9)
    inside = (a > 0) & (torch.maximum(a / t, t / a) < 1.25)
    assert not inside[24] and METRICS["delta1"](estimate, truth, EVERYWHERE) == pytest.approx(
        100 * float(inside.double().mean())
    )


def test_relative_depth_rmse_takes_depth_and_relative_depth() -> None:
    truth = torch.tensor([2.0, 3.0, 4.0, 6.0]).repeat(2, 1, 16, 6)
    relative = (truth - 2) / 4
    assert METRICS["depth-rmse"](relative, truth, EVERYWHERE) == pytest.approx(0.0, abs=1e-7)
    assert METRICS["depth-rmse"](relative**2, truth, EVERYWHERE) == pytest.approx(
        math.sqrt(((relative - relative**2) ** 2).mean()), rel=1e-5
    )
    # Relative depth is not stretched once more, or every constant would be taken for 0.
    half = torch.full_like(relative, 0.5)
    assert METRICS["depth-rmse"](half, truth, EVERYWHERE) == pytest.approx(math.sqrt(((relative - 0.5) ** 2).mean()), rel=1e-5)


# ------------------------------------------------------------------ SSIM, FLIP


def reference_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang et al. 2004, equation 13, one channel: every window by hand, the picture mirrored at its border."""
    offsets = np.arange(-5, 6)
    weight = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(weight, weight) / weight.sum() ** 2
    a, b = np.pad(a, 5, mode="reflect"), np.pad(b, 5, mode="reflect")
    result = np.empty((a.shape[0] - 10, a.shape[1] - 10))
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            x, y = a[row : row + 11, column : column + 11], b[row : row + 11, column : column + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy, vxy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum(), (window * (x - mx) * (y - my)).sum()
            top = (2 * mx * my + 0.01**2) * (2 * vxy + 0.03**2)
            result[row, column] = top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))
    return result


def test_ssim_agrees_with_the_definition() -> None:
    pytest.importorskip("torchmetrics")
    estimate, truth = pictures(seed=1), pictures()
    maps = np.array(
        [
            [reference_ssim(a, b) for a, b in zip(*pair, strict=True)]
            for pair in zip(estimate.double().numpy(), truth.double().numpy(), strict=True)
        ]
    )
    # Measured differences 6e-6 and 1.2e-5: torchmetrics takes variances in float32 as differences of squares.
    assert METRICS["ssim"](estimate, truth, EVERYWHERE) == pytest.approx(maps.mean(), abs=1e-4)
    mask = torch.zeros_like(EVERYWHERE)
    mask[:, :, 6:10, 8:16] = True
    grey = [torch.where(mask, p, 0.5).double().numpy() for p in (estimate, truth)]
    maps = np.array([[reference_ssim(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(*grey, strict=True)])
    assert METRICS["ssim"](estimate, truth, mask) == pytest.approx(maps[:, :, 6:10, 8:16].mean(), abs=1e-4)


def test_flip_sees_what_people_see() -> None:
    pytest.importorskip("flip_evaluator")
    white, black = torch.ones(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    flip = METRICS["flip"]
    far = flip(black, white, mask)
    assert 0.9 < far <= 1.0  # 0.967 measured: FLIP is scaled so that its largest difference, green to blue, is 1
    assert flip(0.98 * white, white, mask) < 0.1 * far
    # Beyond the display's range nothing can be seen.
    assert flip(1.7 * white, white, mask) == pytest.approx(0.0, abs=1e-6)


def test_flip_looks_as_its_library_does_by_default() -> None:
    evaluator = pytest.importorskip("flip_evaluator")
    estimate, truth = pictures(seed=1)[:1], pictures()[:1]
    images = [p[0].permute(1, 2, 0).contiguous().numpy() for p in (truth, estimate)]
    _, mean, used = evaluator.evaluate(*images, "LDR")
    assert METRICS["flip"](estimate, truth, EVERYWHERE[:1]) == pytest.approx(mean, abs=1e-5)
    assert used["ppd"] == pytest.approx(perceptual.FLIP_PIXELS_PER_DEGREE, abs=0.01)


# ------------------------------------------------------------------ LPIPS, JOD: behaviour without weights and packages


class MeanDistance(torch.nn.Module):
    """In the backbone's place: mean absolute difference. Remembers the sizes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        assert 0 <= min(first.min(), second.min()) and max(first.max(), second.max()) <= 1
        self.sizes.append(tuple(first.shape))
        return (first - second).abs().mean()


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> MeanDistance:
    network = MeanDistance()
    monkeypatch.setattr(perceptual, "lpips_network", lambda: network)
    for name in ("lpips", "si-lpips"):
        monkeypatch.setitem(METRICS, name, replace(METRICS[name], reason=lambda: None))
    return network


def test_lpips_is_asked_about_the_box_of_the_mask(backbone: MeanDistance) -> None:
    truth = torch.full((3, 3, 100, 160), 0.4)
    mask = torch.zeros(3, 1, 100, 160, dtype=torch.bool)
    mask[0, :, 40:60, 20:90] = True
    mask[2, :, 42:50, 80:120] = True
    estimate = torch.where(mask, truth + 0.1, math.nan)
    found = METRICS["lpips"](estimate, truth, mask)
    assert backbone.sizes == [(1, 3, 64, 100)] * 3  # 20 rows grow to 64; columns 20 to 120
    assert found == pytest.approx(0.1 * float(mask.sum()) / (3 * 64 * 100), rel=1e-5)


def test_si_lpips_forgives_a_scale(backbone: MeanDistance) -> None:
    truth = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1, 40, 48, dtype=torch.bool)
    assert METRICS["si-lpips"](0.5 * truth, truth, mask) == pytest.approx(0.0, abs=1e-6)
    assert METRICS["lpips"](0.5 * truth, truth, mask) == pytest.approx(float(truth.mean()) / 2, rel=1e-5)
    assert backbone.sizes == [(1, 3, 40, 48)] * 4
    with pytest.raises(InputError, match="32x32"):
        METRICS["lpips"](truth[..., :20], truth[..., :20], mask[..., :20])


def test_lpips_says_why_it_is_unavailable_and_never_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def no_download(*args: object) -> None:
        raise AssertionError("tried to load the backbone")

    monkeypatch.setattr(perceptual, "lpips_network", no_download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv(perceptual.DOWNLOAD, raising=False)
    monkeypatch.setattr(perceptual, "not_installed", lambda module, package: None)
    assert perceptual.DOWNLOAD in METRICS["lpips"].unavailable()
    picture = torch.zeros(1, 3, 32, 32)
    with pytest.raises(InputError, match="AlexNet"):
        METRICS["lpips"](picture, picture, torch.ones(1, 1, 32, 32, dtype=torch.bool))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert METRICS["lpips"].unavailable() is None
    monkeypatch.setattr(perceptual, "not_installed", lambda module, package: f"the package {package} is not installed")
    assert "torchmetrics" in METRICS["si-lpips"].unavailable()


def test_a_download_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    tries = []

    def fails() -> None:
        tries.append(1)
        raise OSError("no route to host")

    monkeypatch.setattr(perceptual, "lpips_network", fails)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "not_installed", lambda module, package: None)
    monkeypatch.setenv(perceptual.DOWNLOAD, "1")
    perceptual._download_failure.cache_clear()
    assert "no route to host" in METRICS["lpips"].unavailable() and METRICS["si-lpips"].unavailable()
    assert len(tries) == 1
    perceptual._download_failure.cache_clear()


def test_jod_asks_its_package_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Recorder:
        def __init__(self, **settings: object) -> None:
            calls.append(settings)

        def predict(self, test: Tensor, reference: Tensor, **settings: object) -> tuple[Tensor, dict]:
            calls.append((test, reference, settings))
            return torch.tensor(9.5), {}

    monkeypatch.setitem(sys.modules, "pycvvdp", SimpleNamespace(cvvdp=Recorder))
    monkeypatch.setattr(video, "not_installed", lambda module, package: None)
    video._model.cache_clear()
    truth = torch.rand(2, 3, 80, 100, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1, 80, 100, dtype=torch.bool)
    mask[..., 90:] = False
    assert METRICS["jod"](1.5 * truth, truth, mask, Context(fps=12.0)) == 9.5
    video._model.cache_clear()
    settings, (test, reference, asked) = calls
    assert settings["display_name"] == "standard_4k" and asked == {"dim_order": "FCHW", "frames_per_second": 12.0}
    assert torch.equal(reference, truth[..., :90]) and torch.equal(test, (1.5 * truth).clamp(0, 1)[..., :90])


def test_jod_without_its_package_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "not_installed", lambda module, package: f"the package {package} is not installed")
    assert "cvvdp" in METRICS["jod"].unavailable()
    picture = torch.zeros(1, 3, 64, 64)
    with pytest.raises(InputError, match="cvvdp"):
        METRICS["jod"](picture, picture, torch.ones(1, 1, 64, 64, dtype=torch.bool))


def test_a_library_that_cannot_be_imported_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "half_installed.py").write_text("raise RuntimeError('built for\\nanother torch')")
    monkeypatch.syspath_prepend(tmp_path)
    assert base.not_installed("half_installed", "half") == (
        "the package half cannot be imported (RuntimeError: built for another torch)"
    )
    assert base.not_installed("never_installed", "never") == "the package never is not installed"
    assert base.not_installed("json", "json") is None


# ------------------------------------------------------------------ names


def test_every_default_exists_and_applies() -> None:
    assert DEFAULT_METRICS.keys() == WHAT_SPACE.keys()
    for what, names in DEFAULT_METRICS.items():
        assert [METRICS[name] for name in names] == list(choose(what))


def test_one_list_of_names_serves_all_buffers() -> None:
    names = ("psnr", "angle<11.25", "psnr", "absrel", "rmse")
    assert choose("basecolor", names) == (METRICS["psnr"], METRICS["rmse"])
    assert choose("normal", names) == (METRICS["angle<11.25"],)
    assert choose("depth", names) == (METRICS["absrel"],)
    assert choose("depth", ("ssim",)) == ()


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean si-psnr\?"):
        choose("rgb", ("sipsnr",))
    with pytest.raises(InputError, match=r"did you mean angle<11.25\?"):
        choose("normal", ("angle<11.2",))
    with pytest.raises(InputError, match=r"did you mean basecolor\?"):
        choose("base_color")
