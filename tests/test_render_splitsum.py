"""Split-sum shading: white furnace, energy, one lit pixel, rotations, gradients, agreement with a path tracer on a sphere."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import rotation_x, rotation_y
from diffusion_renderer.core.panorama import row_solid_angle
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.render import RENDERERS, SplitSum, Surface, brdf, load_renderer, surfaces
from diffusion_renderer.render.prefilter import convolve, grid_directions

BASE = (0.8, 0.6, 0.4)
ONE = torch.eye(3)[None]


def sphere(size: int, roughness: float, metallic: float, basecolor=BASE, frames: int = 1) -> GBuffer:
    """A ball of radius 1 at distance 2.7, seen with a field of view of 50 degrees."""
    focal = size / (2 * math.tan(math.radians(25)))
    step = torch.arange(size) + 0.5 - size / 2
    ray = torch.stack(
        (step.expand(size, size) / focal, -step[:, None].expand(size, size) / focal, -torch.ones(size, size)), dim=-1
    )
    ray = torch.nn.functional.normalize(ray, dim=-1)
    centre = torch.tensor([0.0, 0.0, -2.7])
    ahead = ray @ centre
    square = ahead.square() - (centre @ centre - 1)
    position = ray * (ahead - square.clamp_min(0.0).sqrt())[..., None]
    normal = torch.where(square[..., None] > 0, position - centre, 0.0).permute(2, 0, 1)
    depth = torch.where(square > 0, -position[..., 2], torch.inf)
    plane = torch.ones(frames, 1, size, size)
    return GBuffer(
        basecolor=torch.tensor(basecolor).view(1, 3, 1, 1) * plane,
        normal=normal.expand(frames, 3, size, size),
        depth=depth.expand(frames, 1, size, size),
        roughness=roughness * plane,
        metallic=metallic * plane,
    )


def patch(normal, view, roughness=0.5, metallic=0.0, basecolor=BASE) -> Surface:
    """Pixels of these normals and views, in a row."""
    count, like = len(normal), torch.ones(1, 1, len(normal), 1, dtype=normal.dtype)
    return Surface(
        position=-view[None, None],
        normal=normal[None, None],
        view=view[None, None],
        basecolor=torch.tensor(basecolor, dtype=normal.dtype) * like,
        roughness=roughness * like,
        metallic=metallic * like,
        coverage=like,
        depth=torch.ones(1, 1, count, dtype=normal.dtype),
        focal=torch.ones(1, dtype=normal.dtype),
    )


def tilted(cosines) -> torch.Tensor:
    """Views at these cosines to the normal +z."""
    nv = torch.tensor(cosines)
    return torch.stack(((1 - nv.square()).sqrt(), torch.zeros_like(nv), nv), dim=-1)


def lit(height: int = 32) -> EnvironmentMap:
    """A coloured gradient, a broad lamp and a small bright one."""
    d = grid_directions(height)
    lamp = 3 * torch.exp(8 * (d @ torch.tensor([0.6, 0.64, 0.48]) - 1))
    sun = 20.0 * (d @ torch.tensor([-0.48, 0.6, 0.64]) > 0.99)
    return EnvironmentMap((0.6 + 0.4 * d).permute(2, 0, 1) + lamp + sun)


@pytest.fixture(scope="module")
def renderer() -> SplitSum:
    return SplitSum("cpu")


@pytest.fixture(scope="module")
def furnace(renderer):
    return renderer.shading(EnvironmentMap(torch.ones(3, 16, 32)))


def albedo(view: torch.Tensor, roughness: float, metallic: float) -> torch.Tensor:
    """Directional albedo by brute force, by quadrature that the renderer's tables do not use."""
    count = 192
    u, w = torch.cartesian_prod(*[(torch.arange(count) + 0.5) / count] * 2).unbind(-1)
    normal, column = torch.tensor([0.0, 0.0, 1.0]), lambda value: torch.tensor([value])
    # Specular: half vectors drawn from D cos (Walter et al. 2007, eq. 35), which the renderer's tables are not made with.
    alpha = brdf.alpha_of(column(roughness))
    theta = torch.atan(alpha * (u / (1 - u)).sqrt())
    half = torch.stack((theta.sin() * (2 * math.pi * w).cos(), theta.sin() * (2 * math.pi * w).sin(), theta.cos()), dim=-1)
    vh = (view * half).sum(-1, keepdim=True)
    light = 2 * vh * half - view
    density = brdf.ggx(normal, half, alpha) * half[:, 2:] / (4 * vh.clamp_min(1e-6))
    value = brdf.evaluate_specular(normal, view, light, torch.tensor(BASE), column(roughness), column(metallic))
    specular = torch.where(vh > 0, value / density, 0.0).mean(0)
    # Diffuse: light directions evenly in the squared sine.
    sine = u.sqrt()
    light = torch.stack((sine * (2 * math.pi * w).cos(), sine * (2 * math.pi * w).sin(), (1 - u).sqrt()), dim=-1)
    value = brdf.evaluate_diffuse(normal, view, light, torch.tensor(BASE), column(roughness), column(metallic))
    return specular + (value / light[:, 2:] * math.pi).mean(0)


