"""The path tracer of geometry: energy, where the light is, files, bad input."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import direction_to_equirect, equirect_to_direction, look_at, rotation_x, rotation_y
from diffusion_renderer.core.types import Camera, EnvironmentMap, GBuffer

pytest.importorskip("mitsuba", reason="the path tracer needs mitsuba")
from diffusion_renderer.render.brdf import evaluate
from diffusion_renderer.render.pathtrace import Geometry, PathTracer, PrincipledMaterial, TriangleMesh

SIZE = 24
VARIANT = "scalar_rgb"  # works everywhere


def ball(material: PrincipledMaterial | None = None, rows: int = 24, radius: float = 1.0) -> TriangleMesh:
    """A sphere at the origin, with normals and texture coordinates."""
    v, u = torch.meshgrid(torch.linspace(0, 1, rows + 1), torch.linspace(0, 1, 2 * rows + 1), indexing="ij")
    points = equirect_to_direction(u, v).reshape(-1, 3)
    corner = (torch.arange(rows)[:, None] * (2 * rows + 1) + torch.arange(2 * rows)).reshape(-1)
    below = corner + 2 * rows + 1
    faces = torch.cat((torch.stack((corner, corner + 1, below), -1), torch.stack((corner + 1, below + 1, below), -1)))
    uv = torch.stack((u, v), -1).reshape(-1, 2)
    return TriangleMesh(radius * points, faces, material or PrincipledMaterial(), uv, points)


def tracer(*meshes: TriangleMesh, samples: int = 16, **options) -> PathTracer:
    return PathTracer(Geometry(meshes), samples=samples, variant=VARIANT, **options)


def speck() -> TriangleMesh:
    """A triangle that no camera here sees."""
    return TriangleMesh(torch.tensor([[0.0, -50, 0], [1e-3, -50, 0], [0, -50, 1e-3]]), torch.tensor([[0, 1, 2]]))


def views(frames: int = 1, distance: float = 4.0) -> Camera:
    """Around the origin, from above."""
    eyes = [rotation_y(0.7 * i) @ torch.tensor([0.0, 0.3, 1.0]) * distance for i in range(frames)]
    return Camera(torch.stack([look_at(eye, torch.zeros(3)) for eye in eyes]), torch.full((frames,), 40.0))


def blank(frames: int = 1, size: int = SIZE) -> GBuffer:
    return GBuffer(roughness=torch.zeros(frames, 1, size, size), fps=12.0, name="shot")


def rays(camera: Camera, size: int) -> torch.Tensor:
    """Camera-space unit directions through the pixels' centres, height width 3."""
    focal = size / (2 * torch.tan(torch.deg2rad(camera.fov_x[0]) / 2))
    y, x = torch.meshgrid(torch.arange(size) + 0.5 - size / 2, torch.arange(size) + 0.5 - size / 2, indexing="ij")
    return normalize(torch.stack((x / focal, -y / focal, -torch.ones_like(x)), -1), dim=-1)


def smooth_light() -> EnvironmentMap:
    """Colours that tell every direction: 0.5 d + 0.5."""
    v, u = torch.meshgrid((torch.arange(64) + 0.5) / 64, (torch.arange(128) + 0.5) / 128, indexing="ij")
    return EnvironmentMap((0.5 * equirect_to_direction(u, v) + 0.5).permute(2, 0, 1).contiguous())


def constant_light(value: float = 1.0) -> EnvironmentMap:
    return EnvironmentMap(torch.full((3, 4, 8), value))


@pytest.mark.parametrize(("roughness", "metallic"), [(0.05, 1.0), (0.5, 0.0), (0.5, 1.0), (1.0, 1.0)])
def test_white_furnace(roughness: float, metallic: float) -> None:
    """A white ball under a panorama of 1 shows the material's directional albedo, as integrated here over the half sphere."""
    material = PrincipledMaterial.constant((1.0, 1.0, 1.0), roughness, metallic)
    picture = tracer(ball(material), samples=256).radiance(views(), (SIZE, SIZE), constant_light())
    expected = 1.0  # of a mirror
    if roughness > 0.1:
        v, u = torch.meshgrid((torch.arange(200) + 0.5) / 400, (torch.arange(400) + 0.5) / 400, indexing="ij")
        light, normal = equirect_to_direction(u, v), torch.tensor([0.0, 1.0, 0.0])
        weight = torch.sin(torch.pi * v)[..., None] * (torch.pi / 400) * (2 * torch.pi / 400)
        white, values = torch.ones(3), [torch.tensor([value]) for value in (roughness, metallic)]
        expected = float((evaluate(normal, normal, light, white, *values) * weight).sum((0, 1))[0])
    # Pixels that look along the normal. Worst of the four: 0.7 % off (noise; the middle pixels are up to 3 degrees off normal).
    # No bound of 1 here: Disney's diffuse and specular lobes together give back 1.04 of a white dielectric of roughness 0.5.
    assert abs(float(picture[..., 11:13, 11:13].mean()) / expected - 1) < 0.02
    assert float((picture[..., 0, 0] - 1).abs().max()) < 1e-5  # background


