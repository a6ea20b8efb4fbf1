"""Mitsuba: from a `SceneSpec` to linear radiance and G-buffers.

Every scene has the same number of meshes, the same textures' sizes and one batch of cameras, so Dr.Jit compiles its kernels
once per process. The G-buffers come the same way in every variant: an `aov` integrator stores texture coordinates, shading
normal and position of many single first hits per pixel; the material is then looked up here, in the very textures that Mitsuba
rendered with, and averaged over the hits. (Mitsuba's own `eval_attribute` exists in the JIT variants only.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.types import Camera, GBuffer
from diffusion_renderer.datagen.materials import TEXTURE_SIZE, Material, constant_material
from diffusion_renderer.datagen.scenes import SLOTS, SceneObject, SceneSpec
from diffusion_renderer.datagen.settings import DatasetSettings
from diffusion_renderer.datagen.shapes import MAX_UV, Mesh
from diffusion_renderer.datagen.variant import activate, load_denoiser

# Slot k of the scene has its texture coordinate u in [2 k MAX_UV, 2 k MAX_UV + MAX_UV): as textures repeat, rendering does not
# change, and the G-buffer knows which material was hit. (The `shape_index` AOV is a registry number that differs between runs.)
_SLOT_STRIDE = 2 * MAX_UV

#: Paths in one launch; each takes a few hundred bytes while it is traced. Longer clips are rendered in groups of frames.
MAX_PATHS = 2**22


def render_radiance(
    spec: SceneSpec, radiance: Float[Tensor, "3 rows columns"], settings: DatasetSettings, variant: str, seed: int
) -> Float[Tensor, "frames 3 height width"]:
    """Path-traced linear radiance of every frame under the panorama ``radiance`` fixed to the world; noisy.

    The panorama is the only light. Radiance that meets nothing is shown as it is.
    """
    mi = activate(variant)
    scene = _build(mi, spec, radiance.numpy(), np.eye(3))
    return _trace(mi, scene, spec.camera, settings, seed)


def render_turned(
    spec: SceneSpec,
    radiance: Float[Tensor, "3 rows columns"],
    rotations: Float[Tensor, "frames 3 3"],
    settings: DatasetSettings,
    variant: str,
    seed: int,
) -> Float[Tensor, "frames 3 height width"]:
    """As `render_radiance`, but frame i shows the panorama at ``rotations[i] @ d`` in camera-space direction d."""
    mi = activate(variant)
    frames = []
    for index, rotation in enumerate(rotations):
        camera = spec.camera[index : index + 1]
        # World direction w is camera direction C^T w, which shows the panorama at R C^T w. Mitsuba looks a world direction up
        # through the inverse of to_world, hence to_world = (R C^T)^T = C R^T.
        to_world = camera.rotation[0].double().numpy() @ rotation.double().numpy().T
        scene = _build(mi, spec, radiance.numpy(), to_world)
        frames.append(_trace(mi, scene, camera, settings, seed + index))
    return torch.cat(frames)


def render_gbuffer(
    spec: SceneSpec, settings: DatasetSettings, variant: str, seed: int
) -> tuple[GBuffer, Float[Tensor, "frames 1 height width"]]:
    """G-buffers of every frame and the share of each pixel that is covered by a surface.

    A pixel is a surface's when at least half of its hits are; it then has the mean over these hits, with the normal made unit
    length again. Elsewhere all buffers are 0 and depth is +inf.
    """
    mi = activate(variant)
    scene = _build(mi, spec, np.ones((3, 16, 32), np.float32), np.eye(3))
    n = settings.buffer_samples
    integrator = mi.load_dict({"type": "aov", "aovs": "uv:uv,normal:sh_normal,position:position"})
    means, coverages = [], []
    for number, group in enumerate(_in_groups(len(spec.camera), settings.width * settings.height * n * n)):
        camera = spec.camera[group]
        sensor = _sensor(mi, camera, settings.width * n, settings.height * n, 1, buffers=True)
        hits = np.array(mi.render(scene, sensor=sensor, integrator=integrator, spp=1, seed=seed + number))
        hits = torch.from_numpy(rearrange(hits, "h (f w) c -> f h w c", f=len(camera)))
        mean, coverage = _mean_of_hits(hits, spec.objects, camera, n)
        means.append(mean)
        coverages.append(coverage)
    coverage = torch.cat(coverages)
    return _assemble(torch.cat(means), coverage, settings.fps), coverage


def _mean_of_hits(
    hits: Float[Tensor, "frames rows columns 8"], objects: tuple[SceneObject, ...], camera: Camera, n: int
) -> tuple[Float[Tensor, "frames 9 height width"], Float[Tensor, "frames 1 height width"]]:
    """Material, camera-space normal and depth averaged over the hits among each n x n sub-pixels, and the share of hits."""
    uv, normal, position = hits[..., :2], hits[..., 2:5], hits[..., 5:8]
    hit = normal.square().sum(-1) > 0.25
    material = _look_up(objects, uv, hit)
    rotation = camera.rotation
    normal = torch.einsum("fji,fhwj->fhwi", rotation, normal)
    eye = camera.pose[:, None, None, :3, 3]
    depth = -torch.einsum("fj,fhwj->fhw", rotation[:, :, 2], position - eye)
    # The parts of a sub-pixel that can see nothing must not enter the mean, whatever Mitsuba stores there.
    values = torch.cat((material, normal, depth[..., None]), -1) * hit[..., None]
    total = rearrange(values, "f (h a) (w b) c -> f c h w (a b)", a=n, b=n).sum(-1)
    count = rearrange(hit.float(), "f (h a) (w b) -> f 1 h w (a b)", a=n, b=n).sum(-1)
    return total / count.clamp_min(1), count / n**2


def _assemble(
    mean: Float[Tensor, "frames 9 height width"], coverage: Float[Tensor, "frames 1 height width"], fps: float
) -> GBuffer:
    mask = coverage >= 0.5
    basecolor, roughness, metallic, normal, depth = (mean * mask).split((3, 1, 1, 3, 1), dim=1)
    normal = torch.nn.functional.normalize(normal, dim=1)
    depth = torch.where(mask, depth, torch.full_like(depth, torch.inf))
    return GBuffer(basecolor, normal, depth, roughness, metallic, mask=mask, fps=fps)


def _look_up(
    objects: tuple[SceneObject, ...], uv: Float[Tensor, "frames rows columns 2"], hit: Bool[Tensor, "frames rows columns"]
) -> Float[Tensor, "frames rows columns 5"]:
    """Base colour, roughness, metallic at every hit: bilinear, repeating, as Mitsuba's `bitmap` reads its texels."""
    slot = ((uv[..., 0] + 0.5 * MAX_UV) / _SLOT_STRIDE).floor().long().clamp(0, len(objects) - 1)
    atlas = torch.from_numpy(
        np.stack([np.concatenate((o.material.basecolor, o.material.roughness, o.material.metallic), -1) for o in objects])
    )
    result = torch.zeros(*uv.shape[:3], 5)
    slot, uv = slot[hit], uv[hit]
    texel = (uv - _SLOT_STRIDE * slot[:, None] * torch.tensor([1.0, 0.0])) * TEXTURE_SIZE - 0.5
    low = texel.floor()
    weight = (texel - low).unbind(-1)
    x0, y0 = low.long().unbind(-1)
    found = torch.zeros(len(slot), 5)
    for dy, wy in ((0, 1 - weight[1]), (1, weight[1])):
        for dx, wx in ((0, 1 - weight[0]), (1, weight[0])):
            index = (slot * TEXTURE_SIZE + (y0 + dy) % TEXTURE_SIZE) * TEXTURE_SIZE + (x0 + dx) % TEXTURE_SIZE
            found += (wx * wy)[:, None] * atlas.view(-1, 5)[index]
    result[hit] = found
    return result


