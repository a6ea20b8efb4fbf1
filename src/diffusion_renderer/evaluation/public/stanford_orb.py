"""Stanford-ORB (Kuang et al., NeurIPS 2023): photographs of real objects with scans, albedo and panoramas.

The metrics follow the authors' code (https://github.com/StanfordORB/Stanford-ORB, orb/utils/metrics.py and test.py), which
decides what the paper leaves open: 512 x 512, masks eroded by 5 x 5, one least-squares scale per channel found in linear light
under the mask, and means over the whole picture, black outside the mask in both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.types import Clip, GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.readers import read_stanford_orb
from diffusion_renderer.datagen.readers.common import display_clip, read_display, read_linear, unit_normals
from diffusion_renderer.evaluation.metrics import Context, Metric
from diffusion_renderer.evaluation.metrics.base import gathered, not_installed
from diffusion_renderer.evaluation.metrics.perceptual import DOWNLOAD, torchmetrics_missing
from diffusion_renderer.evaluation.metrics.pixelwise import PSNR_CAP, scaled
from diffusion_renderer.evaluation.public.benchmark import Benchmark, Case, Estimate, Pair, pooled

#: Pictures are compared at this width; the photographs have 2048.
WIDTH = 512
#: PSNR-H clips radiance here, after its normalisation.
BRIGHTEST = 4.0


def read(folder: Path) -> Iterator[Case]:
    """The test photographs at the benchmark's size."""
    samples = read_stanford_orb(folder, "test")
    root = folder.parent if folder.name in ("blender_HDR", "blender_LDR") else folder
    return (_case(root, sample) for sample in samples)


def _case(root: Path, sample: Sample) -> Case:
    photograph = root / sample.meta["files"][0]
    stored = read_linear(photograph) if photograph.suffix == ".exr" else srgb_eotf(read_display(photograph))
    linear = pooled(stored[None], WIDTH)
    clip = display_clip(linear, sample.meta["exposure"], sample.clip.name)
    truth = sample.gbuffer
    mask = pooled(truth.mask.float(), WIDTH) > 0.5
    small = GBuffer(
        # The authors average the stored sRGB values.
        basecolor=None if truth.basecolor is None else srgb_eotf(pooled(srgb_oetf(truth.basecolor), WIDTH)),
        normal=None if truth.normal is None else unit_normals(pooled(truth.normal, WIDTH), mask),
        depth=None if truth.depth is None else pooled(truth.depth, WIDTH),
        mask=mask,
        name=truth.name,
    )
    return Case(replace(sample, clip=clip, gbuffer=small), {"hdr": linear})


def compare(task: str, case: Case, estimate: Estimate, light: int) -> dict[str, Pair]:
    """Linear radiance, or linear base colour and normals, under the eroded mask."""
    truth = case.sample.gbuffer
    mask = eroded(truth.mask)
    if isinstance(estimate, Clip):
        return {"rgb": Pair(_linear(estimate.frames), case.extra["hdr"], mask)}
    pairs = {}
    colour = estimate.basecolor if estimate.basecolor is not None else estimate.diffuse_albedo
    if colour is not None and truth.basecolor is not None:
        pairs["basecolor"] = Pair(colour, truth.basecolor, mask)
    if estimate.normal is not None and truth.normal is not None:
        pairs["normal"] = Pair(estimate.normal, truth.normal, mask)
    return pairs


def _linear(frames: Float[Tensor, "frames 3 h w"]) -> Float[Tensor, "frames 3 h w"]:
    """Linear light of sRGB; what is not finite stays so."""
    return torch.where(frames.isfinite(), srgb_eotf(frames.nan_to_num(0.0)), torch.nan)


def eroded(mask: Bool[Tensor, "frames 1 h w"]) -> Bool[Tensor, "frames 1 h w"]:
    """Pixels whose 5 x 5 neighbourhood is all in the mask; the picture's edge does not count as outside."""
    return torch.nn.functional.max_pool2d((~mask).float(), 5, stride=1, padding=2) < 0.5


