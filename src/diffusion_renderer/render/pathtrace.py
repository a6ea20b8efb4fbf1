"""Path tracing of scenes that have geometry, by Mitsuba 3: what the renderers of G-buffers are measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.sources import GBufferSource
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Camera, Clip, EnvironmentMap
from diffusion_renderer.render.geometry import Geometry, PrincipledMaterial, TriangleMesh
from diffusion_renderer.render.settings import ClassicalRenderer, Progress
from diffusion_renderer.render.surface import Surface, surfaces

__all__ = ["Geometry", "PathTracer", "PrincipledMaterial", "TriangleMesh"]

#: Paths in one launch; each takes a few hundred bytes while it is traced. More samples are traced in several launches.
MAX_PATHS = 2**22
#: The variant that needs neither a GPU nor LLVM.
ANYWHERE = "scalar_rgb"
#: Farthest over nearest distance that the camera sees; as large as single precision allows without loss in the rays.
CLIP_RATIO = 1e7


class PathTracer(ClassicalRenderer):
    """Renders geometry under an environment map with a path tracer. A forward renderer that looks through the G-buffers.

    Of the G-buffers only the number of frames and the size matter; what is seen is the geometry, through the camera's poses,
    which must be given. The samples of a pixel are spread over its square. The light is the panorama alone.

    Not differentiable, and cannot render what moves (see `Geometry`), media, or more light than ``depth`` - 1 bounces carry.
    Unlike the other classical renderers it has no radiance of a `Surface`: a surface has no other side.

    Parameters
    ----------
    geometry : in the world space of the camera's poses.
    samples : paths per pixel, at least; rounded up where they take several launches.
    depth : longest path in edges, as in Mitsuba: 1 shows the panorama only, 2 direct light, 3 one bounce more.
    denoise : called with (radiance, surface) frame by frame, where surface is what the G-buffers show, which then must have all
        five buffers and belong to this geometry. None keeps the noise.
    variant : Mitsuba's variant, one that renders RGB; it is made the active one. None takes the active one, or, where there is
        none, `ANYWHERE`, which is the slowest. On a machine with LLVM 16 or newer "llvm_ad_rgb" is several times faster.

    Raises InputError where Mitsuba is missing, for a variant that does not exist, and for geometry that cannot be read.
    """

    def __init__(
        self,
        geometry: Geometry,
        samples: int = 256,
        depth: int = 8,
        denoise: Callable[[Tensor, Surface], Tensor] | None = None,
        variant: str | None = None,
    ) -> None:
        for name, value in (("samples", samples), ("depth", depth)):
            if value < 1:
                raise InputError(f"{name} of at least 1", str(value), "give a larger number")
        self.geometry, self.samples, self.depth, self.denoise = geometry, samples, depth, denoise
        self.variant = _activated(variant).variant()
        self._shapes = geometry.shapes(self._mitsuba())

    @classmethod
    def from_file(cls, path: str | Path, material: PrincipledMaterial | None = None, **options: Any) -> PathTracer:
        """A path tracer of a Mitsuba scene (.xml) or a mesh (.ply, .obj) of ``material``; see `Geometry.from_file`.

        ``options`` are those of the class.
        """
        return cls(Geometry.from_file(path, material), **options)

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
        """The geometry under ``light``, frame by frame. Every frame depends on the seed and its number only.

        Parameters
        ----------
        gbuffer : gives frame count, size, name and frames per second; a denoiser needs its buffers too.
        camera : poses and fields of view, one per frame; required.
        rotations : R of each frame: camera-space direction d sees the panorama at ``R d``. None is a light fixed to the camera.
        seed : of the paths; not negative.
        steps, solver, guidance, lora_scale, size : nothing here; every forward renderer takes them.
        progress : called with (frames done, frames, "rendering").

        Raises InputError for no frames, no camera, a camera or rotations of another number of frames, values that are not
        finite, poses or rotations that are not rigid, light that is negative, a denoiser without its buffers.
        """
        frames = len(gbuffer)
        if frames == 0:
            raise InputError("G-buffers of at least one frame", f"{gbuffer.name} without frames", "give others")
        if camera is None:
            raise InputError("a camera for the path tracer", "none", "give the poses (cameras.json) of the geometry's views")
        if len(camera) != frames:
            raise InputError(f"a camera of {frames} frames", f"one of {len(camera)}", "give one pose for every frame")
        if self.denoise is not None:
            gbuffer.require(DEFAULT_BUFFERS)
        pictures = self._frames(camera, gbuffer.size, light, rotations, seed)

        def pieces() -> Iterator[Clip]:
            relative = gbuffer.has_relative_depth() if self.denoise is not None else False
            for index, (linear, seen) in enumerate(zip(pictures, gbuffer.chunks(1), strict=True)):
                if self.denoise is not None:
                    linear = self.denoise(linear, surfaces(seen, camera[index : index + 1], relative=relative))
                yield Clip(srgb_oetf(linear.clamp(0.0, 1.0)), fps=gbuffer.fps, name=gbuffer.name)
                if progress is not None:
                    progress(index + 1, frames, "rendering")

        return pieces()

    def radiance(
        self,
        camera: Camera,
        size: tuple[int, int],
        light: EnvironmentMap,
        rotations: Float[Tensor, "frames 3 3"] | None = None,
        seed: int = 0,
    ) -> Float[Tensor, "frames 3 height width"]:
        """Linear radiance, noisy, in the light's units; ``size`` is (width, height) in pixels. See `stream` for the rest."""
        return torch.cat(list(self._frames(camera, size, light, rotations, seed)))

    def _frames(
        self,
        camera: Camera,
        size: tuple[int, int],
        light: EnvironmentMap,
        rotations: Float[Tensor, "frames 3 3"] | None,
        seed: int,
    ) -> Iterator[Float[Tensor, "1 3 height width"]]:
        """Radiance frame by frame; what is wrong with the input is said at once."""
        if rotations is None:
            rotations = torch.eye(3).expand(len(camera), 3, 3)
        _check(camera, light, rotations, seed)
        turns = light_to_world(camera, rotations)

        def frames() -> Iterator[Tensor]:
            scene = self._scene(light, turns[0])
            for index in range(len(camera)):
                yield self._frame(scene, camera[index : index + 1], size, turns[index], (seed, index))

        return frames()

    def _mitsuba(self) -> Any:
        return _activated(self.variant)

    def _scene(self, light: EnvironmentMap, turn: Float[np.ndarray, "4 4"]) -> Any:
        mi = self._mitsuba()
        bitmap = mi.Bitmap(_envmap_rows(rearrange(light.radiance.detach().cpu().float().numpy(), "c h w -> h w c")))
        emitter = {"type": "envmap", "bitmap": bitmap, "to_world": mi.ScalarTransform4f(turn)}
        # Roulette would only add noise to paths this short.
        integrator = {"type": "path", "max_depth": self.depth, "rr_depth": self.depth + 1}
        return mi.load_dict({"type": "scene", "light": emitter, "integrator": integrator, **self._shapes})

    def _frame(
        self, scene: Any, camera: Camera, size: tuple[int, int], turn: Float[np.ndarray, "4 4"], seed: tuple[int, int]
    ) -> Float[Tensor, "1 3 height width"]:
        """The mean of as many launches as the samples need."""
        mi = self._mitsuba()
        parameters = mi.traverse(scene)
        transform = mi.ScalarTransform4f if self.variant.startswith("scalar") else mi.Transform4f
        parameters["light.to_world"] = transform(turn)
        parameters.update()
        launches = -(-self.samples * size[0] * size[1] // MAX_PATHS)
        each = -(-self.samples // launches)
        sensor = mi.load_dict(_sensor(mi, scene, camera, size, each))
        total = np.zeros((size[1], size[0], 3))
        for number in np.random.SeedSequence(seed).generate_state(launches):
            film = mi.render(scene, sensor=sensor, spp=each, seed=int(number))
            total += np.array(film, np.float64)[..., :3]
        picture = rearrange(torch.from_numpy((total / launches).astype(np.float32)), "h w c -> 1 c h w")
        return torch.nan_to_num(picture, nan=0.0, posinf=65504.0, neginf=0.0).clamp_min(0.0)


def light_to_world(camera: Camera, rotations: Float[Tensor, "frames 3 3"]) -> Float[np.ndarray, "frames 4 4"]:
    """Mitsuba's ``to_world`` of the panorama in each frame.

    Camera-space d sees the panorama at R d, so world-space w = C d sees it at R C^T w. Mitsuba looks w up at the inverse of
    to_world, which therefore is C R^T.
    """
    turns = torch.eye(4, dtype=torch.float64).repeat(len(camera), 1, 1)
    turns[:, :3, :3] = camera.rotation.detach().cpu().double() @ rotations.detach().cpu().double().mT
    return turns.numpy()


def _activated(variant: str | None) -> Any:
    """The `mitsuba` module with ``variant`` active, or the one active already, or `ANYWHERE`."""
    try:
        import mitsuba
    except ImportError as error:
        raise InputError(
            "Mitsuba 3", f"none that can be imported ({error})", "install it: pip install 'diffusion-renderer[data]'"
        ) from error
    wanted = variant or mitsuba.variant() or ANYWHERE
    fitting = [name for name in mitsuba.variants() if "rgb" in name.split("_") and "polarized" not in name]
    if wanted not in fitting:
        raise InputError(f"one of Mitsuba's RGB variants ({', '.join(fitting)})", wanted, "name one of these")
    if mitsuba.variant() != wanted:
        try:
            mitsuba.set_variant(wanted)
        except (ImportError, RuntimeError) as error:
            raise InputError(f"a working Mitsuba variant {wanted}", str(error), f"use {ANYWHERE}") from error
    mitsuba.set_log_level(mitsuba.LogLevel.Error)
    return mitsuba


def _check(camera: Camera, light: EnvironmentMap, rotations: Float[Tensor, "_rotations 3 3"], seed: int) -> None:
    if len(rotations) != len(camera):
        raise InputError(f"{len(camera)} rotations, one per frame", str(len(rotations)), "give one for every frame")
    radiance = light.radiance
    if not bool(torch.isfinite(radiance).all()) or bool((radiance < 0).any()):
        raise InputError("finite, positive radiance", f"NaN, infinity or less in the panorama {light.name}", "repair it")
    fov = camera.fov_x
    if not bool(((fov > 0) & (fov < 180)).all()):
        raise InputError("fields of view between 0 and 180 degrees", str(fov.tolist()[:4]), "correct the camera")
    if not bool(torch.isfinite(camera.pose).all()):
        raise InputError("finite camera poses", "NaN or infinity", "correct the camera")
    for name, matrices in (("camera poses", camera.rotation), ("rotations of the light", rotations)):
        # 1e-3: poses from files are rounded, a scale or a mirror is far larger.
        error = (matrices.mT.double() @ matrices.double() - torch.eye(3, dtype=torch.float64, device=matrices.device)).abs()
        if not bool((error < 1e-3).all()) or not bool((torch.linalg.det(matrices.double()) > 0).all()):
            raise InputError(f"{name} that only rotate", "a scale, a mirror image or NaN", "correct them")
    if seed < 0:
        raise InputError("a seed of at least 0", str(seed), "give another one")


def _sensor(mi: Any, scene: Any, camera: Camera, size: tuple[int, int], samples: int) -> dict[str, Any]:
    """The camera on a film of independent pixels, which see as far as the scene goes."""
    pose = camera.pose[0].detach().cpu().double().numpy()
    box = scene.bbox()
    corners = np.abs(np.stack((np.array(box.min), np.array(box.max))).reshape(2, 3) - pose[:3, 3])
    far = 2.0 * float(np.linalg.norm(corners.max(0))) + 1e-6
    return {
        "type": "perspective",
        "fov": float(camera.fov_x[0]),
        "fov_axis": "x",
        "near_clip": far / CLIP_RATIO,
        "far_clip": far,
        # Mitsuba's camera looks along +z with +x to the left; ours along -z with +x to the right.
        "to_world": mi.ScalarTransform4f(pose @ np.diag([-1.0, 1.0, -1.0, 1.0])),
        "film": {
            "type": "hdrfilm",
            "width": size[0],
            "height": size[1],
            "rfilter": {"type": "box"},
            "pixel_format": "rgb",
            "component_format": "float32",
        },
        "sampler": {"type": "multijitter", "sample_count": samples},
    }


def _envmap_rows(image: Float[np.ndarray, "rows columns 3"]) -> Float[np.ndarray, "more columns 3"]:
    """Our panorama's rows for Mitsuba's `envmap`, whose first and last rows lie at the poles themselves.

    Ours have their centres half a row further in. The picture is sampled anew at every half row, where bilinear interpolation
    of the result is that of the original, held constant beyond the outermost centres.
    """
    position = np.arange(2 * len(image) + 1) / 2 - 0.5
    low = np.clip(np.floor(position).astype(int), 0, len(image) - 1)
    high = np.clip(np.ceil(position).astype(int), 0, len(image) - 1)
    return (0.5 * (image[low] + image[high])).astype(np.float32)
