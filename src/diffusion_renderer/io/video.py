"""Video files through PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io.atomic import atomic_path
from diffusion_renderer.io.images import quantise, require_file

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".gif", ".mkv", ".avi", ".m4v")
#: Containers that H.264 is written to.
WRITTEN_SUFFIXES = (".mp4", ".mov", ".mkv", ".m4v")
#: Constant quality: a smooth coloured clip comes back within 0.006 on average (tests/test_io_video.py).
QUALITY = "16"
#: Without these flags ffmpeg's fast paths cost four times the rounding error (mean 1.5 instead of 0.4 of 255).
ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


def iter_video(path: Path) -> Iterator[np.ndarray]:
    """Frames as ``height width 3``, uint8 (uint16 when the video has more than 8 bits), upright, alpha over black.

    Raises InputError when the file is no video, has no frame, or is damaged, naming the first frame that cannot be read; the
    frames before it have been given by then. Frames come as stored: variable frame rates and oblong pixels are not resampled.
    """
    done, size = 0, None
    with _opened(path) as container:
        stream = container.streams.video[0]
        # One thread: with more, the decoder reports damage late or not at all, and decoding is never the slow part here.
        stream.thread_type = "NONE"
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise _damaged(path, done, "data that the decoder could not follow")
                size = size or (frame.width, frame.height)
                if size != (frame.width, frame.height):
                    raise _damaged(path, done, f"a change of size from {size[0]}x{size[1]} to {frame.width}x{frame.height}")
                yield _upright(_to_rgb(frame), frame.rotation)
                done += 1
        except InputError:
            raise
        except (av.error.FFmpegError, OSError, ValueError) as error:
            found = _reason(error)
            raise _damaged(path, done, found) if done else _unreadable(path, found) from error
        if _is_cut_short(stream, path):
            raise _damaged(path, done, "the end of the file") if done else _unreadable(path, "a file cut short")
    if not done:
        raise _unreadable(path, "no frame")


def video_rate(path: Path) -> float:
    """Frames per second, 24 when the file does not say."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        return float(stream.average_rate or stream.guessed_rate or 24)


class VideoWriter:
    """H.264, 4:2:0, tagged BT.709, which every player and browser shows, written a frame at a time.

    Used as a context manager: the file appears when the block succeeds. An odd width or height grows by one pixel (its edge
    repeated): 4:2:0 has no odd sizes. Raises InputError for another suffix, an impossible rate, and a block without frames.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in WRITTEN_SUFFIXES:
            raise InputError(f"a video name ending in {' '.join(WRITTEN_SUFFIXES)}", str(path), "choose one of these suffixes")
        if not (math.isfinite(fps) and 0.01 <= fps <= 1000):
            raise InputError("frames per second between 0.01 and 1000", str(fps), "set the clip's fps")
        self._rate = Fraction(fps).limit_denominator(1001)
        self._stack, self._count = ExitStack(), 0
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, image: Float[Tensor, "3 height width"]) -> None:
        """Append a frame in [0, 1]; all have the first one's size."""
        if self._stream is None:
            temporary = self._stack.enter_context(atomic_path(self.path))
            # faststart puts the index first, so that a browser can begin before it has everything.
            options = {"movflags": "+faststart"} if self.path.suffix.lower() != ".mkv" else {}
            self._container = self._stack.enter_context(av.open(str(temporary), "w", options=options))
            self._stream = _h264_stream(self._container, self._rate, image)
        frame = _to_yuv(image)
        frame.pts, frame.time_base = self._count, 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        self._count += 1

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The stack sees the error, so that nothing is renamed after one.
        with self._stack.pop_all() as stack:
            if error is not None:
                stack.__exit__(kind, error, trace)
            elif self._stream is None:
                raise InputError(f"at least one frame to write to {self.path.name}", "none", "give a longer clip")
            else:
                self._container.mux(self._stream.encode())


def write_video(path: str | Path, frames: Iterable[Float[Tensor, "3 height width"]], fps: float) -> Path:
    """Write frames in [0, 1], drawn one at a time, as `VideoWriter` does."""
    with VideoWriter(path, fps) as writer:
        for image in frames:
            writer.write(image)
    return writer.path


def _h264_stream(container: av.container.OutputContainer, rate: Fraction, first: Tensor) -> av.VideoStream:
    height, width = first.shape[-2:]
    stream = container.add_stream("libx264", rate=rate)
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    codec = stream.codec_context
    codec.options = {"crf": QUALITY, "preset": "medium"}
    codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
    codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _to_yuv(image: Tensor) -> av.VideoFrame:
    pixels = quantise(image)
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        dst_color_primaries=ColorPrimaries.BT709,
        dst_color_trc=ColorTrc.BT709,
        interpolation=ACCURATE,
    )


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    deep = max(component.bits for component in frame.format.components) > 8
    has_alpha = any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8"
    target = "rgba64le" if deep and has_alpha else "rgb48le" if deep else "rgba" if has_alpha else "rgb24"
    # A file that does not name its matrix is BT.709 when it is HD, else BT.601: what players assume.
    unnamed = frame.colorspace not in (1, 4, 5, 6, 7, 9)
    matrix = (Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601) if unnamed else None
    pixels = frame.reformat(format=target, src_colorspace=matrix, interpolation=ACCURATE).to_ndarray()
    if has_alpha:
        top = np.iinfo(pixels.dtype).max
        over_black = pixels[..., :3].astype(np.uint32) * pixels[..., 3:] + top // 2
        return (over_black // top).astype(pixels.dtype)
    return pixels


def _upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """Turn by the display rotation (degrees counter-clockwise) that phones store instead of turning the pixels."""
    return np.ascontiguousarray(np.rot90(pixels, k=round(rotation / 90) % 4))


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    require_file(path)
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(path, _reason(error)) from error
    with container:
        if not container.streams.video:
            raise _unreadable(path, "no video track")
        yield container


def _is_cut_short(stream: av.VideoStream, path: Path) -> bool:
    """Whether the index of an MP4 points beyond the end of the file; other containers have no such index."""
    entries = stream.index_entries
    size = path.stat().st_size
    return stream.frames > 0 and any(entry.pos + entry.size > size for entry in entries)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _unreadable(path: Path, found: str) -> InputError:
    return InputError(f"a readable video in {path}", found, "check that the file is complete, or convert it to MP4")


def _damaged(path: Path, frame: int, found: str) -> InputError:
    return InputError(
        f"readable frames to the end of {path}",
        f"damage at frame {frame} (counted from 0): {found}",
        f"repair the file, or use what comes before it with --frames {frame}" if frame else "repair or fetch the file again",
    )
