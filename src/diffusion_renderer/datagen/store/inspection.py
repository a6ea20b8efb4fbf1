"""What is in a data set, for a person: contact sheets, and statistics as Markdown and JSON."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.datagen.settings import Sample
from diffusion_renderer.datagen.store.encode import decode_clip
from diffusion_renderer.datagen.store.statistics import BINS, Statistics
from diffusion_renderer.io.atomic import write_bytes
from diffusion_renderer.io.sheet import write_sheet

#: Clips in one row of the first sheet, and clips in the second one.
PER_ROW, DETAILED = 8, 16
#: What a row of the second sheet shows between the frame and the light.
DETAIL_COLUMNS = ("basecolor", "normal", "depth", "roughness", "metallic", "ids")
#: Colours of the objects in the sheets; the sequence repeats.
PALETTE = torch.tensor(
    [[0.0, 0, 0], [0.55, 0.55, 0.55], [0.9, 0.4, 0.3], [0.3, 0.6, 0.9], [0.4, 0.8, 0.4], [0.9, 0.8, 0.3], [0.7, 0.4, 0.8]]
)

Progress = Callable[[int, int, str], None]


def inspect(
    folder: str | Path,
    out: str | Path,
    clips: int = 64,
    *,
    cell: int = 160,
    middle: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Look at ``clips`` clips spread evenly over a data set and write what they show into ``out``.

    ``clips.png``: a frame of each (the first, or the middle one) above small pictures of its normals, depth, base colour and
    objects: normals and depth show what floats, sinks or pierces. ``buffers.png``: every buffer and the light of the first
    `DETAILED` of them. ``histograms.png``, ``statistics.md``, ``statistics.json``: numbers of all frames of these clips.

    Returns the contents of statistics.json. Raises InputError for a folder without shards and for a damaged shard.
    """
    folder, out = Path(folder), Path(out)
    for name, value, least in (("clips", clips, 1), ("cell", cell, 16)):
        if value < least:
            raise InputError(f"{name} of at least {least}", str(value), "give a larger number")
    chosen = choose_clips(folder, clips)
    numbers = Statistics(folder.name)
    overview: list[tuple[str, list[Tensor]]] = []
    details: list[tuple[str, list[Tensor]]] = []
    for number, (path, clip, names) in enumerate(chosen):
        if progress is not None:
            progress(number, len(chosen), "clips")
        files = _read(path, names)
        sample = _decode(path, files)
        numbers.add(sample, sum(map(len, files.values())))
        frame = len(sample.clip) // 2 if middle else 0
        if number % PER_ROW == 0:
            overview.append((clip, []))
        overview[-1][1].append(overview_cell(sample, frame, cell))
        if number < DETAILED:
            details.append((f"{clip} {sample.meta.get('family', '')}".strip(), detail_row(sample, frame)))
    if progress is not None:
        progress(len(chosen), len(chosen), "clips")
    summary = numbers.to_json()
    write_sheet(out / "clips.png", overview, cell=cell)
    write_sheet(out / "buffers.png", details, columns=("rgb", *DETAIL_COLUMNS, "light"), cell=cell)
    bars = [(name, [chart(values)]) for name, values in summary["histograms"].items()]
    write_sheet(out / "histograms.png", bars, cell=2 * BINS * 4)
    write_bytes(out / "statistics.json", (json.dumps(summary, indent=1) + "\n").encode())
    write_bytes(out / "statistics.md", numbers.to_markdown().encode())
    return summary


