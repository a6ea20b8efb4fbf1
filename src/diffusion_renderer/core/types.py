"""The types that travel: `Clip`, `GBuffer`, `EnvironmentMap`, `Camera`.

All are frozen; all tensors are float32, ``frames channels height width`` for images, and are never changed in place. Reading
and writing are done by the `io` layer, which plugs itself in through `core.persistence`, so this module needs no file format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core import persistence
from diffusion_renderer.core.errors import InputError

#: The buffers in the order of the published domain embedding; the index of a name is its embedding's row.
BUFFERS = ("basecolor", "metallic", "roughness", "normal", "depth", "diffuse_albedo")
#: The five buffers that the forward renderer reads and an inverse renderer returns by default.
DEFAULT_BUFFERS = ("basecolor", "normal", "depth", "roughness", "metallic")
#: Channels of each buffer in memory.
BUFFER_CHANNELS = {"basecolor": 3, "metallic": 1, "roughness": 1, "normal": 3, "depth": 1, "diffuse_albedo": 3}


@dataclass(frozen=True)
class Clip:
    """A display-referred video: sRGB in [0, 1]. A still image is a clip of one frame.

    ``fps`` is frames per second; it is a label for writing files and does not change what the renderers compute.
    ``name`` names output files.
    """

    frames: Float[Tensor, "frames 3 height width"]
    fps: float = 24.0
    name: str = "clip"

    def __len__(self) -> int:
        return self.frames.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.frames.shape[-1], self.frames.shape[-2]

    def __getitem__(self, index: slice) -> Clip:
        return replace(self, frames=self.frames[index])

    def chunks(self, frames: int) -> Iterator[Clip]:
        """The clip in pieces of at most ``frames`` frames; see `core.sources.ClipSource`."""
        return (self[start : start + frames] for start in range(0, len(self), frames))

    @classmethod
    def join(cls, parts: Iterable[Clip], frames: int) -> Clip:
        """The clip of ``frames`` frames that ``parts`` are the pieces of; each is let go as it is copied."""
        start, whole = 0, torch.empty(0)
        for part in parts:
            if start == 0:
                whole = part.frames.new_empty(frames, *part.frames.shape[1:])
            whole[start : start + len(part)] = part.frames
            start += len(part)
        if start != frames:
            raise ValueError(f"pieces of {frames} frames were promised, {start} came")
        return cls(whole, part.fps, part.name)

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> Clip:
        """Read a video, an image or a folder of frames; see `diffusion_renderer.io.read_clip` for formats and options."""
        return persistence.read(cls, path, **options)

    def write(self, path: str | Path, **options: Any) -> Path:
        """Write a video (.mp4) or a folder of frames; see `diffusion_renderer.io.write_clip`."""
        return persistence.write(self, path, **options)


@dataclass(frozen=True)
class GBuffer:
    """The G-buffers of a clip. A buffer that was not asked for is None; those present agree in frames, height and width.

    Attributes
    ----------
    basecolor : linear reflectance in [0, 1].
    normal : camera-space (OpenGL) unit vectors; the zero vector where nothing was hit.
    depth : z-depth, the distance along -z in scene units, +inf where nothing was hit. An inverse renderer predicts depth only
        up to scale: it returns relative depth in [0, 1], near 0, far 1, background 1.
    roughness : perceptual roughness in [0, 1] (GGX alpha = roughness squared).
    metallic : in [0, 1].
    diffuse_albedo : linear, basecolor * (1 - metallic).
    mask : True where the camera saw a surface; None when unknown.
    """

    basecolor: Float[Tensor, "frames 3 height width"] | None = None
    normal: Float[Tensor, "frames 3 height width"] | None = None
    depth: Float[Tensor, "frames 1 height width"] | None = None
    roughness: Float[Tensor, "frames 1 height width"] | None = None
    metallic: Float[Tensor, "frames 1 height width"] | None = None
    diffuse_albedo: Float[Tensor, "frames 3 height width"] | None = None
    mask: Bool[Tensor, "frames 1 height width"] | None = None
    fps: float = 24.0
    name: str = "clip"

    def __post_init__(self) -> None:
        shapes = {name: (t.shape[0], t.shape[-2], t.shape[-1]) for name, t in self.tensors()}
        if len(set(shapes.values())) > 1:
            listing = ", ".join(f"{name} {s[0]} frames of {s[2]}x{s[1]}" for name, s in shapes.items())
            raise InputError("buffers of one size and frame count", listing, "make them agree before building a GBuffer")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every buffer present, the mask included."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the buffers present, in the order of `BUFFERS`; the mask is not a buffer."""
        return tuple(name for name in BUFFERS if getattr(self, name) is not None)

    def __len__(self) -> int:
        for _, tensor in self.tensors():
            return tensor.shape[0]
        return 0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels; (0, 0) when empty."""
        for _, tensor in self.tensors():
            return tensor.shape[-1], tensor.shape[-2]
        return 0, 0

    def __getitem__(self, index: slice) -> GBuffer:
        return replace(self, **{name: tensor[index] for name, tensor in self.tensors()})

    def chunks(self, frames: int) -> Iterator[GBuffer]:
        """The G-buffers in pieces of at most ``frames`` frames; see `core.sources.GBufferSource`."""
        return (self[start : start + frames] for start in range(0, len(self), frames))

    def depth_range(self) -> tuple[float, float] | None:
        """Smallest and largest finite depth of the clip; None without one."""
        if self.depth is None or not (valid := torch.isfinite(self.depth)).any():
            return None
        return float(self.depth[valid].min()), float(self.depth[valid].max())

    def has_relative_depth(self) -> bool:
        """Whether the depth is an inverse renderer's, relative: every pixel in [0, 1], background included.

        Depth in scene units has an infinite background. Taken for relative by mistake is a scene without any background that
        ends within one unit.
        """
        return self.depth is not None and self.depth.numel() > 0 and bool(((self.depth >= 0) & (self.depth <= 1)).all())

    @classmethod
    def join(cls, parts: Iterable[GBuffer], frames: int) -> GBuffer:
        """The G-buffers of ``frames`` frames that ``parts`` are the pieces of; each is let go as it is copied."""
        whole: dict[str, Tensor] = {}
        start = 0
        for part in parts:
            for name, tensor in part.tensors():
                if name not in whole:
                    whole[name] = tensor.new_empty(frames, *tensor.shape[1:])
                whole[name][start : start + len(part)] = tensor
            start += len(part)
        if start != frames:
            raise ValueError(f"pieces of {frames} frames were promised, {start} came")
        return cls(**whole, fps=part.fps, name=part.name)

    def require(self, names: tuple[str, ...]) -> None:
        """Raise InputError when one of ``names`` is absent."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise InputError(
                f"the buffers {', '.join(names)}",
                f"only {', '.join(self.present) or 'none'} in {self.name} (missing: {', '.join(missing)})",
                "make the missing ones with `diffusion-renderer inverse`, or add their files",
            )

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> GBuffer:
        """Read a folder of buffers; see `diffusion_renderer.io.read_gbuffer`."""
        return persistence.read(cls, path, **options)

    def write(self, path: str | Path, **options: Any) -> Path:
        """Write one file per buffer and frame; see `diffusion_renderer.io.write_gbuffer`."""
        return persistence.write(self, path, **options)


