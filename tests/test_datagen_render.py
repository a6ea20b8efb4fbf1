"""What Mitsuba is made to render, against closed forms: buffers, textures, cameras, panoramas, energy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("mitsuba", reason="needs the extra `data` (mitsuba)")

import numpy as np
import torch
from torch import Tensor

from diffusion_renderer.core.geometry import direction_to_equirect, equirect_to_direction, look_at, rotation_x, rotation_y
from diffusion_renderer.core.types import Camera, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import DatasetSettings, render_relit, render_scene
from diffusion_renderer.datagen.engine.mitsuba_scene import MitsubaScene, path_integrator
from diffusion_renderer.datagen.engine.renderer import relight, trace
from diffusion_renderer.datagen.engine.tracing import Launcher
from diffusion_renderer.datagen.engine.variant import activate, works
from diffusion_renderer.datagen.objects import SceneObject, solid
from diffusion_renderer.datagen.procedural.materials import TEXTURE_SIZE, Material, constant_material
from diffusion_renderer.datagen.procedural.shapes import cuboid, plane, sphere, transformed
from diffusion_renderer.datagen.scenes import SceneSpec

WIDTH, HEIGHT, FOV = 40, 30, 50.0
VARIANTS = ("llvm_ad_rgb", "scalar_rgb")
GREY = constant_material((0.5, 0.5, 0.5), 1.0, 0.0)


@pytest.fixture(scope="module", params=VARIANTS)
def settings(request: pytest.FixtureRequest) -> DatasetSettings:
    if not works(request.param):
        pytest.skip(f"{request.param} does not work here (it needs LLVM 16 or newer)")
    return DatasetSettings(
        frames=2,
        width=WIDTH,
        height=HEIGHT,
        samples=32,
        buffer_samples=3,
        panorama_height=16,
        denoise=False,
        variant=request.param,
    )


def two_cameras() -> Camera:
    eyes = (torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-3.0, 1.0, 2.0]))
    return Camera(torch.stack([look_at(eye, torch.tensor([0.2, 0.1, 0.0])) for eye in eyes]), torch.full((2,), FOV))


def scene(*objects: SceneObject, camera: Camera | None = None, radiance: Tensor | None = None) -> SceneSpec:
    light = EnvironmentMap(torch.ones(3, 16, 32) if radiance is None else radiance)
    return SceneSpec("objects", objects, camera or two_cameras(), light, 0.4)


def exact(settings: DatasetSettings) -> bool:
    """Whether G-buffers are averaged over fixed places in a pixel, not over its random samples."""
    return settings.variant == "scalar_rgb"


def buffers(spec: SceneSpec, settings: DatasetSettings) -> tuple[GBuffer, Tensor]:
    traced = trace(spec, settings, settings.variant, 0)
    return traced.gbuffer, traced.coverage


def camera_rays(offset: float = 0.5) -> Tensor:
    """Camera-space directions of a point in every pixel, height width 3, not normalised: z = -1."""
    x = ((torch.arange(WIDTH) + offset) / WIDTH * 2 - 1) * math.tan(math.radians(FOV / 2))
    y = (1 - (torch.arange(HEIGHT) + offset) / HEIGHT * 2) * math.tan(math.radians(FOV / 2)) * HEIGHT / WIDTH
    return torch.stack((x.expand(HEIGHT, WIDTH), y[:, None].expand(HEIGHT, WIDTH), -torch.ones(HEIGHT, WIDTH)), -1)


def world_rays(rotation: Tensor) -> Tensor:
    return torch.einsum("fij,hwj->fhwi", rotation, torch.nn.functional.normalize(camera_rays(), dim=-1))


def panorama_at(radiance: Tensor, direction: Tensor) -> Tensor:
    """Bilinear look-up with core.geometry, frames 3 height width."""
    rows, columns = radiance.shape[1:]
    u, v = direction_to_equirect(direction)
    padded = torch.cat((radiance[..., -1:], radiance, radiance[..., :1]), -1)
    padded = torch.cat((padded[:, :1], padded, padded[:, -1:]), 1)
    grid = torch.stack(((u * columns + 1) / (columns + 2), (v * rows + 1) / (rows + 2)), -1) * 2 - 1
    return torch.nn.functional.grid_sample(padded.expand(len(direction), -1, -1, -1), grid, align_corners=False)


def sees_only_panorama(coverage: Tensor) -> Tensor:
    """Pixels without a surface in them or in their neighbours (nine sub-pixels can miss one that random samples hit)."""
    return torch.nn.functional.max_pool2d(coverage, 3, stride=1, padding=1)[:, 0] == 0


def smooth_panorama() -> Tensor:
    """Different in every direction and without steps, so that a pixel's mean is close to its centre's value."""
    v, u = torch.meshgrid((torch.arange(32) + 0.5) / 32, (torch.arange(64) + 0.5) / 64, indexing="ij")
    x, y, z = equirect_to_direction(u, v).unbind(-1)
    return torch.stack((0.6 + 0.5 * x, 0.6 + 0.5 * y, 0.6 + 0.5 * z))


def test_sphere_buffers_are_the_closed_form(settings: DatasetSettings) -> None:
    camera = two_cameras()
    gbuffer, coverage = buffers(scene(solid(sphere(), GREY)), settings)
    direction, eye = world_rays(camera.rotation), camera.pose[:, None, None, :3, 3]
    b = (direction * eye).sum(-1)
    discriminant = b**2 - (eye * eye).sum(-1) + 1
    t = -b - discriminant.clamp_min(0).sqrt()
    normal = torch.einsum("fji,fhwj->fihw", camera.rotation, eye + t[..., None] * direction)
    depth = t * -torch.nn.functional.normalize(camera_rays(), dim=-1)[..., 2]

    assert (gbuffer.mask[:, 0] != (discriminant > 0)).float().mean() < 0.01
    inside = (discriminant > 0.3) & (coverage[:, 0] == 1)
    angle = torch.rad2deg(torch.acos((gbuffer.normal * normal).sum(1)[inside].clamp(-1, 1)))
    error = (gbuffer.depth[:, 0] - depth)[inside]
    # Fixed places in a pixel: worst seen 0.28 degrees and 0.0056 (4 units away), from 64 x 32 facets and the mean over a pixel
    # where it is steep. 32 random places: 1.27 degrees, 0.018. The facets lie inside the ball: 0.003 on average.
    assert angle.max() < (0.5 if exact(settings) else 2.0)
    assert error.abs().max() < (0.01 if exact(settings) else 0.04) and error.mean().abs() < 0.005
    outside = ~gbuffer.mask[:, 0]
    assert torch.isinf(gbuffer.depth[:, 0][outside]).all()
    assert (gbuffer.normal.abs().sum(1)[outside] == 0).all() and (gbuffer.basecolor.sum(1)[outside] == 0).all()
    assert torch.allclose(gbuffer.normal.norm(dim=1)[gbuffer.mask[:, 0]], torch.ones(()), atol=1e-5)


def test_plane_depth_is_z_depth_and_its_normal_is_up(settings: DatasetSettings) -> None:
    camera = two_cameras()
    gbuffer, _ = buffers(scene(solid(plane(50.0, 1.0), GREY)), settings)
    up = camera.rotation[:, 1, :, None, None].expand(-1, -1, HEIGHT, WIDTH)
    # The mean of nine points of a pixel is not quite its centre's: t = -eye_y / d_y averaged over the same points.
    offsets = [(i + 0.5) / 3 - 0.5 for i in range(3)]
    step_x = 2 * math.tan(math.radians(FOV / 2)) / WIDTH
    depth = torch.zeros(2, HEIGHT, WIDTH)
    for dy in offsets:
        for dx in offsets:
            rays = camera_rays() + step_x * torch.tensor([dx, -dy, 0.0])
            slope = torch.einsum("fj,hwj->fhw", camera.rotation[:, 1], rays)
            depth += -camera.pose[:, 1, 3, None, None] / slope / 9
    near = gbuffer.mask[:, 0] & (gbuffer.depth[:, 0] < 20)
    assert near.float().mean() > 0.5
    # float32; worst seen 6e-8 and 2.5e-6 (relative).
    assert (gbuffer.normal - up).abs().amax(1)[near].max() < 1e-6
    error = ((gbuffer.depth[:, 0] - depth) / depth)[near]
    # Random places in a pixel: worst seen 0.037, mean 0.0001; the row above or below differs by 0.05 on average.
    assert error.abs().max() < (2e-5 if exact(settings) else 0.08) and error.mean().abs() < 0.002


def test_textures_are_read_where_they_lie(settings: DatasetSettings) -> None:
    """A plane from above, its texture once: u along +x, v along -z; each half of the image in the right place."""
    axis = (np.arange(TEXTURE_SIZE, dtype=np.float32) + 0.5) / TEXTURE_SIZE
    u, v = np.meshgrid(axis, axis)
    material = Material(
        np.stack((u, v, 0.25 * np.ones_like(u)), -1), 0.1 + 0.8 * u[..., None], (v[..., None] > 0.5) * np.float32(1)
    )
    top = torch.eye(4)
    top[:3, :3], top[:3, 3] = rotation_x(-math.pi / 2), torch.tensor([0.0, 2.0, 0.0])
    camera = Camera(top.expand(2, 4, 4), torch.full((2,), FOV))
    filler = solid(replace(sphere(), positions=sphere().positions * 0.01 + [0, -5, 0]), GREY)
    gbuffer, _ = buffers(scene(filler, solid(plane(2.0, 1.0), material), camera=camera), settings)
    point = 2 * camera_rays()  # on the plane: camera x is world x, camera y is world -z
    expected_u, expected_v = (point[..., 0] / 2 + 1) / 2, (point[..., 1] / 2 + 1) / 2
    # Bilinear interpolation of a ramp is the ramp; worst seen 3e-6. A pixel is 0.0117 wide: of 32 random places in it the
    # mean's deviation is 0.0117 / sqrt(12 * 32) = 0.0006, its largest of 1,200 about 3.5 times that; no shift in the mean.
    tolerance = 2e-5 if exact(settings) else 0.0035
    for found, expected in (
        (gbuffer.basecolor[0, 0], expected_u),
        (gbuffer.basecolor[0, 1], expected_v),
        (gbuffer.roughness[0, 0], 0.1 + 0.8 * expected_u),
    ):
        assert (found - expected).abs().max() < tolerance and (found - expected).mean().abs() < 2e-4
    away = (expected_v - 0.5).abs() > 0.03
    assert ((gbuffer.metallic[0, 0] - (expected_v > 0.5).float()).abs() < 1e-5)[away].all()


def test_rendered_colours_follow_the_same_textures(settings: DatasetSettings) -> None:
    """Under constant light a matt surface's radiance is proportional to the base colour that the buffer has."""
    rng = np.random.default_rng(0)
    texture = np.repeat(np.repeat(rng.uniform(0.1, 0.9, (8, 8, 3)), TEXTURE_SIZE // 8, 0), TEXTURE_SIZE // 8, 1).astype(
        np.float32
    )
    spec = scene(solid(plane(2.0, 1.0), replace(GREY, basecolor=texture)))
    gbuffer, coverage = buffers(spec, settings)
    radiance = relight(spec, spec.environment.radiance, None, settings, settings.variant, 0)
    inside = (coverage == 1).expand_as(radiance)
    pairs = torch.stack((gbuffer.basecolor[inside], radiance[inside]))
    # 0.955 seen, the rest is noise and other sub-pixels on the texture's edges; a flipped axis gives at most 0.2.
    assert torch.corrcoef(pairs)[0, 1] > 0.9


def test_background_is_the_panorama_seen_by_the_camera(settings: DatasetSettings) -> None:
    radiance = smooth_panorama()
    spec = scene(solid(sphere(), GREY), radiance=radiance)
    image = relight(spec, radiance, None, settings, settings.variant, 0)
    _, coverage = buffers(spec, settings)
    expected = panorama_at(radiance, world_rays(spec.camera.rotation))
    error = (image - expected).abs().amax(1)[sees_only_panorama(coverage)]
    # Worst seen 0.0019: 32 random points of a pixel. The panorama turned by one texel of 64 differs by up to 0.05.
    assert error.max() < 0.01


def test_a_turned_light_shows_the_panorama_at_r_times_d(settings: DatasetSettings) -> None:
    radiance = smooth_panorama()
    spec = scene(solid(sphere(), GREY), radiance=radiance)
    rotations = torch.stack((rotation_y(1.0) @ rotation_x(0.3), rotation_y(2.0)))
    image = relight(spec, radiance, rotations @ spec.camera.rotation.transpose(1, 2), settings, settings.variant, 0)
    _, coverage = buffers(spec, settings)
    expected = panorama_at(radiance, world_rays(rotations))
    assert (image - expected).abs().amax(1)[sees_only_panorama(coverage)].max() < 0.01


def test_light_fixed_to_the_world_is_the_rotation_of_the_camera(settings: DatasetSettings) -> None:
    spec = scene(solid(sphere(), GREY), radiance=smooth_panorama())
    fixed, _ = render_relit(spec, spec.environment, None, settings)
    turned, _ = render_relit(spec, spec.environment, spec.camera.rotation, settings)
    # Encoded images with 32 samples differ by their noise alone: 0.0115 seen; by 0.136 with the rotations swapped.
    assert (fixed.frames - turned.frames).abs().mean() < 0.02


def test_the_lit_side_of_a_sphere_faces_the_lit_texels(settings: DatasetSettings) -> None:
    radiance = torch.zeros(3, 16, 32)
    radiance[:, 4:6, 8:10] = 50.0
    direction = equirect_to_direction(torch.tensor(9 / 32), torch.tensor(5 / 16))
    camera = Camera(
        torch.stack([look_at(4 * direction + torch.tensor([x, 0.5, 0.0]), torch.zeros(3)) for x in (0.6, -0.6)]),
        torch.full((2,), 40.0),
    )
    spec = scene(solid(sphere(), GREY), camera=camera)
    gbuffer, _ = buffers(spec, settings)
    image = relight(spec, radiance, None, settings, settings.variant, 0)[:, :1] * gbuffer.mask
    cosine = torch.einsum("fij,fjhw,i->fhw", camera.rotation, gbuffer.normal, direction).clamp_min(0)
    lit = (cosine > 0.2) & gbuffer.mask[:, 0]
    # Lambert but for the principled model's retro-reflection and its noise; 0.96 seen.
    assert torch.corrcoef(torch.stack((cosine[lit], image[:, 0][lit])))[0, 1] > 0.9


def test_white_furnace(settings: DatasetSettings) -> None:
    """A sphere under constant radiance 1 reflects its colour, whatever the direction."""
    for colour in (0.2, 0.8):
        spec = scene(solid(sphere(), constant_material((colour, colour, colour), 1.0, 0.0)))
        _, coverage = buffers(spec, settings)
        mean = relight(spec, torch.ones(3, 16, 32), None, settings, settings.variant, 0)[
            (coverage == 1).expand(-1, 3, -1, -1)
        ].mean()
        # The principled model adds a specular layer (4 % at normal incidence) and retro-reflection: 0.230 and 0.863 seen.
        assert colour < mean < colour + 0.08
    metal = scene(solid(sphere(), constant_material((1.0, 1.0, 1.0), 0.05, 1.0)))
    _, coverage = buffers(metal, settings)
    image = relight(metal, torch.ones(3, 16, 32), None, settings, settings.variant, 0)
    # A white mirror-like metal is invisible in a furnace; 1.0002 seen.
    assert 0.95 < image[(coverage == 1).expand_as(image)].mean() < 1.005


def test_variants_agree() -> None:
    if not works("llvm_ad_rgb"):
        pytest.skip("llvm_ad_rgb does not work here (it needs LLVM 16 or newer)")
    spec = scene(solid(plane(2.0, 1.0), GREY), solid(sphere(), GREY), radiance=smooth_panorama())
    images, buffers = [], []
    for variant in VARIANTS:
        rendered = render_scene(
            spec, DatasetSettings(frames=2, width=WIDTH, height=HEIGHT, samples=32, denoise=False, variant=variant)
        )
        images.append(rendered.clip.frames)
        buffers.append(rendered.gbuffer)
    # One places its hits at random, the other at nine fixed points: 0.2 % of the pixels, on edges, seen to differ.
    assert (buffers[0].mask == buffers[1].mask).float().mean() > 0.99
    both = buffers[0].mask & buffers[1].mask
    for name, most in (("depth", 0.01), ("normal", 0.01), ("basecolor", 1e-4), ("roughness", 1e-4)):
        found = [getattr(item, name)[both.expand_as(getattr(item, name))] for item in buffers]
        assert (found[0] - found[1]).abs().mean() < most, name
    # Two noisy estimates of one image: mean difference 0.015 and difference of means 0.001 seen.
    assert (images[0] - images[1]).abs().mean() < 0.03
    assert abs(float(images[0].mean() - images[1].mean())) < 0.005


def bumpy(*normal: float) -> Material:
    """A white matt material whose normal map is the same everywhere."""
    unit = np.float32(normal) / np.linalg.norm(normal).astype(np.float32)
    return replace(constant_material((0.8, 0.8, 0.8), 1.0, 0.0), normal=np.tile(unit, (TEXTURE_SIZE, TEXTURE_SIZE, 1)))


@pytest.mark.parametrize("slope", [(0.5, 0.0, 1.0), (-0.3, 0.4, 1.0)])
def test_a_normal_map_bends_light_and_buffer_alike(settings: DatasetSettings, slope: tuple[float, ...]) -> None:
    """On a plane the normal is that of a plane tilted in truth, and both are lit alike by a single lamp."""
    direction = equirect_to_direction(torch.tensor(10.5 / 32), torch.tensor(3.5 / 16))
    lamp = torch.zeros(3, 16, 32)
    lamp[:, 3, 10] = 100.0
    above = Camera(
        torch.stack([look_at(torch.tensor([x, 5.0, 0.1]), torch.zeros(3)) for x in (0.1, 0.2)]), torch.full((2,), 40.0)
    )
    spec = scene(solid(plane(4.0, 1.0), bumpy(*slope)), camera=above, radiance=lamp)
    flat = scene(solid(plane(4.0, 1.0), bumpy(0.0, 0.0, 1.0)), camera=above, radiance=lamp)
    bent, straight = trace(spec, settings, settings.variant, 0), trace(flat, settings, settings.variant, 0)
    world = torch.einsum("fij,fjhw->fihw", above.rotation, bent.gbuffer.normal).mean((0, 2, 3))
    # Laid on with u along +x and v falling along -z, as `solid` turns a mirrored texture round.
    expected = torch.nn.functional.normalize(torch.tensor([slope[0], slope[2], -slope[1]]), dim=0)
    assert torch.allclose(world, expected, atol=1e-3)
    cosine = float(expected @ direction) / float(direction[1])
    # Lambert but for the model's retro-reflection; 0.4 % to 4 % seen. The opposite slope differs by more than 30 %.
    assert float(bent.radiance.mean() / straight.radiance.mean()) == pytest.approx(cosine, rel=0.1)


def test_bumps_stand_out_on_every_side_of_a_box(settings: DatasetSettings) -> None:
    """`solid` lays textures on so that a slope upwards in the map leans the same way on every face, mirrored or not."""
    item = solid(cuboid(), bumpy(0.4, 0.3, 1.0))
    mesh = item.parts[0].mesh
    corner, uv = mesh.positions[mesh.faces], mesh.uv[mesh.faces]
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    outside = (np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]) * mesh.normals[mesh.faces].sum(1)).sum(-1)
    assert ((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) * outside < 0).all()


