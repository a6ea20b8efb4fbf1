"""Where networks run."""

from __future__ import annotations

import torch

from diffusion_renderer.core.errors import InputError


def find_device(name: str | torch.device | None) -> torch.device:
    """The device called ``name``; None is a GPU where there is one, else the CPU. InputError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError("a device like cpu or cuda", repr(name), "correct the name") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("a CUDA device", "none on this machine", "leave the device out to use the CPU")
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` is a CPU with instructions for bfloat16; others emulate it, several times slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, lambda: False)() for check in checks)
