"""Clips: videos, images, folders of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import Clip
from diffusion_renderer.io.images import IMAGE_SUFFIXES, in_parallel, read_rgb, to_tensor, write_image
from diffusion_renderer.io.layout import FORMATS, clip_name, clip_rate, existing, frame_files, list_clips, no_frames, note_rate
from diffusion_renderer.io.video import VIDEO_SUFFIXES, WRITTEN_SUFFIXES, iter_video, video_rate, write_video


def read_clip(path: str | Path, *, frames: int | None = None) -> Clip:
    """Read a clip: float32 sRGB in [0, 1], as stored, without scaling.

    Parameters
    ----------
    path : a video (mp4, mov, webm, gif, ...), an image (png, jpg, webp, tiff, exr), or a folder of frames in natural order, of
        which only ``<frame>.rgb.<ext>`` when the folder follows the WebDataset names. A folder holding one clip further down is
        that clip. Alpha lies over black; EXR frames are linear and are shown at exposure 1.
    frames : read only this many frames from the start; what comes after is not even opened.

    Raises InputError for anything unreadable, frames of different sizes, and folders holding several clips (`list_clips`).
    The whole clip is held in memory, 12 bytes per pixel and frame; `iter_frames` streams.
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
    for name in formats:
        check_name("output format", name, FORMATS)
    folder = path / clip.name
    for suffix in ("png", "exr"):
        if suffix in formats:
            jobs = ((folder / f"{index:04d}.rgb.{suffix}", frame) for index, frame in enumerate(clip.frames))
            in_parallel(lambda job: write_image(*job), jobs)
            note_rate(folder, clip.fps)
    if "mp4" in formats:
        write_video(path / f"{clip.name}.rgb.mp4", clip.frames, clip.fps)
    return folder if {"png", "exr"} & set(formats) else path


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