@pytest.mark.parametrize("metallic", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("roughness", [0.05, 0.2, 0.35, 0.6, 0.85, 1.0])
def test_white_furnace(furnace, roughness, metallic):
    view = tilted([1.0, 0.9, 0.6, 0.3, 0.12])
    result = furnace(patch(torch.tensor([0.0, 0.0, 1.0]).expand(5, 3), view, roughness, metallic), ONE)[0, :, 0].T
    expected = torch.stack([albedo(v, roughness, metallic) for v in view])
    # Largest measured: 3.3e-3, at the most grazing view of the smoothest metal; others 1.7e-3.
    torch.testing.assert_close(result, expected, atol=6e-3, rtol=0)
    # At grazing angles Disney's retro-reflection and the dielectric's Fresnel term together reflect more than they receive, in
    # the reference too: 1.12 of it at the most here. Away from there, and for metals, nothing does.
    assert (result[:3] <= 1.0).all() and (metallic < 1 or bool((result <= 1.0).all()))


@pytest.mark.parametrize("metallic", [0.0, 1.0])
def test_no_more_light_than_the_panorama_has(renderer, metallic):
    light = lit()
    surface = surfaces(sphere(24, 0.4, metallic, (0.9, 0.9, 0.9)))
    picture = renderer.radiance(surface, light, ONE)
    assert (picture >= 0).all() and (picture.amax(dim=(0, 2, 3)) <= light.radiance.amax(dim=(1, 2))).all()


def test_one_lit_pixel(renderer):
    """A diffuse surface has solid angle times cosine times albedo / pi of it, and nothing when it faces away."""
    panorama = torch.zeros(3, 64, 128)
    panorama[:, 20, 30] = 50.0
    towards = grid_directions(64)[20, 30]
    side, _ = brdf.tangents(towards)
    normal = torch.stack((towards, 0.6 * towards + 0.8 * side, -towards))
    surface = patch(normal, normal, roughness=0.0)
    result = renderer.radiance(surface, EnvironmentMap(panorama), ONE)[0, :, 0].T
    cosine = torch.tensor([1.0, 0.6])
    irradiance = 50.0 * row_solid_angle(64, 128)[20] * cosine
    view_light = brdf.diffuse_shape(torch.ones(2), cosine, ((1 + cosine) / 2).sqrt(), torch.zeros(2))
    expected = torch.tensor(BASE) / math.pi * (irradiance * view_light)[:, None]
    # The first sees its own specular peak too; the second, 53 degrees off, does not. Largest measured: 0.2 %.
    torch.testing.assert_close(result[1], expected[1], rtol=0.01, atol=0)
    assert (result[0] > expected[0]).all() and (result[2] < 1e-9).all()


def test_rotations_turn_the_light(renderer):
    """Under the light turned by a whole number of columns, R makes the picture of before."""
    light, columns = lit(), 8
    surface = surfaces(sphere(12, 0.5, 0.5))
    expected = renderer.radiance(surface, light, ONE)
    # Columns moved to the right show what was seen at a smaller phi, and phi grows from +z towards -x: a turn about -y.
    turned = renderer.shading(EnvironmentMap(light.radiance.roll(columns, dims=-1)))
    angle = 2 * math.pi * columns / light.radiance.shape[-1]
    # Equal to rounding; the wrong sense differs by 0.5.
    torch.testing.assert_close(turned(surface, rotation_y(-angle)[None]), expected, atol=2e-3, rtol=0)
    assert (turned(surface, rotation_y(angle)[None]) - expected).abs().max() > 0.1


def test_metals_reflect_with_their_colour(furnace):
    view = tilted([1.0])
    result = furnace(patch(view, view, roughness=0.1, metallic=1.0), ONE)[0, :, 0, 0]
    # Single scattering loses under 1 % at this roughness.
    torch.testing.assert_close(result, torch.tensor(BASE), rtol=0.01, atol=0)


def test_gradients_equal_finite_differences():
    generator = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(6, 3, generator=generator), dim=-1).double()
    view = torch.nn.functional.normalize(normal + 0.5 * torch.randn(6, 3, generator=generator).double(), dim=-1)
    light = EnvironmentMap(lit(16).radiance.double())
    fields = {
        "basecolor": torch.rand(6, 3, generator=generator).double(),
        "roughness": torch.tensor([0.05, 0.16, 0.3, 0.5, 0.7, 0.9]).double()[:, None],
        "metallic": torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3, 0.6]).double()[:, None],
        "normal": normal,
    }
    shading = SplitSum("cpu", along=2, across=2, lights=6).shading(light)
    weight = torch.rand(3, 6, generator=generator).double()

    def value(**changed):
        plain = patch(normal, view)
        chosen = {name: tensor[None, None] for name, tensor in {**fields, **changed}.items()}
        surface = Surface(**{**vars(plain), **chosen})
        return (shading(surface, ONE.double())[0, :, 0] * weight).sum()

    for name, tensor in fields.items():
        variable = tensor.clone().requires_grad_()
        gradient = torch.autograd.grad(value(**{name: variable}), variable)[0]
        for index in range(6):
            direction = torch.zeros_like(tensor)
            direction[index] = torch.rand(tensor.shape[1], generator=generator).double()
            step = 1e-6 * direction
            slope = (value(**{name: tensor + step}) - value(**{name: tensor - step})) / 2e-6
            # Largest measured: 1e-6 of the slope; piecewise linear tables have kinks, none within the steps.
            assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-3, abs=1e-6)


