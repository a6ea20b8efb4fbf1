"""G-buffers: PNG per buffer, multi-layer or one-buffer EXR, videos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.encoding import decode_buffer, encode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import BUFFER_CHANNELS, BUFFERS, GBuffer
from diffusion_renderer.io.exr import layer, read_exr, write_exr
from diffusion_renderer.io.images import in_parallel, read_image, to_tensor, write_image
from diffusion_renderer.io.layout import (
    FORMATS,
    BufferFile,
    buffer_files,
    buffer_videos,
    clip_name,
    clip_rate,
    existing,
    list_gbuffers,
    natural_key,
    no_buffers,
    note_rate,
)
from diffusion_renderer.io.video import iter_video, video_rate, write_video

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
#: Bits per channel in PNG: 8 would show steps in depth.
PNG_BITS = {"depth": 16}


def read_gbuffer(path: str | Path, *, buffers: Sequence[str] | None = None) -> GBuffer:
    """Read the G-buffers in a folder; see `layout` for the names.

    Files of one buffer and frame are preferred in this order: the layer of ``<frame>.gbuffer.exr``, ``<frame>.<buffer>.exr``
    (both linear and as they are, depth in scene units), ``<frame>.<buffer>.png`` (encoded; depth relative), other images.
    One-channel buffers may be grey or RGB, 8 or 16 bits. Without frames, ``<path>.<buffer>.mp4`` is read.

    ``buffers`` limits what is read; each named one must be there. Without it everything there is read and the rest is None.
    The mask comes from ``.mask.`` files, else from normals of length 0 or infinite depth, else it is None (unknown).

    Raises InputError for unknown or missing buffers, missing frames, different sizes, NaN in an EXR.
    """
    for name in buffers or ():
        check_name("buffer", name, BUFFERS)
    wanted = tuple(buffers or BUFFERS)
    folder = _one_set(Path(path))
    files = buffer_files(folder) if folder.is_dir() else []
    if files:
        tensors = _read_files(folder, files, wanted)
        rate = clip_rate(folder)
    else:
        videos = {name: video for name, video in buffer_videos(folder).items() if name in wanted}
        tensors = {name: _read_video(name, video) for name, video in videos.items()}
        rate = video_rate(next(iter(videos.values()))) if videos else 24.0
    _check_sizes(folder, tensors)
    gbuffer = GBuffer(**_with_mask(tensors), fps=rate, name=clip_name(folder))
    gbuffer.require(tuple(buffers or ()))
    return gbuffer


def write_gbuffer(
    gbuffer: GBuffer, path: str | Path, *, formats: Sequence[str] = ("png",), buffers: Sequence[str] | None = None
) -> Path:
    """Write G-buffers under the folder ``path``; returns the folder of frames, or ``path`` when there are only videos.

    ``formats`` picks from ``png`` (``<path>/<name>/0000.<buffer>.png``, 8 bits, relative depth 16 bits), ``exr``
    (``<path>/<name>/0000.gbuffer.exr``: half-float layers, linear, depth as it is) and ``mp4``
    (``<path>/<name>.<buffer>.mp4``). The mask, when known, goes with PNG and EXR. ``buffers`` limits what is written. Every
    file is written under a temporary name first.
    """
    for name in formats:
        check_name("output format", name, FORMATS)
    for name in buffers or ():
        check_name("buffer", name, BUFFERS)
    gbuffer.require(tuple(buffers or ()))
    names = tuple(buffers or gbuffer.present)
    if not names or not len(gbuffer):
        raise InputError("G-buffers to write", f"none in {gbuffer.name}", "keep at least one buffer and one frame")
    path = Path(path)
    folder = path / gbuffer.name
    tensors = {name: getattr(gbuffer, name) for name in names}
    if "png" in formats:
        _write_pngs(folder, tensors, gbuffer.mask)
    if "exr" in formats:
        layers = tensors if gbuffer.mask is None else {**tensors, "mask": gbuffer.mask.float()}
        in_parallel(lambda index: _write_layers(folder, index, layers), range(len(gbuffer)))
    if "mp4" in formats:
        for name, tensor in tensors.items():
            image = encode_buffer(name, tensor).expand(-1, 3, -1, -1)
            write_video(path / f"{gbuffer.name}.{name}.mp4", image, gbuffer.fps)
    if not {"png", "exr"} & set(formats):
        return path
    note_rate(folder, gbuffer.fps)
    return folder


def _write_pngs(folder: Path, tensors: dict[str, Tensor], mask: Bool[Tensor, "frames 1 height width"] | None) -> None:
    encoded = {name: encode_buffer(name, tensor) for name, tensor in tensors.items()}
    if mask is not None:
        encoded["mask"] = mask.float()
    jobs = (
        (folder / f"{index:04d}.{name}.png", image, PNG_BITS.get(name, 8))
        for name, images in encoded.items()
        for index, image in enumerate(images)
    )
    in_parallel(lambda job: write_image(*job), jobs)


def _write_layers(folder: Path, index: int, tensors: dict[str, Tensor]) -> None:
    channels = {}
    for name, tensor in tensors.items():
        for letter, pixels in zip(LAYER_LETTERS[name][0], tensor[index].cpu().numpy(), strict=True):
            channels[f"{name}.{letter}"] = pixels
    write_exr(folder / f"{index:04d}.gbuffer.exr", channels)


def _one_set(path: Path) -> Path:
    if buffer_videos(path) and not (path.is_dir() and buffer_files(path)):
        return path
    if not existing(path).is_dir():
        raise InputError("a folder of G-buffers", f"the file {path}", "give the folder that holds <frame>.<buffer>.png files")
    if buffer_files(path):
        return path
    sets = list_gbuffers(path)
    if len(sets) > 1:
        raise InputError(f"the G-buffers of one clip in {path}", f"{len(sets)} clips", f"give one of them, such as {sets[0]}")
    return sets[0]


def _read_files(folder: Path, files: list[BufferFile], wanted: tuple[str, ...]) -> dict[str, Tensor]:
    """All wanted buffers and the mask, each with every frame that any file of the folder names."""
    by_frame: dict[str, list[BufferFile]] = defaultdict(list)
    for file in files:
        by_frame[file.key].append(file)
    keys = sorted(by_frame, key=natural_key)
    read = in_parallel(lambda key: _read_frame(by_frame[key], wanted), keys)
    tensors = {}
    for name in (*wanted, "mask"):
        there = [name in frame for frame in read]
        if (name == "mask" and not all(there)) or not any(there):
            continue
        missing = [key for key, has in zip(keys, there, strict=True) if not has]
        if missing:
            listing = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise InputError(
                f"every buffer in each of the {len(keys)} frames of {folder}",
                f"{name} only in {len(keys) - len(missing)} (missing: {listing})",
                f"add the missing files, or leave {name} out with --buffers",
            )
        frames = [frame.pop(name) for frame in read]
        _check_frames(folder, name, keys, [image for image, _ in frames])
        tensors[name] = _assemble(name, frames)
    if not any(name in BUFFERS for name in tensors) and wanted == BUFFERS:
        raise no_buffers(folder)
    return tensors


def _read_frame(files: list[BufferFile], wanted: tuple[str, ...]) -> dict[str, tuple[Tensor, bool]]:
    """The buffers of one frame with a flag: True when encoded (PNG and the like), False when linear (EXR)."""
    found: dict[str, tuple[Tensor, bool]] = {}
    for file in sorted(files, key=lambda file: _preference(file), reverse=True):
        if file.kind == "gbuffer":
            channels = read_exr(file.path)
            for name in (*wanted, "mask"):
                if (pixels := _layer_of(channels, name)) is not None:
                    found[name] = (_checked(pixels, file.path, name), False)
        elif file.kind in wanted or file.kind == "mask":
            found[file.kind] = _read_one(file)
    return found


def _preference(file: BufferFile) -> int:
    """Smaller is better."""
    if file.kind == "gbuffer":
        return 0
    return {".exr": 1, ".png": 2}.get(file.path.suffix.lower(), 3)


def _read_one(file: BufferFile) -> tuple[Tensor, bool]:
    if file.path.suffix.lower() != ".exr":
        return read_image(file.path), True
    channels = read_exr(file.path)
    pixels = _layer_of(channels, file.kind)
    for letters in ("RGB", "XYZ", *LAYER_LETTERS[file.kind]):
        if pixels is None:
            pixels = layer(channels, "", letters)
    if pixels is None and len(channels) == 1:
        pixels = next(iter(channels.values()))[..., None]
    if pixels is None:
        letters = LAYER_LETTERS[file.kind][0]
        raise InputError(
            f"channels {letters} in {file.path}", ", ".join(sorted(channels)), "export the buffer with these names"
        )
    return _checked(pixels, file.path, file.kind), False


def _layer_of(channels: dict[str, np.ndarray], name: str) -> np.ndarray | None:
    return next((pixels for letters in LAYER_LETTERS[name] if (pixels := layer(channels, name, letters)) is not None), None)


def _checked(pixels: np.ndarray, path: Path, name: str) -> Float[Tensor, "channels height width"]:
    bad = int(np.isnan(pixels).any(axis=-1).sum()) if name == "depth" else int((~np.isfinite(pixels)).any(axis=-1).sum())
    if bad:
        raise InputError(
            f"finite {name} values in {path}", f"NaN or infinity in {bad} pixels", "export the buffer again without them"
        )
    return to_tensor(pixels)


def _check_frames(folder: Path, name: str, keys: list[str], images: list[Tensor]) -> None:
    sizes = {(image.shape[2], image.shape[1]): key for key, image in reversed(list(zip(keys, images, strict=True)))}
    if len(sizes) > 1:
        listing = ", ".join(f"{width}x{height} in frame {key}" for (width, height), key in sizes.items())
        raise InputError(f"{name} of one size in {folder}", listing, "scale the frames to one size")


def _assemble(name: str, frames: list[tuple[Tensor, bool]]) -> Tensor:
    encoded = frames[0][1]
    if any(flag != encoded for _, flag in frames):
        raise InputError(
            f"{name} in one format for the whole clip", "EXR in some frames, images in others", "remove one of them"
        )
    channels = 1 if name == "mask" else BUFFER_CHANNELS[name]
    value = torch.stack([_to_channels(image, channels) for image, _ in frames])
    if name == "mask":
        return value >= 0.5
    return decode_buffer(name, value) if encoded else value


def _to_channels(image: Float[Tensor, "channels height width"], channels: int) -> Float[Tensor, "wanted height width"]:
    if channels == 1:
        return image.mean(dim=0, keepdim=True) if image.shape[0] > 1 else image
    return image.expand(channels, -1, -1)


def _read_video(name: str, path: Path) -> Tensor:
    frames = [to_tensor(pixels) / np.iinfo(pixels.dtype).max for pixels in iter_video(path)]
    return decode_buffer(name, torch.stack([_to_channels(image, BUFFER_CHANNELS[name]) for image in frames]))


def _check_sizes(folder: Path, tensors: dict[str, Tensor]) -> None:
    shapes = {name: (len(tensor), tensor.shape[3], tensor.shape[2]) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listing = ", ".join(f"{name} {frames} frames of {width}x{height}" for name, (frames, width, height) in shapes.items())
        raise InputError(
            f"buffers of one size and frame count in {folder}", listing, "scale them to one size, or write them again"
        )


def _with_mask(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if "mask" in tensors:
        return tensors
    if "normal" in tensors:
        return {**tensors, "mask": (tensors["normal"] != 0).any(dim=1, keepdim=True)}
    if "depth" in tensors and tensors["depth"].isinf().any():
        return {**tensors, "mask": tensors["depth"].isfinite()}
    return tensors
