"""Clips with exact ground truth by formula: a sphere in front of nothing, lit by one soft lamp. No path tracer needed."""

from __future__ import annotations

import math

import torch

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Sample


def synthetic_clip(seed: int, frames: int = 3, size: int = 32) -> Sample:
    """An orthographic unit sphere of one material per frame, shaded by the cosine to a lamp."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    axis = (torch.arange(size) + 0.5) / size * 2.4 - 1.2
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    inside = (x**2 + y**2 < 1)[None, None].expand(frames, 1, size, size)
    z = (1 - x**2 - y**2).clamp_min(0).sqrt()
    normal = torch.stack((x, y, z)).expand(frames, 3, size, size) * inside
    color, rough, metal = draw(frames, 3, 1, 1), draw(frames, 1, 1, 1), (draw(frames, 1, 1, 1) > 0.5).float()
    lamp = torch.nn.functional.normalize(draw(3) * 2 - 1, dim=0)
    shade = (normal * lamp[:, None, None]).sum(dim=1, keepdim=True).clamp_min(0) + 0.2
    basecolor = color * inside
    radiance = torch.full((3, 16, 32), 0.2 * math.pi) + draw(3, 16, 32)
    return Sample(
        clip=Clip(srgb_oetf(basecolor * shade), name=f"sphere{seed}"),
        gbuffer=GBuffer(
            basecolor=basecolor,
            normal=torch.nn.functional.normalize(normal, dim=1),
            depth=torch.where(inside, (3 - z).expand(frames, 1, size, size), torch.inf),
            roughness=rough * inside,
            metallic=metal * inside,
            mask=inside,
            name=f"sphere{seed}",
        ),
        environment=EnvironmentMap(radiance),
        camera=Camera.identity(frames),
        meta={},
    )