def test_objects_move_and_are_told_apart(settings: DatasetSettings) -> None:
    """A ball slides by 1 along x before a wall that stands; the camera is at rest."""
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 1.0
    ball = replace(solid(replace(sphere(), positions=0.5 * sphere().positions), GREY), poses=poses)
    wall = solid(transformed(plane(30.0, 1.0), rotation_x(math.pi / 2).double().numpy(), np.array([0.0, 0.0, -3.0])), GREY)
    camera = Camera(look_at(torch.tensor([0.0, 0.0, 6.0]), torch.zeros(3)).expand(2, 4, 4), torch.full((2,), FOV))
    traced = trace(scene(wall, ball, camera=camera), settings, settings.variant, 0)
    assert set(traced.ids.unique().tolist()) == {1, 2}
    columns = [(traced.ids[frame, 0] == 2).nonzero()[:, 1].float().mean() for frame in (0, 1)]
    # 1 unit at distance 6 in pixels: the film is 2 tan(25 degrees) 6 = 5.6 units wide.
    expected = WIDTH / (2 * math.tan(math.radians(FOV / 2)) * 6)
    assert float(columns[1] - columns[0]) == pytest.approx(expected, abs=0.5)
    ball = torch.nn.functional.max_pool2d((traced.ids == 2).float(), 3, stride=1, padding=1).amax(0) > 0
    still = ~ball  # without the pixels on the ball's edge, which show some of both
    assert torch.allclose(traced.gbuffer.depth[0][still], torch.tensor(9.0), atol=1e-3)


