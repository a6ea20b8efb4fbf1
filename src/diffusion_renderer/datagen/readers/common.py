"""What the readers share: saying what is missing, reading pixels, choosing an exposure, describing a sample."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import luminance, srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer

#: The exposure puts this percentile of the valid pixels' luminance at this display-referred value: HyperSim's rule (Roberts et
#: al., ICCV 2021, after Li and Snavely, CGIntrinsics, ECCV 2018), with the sRGB curve in place of its gamma of 1/2.2.
EXPOSURE_PERCENTILE, EXPOSURE_DISPLAY = 90.0, 0.8
EXPOSURE_RULE = f"percentile {EXPOSURE_PERCENTILE:g} of the valid pixels' luminance at {EXPOSURE_DISPLAY:g} in sRGB"
#: Below this luminance an image counts as black, and its exposure stays 1.
_BLACK = 1e-6
_HALF_MAX = 65504.0
#: World axes of Blender, nerfstudio and HyperSim (+z up) to ours (+y up): x stays, z becomes y, y becomes -z.
Z_UP_TO_Y_UP = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))

Item = TypeVar("Item")


@dataclass(frozen=True)
class PublicSet:
    """What a reader says of its data set, in clip.json and in errors.

    Attributes
    ----------
    name : as in `READERS`.
    licence : as far as it is public.
    website : where the data set and its terms are.
    layout : the files that the reader looks for, relative to the folder.
    """

    name: str
    licence: str
    website: str
    layout: str


def layout_error(public: PublicSet, folder: Path, missing: str) -> InputError:
    """The error for a folder that is not in the data set's layout: what belongs there, what is missing, where to get it."""
    advice = f"give the data set's top folder as it was unpacked; {public.name} is at {public.website}"
    return InputError(f"{public.name} in {folder} laid out as {public.layout}", f"missing: {missing}", advice)


def require_folder(public: PublicSet, folder: str | Path) -> Path:
    """The folder as a path; InputError when there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise InputError(f"a folder with {public.name} at {folder}", found, f"get the data set at {public.website}")
    return folder


def require_files(public: PublicSet, folder: Path, names: Sequence[str]) -> None:
    """InputError that lists those of ``names`` that are not files of ``folder``."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise layout_error(public, folder, ", ".join(missing))


def require_stills(public: PublicSet, frames: int | None) -> None:
    """InputError when clips are asked of a data set whose images are unrelated views."""
    if frames not in (None, 1):
        raise InputError(
            f"1 frame per clip of {public.name}, whose images are separate stills", str(frames), "leave frames out"
        )


def require_frames(frames: int | None, default: int) -> int:
    """The length of a clip; InputError below 1."""
    if frames is not None and frames < 1:
        raise InputError("a number of frames of 1 or more", str(frames), f"leave it out for {default}")
    return default if frames is None else frames


def in_clips(items: Sequence[Item], frames: int) -> Iterator[Sequence[Item]]:
    """Consecutive pieces of ``frames`` items. What is left at the end is dropped, unless it is all there is."""
    if 0 < len(items) < frames:
        yield items
    for start in range(0, len(items) - frames + 1, frames):
        yield items[start : start + frames]


