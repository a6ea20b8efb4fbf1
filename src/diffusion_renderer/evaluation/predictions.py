"""Output folders of other systems: what must be in them, what is, and reading it so that nothing wrong becomes a number.

A system writes what our own commands write (see `io.layout`), or plain numbered frames:

=================  ==================================================================================================
task               accepted for each clip, the first that is there
=================  ==================================================================================================
forward, relight   ``<clip>_<light>/`` or ``<clip>/<light>/`` with ``<frame>.rgb.png`` or ``.exr`` or ``<frame>.png``;
                   ``<clip>_<light>.rgb.mp4`` or ``.mp4``, the same below ``<clip>/``; a still as ``<clip>_<light>.png``
inverse            ``<clip>/<frame>.<buffer>.png`` or ``.exr``, ``<clip>/<frame>.gbuffer.exr``, ``<clip>.<buffer>.mp4``
=================  ==================================================================================================

Frames count from 0; files that count from 1 to the clip's length are taken as well. Where a frame has several files, EXR is
preferred to PNG and that to others. An EXR keeps its NaN and infinities here, unlike in `io.read_clip` and `io.read_gbuffer`:
a metric must see them to fail the clip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.encoding import decode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import BUFFER_CHANNELS, BUFFERS, Clip, GBuffer
from diffusion_renderer.editing.names import relit_name
from diffusion_renderer.io.exr import LAYER_LETTERS, layer, picture, read_exr
from diffusion_renderer.io.gbuffers import read_gbuffer
from diffusion_renderer.io.images import in_parallel, read_image, read_rgb, to_tensor
from diffusion_renderer.io.layout import buffer_file, buffer_files, buffer_videos, clip_rate, frame_files, natural_key
from diffusion_renderer.io.video import VIDEO_SUFFIXES, iter_video

#: How many mistakes an error lists before it only counts.
LISTED = 10
#: Suffixes of frames, best first. TIFF is not among them: a float TIFF would lose its NaN on reading.
_FRAME_SUFFIXES = (".exr", ".png", ".webp", ".jpg", ".jpeg")

_Path = dict[str, Path]


class Expected(NamedTuple):
    """What a system must have made of one clip.

    Attributes
    ----------
    clip, light : names; ``light`` is empty for the inverse task.
    frames : how many.
    size : (width, height), pixels.
    buffers : the buffers that are scored; empty for the tasks that make frames.
    """

    clip: str
    light: str
    frames: int
    size: tuple[int, int]
    buffers: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """How an error names it."""
        return relit_name(self.clip, self.light) if self.light else self.clip


@dataclass(frozen=True)
class Predictions:
    """The output folder of a system, to be scored like a renderer that runs here.

    Attributes
    ----------
    folder : holds the clips; see the module for the layouts.
    name : of the system, as its row of the table is titled.
    """

    folder: Path
    name: str

    def __post_init__(self) -> None:
        if not Path(self.folder).is_dir():
            found = "a file" if Path(self.folder).exists() else "nothing there"
            raise InputError(f"a folder of predictions at {self.folder}", found, "give the folder that the system wrote to")

    def check(self, expected: Iterable[Expected]) -> None:
        """Go over everything that will be read, so that a table is made from all of it or not at all.

        Every file is decoded once. Raises one InputError that lists the first `LISTED` mistakes and counts the others: clips
        that are missing, frames that are missing (by number) or too many, wrong sizes, missing buffers, files that cannot be
        read. NaN is not a mistake of the folder: the metrics count it as a failure of the clip.
        """
        expected = list(expected)
        mistakes = [mistake for wanted in expected for mistake in self._mistakes(wanted)]
        if not mistakes:
            return
        listing = "; ".join(mistakes[:LISTED]) + (f"; and {len(mistakes) - LISTED} more" if len(mistakes) > LISTED else "")
        layout = "<clip>/<frame>.<buffer>.png" if expected[0].buffers else "<clip>_<light>/<frame>.rgb.png"
        raise InputError(
            f"predictions of all {len(expected)} clips in {self.folder}, as {layout} or .exr, or videos",
            listing,
            "complete the folder, or leave these predictions out",
        )

    def load(self, clip: str, light: str) -> Clip:
        """The frames that the system made of a clip under a light: sRGB in [0, 1], as they are.

        A pixel of an EXR that is not finite is NaN in the result. Other EXR values are linear light, clipped to [0, 1] and
        encoded: what is brighter than display white is lost, as in every clip.
        """
        place = _find_frames(self.folder, clip, light)
        if place is None:
            raise self._absent(relit_name(clip, light) if light else clip)
        name = relit_name(clip, light) if light else clip
        if place.suffix.lower() in VIDEO_SUFFIXES and place.is_file():
            return Clip(torch.stack([_unit(pixels) for pixels in iter_video(place)]), name=name)
        files = _rgb_files(place)
        frames = in_parallel(_read_rgb, [files[key] for key in sorted(files, key=natural_key)])
        return Clip(torch.stack(frames), clip_rate(place) if place.is_dir() else 24.0, name)

    def load_buffers(self, clip: str, buffers: Sequence[str] | None = None) -> GBuffer:
        """The buffers that the system found for a clip, without a mask; ``buffers`` limits them, None reads those there.

        EXR values are as they are, NaN included; other files are decoded as `core.encoding` encodes. Depth is in whatever
        scale the system writes.
        """
        place = self.folder / clip
        wanted = tuple(buffers or BUFFERS)
        files = _buffer_files(place)
        if not files:
            if not buffer_videos(place):
                raise self._absent(clip)
            found = read_gbuffer(place, buffers=[name for name in wanted if name in buffer_videos(place)])
            tensors = {name: getattr(found, name) for name in found.present}
            return GBuffer(**tensors, fps=found.fps, name=clip)
        frames = in_parallel(lambda key: _read_buffers(files[key], wanted), sorted(files, key=natural_key))
        common = [name for name in wanted if all(name in frame for frame in frames)]
        tensors = {name: torch.stack([frame[name] for frame in frames]) for name in common}
        return GBuffer(**tensors, fps=clip_rate(place), name=clip)

    def buffers(self, clips: Iterable[str]) -> tuple[str, ...]:
        """The buffers that the system made for any of ``clips``, by looking at their first frames only.

        A system need not make all: score those. What it made for some clips only is then a mistake that `check` lists.
        """
        found: set[str] = set()
        for clip in clips:
            files = _buffer_files(self.folder / clip)
            found |= set(_read_buffers(files[min(files, key=natural_key)], BUFFERS) if files else {})
            found |= set(buffer_videos(self.folder / clip))
        return tuple(name for name in BUFFERS if name in found)

    def _absent(self, title: str) -> InputError:
        return InputError(f"a prediction of {title} in {self.folder}", "none", "let the system make it, or check its name")

    def _mistakes(self, wanted: Expected) -> Iterator[str]:
        try:
            yield from self._buffer_mistakes(wanted) if wanted.buffers else self._frame_mistakes(wanted)
        except InputError as error:
            yield f"{wanted.title} cannot be read (expected {error.expected}; found {error.found})"

    def _frame_mistakes(self, wanted: Expected) -> Iterator[str]:
        place = _find_frames(self.folder, wanted.clip, wanted.light)
        if place is None:
            yield f"{wanted.title} is missing"
        elif place.is_file() and place.suffix.lower() in VIDEO_SUFFIXES:
            yield from _video_mistakes(wanted, wanted.title, place)
        else:
            files = _rgb_files(place)
            yield from _number_mistakes(wanted, wanted.title, list(files))
            yield from _size_mistakes(wanted, files, lambda path: {"": _read_rgb(path)})

    def _buffer_mistakes(self, wanted: Expected) -> Iterator[str]:
        place = self.folder / wanted.clip
        files = _buffer_files(place)
        if files:
            yield from _number_mistakes(wanted, wanted.title, list(files))
            yield from _size_mistakes(wanted, files, lambda frame: _read_buffers(frame, wanted.buffers))
            return
        videos = buffer_videos(place)
        if not videos:
            yield f"{wanted.title} is missing"
            return
        for name in wanted.buffers:
            if name in videos:
                yield from _video_mistakes(wanted, f"{wanted.title}.{name}", videos[name])
            else:
                yield f"{wanted.title} has no {name}"


def _find_frames(folder: Path, clip: str, light: str) -> Path | None:
    """The folder, video or still that shows ``clip`` under ``light``."""
    names = [folder / relit_name(clip, light), folder / clip / light] if light else [folder / clip]
    for path in names:
        if path.is_dir() and frame_files(path):
            return path
        for ending in (".rgb", ""):
            for suffix in (*VIDEO_SUFFIXES, *_FRAME_SUFFIXES):
                file = path.with_name(f"{path.name}{ending}{suffix}")
                if file.is_file():
                    return file
    return None


def _preference(path: Path) -> int:
    suffix = path.suffix.lower()
    return _FRAME_SUFFIXES.index(suffix) if suffix in _FRAME_SUFFIXES else len(_FRAME_SUFFIXES)


def _rgb_files(place: Path) -> _Path:
    """The best file of every frame, by the frame's key."""
    files: _Path = {}
    for path in frame_files(place) if place.is_dir() else [place]:
        named = buffer_file(path)
        key = named.key if named else path.stem
        if key not in files or _preference(path) < _preference(files[key]):
            files[key] = path
    return files