def test_the_light_turns_over_the_clip(settings: DatasetSettings) -> None:
    radiance = smooth_panorama()
    rotation = torch.stack((torch.eye(3), rotation_y(1.5)))
    spec = replace(scene(solid(sphere(), GREY), radiance=radiance), light_rotation=rotation)
    traced = trace(spec, settings, settings.variant, 0)
    expected = panorama_at(radiance, world_rays(rotation @ spec.camera.rotation))
    assert (traced.radiance - expected).abs().amax(1)[sees_only_panorama(traced.coverage)].max() < 0.01


def test_radiance_is_that_of_mitsubas_own_path_tracer(settings: DatasetSettings) -> None:
    """The engine's scene against one described plainly: Mitsuba's shapes, `principled` alone, its own integrator."""
    mi = activate(settings.variant)
    spec = scene(
        solid(plane(2.0, 1.0), constant_material((0.7, 0.3, 0.2), 0.4, 0.0)),
        solid(
            replace(sphere(), positions=0.6 * sphere().positions + [0.0, 0.6, 0.0]),
            constant_material((0.9, 0.8, 0.5), 0.3, 1.0),
        ),
        radiance=smooth_panorama(),
    )
    ours = relight(spec, spec.environment.radiance, None, replace(settings, samples=256), settings.variant, 0)
    rows = spec.environment.radiance.permute(1, 2, 0).numpy()
    turn = np.diag([-1.0, 1.0, -1.0, 1.0])
    theirs = []
    for pose in spec.camera.pose:
        plain = {
            "type": "scene",
            "integrator": {"type": "path", "max_depth": settings.depth, "rr_depth": settings.depth + 1},
            "light": {"type": "envmap", "bitmap": mi.Bitmap(np.repeat(rows, 2, 0))},
            "ground": {
                "type": "rectangle",
                "to_world": mi.ScalarTransform4f().rotate([1, 0, 0], -90).scale(2.0),
                "bsdf": principled((0.7, 0.3, 0.2), 0.4, 0.0),
            },
            "ball": {"type": "sphere", "center": [0, 0.6, 0], "radius": 0.6, "bsdf": principled((0.9, 0.8, 0.5), 0.3, 1.0)},
            "sensor": {
                "type": "perspective",
                "fov": FOV,
                "to_world": mi.ScalarTransform4f(pose.double().numpy() @ turn),
                "film": {"type": "hdrfilm", "width": WIDTH, "height": HEIGHT, "rfilter": {"type": "box"}},
            },
        }
        image = np.array(mi.render(mi.load_dict(plain), spp=256, seed=1))[..., :3]
        theirs.append(torch.from_numpy(image).permute(2, 0, 1))
    difference = ours - torch.stack(theirs)
    # Two noisy estimates, a facetted ball and an envmap of doubled rows: mean 0.0007, mean size 0.0085 seen (of 0.6).
    # One more bounce changes the mean by 0.01.
    assert difference.mean().abs() < 0.004 and difference.abs().mean() < 0.02