def choose_clips(folder: Path, clips: int) -> list[tuple[Path, str, list[str]]]:
    """(shard, clip, its members) of at most ``clips`` clips spread evenly over all shards; reads the archives' headers only."""
    paths = sorted(folder.glob("shard-*.tar"))
    if not paths:
        raise InputError("a folder with shard-*.tar files", f"none in {folder}", "make them with `diffusion-renderer dataset`")
    found: dict[tuple[Path, str], list[str]] = {}
    for path in paths:
        try:
            with tarfile.open(path) as tar:
                for name in tar.getnames():
                    found.setdefault((path, name.split("/")[0]), []).append(name)
        except (tarfile.TarError, OSError) as error:
            raise _damaged(path, error) from error
    if not found:
        raise InputError("clips in the shards", f"none in {folder}", "generate the data set again")
    everything = [(path, clip, names) for (path, clip), names in found.items()]
    count = min(clips, len(everything))
    return [everything[index * len(everything) // count] for index in range(count)]


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError("a whole shard", f"{path}: {error}", "run `diffusion-renderer dataset validate`, or make it again")


def _read(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as tar:
            return {name.partition("/")[2]: tar.extractfile(name).read() for name in names}
    except (tarfile.TarError, OSError, AttributeError) as error:
        raise _damaged(path, error) from error


def _decode(path: Path, files: dict[str, bytes]) -> Sample:
    try:
        return decode_clip(files)
    except (KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def overview_cell(sample: Sample, frame: int, cell: int) -> Float[Tensor, "3 height width"]:
    """A frame above four small pictures: normal, depth, base colour, objects; grey where the clip lacks one."""
    small = [picture(sample, name, frame) for name in ("normal", "depth", "basecolor", "ids")]
    width = 4 * (cell // 4)
    height = max(4, round(width * sample.clip.size[1] / sample.clip.size[0] / 4) * 4)
    strip = torch.cat([_resize(image, height // 4, width // 4) for image in small], dim=-1)
    return torch.cat((_resize(sample.clip.frames[frame], height, width), strip), dim=-2)


def detail_row(sample: Sample, frame: int) -> list[Float[Tensor, "3 _height _width"]]:
    """The frame, its buffers and the light, all of the frame's size."""
    height, width = sample.clip.frames.shape[-2:]
    light = torch.full((3, height, width), 0.5)
    if sample.environment is not None:
        light = torch.zeros(3, height, width)
        shown = _resize(tone_mapped(sample.environment), max(1, min(height, width // 2)), width)
        light[:, : shown.shape[-2]] = shown
    return [sample.clip.frames[frame], *(picture(sample, name, frame) for name in DETAIL_COLUMNS), light]


def picture(sample: Sample, name: str, frame: int) -> Float[Tensor, "3 height width"]:
    """A buffer, or ``ids``, as colours in [0, 1]; grey when the clip lacks it."""
    height, width = sample.clip.frames.shape[-2:]
    if name == "ids":
        return torch.full((3, height, width), 0.5) if sample.ids is None else paint(sample.ids[frame])
    value = getattr(sample.gbuffer, name)
    return torch.full((3, height, width), 0.5) if value is None else encode_buffer(name, value)[frame].expand(3, -1, -1)


def paint(ids: UInt8[Tensor, "1 height width"]) -> Float[Tensor, "3 height width"]:
    """Each object in a colour of its own, black where there is none."""
    index = ids[0].long()
    index = torch.where(index > 0, (index - 1) % (len(PALETTE) - 1) + 1, index)
    return PALETTE[index].permute(2, 0, 1).contiguous()


def tone_mapped(environment: EnvironmentMap) -> Float[Tensor, "3 height width"]:
    """A panorama for the eye: x / (1 + x), sRGB-encoded."""
    radiance = environment.radiance.nan_to_num(0.0).clamp_min(0.0)
    return srgb_oetf(radiance / (1 + radiance))


def _resize(image: Float[Tensor, "3 _h _w"], height: int, width: int) -> Float[Tensor, "3 _height _width"]:
    result = torch.nn.functional.interpolate(image[None].float(), size=(height, width), mode="bilinear", antialias=True)[0]
    return result.clamp(0, 1)


def chart(values: Sequence[float], height: int = 96, bar: int = 6) -> Float[Tensor, "3 height width"]:
    """Bars of the given heights, the highest one filling the picture."""
    tops = torch.tensor(values, dtype=torch.float32)
    tops = (tops / tops.max().clamp_min(1e-12) * height).round()
    rows = torch.arange(height, 0, -1)[:, None]
    filled = (rows <= tops[None]).repeat_interleave(bar, dim=1)
    return torch.where(filled, torch.tensor([0.45, 0.7, 0.95])[:, None, None], torch.tensor(0.14))
