"""How near the classical renderers come to the path tracer, and what they cost, in one run on this machine.

    python benchmarks/classical_renderers.py [--panoramas DIR] [--count 4] [--size 64] [--samples 256] [--skip-memory]

1. PSNR of sRGB pictures against the path tracer over the objects' pixels, by roughness and metallic: mean over the panoramas,
   and the worst. Pixels of outlines are left out: there a pixel of the path tracer is a mixture, and one of G-buffers is not.
   Every light is scaled so that the objects' mean in the path tracer's picture is 0.45.
2. Seconds of the CPU per frame, over all threads.
3. Peak memory of a frame of 512 x 512 by screen-space tracing, above that of the process with the frame's buffers.

G-buffers are cast from the very meshes, one ray through each pixel's centre. Panoramas are procedural, or, with --panoramas,
the first --count files of a folder.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import max_pool2d

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.geometry import look_at
from diffusion_renderer.core.panorama import average_panorama
from diffusion_renderer.core.types import Camera, EnvironmentMap, GBuffer
from diffusion_renderer.datagen.engine.denoiser import denoise
from diffusion_renderer.datagen.engine.variant import activate, choose_variant
from diffusion_renderer.datagen.procedural import shapes
from diffusion_renderer.datagen.procedural.panoramas import list_panoramas, panorama_of_kind
from diffusion_renderer.io import read_environment
from diffusion_renderer.render.pathtrace import Geometry, PathTracer, PrincipledMaterial, TriangleMesh
from diffusion_renderer.render.splitsum import SplitSum
from diffusion_renderer.render.ssrt import ScreenSpaceRayTracer
from diffusion_renderer.render.surface import Surface

ROUGHNESS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
OBJECTS = ("sphere", "rounded box", "torus", "scene")
KINDS = ("sky", "room", "studio", "sunset", "spotlights", "street night", "softboxes", "windows")
BASECOLOR = (0.8, 0.55, 0.35)
MEAN = 0.45


def panoramas(folder: Path | None, count: int, height: int = 128) -> list[EnvironmentMap]:
    """``count`` lights of ``height`` rows."""
    if folder is None:
        drawn = ((kind, panorama_of_kind(np.random.default_rng(i), kind, height)) for i, kind in enumerate(KINDS[:count]))
        return [EnvironmentMap(torch.tensor(image, dtype=torch.float32).permute(2, 0, 1).contiguous(), k) for k, image in drawn]
    paths = list_panoramas(folder)[:count]
    return [EnvironmentMap(average_panorama(read_environment(p).radiance, height, 2 * height), p.stem) for p in paths]


def meshes(name: str, roughness: float, metallic: float) -> tuple[TriangleMesh, ...]:
    """One thing, or, as "scene", three on a floor."""
    rng, material = np.random.default_rng(1), PrincipledMaterial.constant(BASECOLOR, roughness, metallic)
    single = {
        "sphere": lambda: shapes.sphere(128, 64),
        "rounded box": lambda: shapes.rounded_box(rng),
        "torus": lambda: shapes.torus(rng),
    }
    if name != "scene":
        return (_mesh(single[name](), material),)
    places = {"sphere": (-0.9, 0.0, 0.5), "rounded box": (0.3, 0.0, -1.4), "torus": (1.2, 0.0, 0.9)}
    things = [_mesh(single[thing](), material, place, stands=True) for thing, place in places.items()]
    return _mesh(shapes.plane(5.0, 1.0), PrincipledMaterial.constant((0.5, 0.5, 0.5), 0.7), (0.0, -1.0, 0.0)), *things


def _mesh(mesh: shapes.Mesh, material: PrincipledMaterial, place=(0.0, 0.0, 0.0), stands: bool = False) -> TriangleMesh:
    positions = mesh.positions + np.asarray(place)
    if stands:
        positions[:, 1] -= 1.0 + positions[:, 1].min()
    to = lambda values: torch.tensor(values, dtype=torch.float32)  # noqa: E731
    faces = torch.tensor(np.asarray(mesh.faces, np.int64))
    return TriangleMesh(to(positions), faces, material, normals=to(mesh.normals))


def view(name: str) -> Camera:
    eye = torch.tensor([1.5, 1.4, 3.6]) * (1.5 if name == "scene" else 1.0)
    return Camera(look_at(eye, torch.tensor([0.0, -0.3 if name == "scene" else 0.0, 0.0]))[None], torch.tensor([42.0]))


def cast(mi, parts: tuple[TriangleMesh, ...], camera: Camera, size: int) -> GBuffer:
    """The G-buffers of what rays through the pixels' centres meet; constant materials, a JIT variant of Mitsuba."""
    focal = size / (2 * np.tan(np.radians(float(camera.fov_x[0])) / 2))
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    local = np.stack((x / focal, -y / focal, -np.ones_like(x)), -1).reshape(-1, 3)  # their length is the z-depth
    pose = camera.pose[0].double().numpy()
    world = local @ pose[:3, :3].T
    length = np.linalg.norm(world, axis=-1)
    depth, found = np.full(size * size, np.inf), np.zeros((size * size, 8))
    for part in parts:
        scene = mi.load_dict({"type": "scene", "mesh": part.shapes(mi)[0]})
        ray = mi.Ray3f(mi.Point3f(*pose[:3, 3].tolist()), mi.Vector3f(*(world / length[:, None]).T.astype(np.float32)))
        hit = scene.ray_intersect(ray)
        here = np.where(np.array(hit.is_valid()), np.array(hit.t) / length, np.inf)
        normal = np.array(hit.sh_frame.n).T @ pose[:3, :3]
        values = [image[:, 0, 0].double().numpy() for _, image in part.material.images()]
        buffers = np.concatenate((normal, np.broadcast_to(np.concatenate(values), (len(normal), 5))), -1)
        nearer = here < depth
        depth[nearer], found[nearer] = here[nearer], buffers[nearer]
    images = torch.tensor(np.column_stack((found, depth)).T.reshape(1, 9, size, size), dtype=torch.float32)
    normal, color, roughness, metallic, depth = images.split((3, 3, 1, 1, 1), dim=1)
    return GBuffer(color, normal, depth, roughness, metallic, mask=torch.isfinite(depth))


