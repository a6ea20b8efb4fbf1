"""Screen-space ray tracing: a panorama's light with the shadows and one bounce that the picture itself can tell of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from diffusion_renderer.core.color import LUMINANCE, srgb_oetf
from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.encoding import is_relative
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.sources import GBufferSource
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap
from diffusion_renderer.render import brdf
from diffusion_renderer.render.sampling import (
    PanoramaSampler,
    even_points,
    pdf_cosine,
    pixel_shifts,
    sample_cosine,
    shifted,
)
from diffusion_renderer.render.screen import Screen, march
from diffusion_renderer.render.settings import ClassicalRenderer, Progress
from diffusion_renderer.render.surface import Surface, surfaces

#: Temporaries of one ray, bytes; about 200 measured on a CPU.
BYTES_PER_RAY = 400
#: Kept for each ray until its frame is done, bytes: what it carries, and the pixel it met.
KEPT_PER_RAY = 16
#: Temporaries at once by default, bytes; more is not faster.
MAX_BYTES = {"cpu": 2**26, "cuda": 2**31}


@dataclass(frozen=True)
class _Pixels:
    """Some pixels of one frame, ready to be shaded."""

    index: Int64[Tensor, " pixels"]
    position: Float[Tensor, "pixels 1 3"]
    normal: Float[Tensor, "pixels 1 3"]
    view: Float[Tensor, "pixels 1 3"]
    basecolor: Float[Tensor, "pixels 1 3"]
    roughness: Float[Tensor, "pixels 1 1"]
    metallic: Float[Tensor, "pixels 1 1"]


class ScreenSpaceRayTracer(ClassicalRenderer):
    """Renders G-buffers under a panorama by tracing rays through their depth. See `pipelines.ForwardRenderer` for the call.

    Every ray is drawn from the panorama's light or from the BRDF (visible GGX normals or cosine); all are weighted by the
    balance heuristic (Veach and Guibas 1995). A ray that meets what the picture shows brings the radiance that the pixel there
    shows to the camera, the others bring the panorama's.

    What the picture does not show casts no shadow and is not reflected; the far side of things is guessed (`thickness`); a
    surface that is met looks from there as it does from the camera. Everything is deterministic in the seed. The random numbers
    belong to the pixel, not to the frame, so that a shot at rest does not flicker.

    Parameters
    ----------
    samples : rays per pixel.
    steps, thickness : see `screen.march`.
    bounces : times that light is passed on between surfaces of the picture; 0 makes what is met black.
    max_bytes : temporaries at once; None for `MAX_BYTES` of the device. `KEPT_PER_RAY` for each ray of a frame comes on top.
    denoise : called with the linear radiance and the surface, gives the radiance to show; None for none.
    """

    def __init__(
        self,
        samples: int = 64,
        *,
        steps: int = 24,
        thickness: float = 0.1,
        bounces: int = 1,
        max_bytes: int | None = None,
        denoise: Callable[[Tensor, Surface], Tensor] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        for name, value, least in (("samples", samples, 2), ("steps", steps, 1), ("bounces", bounces, 0)):
            if value < least:
                raise InputError(f"{name} of at least {least}", str(value), "give a larger number")
        if not 0 < thickness < float("inf"):
            raise InputError("a thickness above 0", str(thickness), "give a share of the depth such as 0.1")
        self.device = find_device(device)
        self.samples, self.steps, self.thickness, self.bounces = samples, steps, thickness, bounces
        self.max_bytes = MAX_BYTES.get(self.device.type, MAX_BYTES["cuda"]) if max_bytes is None else max_bytes
        self.denoise = denoise

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
    ) -> Iterator[Clip]:
        """The shot frame by frame. ``steps``, ``solver``, ``guidance``, ``lora_scale`` and ``size`` mean nothing here.

        Parameters
        ----------
        camera : fields of view; None for `surface.DEFAULT_FOV`.
        rotations : R of each frame: camera-space direction d sees the panorama at ``R d``. None is a light fixed to the camera.

        Raises InputError for missing buffers, no frames, rotations or a camera of another number of frames.
        """
        gbuffer.require(self.settings.buffers)
        frames = len(gbuffer)
        if frames == 0:
            raise InputError("G-buffers of at least one frame", f"{gbuffer.name} without frames", "give others")
        rotations = torch.eye(3).expand(frames, 3, 3) if rotations is None else rotations
        for name, given in (("rotations", rotations), ("poses", camera)):
            if given is not None and len(given) != frames:
                raise InputError(f"{frames} {name}, one per frame", str(len(given)), "give one for every frame")

        @torch.no_grad()
        def render(part, number: int) -> Tensor:
            surface = surfaces(part, None if camera is None else camera[number : number + 1], relative=relative)
            surface = _to_device(surface, self.device)
            linear = self.radiance(surface, environment, rotations[number : number + 1].to(self.device), seed=seed)
            if self.denoise is not None:
                linear = self.denoise(linear, surface)
            return srgb_oetf(linear.clamp(0.0, 1.0)).cpu()

        relative = is_relative(gbuffer.depth_range())
        environment = EnvironmentMap(light.radiance.to(self.device), light.name)

        def pieces() -> Iterator[Clip]:
            for number, part in enumerate(gbuffer.chunks(1)):
                yield Clip(render(part, number), fps=gbuffer.fps, name=gbuffer.name)
                if progress is not None:
                    progress(number + 1, frames, "rendering")

        return pieces()

    def radiance(
        self,
        surface: Surface,
        light: EnvironmentMap,
        rotations: Float[Tensor, "frames 3 3"] | None = None,
        *,
        seed: int = 0,
    ) -> Float[Tensor, "frames 3 height width"]:
        """Linear radiance, noisy; the background shows the panorama.

        Differentiable in the materials, the normals and the panorama, with directions and visibility held fixed: shadows' edges
        do not move. Gradients need the temporaries of all rays at once.
        """
        sampler = PanoramaSampler.build(light)
        frames, height, width = surface.depth.shape
        rotations = torch.eye(3, device=surface.depth.device).expand(frames, 3, 3) if rotations is None else rotations
        rotations = rotations.to(surface.depth)
        points = even_points(self.samples, 4, seed).to(surface.depth)
        shifts = pixel_shifts(height * width, 4, seed).to(surface.depth)
        pictures = [self._frame(surface, number, sampler, rotations[number], points, shifts) for number in range(frames)]
        return rearrange(torch.stack(pictures), "f (h w) c -> f c h w", h=height, w=width)

    def chunk(self) -> int:
        """Pixels shaded at once."""
        return max(1, self.max_bytes // (BYTES_PER_RAY * self.samples))

    def _frame(
        self,
        surface: Surface,
        frame: int,
        sampler: PanoramaSampler,
        rotation: Float[Tensor, "3 3"],
        points: Float[Tensor, "samples 4"],
        shifts: Float[Tensor, "all 4"],
    ) -> Float[Tensor, "all 3"]:
        """Radiance of one frame: direct light first, then what the rays that met something bring from there."""
        view = surface.view[frame].reshape(-1, 3)
        picture = sampler.read(-view @ rotation.T)[0]
        covered = surface.coverage[frame].reshape(-1).nonzero()[:, 0]
        if len(covered) == 0:
            return picture
        screen = Screen.build(surface.depth[frame], float(surface.focal[frame]))
        parts = []
        for index in covered.split(self.chunk()):
            pixels = _pixels(surface, frame, index)
            parts.append(self._direct(pixels, sampler, rotation, shifted(points, shifts[index]), screen))
        direct, carried, met = (torch.cat(part) for part in zip(*parts, strict=True))
        picture = picture.index_copy(0, covered, direct)
        shown = picture
        for _ in range(self.bounces):
            shown = picture.index_copy(0, covered, direct + self._bounce(shown, carried, met))
        return shown

    def _direct(
        self,
        pixels: _Pixels,
        sampler: PanoramaSampler,
        rotation: Float[Tensor, "3 3"],
        uniform: Float[Tensor, "pixels samples 4"],
        screen: Screen,
    ) -> tuple[Float[Tensor, "pixels 3"], Float[Tensor, "pixels samples 3"], Int32[Tensor, "pixels samples"]]:
        """Light from the panorama; the share of a radiance that each ray brings if it met something; the pixel it met."""
        with torch.no_grad():
            direction, share = self._directions(pixels, sampler, rotation, uniform)
        radiance, light_pdf = sampler.read(einsum(rotation, direction, "i j, p s j -> p s i"))
        with torch.no_grad():
            lobes_pdf = share * brdf.pdf_ggx_visible(pixels.normal, pixels.view, direction, pixels.roughness)
            lobes_pdf = lobes_pdf + (1 - share) * pdf_cosine(pixels.normal, direction)
            lights = self.samples // 2
            density = lights * light_pdf + (self.samples - lights) * lobes_pdf
        value = brdf.evaluate(
            pixels.normal, pixels.view, direction, pixels.basecolor, pixels.roughness, pixels.metallic
        ) / density.clamp_min(1e-20)
        met = self._trace(pixels, direction, value.detach(), uniform[..., 3], screen)
        free = (met < 0)[..., None]
        return torch.where(free, value * radiance, 0.0).sum(dim=1), torch.where(free, 0.0, value), met

    def _directions(
        self, pixels: _Pixels, sampler: PanoramaSampler, rotation: Float[Tensor, "3 3"], uniform: Tensor
    ) -> tuple[Float[Tensor, "pixels samples 3"], Float[Tensor, "pixels 1 1"]]:
        """Half of the directions from the panorama, the others from the BRDF; the specular lobe's share of the latter."""
        lights = self.samples // 2
        towards = sampler.sample(uniform[:, :lights, :2])
        towards = einsum(rotation, towards, "j i, p s j -> p s i")
        share, rest = _specular_share(pixels), uniform[:, lights:]
        mirrored = brdf.sample_ggx_visible(pixels.normal, pixels.view, pixels.roughness, rest[..., :2])
        scattered = sample_cosine(pixels.normal, rest[..., :2])
        return torch.cat((towards, torch.where(rest[..., 2:3] < share, mirrored, scattered)), dim=1), share

    def _trace(
        self, pixels: _Pixels, direction: Tensor, value: Tensor, jitter: Tensor, screen: Screen
    ) -> Int32[Tensor, "pixels samples"]:
        """The pixel that each ray meets, -1 for none; rays that bring nothing are not traced."""
        pixel, sample = (value.amax(dim=-1) > 0).nonzero(as_tuple=True)
        met = torch.full(value.shape[:2], -1, dtype=torch.int32, device=value.device)
        met[pixel, sample] = march(
            screen,
            pixels.position[pixel, 0],
            pixels.normal[pixel, 0],
            direction[pixel, sample],
            jitter[pixel, sample],
            steps=self.steps,
            thickness=self.thickness,
        ).int()
        return met

    def _bounce(
        self,
        picture: Float[Tensor, "all 3"],
        carried: Float[Tensor, "pixels samples 3"],
        met: Int32[Tensor, "pixels samples"],
    ) -> Float[Tensor, "pixels 3"]:
        """What the rays bring from the pixels of ``picture`` that they met."""
        parts = []
        for carried_part, met_part in zip(carried.split(self.chunk()), met.split(self.chunk()), strict=True):
            parts.append((carried_part * picture[met_part.long().clamp_min(0)]).sum(dim=1))
        return torch.cat(parts)


def _specular_share(pixels: _Pixels) -> Float[Tensor, "pixels 1 1"]:
    """How much of the reflected light is about in the specular lobe; at least 0.3, for dielectrics' sharp highlights."""
    weights = pixels.basecolor.new_tensor(LUMINANCE)
    albedo = (pixels.basecolor * weights).sum(dim=-1, keepdim=True)
    cosine = (pixels.normal * pixels.view).sum(dim=-1, keepdim=True).clamp(0.0, 1.0)
    f0 = 0.04 + (albedo - 0.04) * pixels.metallic
    specular = f0 + (1 - f0) * (1 - cosine).pow(5)
    diffuse = (1 - pixels.metallic) * albedo
    return (specular / (specular + diffuse).clamp_min(1e-6)).clamp(0.3, 1.0)


def _pixels(surface: Surface, frame: int, index: Int64[Tensor, " pixels"]) -> _Pixels:
    names = ("position", "normal", "view", "basecolor", "roughness", "metallic")
    return _Pixels(index, *(rearrange(getattr(surface, n)[frame], "h w c -> (h w) 1 c")[index] for n in names))


def _to_device(surface: Surface, device: torch.device) -> Surface:
    return Surface(**{name: value.to(device) for name, value in vars(surface).items()})
