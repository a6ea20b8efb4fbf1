"""MIT intrinsic images: 20 real objects with measured reflectance and shading (Grosse et al., ICCV 2009).

Layout, as its code reads it (https://www.cs.toronto.edu/~rgrosse/intrinsic):

    data/<object>/{original,diffuse,mask,reflectance,shading,specular}.png, light01.png ... light10.png

=============  ===============================================================  =========================================
file           documented                                                       here
=============  ===============================================================  =========================================
diffuse        16-bit linear colour, the picture without its mirror component   clip, exposure by `EXPOSURE_RULE`
original       16-bit linear colour, with it                                    clip where diffuse is missing
reflectance    16-bit linear colour, diffuse / shading, known up to a scale     diffuse_albedo
shading        16-bit linear grey                                               not read here: G-buffers have no shading
mask           not 0 on the object                                              mask
=============  ===============================================================  =========================================

The authors' evaluation gives every method ``diffuse``, for which image = reflectance x shading holds; so does this reader.
There is no geometry, camera or light. Values are divided by 65535 (255 for copies of 8 bits). ``split``: "evaluation" is the
16 objects of the paper's tables, "set1" and "set2" their two halves for cross-validation, "extra" the four others, which the
authors left out for slight flaws. Licence: not stated; see the website.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen.readers.common import (
    EXPOSURE_RULE,
    PublicSet,
    choose_exposure,
    describe,
    display_clip,
    layout_error,
    masked,
    natural,
    read_display,
    relative,
    require_files,
    require_folder,
    require_stills,
)
from diffusion_renderer.datagen.settings import Sample

MIT_INTRINSIC = PublicSet(
    "mit-intrinsic",
    "see the website",
    "https://www.cs.toronto.edu/~rgrosse/intrinsic",
    "data/<object>/{diffuse or original,mask,reflectance}.png",
)
_SET1 = ("box", "cup1", "cup2", "dinosaur", "panther", "squirrel", "sun", "teabag2")
_SET2 = ("deer", "frog1", "frog2", "paper1", "paper2", "raccoon", "teabag1", "turtle")
#: Objects of each split.
SPLITS = {
    "evaluation": _SET1 + _SET2,
    "set1": _SET1,
    "set2": _SET2,
    "extra": ("apple", "pear", "phone", "potato"),
}


def read_mit_intrinsic(folder: str | Path, split: str | None = None, frames: int | None = None) -> Iterator[Sample]:
    """Every object as a still; see the module. ``split`` is one of `SPLITS`, None for every object that is there.

    ``folder`` holds data, or is it. Objects of a split that are not on disk are passed over. Raises InputError at once for a
    wrong layout, an unknown split or ``frames`` above 1, while iterating for an object with files missing or of two sizes.
    """
    folder = require_folder(MIT_INTRINSIC, folder)
    require_stills(MIT_INTRINSIC, frames)
    if split is not None:
        check_name("split", split, SPLITS)
    root = folder / "data" if (folder / "data").is_dir() else folder
    objects = [path.parent for path in root.glob("*/mask.png") if split is None or path.parent.name in SPLITS[split]]
    if not objects:
        raise layout_error(MIT_INTRINSIC, folder, f"any <object>/mask.png{f' of the split {split}' if split else ''}")
    return (_read(folder, place) for place in sorted(objects, key=lambda path: natural(path.name)))


def input_file(place: Path) -> Path:
    """The picture of an object that a method is given."""
    return place / ("diffuse.png" if (place / "diffuse.png").is_file() else "original.png")


def _read(folder: Path, place: Path) -> Sample:
    files = [input_file(place), place / "mask.png", place / "reflectance.png"]
    require_files(MIT_INTRINSIC, place, [path.name for path in files])
    linear, mask, reflectance = (read_display(path)[None] for path in files)
    if len({image.shape for image in (linear, mask, reflectance)}) > 1:
        sizes = [f"{image.shape[-1]}x{image.shape[-2]}" for image in (linear, mask, reflectance)]
        found = ", ".join(f"{path.name} {size}" for path, size in zip(files, sizes, strict=True))
        raise InputError(f"images of one size in {place}", found, "fetch the object again")
    mask = mask[:, :1] > 0
    exposure = choose_exposure(linear, mask)
    clip = display_clip(linear, exposure, place.name)
    gbuffer = GBuffer(diffuse_albedo=masked(reflectance, mask), mask=mask, name=place.name)
    converted = {
        "rgb": f"{files[0].name}: linear times exposure, sRGB; exposure: {EXPOSURE_RULE}",
        "diffuse_albedo": "reflectance.png, linear, up to a scale",
    }
    meta = describe(MIT_INTRINSIC, place.name, clip, gbuffer, relative(files, folder), converted, exposure=exposure)
    return Sample(clip, gbuffer, meta=meta)
