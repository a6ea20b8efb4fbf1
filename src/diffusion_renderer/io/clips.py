"""Clips: videos, images, folders of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import Clip
from diffusion_renderer.io.exr import to_half
from diffusion_renderer.io.images import IMAGE_SUFFIXES, in_parallel, read_rgb, to_tensor, write_image
from diffusion_renderer.io.layout import (
    FORMATS,
    clip_name,
    clip_rate,
    existing,
    frame_files,
    list_clips,
    no_frames,
    note_rate,
    require_frame,
)
from diffusion_renderer.io.video import VIDEO_SUFFIXES, WRITTEN_SUFFIXES, VideoWriter, iter_video, video_rate, write_video


def read_clip(path: str | Path, *, frames: int | None = None) -> Clip:
    """Read a clip: float32 sRGB in [0, 1], as stored, without scaling.

    Parameters
    ----------
    path : a video (mp4, mov, webm, gif, ...), an image (png, jpg, webp, tiff, exr), or a folder of frames in natural order, of
        which only ``<frame>.rgb.<ext>`` when the folder follows the WebDataset names. A folder holding one clip further down is
        that clip. Alpha lies over black; EXR frames are linear and are shown at exposure 1.
    frames : read only this many frames from the start; what comes after is not even opened.

    Raises InputError for anything unreadable, frames of different sizes, and folders holding several clips (`list_clips`).
    The whole clip is held in memory, 12 bytes per pixel and frame; `open_clip` reads a few frames at a time.
    """
    path = Path(path)
    if frames is not None and frames < 1:
        raise InputError("a number of frames of 1 or more", str(frames), "give --frames N with N >= 1, or leave it out")
    path = _one_clip(path)
    if path.is_dir():
        files = frame_files(path)[:frames]
        first = read_rgb(files[0])
        pixels = torch.empty(len(files), *first.shape)
        for index, image in enumerate(_images(files)):
            pixels[index] = image
        return Clip(pixels, clip_rate(path), clip_name(path))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Clip(read_rgb(path)[None].contiguous(), name=clip_name(path))
    return Clip(_stack(list(islice(iter_video(path), frames))), video_rate(path), clip_name(path))


def iter_frames(path: str | Path) -> Iterator[Float[Tensor, "3 height width"]]:
    """The frames of `read_clip`, one at a time, so that a long video need not fit in memory."""
    path = _one_clip(Path(path))
    if path.is_dir():
        yield from _images(frame_files(path))
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        yield read_rgb(path)
    else:
        for pixels in iter_video(path):
            yield _to_unit(pixels)


@dataclass(frozen=True)
class ClipFile:
    """A clip that stays in its file; see `open_clip`.

    Attributes
    ----------
    path : as for `read_clip`.
    frames : only this many, from the start; None for all.
    """

    path: Path
    fps: float
    name: str
    frames: int | None = None

    @cached_property
    def _extent(self) -> tuple[int, tuple[int, int]]:
        """Frames and size. A video is decoded to know: what its header says is often wrong, and damage shows at once."""
        if self.path.is_dir():
            files = frame_files(self.path)[: self.frames]
            first = read_rgb(files[0])
            return len(files), (first.shape[2], first.shape[1])
        count, size = 0, (0, 0)
        for image in self.images():
            count, size = count + 1, (image.shape[2], image.shape[1])
        return count, size

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self._extent[1]

    def __len__(self) -> int:
        return self._extent[0]

    def images(self) -> Iterator[Float[Tensor, "3 height width"]]:
        """The frames, one at a time."""
        return islice(iter_frames(self.path), self.frames)

    def chunks(self, frames: int) -> Iterator[Clip]:
        """The clip in pieces of at most ``frames`` frames."""
        images = self.images()
        while piece := list(islice(images, frames)):
            yield Clip(torch.stack(piece), self.fps, self.name)


def open_clip(path: str | Path, *, frames: int | None = None) -> ClipFile:
    """A clip of any length, read a few frames at a time: what `read_clip` reads, as a `core.sources.ClipSource`."""
    if frames is not None and frames < 1:
        raise InputError("a number of frames of 1 or more", str(frames), "give --frames N with N >= 1, or leave it out")
    path = _one_clip(Path(path))
    if path.is_dir():
        rate = clip_rate(path)
    else:
        rate = 24.0 if path.suffix.lower() in IMAGE_SUFFIXES else video_rate(path)
    return ClipFile(path, rate, clip_name(path), frames)


class ClipWriter:
    """Writes a clip piece by piece, as `write_clip` does into a folder. A context manager: videos appear when it succeeds.

    A video beside frames shows what their files hold, so that one continued from them is the same.

    Parameters
    ----------
    first : number of the first frame that is to come. The files of those before it must be there in every other format: a
        video begins with them. InputError at the first `write` where they are not.
    """

    def __init__(self, path: str | Path, name: str, fps: float, formats: Sequence[str] = ("png",), first: int = 0) -> None:
        for suffix in formats:
            check_name("output format", suffix, FORMATS)
        self.folder, self._fps, self._count = Path(path) / name, fps, first
        self._earlier = first
        self._suffixes = [suffix for suffix in ("png", "exr") if suffix in formats]
        self._video = VideoWriter(Path(path) / f"{name}.rgb.mp4", fps) if "mp4" in formats else None

    def __enter__(self) -> ClipWriter:
        return self

    def write(self, clip: Clip) -> None:
        """Append frames."""
        jobs = (
            (self.folder / f"{self._count + index:04d}.rgb.{suffix}", frame)
            for suffix in self._suffixes
            for index, frame in enumerate(clip.frames)
        )
        in_parallel(lambda job: write_image(*job), jobs)
        if self._video is not None:
            for number in range(self._earlier):
                earlier = require_frame(self.folder, number, "rgb", next(iter(self._suffixes), None))
                self._video.write(read_rgb(earlier))
            self._earlier = 0
            for frame in clip.frames:
                self._video.write(_as_in_exr(frame) if self._suffixes == ["exr"] else frame)
        self._count += len(clip)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and self._suffixes:
            note_rate(self.folder, self._fps)
        if self._video is not None:
            self._video.__exit__(kind, error, trace)


def write_clip(clip: Clip, path: str | Path, *, formats: Sequence[str] = ("png",)) -> Path:
    """Write a clip; returns the file or folder written.

    A ``path`` that ends in a video suffix becomes that one H.264 file; one that ends in an image suffix becomes that image (the
    clip must have one frame). Any other path is a folder, and ``formats`` picks from ``png`` (``<path>/<name>/0000.rgb.png``),
    ``exr`` (``<path>/<name>/0000.rgb.exr``, linear half float) and ``mp4`` (``<path>/<name>.rgb.mp4``, even-sized). The frame
    rate is noted in ``<path>/<name>/clip.json``. Every file is written under a temporary name first.
    """
    path = Path(path)
    if not len(clip):
        raise InputError("a clip of at least one frame", f"zero frames in {clip.name}", "give a longer clip")
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES and not path.is_dir():
        if suffix not in WRITTEN_SUFFIXES:
            raise InputError(f"a video name ending in {' '.join(WRITTEN_SUFFIXES)}", str(path), "choose one of these suffixes")
        return write_video(path, clip.frames, clip.fps)
    if suffix in IMAGE_SUFFIXES and not path.is_dir():
        if len(clip) > 1:
            raise InputError(
                f"one frame for {path.name}", f"{len(clip)} frames", "write a folder or an .mp4, or choose one frame"
            )
        return write_image(path, clip.frames[0])
    with ClipWriter(path, clip.name, clip.fps, formats) as writer:
        writer.write(clip)
    return writer.folder if {"png", "exr"} & set(formats) else path


def _as_in_exr(image: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
    """What is read back from an EXR with the image."""
    linear = torch.from_numpy(to_half(srgb_eotf(image.detach()).cpu().numpy()).astype(np.float32))
    return srgb_oetf(linear.nan_to_num(nan=0.0, posinf=1.0, neginf=0.0))


def _one_clip(path: Path) -> Path:
    if not existing(path).is_dir():
        return path
    clips = list_clips(path) if not frame_files(path) else [path]
    if len(clips) > 1:
        names = ", ".join(clip.name for clip in clips[:5]) + (", ..." if len(clips) > 5 else "")
        raise InputError(f"one clip in {path}", f"{len(clips)} clips: {names}", "give one of them")
    if clips[0].is_dir() and not frame_files(clips[0]):
        raise no_frames(path)
    return clips[0]


def _images(files: list[Path]) -> Iterator[Float[Tensor, "3 height width"]]:
    size = None
    for file in files:
        image = read_rgb(file)
        if size is not None and image.shape != size:
            raise InputError(
                f"frames of one size in {file.parent}",
                f"{size[2]}x{size[1]} in {files[0].name} and {image.shape[2]}x{image.shape[1]} in {file.name}",
                "scale them to one size, or move the others elsewhere",
            )
        size = image.shape
        yield image


def _stack(arrays: list[np.ndarray]) -> Float[Tensor, "frames 3 height width"]:
    """Convert integer frames to one tensor, letting go of each as it is converted: the peak is 1.25 times the result."""
    height, width = arrays[0].shape[:2]
    pixels = torch.empty(len(arrays), 3, height, width)
    for index in reversed(range(len(arrays))):
        array = arrays.pop()
        # Copied and scaled in place: a temporary of its own would double the traffic through memory.
        pixels[index].copy_(torch.from_numpy(array).permute(2, 0, 1)).div_(np.iinfo(array.dtype).max)
    return pixels


def _to_unit(pixels: np.ndarray) -> Float[Tensor, "3 height width"]:
    return to_tensor(pixels) / np.iinfo(pixels.dtype).max
