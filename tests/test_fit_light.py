"""The light of a clip is found again: a sphere under known panoramas, shaded by the split-sum renderer."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import equirect_to_direction
from diffusion_renderer.core.panorama import average_panorama
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.fit import FileLights, LightEstimator, LinearLight, estimate_light
from diffusion_renderer.fit.grid import Grid
from diffusion_renderer.fit.nonnegative import solve_nonnegative
from diffusion_renderer.fit.pixels import Pixels, choose_pixels
from diffusion_renderer.fit.transport import surface_weights, transport
from diffusion_renderer.light import camera_fixed, sample_panorama, yawed
from diffusion_renderer.render import brdf, load_renderer

SIZE, FOV = 32, 50.0


def sphere(roughness: float, metallic: float, frames: int = 1) -> GBuffer:
    """A unit sphere three units in front of the camera; nothing behind it."""
    focal = SIZE / (2 * math.tan(math.radians(FOV) / 2))
    axis = (torch.arange(SIZE) + 0.5 - SIZE / 2) / focal
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    ray = torch.stack((x, y, -torch.ones_like(x)))
    square = ray.square().sum(0)
    root = 9 - 8 * square
    distance = (3 - root.clamp_min(0).sqrt()) / square
    hit = (root > 0)[None]
    normal = (ray * distance + torch.tensor([0.0, 0.0, 3.0])[:, None, None]) * hit
    clip = lambda image: image[None].expand(frames, *image.shape).contiguous()  # noqa: E731
    return GBuffer(
        basecolor=clip(torch.tensor([0.7, 0.6, 0.5])[:, None, None] * hit),
        normal=clip(torch.nn.functional.normalize(normal, dim=0)),
        depth=clip(torch.where(hit, distance, torch.inf)),
        roughness=clip(roughness * hit),
        metallic=clip(metallic * hit),
        mask=clip(hit),
    )


def soft_light(level: float = 0.4) -> EnvironmentMap:
    """A panorama of the first spherical harmonics, another direction for each colour."""
    direction = Grid(16, 1).directions()
    axes = torch.nn.functional.normalize(torch.tensor([[1.0, 1, 1], [-1.0, 1, 0.5], [0.2, -1, 1]]), dim=1)
    return EnvironmentMap((level * (1 + 0.6 * axes @ direction.T)).view(3, 16, 32))


def spot(row: int, column: int, radiance: float) -> EnvironmentMap:
    """One bright cell in a dim panorama of 16 rows."""
    panorama = torch.full((3, 16, 32), 0.15)
    panorama[:, row, column] = radiance
    return EnvironmentMap(panorama)


def picture(gbuffer: GBuffer, light: EnvironmentMap, **options: object) -> Clip:
    """What the camera sees, in 8 bits."""
    clip = load_renderer("splitsum", device="cpu")(gbuffer, light, **options)
    return replace(clip, frames=(clip.frames * 255).round() / 255)


@cache
def softly_lit(roughness: float, metallic: float) -> Clip:
    """The sphere under `soft_light`; drawn once, for drawing takes longer than estimating."""
    return picture(sphere(roughness, metallic), soft_light())


def psnr(one: Clip, other: Clip) -> float:
    return -10 * math.log10(float((one.frames - other.frames).square().mean()))


def coarse(light: EnvironmentMap) -> torch.Tensor:
    return average_panorama(light.radiance, 16, 32)


@pytest.mark.parametrize(("roughness", "metallic"), [(0.1, 1.0), (0.5, 0.0)])
def test_a_soft_light_is_found(roughness: float, metallic: float) -> None:
    gbuffer, light = sphere(roughness, metallic), soft_light()
    seen = softly_lit(roughness, metallic)
    found = estimate_light(seen, gbuffer, pixels=512)
    error = (coarse(found.environment) - light.radiance).abs().mean() / light.radiance.mean()
    # Seen: 0.026 with the sharp mirror, 0.014 with the rough dielectric.
    assert error < 0.06
    # Seen: 42.8 dB with the mirror, 58.1 dB with the other.
    assert psnr(seen, picture(gbuffer, found.environment)) > 37
    assert found.residual < 0.02 and found.environment.radiance.shape == (3, 64, 128)


@pytest.mark.parametrize(("row", "column", "roughness", "metallic"), [(5, 9, 0.1, 1.0), (6, 14, 0.6, 0.0), (7, 24, 0.1, 1.0)])
def test_the_brightest_cell_is_where_it_was(row: int, column: int, roughness: float, metallic: float) -> None:
    """In the lit hemisphere, and on the outline for (7, 24); without background, in which it would be seen."""
    gbuffer = sphere(roughness, metallic)
    found = estimate_light(picture(gbuffer, spot(row, column, 40.0)), gbuffer, pixels=512)
    at = int(coarse(found.environment).sum(0).argmax())
    assert abs(at // 32 - row) <= 1 and abs((at % 32 - column + 16) % 32 - 16) <= 1


def test_a_white_furnace_is_constant() -> None:
    gbuffer = sphere(0.5, 0.0)
    found = estimate_light(picture(gbuffer, EnvironmentMap(torch.full((3, 16, 32), 0.5))), gbuffer, pixels=512)
    # Behind the sphere nothing constrains it but the background and its neighbours. Seen: mean error 0.010, worst 0.07.
    assert (found.environment.radiance - 0.5).abs().mean() < 0.04
    assert 0.1 < found.covered < 1.0 and found.coverage.shape == (16, 32)


def test_a_darker_exposure_is_a_darker_light() -> None:
    gbuffer, bright = sphere(0.5, 0.0), softly_lit(0.5, 0.0)
    dark = replace(bright, frames=srgb_oetf(0.5 * srgb_eotf(bright.frames)))
    one, half = (coarse(estimate_light(clip, gbuffer, pixels=512).environment) for clip in (bright, dark))
    # Not exact: errors count in sRGB, which is not linear. Seen: 0.004.
    assert ((half - 0.5 * one).abs().mean() / half.mean()) < 0.02


def test_saturated_pixels_are_lower_bounds() -> None:
    """Half of the sphere burnt out: taken at face value, the light would be a quarter too dark."""
    gbuffer = sphere(0.6, 0.0)
    light = EnvironmentMap(3.2 * soft_light().radiance)
    seen = picture(gbuffer, light)
    assert (seen.frames[:, :, gbuffer.mask[0, 0]] >= 0.99).float().mean() > 0.3
    front = coarse(estimate_light(seen, gbuffer, pixels=512).environment)[:, :, 8:24]
    truth = light.radiance[:, :, 8:24]
    # Of the hemisphere that lights what is seen. Seen: 0.95.
    assert 0.85 < float(front.mean() / truth.mean()) < 1.2


def test_pixels_that_contradict_the_rest_count_little() -> None:
    gbuffer, light = sphere(0.5, 0.0), soft_light()
    seen = softly_lit(0.5, 0.0)
    frames = seen.frames.clone()
    frames[:, :, 12:16, 12:16] = 0.9
    found = estimate_light(replace(seen, frames=frames), gbuffer, pixels=512)
    error = (coarse(found.environment) - light.radiance).abs().mean() / light.radiance.mean()
    # Seen: 0.043; without the sixteen pixels 0.014.
    assert error < 0.08


def test_background_pixels_show_the_panorama() -> None:
    """Where the camera looks into the light, the panorama is what it sees."""
    gbuffer, light = sphere(0.5, 0.0), soft_light()
    found = estimate_light(softly_lit(0.5, 0.0), gbuffer, pixels=1024).environment
    direction = torch.nn.functional.normalize(torch.tensor([[0.4, 0.0, -1.0], [0.0, 0.4, -1.0], [-0.3, -0.3, -1.0]]), dim=1)
    # Seen: 0.001.
    assert torch.allclose(sample_panorama(found, direction), sample_panorama(light, direction), atol=0.02)


def test_a_turned_light_is_found_in_the_world() -> None:
    gbuffer, light = sphere(0.2, 1.0, frames=2), spot(6, 14, 4.0)
    turns = torch.cat((camera_fixed(1), yawed(1, 40.0)))
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[:, :3, :3] = turns
    seen = picture(gbuffer, light, rotations=turns)
    by_camera = estimate_light(seen, gbuffer, camera=Camera(pose, torch.full((2,), FOV)), pixels=512)
    by_rotation = estimate_light(seen, gbuffer, rotations=turns, pixels=512)
    assert torch.equal(by_camera.environment.radiance, by_rotation.environment.radiance)
    at = int(coarse(by_camera.environment).sum(0).argmax())
    assert abs(at // 32 - 6) <= 1 and abs(at % 32 - 14) <= 1
    wrong = estimate_light(seen, gbuffer, pixels=512)
    # Seen: 1.5 times.
    assert wrong.residual > 1.25 * by_camera.residual


def test_the_same_seed_gives_the_same_light() -> None:
    gbuffer, seen = sphere(0.5, 0.0), softly_lit(0.5, 0.0)
    once, again, other = (estimate_light(seen, gbuffer, pixels=256, seed=seed).environment.radiance for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)


def random_pixels(count: int, roughness: float) -> Pixels:
    generator = torch.Generator().manual_seed(0)
    unit = lambda: torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)  # noqa: E731
    normal, view = unit(), unit()
    normal = torch.where((normal * view).sum(1, keepdim=True) < 0, -normal, normal)
    colour, metallic = torch.rand(count, 3, generator=generator), torch.rand(count, 1, generator=generator)
    surface = torch.ones(count, dtype=torch.bool)
    return Pixels(colour, normal, view, colour, torch.full((count, 1), roughness), metallic, surface)


def test_the_transport_is_the_brdf_of_the_renderers() -> None:
    pixels, grid = random_pixels(20, 0.6), Grid(8, 4)
    coloured, white = surface_weights(pixels, grid)
    lit = pixels.basecolor[:, None] * coloured[..., None] + white[..., None]
    wide = lambda value: value[:, None]  # noqa: E731
    expected = brdf.evaluate(
        *(wide(value) for value in (pixels.normal, pixels.view)),
        grid.directions(),
        *(wide(value) for value in (pixels.basecolor, pixels.roughness, pixels.metallic)),
    )
    expected = expected * grid.solid_angles()[:, None]
    # Rounding. Seen: 4e-9 of values up to 0.01.
    assert torch.allclose(lit, expected, atol=1e-6, rtol=1e-3)


def test_a_mirror_reflects_all_of_a_white_panorama() -> None:
    """Seen: sums from 0.86 to 1.18; a lobe as narrow as the mirror's own would give 0 to 31."""
    pixels = random_pixels(200, 0.0)
    white = replace(pixels, basecolor=torch.ones(200, 3), metallic=torch.ones(200, 1))
    frontal = white[((white.normal * white.view).sum(1) > 0.3).nonzero()[:, 0]]
    total = transport(frontal, Grid(16)).sum(dim=2)
    assert total.min() > 0.8 and total.max() < 1.25 and abs(float(total.mean()) - 1) < 0.03


