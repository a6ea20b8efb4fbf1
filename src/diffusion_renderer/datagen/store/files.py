"""The files of a clip as bytes: PNG, EXR, JSON. What goes into which file is the business of `encode`."""

from __future__ import annotations

import io
import json
from typing import Any

import imagecodecs
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from diffusion_renderer.core.types import Camera

#: How PNG is compressed unless a level is asked for. Of 50 combinations measured on the seven images of 24 rendered frames of
#: 192 x 128 this is the fastest and among the smallest: 2.7 ms and 96 kB a frame; libpng's own choice takes 5.6 ms and
#: 104 kB at level 1, Pillow 8.2 ms and 103 kB at level 2. The level means nothing to run-length encoding.
FAST_PNG = {"level": 2, "strategy": imagecodecs.PNG.STRATEGY.RLE, "filter": imagecodecs.PNG.FILTER.PAETH}
#: The largest finite half float.
HALF_MAX = 65504.0


def encode_json(value: Any) -> bytes:
    """JSON that people can read; numbers come back exactly."""
    return (json.dumps(value, indent=1) + "\n").encode()


def cameras_to_json(camera: Camera) -> dict[str, Any]:
    """CONVENTIONS' cameras.json."""
    pairs = zip(camera.pose, camera.fov_x, strict=True)
    return {"frames": [{"transform_matrix": pose.tolist(), "fov_x_deg": float(fov)} for pose, fov in pairs]}


def cameras_from_json(value: dict[str, Any]) -> Camera:
    """The inverse of `cameras_to_json`."""
    pose = torch.tensor([frame["transform_matrix"] for frame in value["frames"]], dtype=torch.float32)
    return Camera(pose, torch.tensor([frame["fov_x_deg"] for frame in value["frames"]], dtype=torch.float32))


def encode_png(image: Float[Tensor, "channels height width"], bits: int = 8, compression: int | None = None) -> bytes:
    """A grey or RGB image in [0, 1] as PNG of 8 or 16 bits; values outside are clamped, NaN becomes 0.

    ``compression`` None is fast; 9 makes the smallest files and takes twenty times as long.
    """
    top = 2**bits - 1
    values = (image.nan_to_num(0.0).clamp(0, 1) * top).round().numpy().astype(np.uint8 if bits == 8 else np.uint16)
    return _encode_integers(values, compression)


def encode_labels(labels: UInt8[Tensor, "1 height width"], compression: int | None = None) -> bytes:
    """Integers from 0 to 255 as an 8-bit grey PNG."""
    return _encode_integers(labels.numpy(), compression)


def decode_png(data: bytes) -> Float[Tensor, "channels height width"]:
    """A grey or RGB PNG of 8 or 16 bits as an image in [0, 1]. Raises ValueError for anything else."""
    pixels = _decode_integers(data)
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max))


def decode_labels(data: bytes) -> UInt8[Tensor, "1 height width"]:
    """The inverse of `encode_labels`. Raises ValueError for an image of another kind."""
    pixels = _decode_integers(data)
    if pixels.dtype != np.uint8 or len(pixels) != 1:
        raise ValueError(f"ids as 8-bit grey, not {len(pixels)} channels of {pixels.dtype}")
    return torch.from_numpy(pixels.copy())


def _encode_integers(values: np.ndarray, compression: int | None) -> bytes:
    # A copy and not ascontiguousarray: that keeps the odd strides of a 1x1 image, which the PNG encoder refuses.
    pixels = (values[0] if len(values) == 1 else rearrange(values, "c h w -> h w c")).copy(order="C")
    options = FAST_PNG if compression is None else {"level": compression}
    return bytes(imagecodecs.png_encode(pixels, **options))


def _decode_integers(data: bytes) -> np.ndarray:
    try:
        pixels = imagecodecs.png_decode(data)
    except RuntimeError as error:  # the codec's own errors; not all of them are ValueErrors
        raise ValueError(f"not a whole PNG ({error})") from error
    pixels = pixels[None] if pixels.ndim == 2 else rearrange(pixels, "h w c -> c h w")
    if len(pixels) not in (1, 3):
        raise ValueError(f"a grey or RGB image, not {len(pixels)} channels")
    return pixels


def encode_exr(image: Float[Tensor, "3 height width"]) -> bytes:
    """A linear image as half-float EXR; what is brighter than the largest half is clamped to it."""
    return _write_exr({"RGB": rearrange(image.clamp(max=HALF_MAX).numpy(), "c h w -> h w c").astype(np.float16)})


def decode_exr(data: bytes) -> Float[Tensor, "3 height width"]:
    """The inverse of `encode_exr`. Raises ValueError for a file without R, G and B."""
    channels = _read_exr(data)
    if not {"R", "G", "B"} <= set(channels):
        raise ValueError(f"an EXR with the channels R, G, B, not {', '.join(channels)}")
    return torch.from_numpy(np.stack([channels[name] for name in "RGB"]))


def encode_layers(layers: dict[str, tuple[str, Float[Tensor, "channels height width"]]]) -> bytes:
    """Buffers as one multi-layer EXR: ``{"normal": ("XYZ", image), ...}`` gives ``normal.X`` and so on.

    Half float, but depth is float32: a half has steps of 1/2048 of the value.
    """
    channels = {}
    for name, (letters, image) in layers.items():
        for letter, pixels in zip(letters, image.numpy(), strict=True):
            channels[f"{name}.{letter}"] = pixels.astype(np.float32 if name == "depth" else np.float16)
    return _write_exr(channels)


def decode_layers(data: bytes) -> dict[str, Float[Tensor, "channels height width"]]:
    """The inverse of `encode_layers`; letters stand in the order RGB or XYZ."""
    layers: dict[str, list[np.ndarray]] = {}
    for name, pixels in sorted(_read_exr(data).items(), key=lambda item: "RGBXYZ".find(item[0][-1])):
        layers.setdefault(name.rpartition(".")[0], []).append(pixels)
    return {name: torch.from_numpy(np.stack(pixels)) for name, pixels in layers.items()}


def _write_exr(channels: dict[str, np.ndarray]) -> bytes:
    import OpenEXR

    buffer = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    # A copy: OpenEXR reads arrays of odd strides wrongly.
    OpenEXR.File(header, {name: pixels.copy(order="C") for name, pixels in channels.items()}).write(buffer)
    return buffer.getvalue()


def _read_exr(data: bytes) -> dict[str, np.ndarray]:
    import OpenEXR

    try:
        with OpenEXR.File(io.BytesIO(data), separate_channels=True) as file:
            return {name: np.array(channel.pixels, dtype=np.float32) for name, channel in file.channels().items()}
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"not a whole EXR ({error})") from error
