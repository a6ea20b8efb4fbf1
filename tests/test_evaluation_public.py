"""Public benchmarks on small folders in their own layouts: what is read, what is compared, and metrics against formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, GBuffer
from diffusion_renderer.datagen.readers import READERS, read_public
from diffusion_renderer.editing import relit_name
from diffusion_renderer.evaluation import EvaluateOptions, evaluate, systems
from diffusion_renderer.evaluation.public import BENCHMARKS, stanford_orb
from diffusion_renderer.evaluation.public.benchmark import pooled
from diffusion_renderer.evaluation.public.lmse import LMSE, SI_MSE, local_mse
from diffusion_renderer.evaluation.public.multi_illumination import TARGETS
from diffusion_renderer.evaluation.views import views
from diffusion_renderer.io.exr import write_exr
from diffusion_renderer.io.images import write_image

H, W = 36, 48


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def save_exr(path: Path, image: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_exr(path, dict(zip("RGB" if len(image) == 3 else "Y", image.numpy(), strict=True)))


def save_png(path: Path, image: torch.Tensor, bits: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, image, bits)


def object_mask() -> torch.Tensor:
    mask = torch.zeros(1, H, W)
    mask[:, 4:30, 6:40] = 1
    return mask


def test_every_benchmark_has_a_reader_and_says_what_it_cannot_do() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert name == benchmark.name and name in READERS
        assert benchmark.limits and benchmark.source and benchmark.rules
        assert set(benchmark.tasks) <= {"inverse", "relight"}
        for task in benchmark.tasks:
            titles = [(what, metric.name) for what, metric in benchmark.columns[task]]
            assert titles and len(set(titles)) == len(titles)


# LMSE


def brute_force(estimate: np.ndarray, truth: np.ndarray, mask: np.ndarray, window: int) -> float:
    """Window by window, the scale by numpy's least squares."""
    error, energy = 0.0, 0.0
    for row in range(0, truth.shape[0] - window + 1, window // 2):
        for column in range(0, truth.shape[1] - window + 1, window // 2):
            place = np.s_[row : row + window, column : column + window]
            inside = mask[place]
            e, t = estimate[place][inside], truth[place][inside]
            if len(t):
                scale = np.linalg.lstsq(e[:, None], t, rcond=None)[0]
                error, energy = error + ((scale * e - t) ** 2).sum(), energy + (t**2).sum()
    return error / energy


@pytest.mark.parametrize(("height", "width", "window"), [(36, 48, 20), (41, 33, 10), (20, 20, 20), (31, 27, 7)])
def test_lmse_is_the_sum_over_windows(height: int, width: int, window: int) -> None:
    estimate, truth = random(1, 1, height, width), random(1, 1, height, width, seed=1)
    mask = random(1, 1, height, width, seed=2) > 0.4
    mask[..., : height // 2, : width // 3] = False
    expected = brute_force(*(image[0, 0].double().numpy() for image in (estimate, truth)), mask[0, 0].numpy(), window)
    # Both in double precision: worst measured 7e-15.
    assert local_mse(estimate, truth, mask, window) == pytest.approx(expected, rel=1e-12)


def test_lmse_forgives_a_scale_per_window_and_nothing_else() -> None:
    truth, everywhere = random(1, 1, 40, 40) + 0.1, torch.ones(1, 1, 40, 40, dtype=torch.bool)
    assert LMSE(3 * truth, truth, everywhere) == pytest.approx(0.0, abs=1e-12)
    assert LMSE(torch.zeros_like(truth), truth, everywhere) == pytest.approx(1.0)
    assert LMSE(truth + 0.5, truth, everywhere) > 0.01
    assert math.isnan(LMSE(truth, torch.zeros_like(truth), everywhere))
    spoilt = truth.clone()
    spoilt[0, 0, 5, 5] = torch.nan
    assert math.isnan(LMSE(spoilt, truth, everywhere))
    hidden = everywhere.clone()
    hidden[0, 0, 5, 5] = False
    assert LMSE(spoilt, truth, hidden) == pytest.approx(0.0, abs=1e-12)
    # One scale for the picture does not explain two halves of different scale; one per window does, but for the seam's.
    halves = torch.cat((truth[..., :20], 4 * truth[..., 20:]), dim=-1)
    assert SI_MSE(halves, truth, everywhere) > 0.02 and SI_MSE(3 * truth, truth, everywhere) == pytest.approx(0.0, abs=1e-12)


# MIT intrinsic images


@pytest.fixture
def mit(tmp_path: Path) -> Path:
    """Two objects of the evaluation and an extra one; image = reflectance x shading."""
    for index, name in enumerate(("box", "turtle", "pear")):
        place, mask = tmp_path / "data" / name, object_mask()
        reflectance, shading = 0.2 + 0.6 * random(3, H, W, seed=index), 0.1 + 0.5 * random(1, H, W, seed=10 + index)
        for file, image in (("diffuse", reflectance * shading), ("reflectance", reflectance), ("shading", shading)):
            save_png(place / f"{file}.png", image * mask, 16)
        save_png(place / "original.png", torch.ones(3, H, W), 16)
        save_png(place / "mask.png", mask)
    return tmp_path


def test_mit_intrinsic_is_read(mit: Path) -> None:
    samples = list(read_public("mit-intrinsic", mit))
    assert [sample.clip.name for sample in samples] == ["box", "pear", "turtle"]
    assert [sample.clip.name for sample in read_public("mit-intrinsic", mit / "data", split="set2")] == ["turtle"]
    assert [sample.clip.name for sample in read_public("mit-intrinsic", mit, split="extra")] == ["pear"]
    box = samples[0]
    assert box.gbuffer.present == ("diffuse_albedo",) and torch.equal(box.gbuffer.mask[0], object_mask() > 0)
    expected = (0.2 + 0.6 * random(3, H, W)) * object_mask()
    # Half a step of 16 bits.
    assert (box.gbuffer.diffuse_albedo[0] - expected).abs().max() < 0.5 / 65535 + 1e-7
    linear = expected * (0.1 + 0.5 * random(1, H, W, seed=10))
    assert torch.allclose(srgb_eotf(box.clip.frames[0]), (box.meta["exposure"] * linear).clamp_max(1), atol=1e-3)
    assert box.meta["files"][0] == "data/box/diffuse.png" and box.environment is None and box.camera is None
    json.dumps(box.meta)


def test_mit_intrinsic_without_the_diffuse_picture_and_with_mistakes(mit: Path) -> None:
    (mit / "data" / "box" / "diffuse.png").unlink()
    assert next(read_public("mit-intrinsic", mit)).meta["files"][0] == "data/box/original.png"
    save_png(mit / "data" / "box" / "reflectance.png", torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match=r"reflectance\.png 8x8"):
        next(read_public("mit-intrinsic", mit))
    (mit / "data" / "box" / "reflectance.png").unlink()
    with pytest.raises(InputError, match=r"missing: reflectance\.png"):
        next(read_public("mit-intrinsic", mit))
    with pytest.raises(InputError, match="did you mean set1"):
        read_public("mit-intrinsic", mit, split="set-1")
    with pytest.raises(InputError, match=r"mask\.png"):
        read_public("mit-intrinsic", mit / "data" / "box")


def test_mit_intrinsic_scores_reflectance_and_the_shading_that_follows(mit: Path) -> None:
    benchmark = BENCHMARKS["mit-intrinsic"]
    cases = list(benchmark.cases(mit))
    assert [sample.clip.name for sample in benchmark.samples(mit)] == ["box", "turtle"]
    case = cases[0]
    true = case.sample.gbuffer.diffuse_albedo
    # Known up to a scale; files of 16 bits: measured 0 and 4e-10.
    perfect = benchmark.score("inverse", case, GBuffer(diffuse_albedo=0.5 * true))
    assert perfect["diffuse_albedo", "LMSE"] == pytest.approx(0.0, abs=1e-9)
    assert perfect["shading", "LMSE"] == pytest.approx(0.0, abs=1e-6)
    flat = benchmark.score("inverse", case, GBuffer(basecolor=torch.full_like(true, 0.5)))
    assert flat["diffuse_albedo", "LMSE"] > 0.01 and flat["shading", "LMSE"] > 0.01
    spoilt = true.clone()
    spoilt[0, 1, 10, 10] = torch.nan
    assert all(math.isnan(value) for value in benchmark.score("inverse", case, GBuffer(diffuse_albedo=spoilt)).values())
    missing = benchmark.score("inverse", case, GBuffer(roughness=true[:, :1]))
    assert len(missing) == 4 and all(math.isnan(value) for value in missing.values())


def test_wrong_tasks_and_sizes_are_refused(mit: Path) -> None:
    benchmark = BENCHMARKS["mit-intrinsic"]
    case = next(benchmark.cases(mit))
    with pytest.raises(InputError, match="task of mit-intrinsic"):
        benchmark.score("relight", case, case.sample.clip)
    with pytest.raises(InputError, match="1 frames of 48x36 for box; found 1 of 8x8"):
        benchmark.score("inverse", case, GBuffer(basecolor=torch.zeros(1, 3, 8, 8)))


# Stanford-ORB


@pytest.fixture
def orb(tmp_path: Path) -> Path:
    scene, truth = tmp_path / "blender_HDR" / "teapot_scene001", tmp_path / "ground_truth" / "teapot_scene001"
    radiance = 0.02 + 0.4 * random(3, H, W)
    radiance[:, 10, 10] = 9.0  # a highlight
    save_exr(scene / "test" / "0001.exr", radiance)
    save_png(scene / "test_mask" / "0001.png", object_mask())
    for folder, image in (("surface_normal", torch.tensor([0.0, 0.6, 0.8]).expand(H, W, 3)), ("z_depth", torch.ones(H, W))):
        (truth / folder).mkdir(parents=True)
        np.save(truth / folder / "0001.npy", image.numpy())
    save_png(truth / "pseudo_gt_albedo" / "0001.png", random(3, H, W, seed=3))
    save_exr(truth / "env_map" / "0001.exr", torch.ones(3, 16, 32))
    view = {"file_path": "./test/0001", "transform_matrix": torch.eye(4).tolist()}
    (scene / "transforms_test.json").write_text(json.dumps({"camera_angle_x": 0.5, "frames": [view]}))
    return tmp_path


def scaled_to(estimate: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The best factor per channel by numpy's least squares."""
    factors = [np.linalg.lstsq(e[inside][:, None], t[inside], rcond=None)[0][0] for e, t in zip(estimate, truth, strict=True)]
    return estimate * np.array(factors)[:, None, None]


def orb_reference(estimate: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """PSNR-H and PSNR-L from their definition, in numpy."""
    inside = np.zeros((H, W), bool)
    inside[6:28, 8:38] = True  # the object's rectangle, two pixels in from every side

    def curve(x: np.ndarray) -> np.ndarray:
        return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)

    e, t = (np.where(inside, image.double().numpy(), 0.0) for image in (estimate, truth))
    bright = t * curve(t.clip(0, 1)).mean() / t.clip(0, 1).mean()
    hdr = ((scaled_to(e, bright, inside).clip(0, 4) - bright.clip(0, 4)) ** 2).mean()
    ldr = ((curve(scaled_to(e, t, inside).clip(0, 1)) - curve(t.clip(0, 1))) ** 2).mean()
    return -10 * math.log10(hdr), -10 * math.log10(ldr)


def test_stanford_orb_relighting_follows_its_definition(orb: Path) -> None:
    benchmark = BENCHMARKS["stanford-orb"]
    [case] = list(benchmark.cases(orb / "blender_HDR"))
    assert benchmark.lights("relight", case) == (0,)
    truth = case.extra["hdr"]
    assert truth.max() == 9.0 and case.sample.clip.frames.max() == pytest.approx(1.0)  # the clip is clipped, the truth not
    noisy = (truth * 0.3 + 0.1 * random(1, 3, H, W, seed=7)).clamp_max(0.9) * torch.tensor([0.5, 0.7, 1.0]).view(1, 3, 1, 1)
    scores = benchmark.score("relight", case, Clip(srgb_oetf(noisy)))
    # Float32 through the sRGB curve and back: worst measured 5e-7 dB.
    assert [scores["rgb", "PSNR-H"], scores["rgb", "PSNR-L"]] == pytest.approx(orb_reference(noisy[0], truth[0]), abs=1e-3)
    assert 0 < scores["rgb", "SSIM"] < 1
    outside = noisy.clone()
    outside[..., :6, :] = 1.0
    assert benchmark.score("relight", case, Clip(srgb_oetf(outside))) == pytest.approx(scores)
    spoilt = srgb_oetf(noisy)
    spoilt[0, 0, 15, 15] = torch.nan
    assert all(math.isnan(value) for value in benchmark.score("relight", case, Clip(spoilt)).values())


def test_stanford_orb_psnr_does_not_fall_below_grey() -> None:
    truth, mask = torch.full((1, 3, 8, 8), 0.5), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    # Linear 0.5 is 0.7354 in sRGB; grey is 0.5 there.
    floor = -20 * math.log10(float(srgb_oetf(torch.tensor(0.5))) - 0.5)
    assert stanford_orb.PSNR_L(torch.zeros(1, 3, 8, 8), truth, mask) == pytest.approx(floor, abs=1e-4)


def test_stanford_orb_buffers(orb: Path) -> None:
    benchmark = BENCHMARKS["stanford-orb"]
    [case] = list(benchmark.cases(orb))
    truth = case.sample.gbuffer
    perfect = benchmark.score("inverse", case, GBuffer(basecolor=truth.basecolor * 0.5, normal=truth.normal))
    # A scale is forgiven; 100 dB is the cap; float32.
    assert perfect["basecolor", "PSNR"] == pytest.approx(100.0, abs=1e-6)
    assert perfect["basecolor", "SSIM"] == pytest.approx(1.0, abs=1e-5)
    assert perfect["normal", "cosine distance"] == pytest.approx(0.0, abs=1e-6)
    turned = torch.stack((torch.ones(1, H, W), torch.zeros(1, H, W), torch.zeros(1, H, W)), dim=1)
    wrong = benchmark.score("inverse", case, GBuffer(normal=turned))
    assert wrong["normal", "cosine distance"] == pytest.approx(1.0, abs=1e-6) and math.isnan(wrong["basecolor", "PSNR"])


def test_the_mask_shrinks_by_two_pixels_but_not_at_the_picture_s_edge() -> None:
    mask = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    mask[..., :9, 2:10] = True
    expected = torch.zeros_like(mask)
    expected[..., :7, 4:8] = True
    assert torch.equal(stanford_orb.eroded(mask), expected)


def test_small_ssim_is_the_formula_pixel_by_pixel() -> None:
    first, second = random(1, 1, 6, 7).double(), random(1, 1, 6, 7, seed=1).double()
    a, b = (np.pad(image[0, 0].numpy(), 1, mode="reflect") for image in (first, second))
    offsets = np.arange(-1, 2)
    weight = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for row in range(6):
        for column in range(7):
            x, y = (image[row : row + 3, column : column + 3] for image in (a, b))
            mx, my = (weight * x).sum(), (weight * y).sum()
            vx, vy, c = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum(), (weight * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert stanford_orb.small_ssim(first.float(), second.float()) == pytest.approx(np.mean(values), abs=1e-6)
    assert stanford_orb.small_ssim(first.float(), first.float()) == pytest.approx(1.0)


def test_lpips_of_stanford_orb_says_why_it_is_missing(orb: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("DIFFUSION_RENDERER_DOWNLOAD", raising=False)
    reason = stanford_orb.LPIPS.unavailable()
    assert reason is not None and ("VGG" in reason or "not installed" in reason)
    [case] = list(BENCHMARKS["stanford-orb"].cases(orb))
    figures = BENCHMARKS["stanford-orb"].score("relight", case, case.sample.clip)
    assert ("rgb", "LPIPS (VGG)") not in figures and len(figures) == 3


def test_pictures_are_averaged_over_whole_blocks() -> None:
    images = random(2, 3, 8, 12)
    assert torch.equal(pooled(images, 12), images) and torch.equal(pooled(images, 7), images)
    small = pooled(images, 4)
    assert small.shape == (2, 3, 2, 4) and torch.allclose(small[1, 2, 0, 1], images[1, 2, :3, 3:6].mean())


# Multi-illumination


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    for scene in ("everett_kitchen2", "main_office"):
        for light in range(25):
            save_exr(tmp_path / scene / f"dir_{light}_mip2.exr", random(3, H, W, seed=light) * (light + 1))
            save_exr(tmp_path / scene / "probes" / f"dir_{light}_chrome256.exr", random(3, 16, 16, seed=light))
    box = {"x": 0, "y": 0, "w": 6020 // 4, "h": 4024 // 3}
    balls = {"chrome": {"bounding_box": box}, "gray": {"bounding_box": {**box, "x": 6020 // 2}}}
    (tmp_path / "everett_kitchen2" / "meta.json").write_text(json.dumps(balls))
    return tmp_path


def test_multi_illumination_relights_from_one_direction_to_eight(rooms: Path) -> None:
    benchmark = BENCHMARKS["multi-illumination"]
    [case] = list(benchmark.cases(rooms))
    sample = case.sample
    assert sample.clip.name == "everett_kitchen2" and benchmark.lights("relight", case) == tuple(range(1, 9))
    assert tuple(light["direction"] for light in sample.meta["lights"][1:]) == TARGETS
    for light in benchmark.lights("relight", case):
        right = benchmark.score("relight", case, sample.relit[light - 1].clip, light)
        wrong = benchmark.score("relight", case, sample.clip, light)
        assert right["rgb", "PSNR"] == pytest.approx(100.0) and wrong["rgb", "PSNR"] < 20
    # The boxes of the balls do not count: a quarter of the columns, and from the middle on another, in the upper third.
    frames = sample.relit[0].clip.frames.clone()
    frames[..., : H // 3, : W // 4] = 0
    frames[..., : H // 3, W // 2 : 3 * W // 4] = 0
    assert benchmark.score("relight", case, Clip(frames), 1)["rgb", "PSNR"] == pytest.approx(100.0)
    frames[..., H // 3, 0] = 0
    assert benchmark.score("relight", case, Clip(frames), 1)["rgb", "PSNR"] < 60


def test_multi_illumination_needs_its_directions_and_probes(rooms: Path) -> None:
    scene, benchmark = rooms / "everett_kitchen2", BENCHMARKS["multi-illumination"]
    (scene / "meta.json").write_text("{}")
    with pytest.raises(InputError, match="bounding_box"):
        list(benchmark.cases(rooms))
    (scene / "meta.json").unlink()
    assert next(benchmark.cases(scene)).extra["mask"].all()
    for path in (*scene.glob("dir_0_*"), *scene.glob("probes/dir_0_*")):
        path.unlink()
    with pytest.raises(InputError, match="the directions 0 and"):
        list(benchmark.cases(rooms))


# InteriorVerse


@pytest.fixture
def interior(tmp_path: Path) -> Path:
    for scene in ("a", "b"):
        place = tmp_path / "scenes_85" / scene
        normal = torch.nn.functional.normalize(random(3, H, W) - 0.5, dim=0)
        material = torch.cat((0.2 + 0.5 * random(2, H, W), torch.zeros(1, H, W)))
        layers = {"im": random(3, H, W), "albedo": 0.2 + 0.5 * random(3, H, W), "normal": normal, "material": material}
        layers |= {"depth": 1000 + 2000 * random(3, H, W)[:1].expand(3, -1, -1), "mask": object_mask()}
        for layer, image in layers.items():
            save_exr(place / f"000_{layer}.exr", image)
    (tmp_path / "scenes_85" / "test.txt").write_text("b\n")
    return tmp_path


def test_interiorverse_scores_every_buffer_of_the_test_split(interior: Path) -> None:
    benchmark = BENCHMARKS["interiorverse"]
    [case] = list(benchmark.cases(interior))
    truth = case.sample.gbuffer
    assert case.sample.meta["scene"] == "b"
    relative = replace(truth, depth=0.3 * truth.depth + 0.1, mask=None)
    scores = benchmark.score("inverse", case, relative)
    exact = {"basecolor": "PSNR", "normal": "mean angular error", "depth": "AbsRel", "roughness": "RMSE", "metallic": "RMSE"}
    best = {"basecolor": 100.0, "normal": 0.0, "depth": 0.0, "roughness": 0.0, "metallic": 0.0}
    for what, metric in exact.items():
        # Depth after the scale and shift, in float32: measured 3e-8; the others are exact.
        assert scores[what, metric] == pytest.approx(best[what], abs=1e-5), what
    dim = benchmark.score("inverse", case, replace(relative, basecolor=0.5 * truth.basecolor, roughness=None))
    assert dim["basecolor", "PSNR"] < dim["basecolor", "si-PSNR"] and math.isnan(dim["roughness", "RMSE"])
    spoilt = truth.basecolor.clone()
    spoilt[0, 0, 15, 15] = torch.inf
    assert math.isnan(benchmark.score("inverse", case, replace(relative, basecolor=spoilt))["basecolor", "PSNR"])
    (interior / "scenes_85" / "test.txt").unlink()
    with pytest.raises(InputError, match=r"missing: test\.txt"):
        benchmark.cases(interior)


# Whole evaluations


def test_benchmarks_take_predictions_and_baselines(
    mit: Path, orb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lambda clip, **options: GBuffer(basecolor=srgb_eotf(clip.frames), name=clip.name)  # noqa: E731
    monkeypatch.setattr(systems, "load_inverse", lambda name: model)
    relit = lambda gbuffer, light, **options: Clip(srgb_oetf(gbuffer.basecolor))  # noqa: E731
    monkeypatch.setattr(systems, "load_forward", lambda name: relit)
    for sample in BENCHMARKS["mit-intrinsic"].samples(mit):
        replace(sample.gbuffer, mask=None).write(tmp_path / "albedo", formats=("exr",))
    options = EvaluateOptions(
        out=tmp_path / "out", benchmark="mit-intrinsic", data=mit, predictions=(str(tmp_path / "albedo"),)
    )
    (inverse,) = evaluate("inverse", options)
    assert inverse.systems == ("tiny", "albedo", "constant", "input") and not any(figure.failed for figure in inverse.figures)
    mine = {figure.system: figure.value for figure in inverse.figures if (figure.what, figure.clip) == ("shading", "box")}
    assert mine["albedo"] < 1e-4 < mine["constant"], "half floats keep 11 bits"
    [photograph] = BENCHMARKS["stanford-orb"].samples(orb)
    replace(photograph.clip, name=relit_name(photograph.clip.name, views(photograph)[0].light)).write(tmp_path / "relit")
    options = replace(options, benchmark="stanford-orb", data=orb, predictions=(str(tmp_path / "relit"),))
    (relight,) = evaluate("relight", replace(options, baselines=("clip-mean", "input")))
    assert relight.systems == ("tiny", "relit", "clip-mean"), "the input is the very photograph that must come out"
    with pytest.raises(InputError, match="leave --metrics out"):
        evaluate("relight", replace(options, metrics=("psnr",)))
