"""Relighting: the same shot under another light (the paper's section 4.4): inverse renderer, then forward renderer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.sources import ClipSource, GBufferSource
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.editing.lighting import LightOptions, light_rotations
from diffusion_renderer.editing.names import distinct_names, relit_name

#: Anything called as `pipelines.InverseRenderer` and `pipelines.ForwardRenderer` are. Plain callables: the run-time type
#: checker of the tests takes no protocol that is not declared checkable.
Inverse = Callable[..., GBuffer]
Forward = Callable[..., Clip]
#: Length of a clip made of one still, frames.
STILL_FRAMES = 24


@dataclass(frozen=True)
class Shot:
    """How a shot is played under a light.

    Attributes
    ----------
    lighting : how the light is placed.
    camera : poses of the frames; None when unknown.
    static_frame : hold the G-buffers (and the camera) of this frame for the whole clip; None plays the clip.
    frames : frames of the result when a frame is held; None: as many as the G-buffers have, or `STILL_FRAMES` for a still. When
        no frame is held: use only this many cameras.
    """

    lighting: LightOptions = field(default_factory=LightOptions)
    camera: Camera | None = None
    static_frame: int | None = None
    frames: int | None = None

    def length(self, available: int) -> int:
        """Frames of the result, made from G-buffers of ``available`` frames."""
        if self.static_frame is None:
            return available
        return self.frames or (available if available > 1 else STILL_FRAMES)

    def cameras(self, available: int) -> Camera | None:
        """The camera of each frame of the result, made from G-buffers of ``available`` frames; None when unknown.

        Raises InputError when the held frame does not exist or has no camera.
        """
        held, camera, frames = self.static_frame, self.camera, self.length(available)
        if held is not None and not 0 <= held < available:
            raise InputError(f"a frame from 0 to {available - 1}", f"frame {held}", "give another --static-frame")
        if camera is not None and held is not None:
            if held >= len(camera):
                raise InputError(f"a camera for frame {held}", f"{len(camera)} cameras", "give the cameras of this clip")
            return Camera(camera.pose[held].expand(frames, 4, 4), camera.fov_x[held].expand(frames))
        return camera if camera is None or self.frames is None else camera[: self.frames]

    def rotations(self, available: int) -> Float[Tensor, "_ 3 3"]:
        """The light's rotation in each frame of the result.

        Raises InputError when the held frame does not exist or the cameras do not match the frames.
        """
        return light_rotations(self.length(available), self.lighting, self.cameras(available))


@dataclass(frozen=True)
class Relit:
    """A clip's G-buffers and the clip under each light."""

    gbuffer: GBuffer
    clips: tuple[Clip, ...]


def hold_frame(gbuffer: GBufferSource, index: int, frames: int) -> GBuffer:
    """G-buffers of ``frames`` frames that all show frame ``index``. Memory is that of one frame."""
    if not 0 <= index < len(gbuffer):
        raise InputError(f"a frame from 0 to {len(gbuffer) - 1} of {gbuffer.name}", f"frame {index}", "give another one")
    frame = next(gbuffer[index : index + 1].chunks(1))
    return replace(frame, **{name: tensor.expand(frames, -1, -1, -1) for name, tensor in frame.tensors()})


def relight_gbuffer(gbuffer: GBufferSource, light: EnvironmentMap, forward: Forward, shot: Shot, **options: Any) -> Clip:
    """The shot that G-buffers show, under ``light``.

    ``options`` go to the forward renderer (steps, guidance, lora_scale, seed, size, progress). Raises InputError when a buffer
    is missing, the held frame does not exist or the cameras do not match the frames.
    """
    camera = shot.cameras(len(gbuffer))
    gbuffer, rotations = play(gbuffer, shot)
    return forward(gbuffer, light, camera=camera, rotations=rotations, **options)


def play(gbuffer: GBufferSource, shot: Shot) -> tuple[GBufferSource, Float[Tensor, "_frames 3 3"]]:
    """The G-buffers of the result, a held frame repeated, and the light's rotation in each of its frames."""
    rotations = shot.rotations(len(gbuffer))
    if shot.static_frame is not None:
        return hold_frame(gbuffer, shot.static_frame, len(rotations)), rotations
    return gbuffer, rotations


def relight(
    clip: ClipSource,
    lights: Sequence[EnvironmentMap],
    inverse: Inverse,
    forward: Forward,
    *,
    shot: Shot | None = None,
    inverse_options: dict[str, Any] | None = None,
    forward_options: dict[str, Any] | None = None,
) -> Relit:
    """A clip under each of several lights; its G-buffers are made once.

    Parameters
    ----------
    clip : the shot.
    lights : panoramas in the units of the forward renderer; see `light_scale` for those of unknown brightness.
    inverse, forward : the renderers, by protocol: diffusion or any other.
    shot : how the lights are placed and whether a frame is held.
    inverse_options, forward_options : passed to the renderers (steps, seed, size, ...).

    Returns the G-buffers and one clip per light, named ``<clip>_<light>`` (lights of one name get distinct ones). Shadows and
    reflections of things outside the picture are not known to G-buffers, so they are the forward renderer's guess.
    """
    options = {"buffers": DEFAULT_BUFFERS, **(inverse_options or {})}
    gbuffer = inverse(clip, **options)
    names = distinct_names([light.name for light in lights])
    clips = (
        replace(
            relight_gbuffer(gbuffer, light, forward, shot or Shot(), **(forward_options or {})),
            name=relit_name(clip.name, name),
        )
        for light, name in zip(lights, names, strict=True)
    )
    return Relit(gbuffer, tuple(clips))
