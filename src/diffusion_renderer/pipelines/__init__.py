"""Pipelines: the diffusion inverse and forward renderers, ready to call.

gbuffer = load_inverse("tiny")(clip)
relit = load_forward("tiny")(gbuffer, light)
"""

from __future__ import annotations

from pathlib import Path

import torch

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.models import Checkpoint, Kind, load_checkpoint
from diffusion_renderer.pipelines.forward import DiffusionForwardRenderer, Prior
from diffusion_renderer.pipelines.inverse import DiffusionInverseRenderer
from diffusion_renderer.pipelines.names import (
    MODEL_NAMES,
    PUBLISHED,
    local_folder,
    locate_model,
    repository,
    weights_fingerprint,
)
from diffusion_renderer.pipelines.protocols import ForwardRenderer, ForwardSettings, InverseRenderer, Progress
from diffusion_renderer.pipelines.settings import RendererSettings, read_settings

__all__ = [
    "MODEL_NAMES",
    "PUBLISHED",
    "DiffusionForwardRenderer",
    "DiffusionInverseRenderer",
    "ForwardRenderer",
    "ForwardSettings",
    "InverseRenderer",
    "Prior",
    "Progress",
    "RendererSettings",
    "load_forward",
    "load_inverse",
    "local_folder",
    "locate_model",
    "read_settings",
    "repository",
    "weights_fingerprint",
]


def load_inverse(
    name_or_path: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> DiffusionInverseRenderer:
    """Load an inverse renderer.

    Parameters
    ----------
    name_or_path : "tiny" (inside the package), "svd" (the published one), a folder, or a Hugging Face repository id.
    device : None takes a GPU where there is one.
    dtype : of the networks; None takes float32 on a CPU and float16 elsewhere.

    Raises InputError for an unknown name, a checkpoint of another kind, pickled or damaged weights.
    """
    return DiffusionInverseRenderer(_load(name_or_path, "inverse", device, dtype))


def load_forward(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    prior: Prior | None = None,
) -> DiffusionForwardRenderer:
    """Load a forward renderer; parameters and errors as for `load_inverse` (names also: "svd-objaverse").

    ``prior`` makes classical pictures for models that are given some, such as "tiny"; `editing.load_forward` has one.
    """
    return DiffusionForwardRenderer(_load(name_or_path, "forward", device, dtype), prior)


def _load(name_or_path: str | Path, kind: Kind, device: str | torch.device | None, dtype: torch.dtype | None) -> Checkpoint:
    folder = locate_model(name_or_path, kind)
    place = find_device(device)
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else torch.float16
    return load_checkpoint(folder, kind, device=place, dtype=dtype)
