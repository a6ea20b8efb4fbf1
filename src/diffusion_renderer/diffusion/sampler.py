"""The sampler: one short function over a callable. It knows a network only as ``denoise(x, sigma) -> x0``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

#: Denoised estimate of a noisy sample at a noise level (a scalar tensor).
Denoiser = Callable[[Tensor, Tensor], Tensor]


def sample_euler(denoise: Denoiser, x: Float[Tensor, "*shape"], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "*shape"]:
    """Follow the probability-flow ODE from ``x`` at the first noise level to the last (Karras et al. 2022, algorithm 1, Euler).

    ``dx / dsigma = (x - D(x; sigma)) / sigma``. A step is written as the interpolation ``x0 + (x - x0) * next / sigma``, which
    at a last level of 0 gives the denoised estimate without the cancellation of two numbers near sigma_max.
    """
    for sigma, following in pairwise(sigmas):
        x0 = denoise(x, sigma)
        x = x0 + (x - x0) * (following / sigma)
    return x