def test_mirror_ball_reflects_the_panorama_where_it_should() -> None:
    """A panorama whose colour tells the direction, in a mirror: the law of reflection, then R."""
    camera, size = views(), 48
    material = PrincipledMaterial.constant((1.0, 1.0, 1.0), 0.0, 1.0)
    rotations = (rotation_y(0.4) @ rotation_x(0.2))[None]
    picture = tracer(ball(material, rows=96), samples=64).radiance(camera, (size, size), smooth_light(), rotations)
    direction = rays(camera, size)
    eye = camera.rotation[0].T @ camera.pose[0, :3, 3]  # in camera axes, the ball at the origin
    b = direction @ eye
    root = b**2 - eye @ eye + 1
    hit = eye + (-b - root.clamp_min(0).sqrt())[..., None] * direction
    mirrored = direction - 2 * (direction * hit).sum(-1, keepdim=True) * hit
    inside = root > 0.35  # not near the outline, where a pixel sees a wide range of directions
    seen = torch.where(inside[..., None], mirrored, direction)
    expected = 0.5 * seen @ rotations[0].T + 0.5
    difference = (picture[0].permute(1, 2, 0) - expected).abs()
    assert int(inside.sum()) > 300
    # Worst pixel 0.016 (the lobe of alpha = 1e-3, the pixel's extent, noise); a wrong axis is off by 0.5 and more.
    assert float(difference[inside].max()) < 0.04
    outside = root < -0.5
    assert float(difference[outside].max()) < 0.01  # background: worst 0.0003


def test_background_shows_the_lit_pixel() -> None:
    """A panorama black but for one pixel, seen with nothing in the way."""
    radiance = torch.zeros(3, 32, 64)
    radiance[:, 12, 20] = 5.0
    towards = equirect_to_direction(torch.tensor(20.5 / 64), torch.tensor(12.5 / 32))
    # A camera that looks straight at it: -z of the camera is that direction.
    camera = Camera(look_at(torch.zeros(3), towards)[None], torch.tensor([30.0]))
    picture = tracer(speck()).radiance(camera, (SIZE + 1, SIZE + 1), EnvironmentMap(radiance), camera.rotation)
    brightest = int(picture[0].sum(0).argmax())
    assert brightest == (SIZE + 1) * (SIZE + 1) // 2  # the middle
    assert float(picture[..., 0, :].max()) == 0.0


def test_light_fixed_to_the_world_is_a_rotation_by_the_pose() -> None:
    """Turning the camera and the ball's world together changes nothing; a light fixed to the world stays behind."""
    light, mesh = smooth_light(), ball(PrincipledMaterial.constant((0.8, 0.6, 0.4), 0.4, 1.0))
    camera, turn = views(), rotation_y(1.1) @ rotation_x(0.3)
    there = torch.eye(4)
    there[:3, :3] = turn
    moved = TriangleMesh(mesh.vertices @ turn.T, mesh.faces, mesh.material, mesh.uv, mesh.normals @ turn.T)
    turned = Camera(there @ camera.pose, camera.fov_x)
    size = (SIZE, SIZE)
    still = tracer(mesh).radiance(camera, size, light)
    # The same picture, with the same random numbers: rounding only (4e-8; more if a sample changes sides of an edge).
    assert float((tracer(moved).radiance(turned, size, light) - still).abs().mean()) < 2e-4
    world = tracer(mesh).radiance(camera, size, light, rotations=camera.rotation)
    same = tracer(moved).radiance(turned, size, light, rotations=turn.T @ turned.rotation)
    assert float((world - same).abs().mean()) < 2e-4
    assert float((world - still).abs().mean()) > 0.03  # 0.044: the camera does not look along the world's axes


