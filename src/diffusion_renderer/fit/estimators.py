"""Where the light of a real clip comes from: an estimate, or a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.fit.light import estimate_light
from diffusion_renderer.io import read_environment

#: Suffixes of a clip's light, in the order in which they are tried.
LIGHT_SUFFIXES = (".hdr", ".exr")


@runtime_checkable
class LightEstimator(Protocol):
    """Anything that tells the light of a clip.

    The panorama is linear, as bright as the clip is exposed, and turned as `estimate_light` says: with the world when there is
    a camera, with the camera's own frame when there is none.
    """

    def __call__(self, clip: Clip, gbuffer: GBuffer, camera: Camera | None) -> EnvironmentMap: ...


@dataclass(frozen=True)
class LinearLight:
    """`estimate_light` as a `LightEstimator`."""

    rows: int = 16
    pixels: int = 4096
    seed: int = 0

    def __call__(self, clip: Clip, gbuffer: GBuffer, camera: Camera | None) -> EnvironmentMap:
        """The estimated panorama; raises InputError as `estimate_light`."""
        return estimate_light(clip, gbuffer, camera=camera, rows=self.rows, pixels=self.pixels, seed=self.seed).environment


@dataclass(frozen=True)
class FileLights:
    """The light of each clip from a file, ``<clip>.hdr`` or ``<clip>.exr`` in a folder: made by DiffusionLight, or measured.

    The file must follow the project's panoramas: centre column behind the camera (+z), top row up, and linear radiance in the
    clip's exposure. Nothing is turned or scaled here.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not Path(self.folder).is_dir():
            raise InputError("a folder with a panorama for every clip", f"{self.folder}, which is none", "check the path")

    def __call__(self, clip: Clip, gbuffer: GBuffer | None = None, camera: Camera | None = None) -> EnvironmentMap:
        """The panorama of ``clip.name``; neither G-buffers nor camera are looked at."""
        return self.read(clip.name)

    def read(self, *names: str) -> EnvironmentMap:
        """The panorama of the first of ``names`` that has a file; InputError when none has, or the file cannot be read."""
        for name in names:
            for suffix in LIGHT_SUFFIXES:
                path = Path(self.folder) / f"{name}{suffix}"
                if path.is_file():
                    return read_environment(path)
        wanted = " or ".join(f"{name}{{{','.join(LIGHT_SUFFIXES)}}}" for name in names)
        raise InputError(f"{wanted} in {self.folder}", "no such file", "add the panorama, or leave the clip out")
