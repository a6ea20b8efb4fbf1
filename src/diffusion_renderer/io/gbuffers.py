"""Reading G-buffers: PNG per buffer, multi-layer or one-buffer EXR, videos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.encoding import decode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import BUFFER_CHANNELS, BUFFERS, GBuffer
from diffusion_renderer.io.banding import without_steps
from diffusion_renderer.io.exr import LAYER_LETTERS, layer, read_exr
from diffusion_renderer.io.images import in_parallel, read_image, to_tensor
from diffusion_renderer.io.layout import (
    BufferFile,
    buffer_files,
    buffer_videos,
    clip_name,
    clip_rate,
    existing,
    list_gbuffers,
    natural_key,
    no_buffers,
)
from diffusion_renderer.io.video import iter_video, video_rate

#: Depth in an EXR from here on is the background, which programs without infinity write as a large number (Blender: 1e10).
FAR = 1e9


def read_gbuffer(path: str | Path, *, buffers: Sequence[str] | None = None) -> GBuffer:
    """Read the G-buffers in a folder; see `layout` for the names.

    Files of one buffer and frame are preferred in this order: the layer of ``<frame>.gbuffer.exr``, ``<frame>.<buffer>.exr``
    (both linear and as they are, depth in scene units, infinite from `FAR` on), ``<frame>.<buffer>.png`` (encoded; depth
    relative), other images.
    One-channel buffers may be grey or RGB, 8 or 16 bits. Without frames, ``<path>.<buffer>.mp4`` is read.

    ``buffers`` limits what is read; each named one must be there. Without it everything there is read and the rest is None.
    The mask comes from ``.mask.`` files, else from normals of length 0 or infinite depth, else it is None (unknown).

    Raises InputError for unknown or missing buffers, missing frames, different sizes, NaN in an EXR.
    """
    source = open_gbuffer(path, buffers=buffers)
    tensors = source.read(slice(0, len(source)))
    gbuffer = GBuffer(**_with_mask(tensors), fps=source.fps, name=source.name)
    gbuffer.require(tuple(buffers or ()))
    return gbuffer


@dataclass(frozen=True)
class GBufferFiles:
    """G-buffers that stay in their files; see `open_gbuffer`. The pieces that it gives have no mask.

    Attributes
    ----------
    folder : the folder of frames, or the common name of the videos.
    keys : names of the frames, in order.
    files : the files of each frame; empty when there are only videos.
    wanted : buffers to read where they are there.
    smooth_normals : see `open_gbuffer`.
    """

    folder: Path
    keys: tuple[str, ...]
    files: tuple[tuple[BufferFile, ...], ...]
    wanted: tuple[str, ...]
    fps: float
    name: str
    first: int = 0
    smooth_normals: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: slice) -> GBufferFiles:
        start, _, step = index.indices(len(self))
        if step != 1:
            raise ValueError("frames in a row, step 1")
        return replace(self, keys=self.keys[index], files=self.files[index], first=self.first + start)

    @cached_property
    def _example(self) -> GBuffer:
        return GBuffer(**self.read(slice(0, 1)), name=self.name)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self._example.size

    def require(self, names: tuple[str, ...]) -> None:
        """InputError when one of ``names`` is absent."""
        self._example.require(names)

    def chunks(self, frames: int) -> Iterator[GBuffer]:
        """The G-buffers in pieces of at most ``frames`` frames; InputError where they differ in size or buffers."""
        videos = None if self.files else self._video_chunks(frames)
        for start in range(0, len(self), frames):
            tensors = self.read(slice(start, start + frames)) if videos is None else next(videos)
            tensors.pop("mask", None)
            piece = GBuffer(**tensors, fps=self.fps, name=self.name)
            if (piece.size, piece.present) != (self.size, self._example.present):
                raise InputError(
                    f"frames of {_described(self._example)} in {self.folder}",
                    f"{_described(piece)} from frame {self.keys[start]} on",
                    "write them again, or remove the frames that differ",
                )
            yield piece

    def depth_range(self) -> tuple[float, float] | None:
        """Smallest and largest finite depth; the first time, depth is read once more."""
        known = [each for each, _ in self._depths if each is not None]
        return (min(low for low, _ in known), max(high for _, high in known)) if known else None

    def has_relative_depth(self) -> bool:
        """Whether depth is relative (`GBuffer.has_relative_depth`); the first time, depth is read once more."""
        return bool(self._depths) and all(relative for _, relative in self._depths)

    @cached_property
    def _depths(self) -> list[tuple[tuple[float, float] | None, bool]]:
        """Range of depth, and whether it is relative, for every few frames."""
        if self._example.depth is None:
            return []
        pieces = replace(self, wanted=("depth",)).chunks(16)
        return [(piece.depth_range(), piece.has_relative_depth()) for piece in pieces]

    def read(self, index: slice) -> dict[str, Tensor]:
        """The tensors of some frames, the mask included where it has files."""
        if self.files:
            tensors = _read_files(self.folder, self.keys[index], self.files[index], self.wanted, self.smooth_normals)
        else:
            tensors = next(self[index]._video_chunks(len(self.keys[index])), {})
        _check_sizes(self.folder, tensors)
        return tensors

    def _video_chunks(self, frames: int) -> Iterator[dict[str, Tensor]]:
        videos = {name: path for name, path in buffer_videos(self.folder).items() if name in self.wanted}
        stop = self.first + len(self)
        streams = {name: islice(iter_video(path), self.first, stop) for name, path in videos.items()}
        while any(parts := {name: list(islice(stream, frames)) for name, stream in streams.items()}.values()):
            yield {name: _from_video(name, part) for name, part in zip(streams, parts, strict=True)}


def open_gbuffer(path: str | Path, *, buffers: Sequence[str] | None = None, smooth_normals: bool = False) -> GBufferFiles:
    """G-buffers of any length, read a few frames at a time: what `read_gbuffer` reads, as a `core.sources.GBufferSource`.

    ``smooth_normals`` takes the steps of 8 bits out of normals that are to be shaded (`banding.without_steps`); images of more
    bits, EXR and videos are read as they are.

    Raises InputError for unknown buffers and for frames without the file of a buffer that other frames have.
    """
    for name in buffers or ():
        check_name("buffer", name, BUFFERS)
    wanted = tuple(buffers or BUFFERS)
    folder = _one_set(Path(path))
    by_frame: dict[str, list[BufferFile]] = defaultdict(list)
    for file in buffer_files(folder) if folder.is_dir() else ():
        by_frame[file.key].append(file)
    if by_frame:
        keys = tuple(sorted(by_frame, key=natural_key))
        files = tuple(tuple(by_frame[key]) for key in keys)
        for name in wanted:
            _check_complete(folder, name, keys, [any(f.kind in (name, "gbuffer") for f in frame) for frame in files])
        return GBufferFiles(folder, keys, files, wanted, clip_rate(folder), clip_name(folder), smooth_normals=smooth_normals)
    videos = {name: video for name, video in buffer_videos(folder).items() if name in wanted}
    counts = {name: sum(1 for _ in iter_video(video)) for name, video in videos.items()}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{name} {count} frames" for name, count in counts.items())
        raise InputError(f"buffers of one size and frame count in {folder}", listing, "write them again")
    rate = video_rate(next(iter(videos.values()))) if videos else 24.0
    keys = tuple(f"{index:04d}" for index in range(next(iter(counts.values()), 0)))
    return GBufferFiles(folder, keys, (), wanted, rate, clip_name(folder))


def _described(gbuffer: GBuffer) -> str:
    return f"{gbuffer.size[0]}x{gbuffer.size[1]} with {' '.join(gbuffer.present)}"


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


def _read_files(
    folder: Path,
    keys: Sequence[str],
    files: Sequence[Sequence[BufferFile]],
    wanted: tuple[str, ...],
    smooth_normals: bool = False,
) -> dict[str, Tensor]:
    """All wanted buffers and the mask of some frames."""
    read = in_parallel(lambda frame: _read_frame(list(frame), wanted, smooth_normals), files)
    tensors = {}
    for name in (*wanted, "mask"):
        there = [name in frame for frame in read]
        if (name == "mask" and not all(there)) or not any(there):
            continue
        _check_complete(folder, name, keys, there)
        frames = [frame.pop(name) for frame in read]
        _check_frames(folder, name, keys, [image for image, _ in frames])
        tensors[name] = _assemble(name, frames)
    if not any(name in BUFFERS for name in tensors) and wanted == BUFFERS:
        raise no_buffers(folder)
    return tensors


def _check_complete(folder: Path, name: str, keys: Sequence[str], there: Sequence[bool]) -> None:
    """InputError when some frames, but not all, have a buffer."""
    missing = [key for key, has in zip(keys, there, strict=True) if not has]
    if missing and any(there):
        listing = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(
            f"every buffer in each of the {len(keys)} frames of {folder}",
            f"{name} only in {len(keys) - len(missing)} (missing: {listing})",
            f"add the missing files, or leave {name} out with --buffers",
        )


def _read_frame(files: list[BufferFile], wanted: tuple[str, ...], smooth_normals: bool) -> dict[str, tuple[Tensor, bool]]:
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
    if smooth_normals and (normal := found.get("normal")) and normal[1]:
        found["normal"] = without_steps(normal[0]), True
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
    value = to_tensor(pixels)
    return torch.where(value >= FAR, torch.inf, value) if name == "depth" else value


def _check_frames(folder: Path, name: str, keys: Sequence[str], images: list[Tensor]) -> None:
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


def _from_video(name: str, frames: list[np.ndarray]) -> Tensor:
    images = [to_tensor(pixels) / np.iinfo(pixels.dtype).max for pixels in frames]
    return decode_buffer(name, torch.stack([_to_channels(image, BUFFER_CHANNELS[name]) for image in images]))


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
