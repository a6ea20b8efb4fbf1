"""The picture of a classical renderer, which a diffusion renderer may be given beside the G-buffers."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import fields
from functools import partial

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.panorama import average_panorama
from diffusion_renderer.core.resize import resize
from diffusion_renderer.core.store import BoundedStore, content_key, tensor_bytes
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Camera, EnvironmentMap, GBuffer
from diffusion_renderer.light import sample_panorama
from diffusion_renderer.render.filtering import cross_bilateral
from diffusion_renderer.render.splitsum import SplitSum
from diffusion_renderer.render.ssrt import ScreenSpaceRayTracer
from diffusion_renderer.render.surface import Surface, metric_depth, surfaces

#: The classical renderers whose picture can be given.
PRIORS = ("splitsum", "ssrt")
#: Rows of the panorama that the picture is made with: filtering it takes most of the time. On eight rendered clips of 128
#: pixels 32 rows were 0.1 dB below 64 on average.
ROWS = 64
#: Bright spots of the panorama that light rough surfaces as lights of their own. On 32 rendered stills of 128 pixels 16 of them
#: were 0.5 dB above none; more pieces of the specular lobe changed nothing.
LIGHTS = 16
#: Screen-space ray tracing: rays per pixel, steps of each, thickness of things, bounces, rows of the panorama, passes of the
#: filter. On 19 rendered stills of 128 pixels (split-sum 28.4 dB) 32 rays gave 32.9 dB in 0.45 s a frame, 16 rays 32.6 in half
#: the time, unfiltered 28.8, with one pass 32.4, with a thickness of 0.1 32.5. 24 steps brought nothing.
SAMPLES, STEPS, THICKNESS, BOUNCES, TRACED_ROWS, PASSES = 32, 12, 0.05, 2, 128, 2
#: Pixels of the pictures that rays are traced for; larger ones are given the difference that the rays make, scaled up.
TRACED_AREA = 128 * 128
#: A picture up to this many times as large is traced as it is.
TRACED_MARGIN = 1.5
#: What a pixel's coverage counts beside that of its two neighbours, in either direction: at outlines a pixel that a surface was
#: seen in shows some of the background. On 32 rendered stills 0.09 dB (split-sum 0.08) better than none, on 24 with estimated
#: buffers 0.13 dB; (1, 2, 1) 0.03 and 0.14. Pixels outside are left alone: where masks are true, nothing was seen there.
OUTLINE = (1 / 6, 4 / 6, 1 / 6)
#: Bytes of traced differences that are kept, 64 frames of 128 x 128 and more: the picture that a network is given and the large
#: one that it changes are made some frames apart, and the same rays serve both.
KEPT = 2**24
#: The brightest radiance of a picture that is not cut at white.
BURNT = 16.0


class Prior:
    """Pictures of a classical renderer under one light, reduced to what can be afforded for every frame.

    They have what a network of few steps and small latents finds hard: the light's colour and direction on every normal, sharp
    edges. ``splitsum`` lacks shadows, light between surfaces, and the shape of glossy lobes. ``ssrt`` has, where depth is
    metric, those of them that the picture can tell of: the difference between traced and split-sum pictures, which is smoother
    than either and therefore filtered, is added to the latter. Where depth is relative, as that of an inverse renderer,
    there is no scale to trace rays with, and ``ssrt`` is ``splitsum``. What is missing is left for the network.

    Parameters
    ----------
    name : one of `PRIORS`.
    light : filtered once, here.
    """

    def __init__(self, name: str, light: EnvironmentMap) -> None:
        check_name("classical renderer for a prior", name, PRIORS)
        coarse = EnvironmentMap(average_panorama(light.radiance.float(), ROWS, 2 * ROWS), light.name)
        with torch.no_grad():
            # What lies behind is shown, not filtered, so it is read from the panorama as it is.
            behind = EnvironmentMap(light.radiance.float(), light.name)
            self._shading = SplitSum(device="cpu", along=1, across=1, lights=LIGHTS).shading(coarse, behind=behind)
        self._behind = EnvironmentMap(behind.radiance.cpu(), light.name)
        self._traced = Traced(light) if name == "ssrt" else None

    @torch.no_grad()
    def __call__(
        self,
        gbuffer: GBuffer,
        camera: Camera | None,
        rotations: Float[Tensor, "frames 3 3"],
        size: tuple[int, int] | None = None,
        relative: bool | None = None,
        uncut: bool = False,
    ) -> Float[Tensor, "frames 3 height width"]:
        """The frames, sRGB in [0, 1], on the CPU, the panorama behind what was hit.

        Parameters
        ----------
        camera : of these frames, for the field of view; None for `surface.DEFAULT_FOV`.
        rotations : R of each frame: camera-space direction d sees the panorama at ``R d``.
        size : (width, height) of the pictures; None for that of the G-buffers. The aspect ratio must be the G-buffers'.
        relative : whether depth is relative; None asks these frames, which is not enough where they are part of a clip.
        uncut : leave what is brighter than white as it is, up to radiance `BURNT`, but for outlines and where rays are traced.

        Raises InputError for missing buffers and for rotations of another number.
        """
        if len(rotations) != len(gbuffer):
            raise InputError(f"{len(gbuffer)} rotations, one per frame", str(len(rotations)), "give one for every frame")
        on_cpu = GBuffer(**{name: tensor.cpu() for name, tensor in gbuffer.tensors()}, fps=gbuffer.fps, name=gbuffer.name)
        relative = gbuffer.has_relative_depth() if relative is None else relative
        traced = self._traced is not None and not relative
        if size is not None and size != gbuffer.size:
            on_cpu.require(DEFAULT_BUFFERS)
            on_cpu, relative = _smaller(on_cpu, size, relative), False
        seen, turns = surfaces(on_cpu, camera, relative=relative), rotations.float().cpu()
        linear = self._shading(seen, turns).clamp(0.0, BURNT if uncut else 1.0)
        pictures = srgb_oetf(linear)
        if uncut:
            # The curve goes on beyond white; `srgb_oetf` ends there.
            pictures = torch.where(linear > 1, 1.055 * linear.pow(1 / 2.4) - 0.055, pictures)
        if traced:
            pictures = (pictures + self._change(on_cpu, seen, pictures, camera, turns)).clamp(0.0, 1.0)
        return self._outlined(pictures, seen, turns)

    def _change(
        self, gbuffer: GBuffer, seen: Surface, pictures: Tensor, camera: Camera | None, turns: Float[Tensor, "frames 3 3"]
    ) -> Float[Tensor, "frames 3 height width"]:
        """What traced rays change of split-sum ``pictures``, made of ``seen``, which are the surfaces of ``gbuffer``."""
        height, width = pictures.shape[-2:]
        scale = math.sqrt(TRACED_AREA / (height * width))
        if height * width <= TRACED_MARGIN * TRACED_AREA:
            return self._traced.change(seen, pictures, turns)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = surfaces(_smaller(gbuffer, size, False), camera, relative=False)
        base = srgb_oetf(self._shading(small, turns).clamp(0.0, 1.0))
        coverage = small.coverage.movedim(-1, 1)
        change = self._traced.change(small, base, turns)
        # The background's zeros must not bleed into edges.
        share = resize(coverage, (width, height)).clamp_min(1e-3)
        return resize(change, (width, height)) / share * seen.coverage.movedim(-1, 1)

    def _outlined(
        self, pictures: Float[Tensor, "frames 3 height width"], seen: Surface, turns: Float[Tensor, "frames 3 3"]
    ) -> Float[Tensor, "frames 3 height width"]:
        """The pictures with what lies behind let through at the outlines of what was hit; in place."""
        coverage = seen.coverage[..., 0]
        kernel = coverage.new_tensor(OUTLINE)
        padded = F.pad(coverage[:, None], (1, 1, 1, 1), mode="replicate")
        share = F.conv2d(padded, (kernel[:, None] * kernel)[None, None])[:, 0]
        frame, row, column = ((coverage > 0) & (share < 1 - 1e-4)).nonzero(as_tuple=True)
        if len(frame) == 0:
            return pictures
        directions = einsum(turns[frame], -seen.view[frame, row, column], "n i j, n j -> n i")
        own, share = srgb_eotf(pictures[frame, :, row, column]), share[frame, row, column, None]
        mixed = share * own + (1 - share) * sample_panorama(self._behind, directions)
        pictures[frame, :, row, column] = srgb_oetf(mixed.clamp(0.0, 1.0))
        return pictures


class Traced:
    """Screen-space rays under one light, for what they change of a split-sum picture."""

    def __init__(self, light: EnvironmentMap) -> None:
        radiance = light.radiance.float().cpu()
        if radiance.shape[-2] > TRACED_ROWS:
            radiance = average_panorama(radiance, TRACED_ROWS, 2 * TRACED_ROWS)
        self._light = EnvironmentMap(radiance, light.name)
        self._tracer = ScreenSpaceRayTracer(SAMPLES, steps=STEPS, thickness=THICKNESS, bounces=BOUNCES, device="cpu")
        self._kept: BoundedStore[Tensor] = BoundedStore(KEPT, tensor_bytes)

    @torch.no_grad()
    def change(
        self, seen: Surface, pictures: Float[Tensor, "frames 3 height width"], rotations: Float[Tensor, "frames 3 3"]
    ) -> Float[Tensor, "frames 3 height width"]:
        """Difference of sRGB values between traced and split-sum ``pictures`` of the same size, 0 in the background.

        The pictures must be those that split-sum shading makes of ``seen``. Frames that were traced lately (`KEPT`) are not
        traced again.
        """
        found = []
        for frame in (slice(number, number + 1) for number in range(len(rotations))):
            one = Surface(**{item.name: getattr(seen, item.name)[frame] for item in fields(seen)})
            make = partial(self._made, one, pictures[frame], rotations[frame])
            found.append(self._kept.get(_key(one, rotations[frame]), make))
        return torch.cat(found)

    def _made(
        self, seen: Surface, pictures: Float[Tensor, "frames 3 height width"], rotations: Float[Tensor, "frames 3 3"]
    ) -> Float[Tensor, "frames 3 height width"]:
        """See `change`.

        Differences of encoded values are filtered, not of radiance: one bright ray weighs less there. On 16 stills that was
        0.7 dB better, and as good as filtering the quotient of the two.
        """
        traced = srgb_oetf(self._tracer.radiance(seen, self._light, rotations).clamp(0.0, 1.0))
        change = traced - pictures
        for _ in range(PASSES):
            change = cross_bilateral(change, seen)
        return change


def _key(seen: Surface, rotation: Float[Tensor, "1 3 3"]) -> tuple[Hashable, ...]:
    """What tells a frame of a surface under its light from others."""
    maps = [getattr(seen, item.name) for item in fields(seen)]
    images = torch.cat([part[..., None] if part.ndim == 3 else part for part in maps if part.ndim > 1], dim=-1)
    return content_key(images, *seen.focal.tolist(), *rotation.flatten().tolist())


def _smaller(gbuffer: GBuffer, size: tuple[int, int], relative: bool) -> GBuffer:
    """G-buffers of another size, with metric depth.

    Depth is that of the nearest pixel that shows a surface, for between a thing and what is behind it there is nothing.
    """
    distance, seen = metric_depth(gbuffer, relative)
    coverage = seen[:, None].to(gbuffer.basecolor)
    covered = resize(coverage, size)
    # The background's values must not bleed into edges.
    share = covered.clamp_min(1e-3)
    images = {name: resize(getattr(gbuffer, name) * coverage, size) / share for name in DEFAULT_BUFFERS if name != "depth"}
    mask = covered > 0.5
    nearest, mean = (_sampled(distance, size), resize(distance[:, None] * coverage, size) / share)
    depth = torch.where(_sampled(coverage[:, 0], size) > 0, nearest, mean)
    depth = torch.where(mask, depth, torch.full_like(covered, torch.inf))
    return GBuffer(**images, depth=depth, mask=mask, fps=gbuffer.fps, name=gbuffer.name)


def _sampled(values: Float[Tensor, "frames height width"], size: tuple[int, int]) -> Float[Tensor, "frames 1 _height _width"]:
    """The value at the middle of every pixel of another size."""
    return F.interpolate(values[:, None], size=(size[1], size[0]), mode="nearest-exact")
