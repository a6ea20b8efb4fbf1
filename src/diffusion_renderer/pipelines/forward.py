"""The diffusion forward renderer: G-buffers and a light to a clip (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import repeat

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.packing import pack_image
from diffusion_renderer.core.resize import Fit
from diffusion_renderer.core.sources import GBufferSource
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.light import EnvironmentImages, environment_images
from diffusion_renderer.models import CONCATENATED, Checkpoint, LightInput, LightReader
from diffusion_renderer.pipelines.diffusion import DiffusionRenderer, checked_latents, ticker
from diffusion_renderer.pipelines.noise import frame_noise
from diffusion_renderer.pipelines.protocols import Progress

#: Makes the pictures of a classical renderer under one light: ``prior(name, light)`` is called as
#: ``(gbuffer, camera, rotations, size, depth_range)`` for some frames at a time and returns ``frames 3 height width`` in sRGB.
#: `render.Prior` is one; it is handed in, for neither layer knows the other.
Prior = Callable[[str, EnvironmentMap], Callable[..., Tensor]]


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

    def __call__(
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
    ) -> Clip:
        """The shot under ``light``, at the G-buffers' size, on the CPU: all of `stream` in memory."""
        parts = self.stream(
            gbuffer,
            light,
            camera=camera,
            rotations=rotations,
            steps=steps,
            guidance=guidance,
            lora_scale=lora_scale,
            seed=seed,
            size=size,
            progress=progress,
        )
        return Clip.join(parts, len(gbuffer))

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
    ) -> Iterator[Clip]:
        """The shot under ``light``, a few frames at a time, at the G-buffers' size, on the CPU.

        Only latents are held for the whole clip. The first piece comes when the network is done.

        Parameters
        ----------
        gbuffer : in memory or from files (`io.open_gbuffer`); must have every buffer of ``settings.buffers``.
        camera : of the G-buffers, for the field of view of the classical pictures where the model is given some; else not
            looked at.
        rotations : R of each frame: camera-space direction d sees the panorama at ``R d``. None is a light fixed to the camera.
        steps : calls of the network per window (twice with guidance); None for the model's own.
        guidance : classifier-free guidance; 1 or less is off. None for the model's own.
        lora_scale : strength of the checkpoint's LoRA adapter; None for the model's own.
        seed, size, progress : as for `DiffusionInverseRenderer`.

        Raises InputError for missing buffers, no frames, rotations of another number, a LoRA scale without a LoRA.
        """
        steps, frames = self.steps(steps), len(gbuffer)
        gbuffer.require(self.settings.buffers)
        if frames == 0:
            raise InputError("G-buffers of at least one frame", f"{gbuffer.name} without frames", "give others")
        if rotations is None:
            rotations = torch.eye(3).expand(frames, 3, 3)
        if len(rotations) != frames:
            raise InputError(f"{frames} rotations, one per frame", str(len(rotations)), "give one for every frame")
        unet, fit = self._unet_at(lora_scale), self.fit(gbuffer.size, size)
        guidance = self.settings.default_guidance if guidance is None else guidance
        pictures = self._pictures(gbuffer, light, camera, rotations)

        def pieces() -> Iterator[Clip]:
            condition = self._encode_gbuffer(gbuffer, fit, pictures, progress)
            lights = self._encode_light(light, rotations)
            noise = frame_noise(seed, "forward", frames, (self.codec.channels, *condition.shape[-2:]))
            latents = self._denoise(unet, condition, lights, noise, steps, guidance, ticker(progress, "rendering"))
            parts = gbuffer.chunks(self.codec.chunk) if self.settings.residual else repeat(None)
            for chunk, part in zip(self.chunks(frames), parts, strict=False):
                if part is None:
                    images = self._images(latents[chunk], fit)
                else:
                    # The picture's latents are the last ones of the condition, scaled as `decode` takes them.
                    start = condition[chunk, -self.codec.channels :].to(latents)
                    change = self._images(start + latents[chunk], fit) - self._images(start, fit)
                    images = pictures(part, chunk, part.size)[0] + change
                yield Clip(images.clamp(0.0, 1.0), fps=gbuffer.fps, name=gbuffer.name)

        return pieces()

    def _images(self, latents: Float[Tensor, "frames channels _h _w"], fit: Fit) -> Float[Tensor, "frames 3 height width"]:
        """Decoded, at the G-buffers' size, on the CPU."""
        return fit.undo(self.decode(latents).to(device="cpu", dtype=torch.float32))

    def denoise(
        self,
        condition: Float[Tensor, "frames conditions height width"],
        light: Float[Tensor, "lightframes lightchannels lightheight lightwidth"],
        noise: Float[Tensor, "frames channels height width"],
        steps: int,
        guidance: float = 1.0,
        lora_scale: float | None = None,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float[Tensor, "frames channels height width"]:
        """Latents (scaled) of the clip, from condition latents, the light's latents and unit noise.

        Parameters
        ----------
        condition : latents of the image groups in the order of ``settings.groups``, concatenated, as `encode` gives them.
        light : latents of the environment images as `encode_light_images` gives them; one frame stands for all.
        """
        return self._denoise(self._unet_at(lora_scale), condition, light, noise, steps, guidance, tick)

    def encode_light_images(self, images: EnvironmentImages) -> Float[Tensor, "frames channels _h _w"]:
        """Latents of the three environment images, scaled, concatenated in the published order: ldr, log, direction."""
        return torch.cat([self.codec.encode(part) for part in (images.ldr, images.log, images.direction)], dim=1)

    @torch.no_grad()
    def _denoise(
        self,
        unet: torch.nn.Module,
        condition: Tensor,
        light: Tensor,
        noise: Tensor,
        steps: int,
        guidance: float,
        tick: Callable[[int, int], None],
    ) -> Tensor:
        """Unconditional branch: zeroed condition latents, zeroed environment features or light latents."""
        condition, light = (tensor.to(self.unet.device, self.unet.dtype) for tensor in (condition, light))

        # One entry: a clip of one window, or under a light at rest, reads its light once for all steps.
        @lru_cache(maxsize=1)
        def seen(start: int, stop: int) -> LightInput:
            return self.light_reader(light[None, start:stop], condition.shape[-2:])

        def network(window: slice, x: Tensor, c_noise: Tensor) -> Tensor:
            def v(part: Tensor, given: LightInput) -> Tensor:
                return self.predict(unet, given.beside(x[None], part[None])[0], c_noise, given.features)

            part, given = condition[window], seen(0, 1) if len(light) == 1 else seen(window.start, window.stop)
            lit = v(part, given)
            if guidance <= 1:
                return lit
            free = v(torch.zeros_like(part), given.dropped())
            return free + guidance * (lit - free)

        return self.sample(network, noise, steps, tick)

    def _unet_at(self, lora_scale: float | None) -> torch.nn.Module:
        scale = self.settings.default_lora_scale if lora_scale is None else float(lora_scale)
        if self.checkpoint.lora is not None:
            return self.checkpoint.lora.at_scale(scale)
        if scale != 0:
            raise InputError(
                f"a checkpoint with a LoRA for scale {scale}", f"none in {self.checkpoint.folder}", "leave the LoRA scale out"
            )
        return self.unet

    def _pictures(
        self, gbuffer: GBufferSource, light: EnvironmentMap, camera: Camera | None, rotations: Tensor
    ) -> Callable[[GBuffer, slice, tuple[int, int]], list[Tensor]]:
        """Makes the classical pictures of some of the frames, of a size (width, height); none where the model is given none."""
        if self.settings.prior is None or self._prior is None:
            return lambda part, frames, size: []
        shade, depth_range = self._prior(self.settings.prior, light), gbuffer.depth_range()

        def pictures(part: GBuffer, frames: slice, size: tuple[int, int]) -> list[Tensor]:
            return [shade(part, None if camera is None else camera[frames], rotations[frames], size, depth_range)]

        return pictures

    def _encode_gbuffer(
        self,
        gbuffer: GBufferSource,
        fit: Fit,
        pictures: Callable[[GBuffer, slice, tuple[int, int]], list[Tensor]],
        progress: Progress | None,
    ) -> Float[Tensor, "frames channels _h _w"]:
        """Latents of all groups and pictures, concatenated. Depth is relative to the whole clip's range."""
        tick, parts, done, depth_range = ticker(progress, "encoding"), [], 0, gbuffer.depth_range()
        padded = Fit(fit.inner, fit.inner, fit.padded)
        for chunk in gbuffer.chunks(self.codec.chunk):
            images = [fit.apply(pack_image(chunk, group, depth_range)) for group in self.settings.groups]
            images += map(padded.apply, pictures(chunk, slice(done, done + len(chunk)), fit.inner))
            parts.append(torch.cat([self.encode(image) for image in images], dim=1))
            done += len(chunk)
            tick(done, len(gbuffer))
        return torch.cat(parts)

    def _encode_light(
        self, light: EnvironmentMap, rotations: Float[Tensor, "frames 3 3"]
    ) -> Float[Tensor, "_frames channels _h _w"]:
        """Latents of the light in every frame; a single frame where it does not turn."""
        if bool((rotations == rotations[:1]).all()):
            rotations = rotations[:1]
        parts = []
        for chunk in self.chunks(len(rotations)):
            images = environment_images(light, rotations[chunk], self.settings.env_size, antialias=self.settings.env_antialias)
            parts.append(self.encode_light_images(images))
        return torch.cat(parts)
