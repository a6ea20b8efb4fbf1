"""Texture images: bytes or files to arrays, decoded to linear values, resized."""

from __future__ import annotations

import functools
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import torch
from jaxtyping import Float
from PIL import Image

from diffusion_renderer.core.resize import resize as resize_tensor
from diffusion_renderer.datagen.assets.limits import Unusable
from diffusion_renderer.datagen.colour import srgb_decoded
from diffusion_renderer.io.exr import picture, read_exr

#: A larger image is refused before it is decoded (16384 x 8192).
_MAX_PIXELS = 2**27
_LINEAR_SUFFIX = ".exr"


def decode(data: bytes, longest: int) -> np.ndarray:
    """An encoded image as ``rows columns channels`` (1 to 4), uint8 or uint16, not yet linear.

    Large 8-bit images are averaged down by a whole factor to no less than twice ``longest`` texels, in their own encoding:
    that is several times as fast as decoding all of a photograph. Raises Unusable when the data cannot be read.
    """
    try:
        # Pillow cuts 16-bit colour to 8; byte 24 of a PNG is its bit depth.
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":
            pixels = imagecodecs.png_decode(data)
        elif data[:4] in (b"II*\0", b"MM\0*"):
            pixels = _tiff(data)
        else:
            pixels = _pillow(data, longest)
    except Exception as error:  # the decoders' own errors have no common base
        raise Unusable(f"a texture cannot be decoded ({error})") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _tiff(data: bytes) -> np.ndarray:
    pixels = tifffile.imread(BytesIO(data), key=0)
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3):
        raise ValueError(f"a TIFF of {pixels.dtype} values, shape {pixels.shape}")
    return pixels


def _pillow(data: bytes, longest: int) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels")
        image.draft(None, (2 * longest, 2 * longest))
        if image.mode.startswith("I"):
            return np.asarray(image).astype(np.uint16)
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            alpha = image.mode in ("PA", "La", "RGBa") or "transparency" in image.info
            image = image.convert("L" if image.mode == "1" else "RGBA" if alpha else "RGB")
        factor = max(image.size) // (2 * longest)
        return np.asarray(image.reduce(factor) if factor > 1 else image)


def read(path: Path, longest: int) -> tuple[np.ndarray, bool]:
    """`decode` of a file, and whether its values are linear already (OpenEXR, float32)."""
    if path.suffix.lower() == _LINEAR_SUFFIX:
        return np.nan_to_num(picture(read_exr(path), path), nan=0.0, posinf=1.0, neginf=0.0), True
    return decode(path.read_bytes(), longest), False


def to_unit(pixels: np.ndarray) -> Float[np.ndarray, "rows columns channels"]:
    """Stored values to [0, 1], without any curve."""
    if np.issubdtype(pixels.dtype, np.integer):
        return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    return pixels.astype(np.float32)


def to_linear(pixels: np.ndarray) -> Float[np.ndarray, "rows columns channels"]:
    """sRGB-encoded integers to linear light in [0, 1] (IEC 61966-2-1), by a table."""
    return _curve(np.iinfo(pixels.dtype).max)[pixels]


@functools.lru_cache(maxsize=2)
def _curve(top: int) -> np.ndarray:
    return srgb_decoded(np.arange(top + 1) / top).astype(np.float32)


def rgb(pixels: np.ndarray) -> np.ndarray:
    """The colour channels of 1 to 4, grey repeated."""
    return np.repeat(pixels[..., :1], 3, axis=-1) if pixels.shape[-1] < 3 else pixels[..., :3]


def alpha_of(pixels: np.ndarray) -> np.ndarray | None:
    """The alpha channel of 2 or 4 channels, ``rows columns 1``; None without one."""
    return pixels[..., -1:] if pixels.shape[-1] in (2, 4) else None


def resize(
    image: Float[np.ndarray, "_rows _columns channels"], rows: int, columns: int
) -> Float[np.ndarray, "rows columns channels"]:
    """Bilinear, averaged over the area of a texel where it shrinks. A constant (1 x 1) image is repeated."""
    if image.shape[:2] == (rows, columns):
        return image.astype(np.float32, copy=False)
    if image.shape[:2] == (1, 1):
        return np.broadcast_to(image, (rows, columns, image.shape[-1])).astype(np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32))[None]
    return resize_tensor(tensor, (columns, rows))[0].permute(1, 2, 0).contiguous().numpy()


def limited(image: Float[np.ndarray, "_rows _columns channels"], longest: int) -> Float[np.ndarray, "rows columns channels"]:
    """At most ``longest`` texels along the longer side, its shape kept."""
    rows, columns = image.shape[:2]
    scale = min(1.0, longest / max(rows, columns))
    return resize(image, max(1, round(rows * scale)), max(1, round(columns * scale)))


def sampled(image: Float[np.ndarray, "rows columns channels"], uv: Float[np.ndarray, "*points 2"]) -> np.ndarray:
    """Bilinear lookup with repetition, row 0 at v = 0: ``points channels``."""
    rows, columns = image.shape[:2]
    x, y = uv[..., 0] * columns - 0.5, uv[..., 1] * rows - 0.5
    left, top = np.floor(x), np.floor(y)
    right_share, below_share = (x - left)[..., None], (y - top)[..., None]
    columns_at = [(left + k).astype(np.int64) % columns for k in (0, 1)]
    rows_at = [(top + k).astype(np.int64) % rows for k in (0, 1)]
    lines = [image[row, columns_at[0]] * (1 - right_share) + image[row, columns_at[1]] * right_share for row in rows_at]
    return lines[0] * (1 - below_share) + lines[1] * below_share
