"""One clip as the files of a shard, and back: PNG or EXR for frames and buffers, EXR for the lights, JSON for the rest.

Files of a clip, in a shard below ``<clip:08d>/``:

* ``clip.json``: `Sample.meta`; ``cameras.json``: poses; ``light.exr``: the panorama, half float, exposure included.
* ``NNNN.rgb.png``: the frame; ``NNNN.mask.png``: 255 where a surface was seen; ``NNNN.ids.png``: which object, 8-bit grey.
* png8, png16: ``NNNN.<buffer>.png``, encoded as in CONVENTIONS; depth is relative to ``near`` and ``far`` of clip.json.
* exr: ``NNNN.gbuffer.exr``, all buffers linear as in memory, half float; depth in scene units, float32.
* ``lights.json``: rotations of the light, and one entry for each further light k = 1, 2, ... with ``light_k.exr`` and
  ``NNNN.rgb_light<k>.png``.

What a sample lacks has no file and comes back as None. Frames, and depth in png8 too, have 16 bits in png16 and exr.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from diffusion_renderer.core.encoding import decode_buffer, encode_buffer
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import BUFFER_CHANNELS, BUFFERS, Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen.settings import FORMATS, Relit, Sample
from diffusion_renderer.datagen.store.files import (
    cameras_from_json,
    cameras_to_json,
    decode_exr,
    decode_labels,
    decode_layers,
    decode_png,
    encode_exr,
    encode_json,
    encode_labels,
    encode_layers,
    encode_png,
)

#: Letters of the channels of an EXR layer.
LETTERS = {name: "RGB" if channels == 3 else "Y" for name, channels in BUFFER_CHANNELS.items()} | {
    "normal": "XYZ",
    "depth": "Z",
}
#: With ``depth_holes`` in clip.json the highest code of a depth PNG means "no depth"; the farthest surface has the one below.
_HOLE, _FARTHEST = 65534.5 / 65535, 65534 / 65535


def encode_clip(sample: Sample, format: str = "png8", compression: int | None = None) -> dict[str, bytes]:
    """File names within the clip's folder and their contents, in the order in which a shard stores them.

    The same sample gives the same bytes. ``compression`` is the level of PNG; None is fast. Everything is lossless but for
    the bit depths. Raises InputError for a format that is not one of `FORMATS`.
    """
    check_name("format", format, FORMATS)
    meta = describe(sample, format)
    files = {"clip.json": encode_json(meta)}
    if sample.camera is not None:
        files["cameras.json"] = encode_json(cameras_to_json(sample.camera))
    if sample.environment is not None:
        files["light.exr"] = encode_exr(sample.environment.radiance)
    if lights := _describe_lights(sample, meta):
        files["lights.json"] = encode_json(lights)
    for number, relit in enumerate(sample.relit, 1):
        files[f"light_{number}.exr"] = encode_exr(relit.environment.radiance)
    for frame in range(len(sample.clip)):
        for name, (image, bits) in _images(sample, frame, format, meta).items():
            files[f"{frame:04d}.{name}.png"] = encode_png(image, bits, compression)
        if sample.ids is not None:
            files[f"{frame:04d}.ids.png"] = encode_labels(sample.ids[frame], compression)
        if format == "exr" and sample.gbuffer.present:
            layers = {name: (LETTERS[name], getattr(sample.gbuffer, name)[frame]) for name in sample.gbuffer.present}
            files[f"{frame:04d}.gbuffer.exr"] = encode_layers(layers)
    return files


def describe(sample: Sample, format: str = "png8") -> dict[str, Any]:
    """What clip.json says: `Sample.meta` with name and rate, the range of depth, and the format where it is not png8."""
    meta = {"name": sample.clip.name, "fps": sample.clip.fps, **sample.meta}
    for name in ("format", "depth_holes"):
        meta.pop(name, None)
    if format != "png8":
        meta["format"] = format
    if sample.gbuffer.depth is not None:
        meta |= _range(sample.gbuffer.depth)
        if format != "exr" and _has_holes(sample.gbuffer):
            meta["depth_holes"] = True
    return meta


def _range(depth: Float[Tensor, "frames 1 height width"]) -> dict[str, float]:
    """Smallest and largest finite depth as `near` and `far`, 0 without any."""
    # As GBuffer.depth_range, which gathers the finite pixels first: several times slower.
    known = torch.isfinite(depth)
    if not known.any():
        return {"near": 0.0, "far": 0.0}
    near, far = torch.where(known, depth, torch.inf).min(), torch.where(known, depth, -torch.inf).max()
    return {"near": float(near), "far": float(far)}


def _has_holes(gbuffer: GBuffer) -> bool:
    """Whether depth is missing or present elsewhere than the mask says, so that the mask cannot stand for it."""
    known = torch.isfinite(gbuffer.depth)
    return bool((~known).any()) if gbuffer.mask is None else not torch.equal(known, gbuffer.mask)


def _images(sample: Sample, frame: int, format: str, meta: dict[str, Any]) -> dict[str, tuple[Tensor, int]]:
    """What becomes a PNG of a frame: values in [0, 1] and bits. By frames, because whole clips do not fit into caches."""
    bits = 8 if format == "png8" else 16
    images = {"rgb": (sample.clip.frames[frame], bits)}
    if sample.gbuffer.mask is not None:
        images["mask"] = (sample.gbuffer.mask[frame].float(), 8)
    for name in sample.gbuffer.present if format != "exr" else ():
        value = getattr(sample.gbuffer, name)[frame : frame + 1]
        encoded = encode_buffer(name, value, (meta["near"], meta["far"]) if name == "depth" else None)
        if name == "depth" and meta.get("depth_holes"):
            encoded = torch.where(torch.isfinite(value), encoded.clamp_max(_FARTHEST), 1.0)
        images[name] = (encoded[0], 16 if name == "depth" else bits)
    for number, relit in enumerate(sample.relit, 1):
        images[f"rgb_light{number}"] = (relit.clip.frames[frame], bits)
    return images


def _describe_lights(sample: Sample, meta: dict[str, Any]) -> dict[str, Any]:
    """lights.json, or nothing when clip.json says it all."""
    lights: dict[str, Any] = {}
    if sample.environment is not None and sample.environment.name != panorama_name(meta):
        lights["panorama"] = sample.environment.name
    if sample.light_rotation is not None:
        lights["light_rotation"] = sample.light_rotation.tolist()
    if sample.relit:
        lights["relit"] = [
            {
                "name": relit.clip.name,
                "panorama": relit.environment.name,
                "light_rotation": None if relit.light_rotation is None else relit.light_rotation.tolist(),
            }
            for relit in sample.relit
        ]
    return lights


def panorama_name(meta: dict[str, Any]) -> str:
    """What clip.json calls the panorama; "light" where it says nothing."""
    panorama = meta.get("assets", {}).get("panorama", "light")
    return panorama.get("name", "light") if isinstance(panorama, dict) else str(panorama)


@dataclass(frozen=True)
class StoredClip:
    """The files of a clip, decoded but not yet brought to memory's conventions: what was really stored.

    Attributes
    ----------
    images : by name of the file or layer: PNG in [0, 1], EXR as it is; ids are not among them.
    linear : the buffers come from EXR.
    """

    meta: dict[str, Any]
    images: dict[str, Float[Tensor, "frames _channels _height _width"]]
    linear: bool
    ids: UInt8[Tensor, "frames 1 _height _width"] | None
    camera: Camera | None
    environment: EnvironmentMap | None
    lights: dict[str, Any]
    panoramas: tuple[EnvironmentMap, ...]


def count_frames(files: dict[str, bytes]) -> int:
    """Number of frames, from the names of the files."""
    return sum(re.fullmatch(r"\d{4,}\.rgb\.png", name) is not None for name in files)


def read_stored(files: dict[str, bytes]) -> StoredClip:
    """Decode every file of a clip, in whatever format.

    Raises KeyError with the name of a file that is missing (a buffer is all there or not at all) and ValueError for one that
    cannot be decoded, or for frames of different sizes.
    """
    frames = count_frames(files)
    meta, lights = json.loads(files["clip.json"]), json.loads(files.get("lights.json", b"{}"))
    camera = cameras_from_json(json.loads(files["cameras.json"])) if "cameras.json" in files else None
    if camera is not None and len(camera) != frames:
        raise ValueError(f"{len(camera)} cameras for {frames} frames")
    further = [f"rgb_light{number}" for number in range(1, 1 + len(lights.get("relit", [])))]
    images = {}
    for name in ("rgb", "mask", *BUFFERS, *further):
        if any(f"{frame:04d}.{name}.png" in files for frame in range(frames)) or name in ("rgb", *further):
            images[name] = _stack([decode_png(files[f"{frame:04d}.{name}.png"]) for frame in range(frames)], name)
    linear = any(f"{frame:04d}.gbuffer.exr" in files for frame in range(frames))
    if linear:
        layers = [decode_layers(files[f"{frame:04d}.gbuffer.exr"]) for frame in range(frames)]
        images |= {name: _stack([layer[name] for layer in layers], name) for name in BUFFERS if name in layers[0]}
    ids = None
    if any(f"{frame:04d}.ids.png" in files for frame in range(frames)):
        ids = _stack([decode_labels(files[f"{frame:04d}.ids.png"]) for frame in range(frames)], "ids")
    environment = None
    if "light.exr" in files:
        environment = EnvironmentMap(decode_exr(files["light.exr"]), lights.get("panorama", panorama_name(meta)))
    panoramas = tuple(
        EnvironmentMap(decode_exr(files[f"light_{number}.exr"]), entry["panorama"])
        for number, entry in enumerate(lights.get("relit", []), 1)
    )
    return StoredClip(meta, images, linear, ids, camera, environment, lights, panoramas)


def _stack(images: list[Tensor], name: str) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        listing = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes)) or "no frames"
        raise ValueError(f"{name} frames of one size, not {listing}")
    return torch.stack(images)


def decode_clip(files: dict[str, bytes]) -> Sample:
    """The inverse of `encode_clip`, up to the files' bit depths. Depth is in scene units again.

    Raises KeyError when a file is missing and ValueError when one is damaged; `shards` turns them into an InputError that
    names the shard.
    """
    return to_sample(read_stored(files))


def to_sample(stored: StoredClip) -> Sample:
    """What was stored, in memory's conventions. Raises ValueError when buffers and frames differ in size."""
    meta, images = stored.meta, stored.images
    name, fps = meta["name"], meta["fps"]
    mask = images["mask"] > 0.5 if "mask" in images else None
    buffers = {}
    for buffer in (key for key in BUFFERS if key in images):
        decode = _from_exr if stored.linear else decode_buffer
        buffers[buffer] = torch.cat([decode(buffer, image) for image in images[buffer].split(1)])
    if "depth" in buffers and not stored.linear:
        buffers["depth"] = _absolute_depth(images["depth"], mask, meta)
    if "normal" in buffers and mask is not None:
        buffers["normal"] = buffers["normal"] * mask
    relit = tuple(
        Relit(Clip(images[f"rgb_light{k}"], fps, entry["name"]), panorama, _rotations(entry))
        for k, (entry, panorama) in enumerate(zip(stored.lights.get("relit", []), stored.panoramas, strict=True), 1)
    )
    return Sample(
        Clip(images["rgb"], fps, name),
        GBuffer(**buffers, mask=mask, fps=fps, name=name),
        stored.environment,
        stored.camera,
        meta,
        _rotations(stored.lights),
        stored.ids,
        relit,
    )


def _from_exr(name: str, value: Tensor) -> Tensor:
    """A half float holds a unit vector to 5e-4: made unit length again, the zero vector kept."""
    return torch.nn.functional.normalize(value, dim=1) if name == "normal" else value


def _absolute_depth(
    image: Float[Tensor, "frames 1 height width"], mask: Bool[Tensor, "frames 1 height width"] | None, meta: dict[str, Any]
) -> Float[Tensor, "frames 1 height width"]:
    """Relative depth of a PNG to scene units, +inf where nothing was seen."""
    depth = meta["near"] + image * (meta["far"] - meta["near"])
    if meta.get("depth_holes"):
        return torch.where(image > _HOLE, torch.inf, depth)
    return depth if mask is None else torch.where(mask, depth, torch.inf)


def _rotations(entry: dict[str, Any]) -> Float[Tensor, "frames 3 3"] | None:
    values = entry.get("light_rotation")
    return None if values is None else torch.tensor(values, dtype=torch.float32)
