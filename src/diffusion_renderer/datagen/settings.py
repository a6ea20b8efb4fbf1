"""What to render and what comes out: `DatasetSettings`, `Sample`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer

#: Variants of Mitsuba in the order in which they are tried.
VARIANTS = ("cuda_ad_rgb", "llvm_ad_rgb", "scalar_rgb")
#: What can move during a clip; see `motion`.
MOTIONS = ("orbit", "oscillation", "light", "object-rotation", "object-translation", "static")
#: Kinds of clips: one object without a ground, objects on a ground, or both mixed.
FAMILIES = ("objects", "scenes", "mixed")
#: How buffers are stored; see `encode`.
FORMATS = ("png8", "png16", "exr")
#: Effort of Open Image Denoise, best first.
DENOISE_QUALITIES = ("high", "balanced", "fast")
#: Which procedural shapes are used.
SHAPES = ("all", "primitives", "rich")
#: Which of the assets in folders are used: all, or those that `assets.split` keeps for training or for testing.
SPLITS = ("all", "train", "test")
#: Settings that came after the first data sets. At these values they are not written down, so that what was begun without them
#: (data sets, rendered suites and the figures of these) goes on.
LATER: dict[str, Any] = {"walls": 0.0, "prints": 0.0}
#: The seed of the clips that renderers are scored on; training refuses shards made from it.
EVALUATION_SEED = 777_777
#: Every such seed; the suites of `evaluation.suites` have one each.
EVALUATION_SEEDS = frozenset({EVALUATION_SEED, 777_778, 777_779})


@dataclass(frozen=True)
class DatasetSettings:
    """Everything that decides what a clip looks like, besides (seed, index).

    Attributes
    ----------
    frames, width, height : size of every clip; pixels.
    samples : paths per pixel. 16 with the denoiser is enough for training at 128 x 128.
    depth : longest light path, in Mitsuba's count (2 is direct light only).
    denoise : run Open Image Denoise over the frames when it can be loaded.
    denoise_quality : one of `DENOISE_QUALITIES`. At 128 x 128 and 16 samples "fast" is 0.9 dB below "high" in a quarter of its
        time (see docs/data.md).
    models, materials, panoramas : folders of assets (see `assets.AssetLibrary`); None for procedural ones only.
    split : one of `SPLITS`: which of the folders' assets are used (see `assets.split`); procedural ones are drawn anew for
        every seed and belong to no split.
    panorama_probability : how often a clip is lit by a file of ``panoramas`` instead of a procedural panorama.
    panorama_height : rows of the panorama that lights the clip and is stored with it; twice as many columns. None chooses by
        the frames' size, for the panorama is seen behind the objects: 128 rows up to 192 pixels, 256 up to 384, else 512.
    family : one of `FAMILIES`.
    objects_share : how often a mixed data set's clip shows one object without a ground.
    walls : how often objects on a ground stand before one to three walls (see `walls`).
    prints : how often they stand on a printed sheet, such as a mat, a board or a table cloth (see `procedural.prints`).
    motions : the names of `MOTIONS` that are drawn from; a clip has one or two of them. Clips of one frame are static.
    shapes : one of `SHAPES`.
    lights : lights that every clip is rendered under, with the same G-buffers.
    format : one of `FORMATS`.
    buffer_samples : in `scalar_rgb`, the G-buffers average buffer_samples x buffer_samples first hits per pixel; the other
        variants average over the samples of the pixel's radiance.
    fps : written beside the clip; changes nothing else.
    variant : one of `VARIANTS`, or None to take the first that works.
    """

    frames: int = 4
    width: int = 128
    height: int = 128
    samples: int = 16
    depth: int = 5
    denoise: bool = True
    denoise_quality: str = "fast"
    models: Path | None = None
    materials: Path | None = None
    panoramas: Path | None = None
    split: str = "all"
    panorama_probability: float = 0.5
    panorama_height: int | None = None
    family: str = "mixed"
    objects_share: float = 0.25
    walls: float = 0.0
    prints: float = 0.0
    motions: tuple[str, ...] = MOTIONS[:-1]
    shapes: str = "all"
    lights: int = 1
    format: str = "png8"
    buffer_samples: int = 3
    fps: float = 12.0
    variant: str | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("frames", 1),
            ("width", 8),
            ("height", 8),
            ("samples", 1),
            ("depth", 1),
            ("buffer_samples", 1),
            ("lights", 1),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} of at least {least}", str(getattr(self, name)), "give a larger number")
        for name in ("panorama_probability", "objects_share", "walls", "prints"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} between 0 and 1", str(getattr(self, name)), "give a probability")
        if self.panorama_height is None:
            object.__setattr__(self, "panorama_height", self.texture_size)
        if self.panorama_height < 16 or self.panorama_height > 512:
            raise InputError("panorama_height between 16 and 512", str(self.panorama_height), "64 or 128 suit small frames")
        choices = {
            "family": FAMILIES,
            "format": FORMATS,
            "denoise_quality": DENOISE_QUALITIES,
            "shapes": SHAPES,
            "split": SPLITS,
        }
        for name, known in choices.items():
            check_name(name.replace("_", " "), getattr(self, name), known)
        for name in self.motions:
            check_name("motion", name, MOTIONS)
        if not self.motions:
            raise InputError(f"motions among {', '.join(MOTIONS)}", "none", "give one, or `static`")
        if self.variant is not None and self.variant not in VARIANTS:
            raise InputError(f"a Mitsuba variant ({', '.join(VARIANTS)})", self.variant, "leave it out to choose automatically")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values but for those of `LATER`; folders by their names only: no machine's paths are stored."""
        values = without_later(asdict(self))
        for name in ("models", "materials", "panoramas"):
            folder = getattr(self, name)
            values[name] = None if folder is None else Path(folder).name
        values["motions"] = list(self.motions)
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any], **folders: Path | None) -> DatasetSettings:
        """The inverse of `to_json`; ``folders`` gives the paths of models, materials and panoramas, which it does not hold.

        Entries that are no settings (a clip's "renderer" has some) are ignored. Raises InputError when folders that were used
        are not given, and for values that cannot be.
        """
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        used = [name for name in ("models", "materials", "panoramas") if known.get(name) and folders.get(name) is None]
        if used:
            named = ", ".join(f"{name} {known[name]}" for name in used)
            raise InputError(f"the folders of the assets that were used ({named})", "none", "give --assets DIR")
        given = {name: folders.get(name) if known.get(name) else None for name in ("models", "materials", "panoramas")}
        return cls(**{**known, **given, "motions": tuple(known.get("motions", MOTIONS[:-1]))})

    @property
    def texture_size(self) -> int:
        """Texels along a side of procedural textures, and at most of files' textures: more would not be seen in a frame."""
        longest = max(self.width, self.height)
        return 128 if longest <= 192 else 256 if longest <= 384 else 512


