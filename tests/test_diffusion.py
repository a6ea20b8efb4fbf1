"""Noise schedule, parameterisation and sampler."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.diffusion import NoiseSchedule, VPrediction, sample_euler

SVD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
VARIANTS = list(itertools.product(("leading", "trailing", "linspace"), (True, False), (True, False), ("zero", "sigma_min")))


@pytest.mark.parametrize(("spacing", "karras", "ends", "final"), VARIANTS)
def test_levels_equal_diffusers(spacing: str, karras: bool, ends: bool, final: str) -> None:
    config = {**SVD, "timestep_spacing": spacing, "use_karras_sigmas": karras, "final_sigmas_type": final}
    if not ends:
        config |= {"sigma_min": None, "sigma_max": None}
    reference, schedule = EulerDiscreteScheduler.from_config(config), NoiseSchedule.from_config(config)
    for steps in (1, 2, 3, 4, 7, 10, 15, 20, 25, 30, 50, 99):
        reference.set_timesteps(steps)
        sigmas = schedule.sigmas(steps)
        # Worst relative difference over all variants and step counts: 5.8e-8, one unit in the last place.
        torch.testing.assert_close(sigmas, reference.sigmas, rtol=2e-7, atol=0)
        torch.testing.assert_close(VPrediction().c_noise(sigmas[:-1]), reference.timesteps, rtol=1e-6, atol=1e-7)
        assert schedule.initial_scale(steps) == pytest.approx(float(reference.init_noise_sigma), rel=2e-7)


def test_spacing_override_wins_over_the_file() -> None:
    assert NoiseSchedule.from_config(SVD, "trailing").initial_scale(3) == 700.0
    assert NoiseSchedule.from_config(SVD).initial_scale(3) > 700.0


@pytest.mark.parametrize(
    "change",
    [
        {"prediction_type": "epsilon"},
        {"timestep_type": "discrete"},
        {"use_beta_sigmas": True},
        {"timestep_spacing": "sideways"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2]},
    ],
)
def test_other_schedulers_are_refused_by_name(change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        NoiseSchedule.from_config({**SVD, **change})


def test_no_steps_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 step"):
        NoiseSchedule().sigmas(0)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 1.0, 20.0, 700.0])
def test_velocity_is_what_denoises_exactly(sigma: float) -> None:
    generator, level, v = torch.Generator().manual_seed(0), torch.tensor(sigma, dtype=torch.float64), VPrediction()
    x0, noise = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    target = v.velocity(x0, noise, level)
    torch.testing.assert_close(v.denoised(target, x0 + level * noise, level), x0, rtol=0, atol=1e-10)
    # The network sees, and predicts, unit variance for data of unit variance (Karras et al. 2022, equations 117 and 121).
    assert float(v.c_in(level) ** 2 * (1 + level**2)) == pytest.approx(1)
    assert float(v.c_skip(level) ** 2 * level**2 + (1 - v.c_skip(level)) ** 2) == pytest.approx(float(v.c_out(level) ** 2))


def test_one_step_is_the_denoised_estimate() -> None:
    sigmas = NoiseSchedule().sigmas(1)
    seen = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(float(sigma))
        return torch.full_like(x, 0.123)

    assert torch.equal(sample_euler(denoise, torch.randn(3) * 700, sigmas), torch.full((3,), 0.123))
    assert seen == [700.0]


def test_equals_the_steps_of_diffusers() -> None:
    """The same nonlinear denoiser through diffusers' scheduler, at a sigma_max where its cancellation is harmless."""
    config = {**SVD, "sigma_max": 5.0}
    reference = EulerDiscreteScheduler.from_config(config)
    reference.set_timesteps(7)
    schedule, form = NoiseSchedule.from_config(config), VPrediction()
    noise = torch.randn(64, generator=torch.Generator().manual_seed(0))

    def network(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x) + 0.1 * c_noise

    expected = noise * reference.init_noise_sigma
    for time in reference.timesteps:
        output = network(reference.scale_model_input(expected, time), time)
        expected = reference.step(output, time, expected).prev_sample
    found = sample_euler(
        lambda x, sigma: form.denoised(network(form.c_in(sigma) * x, form.c_noise(sigma)), x, sigma),
        noise * schedule.initial_scale(7),
        schedule.sigmas(7),
    )
    # Worst measured: 1.3e-6.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_gaussian_data_converge_to_the_exact_solution() -> None:
    """For data N(m, s^2): ``x(0) = m + (x - m) s / sqrt(s^2 + sigma_max^2)``; Euler is of first order."""
    mean, spread = 0.7, 0.3
    schedule = NoiseSchedule(sigma_max=80.0)
    x = torch.linspace(-3, 3, 9, dtype=torch.float64) * 80

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (spread**2 * x + sigma**2 * mean) / (spread**2 + sigma**2)

    exact = mean + (x - mean) * spread / (spread**2 + 80.0**2) ** 0.5
    errors = [
        float((sample_euler(denoise, x, schedule.sigmas(steps).double()) - exact).abs().max()) for steps in (20, 40, 80, 160)
    ]
    # Measured: 0.134, 0.068, 0.034, 0.017.
    assert errors[-1] < 0.02
    for coarse, fine in itertools.pairwise(errors):
        assert 1.8 < coarse / fine < 2.4
