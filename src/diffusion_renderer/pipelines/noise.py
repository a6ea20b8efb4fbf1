"""Starting noise that depends on the seed, the frame and what is made, on nothing else."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor


def frame_noise(
    seed: int, purpose: str, frames: int, shape: tuple[int, int, int], first: int = 0
) -> Float[Tensor, "{frames} _c _h _w"]:
    """Unit normal noise, on the CPU. A frame's noise is the same in clips of any length, and other for another ``purpose``.

    ``first`` is the number of the first of the ``frames``. The noise does depend on the latents' ``shape`` (channels, height,
    width): another working size is other noise.
    """
    noise = torch.empty(frames, *shape)
    for row in range(frames):
        digest = hashlib.blake2b(f"{seed}/{purpose}/{first + row}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        noise[row] = torch.randn(shape, generator=generator)
    return noise
