"""Panoramas: Radiance HDR, EXR, and ordinary images."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
from einops import rearrange

from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.panorama import average_panorama
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.io.atomic import write_bytes
from diffusion_renderer.io.exr import HALF_MAX, picture, read_exr, write_exr
from diffusion_renderer.io.images import IMAGE_SUFFIXES, read_rgb, require_file, to_tensor

PANORAMA_SUFFIXES = (".hdr", *IMAGE_SUFFIXES)


def read_environment(path: str | Path, *, height: int | None = None) -> EnvironmentMap:
    """Read an equirectangular panorama as linear radiance: NaN becomes 0, values are clamped to [0, 65504].

    ``.hdr`` and ``.exr`` hold radiance; an ordinary image (png, jpg, ...) is decoded from sRGB, so nothing in it is brighter
    than 1. ``height`` averages a larger panorama down over solid angle. Raises InputError when the file cannot be read or is
    not twice as wide as high (a pixel of rounding is allowed). ``.hdr`` files stored bottom-up or in XYZE are not supported.
    """
    path = Path(path)
    require_file(path)
    if height is not None and height < 1:
        raise InputError("a panorama height of 1 or more", str(height), "leave the height out to keep the file's")
    suffix = path.suffix.lower()
    if suffix == ".hdr":
        radiance = to_tensor(_read_hdr(path))
    elif suffix == ".exr":
        radiance = to_tensor(picture(read_exr(path), path))
    elif suffix in IMAGE_SUFFIXES:
        radiance = srgb_eotf(read_rgb(path))
    else:
        raise InputError(f"a panorama, one of {' '.join(PANORAMA_SUFFIXES)}", str(path), "convert it to .hdr or .exr")
    rows, columns = radiance.shape[-2:]
    if abs(columns - 2 * rows) > 1:
        raise InputError(
            f"an equirectangular panorama twice as wide as high in {path}", f"{columns}x{rows}", "convert it to a 2:1 panorama"
        )
    radiance = radiance.nan_to_num(0.0, posinf=HALF_MAX, neginf=0.0).clamp(0.0, HALF_MAX)
    environment = EnvironmentMap(radiance.contiguous(), path.stem)
    if height is None:
        return environment
    return replace(environment, radiance=average_panorama(environment.radiance, height, 2 * height))


def write_environment(environment: EnvironmentMap, path: str | Path) -> Path:
    """Write a panorama as ``.exr`` (half float) or ``.hdr`` (8 bits of mantissa shared by the three channels)."""
    path = Path(path)
    pixels = rearrange(environment.radiance.detach().float().cpu(), "c h w -> h w c").contiguous().numpy()
    suffix = path.suffix.lower()
    if suffix == ".exr":
        return write_exr(path, dict(zip("RGB", np.moveaxis(pixels, -1, 0), strict=True)))
    if suffix == ".hdr":
        return write_bytes(path, bytes(imagecodecs.rgbe_encode(np.clip(np.nan_to_num(pixels), 0.0, None), header=True)))
    raise InputError("a panorama name ending in .exr or .hdr", str(path), "choose one of these suffixes")


def _read_hdr(path: Path) -> np.ndarray:
    data = path.read_bytes()
    try:
        pixels = imagecodecs.rgbe_decode(data)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"a readable Radiance HDR in {path}", str(error), "check that the file is complete, or use EXR"
        ) from error
    # The decoder passes over EXPOSURE lines, by whose product radiance was multiplied when it was stored.
    header = data[: data.find(b"\n\n")]
    exposure = np.prod([float(value) for value in re.findall(rb"^EXPOSURE=\s*([-+.\deE]+)\s*$", header, re.MULTILINE)])
    return pixels / np.float32(exposure) if exposure > 0 else pixels
