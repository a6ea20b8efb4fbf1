"""One clip as the files of a shard, and back. PNG for frames and buffers, half-float EXR for the light, JSON for the rest."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffusion_renderer.core.encoding import decode_buffer, encode_buffer
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen.settings import RenderedClip

#: Buffers of a shard and their bits per channel.
BUFFER_BITS = {"basecolor": 8, "normal": 8, "roughness": 8, "metallic": 8, "depth": 16}
#: Effort of PNG compression: fast; 9 saves a few per cent.
_COMPRESSION = 2


def encode_clip(rendered: RenderedClip, compression: int = _COMPRESSION) -> dict[str, bytes]:
    """File names within the clip's folder and their contents, in the order in which a shard stores them."""
    files = {
        "clip.json": _json(rendered.meta),
        "cameras.json": _json(cameras_to_json(rendered.camera)),
        "light.exr": encode_exr(rendered.environment.radiance),
    }
    images = {"rgb": rendered.clip.frames, "mask": rendered.gbuffer.mask.float()}
    images |= {name: encode_buffer(name, getattr(rendered.gbuffer, name)) for name in BUFFER_BITS}
    for frame in range(len(rendered.clip)):
        for name, image in images.items():
            files[f"{frame:04d}.{name}.png"] = encode_png(image[frame], BUFFER_BITS.get(name, 8), compression)
    return files


def decode_clip(files: dict[str, bytes]) -> RenderedClip:
    """The inverse of `encode_clip`, up to the files' bit depths. Depth is in scene units again.

    Raises KeyError when a file is missing; `shards` turns it into an InputError that names the shard.
    """
    meta = json.loads(files["clip.json"])
    camera = cameras_from_json(json.loads(files["cameras.json"]))
    frames = len(camera)

    def stack(name: str) -> Tensor:
        return torch.stack([decode_png(files[f"{frame:04d}.{name}.png"]) for frame in range(frames)])

    mask = stack("mask") > 0.5
    buffers = {name: decode_buffer(name, stack(name)) for name in BUFFER_BITS}
    depth = meta["near"] + buffers["depth"] * (meta["far"] - meta["near"])
    buffers["depth"] = torch.where(mask, depth, torch.full_like(depth, torch.inf))
    buffers["normal"] = buffers["normal"] * mask
    name, fps = meta["name"], meta["fps"]
    return RenderedClip(
        Clip(stack("rgb"), fps, name),
        GBuffer(**buffers, mask=mask, fps=fps, name=name),
        EnvironmentMap(decode_exr(files["light.exr"]), meta["assets"]["panorama"]),
        camera,
        meta,
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def cameras_to_json(camera: Camera) -> dict[str, Any]:
    """CONVENTIONS' cameras.json."""
    pairs = zip(camera.pose, camera.fov_x, strict=True)
    return {"frames": [{"transform_matrix": pose.tolist(), "fov_x_deg": float(fov)} for pose, fov in pairs]}


def cameras_from_json(value: dict[str, Any]) -> Camera:
    """The inverse of `cameras_to_json`."""
    pose = torch.tensor([frame["transform_matrix"] for frame in value["frames"]], dtype=torch.float32)
    return Camera(pose, torch.tensor([frame["fov_x_deg"] for frame in value["frames"]], dtype=torch.float32))


def encode_png(image: Float[Tensor, "channels height width"], bits: int = 8, compression: int = _COMPRESSION) -> bytes:
    """A grey or RGB image in [0, 1] as PNG; 16 bits only in grey."""
    values = (image.clamp(0, 1) * (2**bits - 1)).round().numpy().astype(np.uint8 if bits == 8 else np.uint16)
    pixels = values[0] if len(values) == 1 else rearrange(values, "c h w -> h w c")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png", compress_level=compression)
    return buffer.getvalue()


def decode_png(data: bytes) -> Float[Tensor, "channels height width"]:
    """A grey or RGB PNG of 8 or 16 bits as an image in [0, 1]."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image)
        scale = 255.0 if image.mode in ("L", "RGB") else 65535.0
    pixels = pixels[None] if pixels.ndim == 2 else rearrange(pixels, "h w c -> c h w")
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(scale))


def encode_exr(image: Float[Tensor, "3 height width"]) -> bytes:
    """A linear image as half-float EXR."""
    import OpenEXR

    pixels = rearrange(image.numpy(), "c h w -> h w c").astype(np.float16)
    buffer = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB": np.ascontiguousarray(pixels)}).write(buffer)
    return buffer.getvalue()


def decode_exr(data: bytes) -> Float[Tensor, "3 height width"]:
    """The inverse of `encode_exr`."""
    import OpenEXR

    with OpenEXR.File(io.BytesIO(data)) as file:
        pixels = file.channels()["RGB"].pixels.astype(np.float32)
    return torch.from_numpy(rearrange(pixels, "h w c -> c h w").copy())