def _buffer_files(place: Path) -> dict[str, _Path]:
    """The best file of every buffer, by the frame's key and the buffer's name; "gbuffer" is a file of several."""
    frames: dict[str, _Path] = {}
    for file in buffer_files(place) if place.is_dir() else ():
        kinds = frames.setdefault(file.key, {})
        if file.kind not in kinds or _preference(file.path) < _preference(kinds[file.kind]):
            kinds[file.kind] = file.path
    return {key: kinds for key, kinds in frames.items() if set(kinds) - {"mask"}}


def _read_rgb(path: Path) -> Float[Tensor, "3 height width"]:
    """A frame as sRGB; what is not finite in an EXR is NaN."""
    _require_kind(path)
    if path.suffix.lower() != ".exr":
        return read_rgb(path).contiguous()
    linear = to_tensor(picture(read_exr(path), path))
    encoded = srgb_oetf(linear.nan_to_num(0.0, posinf=1.0, neginf=0.0))
    return torch.where(linear.isfinite(), encoded, torch.full_like(encoded, torch.nan))


def _read_buffers(files: _Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Those of the buffers ``names`` that one frame has, ``channels height width``, as in memory."""
    layers = read_exr(files["gbuffer"]) if "gbuffer" in files else {}
    found = {}
    for name in names:
        pixels = next((p for letters in LAYER_LETTERS[name] if (p := layer(layers, name, letters)) is not None), None)
        if pixels is not None:
            found[name] = _channels(to_tensor(pixels), name)
        elif name in files:
            found[name] = _read_buffer(files[name], name)
    return found


def _read_buffer(path: Path, name: str) -> Float[Tensor, "channels height width"]:
    _require_kind(path)
    if path.suffix.lower() != ".exr":
        return decode_buffer(name, _channels(read_image(path), name)[None])[0]
    stored = read_exr(path)
    choices = [(name, letters) for letters in LAYER_LETTERS[name]]
    choices += [("", letters) for letters in ("RGB", "XYZ", *LAYER_LETTERS[name])]
    pixels = next((p for prefix, letters in choices if (p := layer(stored, prefix, letters)) is not None), None)
    if pixels is None and len(stored) == 1:
        pixels = next(iter(stored.values()))[..., None]
    if pixels is None:
        wanted = LAYER_LETTERS[name][0]
        raise InputError(f"channels {wanted} in {path}", ", ".join(sorted(stored)), "export the buffer with these names")
    return _channels(to_tensor(pixels), name)


def _channels(image: Float[Tensor, "stored height width"], name: str) -> Float[Tensor, "channels height width"]:
    if BUFFER_CHANNELS[name] == 1:
        return image.mean(dim=0, keepdim=True)
    return image.expand(3, -1, -1).contiguous()


def _require_kind(path: Path) -> None:
    if path.suffix.lower() not in _FRAME_SUFFIXES:
        raise InputError(f"frames as {' '.join(_FRAME_SUFFIXES)}", path.name, "export the frames as .png or .exr")


def _unit(pixels: np.ndarray) -> Float[Tensor, "3 height width"]:
    """A decoded video frame in [0, 1]."""
    return to_tensor(pixels) / np.iinfo(pixels.dtype).max


def _number_mistakes(wanted: Expected, title: str, keys: Sequence[str]) -> Iterator[str]:
    """Frames that are missing, by number, or too many.

    A frame's number is the one that its key ends in. Keys that do not all end in different numbers are only counted.
    """
    ends = [re.search(r"(\d+)$", key) for key in keys]
    numbers = {int(end[1]) for end in ends if end}
    if len(numbers) == len(keys):
        first = 1 if 0 not in numbers and max(numbers, default=0) == wanted.frames else 0
        missing = sorted(set(range(first, first + wanted.frames)) - numbers)
        if missing:
            yield f"{title} lacks the frames {_ranges(missing)}"
            return
    if len(keys) != wanted.frames:
        yield f"{title} has {len(keys)} frames instead of {wanted.frames}"


def _ranges(numbers: Sequence[int]) -> str:
    """``3, 7-9`` for 3, 7, 8, 9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _size_mistakes(wanted: Expected, files: dict, read: Callable[[object], dict[str, Tensor]]) -> Iterator[str]:
    """Frames that have another size, lack a buffer, or cannot be read; equal ones are told together.

    ``read`` gives the images of one frame by name.
    """

    def look(key: str) -> list[str]:
        try:
            images = read(files[key])
        except InputError as error:
            return [f"cannot be read (expected {error.expected}; found {error.found})"]
        found = [f"no {name}" for name in wanted.buffers if name not in images]
        for name, image in images.items():
            size = (image.shape[-1], image.shape[-2])
            if size != wanted.size:
                what = f"{name} of " if name else ""
                found.append(f"{what}{size[0]}x{size[1]} instead of {wanted.size[0]}x{wanted.size[1]}")
        return found

    keys = sorted(files, key=natural_key)
    told: dict[str, list[str]] = {}
    for key, found in zip(keys, in_parallel(look, keys), strict=True):
        for mistake in found:
            told.setdefault(mistake, []).append(key)
    for mistake, where in told.items():
        frames = "all frames" if len(where) == len(keys) else ", ".join(where[:5]) + (", ..." if len(where) > 5 else "")
        yield (
            f"{wanted.title} has {mistake} ({frames})"
            if not mistake.startswith("cannot")
            else (f"{wanted.title}, frame {frames}: {mistake}")
        )


def _video_mistakes(wanted: Expected, title: str, video: Path) -> Iterator[str]:
    count, size = 0, wanted.size
    for pixels in iter_video(video):
        count, size = count + 1, (pixels.shape[1], pixels.shape[0])
    if count != wanted.frames:
        yield f"{title} has {count} frames instead of {wanted.frames}"
    if size != wanted.size:
        yield f"{title} has {size[0]}x{size[1]} instead of {wanted.size[0]}x{wanted.size[1]}"
