"""The samplers: exact solutions, order, parity with diffusers, calls counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip
from diffusion_renderer.diffusion import SOLVERS, NoiseSchedule, VPrediction, find_solver, network_calls, sample_euler
from diffusion_renderer.pipelines import load_inverse, read_settings

MEAN, SPREAD = 0.7, 0.3
HIGHER = [name for name in SOLVERS if name != "euler"]


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoised estimate for data ``N(MEAN, SPREAD^2)``."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def network(x: Tensor, sigma: Tensor) -> Tensor:
    """v, not linear in x, that depends on the noise level."""
    return torch.sin(3 * x) + 0.1 * VPrediction().c_noise(sigma)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    form = VPrediction()
    return form.denoised(network(form.c_in(sigma) * x, sigma), x, sigma)


@pytest.mark.parametrize(
    ("name", "expected", "worst"),
    # Measured with 320 steps: 3.06e-4, 2.43e-6, 5.37e-7, 2.84e-8; factors 1.99 to 2.00, 4.01 to 4.03, 3.81 to 3.91, 8.00.
    [("euler", 2, 4e-4), ("heun", 4, 3e-6), ("dpmpp-2m", 4, 7e-7), ("unipc", 8, 4e-8)],
)
def test_order_on_gaussian_data(name: str, expected: float, worst: float) -> None:
    """For data N(m, s^2), ``x - m`` shrinks as ``sqrt(s^2 + sigma^2)``; doubling the steps divides the error by 2^order."""
    x = MEAN + torch.linspace(-3, 3, 9, dtype=torch.float64)
    exact = MEAN + (x - MEAN) * ((SPREAD**2 + 0.1**2) / (SPREAD**2 + 10.0**2)) ** 0.5
    errors = []
    for steps in (80, 160, 320):
        sigmas = torch.logspace(1, -1, steps + 1, dtype=torch.float64)
        errors.append(float((SOLVERS[name](gaussian, x, sigmas) - exact).abs().max()))
    assert errors[-1] < worst
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("end", [0.0, 0.3])
def test_exact_for_a_point_mass(name: str, end: float) -> None:
    """A denoiser that always gives c: ``x - c`` shrinks as sigma, whatever the steps."""
    x = torch.tensor([-2.0, 0.5, 9.0], dtype=torch.float64)
    sigmas = torch.tensor([80.0, 11.0, 3.0, 0.7, end], dtype=torch.float64)
    made = SOLVERS[name](lambda x, sigma: torch.full_like(x, 0.4), x, sigmas)
    torch.testing.assert_close(made, 0.4 + (x - 0.4) * end / 80, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_to_zero_is_the_step_of_euler(name: str) -> None:
    sigmas = NoiseSchedule().sigmas(1)
    x = torch.randn(5, generator=torch.Generator().manual_seed(0)) * 700
    assert torch.equal(SOLVERS[name](denoise, x, sigmas), sample_euler(denoise, x, sigmas))


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc"])
def test_first_step_is_the_step_of_euler(name: str) -> None:
    sigmas = torch.tensor([5.0, 2.0])
    x = torch.randn(5, generator=torch.Generator().manual_seed(0)) * 5
    assert torch.equal(SOLVERS[name](denoise, x, sigmas), sample_euler(denoise, x, sigmas))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("final_zero", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_calls_are_counted(name: str, final_zero: bool, steps: int) -> None:
    sigmas, seen = NoiseSchedule(final_zero=final_zero).sigmas(steps), []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma))
        return gaussian(x, sigma)

    made = SOLVERS[name](counted, torch.ones(1), sigmas)
    assert torch.isfinite(made).all()
    assert len(seen) == network_calls(name, sigmas)
    assert min(seen) > 0


#: diffusers' counterparts of our samplers, with the noise levels that they can be given.
LEVELS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
ENDS = {"sigma_min": 0.02, "sigma_max": 5.0}
COUNTERPARTS: dict[str, tuple[Callable[[], Any], bool]] = {
    "heun": (lambda: HeunDiscreteScheduler(use_karras_sigmas=True, **LEVELS), False),
    "dpmpp-2m": (
        lambda: EDMDPMSolverMultistepScheduler(sigma_data=1.0, prediction_type="v_prediction", **ENDS),
        False,
    ),
    "unipc": (lambda: UniPCMultistepScheduler(use_karras_sigmas=True, **ENDS, **LEVELS), True),
}


@pytest.mark.parametrize("name", HIGHER)
@pytest.mark.parametrize("steps", [2, 3, 7, 12])
def test_equals_the_steps_of_diffusers(name: str, steps: int) -> None:
    """The same network through diffusers' scheduler. Its UniPC keeps the sample at unit variance: ``x / sqrt(sigma^2 + 1)``."""
    make, unit = COUNTERPARTS[name]
    reference = make()
    reference.set_timesteps(steps)
    levels = torch.cat((reference.sigmas[:1], reference.sigmas[1:-1:2], reference.sigmas[-1:]))
    sigmas = levels if name == "heun" else reference.sigmas
    noise = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).double()
    start = noise * sigmas[0].double()
    x = start / (sigmas[0].double() ** 2 + 1).sqrt() if unit else start
    # Heun's list has every inner level twice: once as the end of a step, once as a beginning.
    for sigma, time in zip(reference.sigmas, reference.timesteps, strict=False):
        level = sigma.double()
        seen = x if unit else x * VPrediction().c_in(level)
        x = reference.step(network(seen, level), time, x).prev_sample
    found = find_solver(name)(denoise, start, sigmas.double())
    # Theirs computes coefficients in float32. Worst measured, as a part of the largest value: heun 1.8e-6 (of two steps, over
    # which a difference grows 500-fold), dpmpp-2m 1.7e-7, unipc 3.8e-7.
    tolerance = (5e-6 if name == "heun" else 1e-6) * float(x.abs().max())
    torch.testing.assert_close(found, x.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", HIGHER)
def test_higher_orders_are_nearer_for_the_same_calls(name: str) -> None:
    """From 80 to 0 in Karras' levels, 80 calls of the network."""
    x = torch.linspace(-3, 3, 9, dtype=torch.float64) * 80
    exact = MEAN + (x - MEAN) * SPREAD / (SPREAD**2 + 80.0**2) ** 0.5

    def error(solver: str, steps: int) -> float:
        sigmas = NoiseSchedule(sigma_max=80.0).sigmas(steps).double()
        assert network_calls(solver, sigmas) in (79, 80)
        return float((SOLVERS[solver](gaussian, x, sigmas) - exact).abs().max())

    # Measured: euler 0.0343, heun 0.0102, dpmpp-2m 0.0025, unipc 0.0005.
    assert error(name, 40 if name == "heun" else 80) < error("euler", 80) / 3


def test_a_renderer_runs_the_solver_that_it_is_asked_for() -> None:
    renderer = load_inverse("tiny", device="cpu")
    clip = Clip(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    seen: dict[str | None, list[tuple[int, int]]] = {}

    def depth(solver: str | None) -> Tensor:
        reports = seen.setdefault(solver, [])

        def progress(done: int, total: int, what: str) -> None:
            if what != "encoding":
                reports.append((done, total))

        options = {"buffers": ("depth",), "steps": 3, "size": (32, 32), "progress": progress}
        return renderer(clip, solver=solver, **options).depth

    made = {solver: depth(solver) for solver in (None, *SOLVERS)}
    assert torch.equal(made[None], made["euler"])
    assert len({float(image.sum()) for image in made.values()}) == len(SOLVERS)
    # Progress counts calls of the network: twice 2 steps and one to 0 for Heun.
    assert seen["heun"] == [(done, 5) for done in range(1, 6)]
    assert seen["unipc"] == [(done, 3) for done in range(1, 4)]
    with pytest.raises(InputError, match="did you mean heun"):
        renderer(clip, solver="heum")


def test_unknown_solver_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unipc"):
        find_solver("uni-pc")
    with pytest.raises(InputError, match="heun"):
        network_calls("huen", torch.ones(2))
    with pytest.raises(InputError, match=r"renderer\.json.*dpmpp-2m"):
        read_settings("inverse", {"solver": "dpmpp_2m"}, "renderer.json")
    assert read_settings("inverse", {"solver": "heun"}, "renderer.json").solver == "heun"
    assert read_settings("forward", {}, "renderer.json").solver == "euler"