def natural(name: str) -> list[str | int]:
    """A sorting key under which frame_2 comes before frame_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def read_display(path: Path) -> Float[Tensor, "3 height width"]:
    """A display-referred image (png, jpg) in [0, 1]."""
    from diffusion_renderer.io.images import read_rgb

    return read_rgb(path).contiguous()


def read_channels(path: Path, channels: int) -> Float[Tensor, "channels height width"]:
    """The first ``channels`` (1 or 3) channels of an EXR as they are, in the order R G B or X Y Z.

    For one channel, a file that holds just one may call it anything. Raises InputError when there are too few.
    """
    from diffusion_renderer.io.exr import layer, read_exr

    stored = read_exr(path)
    for letters in ("RGB", "XYZ"):
        pixels = layer(stored, "", letters)
        if pixels is not None:
            return torch.from_numpy(np.moveaxis(pixels[..., :channels], -1, 0).copy())
    if channels == 1 and len(stored) == 1:
        return torch.from_numpy(next(iter(stored.values()))[None].copy())
    if channels == 1 and (pixels := layer(stored, "", "R")) is not None:
        return torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())
    names = "R, G, B" if channels == 3 else "R, or a single channel"
    raise InputError(f"the channels {names} in {path}", ", ".join(sorted(stored)), "check that the file is the data set's own")


def read_linear(path: Path) -> Float[Tensor, "3 height width"]:
    """Linear light of an EXR: not finite becomes 0, values are clamped to [0, 65504]."""
    return read_channels(path, 3).nan_to_num(0.0, posinf=_HALF_MAX, neginf=0.0).clamp(0.0, _HALF_MAX)


def choose_exposure(linear: Float[Tensor, "frames 3 h w"], mask: Bool[Tensor, "frames 1 h w"] | None) -> float:
    """The factor by `EXPOSURE_RULE`: one for the whole clip. 1 for a black clip, or without a valid pixel."""
    values = luminance(linear)
    values = values if mask is None else values[mask]
    if values.numel() == 0:
        return 1.0
    level = float(np.percentile(values.numpy(), EXPOSURE_PERCENTILE))
    return float(srgb_eotf(torch.tensor(EXPOSURE_DISPLAY))) / level if level > _BLACK else 1.0


def display_clip(linear: Float[Tensor, "frames 3 h w"], exposure: float, name: str) -> Clip:
    """CONVENTIONS' clip of linear light: ``srgb_oetf(clip(exposure * linear, 0, 1))``."""
    return Clip(srgb_oetf((exposure * linear).clamp(0.0, 1.0)), name=name)


def exposed(radiance: Float[Tensor, "3 height width"], exposure: float, name: str) -> EnvironmentMap:
    """A panorama times the exposure of its clip."""
    radiance = (radiance * exposure).nan_to_num(0.0, posinf=_HALF_MAX, neginf=0.0).clamp(0.0, _HALF_MAX)
    return EnvironmentMap(radiance.contiguous(), name)


def unit_normals(normal: Float[Tensor, "*frames 3 h w"], mask: Bool[Tensor, "*frames 1 h w"]) -> Float[Tensor, "*frames 3 h w"]:
    """Normals made unit length; the zero vector outside the mask and where the file holds no direction."""
    normal = normal.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    length = normal.norm(dim=-3, keepdim=True)
    return torch.where(mask & (length > 0.1), normal / length.clamp_min(1e-6), torch.zeros_like(normal))


def masked(value: Float[Tensor, "*frames c h w"], mask: Bool[Tensor, "*frames 1 h w"]) -> Float[Tensor, "*frames c h w"]:
    """Values in [0, 1], 0 outside the mask."""
    value = value.nan_to_num(0.0, posinf=1.0, neginf=0.0).clamp(0.0, 1.0)
    return torch.where(mask, value, torch.zeros_like(value))


def relative(paths: Sequence[Path], folder: Path) -> list[str]:
    """Paths as they are stored in clip.json: below the data set's folder, so that no machine's paths appear."""
    return [path.relative_to(folder).as_posix() for path in paths]


def describe(
    public: PublicSet, scene: str, clip: Clip, gbuffer: GBuffer, files: list[str], converted: dict[str, str], **more: Any
) -> dict[str, Any]:
    """The meta of a sample: where it comes from, its licence, the files used, and what was converted how.

    ``near`` and ``far`` are the depth range in scene units, null without depth.
    """
    near, far = gbuffer.depth_range() or (None, None)
    return {
        "name": clip.name,
        "dataset": public.name,
        "scene": scene,
        "licence": public.licence,
        "website": public.website,
        "files": files,
        "converted": converted,
        "fps": clip.fps,
        "near": near,
        "far": far,
        **more,
    }