def test_call_streams_frames_of_srgb() -> None:
    """Clip, label, progress; frames do not depend on their neighbours, pictures do on the seed."""
    seen: list[tuple[int, int, str]] = []
    renderer, camera, light = tracer(ball(), samples=4), views(3), smooth_light()
    rotations = torch.stack([rotation_y(0.5 * i) for i in range(3)])
    clip = renderer(
        blank(3), light, camera=camera, rotations=rotations, progress=lambda *stage: seen.append(stage), steps=3, guidance=2.0
    )
    assert clip.frames.shape == (3, 3, SIZE, SIZE) and clip.name == "shot" and clip.fps == 12.0
    assert seen == [(i, 3, "rendering") for i in (1, 2, 3)]
    linear = renderer.radiance(camera, (SIZE, SIZE), light, rotations)
    assert torch.equal(clip.frames, srgb_oetf(linear))
    one = next(iter(renderer.stream(blank(3), light, camera=camera, rotations=rotations)))
    assert torch.equal(one.frames, clip.frames[:1])
    assert not torch.equal(renderer.radiance(camera, (SIZE, SIZE), light, rotations, seed=1), linear)


def test_samples_beyond_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several launches are averaged, and differ."""
    from diffusion_renderer.render import pathtrace

    whole = tracer(ball(), samples=64).radiance(views(), (SIZE, SIZE), smooth_light())
    monkeypatch.setattr(pathtrace, "MAX_PATHS", 16 * SIZE * SIZE)
    parts = tracer(ball(), samples=64).radiance(views(), (SIZE, SIZE), smooth_light())
    rough = tracer(ball(), samples=16).radiance(views(), (SIZE, SIZE), smooth_light())
    apart, fewer = float((parts - whole).square().mean()), float((rough - whole).square().mean())
    # Variances: 2 / 64 against 1 / 64 + 1 / 16, a ratio of 0.4 (measured 0.40); equal launches would give 1.
    assert 0 < apart < 0.65 * fewer


def test_denoiser_gets_the_surface() -> None:
    """The hook sees linear radiance and what the G-buffers show; without buffers it is refused."""

    def flatten(radiance, surface):
        assert surface.coverage.shape == (1, SIZE, SIZE, 1)
        return torch.full_like(radiance, 0.25) * surface.coverage[..., 0][:, None]

    depth = torch.full((2, 1, SIZE, SIZE), torch.inf)
    depth[..., : SIZE // 2] = 3.0
    grey = torch.full((2, 1, SIZE, SIZE), 0.5)
    normal = torch.zeros(2, 3, SIZE, SIZE)
    normal[:, 2] = 1
    full = GBuffer(grey.expand(2, 3, SIZE, SIZE), normal, depth, grey, grey)
    renderer = tracer(ball(), samples=1, denoise=flatten)
    frames = renderer(full, constant_light(), camera=views(2)).frames
    assert float(frames[..., SIZE // 2 :].max()) == 0.0
    assert float((frames[..., : SIZE // 2] - srgb_oetf(torch.tensor(0.25))).abs().max()) < 1e-6
    with pytest.raises(InputError, match="buffers"):
        renderer(blank(2), constant_light(), camera=views(2))


def test_texture_lies_where_uv_says() -> None:
    """Its first row at v = 0, its first column at u = 0."""
    image = torch.zeros(3, 2, 2)
    image[:, 0, 0], image[0, 0, 1], image[1, 1, 0], image[2, 1, 1] = 1.0, 1.0, 1.0, 1.0  # white, red; green, blue
    square = torch.tensor([[-1.0, 1, 0], [1, 1, 0], [-1, -1, 0], [1, -1, 0]])
    uv = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    material = PrincipledMaterial(basecolor=image, roughness=torch.ones(1, 1, 1))
    mesh = TriangleMesh(square, torch.tensor([[0, 2, 1], [1, 2, 3]]), material, uv)
    camera = Camera(look_at(torch.tensor([0.0, 0, 3]), torch.zeros(3))[None], torch.tensor([30.0]))
    picture = tracer(mesh).radiance(camera, (SIZE, SIZE), constant_light())[0]
    corners = {(6, 6): (1, 1, 1), (6, 17): (1, 0, 0), (17, 6): (0, 1, 0), (17, 17): (0, 0, 1)}
    for (row, column), colour in corners.items():
        assert ((picture[:, row, column] > 0.4) == torch.tensor(colour).bool()).all(), (row, column)


SCENE = """<scene version="3.0.0">
  <default name="rough" value="0.3"/>
  <integrator type="direct"/>
  <sensor type="perspective"><film type="hdrfilm"/></sensor>
  <emitter type="constant"><rgb name="radiance" value="100"/></emitter>
  <emitter type="area" id="glow"><rgb name="radiance" value="100"/></emitter>
  <bsdf type="twosided" id="copper"><bsdf type="principled">
    <rgb name="base_color" value="0.9, 0.5, 0.3"/><float name="roughness" value="$rough"/><float name="metallic" value="1"/>
  </bsdf></bsdf>
  <shape type="ply"><string name="filename" value="parts/ball.ply"/><ref id="copper"/></shape>
  <include filename="parts/lamp.xml"/>
  <shape type="sphere"><float name="radius" value="0.3"/><point name="center" x="0" y="1.6" z="0"/><ref id="glow"/></shape>
