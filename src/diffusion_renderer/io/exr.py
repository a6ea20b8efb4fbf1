"""OpenEXR files as plain arrays by channel name."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import OpenEXR

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io.atomic import atomic_path

#: The largest finite half float: larger values would become infinite in a file.
HALF_MAX = 65504.0

#: Channel letters of each buffer's EXR layer, the ones we write first.
LAYER_LETTERS = {
    "basecolor": ("RGB",),
    "normal": ("XYZ", "RGB"),
    "depth": ("Z", "Y", "V", "R"),
    "roughness": ("Y", "V", "R", "X"),
    "metallic": ("Y", "V", "R", "X"),
    "diffuse_albedo": ("RGB",),
    "mask": ("Y", "V", "R", "A"),
}


def read_exr(path: Path) -> dict[str, np.ndarray]:
    """All channels of the first part, float32 ``height width``, keyed by full name such as ``basecolor.R``.

    Cannot read deep images, further parts, or channels stored at a lower resolution.
    """
    try:
        # Through memory: reading by name makes the library print its own message beside ours.
        data = BytesIO(path.read_bytes())
        with OpenEXR.File(data, separate_channels=True) as file:
            channels = {name: np.array(channel.pixels, dtype=np.float32) for name, channel in file.channels().items()}
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise InputError(
            f"a readable EXR image in {path}", str(error), "check that the file is complete, or export it again"
        ) from error
    if not channels or any(pixels.ndim != 2 or pixels.size == 0 for pixels in channels.values()):
        raise InputError(f"flat image channels in {path}", ", ".join(channels) or "none", "export it as a flat scan-line EXR")
    if len({pixels.shape for pixels in channels.values()}) > 1:
        raise InputError(f"channels of one size in {path}", "subsampled channels", "export it without chroma subsampling")
    return channels


def write_exr(path: Path, channels: dict[str, np.ndarray]) -> Path:
    """Write channels (``height width`` each) as half floats, ZIP-compressed; finite values are clamped to the half range."""
    half = {name: np.ascontiguousarray(to_half(pixels)) for name, pixels in channels.items()}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with atomic_path(path) as temporary, OpenEXR.File(header, half) as file:
        file.write(str(temporary))
    return path


def to_half(pixels: np.ndarray) -> np.ndarray:
    """Half floats as they are written: finite values clamped to what is finite there, the others kept."""
    return np.where(np.isfinite(pixels), np.clip(pixels, -HALF_MAX, HALF_MAX), pixels).astype(np.float16)


def layer(channels: dict[str, np.ndarray], name: str, letters: str) -> np.ndarray | None:
    """The channels ``name.letters[i]`` stacked as ``height width channels``; None when one is absent.

    An empty name looks for bare channels (``R``). Case does not count, because writers disagree.
    """
    lower = {key.lower(): pixels for key, pixels in channels.items()}
    keys = [f"{name}.{letter}".strip(".").lower() for letter in letters]
    return np.stack([lower[key] for key in keys], axis=-1) if all(key in lower for key in keys) else None


def picture(channels: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """Linear RGB, ``height width 3``, of an EXR that shows a picture: RGB, some layer's RGB, or one grey channel."""
    layers = sorted({name.rpartition(".")[0] for name in channels}, key=lambda name: (name != "", name != "rgb", name))
    for name in layers:
        rgb = layer(channels, name, "RGB")
        if rgb is not None:
            return rgb
    grey = [pixels for name, pixels in channels.items() if name.rpartition(".")[2].upper() != "A"]
    if len(grey) == 1:
        return np.repeat(grey[0][..., None], 3, axis=-1)
    raise InputError(f"RGB channels in {path}", ", ".join(sorted(channels)), "export the picture with channels R, G and B")
