"""Samplers: short functions over a callable, by name in `SOLVERS`. They know a network only as ``denoise(x, sigma) -> x0``.

All follow the probability-flow ODE ``dx / dsigma = (x - D(x; sigma)) / sigma`` (Karras et al. 2022, equations 1 and 3) from the
first noise level to the last. With two levels, the last of them 0, each of them is one call: the denoised estimate.

========  ===================================================  =====  ==============
name      what                                                 order  calls, n steps
========  ===================================================  =====  ==============
euler     as the published renderers                           1      n
heun      Karras et al. 2022, algorithm 1                      2      2 n - 1
dpmpp-2m  DPM-Solver++ (2M), Lu et al. 2022, algorithm 2       2      n
unipc     UniPC of order 2 with B2, Zhao et al. 2023           3      n
========  ===================================================  =====  ==============

The order says how the error falls on smooth levels that end above 0. With few steps between far ends of the noise levels
a higher order can be worse; Heun is, by far, below some 20 steps over SVD's levels (``benchmarks/steps.py --tasks exact``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.names import check_name

#: Denoised estimate of a noisy sample at a noise level (a scalar tensor).
Denoiser = Callable[[Tensor, Tensor], Tensor]
#: ``(denoise, x, sigmas)`` to the sample at the last noise level.
Solver = Callable[[Denoiser, Tensor, Tensor], Tensor]


def sample_euler(denoise: Denoiser, x: Float[Tensor, "*shape"], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "*shape"]:
    """Follow the ODE from ``x`` at the first noise level to the last (Karras et al. 2022, algorithm 1 without lines 6 to 8).

    A step is written as the interpolation ``x0 + (x - x0) * next / sigma``, which at a last level of 0 gives the denoised
    estimate without the cancellation of two numbers near sigma_max.
    """
    for sigma, following in pairwise(sigmas):
        x0 = denoise(x, sigma)
        x = x0 + (x - x0) * (following / sigma)
    return x


def sample_heun(denoise: Denoiser, x: Float[Tensor, "*shape"], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "*shape"]:
    """As `sample_euler`, each step corrected by the slope at its end (Karras et al. 2022, algorithm 1, no churn).

    Two calls per step, one for a step to 0. Where levels lie far apart the slope at the end is divided by a small level, and
    errors of the network grow by the levels' ratio: not for a few steps from a high first level.
    """
    for sigma, following in pairwise(sigmas):
        x0 = denoise(x, sigma)
        noise = (x - x0) / sigma
        x = x0 + noise * following
        if following > 0:
            # Half way from this slope to the one at the end; in this form nothing of the size of sigma is subtracted twice.
            x = x + 0.5 * (following - sigma) * ((x - denoise(x, following)) / following - noise)
    return x


def sample_dpmpp_2m(denoise: Denoiser, x: Float[Tensor, "*shape"], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "*shape"]:
    """DPM-Solver++ (2M), the multistep solver of second order for the denoised estimate (Lu et al. 2022, algorithm 2).

    In ``-ln sigma`` the linear part of the ODE is solved exactly; the estimate is extrapolated from the last two calls. A
    step is Euler's towards that estimate. The first step, and one to 0, have Euler's own.
    """
    before: Tensor | None = None
    steps = _log_steps(sigmas)
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        aim = x0
        if before is not None and math.isfinite(steps[index]):
            aim = x0 + (x0 - before) * (0.5 * steps[index] / steps[index - 1])
        x = aim + (x - aim) * (following / sigma)
        before = x0
    return x


def sample_unipc(denoise: Denoiser, x: Float[Tensor, "*shape"], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "*shape"]:
    """UniPC of order 2 for the denoised estimate, with ``B(h) = e^h - 1`` (Zhao et al. 2023; diffusers' "bh2").

    Steps as `sample_dpmpp_2m` does; the call at the end of a step then also corrects the point it was made at, so one call per
    step. The estimate is not computed anew at the corrected point. A step to 0 is Euler's and not corrected.
    """
    start, earlier, before = x, None, None
    steps = _log_steps(sigmas)
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if before is not None:
            x = _unipc_corrected(start, earlier, before, x0, sigmas[index - 1], sigma, steps[:index])
        start, aim = x, x0
        if before is not None and math.isfinite(steps[index]):
            aim = x0 + (x0 - before) * (0.5 * steps[index] / steps[index - 1])
        x = aim + (x - aim) * (following / sigma)
        earlier, before = before, x0
    return x


def _unipc_corrected(
    start: Tensor, earlier: Tensor | None, before: Tensor, x0: Tensor, sigma: Tensor, following: Tensor, steps: list[float]
) -> Tensor:
    """The end of the step from ``start``, now that the estimate ``x0`` at its end is known (the corrector, UniC).

    ``earlier`` and ``before`` are the estimates at the beginnings of the step before and of this one; the last of ``steps`` is
    this step's length in ``-ln sigma``. The two weights solve the conditions of order for p = 2, by hand; without ``earlier``,
    p = 1 has weight 1/2.
    """
    change = 0.5 * (x0 - before)
    if earlier is not None:
        h, ratio = steps[-1], -steps[-2] / steps[-1]
        grown = math.expm1(-h)
        first = -grown / h - 1
        second = -first / h - 0.5
        of_both, of_square = first / grown, 2 * second / grown
        weight = (of_both - of_square) / (1 - ratio)
        change = (earlier - before) * (weight / ratio) + (x0 - before) * (of_both - weight)
    aim = before + change
    return aim + (start - aim) * (following / sigma)


def _log_steps(sigmas: Tensor) -> list[float]:
    """Length of every step in ``-ln sigma``; infinite for a step to 0."""
    levels = sigmas.tolist()
    return [math.log(sigma / following) if following > 0 else math.inf for sigma, following in pairwise(levels)]


#: Every sampler, by the name that a user types.
SOLVERS: dict[str, Solver] = {
    "euler": sample_euler,
    "heun": sample_heun,
    "dpmpp-2m": sample_dpmpp_2m,
    "unipc": sample_unipc,
}


def find_solver(name: str) -> Solver:
    """The sampler of a name. InputError for an unknown one, which names the nearest."""
    return SOLVERS[check_name("solver", name, SOLVERS)]


def network_calls(name: str, sigmas: Float[Tensor, " levels"]) -> int:
    """How often the sampler ``name`` calls the network over these noise levels. InputError for an unknown name."""
    steps = len(sigmas) - 1
    if find_solver(name) is not sample_heun:
        return steps
    return 2 * steps - int(float(sigmas[-1]) == 0)
