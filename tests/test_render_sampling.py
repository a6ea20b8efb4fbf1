"""Panorama importance sampling: the directions follow the stated density, and the density follows the light."""

import math

import pytest
import torch

from diffusion_renderer.core.color import LUMINANCE
from diffusion_renderer.core.geometry import direction_to_equirect, equirect_to_direction
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.light import sample_panorama
from diffusion_renderer.render.sampling import (
    PanoramaSampler,
    even_points,
    pdf_cosine,
    pixel_shifts,
    sample_cosine,
    shifted,
)


def random_panorama(height: int = 6, sun: float = 40.0) -> EnvironmentMap:
    radiance = torch.rand(3, height, 2 * height, generator=torch.Generator().manual_seed(1))
    radiance[:, 2, 3] += sun
    return EnvironmentMap(radiance)


def sphere_grid(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions over the whole sphere and the solid angle of each."""
    v, u = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(2 * rows) + 0.5) / (2 * rows), indexing="ij")
    return equirect_to_direction(u, v), torch.sin(math.pi * v) * math.pi**2 / rows**2


@pytest.mark.parametrize("sun", [0.0, 1e4])
def test_the_density_integrates_to_one(sun):
    direction, area = sphere_grid(240)
    _, pdf = PanoramaSampler.build(random_panorama(sun=sun)).read(direction)
    # Measured: off by 9e-7 and 2e-6.
    assert (pdf[..., 0] * area).sum() == pytest.approx(1, abs=1e-4)


def test_samples_follow_the_density():
    sampler = PanoramaSampler.build(random_panorama())
    count, rows = 2**16, 12
    direction = sampler.sample(even_points(count, 2, seed=0))
    u, v = direction_to_equirect(direction)
    cell = (v * rows).long().clamp_max(rows - 1) * 2 * rows + (u * 2 * rows).long().clamp_max(2 * rows - 1)
    found = torch.bincount(cell, minlength=2 * rows * rows) / count
    fine, area = sphere_grid(rows * 16)
    mass = sampler.read(fine)[1][..., 0] * area
    expected = mass.reshape(rows, 16, 2 * rows, 16).sum(dim=(1, 3)).flatten()
    # Half texels. Measured: the largest difference is 1.8e-4, of shares of up to 0.08; shifted by one cell it would be 0.08.
    assert (found - expected).abs().max() < 1e-3
    assert expected.max() > 0.05


def test_the_radiance_is_what_the_panorama_shows_and_never_far_above_the_density():
    environment = random_panorama(16, sun=1e4)
    sampler = PanoramaSampler.build(environment)
    direction = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(2)), dim=-1)
    radiance, pdf = sampler.read(direction)
    # Two ways to the same numbers. Measured: equal.
    assert torch.allclose(radiance, sample_panorama(environment, direction), rtol=1e-5, atol=1e-5)
    ratio = (radiance @ radiance.new_tensor(LUMINANCE)) / pdf[:, 0]
    # Constant but for the sine between rows; with a table of single texels it would be thousands beside the sun.
    # Measured: 1.43 times the median.
    assert ratio.max() < 1.5 * ratio.median()


def test_one_lit_texel_is_found_even_at_the_pole_and_the_seam():
    for row, column in ((0, 0), (7, 15), (3, 0)):
        radiance = torch.zeros(3, 8, 16)
        radiance[:, row, column] = 5.0
        sampler = PanoramaSampler.build(EnvironmentMap(radiance))
        seen, pdf = sampler.read(sampler.sample(even_points(512, 2, seed=1)))
        assert (pdf > 0).all()
        # The mean of radiance over density is the panorama's whole light: an estimate without noise but for the tent's slope.
        direction, area = sphere_grid(256)
        whole = (sampler.read(direction)[0][..., 0] * area).sum()
        # Measured: off by at most 0.2%.
        assert (seen[:, :1] / pdf).mean() == pytest.approx(float(whole), rel=0.01)


def test_a_panorama_without_light_or_with_nan_is_sampled_evenly():
    dark = torch.zeros(3, 8, 16)
    dark[0, 2, 2], dark[1, 3, 3] = torch.nan, -4.0
    sampler = PanoramaSampler.build(EnvironmentMap(dark))
    direction = sampler.sample(even_points(1024, 2, seed=0))
    radiance, pdf = sampler.read(direction)
    assert (radiance == 0).all()
    # Interpolated between 8 rows the sine is up to 2.6% too small.
    level = direction[:, 1].abs() < 0.3
    assert torch.allclose(pdf[level], torch.tensor(1 / (4 * math.pi)), rtol=0.03)


def test_the_radiance_is_differentiable_in_the_panorama():
    radiance = random_panorama().radiance.requires_grad_()
    direction, _ = sphere_grid(8)
    PanoramaSampler.build(EnvironmentMap(radiance)).read(direction)[0].sum().backward()
    assert torch.isfinite(radiance.grad).all()
    # Every direction gives each channel a weight of 1 in all.
    assert radiance.grad.sum() == pytest.approx(8 * 16 * 3, rel=1e-4)


def test_cosine_directions_follow_the_cosine():
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=0)
    direction = sample_cosine(normal, even_points(4096, 2, seed=0))
    cosine = direction @ normal
    assert torch.allclose(direction.norm(dim=-1), torch.ones(4096), atol=1e-5)
    assert cosine.min() > -1e-6
    # Moments of the density cos / pi: 2 / 3 and 1 / 2. Measured: off by 1e-4.
    assert cosine.mean() == pytest.approx(2 / 3, abs=2e-3)
    assert cosine.square().mean() == pytest.approx(1 / 2, abs=2e-3)
    assert torch.allclose(pdf_cosine(normal, direction)[:, 0], cosine.clamp_min(0) / math.pi)


def test_points_belong_to_the_pixel_and_the_seed():
    points, shifts = even_points(16, 4, seed=3), pixel_shifts(10, 4, seed=3)
    assert torch.equal(points, even_points(16, 4, seed=3))
    assert torch.equal(shifts, pixel_shifts(10, 4, seed=3))
    assert not torch.equal(shifts, pixel_shifts(10, 4, seed=4))
    moved = shifted(points, shifts)
    assert moved.min() >= 0
    assert moved.max() < 1
    assert torch.equal(moved[3:5], shifted(points, shifts[3:5]))
    # Each pixel has the points of the others, turned around: their mean stays near 1/2. Measured: off by at most 0.03.
    assert (moved.mean(dim=1) - 0.5).abs().max() < 0.07
