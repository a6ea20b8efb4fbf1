"""The clips that renderers are scored on: fixed seeds, and assets that training never sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.datagen import EVALUATION_SEED, DatasetSettings, Sample, generate_shards, read_shards
from diffusion_renderer.datagen.generate import asset_library
from diffusion_renderer.evaluation.leaks import assets_in, training_assets

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Suite:
    """A set of clips to score on, as it is to be rendered.

    Attributes
    ----------
    name : one of `SUITES`.
    clips : how many; clips 0 .. clips - 1 of ``seed``, so a smaller number is the beginning of a larger one.
    settings : of every clip. With folders of assets their split is "test".
    seed : one of `datagen.settings.EVALUATION_SEEDS`, which training refuses.
    """

    name: str
    clips: int
    settings: DatasetSettings
    seed: int

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise InputError("at least 1 clip", str(self.clips), "give a larger number")

    @property
    def key(self) -> str:
        """The name of its folder: two suites share it only if they are the same in all that decides a clip."""
        library = asset_library(self.settings)
        identity = [self.settings.to_json(), None if library is None else library.to_json(), self.seed]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
        s = self.settings
        return f"{self.name}-{self.clips}x{s.frames}-{s.width}px-{s.samples}spp-{s.lights}lights-{digest}"


#: 24 frames under 4 lights each (paper, section 5: 30 clips of objects, 40 of scenes). The truth is denoised with the best
#: quality: its own noise must stay below the errors that are measured.
_LIT = DatasetSettings(frames=24, width=128, height=128, samples=32, lights=4, denoise_quality="high")
#: The suites by name. "small" is for a quick look: the clips that were scored before there were suites, one light, mixed.
SUITES: dict[str, Suite] = {
    "objects": Suite("objects", 30, replace(_LIT, family="objects"), 777_778),
    "scenes": Suite("scenes", 40, replace(_LIT, family="scenes"), 777_779),
    "small": Suite("small", 24, DatasetSettings(frames=4, width=128, height=128, samples=32), EVALUATION_SEED),
}


def find_suite(
    name: str,
    *,
    clips: int | None = None,
    frames: int | None = None,
    size: int | None = None,
    samples: int | None = None,
    lights: int | None = None,
    models: Path | None = None,
    materials: Path | None = None,
    panoramas: Path | None = None,
) -> Suite:
    """A suite by name, with some of its numbers replaced; None keeps the suite's own.

    ``size`` is the side of the square frames, pixels. With a folder of models, materials or panoramas (see
    `datagen.assets.asset_folders`), the assets of the split "test" in it are used beside the procedural ones.

    Raises InputError for an unknown name, which names the nearest one, and for numbers that `DatasetSettings` refuses.
    """
    suite = SUITES[check_name("suite", name, SUITES)]
    folders = {"models": models, "materials": materials, "panoramas": panoramas}
    numbers = {"frames": frames, "width": size, "height": size, "samples": samples, "lights": lights}
    given = {key: value for key, value in numbers.items() if value is not None}
    if "width" in given:
        given["panorama_height"] = None  # chosen anew by the frames' size
    split = "all" if set(folders.values()) == {None} else "test"
    settings = replace(suite.settings, **given, **folders, split=split)
    return replace(suite, clips=suite.clips if clips is None else clips, settings=settings)


def render_suite(suite: Suite, folder: str | Path, progress: Progress | None = None, workers: int = 1) -> Path:
    """Render what is missing of a suite below ``folder``; returns the folder of its shards, one clip each.

    What was rendered before is kept, so a run that was interrupted continues at the first clip that is missing, and the bytes
    are those of a run in one go. Needs Mitsuba for clips that are missing only. Other sizes, samples, lights or assets go into
    other folders. ``progress`` is called with (clips done, clips in all, "rendering clips"); ``workers`` as for
    `generate_shards`.

    Raises InputError for asset folders without an asset of the split, and when the folder holds clips of training assets.
    """
    out = Path(folder) / suite.key
    if not _complete(out, suite.clips):
        generate_shards(
            out,
            suite.settings,
            clips=suite.clips,
            shard_size=1,
            seed=suite.seed,
            workers=workers,
            progress=progress or False,
        )
    if note := training_assets(assets_in(out)):
        raise InputError(f"clips of assets for testing in {out}", note, "delete that folder: the suite is rendered again")
    return out


def read_suite(folder: str | Path) -> Iterator[Sample]:
    """The clips of a suite, one at a time: only one is in memory, as long as the caller keeps no other.

    Raises InputError when the suite is not complete.
    """
    if not _complete(Path(folder)):
        raise InputError(f"a whole suite in {folder}", "an unfinished one, or none", "render it again: it continues")
    yield from read_shards(folder)


def _complete(folder: Path, clips: int | None = None) -> bool:
    """Whether a data set is all there, by its index."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        whole = bool(index["complete"]) and clips in (None, index["clips"])
        return whole and all((folder / shard["name"]).stat().st_size == shard["bytes"] for shard in index["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
