"""Screen-space ray tracing: a panorama's light with the shadows and one bounce that the picture itself can tell of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from diffusion_renderer.core.color import LUMINANCE, srgb_oetf
from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import dot, vectors
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
from diffusion_renderer.render.screen import Screen, march, numbers
from diffusion_renderer.render.settings import ClassicalRenderer, Progress
from diffusion_renderer.render.surface import Surface, surfaces

#: Temporaries of one ray, bytes; about 250 measured on a CPU.
BYTES_PER_RAY = 400
#: Kept for each ray until its frame is done, bytes: what it carries, and the pixel it met.
KEPT_PER_RAY = 12
#: Temporaries at once by default, bytes; more is not faster.
MAX_BYTES = {"cpu": 2**26, "cuda": 2**31}


@dataclass(frozen=True)
class _Carried:
    """What each ray of a frame's pixels brings from the surface that it meets, as a share of the radiance there.

    It is ``white + coloured * basecolor``, 0 for rays that meet nothing; ``met`` is the pixel that is met, -1 for none.
    """

    white: Float[Tensor, "pixels samples"]
    coloured: Float[Tensor, "pixels samples"]
    met: Int32[Tensor, "pixels samples"]
    basecolor: Float[Tensor, "pixels 1 3"]


@dataclass(frozen=True)
class _Pixels:
    """Some pixels of one frame, ready to be shaded. Vectors and colours lie in memory as `core.geometry.vectors`, for speed."""

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

        relative = gbuffer.has_relative_depth()
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
        direct, carried = [], []
        for index in covered.split(self.chunk()):
            pixels = _pixels(surface, frame, index)
            light, rest = self._direct(pixels, sampler, rotation, shifted(points, shifts[index]), screen)
            direct.append(light)
            carried.append(rest)
        arrived = torch.cat(direct)
        picture = picture.index_copy(0, covered, arrived)
        shown = picture
        for _ in range(self.bounces):
            around = shown.mT.contiguous()
            shown = picture.index_copy(0, covered, arrived + torch.cat([_brought(each, around) for each in carried]))
        return shown

    def _direct(
        self,
        pixels: _Pixels,
        sampler: PanoramaSampler,
        rotation: Float[Tensor, "3 3"],
        uniform: Float[Tensor, "pixels samples 4"],
        screen: Screen,
    ) -> tuple[Float[Tensor, "pixels 3"], _Carried]:
        """Light from the panorama, and what the rays that met something are to bring."""
        with torch.no_grad():
            direction, share = self._directions(pixels, sampler, rotation, uniform)
        radiance, light_pdf = sampler.read(_turned(rotation, direction))
        with torch.no_grad():
            lobes_pdf = share * brdf.pdf_ggx_visible(pixels.normal, pixels.view, direction, pixels.roughness)
            lobes_pdf = lobes_pdf + (1 - share) * pdf_cosine(pixels.normal, direction)
            lights = self.samples // 2
            density = (lights * light_pdf + (self.samples - lights) * lobes_pdf).clamp_min_(1e-20)
        response = brdf.response(pixels.normal, pixels.view, direction, pixels.roughness, pixels.metallic)
        white, coloured = ((part / density)[..., 0] for part in response)
        met = self._trace(pixels, direction, white.detach() + coloured.detach() > 0, uniform[..., 3], screen)
        free = (met < 0).to(white)
        gathered = [(part * free * radiance.movedim(-1, 0)).sum(dim=-1).mT for part in (white, coloured)]
        light = gathered[0] + gathered[1] * pixels.basecolor[:, 0]
        return light, _Carried(white * (1 - free), coloured * (1 - free), met, pixels.basecolor)

    def _directions(
        self, pixels: _Pixels, sampler: PanoramaSampler, rotation: Float[Tensor, "3 3"], uniform: Tensor
    ) -> tuple[Float[Tensor, "pixels samples 3"], Float[Tensor, "pixels 1 1"]]:
        """Half of the directions from the panorama, the others from the BRDF; the specular lobe's share of the latter."""
        lights = self.samples // 2
        towards = _turned(rotation.mT, sampler.sample(uniform[:, :lights, :2]))
        share, rest = _specular_share(pixels), uniform[:, lights:]
        mirrored = brdf.sample_ggx_visible(pixels.normal, pixels.view, pixels.roughness, rest[..., :2])
        scattered = sample_cosine(pixels.normal, rest[..., :2])
        reflected = torch.where(rest[..., 2] < share[..., 0], mirrored.movedim(-1, 0), scattered.movedim(-1, 0))
        return torch.cat((towards.movedim(-1, 0), reflected), dim=-1).movedim(0, -1), share

    def _trace(
        self, pixels: _Pixels, direction: Tensor, brings: Bool[Tensor, "pixels samples"], jitter: Tensor, screen: Screen
    ) -> Int32[Tensor, "pixels samples"]:
        """The pixel that each ray meets, -1 for none; rays that bring nothing are not traced."""
        met = torch.full(brings.shape, -1, dtype=torch.int32, device=brings.device)
        ray = numbers(brings.flatten())
        pixel = torch.div(ray, brings.shape[1], rounding_mode="floor")
        position, normal = (each[:, 0].mT.index_select(1, pixel).mT for each in (pixels.position, pixels.normal))
        found = march(
            screen,
            position,
            normal,
            direction.movedim(-1, 0).flatten(1).index_select(1, ray).mT,
            jitter.flatten().index_select(0, ray),
            steps=self.steps,
            thickness=self.thickness,
        )
        met.view(-1)[ray.long()] = found.int()
        return met


def _brought(carried: _Carried, picture: Float[Tensor, "3 all"]) -> Float[Tensor, "pixels 3"]:
    """What rays bring from the pixels of ``picture`` that they met."""
    # Rays that met nothing read some pixel and bring nothing of it.
    met = carried.met.clamp_min(0).flatten()
    there = picture.index_select(1, met).view(3, *carried.met.shape)
    white, coloured = ((part * there).sum(dim=-1).mT for part in (carried.white, carried.coloured))
    return white + coloured * carried.basecolor[:, 0]


def _turned(rotation: Float[Tensor, "3 3"], direction: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
    """``rotation`` times every direction, as `vectors`."""
    x, y, z = direction.unbind(-1)
    return vectors(*(row[0] * x + row[1] * y + row[2] * z for row in rotation))


def _specular_share(pixels: _Pixels) -> Float[Tensor, "pixels 1 1"]:
    """How much of the reflected light is about in the specular lobe; at least 0.3, for dielectrics' sharp highlights."""
    albedo = dot(pixels.basecolor, pixels.basecolor.new_tensor(LUMINANCE))
    cosine = dot(pixels.normal, pixels.view).clamp(0.0, 1.0)
    f0 = 0.04 + (albedo - 0.04) * pixels.metallic
    specular = f0 + (1 - f0) * (1 - cosine).pow(5)
    diffuse = (1 - pixels.metallic) * albedo
    return (specular / (specular + diffuse).clamp_min(1e-6)).clamp(0.3, 1.0)


def _pixels(surface: Surface, frame: int, index: Int64[Tensor, " pixels"]) -> _Pixels:
    names = ("position", "normal", "view", "basecolor", "roughness", "metallic")
    return _Pixels(index, *(rearrange(getattr(surface, n)[frame], "h w c -> c (h w)")[:, index].mT[:, None] for n in names))


def _to_device(surface: Surface, device: torch.device) -> Surface:
    return Surface(**{name: value.to(device) for name, value in vars(surface).items()})