def principled(colour: tuple[float, ...], roughness: float, metallic: float) -> dict:
    return {
        "type": "twosided",
        "bsdf": {
            "type": "principled",
            "base_color": {"type": "rgb", "value": list(colour)},
            "roughness": roughness,
            "metallic": metallic,
        },
    }


def test_a_replayed_launch_is_the_same_image() -> None:
    """Launches are recorded once and replayed for later frames; camera, light and seed must all come through."""
    if not works("llvm_ad_rgb"):
        pytest.skip("llvm_ad_rgb does not work here (it needs LLVM 16 or newer)")
    mi = activate("llvm_ad_rgb")
    eyes = [look_at(torch.tensor([x, 2.0, 4.0]), torch.zeros(3)) for x in (0.0, 0.2, 0.4, 0.9, 1.0)]
    camera = Camera(torch.stack(eyes), torch.full((5,), FOV))
    turns = torch.stack([rotation_y(0.7 * i) for i in range(5)])
    still = scene(solid(plane(3.0, 1.0), GREY), solid(sphere(), GREY), camera=camera, radiance=smooth_panorama())
    spec = replace(still, light_rotation=turns)
    settings = DatasetSettings(frames=5, width=WIDTH, height=HEIGHT, samples=4, variant="llvm_ad_rgb")
    films = []
    for replay in (False, True):
        built = MitsubaScene(mi, spec, spec.environment.radiance.numpy(), turns.double().numpy())
        films.append(Launcher(built, mi.load_dict(path_integrator(5)), settings, replay=replay).all(3))
    assert (films[0][1:] - films[0][:-1]).abs().mean() > 0.02
    # The same numbers by two kernels (one camera, or a batch of one): equal to the bit in 30 runs.
    assert (films[0] - films[1]).abs().max() < 1e-4


def test_moving_objects_are_not_replayed(settings: DatasetSettings) -> None:
    """Replays saw old geometry; so every frame of a moving ball must be that of a scene built with the ball there."""
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 1.5, 4)
    camera = Camera(look_at(torch.tensor([0.5, 2.0, 5.0]), torch.zeros(3)).expand(4, 4, 4), torch.full((4,), FOV))
    ball = solid(replace(sphere(), positions=0.5 * sphere().positions), GREY)
    moving = trace(scene(replace(ball, poses=poses), camera=camera), settings, settings.variant, 0)
    for frame in range(4):
        there = solid(transformed(ball.parts[0].mesh, np.eye(3), poses[frame, :3, 3]), GREY)
        alone = trace(scene(there, camera=camera[frame : frame + 1]), settings, settings.variant, 0)
        assert (moving.gbuffer.mask[frame] != alone.gbuffer.mask[0]).float().mean() < 0.01
        both = moving.gbuffer.mask[frame] & alone.gbuffer.mask[0]
        assert (moving.gbuffer.depth[frame][both] - alone.gbuffer.depth[0][both]).abs().mean() < 0.02
