"""Metrics: each knows its name, unit and direction, which pixels count, and what it needs.

========================  ===========================================================================================
user's name               what it measures
========================  ===========================================================================================
psnr, si-psnr             peak signal-to-noise ratio; after the best scale per channel
ssim, lpips, si-lpips     structural similarity; learned perceptual distance, as it is and after the best scale
flip, jod                 visible difference of pictures (FLIP) and of clips (ColorVideoVDP)
temporal                  flicker: change along the surfaces that the truth does not have
rmse, mae                 errors of the values as they are
angle-mean, angle-median  angular error of normals; angle<5, <7.5, <11.25, <22.5, <30: share within
absrel, delta1            depth after the best scale and shift; depth-rmse: relative depth as the networks see it
========================  ===========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_renderer.core.names import check_name
from diffusion_renderer.evaluation.metrics.base import MASK_RULES, SPACES, Context, Metric
from diffusion_renderer.evaluation.metrics.depth import ABSREL, DELTA1, DEPTH_RMSE
from diffusion_renderer.evaluation.metrics.normals import ANGLE, MEDIAN_ANGLE, SHARES
from diffusion_renderer.evaluation.metrics.perceptual import FLIP, LPIPS, SI_LPIPS, SSIM
from diffusion_renderer.evaluation.metrics.pixelwise import MAE, PSNR, RMSE, SI_PSNR
from diffusion_renderer.evaluation.metrics.video import JOD, TEMPORAL

__all__ = [
    "ANGLE",
    "DEFAULT_METRICS",
    "MASK_RULES",
    "METRICS",
    "PSNR",
    "RMSE",
    "SPACES",
    "WHAT_SPACE",
    "Context",
    "Metric",
    "choose",
]

#: Every metric, by the name that a user types.
METRICS: dict[str, Metric] = {
    "psnr": PSNR,
    "ssim": SSIM,
    "lpips": LPIPS,
    "si-psnr": SI_PSNR,
    "si-lpips": SI_LPIPS,
    "flip": FLIP,
    "temporal": TEMPORAL,
    "jod": JOD,
    "rmse": RMSE,
    "mae": MAE,
    "angle-mean": ANGLE,
    "angle-median": MEDIAN_ANGLE,
    **SHARES,
    "absrel": ABSREL,
    "delta1": DELTA1,
    "depth-rmse": DEPTH_RMSE,
}
#: The space in which each thing is compared; see `SPACES`.
WHAT_SPACE = {
    "rgb": "sRGB",
    "basecolor": "sRGB",
    "diffuse_albedo": "sRGB",
    "normal": "vector",
    "depth": "depth",
    "roughness": "linear",
    "metallic": "linear",
}
_ALBEDO = ("psnr", "si-psnr", "ssim", "lpips", "si-lpips")
#: The columns of a table when the user names none. Some may be `Metric.unavailable`.
DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "rgb": ("psnr", "ssim", "lpips", "flip", "temporal", "jod"),
    "basecolor": _ALBEDO,
    "diffuse_albedo": _ALBEDO,
    "normal": ("angle-mean", "angle-median", *SHARES),
    "depth": ("absrel", "delta1", "depth-rmse"),
    "roughness": ("rmse", "mae"),
    "metallic": ("rmse", "mae"),
}


def choose(what: str, names: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The metrics of ``names`` that apply to ``what``, in that order and each once; without names, `DEFAULT_METRICS`.

    A name that exists but means nothing for ``what`` (an angle of a base colour) is left out, so that one list serves all
    buffers; the result may be empty. Does not ask whether they are available. An unknown name raises InputError, which names
    the nearest one.
    """
    check_name("what is compared", what, WHAT_SPACE)
    for name in names:
        check_name("metric", name, METRICS)
    chosen = dict.fromkeys(names or DEFAULT_METRICS[what])
    return tuple(METRICS[name] for name in chosen if WHAT_SPACE[what] in METRICS[name].spaces)