def test_gradient_of_the_panorama():
    """Without lights of their own the picture is linear in the panorama: the gradient predicts any change of it."""
    plain = SplitSum("cpu", along=2, across=2, lights=0)
    surface = surfaces(sphere(12, 0.4, 0.5))
    for subject, tolerance in ((plain, 1e-3), (SplitSum("cpu", along=2, across=2, lights=16), 0.05)):
        radiance = lit(16).radiance.clone().requires_grad_()
        picture = subject.radiance(surface, EnvironmentMap(radiance), ONE).mean()
        gradient = torch.autograd.grad(picture, radiance)[0]
        change = 0.1 * torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            after = subject.radiance(surface, EnvironmentMap(radiance + change), ONE).mean()
        # With lights, what is chosen as one depends on the panorama too, which the gradient leaves out.
        assert float(after - picture.detach()) == pytest.approx(float((gradient * change).sum()), rel=tolerance)


def test_gradients_are_finite_where_directions_are_special(renderer):
    """Normals along the view, along the poles, away from the view; roughness 0 and 1; a black surface."""
    z = [0.0, 0.0, 1.0]
    normal = torch.tensor([z, [0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0], z, z])
    gbuffer = {
        "normal": normal.T.reshape(1, 3, 1, 6).clone().requires_grad_(),
        "basecolor": torch.zeros(1, 3, 1, 6, requires_grad=True),
        "depth": torch.full((1, 1, 1, 6), 2.0),
        "roughness": torch.tensor([0.0, 1.0, 0.0, 0.5, 0.15, 1.0]).view(1, 1, 1, 6).requires_grad_(),
        "metallic": torch.tensor([0.0, 1.0, 0.5, 0.5, 1.0, 0.0]).view(1, 1, 1, 6).requires_grad_(),
    }
    picture = renderer.radiance(surfaces(GBuffer(**gbuffer)), lit(16), ONE)
    assert torch.isfinite(picture).all() and (picture >= 0).all()
    inputs = [tensor for tensor in gbuffer.values() if tensor.requires_grad]
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(picture.sum(), inputs))