def denoised(radiance: torch.Tensor, surface: Surface) -> torch.Tensor:
    """Open Image Denoise, guided by base colour and normal."""
    planar = lambda values: values.permute(0, 3, 1, 2).contiguous()  # noqa: E731
    guides = GBuffer(basecolor=planar(surface.basecolor), normal=planar(surface.normal * surface.coverage))
    return denoise(radiance, guides, planar(surface.coverage))


def exposed(light: EnvironmentMap, radiance: torch.Tensor, where: torch.Tensor) -> tuple[EnvironmentMap, float]:
    """The light scaled so that the sRGB mean over ``where`` is `MEAN`."""
    low, high, pixels = 1e-4, 1e4, radiance.permute(0, 2, 3, 1)[where[:, 0]]
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float(srgb_oetf(middle * pixels).mean()) < MEAN else (low, middle)
    return EnvironmentMap(light.radiance * low, light.name), low


def psnr(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
    """Over the pixels of the mask, decibels."""
    return float(-10 * (a - b).permute(0, 2, 3, 1)[where[:, 0]].square().mean().log10())


def compare(
    name: str, roughness: float, metallic: float, lights: list[EnvironmentMap], options, variant: str, seconds: dict
) -> dict[str, list[float]]:
    """PSNR of every renderer under every light; times are added to ``seconds``."""
    mi = activate(variant)
    parts, camera, size = meshes(name, roughness, metallic), view(name), (options.size, options.size)
    buffers = cast(mi, parts, camera, options.size)
    where = max_pool2d(1 - buffers.mask.float(), 3, stride=1, padding=1) == 0
    tracer = PathTracer(Geometry(parts), samples=options.samples, variant=variant)
    renderers = {
        "splitsum": SplitSum(device="cpu"),
        "ssrt": ScreenSpaceRayTracer(device="cpu"),
        "ssrt, denoised": ScreenSpaceRayTracer(device="cpu", denoise=denoised),
    }
    found: dict[str, list[float]] = {key: [] for key in renderers}
    for light in lights:
        start = time.process_time()
        radiance = tracer.radiance(camera, size, light, camera.rotation)
        seconds.setdefault("pathtrace", []).append(time.process_time() - start)
        scaled, exposure = exposed(light, radiance, where)
        expected = srgb_oetf(radiance * exposure)
        for key, renderer in renderers.items():
            start = time.process_time()
            picture = renderer(buffers, scaled, camera=camera, rotations=camera.rotation).frames
            seconds.setdefault(key, []).append(time.process_time() - start)
            found[key].append(psnr(picture, expected, where))
    return found


def table(options, variant: str, seconds: dict) -> Iterator[str]:
    """Rows of the first table."""
    lights = panoramas(options.panoramas, options.count)
    yield f"Lights: {', '.join(light.name for light in lights)}\n"
    yield "| object | roughness | metallic | splitsum | ssrt | ssrt, denoised |\n| --- | --- | --- | --- | --- | --- |"
    for name in options.objects:
        for metallic in (0.0, 1.0):
            for roughness in options.roughness:
                found = compare(name, roughness, metallic, lights, options, variant, seconds)
                cells = " | ".join(f"{np.mean(values):.1f} ({min(values):.1f})" for values in found.values())
                yield f"| {name} | {roughness:g} | {metallic:g} | {cells} |"


def peak_of_ssrt() -> None:
    """Prints peak bytes of a 512 x 512 frame above what the process had before; for a process of its own."""
    size = 512
    ones = torch.ones(1, 1, size, size)
    normal = torch.cat((0 * ones, 0 * ones, ones), 1)
    buffers = GBuffer(0.5 * ones.expand(1, 3, -1, -1), normal, 3 * ones, 0.5 * ones, 0 * ones)
    light = EnvironmentMap(torch.rand(3, 128, 256))
    ScreenSpaceRayTracer(device="cpu")(buffers_of(buffers, 16), light)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    ScreenSpaceRayTracer(device="cpu")(buffers, light)
    seconds = time.process_time() - start
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10:.0f} {seconds:.1f}")


