"""Readers of public data sets: every one turns a folder, as it was unpacked, into `Sample`s.

``read_public(name, folder)`` reads by name; the modules say what each layout is, in which units, and what is converted.
Buffers that a data set lacks are None. Nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.datagen.readers.dl3dv import read_dl3dv
from diffusion_renderer.datagen.readers.hypersim import read_hypersim
from diffusion_renderer.datagen.readers.interiorverse import read_interiorverse
from diffusion_renderer.datagen.readers.matsynth import read_matsynth
from diffusion_renderer.datagen.readers.mirror_ball import unwrap_mirror_ball
from diffusion_renderer.datagen.readers.mit_intrinsic import read_mit_intrinsic
from diffusion_renderer.datagen.readers.multi_illumination import read_multi_illumination
from diffusion_renderer.datagen.readers.stanford_orb import read_stanford_orb
from diffusion_renderer.datagen.settings import Sample

__all__ = [
    "READERS",
    "read_dl3dv",
    "read_hypersim",
    "read_interiorverse",
    "read_matsynth",
    "read_mit_intrinsic",
    "read_multi_illumination",
    "read_public",
    "read_stanford_orb",
    "unwrap_mirror_ball",
]

#: A reader takes (folder, split, frames).
Reader = Callable[[str | Path, str | None, int | None], Iterator[Sample]]


def _materials_only(folder: str | Path, split: str | None = None, frames: int | None = None) -> Iterator[Sample]:
    raise InputError(
        "a data set of clips or stills", f"matsynth in {folder}, which holds materials", "use it with `dataset --materials`"
    )


READERS: dict[str, Reader] = {
    "interiorverse": read_interiorverse,
    "hypersim": read_hypersim,
    "dl3dv": read_dl3dv,
    "matsynth": _materials_only,
    "multi-illumination": read_multi_illumination,
    "stanford-orb": read_stanford_orb,
    "mit-intrinsic": read_mit_intrinsic,
}


def read_public(name: str, folder: str | Path, split: str | None = None, frames: int | None = None) -> Iterator[Sample]:
    """The samples of a public data set, decoded one at a time.

    Parameters
    ----------
    name : one of `READERS`.
    folder : the data set as it was unpacked.
    split : one of the data set's own splits; None for everything.
    frames : frames per clip; None for the reader's default (stills, or 24 for video).

    Raises InputError at once for an unknown name or split, a folder that is missing, and one in the wrong layout (it says what
    is missing and where the data set is); while iterating for files that are missing or cannot be read.
    """
    return READERS[check_name("public data set", name, READERS)](folder, split, frames)
