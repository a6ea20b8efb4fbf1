"""From G-buffers to what shading needs in every pixel: a point, a frame of directions, a material."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.encoding import LEAST_NORMAL, surface_mask
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import dot, lengths, unit
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Camera, GBuffer

#: Horizontal field of view in degrees where no camera is known.
DEFAULT_FOV = 50.0
#: z-depths, in scene units, that relative depth 0 and 1 are taken for.
ASSUMED_NEAR, ASSUMED_FAR = 1.0, 3.0
#: No normal leans further away from the viewer than this cosine.
MIN_COSINE = 1e-3


@dataclass(frozen=True)
class Surface:
    """What every pixel of a clip shows, in its frame's camera space (OpenGL: +x right, +y up, looking down -z).

    Attributes
    ----------
    position : scene units; pixels without a hit hold some finite value.
    normal : unit, never facing away from the viewer: ``normal . view >= MIN_COSINE`` where something was hit.
    view : unit, from the surface to the camera; valid for the background too.
    basecolor, roughness, metallic : in [0, 1].
    coverage : 1 where a surface is seen, 0 in the background.
    depth : z-depth in scene units, +inf in the background.
    focal : in pixels, of square pixels with the principal point in the middle of the picture.
    """

    position: Float[Tensor, "frames height width 3"]
    normal: Float[Tensor, "frames height width 3"]
    view: Float[Tensor, "frames height width 3"]
    basecolor: Float[Tensor, "frames height width 3"]
    roughness: Float[Tensor, "frames height width 1"]
    metallic: Float[Tensor, "frames height width 1"]
    coverage: Float[Tensor, "frames height width 1"]
    depth: Float[Tensor, "frames height width"]
    focal: Float[Tensor, " frames"]


def surfaces(gbuffer: GBuffer, camera: Camera | None = None, *, relative: bool | None = None) -> Surface:
    """The surface in every pixel of ``gbuffer``, differentiable in all its buffers.

    For the background see `core.encoding.surface_mask`. Relative depth, as inverse renderers return it, has lost the scene's
    scale and offset: it is spread from `ASSUMED_NEAR` to `ASSUMED_FAR`, so positions have a plausible shape but no right size,
    and what depends on them (shadows, reflections of the screen) is a guess. Without a camera the field of view is
    `DEFAULT_FOV`.

    Parameters
    ----------
    camera : only its fields of view matter here, one per frame.
    relative : whether the depth is relative; None asks these G-buffers (`GBuffer.has_relative_depth`). A clip rendered in
        pieces should ask the whole clip and say.

    Raises InputError for a missing buffer or a camera of another number of frames.
    """
    gbuffer.require(DEFAULT_BUFFERS)
    frames, (width, height) = len(gbuffer), gbuffer.size
    if camera is not None and len(camera) != frames:
        raise InputError(f"a camera of {frames} frames", f"one of {len(camera)}", "give one pose for every frame")
    basecolor, normal, roughness, metallic = (
        rearrange(getattr(gbuffer, name), "f c h w -> f h w c") for name in ("basecolor", "normal", "roughness", "metallic")
    )
    # Operations over its last axis are several times slower while the values of a pixel lie apart.
    normal = normal.contiguous()
    fov = basecolor.new_full((frames,), DEFAULT_FOV) if camera is None else camera.fov_x.to(basecolor)
    focal = width / (2 * torch.tan(torch.deg2rad(fov) / 2))
    ray = pixel_rays(height, width, focal)
    view = -unit(ray)
    relative = gbuffer.has_relative_depth() if relative is None else relative
    depth, seen = metric_depth(gbuffer, relative)
    length = lengths(gbuffer.normal, dim=1)[:, 0]
    towards = torch.where(seen[..., None], normal / length.clamp_min(LEAST_NORMAL)[..., None], view)
    return Surface(
        position=ray * torch.where(seen, depth, 1.0)[..., None],
        normal=facing(unit(towards), view),
        view=view,
        basecolor=basecolor.clamp(0.0, 1.0),
        roughness=roughness.clamp(0.0, 1.0),
        metallic=metallic.clamp(0.0, 1.0),
        coverage=seen[..., None].to(basecolor),
        depth=torch.where(seen, depth, torch.inf),
        focal=focal,
    )


def pixel_rays(height: int, width: int, focal: Float[Tensor, " frames"]) -> Float[Tensor, "frames {height} {width} 3"]:
    """Camera-space rays through the pixels' centres, of z = -1 (not unit): times the z-depth they are positions."""
    x = (torch.arange(width, device=focal.device, dtype=focal.dtype) + 0.5 - width / 2) / focal[:, None]
    y = -(torch.arange(height, device=focal.device, dtype=focal.dtype) + 0.5 - height / 2) / focal[:, None]
    shape = (len(focal), height, width)
    return torch.stack((x[:, None, :].expand(shape), y[:, :, None].expand(shape), x.new_full(shape, -1.0)), dim=-1)


def facing(normal: Float[Tensor, "*shape 3"], view: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
    """The normal itself, or, where it faces away from ``view``, the nearest one that does not (to within `MIN_COSINE`).

    Interpolated, normal-mapped and predicted normals do face away near outlines; a BRDF is not defined there.
    """
    cosine = dot(normal, view)
    # They are few, so the others are left alone.
    away = (cosine[..., 0] < MIN_COSINE).nonzero(as_tuple=True)
    found, view = normal[away], view[away]
    # A normal exactly along -view has no nearest one, any tangent does; adding a fixed small vector picks one.
    bent = found - cosine[away] * view + 1e-6 * view.roll(1, dims=-1)
    bent = unit(bent - dot(bent, view) * view)
    return normal.index_put(away, unit(bent + 2 * MIN_COSINE * view))


def metric_depth(
    gbuffer: GBuffer, relative: bool
) -> tuple[Float[Tensor, "frames height width"], Bool[Tensor, "frames height width"]]:
    """Metric z-depth (1 where nothing is seen) and where a surface is seen."""
    depth, seen = gbuffer.depth[:, 0], surface_mask(gbuffer, relative)[:, 0]
    # Replaced before anything is computed with it: infinity times a zero gradient would be NaN.
    depth = torch.where(seen, depth, 1.0)
    return (ASSUMED_NEAR + depth * (ASSUMED_FAR - ASSUMED_NEAR) if relative else depth), seen