def test_frames_are_rendered_apart(renderer):
    gbuffer, light = sphere(16, 0.4, 0.5, frames=3), lit()
    turns = torch.stack([rotation_y(0.0), rotation_y(1.0), rotation_x(0.5)])
    camera = Camera(torch.eye(4).expand(3, 4, 4), torch.tensor([40.0, 50.0, 60.0]))
    calls = []
    together = renderer(gbuffer, light, rotations=turns, camera=camera, progress=lambda *call: calls.append(call))
    assert isinstance(together, Clip) and calls[-1] == (3, 3, "rendering")
    for index in range(3):
        one = slice(index, index + 1)
        alone = renderer(gbuffer[one], light, rotations=turns[one], camera=camera[one], steps=4, seed=index)
        torch.testing.assert_close(together.frames[one], alone.frames, atol=1e-5, rtol=0)
    assert (together.frames[0] - together.frames[1]).abs().max() > 0.05


def test_the_background_shows_the_panorama(renderer):
    gbuffer = sphere(16, 0.4, 0.5)
    half = EnvironmentMap((0.5 + 0.5 * grid_directions(64)).permute(2, 0, 1).contiguous())
    corner = renderer(gbuffer, half).frames[0, :, 0, 0]
    direction = -surfaces(gbuffer).view[0, 0, 0]
    torch.testing.assert_close(corner, srgb_oetf(0.5 + 0.5 * direction), atol=5e-3, rtol=0)


def test_relative_depth_and_masks():
    gbuffer = sphere(16, 0.4, 0.5)
    low, high = gbuffer.depth_range()
    relative = ((gbuffer.depth - low) / (high - low)).nan_to_num(posinf=1.0)
    same = surfaces(GBuffer(**{**dict(gbuffer.tensors()), "depth": relative}))
    seen = torch.isfinite(gbuffer.depth[0, 0]) & (relative[0, 0] < 0.999)
    assert torch.equal(same.coverage[0, ..., 0] > 0, seen) and torch.isfinite(same.position).all()
    nothing = surfaces(GBuffer(**dict(gbuffer.tensors()), mask=torch.zeros(1, 1, 16, 16, dtype=torch.bool)))
    assert nothing.coverage.sum() == 0 and torch.isinf(nothing.depth).all()
    assert surfaces(gbuffer).coverage.sum() == torch.isfinite(gbuffer.depth).sum()


