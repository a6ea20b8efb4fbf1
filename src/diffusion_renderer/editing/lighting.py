"""How a light is turned and scaled for a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import luminance
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera, EnvironmentMap
from diffusion_renderer.light import (
    camera_fixed,
    compose,
    elevated,
    mean_radiance,
    rotating,
    scale_exposure,
    world_fixed,
    yawed,
)
from diffusion_renderer.pipelines import ForwardSettings


@dataclass(frozen=True)
class LightOptions:
    """How a light is placed around a shot.

    Attributes
    ----------
    rotate : turn it once around the vertical over the clip, ``Ry(2 pi i / (n - 1))``, both ends included.
    yaw, elevation : static turn about the vertical and tilt about the horizontal (the published ``cam_elevation``), degrees.
    frame : what it is fixed to. None: the world when cameras are at hand, else the camera.
    """

    rotate: bool = False
    yaw: float = 0.0
    elevation: float = 0.0
    frame: Literal["camera", "world"] | None = None


def light_rotations(frames: int, options: LightOptions, camera: Camera | None = None) -> Float[Tensor, "{frames} 3 3"]:
    """Per-frame rotations R: camera-space direction d shows the panorama at ``R d``.

    ``R = Ry(rotate) Ry(yaw) Rx(elevation) B`` with B the identity for a light fixed to the camera, the camera-to-world rotation
    for one fixed to the world. Raises InputError for a light fixed to the world without cameras, and for cameras whose number
    is not ``frames``.
    """
    if options.frame == "world" and camera is None:
        raise InputError(
            "cameras for a light fixed to the world", "none", "give --cameras cameras.json, or --light-frame camera"
        )
    base = camera_fixed(frames)
    if camera is not None and options.frame != "camera":
        if len(camera) != frames:
            raise InputError(
                f"one camera per frame, {frames} in all",
                f"{len(camera)} in the cameras file",
                "give the cameras of this clip, or process as many frames with --frames",
            )
        base = world_fixed(camera)
    turn = rotating(frames) if options.rotate else camera_fixed(frames)
    return compose(turn, yawed(frames, options.yaw), elevated(frames, options.elevation), base)


def light_scale(environment: EnvironmentMap, settings: ForwardSettings) -> float:
    """The factor that brings a panorama into the range of brightness which a forward renderer knows; 1 inside that range.

    The training clips were exposed to a mid-grey picture, so the renderer has seen panoramas of a limited range of brightness,
    while a panorama from a file may be in any unit. One that is darker or brighter than any seen in training is brought to the
    nearer end of the range; others, and a black one, stay as they are.
    """
    found = float(luminance(mean_radiance(environment)[:, None, None]))
    if settings.light_luminance is None or found <= 0.0:
        return 1.0
    low, high = settings.light_luminance
    return min(max(found, low), high) / found


def scaled(environment: EnvironmentMap, factor: float) -> EnvironmentMap:
    """The panorama ``factor`` times as bright; itself when the factor is 1."""
    return environment if factor == 1.0 else scale_exposure(environment, factor)