@dataclass(frozen=True)
class EnvironmentMap:
    """A panorama of linear radiance, equirectangular, width twice the height, seen from inside.

    Its centre column lies in direction +z, its right half towards -x, its top row at +y (see `core.geometry`). Values are
    finite and in [0, 65504] when read from a file.
    """

    radiance: Float[Tensor, "3 height width"]
    name: str = "light"

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> EnvironmentMap:
        """Read a .hdr or .exr panorama; see `diffusion_renderer.io.read_environment`."""
        return persistence.read(cls, path, **options)

    def write(self, path: str | Path, **options: Any) -> Path:
        """Write an .exr or .hdr panorama; see `diffusion_renderer.io.write_environment`."""
        return persistence.write(self, path, **options)


@dataclass(frozen=True)
class Camera:
    """One pose and field of view per frame.

    Camera space is OpenGL: +x right, +y up, the camera looks down -z. World is +y up.

    Attributes
    ----------
    pose : camera-to-world matrices.
    fov_x : horizontal field of view, degrees.
    """

    pose: Float[Tensor, "frames 4 4"]
    fov_x: Float[Tensor, "frames"]

    def __len__(self) -> int:
        return self.pose.shape[0]

    @property
    def rotation(self) -> Float[Tensor, "frames 3 3"]:
        """Camera-to-world rotations: ``d_world = rotation @ d_camera``."""
        return self.pose[:, :3, :3]

    def __getitem__(self, index: slice) -> Camera:
        return Camera(self.pose[index], self.fov_x[index])

    @classmethod
    def identity(cls, frames: int, fov_x: float = 50.0) -> Camera:
        """A camera at rest at the origin, looking down -z."""
        return cls(torch.eye(4).expand(frames, 4, 4), torch.full((frames,), float(fov_x)))

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> Camera:
        """Read cameras.json: ``{"frames": [{"transform_matrix": 4x4, "fov_x_deg": float}, ...]}``."""
        return persistence.read(cls, path, **options)

    def write(self, path: str | Path, **options: Any) -> Path:
        """Write cameras.json."""
        return persistence.write(self, path, **options)