def buffers_of(buffers: GBuffer, size: int) -> GBuffer:
    """A corner of them."""
    return GBuffer(**{name: tensor[..., :size, :size].contiguous() for name, tensor in buffers.tensors()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panoramas", type=Path, help="a folder of .hdr or .exr files; procedural ones without it")
    parser.add_argument("--count", type=int, default=4, help="panoramas")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures, pixels")
    parser.add_argument("--samples", type=int, default=256, help="of the path tracer")
    parser.add_argument("--objects", nargs="*", default=OBJECTS, choices=OBJECTS)
    parser.add_argument("--roughness", nargs="*", type=float, default=ROUGHNESS)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak_of_ssrt()
        return
    variant = choose_variant(None)
    if variant.startswith("scalar"):
        parser.error("needs a vectorised variant of Mitsuba: install LLVM 16 or newer")
    seconds: dict[str, list[float]] = {}
    samples = f"{options.samples} samples of the path tracer"
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores used, {variant}, {options.size} px, {samples}")
    for line in table(options, variant, seconds):
        print(line, flush=True)
    print("\n| renderer | CPU seconds per frame (median) |\n| --- | --- |")
    for name, values in seconds.items():
        print(f"| {name} | {np.median(values):.2f} |")
    if not options.skip_memory:
        done = subprocess.run([sys.executable, __file__, "--peak"], capture_output=True, text=True, check=True)
        peak, took = done.stdout.split()
        print(f"\nssrt, one frame of 512 x 512 (every pixel a surface): {peak} MB at the peak, {took} CPU seconds")


if __name__ == "__main__":
    main()
