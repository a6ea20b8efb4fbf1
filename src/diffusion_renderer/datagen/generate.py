"""Clips from (seed, index), and datasets of clips as WebDataset shards."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap
from diffusion_renderer.datagen.engine.denoiser import denoise
from diffusion_renderer.datagen.engine.renderer import Traced, relight, trace
from diffusion_renderer.datagen.engine.variant import choose_variant, load_denoiser
from diffusion_renderer.datagen.objects import SceneObject
from diffusion_renderer.datagen.scenes import SceneSpec, random_scene
from diffusion_renderer.datagen.settings import DatasetSettings, Relit, Sample

if TYPE_CHECKING:
    from diffusion_renderer.datagen.assets import AssetLibrary

#: At most this share of a clip's surface pixels may be clipped, and at most this share of all its pixels.
MAX_CLIPPED_SURFACE, MAX_CLIPPED = 0.025, 0.10


def render_clip(seed: int, index: int, settings: DatasetSettings | None = None) -> Sample:
    """Clip ``index`` of the dataset ``seed``: a random scene with its ground truth.

    It depends on (seed, index, settings), the assets' files and the variant of Mitsuba only, not on what was rendered before.
    Two variants draw the same scene but not the same noise. Not bit-identical across processors of different vector width.
    """
    settings = settings or DatasetSettings()
    return finish(render_unfinished(draw(seed, index, settings), settings), settings)


@dataclass(frozen=True)
class Drawn:
    """A scene that is to be rendered, and as which clip."""

    spec: SceneSpec
    seed: int
    index: int
    mitsuba_seed: int


@dataclass(frozen=True)
class Unfinished:
    """A clip that has been traced: linear, noisy, without an exposure. The work left needs no Mitsuba."""

    drawn: Drawn
    traced: Traced
    relit: tuple[Float[Tensor, "frames 3 height width"], ...]
    variant: str


def draw(seed: int, index: int, settings: DatasetSettings) -> Drawn:
    """The scene of a clip."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    spec = random_scene(rng, settings, asset_library(settings))
    return Drawn(spec, seed, index, int(rng.integers(0, 2**31)))


def render_unfinished(drawn: Drawn, settings: DatasetSettings) -> Unfinished:
    """Trace a scene under all of its lights."""
    variant = choose_variant(settings.variant)
    spec, seed = drawn.spec, drawn.mitsuba_seed
    traced = trace(spec, settings, variant, seed)
    relit = [relight(spec, light.environment.radiance, light.rotation, settings, variant, seed) for light in spec.relights]
    return Unfinished(drawn, traced, tuple(relit), variant)


def finish(unfinished: Unfinished, settings: DatasetSettings) -> Sample:
    """Denoise, expose, describe."""
    drawn, traced = unfinished.drawn, unfinished.traced
    spec, name = drawn.spec, f"{drawn.index:08d}"
    frames, exposure = _developed(traced.radiance, traced, spec.brightness, settings, unfinished.variant)
    relit, exposures = [], []
    for light, radiance in zip(spec.relights, unfinished.relit, strict=True):
        other, factor = _developed(radiance, traced, spec.brightness, settings, unfinished.variant)
        relit.append(Relit(Clip(other, settings.fps, name), exposed(light.environment, factor), light.rotation))
        exposures.append(factor)
    meta = {"name": name, "seed": drawn.seed, "index": drawn.index}
    meta |= _describe(spec, settings, unfinished.variant, exposure, exposures, traced.gbuffer.depth)
    return Sample(
        clip=Clip(frames, settings.fps, name),
        gbuffer=replace(traced.gbuffer, name=name),
        environment=exposed(spec.environment, exposure),
        camera=spec.camera,
        meta=meta,
        light_rotation=spec.light_rotation,
        ids=traced.ids,
        relit=tuple(relit),
    )


def render_scene(spec: SceneSpec, settings: DatasetSettings, mitsuba_seed: int = 0, name: str = "clip") -> Sample:
    """Render a scene under its own panorama, set the exposure, and multiply the panorama by it."""
    sample = finish(render_unfinished(Drawn(spec, 0, 0, mitsuba_seed), settings), settings)
    meta = {key: value for key, value in sample.meta.items() if key not in ("seed", "index")} | {"name": name}
    return replace(sample, clip=replace(sample.clip, name=name), gbuffer=replace(sample.gbuffer, name=name), meta=meta)


