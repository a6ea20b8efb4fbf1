"""What shading does for many points at once against the plain form of the same: lights, filtered panoramas, odd normals."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from diffusion_renderer.render import brdf
from diffusion_renderer.render import lights as lights_module
from diffusion_renderer.render.lights import DistantLights
from diffusion_renderer.render.prefilter import PanoramaStack
from diffusion_renderer.render.surface import MIN_COSINE, facing


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def directions(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("roughness", [0.05, 0.2, 0.6, 1.0])
def test_lights_together_are_lights_one_by_one(roughness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of points that mirror a light, others, and some that look from below; in chunks that do not divide them."""
    monkeypatch.setattr(lights_module, "CHUNK", 90)
    normal, light = directions(400, 0), directions(5, 1)
    mirrored = 2 * (normal * light[:1]).sum(-1, keepdim=True) * normal - light[:1]
    view = torch.cat((normalize(mirrored[:200] + 0.3 * roughness * directions(200, 2), dim=-1), directions(200, 3)))
    rough, metal, base = torch.full((400, 1), roughness), rand(400, 1, seed=4), rand(400, 3, seed=5)
    lights = DistantLights(light, 10 * rand(5, 3, seed=6))
    expected = sum(
        brdf.evaluate_specular(normal, view, each.expand_as(normal), base, rough, metal) * irradiance
        for each, irradiance in zip(lights.direction, lights.irradiance, strict=True)
    )
    found = lights.reflected(normal, view, base, rough, metal)
    assert (expected > 0).any(dim=1).sum() > 100 and (expected == 0).all(dim=1).any()
    # Relative to the value; the narrowest lobe is the worst, where single precision of directions shows: 2e-4 measured.
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


def test_gradients_under_lights_are_those_one_by_one() -> None:
    given = [directions(30, 0), directions(30, 1), rand(30, 3, seed=2), 0.2 + 0.8 * rand(30, 1, seed=3), rand(30, 1, seed=4)]
    given = [value.double().requires_grad_(True) for value in given]
    lights = DistantLights(normalize(directions(3, 5).double(), dim=-1), rand(3, 3, seed=6).double())
    normal, view, base, rough, metal = given
    unit = [normalize(normal, dim=-1), normalize(view, dim=-1)]
    plain = sum(
        brdf.evaluate_specular(*unit, each.expand_as(normal), base, rough, metal) * irradiance
        for each, irradiance in zip(lights.direction, lights.irradiance, strict=True)
    )
    expected = torch.autograd.grad(plain.sum(), given, retain_graph=True)
    found = torch.autograd.grad(lights.reflected(*unit, base, rough, metal).sum(), given)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_one_level_is_read_like_the_first_of_several() -> None:
    maps = rand(5, 1, 8, 16, seed=0)
    flat, deep = PanoramaStack.of(maps), PanoramaStack.of(maps.expand(-1, 2, -1, -1))
    poles = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1e-9, 0.0, -1.0], [0.0, 0.0, 1.0]])
    points = torch.cat((directions(300, 1), poles))
    # Values in [0, 1]; worst measured: 4e-7.
    torch.testing.assert_close(flat.read(points, torch.zeros(305)), deep.read(points, torch.zeros(305)), rtol=0, atol=5e-6)
    found, expected = (
        torch.autograd.grad(stack.read(where, torch.zeros(305)).square().sum(), where)[0]
        for stack, where in ((flat, points.clone().requires_grad_(True)), (deep, points.clone().requires_grad_(True)))
    )
    # At texels' borders either side's slope is right; none of these points lies there but the poles and the seam.
    torch.testing.assert_close(found[:300], expected[:300], rtol=1e-4, atol=1e-4)
    assert found.isfinite().all()


def test_normals_that_face_the_viewer_are_left_alone() -> None:
    normal, view = directions(300, 0)[None], directions(300, 1)[None]
    normal[0, 0], view[0, 0] = -view[0, 1], view[0, 1]
    seen, made = (normal * view).sum(-1), facing(normal, view)
    assert torch.equal(made[seen >= MIN_COSINE], normal[seen >= MIN_COSINE])
    cosine = (made * view).sum(-1)
    # Bent ones face the viewer at a cosine of twice the least, to rounding.
    assert (seen < MIN_COSINE).sum() > 50 and ((cosine - 2 * MIN_COSINE).abs() < 1e-5)[seen < MIN_COSINE].all()
    assert ((made.norm(dim=-1) - 1).abs() < 1e-5).all()
    assert torch.equal(facing(view, view), view)