def test_reading_a_grid_is_reading_the_panorama() -> None:
    grid = Grid(8, 3)
    panorama = torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(0))
    direction = grid.directions()
    expected = sample_panorama(EnvironmentMap(panorama), direction)
    assert torch.allclose(grid.reading(direction) @ panorama.flatten(1).T, expected, atol=1e-5)
    share = torch.rand(4, len(direction), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(grid.onto_nodes(share) @ panorama.flatten(1).T, share @ expected, rtol=1e-4)


def test_the_priors_are_integrals_over_the_sphere() -> None:
    """Of y = cos(theta) the squared gradient integrates to 8 pi / 3 and the variance is 1 / 3; of a constant both are 0."""
    for rows in (8, 32):
        grid = Grid(rows, 1)
        for matrix, integral in ((grid.roughness_of(), 8 * math.pi / 3), (grid.variance_of(), 1 / 3)):
            one = torch.ones(len(matrix), dtype=torch.float64)
            v = torch.arange(rows).add(0.5).div(rows)
            height = equirect_to_direction(torch.zeros(rows), v)[:, 1].double().repeat_interleave(2 * rows)
            assert abs(one @ matrix @ one) < 1e-5
            # Seen: 3% with 8 rows, 0.2% with 32.
            assert float(height @ matrix @ height) == pytest.approx(integral, rel=0.04)


def test_the_normal_equations_are_solved_as_the_least_squares_are() -> None:
    """The conditions of Karush, Kuhn and Tucker hold: no slope where a value is free, none downhill where it is 0."""
    generator = torch.Generator().manual_seed(1)
    equations = torch.rand(120, 60, generator=generator, dtype=torch.float64)
    matrix, vector = equations.T @ equations, equations.T @ torch.randn(120, generator=generator, dtype=torch.float64)
    found = solve_nonnegative(matrix, vector)
    slope, free = matrix @ found - vector, found > 0
    assert 0 < int(free.sum()) < 60 and (found >= 0).all()
    # Seen: 1e-13.
    assert slope[free].abs().max() < 1e-9 and slope[~free].min() > -1e-9


def test_pixels_come_from_inside_and_background_is_limited() -> None:
    gbuffer, seen = sphere(0.5, 0.0), softly_lit(0.5, 0.0)
    pixels = choose_pixels(seen, gbuffer, None, None, 400, 0)
    assert len(pixels) == 400 and int((~pixels.surface).sum()) == 100
    cosine = (pixels.normal * pixels.view).sum(1)[pixels.surface]
    assert (cosine > 0.1).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool)}, "only background"),
        ({"roughness": None}, "missing: roughness"),
        ({"black": True}, "black surfaces"),
        ({"frames": 2}, "2 frames of 32x32 and 1 frames"),
        ({"rows": 2}, "from 4 to 32"),
        ({"pixels": 0}, "16 pixels or more"),
        ({"rotations": torch.eye(3).expand(3, 3, 3)}, "1 rotations"),
        ({"camera": Camera.identity(3)}, "1 camera poses"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict, message: str) -> None:
    gbuffer = sphere(0.5, 0.0)
    clip = Clip(torch.full((change.pop("frames", 1), 3, SIZE, SIZE), 0.0 if change.pop("black", False) else 0.5))
    options = {name: change.pop(name) for name in ("rows", "pixels", "rotations", "camera") if name in change}
    with pytest.raises(InputError, match=message) as error:
        estimate_light(clip, replace(gbuffer, **change), **options)
    assert "\n" not in str(error.value)


def test_lights_come_from_files(tmp_path: Path) -> None:
    lights = FileLights(tmp_path)
    assert isinstance(lights, LightEstimator) and isinstance(LinearLight(), LightEstimator)
    soft_light().write(tmp_path / "shot.exr")
    clip = Clip(torch.zeros(1, 3, 8, 8), name="shot")
    # Half float.
    assert torch.allclose(lights(clip, GBuffer(), None).radiance, soft_light().radiance, rtol=1e-3)
    assert torch.equal(lights.read("other", "shot").radiance, lights(clip).radiance)
    with pytest.raises(InputError, match=r"other.*no such file"):
        lights.read("other")
    with pytest.raises(InputError, match="a folder with a panorama"):
        FileLights(tmp_path / "nothing")
