"""Renderers by name, whatever they are: the diffusion models, and the classical forward renderers they are measured against."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer import pipelines
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import nearest
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.models import Kind, check_decoder, check_kind
from diffusion_renderer.pipelines import MODEL_NAMES, Decoder, ForwardRenderer, MemoryBudget
from diffusion_renderer.pipelines.memory import Say
from diffusion_renderer.render import RENDERERS, Prior, Surface, load_renderer

#: Every short name of a forward renderer.
FORWARD_NAMES = (*MODEL_NAMES, *RENDERERS)


def load_forward(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    geometry: Path | None = None,
    memory: str | MemoryBudget | None = None,
    decoder: Decoder | None = None,
    compile: bool = False,
    say: Say | None = None,
) -> ForwardRenderer:
    """Load a forward renderer.

    Parameters
    ----------
    name_or_path : a diffusion model, as for `pipelines.load_forward`, or one of `RENDERERS`.
    device : where it runs; None takes a GPU where there is one.
    dtype : of the diffusion model's networks; the classical renderers compute in float32.
    geometry : the scene's file for ``pathtrace``, which shows G-buffers' cameras and not their pixels.
    memory, decoder, compile, say : of the diffusion model, as for `pipelines.load_inverse`; nothing to the classical renderers.

    ``ssrt`` and ``pathtrace`` are denoised with Open Image Denoise where it is installed. Raises InputError for an unknown
    name, a checkpoint of another kind, and ``pathtrace`` without a geometry.
    """
    check_model(name_or_path, "forward", geometry, decoder)
    name = str(name_or_path)
    if name not in RENDERERS:
        running = {"memory": memory, "decoder": decoder, "compile": compile, "say": say}
        return pipelines.load_forward(name_or_path, device=device, dtype=dtype, prior=Prior, **running)
    if name == "splitsum":
        return load_renderer(name, device=device)
    if name == "ssrt":
        return load_renderer(name, device=device, denoise=denoised)
    from diffusion_renderer.datagen.engine.variant import choose_variant
    from diffusion_renderer.render.pathtrace import PathTracer

    return PathTracer.from_file(geometry, variant=choose_variant(None), denoise=denoised)


def check_model(name_or_path: str | Path, kind: Kind, geometry: Path | None = None, decoder: Decoder | None = None) -> None:
    """Find (or download) a renderer, check its kind and that it has the ``decoder`` (None: its own), without loading it.

    Raises what loading it would.
    """
    name = str(name_or_path)
    if name in RENDERERS:
        if kind != "forward":
            raise InputError(f"an {kind} renderer", f"{name}, a forward renderer", "give tiny, a folder or a Hugging Face id")
        if name == "pathtrace" and geometry is None:
            advice = "give --geometry scene.xml, .ply or .obj; G-buffers alone do not hold the scene"
            raise InputError("the scene's geometry for pathtrace", "none", advice)
        return
    guess = nearest(name, FORWARD_NAMES) if kind == "forward" and not Path(name).exists() and "/" not in name else None
    if guess in RENDERERS:
        raise InputError(f"a model: {', '.join(FORWARD_NAMES)}, a folder, or an id", repr(name), f"did you mean {guess}?")
    folder = pipelines.locate_model(name_or_path, kind)
    check_kind(folder, kind)
    check_decoder(folder, decoder)


def denoised(radiance: Float[Tensor, "frames 3 height width"], surface: Surface) -> Float[Tensor, "frames 3 height width"]:
    """Open Image Denoise with base colour and normals as guides; the noisy picture where it is not installed."""
    from diffusion_renderer.datagen.engine.denoiser import denoise

    to_image = partial(rearrange, pattern="f h w c -> f c h w")
    covered: Any = to_image(surface.coverage)
    guides = GBuffer(basecolor=to_image(surface.basecolor) * covered, normal=to_image(surface.normal) * covered)
    on_cpu = GBuffer(**{name: tensor.cpu() for name, tensor in guides.tensors()})
    return denoise(radiance.cpu(), on_cpu, covered.cpu(), "high").to(radiance)
