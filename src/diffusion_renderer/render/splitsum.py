"""Split-sum shading: filtered panoramas times an integrated BRDF (Karis 2013, "Real Shading in Unreal Engine 4").

Every pixel is lit by the whole panorama as if nothing else were there: no shadows, no light from one surface to another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import dot, unit
from diffusion_renderer.core.sources import GBufferSource
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.light import camera_fixed, sample_panorama
from diffusion_renderer.render.irradiance import diffuse_radiance, diffuse_stack
from diffusion_renderer.render.lights import split_lights
from diffusion_renderer.render.lobes import lobe_table, mirrored
from diffusion_renderer.render.prefilter import PanoramaStack, glossy_stack, level_of
from diffusion_renderer.render.settings import ClassicalRenderer, Progress
from diffusion_renderer.render.surface import Surface, surfaces

#: Pixels shaded at once: about 100 MB of temporaries.
CHUNK = 2**18
#: Below the first roughness a surface mirrors the shape of bright spots, so they are not lights; from the second on they are.
LIGHTS_FROM, LIGHTS_TO = 0.12, 0.2
#: Cosines and sines are not taken for smaller.
_EDGE = 1e-3


class SplitSum(ClassicalRenderer):
    """Renders G-buffers under a panorama by split-sum shading; a forward renderer (see `pipelines.ForwardRenderer`).

    On a convex object the diffuse lobe is exact up to interpolation. The specular lobe is cut in ``along * across`` symmetric
    pieces, and the brightest spots of the panorama are lit with the BRDF itself; ``along=1, across=1, lights=0`` is the
    classical form with one look-up, in the dominant direction of the lobe (Lagarde and de Rousiers 2014, "Moving Frostbite to
    Physically Based Rendering"). It cannot do shadows, light between surfaces, nearby lights. Deterministic; differentiable in
    every buffer and the panorama.

    Parameters
    ----------
    device : where it computes; None for a GPU where there is one.
    along, across : pieces of the specular lobe in the plane of incidence and sideways; ``across`` is 1 or even.
    lights : bright spots of the panorama that are lights of their own for surfaces of some roughness; see `lights`.
    """

    def __init__(self, device: str | torch.device | None = None, along: int = 6, across: int = 4, lights: int = 64) -> None:
        if along < 1 or across < 1 or (across > 1 and across % 2) or lights < 0:
            raise InputError(
                "pieces of the lobe: 1 or more along, 1 or an even number across; 0 or more lights",
                f"{along}, {across}, {lights}",
                "correct them",
            )
        self.device, self.along, self.across, self.lights = find_device(device), along, across, lights

    @torch.no_grad()
    def _shade(self, shading: Shading, part: GBuffer, camera: Camera | None, rotations: Tensor, relative: bool) -> Clip:
        surface = surfaces(_moved(part, self.device), camera, relative=relative)
        return Clip(srgb_oetf(shading(surface, rotations)).cpu(), fps=part.fps, name=part.name)

    def stream(
        self,
        gbuffer: GBufferSource,
        light: EnvironmentMap,
        *,
        camera: Camera | None = None,
        rotations: Float[Tensor, "frames 3 3"] | None = None,
        progress: Progress | None = None,
        **_diffusion_options: Any,
    ) -> Iterator[Clip]:
        """The shot under ``light``, a few frames at a time.

        Parameters
        ----------
        gbuffer : in memory or from files; must have every buffer of ``settings.buffers``.
        camera : of the G-buffers, for its field of view; None for `DEFAULT_FOV`.
        rotations : R of each frame: camera-space direction d sees the panorama at ``R d``. None is a light fixed to the camera.
        progress : called as ``progress(frames done, frames, "rendering")``.

        Options of diffusion renderers (steps, guidance, lora_scale, seed, size) mean nothing here and are ignored.
        Raises InputError for missing buffers, no frames, a camera or rotations of another number.
        """
        frames = len(gbuffer)
        gbuffer.require(self.settings.buffers)
        if frames == 0:
            raise InputError("G-buffers of at least one frame", f"{gbuffer.name} without frames", "give others")
        rotations = camera_fixed(frames) if rotations is None else rotations
        for what, number in (("rotations", len(rotations)), ("camera poses", frames if camera is None else len(camera))):
            if number != frames:
                raise InputError(f"{frames} {what}, one per frame", str(number), "give one for every frame")

        def pieces() -> Iterator[Clip]:
            relative, done = gbuffer.has_relative_depth(), 0
            with torch.no_grad():
                shading = self.shading(light)
            width, height = gbuffer.size
            for part in gbuffer.chunks(max(1, CHUNK // (width * height))):
                here = slice(done, done + len(part))
                yield self._shade(shading, part, None if camera is None else camera[here], rotations[here], relative)
                done += len(part)
                if progress is not None:
                    progress(done, frames, "rendering")

        return pieces()

    def radiance(
        self, surface: Surface, light: EnvironmentMap, rotations: Float[Tensor, "frames 3 3"]
    ) -> Float[Tensor, "frames 3 height width"]:
        """Linear radiance that the camera sees, the panorama in the background; differentiable, on the surface's device."""
        return self.shading(light, surface.normal.device)(surface, rotations)

    def shading(
        self, light: EnvironmentMap, device: torch.device | None = None, behind: EnvironmentMap | None = None
    ) -> Shading:
        """What depends on the light alone: for many surfaces under one light. ``behind`` is the background; None: it."""
        return Shading(light, self.along, self.across, self.lights, device or self.device, behind)


class Shading:
    """One light, filtered, and the tables: radiance of any surface under it. See `SplitSum`."""

    def __init__(
        self,
        light: EnvironmentMap,
        along: int,
        across: int,
        lights: int,
        device: torch.device,
        behind: EnvironmentMap | None = None,
    ) -> None:
        self.light = EnvironmentMap(light.radiance.to(device), light.name)
        self.behind = self.light if behind is None else EnvironmentMap(behind.radiance.to(device), behind.name)
        self.lights, rest = split_lights(self.light, lights)
        # The whole panorama for smooth surfaces; what remains without the lights, which is coarser, for rough ones.
        self.smooth = glossy_stack(self.light)
        self.rough = glossy_stack(rest) if lights else self.smooth
        self.diffuse = diffuse_stack(self.light)
        self.table = lobe_table(along, across).to(self.light.radiance)
        self.sides = (1, -1) if mirrored(across) else (1,)

    def __call__(self, surface: Surface, rotations: Float[Tensor, "frames 3 3"]) -> Float[Tensor, "frames 3 height width"]:
        """Linear radiance that the camera sees."""
        frames, height, width = surface.depth.shape
        back = rotations.to(surface.normal).mT
        normal, view = ((axis.flatten(1, 2) @ back).flatten(0, 1) for axis in (surface.normal, surface.view))
        material = [getattr(surface, name).flatten(0, 2) for name in ("basecolor", "roughness", "metallic", "coverage")]
        chunks = [tensor.split(CHUNK) for tensor in (normal, view, *material)]
        shaded = torch.cat([self._pixels(*chunk) for chunk in zip(*chunks, strict=True)])
        return rearrange(shaded, "(f h w) c -> f c h w", f=frames, h=height, w=width)

    def _pixels(
        self,
        normal: Float[Tensor, "points 3"],
        view: Float[Tensor, "points 3"],
        basecolor: Float[Tensor, "points 3"],
        roughness: Float[Tensor, "points 1"],
        metallic: Float[Tensor, "points 1"],
        coverage: Float[Tensor, "points 1"],
    ) -> Float[Tensor, "points 3"]:
        """Radiance of pixels whose directions are the panorama's."""
        seen = coverage[:, 0] > 0
        background = sample_panorama(self.behind, -view[~seen])
        picture = torch.zeros_like(view).masked_scatter(~seen[:, None], background)
        # Indices, and not the mask, which every look-up would turn into indices anew.
        places = seen.nonzero()[:, 0]
        normal, view, basecolor, roughness, metallic = (t[places] for t in (normal, view, basecolor, roughness, metallic))
        diffuse = (1 - metallic) * basecolor * diffuse_radiance(self.diffuse, normal, view, roughness)
        share = ((roughness - LIGHTS_FROM) / (LIGHTS_TO - LIGHTS_FROM)).clamp(0.0, 1.0)
        specular = torch.zeros_like(diffuse)
        for part, weight in ((self._of_whole, 1 - share), (self._of_lights, share)):
            need = (weight[:, 0] > 0).nonzero()[:, 0]
            values = part(normal[need], view[need], basecolor[need], roughness[need], metallic[need])
            specular = specular.index_put((need,), weight[need] * values, accumulate=True)
        return picture.masked_scatter(seen[:, None], diffuse + specular)

    def _of_whole(self, *point: Tensor) -> Tensor:
        """Specular radiance, from the filtered panorama alone."""
        return self._specular(self.smooth, *point)

    def _of_lights(self, *point: Tensor) -> Tensor:
        """Specular radiance, from the bright spots and the filtered rest."""
        return self._specular(self.rough, *point) + self.lights.reflected(*point)

    def _specular(
        self,
        stack: PanoramaStack,
        normal: Float[Tensor, "points 3"],
        view: Float[Tensor, "points 3"],
        basecolor: Float[Tensor, "points 3"],
        roughness: Float[Tensor, "points 1"],
        metallic: Float[Tensor, "points 1"],
    ) -> Float[Tensor, "points 3"]:
        """The specular lobe, piece by piece: integrated BRDF times the panorama filtered about the piece's direction."""
        nv = dot(normal, view).clamp(_EDGE, 1.0)
        entries = read_table(self.table, roughness, nv)
        mirror = 2 * nv * normal - view
        # In the plane of incidence, at right angles to `mirror`. At normal incidence there is no such plane: both become 0.
        sine = torch.sqrt((1 - nv.square()).clamp_min(_EDGE**2))
        inwards, sideways = (normal - nv * mirror) / sine, torch.linalg.cross(view, normal) / sine
        total = torch.zeros_like(basecolor)
        for piece in entries.unbind(1):
            ahead, inside, aside, dielectric, scale, bias = piece[..., None].unbind(1)
            factor = (1 - metallic) * dielectric + metallic * (basecolor * scale + bias)
            spread = 1 - dot(piece[:, :3], piece[:, :3])[:, 0].clamp_min(1e-24).sqrt()
            level = level_of(spread.clamp_min(0.0))
            for side in self.sides:
                towards = ahead * mirror + inside * inwards + side * aside * sideways
                total = total + factor * stack.read(unit(towards), level)
        return total


def read_table(
    table: Float[Tensor, "pieces entries rows columns"], roughness: Float[Tensor, "points 1"], nv: Float[Tensor, "points 1"]
) -> Float[Tensor, "points pieces entries"]:
    """`lobe_table` between its nodes, linearly."""
    grid = torch.cat((2 * nv.sqrt() - 1, 2 * roughness - 1), dim=-1)[None, None]
    maps = rearrange(table, "p e r c -> 1 (p e) r c").to(nv)
    value = torch.nn.functional.grid_sample(maps, grid, padding_mode="border", align_corners=True)
    return rearrange(value, "1 (p e) 1 points -> points p e", e=table.shape[1])


def _moved(gbuffer: GBuffer, device: torch.device) -> GBuffer:
    return GBuffer(**{name: tensor.to(device) for name, tensor in gbuffer.tensors()}, fps=gbuffer.fps, name=gbuffer.name)