def denoise(
    noisy: Float[Tensor, "frames 3 height width"], gbuffer: GBuffer, coverage: Float[Tensor, "frames 1 height width"]
) -> Float[Tensor, "frames 3 height width"]:
    """Open Image Denoise frame by frame, guided by base colour and normal; the noisy frames where it cannot be loaded.

    Pixels that, with their neighbours, see only the panorama have no noise and are kept.
    """
    oidn = load_denoiser()
    if oidn is None:
        return noisy
    clean = []
    for color, albedo, normal in zip(noisy, gbuffer.basecolor, gbuffer.normal, strict=True):
        images = [np.ascontiguousarray(rearrange(image.numpy(), "c h w -> h w c")) for image in (color, albedo, normal)]
        result = oidn.denoise(images[0], albedo=images[1], normal=images[2], hdr=True, clean_aux=True)
        clean.append(rearrange(torch.from_numpy(np.array(result)), "h w c -> c h w"))
    near_surface = torch.nn.functional.max_pool2d(coverage, 3, stride=1, padding=1) > 0
    return torch.where(near_surface, torch.stack(clean), noisy).clamp_min(0.0)


# --- building Mitsuba's objects ---------------------------------------------------------------------------------------


def _build(mi: Any, spec: SceneSpec, radiance: Float[np.ndarray, "3 rows columns"], to_world: Float[np.ndarray, "3 3"]) -> Any:
    scene: dict[str, Any] = {
        "type": "scene",
        "light": {
            "type": "envmap",
            "bitmap": mi.Bitmap(_envmap_rows(rearrange(radiance, "c h w -> h w c"))),
            "to_world": mi.ScalarTransform4f(_homogeneous(to_world)),
        },
    }
    for slot, item in enumerate((*spec.objects, *_fillers(spec))):
        scene[f"shape{slot}"] = _mesh(mi, item.mesh, item.material, slot)
    return mi.load_dict(scene, parallel=False)


