"""G-buffers' sums over first hits for `scalar_rgb`, where an integrator cannot be written in Python.

An `aov` integrator stores texture coordinates, shading frame and position of n x n first hits per pixel, at fixed places within
it; the material is then looked up here. It is also the readable reference of `tracing`.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusion_renderer.datagen.engine.material_table import look_up, material_table
from diffusion_renderer.datagen.engine.mitsuba_scene import UV_STRIDE, MitsubaScene, sensor
from diffusion_renderer.datagen.engine.tracing import MAX_OBJECTS, MAX_PATHS
from diffusion_renderer.datagen.procedural.shapes import MAX_UV
from diffusion_renderer.datagen.settings import DatasetSettings


def hit_means(built: MitsubaScene, settings: DatasetSettings) -> Float[Tensor, "frames sums height width"]:
    """The channels of `tracing.HIT_CHANNELS` of all frames; ``built`` must have been made with ``separate_uv``."""
    longest = max(1, MAX_PATHS // (settings.width * settings.height * settings.buffer_samples**2))
    return torch.cat([_run_means(built, frames, settings) for frames in built.runs(longest)])


def _run_means(built: MitsubaScene, frames: slice, settings: DatasetSettings) -> Float[Tensor, "frames sums height width"]:
    mi, n = built.mi, settings.buffer_samples
    camera = built.spec.camera[frames]
    built.stand(frames.start)
    integrator = mi.load_dict({"type": "aov", "aovs": "uv:uv,normal:sh_normal,position:position,tangent:dp_du"})
    eyes = sensor(mi, camera, settings.width * n, settings.height * n, 1, centred=True)
    film = np.array(mi.render(built.scene, sensor=eyes, integrator=integrator, spp=1, seed=0))
    film = torch.from_numpy(rearrange(film, "h (f w) c -> f h w c", f=len(camera)).copy())
    uv, normal, position, tangent = film[..., :2], film[..., 2:5], film[..., 5:8], film[..., 8:11]
    hit = normal.square().sum(-1) > 0.25
    slot = ((uv[hit][:, 0] + 0.5 * MAX_UV) / UV_STRIDE).floor().long().clamp(0, len(built.slots) - 1)
    table = material_table([item.part.material for item in built.slots])
    material = look_up(table, slot, uv[hit] - UV_STRIDE * slot[:, None] * torch.tensor([1.0, 0.0]))
    eye = camera.pose[:, None, None, :3, 3].expand_as(position)
    facing = bumped(normal[hit], tangent[hit], eye[hit] - position[hit], material[:, 5:])
    owner = torch.tensor([max(item.owner, 0) for item in built.slots])[slot]
    return _pixel_means(hit, torch.cat((material[:, :5], facing, position[hit]), -1), owner, n)


def bumped(
    normal: Float[Tensor, "hits 3"],
    tangent: Float[Tensor, "hits 3"],
    towards_eye: Float[Tensor, "hits 3"],
    local: Float[Tensor, "hits 3"],
) -> Float[Tensor, "hits 3"]:
    """The shading normal of Mitsuba's ``twosided(normalmap(...))``.

    ``local`` is given in the frame whose z axis is the interpolated normal and whose x axis lies along growing u. A surface
    seen from behind is the mirror image of its front in that frame's xy plane.
    """
    unit = torch.nn.functional.normalize
    s = unit(tangent - normal * (normal * tangent).sum(-1, keepdim=True), dim=-1)
    t = torch.linalg.cross(normal, s)
    local = unit(local, dim=-1)
    side = torch.where((normal * towards_eye).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return local[:, :1] * s + local[:, 1:2] * t + side * local[:, 2:] * normal


def _pixel_means(
    hit: Bool[Tensor, "frames rows columns"], values: Float[Tensor, "hits 11"], owner: Int[Tensor, "hits"], n: int
) -> Float[Tensor, "frames sums height width"]:
    channels = torch.zeros(*hit.shape, 12 + MAX_OBJECTS)
    ones = torch.ones(len(values), 1)
    channels[hit] = torch.cat((ones, values, torch.nn.functional.one_hot(owner, MAX_OBJECTS).float()), -1)
    return rearrange(channels, "f (h a) (w b) c -> f c h w (a b)", a=n, b=n).mean(-1)
