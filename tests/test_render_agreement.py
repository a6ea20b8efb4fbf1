"""The classical renderers against the path tracer: alike where G-buffers tell all, and different where they cannot."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn.functional import max_pool2d, normalize

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.geometry import equirect_to_direction, look_at
from diffusion_renderer.core.types import Camera, EnvironmentMap, GBuffer

pytest.importorskip("mitsuba", reason="the path tracer needs mitsuba")
from diffusion_renderer.datagen.engine.variant import activate, choose_variant
from diffusion_renderer.render.pathtrace import Geometry, PathTracer, PrincipledMaterial, TriangleMesh
from diffusion_renderer.render.splitsum import SplitSum
from diffusion_renderer.render.ssrt import ScreenSpaceRayTracer
from diffusion_renderer.render.surface import surfaces

SIZE = 48
BASECOLOR = (0.8, 0.5, 0.3)
FLOOR = -1.0


def sky() -> EnvironmentMap:
    """A blue gradient, a bright soft sun at 30 times the sky, a dim red lamp low on the other side."""
    v, u = torch.meshgrid((torch.arange(64) + 0.5) / 64, (torch.arange(128) + 0.5) / 128, indexing="ij")
    d = equirect_to_direction(u, v)
    blue = (0.35 + 0.25 * d[..., 1:2]) * torch.tensor([0.6, 0.8, 1.0])
    sun = (d @ normalize(torch.tensor([0.6, 0.6, 0.5]), dim=0))[..., None]
    lamp = (d @ normalize(torch.tensor([-0.9, 0.1, 0.4]), dim=0))[..., None]
    radiance = blue + 15 * torch.exp(60 * (sun - 1)) * torch.tensor([1.0, 0.9, 0.7])
    radiance = radiance + 4 * torch.exp(20 * (lamp - 1)) * torch.tensor([1.0, 0.3, 0.2])
    return EnvironmentMap((0.6 * radiance).permute(2, 0, 1).contiguous())


def view() -> Camera:
    return Camera(look_at(torch.tensor([1.2, 1.0, 3.6]), torch.tensor([0.0, -0.2, 0.0]))[None], torch.tensor([42.0]))


def ball(material: PrincipledMaterial, rows: int = 64) -> TriangleMesh:
    v, u = torch.meshgrid(torch.linspace(0, 1, rows + 1), torch.linspace(0, 1, 2 * rows + 1), indexing="ij")
    points = equirect_to_direction(u, v).reshape(-1, 3)
    corner = (torch.arange(rows)[:, None] * (2 * rows + 1) + torch.arange(2 * rows)).reshape(-1)
    below = corner + 2 * rows + 1
    faces = torch.cat((torch.stack((corner, corner + 1, below), -1), torch.stack((corner + 1, below + 1, below), -1)))
    return TriangleMesh(points, faces, material, normals=points)


def floor(material: PrincipledMaterial, half: float = 6.0) -> TriangleMesh:
    corners = torch.tensor([[-half, FLOOR, half], [half, FLOOR, half], [half, FLOOR, -half], [-half, FLOOR, -half]])
    return TriangleMesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), material)


def gbuffer(camera: Camera, roughness: float, metallic: float, grounded: bool, half: float = 6.0) -> GBuffer:
    """What the camera sees of the unit ball at the origin, and of a grey, rough floor that it stands on."""
    focal = SIZE / (2 * torch.tan(torch.deg2rad(camera.fov_x[0]) / 2))
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5 - SIZE / 2, torch.arange(SIZE) + 0.5 - SIZE / 2, indexing="ij")
    ray = torch.stack((x / focal, -y / focal, -torch.ones_like(x)), -1) @ camera.rotation[0].T  # world; length is z-depth
    eye = camera.pose[0, :3, 3]
    a, b = (ray**2).sum(-1), ray @ eye
    root = b**2 - a * (eye @ eye - 1)
    near = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, torch.inf)
    below = (FLOOR - eye[1]) / ray[..., 1]
    there = eye + below[..., None] * ray
    hit = (below > 0) & (there[..., 0].abs() < half) & (there[..., 2].abs() < half) & grounded
    ground = torch.where(hit, below, torch.inf)
    on_ball, depth = near < ground, torch.minimum(near, ground)
    seen = torch.isfinite(depth)
    normal = torch.where(on_ball[..., None], eye + torch.where(seen, depth, 0)[..., None] * ray, torch.tensor([0.0, 1, 0]))
    normal = (normal @ camera.rotation[0]) * seen[..., None]
    pick = lambda ours, theirs: torch.where(on_ball, ours, theirs)[None, None]  # noqa: E731
    colour = torch.cat([pick(torch.tensor(value), torch.tensor(0.5)) for value in BASECOLOR], 1)
    surface = pick(torch.tensor(roughness), torch.tensor(1.0)), pick(torch.tensor(metallic), torch.tensor(0.0))
    return GBuffer(colour, normal.permute(2, 0, 1)[None].contiguous(), depth[None, None], *surface, mask=seen[None, None])


@functools.cache
def variant() -> str:
    chosen = choose_variant()
    activate(chosen)
    return chosen


def reference(roughness: float, metallic: float, grounded: bool, samples: int) -> torch.Tensor:
    """sRGB, height width in the last axes; light fixed to the world."""
    meshes = [ball(PrincipledMaterial.constant(BASECOLOR, roughness, metallic))]
    if grounded:
        meshes.append(floor(PrincipledMaterial.constant((0.5, 0.5, 0.5), 1.0, 0.0)))
    tracer = PathTracer(Geometry(tuple(meshes)), samples=samples, variant=variant())
    return srgb_oetf(tracer.radiance(view(), (SIZE, SIZE), sky(), view().rotation))


def rendered(renderer, buffers: GBuffer) -> torch.Tensor:
    return renderer(buffers, sky(), camera=view(), rotations=view().rotation).frames


def inner(mask: torch.Tensor) -> torch.Tensor:
    """Without the outline's pixels: they are a mixture in the path tracer's picture, and one ray's in G-buffers."""
    return max_pool2d(1 - mask.float(), 3, stride=1, padding=1) == 0


