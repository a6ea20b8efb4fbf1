"""The tasks: what a system is asked for, and which figures and pictures its answer gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.encoding import relative_depth
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.evaluation.metrics import METRICS, Context, Metric, choose
from diffusion_renderer.evaluation.motion import motion_of
from diffusion_renderer.evaluation.report import picture
from diffusion_renderer.evaluation.results import Figure, Picture
from diffusion_renderer.evaluation.systems import System
from diffusion_renderer.evaluation.views import View, compared, materials, surface_mask, views

TASKS = ("inverse", "forward", "relight", "temporal")
_BUFFERS = ("basecolor", "normal", "depth", "roughness", "metallic")
#: The columns of each task when the user names no metric, by what is compared: "surface" is the picture where the camera saw a
#: surface (elsewhere it shows the panorama, which a classical renderer looks up and a network must paint), "basecolor-picture"
#: is base colour over the whole picture, black where nothing was hit.
_FRAMES = {"rgb": ("psnr", "ssim", "lpips", "flip", "temporal", "jod"), "surface": ("psnr", "si-psnr", "si-lpips")}
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "inverse": {
        "basecolor": ("psnr", "si-psnr", "ssim", "lpips"),
        "basecolor-picture": ("psnr",),
        "normal": ("angle-mean", "angle-median", "angle<11.25", "angle<30"),
        "depth": ("depth-rmse", "absrel", "delta1"),
        "roughness": ("rmse",),
        "metallic": ("rmse",),
    },
    "forward": _FRAMES,
    "relight": _FRAMES,
    "temporal": {what: ("temporal",) for what in ("rgb", *_BUFFERS)},
}
#: The metric that is also given for groups of the ground truth's materials.
BY_MATERIAL = {"surface": "psnr", "basecolor": "psnr", "normal": "angle-mean", "roughness": "rmse", "metallic": "rmse"}
PROTOCOLS = {
    "inverse": "G-buffers from the frames of each clip under its first light, against the rendered ones. Buffers are compared "
    "where the camera saw a surface, base colour also over the whole picture; base colour as sRGB, depth relative to each "
    "clip's range (RMSE) or aligned to the truth by scale and shift (AbsRel, delta1).",
    "forward": "Each clip under each of its lights, from its true G-buffers, panorama and camera poses, against the "
    "path-traced frames, as sRGB: the whole picture (rgb), and only where the camera saw a surface (surface).",
    "relight": "The frames of each clip under its first light go in, the clip under each of its other lights must come out. "
    "The first system's inverse renderer makes the G-buffers for the classical renderers too. Compared as in `forward`.",
    "temporal": "Change from frame to frame along the true motion of the surfaces, less the change of the truth there; 0 is "
    "best. Frames are made from true G-buffers under each clip's first light, buffers from the frames under it.",
}


@dataclass(frozen=True)
class Answer:
    """One thing that a system made, and the truth, both as they are compared.

    ``kind`` says how it is compared: "rgb" or a buffer's name; ``what`` is the column.
    """

    light: str
    what: str
    kind: str
    estimate: Float[Tensor, "frames channels height width"]
    truth: Float[Tensor, "frames channels height width"]
    mask: Bool[Tensor, "frames 1 height width"]


def columns(task: str, names: Sequence[str] = ()) -> tuple[tuple[str, Metric], ...]:
    """The columns of a task's table: the default ones, or those of ``names`` that mean something for what is compared.

    Raises InputError for a metric that does not exist, naming the nearest one, and when none applies.
    """
    check_name("task", task, TASKS)
    for name in names:
        check_name("metric", name, METRICS)
    chosen = []
    for what, default in COLUMNS[task].items():
        wanted = tuple(name for name in names if name == "temporal") if task == "temporal" and names else names or default
        chosen += [(what, metric) for metric in choose(kind_of(what), wanted)] if wanted else []
    if not chosen:
        raise InputError(f"metrics that mean something for {task}", ", ".join(names), "leave --metrics out for the usual ones")
    return tuple(chosen)


def kind_of(what: str) -> str:
    """What a column compares: "rgb" or a buffer's name."""
    return {"surface": "rgb", "basecolor-picture": "basecolor"}.get(what, what)


def targets_of(task: str, sample: Sample) -> tuple[View, ...]:
    """The views that a system must make frames of.

    Raises InputError for `relight` when the clip has one light only.
    """
    lit = views(sample)
    if task == "relight" and len(lit) < 2:
        raise InputError("clips under at least two lights", f"one light in {sample.clip.name}", "render them with --lights 2")
    return {"forward": lit, "relight": lit[1:], "temporal": lit[:1]}.get(task, ())


def answers(task: str, system: System, sample: Sample) -> Iterator[Answer]:
    """What a system makes of a clip, one light or buffer at a time."""
    surface = surface_mask(sample.gbuffer, sample.clip)
    everywhere = surface.new_ones(surface.shape)
    targets = targets_of(task, sample)
    if targets:
        source = views(sample)[0] if task == "relight" else None
        for view, made in zip(targets, system.relit(source, targets), strict=True):
            frames = made.frames[: len(view.clip)]
            yield Answer(view.light, "rgb", "rgb", frames, view.clip.frames, everywhere)
            if task != "temporal":
                yield Answer(view.light, "surface", "rgb", frames, view.clip.frames, surface)
    if task in ("inverse", "temporal") and system.makes_buffers:
        yield from _buffer_answers(task, system.buffers(views(sample)[0]), sample, surface)


