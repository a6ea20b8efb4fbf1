"""Few-step students: the targets where the right answer is known in closed form."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.diffusion import NoiseSchedule, sample_euler
from diffusion_renderer.training.presets import TINY
from diffusion_renderer.training.students import (
    LAST_SIGMA,
    METHODS,
    Student,
    aim_at,
    consistency_target,
    draw_levels,
    euler_step,
    fine_levels,
    from_zero,
    guided,
    regression_target,
    trajectory_target,
    visited,
)


class Gaussian:
    """Data of one normal distribution: its denoiser, and where the probability-flow ODE leads, in closed form."""

    def __init__(self, mean: float, deviation: float) -> None:
        self.mean, self.variance = mean, deviation**2

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (self.variance * x + sigma**2 * self.mean) / (self.variance + sigma**2)

    def flow(self, x: Tensor, sigma: Tensor, end: Tensor) -> Tensor:
        return self.mean + (x - self.mean) * ((self.variance + end**2) / (self.variance + sigma**2)).sqrt()

    def aim(self, x: Tensor, sigma: Tensor, end: Tensor) -> Tensor:
        return aim_at(x, self.flow(x, sigma, end), sigma, end)


def point_mass(value: float):
    return lambda x, sigma: torch.full_like(x, value)


def starts(levels: Tensor, items: int = 16, mean: float = 0.3, deviation: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy samples at the first level of the student's steps in turn: (x, start, end)."""
    generator = torch.Generator().manual_seed(0)
    step = torch.arange(items) % (len(levels) - 1)
    sigma, end = levels[:-1][step], levels[1:][step]
    clean = mean + deviation * torch.randn(items, 2, generator=generator, dtype=levels.dtype)
    return clean + sigma[:, None] * torch.randn(items, 2, generator=generator, dtype=levels.dtype), step, end


@pytest.mark.parametrize("steps", LAST_SIGMA)
def test_levels_are_those_of_the_pipelines(steps: int) -> None:
    """The exported scheduler file gives the sampler the levels that the student was trained on, none of them wasted."""
    student = Student("trajectory", steps)
    config = student.scheduler_config(TINY.scheduler_config())
    levels = student.levels(TINY.scheduler_config())
    assert torch.equal(NoiseSchedule.from_config(config).sigmas(steps), levels)
    assert len(levels) == steps + 1 and levels[0] == TINY.sigma_max and levels[-1] == 0
    assert levels[-2] == pytest.approx(LAST_SIGMA[steps] or TINY.sigma_max)
    assert TINY.scheduler_config()["sigma_min"] == 0.002


def test_only_regression_starts_from_zero() -> None:
    assert [Student(method, 1).initial_noise for method in METHODS] == [False, True, True]


