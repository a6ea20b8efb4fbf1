"""File names: which files of a folder are frames, which buffer they hold, which folders are clips.

``<clip>/<frame:04d>.<buffer>.<ext>`` is WebDataset's convention; the published ``<clip>/<chunk:04d>.<frame:04d>.<buffer>.png``
is read as well.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import nearest
from diffusion_renderer.core.types import BUFFERS
from diffusion_renderer.io.atomic import write_bytes
from diffusion_renderer.io.images import IMAGE_SUFFIXES
from diffusion_renderer.io.video import VIDEO_SUFFIXES

#: What may stand between the frame's key and the suffix.
FILE_KINDS = (*BUFFERS, "rgb", "mask", "gbuffer")
FORMATS = ("png", "exr", "mp4")


@dataclass(frozen=True)
class BufferFile:
    """One file of one frame: ``key`` names the frame, ``kind`` is one of `FILE_KINDS`."""

    path: Path
    key: str
    kind: str


def natural_key(name: str | Path) -> list[tuple[int, int | str]]:
    """Sort key under which ``frame2`` comes before ``frame10``."""
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in re.split(r"(\d+)", str(name)) if part]


def buffer_file(path: Path) -> BufferFile | None:
    """Read ``<key>.<kind>.<ext>`` from a file name; None when it does not follow the convention."""
    parts = path.name.split(".")
    if len(parts) < 3 or parts[-2] not in FILE_KINDS:
        return None
    return BufferFile(path, ".".join(parts[:-2]), parts[-2])


def clip_name(path: Path) -> str:
    """The clip that a file or folder holds: ``shot`` for ``shot.mp4``, ``shot.rgb.mp4`` and ``shot/``."""
    named = buffer_file(path)
    if named:
        return named.key
    return path.name if path.is_dir() else path.stem


def images_in(folder: Path) -> list[Path]:
    """Image files directly in a folder, in natural order; hidden files are passed over."""
    return [path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def frame_files(folder: Path) -> list[Path]:
    """The frames of the clip in a folder: all images, or those named ``.rgb.`` when the names follow the convention."""
    images = images_in(folder)
    named = [file for path in images if (file := buffer_file(path))]
    return [file.path for file in named if file.kind == "rgb"] if named else images


def buffer_files(folder: Path) -> list[BufferFile]:
    """The buffer files directly in a folder; pictures (``rgb``) are not buffers."""
    named = (buffer_file(path) for path in images_in(folder))
    return [file for file in named if file and file.kind != "rgb"]


def list_clips(path: str | Path) -> list[Path]:
    """Every clip at ``path``, in natural order; each can be given to `read_clip`.

    A file is one clip. A folder with frames directly in it is one clip; else its videos are clips, and so are its sub-folders,
    however deep.
    """
    path = Path(path)
    clips = [path] if path.is_file() else _clips_below(existing(path))
    if not clips:
        raise no_frames(path)
    return clips


def list_gbuffers(path: str | Path) -> list[Path]:
    """Every set of G-buffers at ``path``, in natural order; each can be given to `read_gbuffer`.

    A folder with buffer files directly in it is one set; else its sub-folders are searched, however deep. Where a set exists
    only as videos, ``<clip>.<buffer>.mp4``, the path given is ``<clip>``, without suffix.
    """
    path = Path(path)
    sets = [path] if buffer_videos(path) else _gbuffers_below(existing(path))
    if not sets:
        raise no_buffers(path)
    return sets


def buffer_videos(path: Path) -> dict[str, Path]:
    """The videos ``<path>.<buffer>.mp4`` by buffer name."""
    candidates = {name: path.with_name(f"{path.name}.{name}.mp4") for name in BUFFERS}
    return {name: video for name, video in candidates.items() if video.is_file()}


def existing(path: Path) -> Path:
    """InputError when there is nothing at ``path``."""
    if not path.exists():
        raise InputError(f"an existing file or folder at {path}", "nothing there", "check the path")
    return path


def no_frames(path: Path) -> InputError:
    """The error for an input without a frame."""
    buffers = path.is_dir() and buffer_files(path)
    found = "G-buffers but no .rgb. frames" if buffers else "zero frames"
    return InputError(
        f"frames in {path}: images ({' '.join(IMAGE_SUFFIXES)}) or videos ({' '.join(VIDEO_SUFFIXES)})",
        found,
        "give another path",
    )


def no_buffers(path: Path) -> InputError:
    """The error for a folder without G-buffers; says so when the names look like misspelt buffers."""
    middles = {parts[-2] for image in images_in(path) if len(parts := image.name.split(".")) > 2} if path.is_dir() else set()
    strange = sorted(name for name in middles if not name.isdecimal() and name != "rgb")
    guess = nearest(strange[0], BUFFERS) if strange else None
    found = f"unknown buffer names {', '.join(strange)}" if strange else "none"
    advice = f"did you mean {guess}?" if guess else "make them with `diffusion-renderer inverse`"
    return InputError(f"G-buffers named <frame>.<buffer>.png in {path} (buffers: {', '.join(BUFFERS)})", found, advice)


def require_frame(folder: Path, number: int, kind: str, suffix: str | None) -> Path:
    """The file of a frame that was written before. InputError where there is none, or no format of frames was written."""
    path = folder / f"{number:04d}.{kind}.{suffix}"
    if suffix is None or not path.is_file():
        found = "a format without frames" if suffix is None else f"no {path.name}"
        raise InputError(f"the frames before the first one to be written in {folder}", found, "make all frames again")
    return path


def clip_rate(folder: Path) -> float:
    """Frames per second noted in ``clip.json``, else 24."""
    try:
        rate = float(json.loads((folder / "clip.json").read_text())["fps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 24.0
    return rate if 0.01 <= rate <= 1000 else 24.0


def note_rate(folder: Path, fps: float) -> None:
    """Note the frame rate in ``clip.json``, so that frames read back play at the right speed; other entries are kept."""
    path = folder / "clip.json"
    try:
        notes = json.loads(path.read_text())
    except (OSError, ValueError):
        notes = {}
    notes = {**notes, "fps": fps} if isinstance(notes, dict) else {"fps": fps}
    write_bytes(path, (json.dumps(notes, indent=1) + "\n").encode())


def _clips_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    if frame_files(folder):
        return [folder]
    clips = []
    for entry in _entries(folder):
        if entry.is_dir():
            clips.extend(_clips_below(entry))
        elif entry.suffix.lower() in VIDEO_SUFFIXES and _shows_a_clip(entry):
            clips.append(entry)
    return clips


def _shows_a_clip(video: Path) -> bool:
    named = buffer_file(video)
    return named is None or named.kind == "rgb"


def _gbuffers_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    if buffer_files(folder):
        return [folder]
    sets: list[Path] = []
    for entry in _entries(folder):
        if entry.is_dir():
            sets.extend(_gbuffers_below(entry))
    videos = (buffer_file(entry) for entry in _entries(folder) if entry.suffix.lower() == ".mp4")
    names = {video.key for video in videos if video and video.kind in BUFFERS}
    sets.extend(folder / name for name in names if folder / name not in sets)
    return sorted(sets, key=natural_key)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(
            (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: natural_key(path.name)
        )
    except OSError as error:
        raise InputError(f"a readable folder at {folder}", error.strerror or str(error), "check its permissions") from error
