"""The BRDF against Mitsuba's `principled`, its sampling against its density, and its gradients at the edges."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_renderer.render import brdf

ROUGHNESS = (0.0, 0.05, 0.3, 0.7, 1.0)
NORMAL = torch.tensor([0.0, 0.0, 1.0])
BASE = (0.8, 0.5, 0.2)


def directions(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)


def near_mirror(view: torch.Tensor, width: float) -> torch.Tensor:
    """Light directions about the mirrored view, where a narrow lobe is not 0."""
    mirrored = view * torch.tensor([-1.0, -1.0, 1.0])
    return torch.nn.functional.normalize(mirrored + width * directions(len(view), 7), dim=-1)


def column(value: float) -> torch.Tensor:
    return torch.tensor([value])


@pytest.fixture(scope="module")
def mi():
    module = pytest.importorskip("mitsuba", reason="needs mitsuba, the reference of the BRDF")
    module.set_variant("scalar_rgb")
    return module


def principled(mi, roughness: float, metallic: float, view: torch.Tensor, light: torch.Tensor):
    """Mitsuba's values and densities of each pair of directions; the normal is +z."""
    color = {"type": "rgb", "value": list(BASE)}
    bsdf = mi.load_dict({"type": "principled", "base_color": color, "roughness": roughness, "metallic": metallic})
    interaction, context = mi.SurfaceInteraction3f(), mi.BSDFContext()
    values, densities = [], []
    for v, direction in zip(view.tolist(), light.tolist(), strict=True):
        interaction.wi = mi.ScalarVector3f(v)
        outgoing = mi.ScalarVector3f(direction)
        values.append(list(bsdf.eval(context, interaction, outgoing)))
        densities.append(float(bsdf.pdf(context, interaction, outgoing)))
    return torch.tensor(values), torch.tensor(densities)


@pytest.mark.parametrize("metallic", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("roughness", ROUGHNESS)
def test_equals_mitsuba(mi, roughness, metallic):
    view = directions(60, 1)
    view[:, 2] = view[:, 2].abs()
    light = torch.cat((near_mirror(view[:30], 0.005 + 0.05 * roughness), directions(30, 2)))
    expected, density = principled(mi, roughness, metallic, view, light)
    ours = brdf.evaluate(NORMAL, view, light, torch.tensor(BASE), column(roughness), column(metallic))
    # Largest measured: 6e-6 of (value + 1e-3).
    assert ((ours - expected).abs() <= 3e-5 * (expected + 1e-3)).all()
    assert (expected > 0).any() and (ours[light[:, 2] < 0] == 0).all()
    if metallic == 1:  # Mitsuba then samples the specular lobe alone, and calls what goes below the surface 0
        pdf = brdf.pdf_ggx_visible(NORMAL, view, light, column(roughness))[:, 0] * (light[:, 2] > 0)
        # Largest measured: 7e-4 of (value + 1e-3), in the tails of the narrowest lobe.
        assert ((pdf - density).abs() <= 2e-3 * (density + 1e-3)).all()


@pytest.mark.parametrize("tilt", [0.0, 0.7, 1.45])
@pytest.mark.parametrize("roughness", [0.3, 0.6, 1.0])
def test_samples_have_their_density(roughness, tilt):
    """Means of functions over the samples are integrals of the functions times the density, about a normal that is no axis."""
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=0)
    tangent, bitangent = brdf.tangents(normal)
    view = math.cos(tilt) * normal + math.sin(tilt) * (0.6 * tangent + 0.8 * bitangent)
    grid = torch.cartesian_prod((torch.arange(256) + 0.5) / 256, (torch.arange(256) + 0.5) / 256)
    light = brdf.sample_ggx_visible(normal, view, column(roughness), grid)
    height, turn = 2 * grid[:, 0] - 1, 2 * math.pi * grid[:, 1]
    ring = (1 - height.square()).sqrt()
    sphere = torch.stack((ring * turn.cos(), ring * turn.sin(), height), dim=-1)
    density = brdf.pdf_ggx_visible(normal, view, sphere, column(roughness))
    weight = 4 * math.pi * density
    # Largest measured: 4e-3.
    assert weight.mean() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(light.mean(0), (sphere * weight).mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(light.square().mean(0), (sphere.square() * weight).mean(0), atol=0.01, rtol=0)


def test_reciprocal():
    view, light = directions(50, 3), directions(50, 4)
    view[:, 2], light[:, 2] = view[:, 2].abs() + 0.05, light[:, 2].abs() + 0.05
    view, light = torch.nn.functional.normalize(view, dim=-1), torch.nn.functional.normalize(light, dim=-1)
    material = (torch.tensor(BASE), column(0.4), column(0.5))
    there = brdf.evaluate(NORMAL, view, light, *material) / light[:, 2:]
    back = brdf.evaluate(NORMAL, light, view, *material) / view[:, 2:]
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("roughness", [0.0, 1.0])
@pytest.mark.parametrize("metallic", [0.0, 1.0])
def test_gradients_are_finite_at_the_edges(roughness, metallic):
    """Normal incidence, grazing, light against view, light and view below the surface; a black surface."""
    z, x = [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]
    view = torch.tensor([z, x, z, [-1.0, 0.0, 0.0], [0.6, 0.0, -0.8], z], requires_grad=True)
    light = torch.tensor([z, [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0], x, z, x], requires_grad=True)
    normal = NORMAL.clone().requires_grad_()
    material = [torch.zeros(3, requires_grad=True), column(roughness).requires_grad_(), column(metallic).requires_grad_()]
    value = brdf.evaluate(normal, view, light, *material)
    assert torch.isfinite(value).all() and (value >= 0).all()
    for gradient in torch.autograd.grad(value.sum(), [normal, view, light, *material]):
        assert torch.isfinite(gradient).all()


def test_gradients_equal_finite_differences():
    view, light = directions(8, 5).double(), directions(8, 6).double()
    view[:, 2], light[:, 2] = view[:, 2].abs() + 0.1, light[:, 2].abs() + 0.1
    view, light = torch.nn.functional.normalize(view, dim=-1), torch.nn.functional.normalize(light, dim=-1)
    inputs = [NORMAL.double().expand(8, 3).clone(), view, light, torch.rand(8, 3).double(), torch.full((8, 1), 0.4).double()]
    inputs = [tensor.requires_grad_() for tensor in (*inputs, torch.full((8, 1), 0.3).double())]
    assert torch.autograd.gradcheck(brdf.evaluate, inputs, eps=1e-6, atol=1e-5)