def retrace(sample: Sample, **folders: Path | None) -> tuple[Clip, ...]:
    """A clip of this engine rendered once more with other random numbers, under each of its lights: the same scene, light and
    exposures, another noise. How far it is from the first rendering tells how exact the "truth" is.

    ``folders`` are those of `DatasetSettings.from_json`. Raises InputError for a clip that was not rendered here, and for one
    whose scene comes out differently: other assets, or another version of the engine.
    """
    meta = sample.meta
    if not {"seed", "index", "renderer", "exposure"} <= meta.keys():
        expected = f"a clip that `diffusion-renderer dataset` rendered, for {sample.clip.name}"
        raise InputError(expected, "one from elsewhere", "leave the path tracer out")
    settings = replace(DatasetSettings.from_json(meta["renderer"], **folders), variant=choose_variant(None))
    drawn = draw(int(meta["seed"]), int(meta["index"]), settings)
    made = render_unfinished(replace(drawn, mitsuba_seed=drawn.mitsuba_seed ^ 1), settings)
    depth, truth = made.traced.gbuffer.depth, sample.gbuffer.depth
    both = torch.isfinite(depth) & torch.isfinite(truth)
    if depth.shape != truth.shape or not torch.allclose(depth[both].median(), truth[both].median(), rtol=0.01):
        raise InputError(f"the scene of {sample.clip.name}", "another one", "use the assets and the version that rendered it")
    exposures = [meta["exposure"], *meta.get("relit_exposures", ())]
    clips = []
    for linear, exposure in zip((made.traced.radiance, *made.relit), exposures, strict=True):
        clean = linear
        if settings.denoise:
            clean = denoise(linear, made.traced.gbuffer, made.traced.coverage, settings.denoise_quality)
        clips.append(Clip(srgb_oetf((exposure * clean).clamp(0, 1)), settings.fps, sample.clip.name))
    return tuple(clips)


def _developed(
    linear: Float[Tensor, "frames 3 height width"],
    traced: Traced,
    brightness: float | None,
    settings: DatasetSettings,
    variant: str,
) -> tuple[Float[Tensor, "frames 3 height width"], float]:
    """Display-referred frames and the exposure that made them: 1 when no ``brightness`` is asked for."""
    if settings.denoise:
        device = "cuda" if variant.startswith("cuda") and torch.cuda.is_available() else "cpu"
        linear = denoise(linear, traced.gbuffer, traced.coverage, settings.denoise_quality, device)
    exposure = 1.0 if brightness is None else choose_exposure(linear, traced.gbuffer.mask, brightness)
    return srgb_oetf((exposure * linear).clamp(0, 1)), exposure


@functools.lru_cache(maxsize=4)
def _library(
    models: Path | None, materials: Path | None, panoramas: Path | None, texture_size: int, split: str
) -> AssetLibrary:
    from diffusion_renderer.datagen.assets import AssetLibrary, AssetLimits

    return AssetLibrary(models, materials, panoramas, AssetLimits(texture_size=texture_size), split)


def asset_library(settings: DatasetSettings) -> AssetLibrary | None:
    """The assets of ``settings``, kept per process; None when it names no folder.

    Raises InputError for a folder that is not there or has no asset of the split.
    """
    folders = (settings.models, settings.materials, settings.panoramas)
    return None if folders == (None, None, None) else _library(*folders, settings.texture_size, settings.split)


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
    # World direction w is camera direction C^T w, which shows the panorama at R C^T w.
    turned = None if rotations is None else rotations @ spec.camera.rotation.transpose(1, 2)
    lit = replace(spec, environment=environment, light_rotation=turned)
    traced = trace(lit, settings, variant, mitsuba_seed)
    frames, exposure = _developed(traced.radiance, traced, brightness, settings, variant)
    return Clip(frames, settings.fps, environment.name), exposed(environment, exposure)


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


def _describe(
    spec: SceneSpec,
    settings: DatasetSettings,
    variant: str,
    exposure: float,
    relit_exposures: list[float],
    depth: Float[Tensor, "frames 1 height width"],
) -> dict[str, Any]:
    valid = depth[torch.isfinite(depth)]
    denoiser = "oidn" if settings.denoise and load_denoiser() is not None else "none"
    sources = [source for item in spec.objects for source in item.sources]
    sources += [source for source in (spec.light_source, *(light.source for light in spec.relights)) if source is not None]
    unique = {(source.kind, source.name): source.to_json() for source in sources}
    return {
        "family": spec.family,
        "motions": list(spec.motions),
        "exposure": exposure,
        "relit_exposures": relit_exposures,
        "fov_x_deg": float(spec.camera.fov_x[0]),
        "near": float(valid.min()) if valid.numel() else 0.0,
        "far": float(valid.max()) if valid.numel() else 0.0,
        "fps": settings.fps,
        "assets": {
            "panorama": spec.environment.name,
            "relit_panoramas": [light.environment.name for light in spec.relights],
            "objects": [_describe_object(item) for item in spec.objects],
            "sources": list(unique.values()),
        },
        "renderer": {**settings.to_json(), "variant": variant, "denoiser": denoiser},
    }


def _describe_object(item: SceneObject) -> dict[str, Any]:
    described: dict[str, Any] = {"shape": item.name, "material": ", ".join(part.material.name for part in item.parts)}
    return described if item.poses is None else {**described, "poses": item.poses.tolist()}
