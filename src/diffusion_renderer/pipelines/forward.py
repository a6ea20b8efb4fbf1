"""The diffusion forward renderer: G-buffers and a light to a clip (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.encoding import surface_mask
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.packing import pack_image
from diffusion_renderer.core.resize import Fit, resize
from diffusion_renderer.core.sources import GBufferSource
from diffusion_renderer.core.store import BoundedStore, tensor_bytes
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.light import EnvironmentImages, environment_images
from diffusion_renderer.models import CONCATENATED, Checkpoint, LightInput, LightReader
from diffusion_renderer.models.attention import Projections, kept_projections
from diffusion_renderer.pipelines.change import Drawn, guided_change, textured
from diffusion_renderer.pipelines.diffusion import (
    DiffusionRenderer,
    Tick,
    WindowNetwork,
    checked_latents,
    checked_start,
    no_tick,
    ticker,
)
from diffusion_renderer.pipelines.held import HeldFrames
from diffusion_renderer.pipelines.noise import frame_noise
from diffusion_renderer.pipelines.protocols import Progress
from diffusion_renderer.pipelines.resuming import Call, Note, ResumePoint

#: Makes the pictures of a classical renderer under one light: ``prior(name, light)`` is called as
#: ``(gbuffer, camera, rotations, size, relative, uncut)`` for some frames at a time and returns ``frames 3 height width`` in
#: sRGB, which goes on beyond white where it is ``uncut``.
#: `render.Prior` is one; it is handed in, for neither layer knows the other.
Prior = Callable[[str, EnvironmentMap], Callable[..., Tensor]]
#: Makes the classical pictures of some of the frames, of a size (width, height); none where the model is given none.
Pictures = Callable[[GBuffer, slice, tuple[int, int]], list[Tensor]]
#: What the UNet reads of a moving light is kept for the windows at hand up to these bytes: nine published windows at 512 x 512.
KEPT_LIGHTS = 2**30


class DiffusionForwardRenderer(DiffusionRenderer):
    """Renders G-buffers under an environment map with a video diffusion model. See `ForwardRenderer` for the call.

    What G-buffers do not show (things outside the picture that cast shadows or are reflected) is guessed.

    Parameters
    ----------
    prior : makes the classical pictures of a checkpoint that asks for them, see `Prior`; not looked at for one that does not.

    Raises InputError for a checkpoint that asks for them when ``prior`` is None.
    """

    def __init__(self, checkpoint: Checkpoint, prior: Prior | None = None) -> None:
        super().__init__(checkpoint)
        self._prior = prior
        if self.settings.prior is not None and prior is None:
            expected = f"the classical renderer {self.settings.prior}, which {checkpoint.folder} is given pictures of"
            raise InputError(expected, "none", "load it with diffusion_renderer.load_forward")
        self.env_encoder = checkpoint.env_encoder
        self.light_reader = LightReader(self.unet, self.env_encoder)
        conditions, source = self.unet.config.in_channels // self.codec.channels - 1, str(checkpoint.folder)
        concatenated = CONCATENATED[self.settings.light]
        if concatenated:
            source = f"{source}, {concatenated} of them the light's"
        pictures = () if self.settings.prior is None else (self.settings.prior,)
        checked_latents(conditions, (*self.settings.groups, *pictures, *range(concatenated)), source)

    def __call__(self, gbuffer: GBufferSource, light: EnvironmentMap, **options: Any) -> Clip:
        """The shot under ``light``, at the G-buffers' size, on the CPU: all of `stream`, with its options, in memory."""
        return Clip.join(self.stream(gbuffer, light, **options), len(gbuffer))

    def stream(
        self,
        gbuffer: GBufferSource,
        light: EnvironmentMap,
        *,
        camera: Camera | None = None,
        rotations: Float[Tensor, "frames 3 3"] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        lora_scale: float | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
        solver: str | None = None,
        resume: ResumePoint | None = None,
        note: Note | None = None,
    ) -> Iterator[Clip]:
        """The shot under ``light``, a few frames at a time, at the G-buffers' size, on the CPU.

        Frames come as soon as no window is to see them any more, and the G-buffers are read forwards, no faster than that, and
        depth before all else for its range. A model with ``settings.residual`` reads them twice where they are larger than what
        the network sees: its picture is made at their size. Buffers that were only scaled up make it draw edges that are
        nowhere in the shot; those that an inverse renderer sharpened by the frames (``settings.guided``) do not.

        Parameters
        ----------
        gbuffer : in memory or from files (`io.open_gbuffer`); must have every buffer of ``settings.buffers``.
        camera : of the G-buffers, for the field of view of the classical pictures where the model is given some; else not
            looked at.
        rotations : R of each frame: camera-space direction d sees the panorama at ``R d``. None is a light fixed to the camera.
        steps : of the solver (guidance doubles the network's calls); None for the model's own.
        guidance : classifier-free guidance; 1 or less is off. None for the model's own.
        lora_scale : strength of the checkpoint's LoRA adapter; None for the model's own.
        seed, size, progress, solver, resume, note : as for `DiffusionInverseRenderer`.

        Raises InputError for missing buffers, no frames, rotations of another number, a LoRA scale without a LoRA, an unknown
        solver, a point outside the clip.
        """
        steps, frames = self.steps(steps), len(gbuffer)
        gbuffer.require(self.settings.buffers)
        if frames == 0:
            raise InputError("G-buffers of at least one frame", f"{gbuffer.name} without frames", "give others")
        if rotations is None:
            rotations = torch.eye(3).expand(frames, 3, 3)
        if len(rotations) != frames:
            raise InputError(f"{frames} rotations, one per frame", str(len(rotations)), "give one for every frame")
        point = resume or ResumePoint()
        checked_start(point.frame, frames)
        begin, read = self.first_frames(frames, steps, solver, point.frame)
        call = Call(frames, steps, seed, self.fit(gbuffer.size, size), solver, point, begin, read, note, progress)
        guidance = self.settings.default_guidance if guidance is None else guidance
        depth_range, relative = gbuffer.depth_range(), gbuffer.has_relative_depth()
        pictures = self._pictures(light, camera, rotations, relative)
        if lora_scale is None and relative:
            lora_scale = self.settings.relative_lora_scale
        lit = _Lit(self._unet_at(lora_scale), light, rotations, guidance, depth_range, relative, pictures)
        return self._pieces(gbuffer, lit, call)

    def _pieces(self, gbuffer: GBufferSource, lit: _Lit, call: Call) -> Iterator[Clip]:
        # Pictures at the working size are made for the condition already; larger ones are made of the G-buffers again.
        shown: dict[int, Drawn] = {}
        made_already, relative = gbuffer.size == call.fit.inner, lit.relative
        condition = HeldFrames(self._encode_gbuffer(gbuffer, lit, call, shown), call.read)
        network = self._network(lit.unet, condition, self._encode_light(lit, call), lit.guidance, keep=call.steps > 1)
        width, height = (side // self.codec.factor for side in call.fit.padded)
        shape, needed = (self.codec.channels, height, width), 0

        def noise(frames: slice) -> Tensor:
            return frame_noise(call.seed, "forward", frames.stop - frames.start, shape, frames.start)

        tick = ticker(call.progress, "rendering")
        sampled = self.sample_stream(network, noise, call.frames, call.steps, tick, call.solver, call.begin)

        def latents() -> Iterator[Tensor]:
            nonlocal needed
            for part in sampled:
                needed = part.needed
                if part.frames.stop > call.begin:
                    yield part.latents[max(0, call.begin - part.frames.start) :]

        made = HeldFrames(latents(), call.begin)

        def images(chunk: slice, part: GBuffer | None) -> Tensor:
            if not self.settings.residual:
                return call.fit.undo(self._decoded(made[chunk]))
            # The picture's latents are the last ones of the condition, scaled as `decode` takes them.
            start = condition[chunk][:, -self.codec.channels :].to(made[chunk])
            change = call.fit.unpad(self._decoded(start + made[chunk]) - self._decoded(start))
            small = Drawn.stack([shown[frame] for frame in range(chunk.start, chunk.stop)])
            large = small if part is None else Drawn.of(lit.pictures(part, chunk, part.size)[0], _surface(part, relative))
            # From estimated buffers pictures are farther off than the network's noise: nothing is taken for that.
            return self.changed(change, small, large, 0.0 if relative else self.settings.residual_noise, sharp=not relative)

        parts = repeat(None) if made_already or not self.settings.residual else gbuffer[call.begin :].chunks(self.codec.chunk)
        for chunk, part in zip(self.chunks(call.frames, call.begin), parts, strict=False):
            frames = images(chunk, part).clamp(0.0, 1.0)
            for frame in [frame for frame in shown if frame < chunk.stop]:
                del shown[frame]
            made.forget(chunk.stop)
            condition.forget(min(needed, chunk.stop))
            first = max(0, call.point.frame - chunk.start)
            yield Clip(frames[first:], fps=gbuffer.fps, name=gbuffer.name)
            call.used(chunk.stop)

    def changed(
        self, change: Float[Tensor, "frames 3 h w"], small: Drawn, large: Drawn, noise: float, sharp: bool = True
    ) -> Float[Tensor, "frames 3 height width"]:
        """What a residual model makes of the classical pictures ``large``: with its change, less what is taken for ``noise``.

        The change is at the size of ``small`` and filtered (see `pipelines.change`). What lies behind the surfaces is the
        panorama itself in such a picture, and is left alone.
        """
        return textured(large.frames + guided_change(F.softshrink(change, noise), small, large, sharp), small, large)

    def _decoded(self, latents: Float[Tensor, "frames channels _h _w"]) -> Float[Tensor, "frames 3 height width"]:
        """Images at the network's size, padding included, on the CPU."""
        return self.decode(latents).to(device="cpu", dtype=torch.float32)

    def denoise(
        self,
        condition: Float[Tensor, "frames conditions height width"],
        light: Float[Tensor, "lightframes lightchannels lightheight lightwidth"],
        noise: Float[Tensor, "frames channels height width"],
        steps: int,
        guidance: float = 1.0,
        lora_scale: float | None = None,
        tick: Tick = no_tick,
        solver: str | None = None,
    ) -> Float[Tensor, "frames channels height width"]:
        """Latents (scaled) of the clip, from condition latents, the light's latents and unit noise.

        Parameters
        ----------
        condition : latents of the image groups in the order of ``settings.groups``, concatenated, as `encode` gives them.
        light : latents of the environment images as `encode_light_images` gives them; one frame stands for all.
        """
        unet, held, moving = self._unet_at(lora_scale), HeldFrames(iter([condition])), len(light) > 1
        lights = HeldFrames(iter([light])) if moving else light
        network = self._network(unet, held, lights, guidance, keep=steps > 1)
        return self.sample(network, noise, steps, tick, solver)

    def encode_light_images(self, images: EnvironmentImages) -> Float[Tensor, "frames channels _h _w"]:
        """Latents of the three environment images, scaled, concatenated in the published order: ldr, log, direction."""
        return torch.cat([self.encode_once(part, scaled=True) for part in (images.ldr, images.log, images.direction)], dim=1)

    def _network(
        self, unet: torch.nn.Module, condition: HeldFrames, light: HeldFrames | Tensor, guidance: float, keep: bool
    ) -> WindowNetwork:
        """v of a window. A light at rest is a tensor of one frame; ``keep`` keeps what several calls read of the light.

        Unconditional branch: zeroed condition latents, zeroed environment features or light latents, of one cell each.
        """
        known: BoundedStore[_Seen] = BoundedStore(KEPT_LIGHTS if keep or isinstance(light, Tensor) else 0, _Seen.bytes)

        def seen(window: slice, size: tuple[int, int]) -> _Seen:
            still = isinstance(light, Tensor)
            latents = (light if isinstance(light, Tensor) else light[window]).to(self.unet.device, self.unet.dtype)
            given = self.light_reader(latents[None], size)
            # Keys and values are as large as the features in every layer: of a moving light they are not kept.
            return _Seen(given, given.dropped() if guidance > 1 else None, Projections() if keep and still else None)

        def network(window: slice, x: Tensor, c_noise: Tensor) -> Tensor:
            part = condition[window].to(self.unet.device, self.unet.dtype)
            size = (part.shape[-2], part.shape[-1])
            lights = known.get(0 if isinstance(light, Tensor) else window.start, lambda: seen(window, size))

            def v(part: Tensor, given: LightInput) -> Tensor:
                return self.predict(unet, given.beside(x[None], part[None])[0], c_noise, given.features)

            with kept_projections(lights.projections):
                lit = v(part, lights.given)
            if lights.dropped is None:
                return lit
            free = v(torch.zeros_like(part), lights.dropped)
            return free + guidance * (lit - free)

        return network

    def _unet_at(self, lora_scale: float | None) -> torch.nn.Module:
        scale = self.settings.default_lora_scale if lora_scale is None else float(lora_scale)
        if self.checkpoint.lora is not None:
            return self.checkpoint.lora.at_scale(scale)
        if scale != 0:
            raise InputError(
                f"a checkpoint with a LoRA for scale {scale}", f"none in {self.checkpoint.folder}", "leave the LoRA scale out"
            )
        return self.unet

    def _pictures(self, light: EnvironmentMap, camera: Camera | None, rotations: Tensor, relative: bool) -> Pictures:
        """The classical pictures of the clip under the light."""
        if self.settings.prior is None or self._prior is None:
            return lambda part, frames, size: []
        shade = self._prior(self.settings.prior, light)

        def pictures(part: GBuffer, frames: slice, size: tuple[int, int]) -> list[Tensor]:
            return [shade(part, None if camera is None else camera[frames], rotations[frames], size, relative, uncut=relative)]

        return pictures

    def _encode_gbuffer(
        self, gbuffer: GBufferSource, lit: _Lit, call: Call, shown: dict[int, Drawn]
    ) -> Iterator[Float[Tensor, "frames channels _h _w"]]:
        """Latents of all groups and pictures, concatenated, a piece at a time, from frame ``call.read`` on.

        Depth is relative to the whole clip's range. Pictures of a model with ``settings.residual``, and where they show a
        surface, go to ``shown``, by frame.
        """
        tick, done = ticker(call.progress, "encoding"), call.read
        padded = Fit(call.fit.inner, call.fit.inner, call.fit.padded)
        for chunk in gbuffer[call.read :].chunks(self.codec.chunk):
            images = [call.fit.apply(pack_image(chunk, group, lit.depth_range)) for group in self.settings.groups]
            drawn = lit.pictures(chunk, slice(done, done + len(chunk)), call.fit.inner)
            if self.settings.residual:
                seen = resize(_surface(chunk, lit.relative), call.fit.inner)
                shown.update(zip(range(done, done + len(chunk)), Drawn.of(drawn[0], seen).frame_by_frame(), strict=True))
            images += [padded.apply(picture.clamp(max=1.0)) for picture in drawn]
            latents = torch.cat([self.encode(image) for image in images], dim=1)
            done += len(chunk)
            tick(done, call.frames)
            yield latents

    def _encode_light(self, lit: _Lit, call: Call) -> HeldFrames | Float[Tensor, "1 channels _h _w"]:
        """Latents of the light: of one frame where it does not turn, else a piece at a time."""

        def latents(rotations: Tensor) -> Tensor:
            settings = self.settings
            images = environment_images(lit.light, rotations, settings.env_size, antialias=settings.env_antialias)
            return self.encode_light_images(images)

        if bool((lit.rotations == lit.rotations[:1]).all()):
            return latents(lit.rotations[:1])
        return HeldFrames((latents(lit.rotations[chunk]) for chunk in self.chunks(call.frames, call.read)), call.read)


def _surface(gbuffer: GBuffer, relative: bool) -> Float[Tensor, "frames 1 height width"]:
    """1 where a surface is seen, else 0; on the CPU."""
    return surface_mask(gbuffer, relative).float().cpu()


@dataclass(frozen=True)
class _Lit:
    """The light of one call and how strongly the networks are to follow it."""

    unet: torch.nn.Module
    light: EnvironmentMap
    rotations: Float[Tensor, "frames 3 3"]
    guidance: float
    depth_range: tuple[float, float] | None
    relative: bool
    pictures: Pictures


@dataclass(frozen=True)
class _Seen:
    """What the UNet reads of the light in a window, without it where guidance asks, and keys and values where they are kept."""

    given: LightInput
    dropped: LightInput | None
    projections: Projections | None

    def bytes(self) -> int:
        """Of main or device memory; keys and values of a light at rest are few, and come later."""
        return tensor_bytes(self.given.latents) + sum(map(tensor_bytes, self.given.features))
