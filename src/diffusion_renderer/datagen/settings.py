"""What to render and what comes out: `DatasetSettings`, `RenderedClip`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer

#: Variants of Mitsuba in the order in which they are tried.
VARIANTS = ("cuda_ad_rgb", "llvm_ad_rgb", "scalar_rgb")
#: The seed of the clips that renderers are scored on; training refuses shards made from it.
EVALUATION_SEED = 777_777


@dataclass(frozen=True)
class DatasetSettings:
    """Everything that decides what a clip looks like, besides (seed, index).

    Attributes
    ----------
    frames, width, height : size of every clip; pixels.
    samples : paths per pixel. 16 with the denoiser is enough for training at 128 x 128.
    depth : longest light path, in Mitsuba's count (2 is direct light only).
    denoise : run Open Image Denoise over the frames when it can be loaded.
    panoramas : folder of .hdr and .exr files, or None for procedural light only.
    panorama_probability : how often a clip is lit by a file of that folder instead of a procedural panorama.
    panorama_height : rows of the panorama that lights the clip and is stored with it; twice as many columns.
    objects_share : how often a clip shows objects in front of the bare panorama, without a ground.
    buffer_samples : the G-buffers average buffer_samples x buffer_samples first hits per pixel.
    fps : written beside the clip; changes nothing else.
    variant : one of `VARIANTS`, or None to take the first that works.
    """

    frames: int = 4
    width: int = 128
    height: int = 128
    samples: int = 16
    depth: int = 5
    denoise: bool = True
    panoramas: Path | None = None
    panorama_probability: float = 0.5
    panorama_height: int = 128
    objects_share: float = 0.25
    buffer_samples: int = 3
    fps: float = 12.0
    variant: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("width", 8), ("height", 8), ("samples", 1), ("depth", 1), ("buffer_samples", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} of at least {least}", str(getattr(self, name)), "give a larger number")
        for name in ("panorama_probability", "objects_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} between 0 and 1", str(getattr(self, name)), "give a probability")
        if self.panorama_height < 16 or self.panorama_height > 512:
            raise InputError("panorama_height between 16 and 512", str(self.panorama_height), "64 or 128 suit small frames")
        if self.variant is not None and self.variant not in VARIANTS:
            raise InputError(f"a Mitsuba variant ({', '.join(VARIANTS)})", self.variant, "leave it out to choose automatically")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values; the panorama folder by its name only, so that no machine's paths are stored."""
        values = asdict(self)
        values["panoramas"] = None if self.panoramas is None else Path(self.panoramas).name
        return values


@dataclass(frozen=True)
class RenderedClip:
    """One clip with its ground truth.

    ``(gbuffer, environment) -> clip`` holds with exposure 1: the panorama is already multiplied by the exposure of the clip.
    The light is fixed to the world, so in camera space direction d shows the panorama at ``camera.rotation[i] @ d``.

    Attributes
    ----------
    clip : display-referred frames.
    gbuffer : basecolor, normal, depth (scene units, +inf without a hit), roughness, metallic, mask.
    environment : linear radiance, exposure included.
    camera : pose and field of view per frame.
    meta : what is written to clip.json (seed, index, family, exposure, near, far, assets, settings, ...).
    """

    clip: Clip
    gbuffer: GBuffer
    environment: EnvironmentMap
    camera: Camera
    meta: dict[str, Any] = field(default_factory=dict)
