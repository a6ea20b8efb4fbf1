"""Single images in and out of tensors in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import imagecodecs
import numpy as np
import tifffile
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io.atomic import atomic_path, write_bytes
from diffusion_renderer.io.exr import picture, read_exr, write_exr

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".exr")
#: PNG compression: level 1 is five times as fast as 6 here for files a tenth larger.
PNG_LEVEL = 1
WORKERS = 4

Item = TypeVar("Item")


def read_image(path: str | Path) -> Float[Tensor, "channels height width"]:
    """One display-referred image, 1 (grey) or 3 channels in [0, 1]; alpha is composited over black.

    8 and 16 bits per channel are kept exact. An EXR is linear light: it is clipped to [0, 1] and sRGB-encoded (exposure 1), its
    NaN pixels black. Turned photographs are righted. Only the first page of a TIFF or frame of an animated WebP is read.
    """
    path = Path(path)
    require_file(path)
    if path.suffix.lower() == ".exr":
        linear = np.nan_to_num(picture(read_exr(path), path), nan=0.0, posinf=1.0, neginf=0.0)
        return srgb_oetf(to_tensor(linear))
    try:
        pixels = _decode(path)
    except (OSError, ValueError, RuntimeError, SyntaxError, IndexError, Image.DecompressionBombError) as error:
        raise InputError(
            f"a readable image in {path}", _reason(error), "check that the file is complete, or convert it to PNG"
        ) from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 2, 3, 4) or pixels.size == 0:
        raise InputError(f"a grey or RGB image in {path}", f"an array of shape {pixels.shape}", "convert it to PNG")
    image = _to_unit(pixels)
    if image.shape[-1] in (2, 4):
        image = image[..., :-1] * image[..., -1:]
    return to_tensor(image)


def read_rgb(path: Path) -> Float[Tensor, "3 height width"]:
    """`read_image` with grey repeated to three channels."""
    image = read_image(path)
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image


def write_image(path: str | Path, image: Float[Tensor, "channels height width"], bits: int = 8) -> Path:
    """Write a display-referred image in [0, 1], 1 or 3 channels, in the format of the suffix; ``bits`` 8 or 16 (PNG, TIFF).

    An EXR gets linear light. Values outside [0, 1] are clamped.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".exr":
        linear = srgb_eotf(image.detach()).cpu().numpy()
        return write_exr(path, dict(zip("RGB" if len(linear) == 3 else "Y", linear, strict=True)))
    pixels = quantise(image, bits)
    if suffix == ".png":
        return write_bytes(path, imagecodecs.png_encode(pixels, level=PNG_LEVEL))
    with atomic_path(path) as temporary:
        if suffix in (".tif", ".tiff"):
            tifffile.imwrite(temporary, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", compression="zlib")
        elif suffix in (".jpg", ".jpeg", ".webp"):
            Image.fromarray(pixels).save(temporary, quality=95)
        else:
            raise InputError(f"an image format, one of {' '.join(IMAGE_SUFFIXES)}", str(path), "choose one of these suffixes")
    return path


def quantise(image: Float[Tensor, "channels height width"], bits: int = 8) -> np.ndarray:
    """Round [0, 1] to unsigned integers, ``height width`` or ``height width 3``; NaN becomes 0."""
    top = 2**bits - 1
    integers = (image.detach().nan_to_num(0.0).clamp(0.0, 1.0) * top).round().cpu().numpy()
    pixels = rearrange(integers.astype(np.uint8 if bits == 8 else np.uint16), "c h w -> h w c")
    # A copy and not ascontiguousarray: that keeps the odd strides of a 1x1 image, which the PNG encoder refuses.
    return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels).copy(order="C")


def to_tensor(pixels: np.ndarray) -> Float[Tensor, "channels height width"]:
    """``height width channels`` to a contiguous float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(rearrange(pixels, "h w c -> c h w"), dtype=np.float32))


def in_parallel(function: Callable[[Item], object], items: Iterable[Item]) -> list:
    """Call ``function`` on every item from a few threads (the codecs release the interpreter lock); results stay in order.

    At most a few items wait at a time, so that ``items`` may be a generator of large images. The first error is raised.
    """
    results = []
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting = []
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * WORKERS:
                results.append(waiting.pop(0).result())
        results.extend(job.result() for job in waiting)
    return results


def require_file(path: Path) -> None:
    """InputError when ``path`` is not a file, or an empty one."""
    if not path.exists():
        raise InputError(f"an existing file at {path}", "nothing there", "check the path")
    if path.is_dir():
        raise InputError(f"a file at {path}", "a folder", "give a file inside it")
    if path.stat().st_size == 0:
        raise InputError(f"data in {path}", "an empty file", "fetch or export the file again")


def _decode(path: Path) -> np.ndarray:
    data = path.read_bytes()
    # Pillow cuts 16-bit colour to 8; byte 24 of a PNG is its bit depth.
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":
        return imagecodecs.png_decode(data)
    if path.suffix.lower() in (".tif", ".tiff"):
        pixels = tifffile.imread(path, key=0)
        if pixels.dtype in (np.uint16, np.float16, np.float32) and pixels.ndim in (2, 3):
            return pixels
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "1":
            image = image.convert("L")
        if image.mode.startswith(("I", "F")):
            return np.asarray(image, dtype=np.float32) / (65535.0 if image.mode.startswith("I") else 1.0)
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            has_alpha = image.mode in ("PA", "La", "RGBa") or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "RGB")
        elif image.mode in ("L", "RGB") and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image)


def _to_unit(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255
    if pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / 65535
    return np.clip(np.nan_to_num(pixels.astype(np.float32), nan=0.0), 0.0, 1.0)


def _reason(error: Exception) -> str:
    return "not an image that can be identified" if "cannot identify" in str(error) else str(error) or type(error).__name__