def test_convolution_keeps_constants_and_turns_with_the_panorama():
    maps = torch.rand(2, 24, 48, generator=torch.Generator().manual_seed(2))
    kernel = lambda cosine: torch.exp(20 * (cosine - 1))  # noqa: E731
    torch.testing.assert_close(convolve(torch.ones(1, 24, 48), kernel, 2.0), torch.full((1, 24, 48), 2.0))
    near = convolve(maps, kernel, 1.0, reach=1.3)
    torch.testing.assert_close(near.roll(5, -1), convolve(maps.roll(5, -1), kernel, 1.0), atol=1e-4, rtol=0)
    d = grid_directions(24).reshape(-1, 3)
    weight = kernel(d[[300]] @ d.T)[0] * row_solid_angle(24, 48).repeat_interleave(48)
    torch.testing.assert_close(near.flatten(1)[:, 300], (maps.flatten(1) * weight).sum(1) / weight.sum(), atol=1e-4, rtol=0)


def test_bad_input(renderer):
    gbuffer, light = sphere(8, 0.5, 0.0), lit(16)
    with pytest.raises(InputError, match="one per frame"):
        renderer(gbuffer, light, rotations=torch.eye(3).expand(2, 3, 3))
    with pytest.raises(InputError, match="one per frame"):
        renderer(gbuffer, light, camera=Camera.identity(2))
    with pytest.raises(InputError, match="roughness"):
        renderer(GBuffer(basecolor=gbuffer.basecolor, normal=gbuffer.normal, depth=gbuffer.depth), light)
    with pytest.raises(InputError, match="even"):
        SplitSum("cpu", across=3)
    with pytest.raises(InputError, match="did you mean splitsum"):
        load_renderer("split-sum")
    with pytest.raises(InputError, match="no_such_option"):
        load_renderer("splitsum", no_such_option=1)
    assert isinstance(load_renderer("splitsum", "cpu"), SplitSum) and "splitsum" in RENDERERS


@pytest.mark.parametrize(("metallic", "least"), [(0.0, 40.0), (1.0, 38.0)])
def test_a_sphere_agrees_with_the_path_tracer(renderer, metallic, least):
    """Measured at 40 pixels and 400 samples: 52.9 dB (dielectric), 43.9 dB (metal); fewer samples add noise here."""
    mi = pytest.importorskip("mitsuba", reason="needs mitsuba, the reference")
    mi.set_variant("scalar_rgb")
    size, light = 48, lit(64)
    padded = torch.cat((light.radiance[:, :1], light.radiance, light.radiance[:, -1:]), dim=1)
    between = 0.5 * (padded[:, :-1] + padded[:, 1:])
    rows = torch.stack((between[:, :-1], light.radiance), dim=2).flatten(1, 2)
    rows = torch.cat((rows, between[:, -1:]), dim=1).permute(1, 2, 0).contiguous().numpy()
    material = {
        "type": "principled",
        "roughness": 0.5,
        "metallic": metallic,
        "base_color": {"type": "rgb", "value": list(BASE)},
    }
    film = {"type": "hdrfilm", "width": size, "height": size, "rfilter": {"type": "box"}, "pixel_format": "rgb"}
    scene = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 2},
        "ball": {"type": "sphere", "center": [0, 0, -2.7], "radius": 1.0, "bsdf": material},
        "light": {"type": "envmap", "bitmap": mi.Bitmap(rows)},
        "sensor": {
            "type": "perspective",
            "fov": 50.0,
            "to_world": mi.ScalarTransform4f().rotate([0, 1, 0], 180),
            "film": film,
            "sampler": {"type": "multijitter", "sample_count": 144},
        },
    }
    expected = torch.tensor(mi.render(mi.load_dict(scene), seed=1).numpy()).permute(2, 0, 1)
    gbuffer = sphere(size, 0.5, metallic)
    picture = renderer.radiance(surfaces(gbuffer), light, ONE)[0]
    background = torch.isinf(gbuffer.depth).float()
    # Pixels at the outline are partly background in the reference.
    inside = torch.nn.functional.max_pool2d(background, 3, 1, 1)[0, 0] == 0
    exposure = 0.2 / expected[:, inside].mean()  # a mean of about 0.45 in sRGB
    error = (srgb_oetf(picture * exposure) - srgb_oetf(expected * exposure))[:, inside].square().mean()
    assert -10 * torch.log10(error) > least
