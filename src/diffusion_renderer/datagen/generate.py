"""Clips from (seed, index), and datasets of clips as WebDataset shards."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.types import Clip, EnvironmentMap
from diffusion_renderer.datagen.renderer import denoise, render_gbuffer, render_radiance, render_turned
from diffusion_renderer.datagen.scenes import SceneSpec, random_scene
from diffusion_renderer.datagen.settings import DatasetSettings, RenderedClip
from diffusion_renderer.datagen.variant import choose_variant, load_denoiser

#: At most this share of a clip's surface pixels may be clipped, and at most this share of all its pixels.
MAX_CLIPPED_SURFACE, MAX_CLIPPED = 0.025, 0.10


def render_clip(seed: int, index: int, settings: DatasetSettings | None = None) -> RenderedClip:
    """Clip ``index`` of the dataset ``seed``: a random scene with its ground truth.

    It depends on (seed, index, settings) and the variant of Mitsuba only, not on what was rendered before. Two variants draw
    the same scene but not the same noise. Not bit-identical across processors of different vector width.
    """
    settings = settings or DatasetSettings()
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    spec = random_scene(rng, settings)
    rendered = render_scene(spec, settings, mitsuba_seed=int(rng.integers(0, 2**31)), name=f"{index:08d}")
    return replace(rendered, meta={"seed": seed, "index": index, **rendered.meta})


def render_scene(spec: SceneSpec, settings: DatasetSettings, mitsuba_seed: int = 0, name: str = "clip") -> RenderedClip:
    """Render a scene under its own panorama, set the exposure, and multiply the panorama by it."""
    variant = choose_variant(settings.variant)
    gbuffer, coverage = render_gbuffer(spec, settings, variant, mitsuba_seed)
    linear = render_radiance(spec, spec.environment.radiance, settings, variant, mitsuba_seed)
    if settings.denoise:
        linear = denoise(linear, gbuffer, coverage)
    exposure = choose_exposure(linear, gbuffer.mask, spec.brightness)
    clip = Clip(srgb_oetf((exposure * linear).clamp(0, 1)), settings.fps, name)
    meta = _describe(spec, settings, variant, exposure, gbuffer.depth)
    environment = exposed(spec.environment, exposure)
    return RenderedClip(clip, replace(gbuffer, name=name), environment, spec.camera, {"name": name, **meta})


def exposed(environment: EnvironmentMap, exposure: float) -> EnvironmentMap:
    """The panorama times the exposure, rounded to the half floats in which it is stored."""
    return EnvironmentMap((exposure * environment.radiance).clamp(0.0, 65504.0).half().float(), environment.name)


def render_relit(
    spec: SceneSpec,
    environment: EnvironmentMap,
    rotations: Float[Tensor, "frames 3 3"] | None = None,
    settings: DatasetSettings | None = None,
    brightness: float | None = None,
    mitsuba_seed: int = 0,
) -> tuple[Clip, EnvironmentMap]:
    """Ground truth of the scene under another panorama.

    ``brightness`` None takes the panorama as already exposed, as a stored one is; else the exposure is chosen for that mean
    (see `choose_exposure`). Returns the clip and the panorama times the exposure: with it the clip holds at exposure 1.

    ``rotations[i]`` maps camera-space direction d of frame i to the direction ``rotations[i] @ d`` at which the panorama is
    shown, as in CONVENTIONS ("Lookup"): the camera's rotation for a light fixed to the world, which None stands for.
    """
    settings = settings or DatasetSettings()
    variant = choose_variant(settings.variant)
    if rotations is None:
        linear = render_radiance(spec, environment.radiance, settings, variant, mitsuba_seed)
    else:
        linear = render_turned(spec, environment.radiance, rotations, settings, variant, mitsuba_seed)
    gbuffer, coverage = render_gbuffer(spec, settings, variant, mitsuba_seed)
    if settings.denoise:
        linear = denoise(linear, gbuffer, coverage)
    exposure = 1.0 if brightness is None else choose_exposure(linear, gbuffer.mask, brightness)
    clip = Clip(srgb_oetf((exposure * linear).clamp(0, 1)), settings.fps, environment.name)
    return clip, exposed(environment, exposure)


def choose_exposure(
    linear: Float[Tensor, "frames 3 height width"], mask: Bool[Tensor, "frames 1 height width"], brightness: float
) -> float:
    """The factor that gives the encoded frames the mean ``brightness``, or less where that would burn them.

    At most `MAX_CLIPPED_SURFACE` of the surfaces' pixels are clipped, so that highlights keep their shape, and at most
    `MAX_CLIPPED` of all: a window behind the object may burn out, as in a photograph, rather than leave the object black.
    Every third row and column is looked at, which is enough for all this. A black clip gets 1.
    """
    linear, mask = linear[..., 1::3, 1::3], mask[..., 1::3, 1::3]
    peak = linear.amax(1, keepdim=True)
    if not peak.max() > 0:
        return 1.0
    highest = min(_white_point(peak[mask], MAX_CLIPPED_SURFACE), _white_point(peak.flatten(), MAX_CLIPPED))
    low, high = -24.0, 24.0
    for _ in range(24):  # the mean grows with the exposure, so halving finds it
        middle = (low + high) / 2
        mean = float(srgb_oetf((2.0**middle * linear).clamp(0, 1)).mean())
        low, high = (middle, high) if mean < brightness else (low, middle)
    return min(2.0**low, highest)


def _white_point(values: Float[Tensor, " values"], share: float) -> float:
    """The factor that brings all but the brightest ``share`` of the values to at most 1; infinite when these are all 0."""
    if values.numel() == 0:
        return math.inf
    bright = float(values.kthvalue(max(1, math.ceil(values.numel() * (1 - share)))).values)
    return 1 / bright if bright > 0 else math.inf


def _describe(spec: SceneSpec, settings: DatasetSettings, variant: str, exposure: float, depth: Tensor) -> dict[str, Any]:
    valid = depth[torch.isfinite(depth)]
    denoiser = "oidn" if settings.denoise and load_denoiser() is not None else "none"
    return {
        "family": spec.family,
        "exposure": exposure,
        "fov_x_deg": float(spec.camera.fov_x[0]),
        "near": float(valid.min()) if valid.numel() else 0.0,
        "far": float(valid.max()) if valid.numel() else 0.0,
        "fps": settings.fps,
        "assets": {
            "panorama": spec.environment.name,
            "objects": [{"shape": item.mesh.name, "material": item.material.name} for item in spec.objects],
        },
        "renderer": {**settings.to_json(), "variant": variant, "denoiser": denoiser},
    }