def _buffer_answers(task: str, made: GBuffer, sample: Sample, surface: Tensor) -> Iterator[Answer]:
    light = views(sample)[0].light
    for name in _BUFFERS:
        if getattr(made, name) is None or getattr(sample.gbuffer, name) is None:
            continue
        estimate, truth = compared(made, name), compared(sample.gbuffer, name)
        if name == "depth":
            # AbsRel needs metric truth; relative depth RMSE makes it relative itself.
            truth = sample.gbuffer.depth
        yield Answer(light, name, name, estimate, truth, surface)
        if name == "basecolor" and task == "inverse":
            yield Answer(light, "basecolor-picture", name, estimate, truth, surface.new_ones(surface.shape))


def figures(
    answer: Answer, system: str, sample: Sample, metrics: Sequence[tuple[str, Metric]], motion: object | None
) -> Iterator[Figure]:
    """Every figure of an answer: of the columns, and of the groups of materials. Unavailable metrics are left out.

    A figure that is not a number is a failure, with the reason.
    """
    context = Context(motion=motion, fps=sample.clip.fps)
    clip = sample.clip.name
    if not answer.mask.any():
        return
    for what, metric in metrics:
        if what != answer.what or not _computable(metric, answer, motion):
            continue
        yield from _figure(metric, answer, answer.mask, context, system, clip)
    name = BY_MATERIAL.get(answer.what)
    if name is None or METRICS[name] not in [metric for what, metric in metrics if what == answer.what]:
        return
    for part, group in materials(sample.gbuffer).items():
        if (pixels := group & answer.mask).any():
            yield from _figure(METRICS[name], answer, pixels, context, system, clip, part)


def _figure(
    metric: Metric, answer: Answer, mask: Tensor, context: Context, system: str, clip: str, part: str = "all"
) -> Iterator[Figure]:
    """The figure of a metric over the pixels of ``mask``; none where the truth itself has none, which is nobody's failure."""
    value = metric(answer.estimate, answer.truth, mask, context)
    known = math.isfinite(value)
    # Of itself: such as the flicker of a clip none of whose points is seen twice.
    if known or math.isfinite(metric(answer.truth, answer.truth, mask, context)):
        failure = "" if known else "the estimate is not finite"
        yield Figure(system, clip, answer.light, answer.what, metric.name, value, part, failure)


def _computable(metric: Metric, answer: Answer, motion: object | None) -> bool:
    """Whether a metric has what it needs; a still has no change from frame to frame."""
    if metric.unavailable() is not None or (metric.needs_clip and len(answer.truth) < 2):
        return False
    if metric.needs_motion and motion is None:
        return False
    return min(answer.truth.shape[-2:]) >= metric.least_size


def clip_motion(sample: Sample, metrics: Sequence[tuple[str, Metric]]) -> object | None:
    """The true motion of a clip's surfaces, when a metric needs it and the data have it."""
    if len(sample.clip) < 2 or not any(metric.needs_motion for _, metric in metrics):
        return None
    try:
        return motion_of(sample)
    except InputError:
        return None


def pictures(answer: Answer, system: str, sample: Sample) -> Iterator[Picture]:
    """The middle frame of an answer beside the truth and, where frames went in, the input."""
    if answer.what not in ("rgb", "basecolor", "normal", "roughness", "metallic", "depth"):
        return
    middle, clip = len(answer.truth) // 2, sample.clip.name
    truth, made = _drawn(answer, sample)
    yield picture(system, clip, answer.light, answer.what, made[middle], truth[middle], answer.mask[middle])


def references(task: str, sample: Sample) -> Iterator[Picture]:
    """The middle frame of the truth, and of the input where frames go in, for everything that `pictures` shows."""
    middle, clip, lit = len(sample.clip) // 2, sample.clip.name, views(sample)
    for view in targets_of(task, sample):
        yield picture("truth", clip, view.light, "rgb", view.clip.frames[middle])
        if task == "relight":
            yield picture("input", clip, view.light, "rgb", sample.clip.frames[middle])
    if task not in ("inverse", "temporal"):
        return
    for name in _BUFFERS:
        value = getattr(sample.gbuffer, name)
        if value is not None:
            shown = relative_depth(value) if name == "depth" else value
            yield picture("truth", clip, lit[0].light, name, shown[middle])
            if name == "basecolor":
                yield picture("input", clip, lit[0].light, name, srgb_eotf(sample.clip.frames[middle]))


def _drawn(answer: Answer, sample: Sample) -> tuple[Tensor, Tensor]:
    """Truth and estimate as `report.picture` takes them: buffers as in memory, depth relative."""
    if answer.kind == "basecolor":
        return sample.gbuffer.basecolor, srgb_eotf(answer.estimate)
    if answer.kind == "depth":
        return relative_depth(answer.truth), answer.estimate.clamp(0, 1)
    return answer.truth, answer.estimate
