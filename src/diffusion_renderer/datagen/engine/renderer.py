"""From a `SceneSpec` to linear radiance and G-buffers, with whatever variant of Mitsuba works."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffusion_renderer.core.types import Camera, GBuffer
from diffusion_renderer.datagen.engine.first_hits import hit_means
from diffusion_renderer.datagen.engine.mitsuba_scene import MitsubaScene
from diffusion_renderer.datagen.engine.tracing import register, trace_frames, trace_radiance
from diffusion_renderer.datagen.engine.variant import activate
from diffusion_renderer.datagen.scenes import SceneSpec
from diffusion_renderer.datagen.settings import DatasetSettings


@dataclass(frozen=True)
class Traced:
    """What the path tracer gives of a scene, before exposure and denoising.

    Attributes
    ----------
    radiance : linear, noisy.
    gbuffer : exact but for the average over a pixel.
    coverage : share of each pixel that a surface covers.
    ids : object that most of a pixel's hits belong to, 1 for the scene's first; 0 where the mask is False.
    """

    radiance: Float[Tensor, "frames 3 height width"]
    gbuffer: GBuffer
    coverage: Float[Tensor, "frames 1 height width"]
    ids: UInt8[Tensor, "frames 1 height width"]


def trace(spec: SceneSpec, settings: DatasetSettings, variant: str, seed: int) -> Traced:
    """Radiance under the scene's first light, and its G-buffers.

    The light is fixed to the world but for ``spec.light_rotation``; radiance that meets nothing is shown as it is. A pixel is a
    surface's when at least half of its samples hit one; it then has the mean over these hits, with the normal made unit length
    again. Elsewhere all buffers are 0 and depth is +inf.
    """
    mi = activate(variant)
    scalar = variant.startswith("scalar")
    if not scalar:
        register(mi, variant)
    built = MitsubaScene(mi, spec, spec.environment.radiance.numpy(), _numpy(spec.light_rotation), separate_uv=scalar)
    if scalar:
        radiance, hits = trace_radiance(built, settings, seed), hit_means(built, settings)
    else:
        radiance, hits = trace_frames(built, settings, seed)
    gbuffer, coverage, ids = _assemble(hits, spec.camera, settings.fps)
    return Traced(radiance.clamp_min(0.0), gbuffer, coverage, ids)


def relight(
    spec: SceneSpec,
    radiance: Float[Tensor, "3 rows columns"],
    light_rotation: Float[Tensor, "frames 3 3"] | None,
    settings: DatasetSettings,
    variant: str,
    seed: int,
) -> Float[Tensor, "frames 3 height width"]:
    """Radiance of the scene under another panorama, turned per frame (world directions to the panorama's) or at rest."""
    built = MitsubaScene(activate(variant), spec, radiance.numpy(), _numpy(light_rotation))
    return trace_radiance(built, settings, seed).clamp_min(0.0)


def _numpy(rotation: Tensor | None) -> np.ndarray | None:
    return None if rotation is None else rotation.double().numpy()


def _assemble(
    sums: Float[Tensor, "frames sums height width"], camera: Camera, fps: float
) -> tuple[GBuffer, Float[Tensor, "frames 1 height width"], UInt8[Tensor, "frames 1 height width"]]:
    """Means over the hits from sums over the samples, in the camera's frame."""
    coverage = sums[:, :1]
    mask = coverage >= 0.5
    mean = sums[:, 1:12] / coverage.clamp_min(1e-6)
    basecolor, roughness, metallic, normal, position = mean.split((3, 1, 1, 3, 3), dim=1)
    rotation, eye = camera.rotation, camera.pose[:, :3, 3, None, None]
    normal = torch.nn.functional.normalize(torch.einsum("fji,fjhw->fihw", rotation, normal), dim=1) * mask
    depth = -torch.einsum("fj,fjhw->fhw", rotation[:, :, 2], position - eye)[:, None]
    depth = torch.where(mask, depth, torch.full_like(depth, torch.inf))
    basecolor, roughness, metallic = ((value * mask).clamp(0, 1) for value in (basecolor, roughness, metallic))
    ids = (sums[:, 12:].argmax(1, keepdim=True) + 1) * mask
    return GBuffer(basecolor, normal, depth, roughness, metallic, mask=mask, fps=fps), coverage, ids.to(torch.uint8)