def psnr(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
    return float(-10 * (a - b).permute(0, 2, 3, 1)[where[:, 0]].square().mean().log10())


@pytest.fixture(scope="module")
def splitsum() -> SplitSum:
    return SplitSum(device="cpu")


@pytest.fixture(scope="module")
def tracer() -> ScreenSpaceRayTracer:
    return ScreenSpaceRayTracer(samples=256, device="cpu")


@pytest.mark.parametrize("metallic", [0.0, 1.0])
@pytest.mark.parametrize("roughness", [0.3, 0.5, 1.0])
def test_ball_agrees(splitsum: SplitSum, tracer: ScreenSpaceRayTracer, roughness: float, metallic: float) -> None:
    """A convex thing under a bright small sun: nothing that G-buffers do not tell. PSNR of sRGB pictures, mean about 0.4."""
    buffers = gbuffer(view(), roughness, metallic, grounded=False)
    expected = reference(roughness, metallic, grounded=False, samples=256)
    where = inner(buffers.mask)
    assert int(where.sum()) > 600 and 0.25 < float(expected.permute(0, 2, 3, 1)[where[:, 0]].mean()) < 0.6
    # The path tracer's own noise: 49.5 dB at least. Screen-space tracing: worst 46.7 (roughness 0.5, metallic 0).
    assert psnr(rendered(tracer, buffers), expected, where) >= 42.0
    # Worst 46.2 (roughness 0.5, metallic 1).
    assert psnr(rendered(splitsum, buffers), expected, where) >= 40.0


def test_background_agrees(splitsum: SplitSum, tracer: ScreenSpaceRayTracer) -> None:
    """All three show the panorama behind the ball in the same place."""
    buffers = gbuffer(view(), 0.5, 0.0, grounded=False)
    expected, behind = reference(0.5, 0.0, grounded=False, samples=64), inner(~buffers.mask)
    for renderer in (splitsum, tracer):
        assert psnr(rendered(renderer, buffers), expected, behind) >= 45.0  # 111 dB: rounding


def test_contact_shadow_in_traced_pictures_only(splitsum: SplitSum, tracer: ScreenSpaceRayTracer) -> None:
    """Under an even sky the floor darkens where the ball stands on it; split-sum, which knows no visibility, cannot show it."""
    camera, light = view(), EnvironmentMap(torch.full((3, 16, 32), 0.9))
    buffers = gbuffer(camera, 0.5, 0.0, grounded=True)
    place = positions(buffers, camera)
    distance = place[..., [0, 2]].norm(dim=-1)
    on_floor = inner(((place[..., 1] - FLOOR).abs() < 1e-3)[:, None])[:, 0]
    near, far = on_floor & (distance < 0.75), on_floor & (distance > 2.5)
    assert int(near.sum()) >= 10 and int(far.sum()) >= 100
    ground = floor(PrincipledMaterial.constant((0.5, 0.5, 0.5), 1.0))
    renderers = {
        name: PathTracer(Geometry(parts), samples=64, variant=variant())
        for name, parts in (("bare", (ground,)), ("pathtrace", (ground, ball(PrincipledMaterial.constant(BASECOLOR)))))
    }
    linear = {
        name: srgb_eotf(renderer(buffers, light, camera=camera, rotations=camera.rotation).frames[:, 1])
        for name, renderer in {**renderers, "ssrt": tracer, "splitsum": splitsum}.items()
    }
    # What is left of the light on the bare floor.
    left = {name: [float((picture / linear["bare"])[part].mean()) for part in (near, far)] for name, picture in linear.items()}
    # Measured near and far: path tracer 0.54 and 0.985, ssrt 0.59 and 0.994, split-sum 1.002 and 1.002.
    assert left["pathtrace"][0] < 0.65 and left["pathtrace"][1] > 0.9
    assert left["ssrt"][0] < 0.7 and left["ssrt"][1] > 0.9
    assert left["splitsum"][0] > 0.95 and left["splitsum"][1] > 0.95


def positions(buffers: GBuffer, camera: Camera) -> torch.Tensor:
    """World positions, frames height width 3; far away where nothing is seen."""
    surface = surfaces(buffers, camera)
    world = surface.position @ camera.rotation.mT[:, None] + camera.pose[:, None, None, :3, 3]
    return torch.where(surface.coverage > 0, world, 1e3)