@pytest.mark.parametrize(("values", "message"), [(("trajectry", 1), "trajectory"), (("regression", 3), "1, 2 or 4 steps")])
def test_unknown_students_are_refused(values: tuple[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Student(*values)


def test_a_step_and_its_aim_are_inverse_and_equal_the_sampler() -> None:
    (x, x0), sigma = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), torch.tensor(5.0)
    for end in (torch.tensor(0.0), torch.tensor(2.0)):
        landing = euler_step(x, x0, sigma, end)
        assert torch.equal(landing, sample_euler(lambda x, sigma: x0, x, torch.stack((sigma, end))))
        # Worst seen: 4.8e-7; 1 / (1 - 2 / 5) times the rounding of numbers near 2.
        torch.testing.assert_close(aim_at(x, landing, sigma, end), x0, rtol=0, atol=2e-6)


def test_fine_levels_lie_within_the_students_steps() -> None:
    levels = Student("trajectory", 4).levels(TINY.scheduler_config())
    fine = fine_levels(levels, 8)
    assert fine.shape == (4, 9)
    assert torch.equal(fine[:, 0], levels[:-1]) and torch.equal(fine[:, -1], levels[1:])
    assert (fine.diff(dim=1) < 0).all()
    assert fine[-1, -2] == pytest.approx(0.002)
    assert torch.equal(fine_levels(levels, 1), torch.stack((levels[:-1], levels[1:]), dim=1))


def test_one_segment_of_fine_levels_is_the_teachers_own_schedule() -> None:
    config = TINY.scheduler_config()
    own = NoiseSchedule.from_config(config).sigmas(20)
    # Worst relative difference: 5.9e-8, one unit in the last place.
    torch.testing.assert_close(fine_levels(Student("trajectory", 1).levels(config), 20)[0], own, rtol=2e-7, atol=0)


def test_guidance_is_that_of_the_pipelines() -> None:
    """Two Gaussians of one variance, guided, are a third with the mean moved on; at 1 or less it is the first, one call."""
    given, free = Gaussian(0.5, 0.4), Gaussian(0.1, 0.4)
    x, sigma = torch.linspace(-2, 2, 5, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)
    expected = Gaussian(0.1 + 3.0 * 0.4, 0.4)(x, sigma)
    torch.testing.assert_close(guided(given, free, 3.0)(x, sigma), expected, rtol=1e-12, atol=1e-12)
    assert guided(given, free, 1.0) is given


def test_at_the_largest_level_a_blind_teacher_sees_zeros() -> None:
    seen = from_zero(lambda x, sigma: x, 700.0)
    x = torch.ones(2, 3)
    sigma = torch.tensor([[700.0], [699.0]])
    assert seen(x, sigma).tolist() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("steps", LAST_SIGMA)
def test_a_point_mass_is_met_by_every_method(steps: int) -> None:
    """All data in one point: paths are straight, so every target is that point, from anywhere, in any number of substeps."""
    levels = Student("trajectory", steps).levels(TINY.scheduler_config()).double()
    x, step, end = starts(levels)
    sigma, teacher = levels[:-1][step], point_mass(0.7)
    fine = fine_levels(levels, 5)
    targets = (
        trajectory_target(teacher, x, fine[step].T),
        consistency_target(teacher, teacher, x, sigma, fine[step, 1], end),
        regression_target(torch.full_like(x, 0.7)),
    )
    for target in targets:
        # Worst seen: 2e-13 (numbers near 2000 cancel).
        torch.testing.assert_close(target, torch.full_like(x, 0.7), rtol=0, atol=1e-11)


@pytest.mark.parametrize("steps", LAST_SIGMA)
def test_trajectory_follows_the_flow_of_a_gaussian(steps: int) -> None:
    """The error against the closed form falls with the teacher's steps, at first order as Euler's method does."""
    levels, model = Student("trajectory", steps).levels(TINY.scheduler_config()).double(), Gaussian(0.3, 0.6)
    x, step, end = starts(levels)
    exact = model.aim(x, levels[:-1][step][:, None], end[:, None])
    error = [(trajectory_target(model, x, fine_levels(levels, n)[step].T) - exact).abs().max().item() for n in (64, 128, 256)]
    # Measured, worst item of one, two and four steps: 0.030, 0.0069, 0.0050. The aims are of the order of 1.
    assert error[2] < {1: 0.05, 2: 0.012, 4: 0.009}[steps]
    for coarse, fine in itertools.pairwise(error):
        assert 1.7 < coarse / fine < 2.3


@pytest.mark.parametrize("steps", LAST_SIGMA)
def test_a_student_at_its_target_samples_like_the_teacher(steps: int) -> None:
    """The sampler of the pipelines, with a denoiser that aims as the target says, gives the flow's end in a few calls."""
    config, model = TINY.scheduler_config(), Gaussian(0.3, 0.6)
    levels = Student("trajectory", steps).levels(config).double()
    ends = dict(zip(levels[:-1].tolist(), levels[1:], strict=True))
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * levels[0]
    made = sample_euler(lambda x, sigma: model.aim(x, sigma, ends[sigma.item()]), noise, levels)
    torch.testing.assert_close(made, model.flow(noise, levels[0], levels[-1]), rtol=1e-9, atol=1e-9)
    # Three standard errors of mean and deviation over 4000 draws: 0.028 and 0.020.
    assert made.mean().item() == pytest.approx(0.3, abs=0.028)
    assert made.std().item() == pytest.approx(0.6, abs=0.020)


def test_the_exact_student_is_consistent() -> None:
    """With the closed form as slow copy, the target is the closed form, but for the teacher's one Euler step (first order)."""
    levels, model = Student("consistency", 2).levels(TINY.scheduler_config()).double(), Gaussian(0.3, 0.6)
    noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end, errors = levels[1:], []
    for substeps in (64, 128, 256):
        fine, worst = fine_levels(levels, substeps), 0.0
        for number in range(substeps):
            sigma, following = fine[:, number], fine[:, number + 1]
            x = 0.3 + sigma[:, None] * noise
            found = consistency_target(model, lambda y, at: model.aim(y, at, end[:, None]), x, sigma, following, end)
            worst = max(worst, (found - model.aim(x, sigma[:, None], end[:, None])).abs().max().item())
        errors.append(worst)
    # Measured: 0.0159, 0.0082, 0.0041.
    assert errors[2] < 0.006
    assert 1.8 < errors[0] / errors[1] < 2.2 and 1.8 < errors[1] / errors[2] < 2.2


@pytest.mark.parametrize("steps", LAST_SIGMA)
def test_what_consistency_ends_at_is_the_trajectory(steps: int) -> None:
    """Trained to the end (straight lines fitted to the targets, level by level), it lands where all the small steps lead."""
    levels, model, substeps = Student("consistency", steps).levels(TINY.scheduler_config()).double(), Gaussian(0.3, 0.6), 6
    fine = fine_levels(levels, substeps)
    noise = torch.randn(8, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for segment, end in zip(fine, levels[1:], strict=True):
        lines: dict[float, tuple[Tensor, Tensor]] = {}

        def copy(x: Tensor, sigma: Tensor, lines: dict[float, tuple[Tensor, Tensor]] = lines) -> Tensor:
            slope, offset = lines.get(sigma.flatten()[0].item(), (0.0, 0.0))
            return slope * x + offset

        for number in reversed(range(substeps)):
            sigma, following = segment[number].expand(8), segment[number + 1].expand(8)
            x = 0.3 + sigma[:, None] * noise
            found = consistency_target(model, copy, x, sigma, following, end.expand(8))
            slope = (found[1] - found[0]) / (x[1] - x[0])
            lines[segment[number].item()] = (slope, found[0] - slope * x[0])
        whole = trajectory_target(model, x, segment[:, None].expand(-1, 8))
        # Worst seen: 1.1e-13; numbers near 2000 cancel.
        torch.testing.assert_close(copy(x, segment[:1]), whole, rtol=0, atol=2e-12)


def test_regression_corrects_from_where_the_student_stands() -> None:
    """With a constant estimate the states lie on the straight line from zero; item i stops at its own step."""
    levels = Student("regression", 4).levels(TINY.scheduler_config())
    calls = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma.shape)
        return torch.full_like(x, 2.0)

    index = torch.tensor([0, 1, 2, 3])
    x = visited(denoise, torch.zeros(4, 3), levels, index)
    expected = 2.0 * (1 - levels[:4] / levels[0])
    torch.testing.assert_close(x, expected[:, None].expand(4, 3), rtol=1e-6, atol=1e-6)
    assert len(calls) == 3 and calls[0] == (4, 1)


def test_regression_of_the_best_constant_is_the_mean() -> None:
    """From zero there is nothing to go by, so the best estimate of two equally likely points is their middle."""
    generator, estimate = torch.Generator().manual_seed(0), torch.zeros(1, requires_grad=True)
    clean = torch.where(torch.rand(4000, generator=generator) < 0.5, -1.0, 3.0)
    optimizer = torch.optim.SGD([estimate], lr=0.25)
    for _ in range(40):
        optimizer.zero_grad()
        ((estimate - regression_target(clean)) ** 2).mean().backward()
        optimizer.step()
    assert estimate.item() == pytest.approx(clean.mean().item(), abs=1e-5)


def test_draws_cover_every_step_and_depend_on_the_item_only() -> None:
    fine = fine_levels(Student("consistency", 4).levels(TINY.scheduler_config()), 3)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(600)]
    segment, level = draw_levels(fine, seeds)
    counts = torch.bincount(3 * segment + level, minlength=12)
    # 50 expected of each; four standard deviations of a count: 27.
    assert counts.min() >= 23 and counts.max() <= 77
    again = draw_levels(fine, [torch.Generator().manual_seed(7)])
    assert (again[0][0], again[1][0]) == (segment[7], level[7])
