"""The clips of `train all`: those that it trains on, and those that it keeps apart to calibrate its model on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen import DatasetSettings
from diffusion_renderer.training.presets import Preset

if TYPE_CHECKING:
    from diffusion_renderer.training.session import SessionOptions

#: Shards of a data set at most: more than there is time for.
MANY_SHARDS = 10_000
#: Seed of the clips that are trained on, and of those that are kept apart; evaluation has its own, which both refuse.
SEED, HELD_OUT_SEED = 0, 1
#: Shares of the scenes with walls and with a printed ground, as real shots have them (LOG.md); `evaluate` shows neither.
WALLS, PRINTS = 0.25, 0.15
#: Clips kept apart that are rendered at once.
HELD_OUT_SHARD = 8


def render_data(options: SessionOptions, preset: Preset, out: Path, minutes: float | None) -> tuple[Path, ...]:
    """Render stills and clips for so many minutes, the same time for each, at least a shard of each where there is none.

    Returns the folders that have shards.
    """
    from diffusion_renderer.datagen import generate_shards

    chosen = _data_sets(options, preset, out, (1, options.frames or max(preset.lengths)))
    if minutes is None:
        return _rendered(chosen)
    deadline = time.monotonic() + 60 * minutes
    for number, (folder, settings) in enumerate(chosen.items()):
        shard_size = max(1, options.shard_images // settings.frames)
        asked = {"clips": options.clips or MANY_SHARDS * shard_size, "shard_size": shard_size, "seed": SEED}
        if not _rendered([folder]):
            generate_shards(folder, settings, **asked, only=(0, 1))
        left = (deadline - time.monotonic()) / 60
        if left > 0:
            share = left / (len(chosen) - number)
            generate_shards(folder, settings, **asked, workers=options.workers, max_minutes=share)
    return _rendered(chosen)


def render_held_out(options: SessionOptions, preset: Preset, out: Path, clips: int, minutes: float) -> tuple[Path, ...]:
    """Render ``clips`` stills of the same assets in other scenes; no shard is begun after the minutes.

    Of the assets that are for training: those for testing are for the evaluation. So they tell how sure the model may be in new
    scenes, and less of new things. Returns the folders that have shards.
    """
    from diffusion_renderer.datagen import generate_shards

    chosen = _data_sets(options, preset, out, (1,))
    deadline, clips = time.monotonic() + 60 * minutes, -(-clips // len(chosen))
    for folder, settings in chosen.items():
        left = (deadline - time.monotonic()) / 60
        if left > 0:
            asked = {"clips": clips, "shard_size": HELD_OUT_SHARD, "seed": HELD_OUT_SEED}
            generate_shards(folder, settings, **asked, workers=options.workers, max_minutes=left)
    return _rendered(chosen)


def _rendered(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Those of the folders that have shards."""
    return tuple(folder for folder in folders if any(folder.glob("shard-*.tar")))


def _data_sets(options: SessionOptions, preset: Preset, out: Path, lengths: Iterable[int]) -> dict[Path, DatasetSettings]:
    """Folder to settings of each data set: clips of these lengths for each folder of assets. A folder's name tells its size."""
    from diffusion_renderer.datagen.assets import asset_folders

    size, lengths = options.size or preset.size, dict.fromkeys(lengths)
    found = {}
    for folder in options.assets or (None,):
        assets = {} if folder is None else {**asset_folders(folder), "split": "train"}
        name = "procedural" if folder is None else folder.resolve().name
        for frames in lengths:
            target = out / f"{name}-{frames}x{size}px"
            sizes = {"frames": frames, "width": size, "height": size}
            shown = {**_surroundings(target), **assets}
            found[target] = DatasetSettings(samples=options.samples, variant=options.variant, **sizes, **shown)
    if len(found) < len(lengths) * max(1, len(options.assets)):
        raise InputError("folders of assets with different names", ", ".join(map(str, options.assets)), "rename one")
    return found


def _surroundings(folder: Path) -> dict[str, float]:
    """Shares of walls and prints; none in a data set that was begun before `train all` had any, so that it goes on."""
    index = folder / "index.json"
    if index.exists():
        begun = json.loads(index.read_text(encoding="utf-8")).get("settings") or {}
        return {name: begun.get(name, 0.0) for name in ("walls", "prints")}
    return {"walls": WALLS, "prints": PRINTS}


def count_images(folders: Iterable[Path]) -> int:
    """Frames in the data sets, by their lists."""
    total = 0
    for folder in folders:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        frames = (index.get("settings") or {}).get("frames", 1)
        total += sum(shard["clips"] for shard in index["shards"]) * frames
    return total