def _fillers(spec: SceneSpec) -> list[SceneObject]:
    """Invisibly small triangles inside the last object, so that every scene has `SLOTS` meshes."""
    inside = spec.objects[-1].mesh.positions.mean(0)
    corners = inside + 1e-5 * np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    mesh = Mesh(corners, np.tile([0.0, 0, 1], (3, 1)), np.zeros((3, 2)), np.array([[0, 1, 2]]), "filler")
    return [SceneObject(mesh, constant_material((0.5, 0.5, 0.5), 1.0, 0.0))] * (SLOTS - len(spec.objects))


def _envmap_rows(image: Float[np.ndarray, "rows columns 3"]) -> Float[np.ndarray, "more columns 3"]:
    """Rows for Mitsuba's `envmap`, which has its first row at the pole itself and its last at the other pole.

    A panorama's rows have their centres at (j + 0.5) / H; 2 H + 1 rows at k / (2 H) hold these and, between them, their means,
    so that Mitsuba's linear interpolation gives exactly that of the panorama.
    """
    padded = np.concatenate((image[:1], image, image[-1:]))
    rows = np.empty((2 * len(image) + 1, *image.shape[1:]), np.float32)
    rows[1::2] = image
    rows[::2] = 0.5 * (padded[:-1] + padded[1:])
    return rows


def _homogeneous(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4 4"]:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    return matrix


def _mesh(mi: Any, mesh: Mesh, material: Material, slot: int) -> Any:
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(
        {
            "type": "principled",
            "base_color": _texture(mi, material.basecolor),
            "roughness": _texture(mi, material.roughness),
            "metallic": _texture(mi, material.metallic),
        }
    )
    result = mi.Mesh(
        f"slot{slot}",
        len(mesh.positions),
        len(mesh.faces),
        has_vertex_normals=True,
        has_vertex_texcoords=True,
        props=properties,
    )
    parameters = mi.traverse(result)
    uv = mesh.uv + np.array([_SLOT_STRIDE * slot, 0.0])
    parameters["vertex_positions"] = mesh.positions.astype(np.float32).ravel()
    parameters["vertex_normals"] = mesh.normals.astype(np.float32).ravel()
    parameters["vertex_texcoords"] = uv.astype(np.float32).ravel()
    parameters["faces"] = mesh.faces.astype(np.uint32).ravel()
    parameters.update()
    return result


def _texture(mi: Any, image: Float[np.ndarray, "size size channels"]) -> dict[str, Any]:
    # `raw`: the numbers are what they are, no colour conversion.
    return {"type": "bitmap", "bitmap": mi.Bitmap(np.ascontiguousarray(image, np.float32)), "raw": True, "wrap_mode": "repeat"}


def _sensor(mi: Any, camera: Camera, width: int, height: int, samples: int, buffers: bool = False) -> Any:
    """All frames side by side on one film, so that a clip is one launch."""
    sensor: dict[str, Any] = {
        "type": "batch",
        "film": {
            "type": "hdrfilm",
            "width": width * len(camera),
            "height": height,
            "rfilter": {"type": "box"},  # neighbouring pixels stay independent, as the denoiser expects
            "pixel_format": "rgb",
            "component_format": "float32",
        },
        "sampler": {"type": "independent", "sample_count": samples},
    }
    if buffers:  # sub-pixels are hit in their centres: straight edges stay straight, and there is no noise at all
        sensor["sampler"] = {"type": "stratified", "sample_count": 1, "jitter": False}
    # Mitsuba's camera looks along +z with +x to the left; ours along -z with +x to the right.
    turn = np.diag([-1.0, 1.0, -1.0, 1.0])
    for index, (pose, fov) in enumerate(zip(camera.pose, camera.fov_x, strict=True)):
        sensor[f"frame{index:04d}"] = {
            "type": "perspective",
            "fov": float(fov),
            "fov_axis": "x",
            "near_clip": 1e-3,
            "far_clip": 1e4,
            "to_world": mi.ScalarTransform4f(pose.double().numpy() @ turn),
        }
    return mi.load_dict(sensor)


def _in_groups(frames: int, per_frame: int) -> Iterator[slice]:
    """Consecutive frames that go into one launch, whose paths must fit into memory together."""
    group = max(1, MAX_PATHS // per_frame)
    return (slice(start, start + group) for start in range(0, frames, group))


def _trace(mi: Any, scene: Any, camera: Camera, settings: DatasetSettings, seed: int) -> Float[Tensor, "frames 3 height width"]:
    integrator = mi.load_dict({"type": "path", "max_depth": settings.depth, "rr_depth": settings.depth + 1})
    groups = []
    for number, group in enumerate(_in_groups(len(camera), settings.width * settings.height * settings.samples)):
        part = camera[group]
        sensor = _sensor(mi, part, settings.width, settings.height, settings.samples)
        film = np.array(mi.render(scene, sensor=sensor, integrator=integrator, spp=settings.samples, seed=seed + number))
        groups.append(torch.from_numpy(rearrange(film, "h (f w) c -> f c h w", f=len(part)).copy()))
    frames = torch.cat(groups)
    return torch.nan_to_num(frames, nan=0.0, posinf=65504.0, neginf=0.0).clamp_min(0.0)
