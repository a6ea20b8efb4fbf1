"""A clip under one of its lights, and the groups of pixels that figures are broken down by."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.editing import distinct_names
from diffusion_renderer.evaluation.metrics.depth import as_relative

#: A pixel is of a metal from this metallic on; a surface is smooth below the first roughness and rough from the second on.
METAL, SMOOTH, ROUGH = 0.5, 0.3, 0.6


@dataclass(frozen=True)
class View:
    """A clip as it looks under one light.

    Attributes
    ----------
    sample : the clip with everything that its lights share.
    light : short name of the light, distinct among the clip's.
    clip : display-referred frames under it.
    environment : its panorama, exposure included; None where the data set has none.
    rotations : R of each frame: camera-space direction d shows the panorama at ``R d``; None without camera poses.
    """

    sample: Sample
    light: str
    clip: Clip
    environment: EnvironmentMap | None
    rotations: Float[Tensor, "frames 3 3"] | None

    @property
    def name(self) -> str:
        """The clip's name, whatever the light."""
        return self.sample.clip.name

    def lit(self) -> tuple[EnvironmentMap, Float[Tensor, "frames 3 3"]]:
        """The panorama and its rotations. Raises InputError when the data has none."""
        if self.environment is None or self.rotations is None:
            missing = "light" if self.environment is None else "camera poses"
            raise InputError("clips with a light and camera poses", f"no {missing} in {self.name}", "evaluate `inverse` only")
        return self.environment, self.rotations


def views(sample: Sample) -> tuple[View, ...]:
    """The clip under each of its lights, in the order in which they are stored."""
    camera = sample.camera
    base = None if camera is None else camera.rotation
    lights = [(sample.clip, sample.environment, None if camera is None else sample.lookup)]
    for other in sample.relit:
        turn = base if base is None or other.light_rotation is None else other.light_rotation @ base
        lights.append((other.clip, other.environment, turn))
    names = distinct_names([_short(environment) for _, environment, _ in lights])
    return tuple(View(sample, name, *light) for name, light in zip(names, lights, strict=True))


def _short(environment: EnvironmentMap | None) -> str:
    """A name that can be part of a file's: "procedural sky" is "sky"."""
    if environment is None:
        return "light"
    return re.sub(r"[^\w.+-]+", "-", environment.name.removeprefix("procedural ")).strip("-") or "light"


def surface_mask(gbuffer: GBuffer, clip: Clip) -> Bool[Tensor, "frames 1 height width"]:
    """Where the camera saw a surface; everywhere when the data does not tell."""
    if gbuffer.mask is not None:
        return gbuffer.mask
    if gbuffer.depth is not None:
        return torch.isfinite(gbuffer.depth)
    return torch.ones_like(clip.frames[:, :1], dtype=torch.bool)


def materials(gbuffer: GBuffer) -> dict[str, Bool[Tensor, "frames 1 height width"]]:
    """Pixels by what they really are: metal or dielectric, smooth or rough; as far as the ground truth has these buffers."""
    groups: dict[str, Tensor] = {}
    if gbuffer.metallic is not None:
        groups |= {"metal": gbuffer.metallic >= METAL, "dielectric": gbuffer.metallic < METAL}
    if gbuffer.roughness is not None:
        groups |= {"smooth": gbuffer.roughness < SMOOTH, "rough": gbuffer.roughness >= ROUGH}
    return groups


def compared(gbuffer: GBuffer, name: str) -> Float[Tensor, "frames channels height width"]:
    """A buffer as it is compared: base colour sRGB-encoded, normals as vectors, depth relative, the others as they are.

    Depth that lies in [0, 1] is not stretched (see `metrics.depth.as_relative`); +inf is background, 1. Other values that are
    not finite are nan, whatever the encoding makes of them: metrics must see them.
    """
    value = getattr(gbuffer, name)
    broken = value.isnan() | (value.isinf() & ~((name == "depth") & (value > 0)))
    if name in ("normal", "depth"):
        encoded = value if name == "normal" else as_relative(value)
    else:
        encoded = encode_buffer(name, value)
    return torch.where(broken, torch.full_like(encoded, torch.nan), encoded)