def without_later(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as plain values without those of `LATER` that are as they were before these could be set."""
    return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}


@dataclass(frozen=True)
class Relit:
    """The same clip under another light, with the same G-buffers.

    Attributes
    ----------
    clip : display-referred frames.
    environment : linear radiance, exposure included.
    light_rotation : as in `Sample`.
    """

    clip: Clip
    environment: EnvironmentMap
    light_rotation: Float[Tensor, "frames 3 3"] | None = None


@dataclass(frozen=True)
class Sample:
    """One clip with its ground truth, rendered here or read from a public data set: the paper's {I, G-buffers, E}.

    ``(gbuffer, environment) -> clip`` holds with exposure 1: the panorama is already multiplied by the exposure of the clip.
    What a data set lacks is None, never invented; so is a buffer of ``gbuffer``.

    Attributes
    ----------
    clip : display-referred frames.
    gbuffer : basecolor, normal, depth (scene units, +inf without a hit), roughness, metallic, mask.
    environment : linear radiance, exposure included.
    camera : pose and field of view per frame.
    meta : what is written to clip.json (seed, index, family, exposure, near, far, assets, settings, ...).
    light_rotation : per frame, from world directions to directions of the panorama; None for a light at rest in the world.
        Camera-space direction d of frame i shows the panorama at ``lookup[i] @ d``.
    ids : per pixel the object seen, 1 for the first of ``meta["assets"]["objects"]``, 0 for none.
    relit : the clip under more lights.
    """

    clip: Clip
    gbuffer: GBuffer
    environment: EnvironmentMap | None = None
    camera: Camera | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    light_rotation: Float[Tensor, "frames 3 3"] | None = None
    ids: UInt8[Tensor, "frames 1 height width"] | None = None
    relit: tuple[Relit, ...] = ()

    @property
    def lookup(self) -> Float[Tensor, "frames 3 3"]:
        """R of CONVENTIONS ("Lookup"): camera-space direction d shows the panorama at ``R[i] @ d``. Needs ``camera``."""
        if self.camera is None:
            raise InputError("a clip with camera poses", f"none in {self.clip.name}", "leave it out, or add its poses")
        rotation = self.camera.rotation
        return rotation if self.light_rotation is None else self.light_rotation @ rotation

    def under_each_light(self) -> Iterator[Sample]:
        """The clip under its first light, then under each of `relit`: samples of their own that share all else."""
        yield replace(self, relit=())
        for other in self.relit:
            lit = {"clip": other.clip, "environment": other.environment, "light_rotation": other.light_rotation}
            yield replace(self, **lit, relit=())