</scene>"""
LAMP = """<scene version="3.0.0">
  <shape type="sphere"><float name="radius" value="0.3"/><point name="center" x="0" y="-1.6" z="0"/>
<emitter type="area"><rgb name="radiance" value="100"/></emitter></shape></scene>"""


def write_ply(path: Path, mesh: TriangleMesh) -> Path:
    points, names = torch.cat((mesh.vertices, mesh.normals), 1), "x y z nx ny nz".split()
    lines = ["ply", "format ascii 1.0", f"element vertex {len(points)}", *[f"property float {name}" for name in names]]
    lines += [f"element face {len(mesh.faces)}", "property list uchar int vertex_indices", "end_header"]
    lines += [" ".join(f"{value:.7f}" for value in row) for row in points.tolist()]
    lines += ["3 " + " ".join(str(index) for index in row) for row in mesh.faces.tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_obj(path: Path, mesh: TriangleMesh) -> Path:
    lines = [f"v {x:.7f} {y:.7f} {z:.7f}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"vn {x:.7f} {y:.7f} {z:.7f}" for x, y, z in mesh.normals.tolist()]
    lines += ["f " + " ".join(f"{i + 1}//{i + 1}" for i in row) for row in mesh.faces.tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_mesh_files_render_like_arrays(tmp_path: Path) -> None:
    """.ply and .obj of the same triangles give the same picture, with the material that was asked for."""
    material = PrincipledMaterial.constant((0.9, 0.5, 0.3), 0.3, 1.0)
    mesh, light = ball(material), smooth_light()
    expected = tracer(mesh).radiance(views(), (SIZE, SIZE), light)
    for path in (write_ply(tmp_path / "ball.ply", mesh), write_obj(tmp_path / "ball.OBJ", mesh)):
        renderer = PathTracer.from_file(path, material, samples=16, variant=VARIANT)
        picture = renderer.radiance(views(), (SIZE, SIZE), light)
        # Same paths but for the rounding of coordinates in the file (mean 2e-8); another material is off by 0.1.
        assert float((picture - expected).abs().mean()) < 2e-3, path


def test_scene_file_keeps_shapes_and_drops_lights(tmp_path: Path) -> None:
    """The ball is as from arrays; lamps, wherever they are written, do not shine."""
    material = PrincipledMaterial.constant((0.9, 0.5, 0.3), 0.3, 1.0)
    (tmp_path / "parts").mkdir()
    write_ply(tmp_path / "parts" / "ball.ply", ball(material, radius=0.8))
    (tmp_path / "parts" / "lamp.xml").write_text(LAMP)
    (tmp_path / "scene.xml").write_text(SCENE)
    renderer = PathTracer.from_file(tmp_path / "scene.xml", samples=16, variant=VARIANT)
    assert len(renderer.geometry.shapes(renderer._mitsuba())) == 3
    camera = views(distance=6.0)
    picture = renderer.radiance(camera, (SIZE, SIZE), smooth_light())
    assert float(picture.max()) <= 1.05  # nothing brighter than the panorama (0.99); a lamp would be 100
    alone = tracer(ball(material, radius=0.8)).radiance(camera, (SIZE, SIZE), smooth_light())
    middle = (slice(None), slice(None), slice(10, 14), slice(10, 14))
    assert float((picture - alone)[middle].abs().mean()) < 0.03  # noise and the faint mirror images of two small spheres
    dark = renderer.radiance(camera, (SIZE, SIZE), constant_light(0.0))
    assert float(dark.max()) == 0.0


def test_scene_file_with_instances(tmp_path: Path) -> None:
    """A group that is shown once, moved, is the mesh moved."""
    write_ply(tmp_path / "ball.ply", ball())
    grey = '<bsdf type="twosided"><bsdf type="principled"/></bsdf>'
    group = f'<shape type="ply"><string name="filename" value="ball.ply"/>{grey}</shape>'
    (tmp_path / "scene.xml").write_text(
        f'<scene version="3.0.0"><shape type="shapegroup" id="group">{group}</shape><shape type="instance"><ref id="group"/>'
        '<transform name="to_world"><translate x="0.5"/></transform></shape></scene>'
    )
    picture = PathTracer.from_file(tmp_path / "scene.xml", samples=64, variant=VARIANT).radiance(
        views(), (SIZE, SIZE), smooth_light()
    )
    moved = TriangleMesh(ball().vertices + torch.tensor([0.5, 0, 0]), ball().faces, normals=ball().normals)
    expected = tracer(moved, samples=64).radiance(views(), (SIZE, SIZE), smooth_light())
    # Mean 2e-8: the same paths but for rounding; unmoved it would be off by 0.05.
    assert float((picture - expected).abs().mean()) < 0.01


def test_bad_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.xml"
    broken.write_text("<scene version='3.0.0'><shape type='cube'>")
    empty = tmp_path / "empty.xml"
    empty.write_text("<scene version='3.0.0'><emitter type='constant'/></scene>")
    lost = tmp_path / "lost.xml"
    lost.write_text("<scene version='3.0.0'><shape type='ply'><string name='filename' value='no.ply'/></shape></scene>")
    text = tmp_path / "text.ply"
    text.write_text("not a mesh")
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    body = struct.pack("<9f", 0, 0, 0, 1, 0, float("nan"), 0, 1, 0) + struct.pack("<B3i", 3, 0, 1, 2)
    (tmp_path / "nan.ply").write_bytes(header.encode() + body)
    cases = {
        "missing.ply": "nothing at",
        "scene.blend": "convert",
        "broken.xml": "a Mitsuba scene",
        "empty.xml": "shapes",
        "lost.xml": "no.ply",
        "text.ply": "a ply mesh",
        "nan.ply": "invalid vertex",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as raised:
            PathTracer.from_file(tmp_path / name, variant=VARIANT)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="own"):
        PathTracer.from_file(empty, PrincipledMaterial(), variant=VARIANT)


def test_bad_meshes() -> None:
    corners, face = torch.eye(3), torch.tensor([[0, 1, 2]])
    with pytest.raises(InputError, match="finite vertices"):
        TriangleMesh(corners * torch.nan, face)
    with pytest.raises(InputError, match="vertices 0 to 2"):
        TriangleMesh(corners, face + 1)
    with pytest.raises(InputError, match="triangles"):
        TriangleMesh(corners, face[:0])
    with pytest.raises(InputError, match="texture coordinates"):
        TriangleMesh(corners, face, PrincipledMaterial(basecolor=torch.rand(3, 2, 2)))
    with pytest.raises(InputError, match="normals of 3"):
        TriangleMesh(corners, face, normals=corners[:2])
    with pytest.raises(InputError, match="roughness"):
        PrincipledMaterial.constant(roughness=1.5)
    with pytest.raises(InputError, match="NaN"):
        PrincipledMaterial.constant(basecolor=(0.1, float("nan"), 0.1))
    with pytest.raises(InputError, match="part"):
        Geometry(())


def test_bad_calls(unchecked: None) -> None:
    renderer, light, camera = tracer(ball(rows=4), samples=1), constant_light(), views()
    with pytest.raises(InputError, match="camera"):
        renderer(blank(), light)
    with pytest.raises(InputError, match="one of 2"):
        renderer(blank(), light, camera=views(2))
    with pytest.raises(InputError, match="1 rotations"):
        renderer(blank(), light, camera=camera, rotations=torch.eye(3).expand(2, 3, 3))
    with pytest.raises(InputError, match="at least one frame"):
        renderer(GBuffer(), light, camera=camera)
    with pytest.raises(InputError, match="panorama"):
        renderer(blank(), constant_light(float("nan")), camera=camera)
    with pytest.raises(InputError, match="only rotate"):
        renderer(blank(), light, camera=camera, rotations=2 * torch.eye(3)[None])
    with pytest.raises(InputError, match="finite camera"):
        renderer(blank(), light, camera=Camera(camera.pose * torch.nan, camera.fov_x))
    with pytest.raises(InputError, match="fields of view"):
        renderer(blank(), light, camera=Camera(camera.pose, camera.fov_x + 180))
    with pytest.raises(InputError, match="seed"):
        renderer(blank(), light, camera=camera, seed=-1)
    with pytest.raises(InputError, match="RGB variants"):
        PathTracer(renderer.geometry, variant="scalar_rbg")
    with pytest.raises(InputError, match="samples"):
        PathTracer(renderer.geometry, samples=0, variant=VARIANT)


def test_variant_that_is_active_is_kept() -> None:
    """Without a wish, the tracer does not change what the process already uses."""
    import mitsuba

    mitsuba.set_variant(VARIANT)
    assert PathTracer(Geometry((ball(rows=4),))).variant == VARIANT
    assert direction_to_equirect(torch.tensor([0.0, 0.0, 1.0]))[0] == 0.5  # the convention the tests above stand on
