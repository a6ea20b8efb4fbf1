"""Open Image Denoise over path-traced frames."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen.engine.variant import load_denoiser


def denoise(
    noisy: Float[Tensor, "frames 3 height width"],
    gbuffer: GBuffer,
    coverage: Float[Tensor, "frames 1 height width"],
    quality: str = "high",
    device: str = "cpu",
) -> Float[Tensor, "frames 3 height width"]:
    """Open Image Denoise frame by frame, guided by base colour and normal; the noisy frames where it cannot be loaded.

    Pixels that, with their neighbours, see only the panorama have no noise and are kept. ``device`` "cuda" runs it on the GPU.
    ``quality`` is "high", "balanced" or "fast".
    """
    oidn = load_denoiser()
    if oidn is None:
        return noisy
    clean = []
    for color, albedo, normal in zip(noisy, gbuffer.basecolor, gbuffer.normal, strict=True):
        images = [rearrange(image, "c h w -> h w c").contiguous() for image in (color, albedo, normal)]
        arrays = [image.numpy() if device == "cpu" else image.to(device) for image in images]
        result = oidn.denoise(arrays[0], albedo=arrays[1], normal=arrays[2], hdr=True, clean_aux=True, quality=quality)
        result = torch.from_numpy(np.array(result)) if device == "cpu" else result.cpu()
        clean.append(rearrange(result, "h w c -> c h w"))
    near_surface = torch.nn.functional.max_pool2d(coverage, 3, stride=1, padding=1) > 0
    return torch.where(near_surface, torch.stack(clean), noisy).clamp_min(0.0)
