"""Pipelines: the diffusion inverse and forward renderers, ready to call.

gbuffer = load_inverse("tiny")(clip)
relit = load_forward("tiny")(gbuffer, light)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.names import check_name
from diffusion_renderer.models import Checkpoint, Kind, load_checkpoint
from diffusion_renderer.pipelines.forward import DiffusionForwardRenderer, Prior
from diffusion_renderer.pipelines.inverse import DiffusionInverseRenderer
from diffusion_renderer.pipelines.memory import MEMORY_NAMES, MemoryBudget, Say, limit_memory
from diffusion_renderer.pipelines.names import (
    MODEL_NAMES,
    PUBLISHED,
    local_folder,
    locate_model,
    repository,
    weights_fingerprint,
)
from diffusion_renderer.pipelines.protocols import ForwardRenderer, ForwardSettings, InverseRenderer, Progress
from diffusion_renderer.pipelines.settings import Decoder, RendererSettings, read_settings
from diffusion_renderer.pipelines.speed import channels_last, compiled, default_dtype, fastest_cpu_dtype, set_threads

__all__ = [
    "MEMORY_NAMES",
    "MODEL_NAMES",
    "PUBLISHED",
    "Decoder",
    "DiffusionForwardRenderer",
    "DiffusionInverseRenderer",
    "ForwardRenderer",
    "ForwardSettings",
    "InverseRenderer",
    "MemoryBudget",
    "Prior",
    "Progress",
    "RendererSettings",
    "channels_last",
    "compiled",
    "default_dtype",
    "fastest_cpu_dtype",
    "limit_memory",
    "load_forward",
    "load_inverse",
    "local_folder",
    "locate_model",
    "read_settings",
    "repository",
    "set_threads",
    "weights_fingerprint",
]


def load_inverse(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    memory: str | MemoryBudget | None = None,
    decoder: Decoder | None = None,
    compile: bool = False,
    say: Say | None = None,
) -> DiffusionInverseRenderer:
    """Load an inverse renderer.

    Parameters
    ----------
    name_or_path : "tiny" (inside the package), "svd" (the published one), a folder, or a Hugging Face repository id.
    device : None takes a GPU where there is one.
    dtype : of the networks; None takes float32 on a CPU and float16 elsewhere.
    memory : keep within "8GB", "12GB", "24GB" or what is free ("auto"), and go on with less when memory runs out (those, and
        "max"), see `limit_memory`; None leaves everything in place and lets the error out. Renderers that are used in turn,
        such as an inverse and a forward one, are given the same `MemoryBudget`.
    decoder : "full" or "small", see `RendererSettings`; None for the model's own. A small one decodes in a tenth of the time.
    compile : see `compiled`.
    say : is told in one line when memory ran out or compiling failed; None prints it on stderr.

    Raises InputError for an unknown name, a checkpoint of another kind, pickled or damaged weights, a small
    decoder where there is none.
    """
    renderer = DiffusionInverseRenderer(_load(name_or_path, "inverse", device, dtype, decoder))
    return limit_memory(compiled(renderer, say) if compile else renderer, memory, say)


def load_forward(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    prior: Prior | None = None,
    memory: str | MemoryBudget | None = None,
    decoder: Decoder | None = None,
    compile: bool = False,
    say: Say | None = None,
) -> DiffusionForwardRenderer:
    """Load a forward renderer; parameters and errors as for `load_inverse` (names also: "svd-objaverse").

    ``prior`` makes classical pictures for models that are given some, such as "tiny"; `editing.load_forward` has one.
    """
    renderer = DiffusionForwardRenderer(_load(name_or_path, "forward", device, dtype, decoder), prior)
    return limit_memory(compiled(renderer, say) if compile else renderer, memory, say)


def _load(
    name_or_path: str | Path,
    kind: Kind,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    decoder: Decoder | None,
) -> Checkpoint:
    folder = locate_model(name_or_path, kind)
    place = find_device(device)
    checkpoint = load_checkpoint(folder, kind, device=place, dtype=dtype or default_dtype(place))
    if decoder is None:
        return checkpoint
    check_name("decoder", decoder, get_args(Decoder))
    return replace(checkpoint, settings={**checkpoint.settings, "decoder": decoder})