def _blackened(image: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, image, 0.0)


def _aligned(estimate: Tensor, truth: Tensor, counted: Tensor, brightest: float) -> tuple[Tensor, Tensor]:
    """Estimate after the best scale per channel, and truth, both black outside and clipped to [0, ``brightest``]."""
    pair = _blackened(scaled(estimate, truth, counted), counted), _blackened(truth, counted)
    return pair[0].clamp(0.0, brightest), pair[1].clamp(0.0, brightest)


def _psnr(estimate: Tensor, truth: Tensor, counted: Tensor) -> float:
    """Over the whole picture; never below that of grey 0.5 in the mask, which the authors give to every failure."""
    grey = _blackened(torch.full_like(truth, 0.5), counted)
    error = min(float((image - truth).double().square().mean()) for image in (estimate, grey))
    return -10 * math.log10(max(error, 10 ** (-PSNR_CAP / 10)))


def psnr_h(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """PSNR-H, of linear radiance: the truth is made as bright on average as its sRGB encoding; radiance is clipped at 4."""
    shown = _blackened(truth, counted).clamp(0.0, 1.0)
    mean = float(shown.mean())
    gain = float(srgb_oetf(shown).mean()) / mean if mean > 1e-8 else 1.0
    return _psnr(*_aligned(estimate, truth * gain, counted, BRIGHTEST), counted)


def _displayed(estimate: Tensor, truth: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    e, t = _aligned(estimate, truth, counted, 1.0)
    return srgb_oetf(e), srgb_oetf(t)


def psnr_l(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """PSNR-L, of sRGB after the scale in linear light."""
    return _psnr(*_displayed(estimate, truth, counted), counted)


def psnr_albedo(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """PSNR of linear base colour after the scale."""
    return _psnr(*_aligned(estimate, truth, counted, 1.0), counted)


def ssim(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """SSIM of sRGB after the scale in linear light; see `small_ssim`."""
    return small_ssim(*_displayed(estimate, truth, counted))


def ssim_albedo(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """SSIM of linear base colour after the scale; see `small_ssim`."""
    return small_ssim(*_aligned(estimate, truth, counted, 1.0))


def small_ssim(first: Float[Tensor, "frames channels h w"], second: Float[Tensor, "frames channels h w"]) -> float:
    """Structural similarity (Wang et al. 2004) with a Gaussian window of 3 x 3 pixels and sigma 1.5, which is what the authors
    use; its mean over the whole picture, edges reflected, K1 = 0.01, K2 = 0.03, range 1."""
    line = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).square().div(-2 * 1.5**2).exp()
    kernel = torch.outer(line, line) / line.sum() ** 2

    def blurred(image: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
        return torch.nn.functional.conv2d(padded, kernel.expand(image.shape[1], 1, 3, 3), groups=image.shape[1])

    a, b = first.double(), second.double()
    mean_a, mean_b = blurred(a), blurred(b)
    variance_a, variance_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    shared = blurred(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return float((light * (2 * shared + 0.03**2) / (variance_a + variance_b + 0.03**2)).mean())


def cosine_distance(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """Mean of 1 - cosine between normals; a vector of length 0 counts 1."""
    e, t = gathered(estimate, counted), gathered(truth, counted)
    return float((1 - torch.nn.functional.cosine_similarity(e, t, dim=1, eps=1e-6)).mean())


def lpips(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """LPIPS with VGG. The authors' code applies the sRGB curve a second time before the network; so does this."""
    return _distance(*(srgb_oetf(image) for image in _displayed(estimate, truth, counted)))


def lpips_albedo(estimate: Tensor, truth: Tensor, counted: Tensor, context: Context) -> float:
    """LPIPS with VGG, of base colour as sRGB after the scale."""
    return _distance(*_displayed(estimate, truth, counted))


def _distance(estimate: Tensor, truth: Tensor) -> float:
    with torch.no_grad():
        return float(_vgg()(estimate.float(), truth.float(), normalize=True).mean())


@cache
def _vgg():
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True).net


def vgg_missing() -> str | None:
    """Why LPIPS with VGG is unavailable: a package, or its weights, which are downloaded only when the user allowed it."""
    missing = torchmetrics_missing() or not_installed("torchvision", "torchvision, which holds VGG,")
    if missing or any(Path(torch.hub.get_dir(), "checkpoints").glob("vgg16-*.pth")):
        return missing
    if os.environ.get(DOWNLOAD) != "1":
        return f"VGG's weights are not in torch's hub cache (set {DOWNLOAD}=1 to download them)"
    return _download_failure()


@cache
def _download_failure() -> str | None:
    try:
        _vgg()
    except (OSError, RuntimeError) as error:
        return f"VGG's weights cannot be downloaded ({type(error).__name__}: {error})"
    return None


_LINEAR = ("linear",)
PSNR_H = Metric("PSNR-H", "dB", True, psnr_h, best=PSNR_CAP, worst=-math.inf, spaces=_LINEAR)
PSNR_L = Metric("PSNR-L", "dB", True, psnr_l, best=PSNR_CAP, worst=-math.inf, spaces=_LINEAR)
PSNR_ALBEDO = Metric("PSNR", "dB", True, psnr_albedo, best=PSNR_CAP, worst=-math.inf, spaces=_LINEAR)
SSIM = Metric("SSIM", "", True, ssim, best=1.0, worst=-1.0, spaces=_LINEAR, least_size=3)
SSIM_ALBEDO = Metric("SSIM", "", True, ssim_albedo, best=1.0, worst=-1.0, spaces=_LINEAR, least_size=3)
LPIPS = Metric("LPIPS (VGG)", "", False, lpips, worst=1.0, spaces=_LINEAR, least_size=32, reason=vgg_missing)
LPIPS_ALBEDO = Metric("LPIPS (VGG)", "", False, lpips_albedo, worst=1.0, spaces=_LINEAR, least_size=32, reason=vgg_missing)
COSINE = Metric("cosine distance", "", False, cosine_distance, worst=2.0, spaces=("vector",))

STANFORD_ORB = Benchmark(
    name="stanford-orb",
    source="Kuang et al., Stanford-ORB: a real-world 3D object inverse rendering benchmark, NeurIPS 2023, section 4, and its "
    "code (orb/utils/metrics.py, test.py)",
    rules="512 x 512, the object's mask eroded by 5 x 5 pixels, black outside. Estimates are scaled per channel in linear "
    "light. PSNR-H: linear radiance clipped at 4; PSNR-L, SSIM (3 x 3 window), LPIPS (VGG): sRGB; base colour: PSNR and SSIM "
    "linear, LPIPS sRGB; means over the whole picture, background included, PSNR not below that of a grey object; normals: "
    "1 - cosine.",
    limits=(
        "relight shows each test photograph again under its own measured panorama, from buffers estimated from it; the "
        "published novel-scene relighting moves the object to another place and view, which needs a 3D model of it",
        "clips end at display white, so that an estimate has no highlights above it, which PSNR-H sees",
        "depth and shape (Chamfer distance) are not scored; a 3D reconstruction is not what these renderers make",
        "the albedo is a fit of another method under studio light, not a measurement",
    ),
    columns={
        "relight": (("rgb", PSNR_H), ("rgb", PSNR_L), ("rgb", SSIM), ("rgb", LPIPS)),
        "inverse": (("normal", COSINE), ("basecolor", PSNR_ALBEDO), ("basecolor", SSIM_ALBEDO), ("basecolor", LPIPS_ALBEDO)),
    },
    read=read,
    compare=compare,
)
