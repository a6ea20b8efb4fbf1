"""Whether a model has been trained on what it is scored on: by the names of assets that both keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.assets.record import read_records
from diffusion_renderer.datagen.assets.split import NamedAssets, named_assets, plain_name, split_of
from diffusion_renderer.datagen.store.shards import read_metas
from diffusion_renderer.pipelines import local_folder

#: Names in a message; the rest is counted.
_NAMED = 10


def assets_in(folder: str | Path) -> NamedAssets:
    """(kind, name) of every model, material and panorama from a file that the clips below a folder of shards show.

    Reads each clip.json and decodes nothing. Procedural assets are not listed. Raises InputError for damaged shards and when
    there is none.
    """
    return frozenset().union(*map(named_assets, metas_in(folder)))


def metas_in(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The clip.json of every clip below a folder of shards, in order; errors as of `assets_in`."""
    paths = sorted(Path(folder).glob("shard-*.tar"))
    if not paths:
        raise InputError("a folder with shard-*.tar files", f"none in {folder}", "make them with `diffusion-renderer dataset`")
    for path in paths:
        yield from read_metas(path)


def check_unseen(model: str | Path, assets: Iterable[tuple[str, str]]) -> str | None:
    """Refuse a model that was trained on one of ``assets``, (kind, name) as from `assets_in`, by its training.json.

    Returns None when the record rules that out, and when there is no asset to ask about: procedural clips are kept apart by
    their seeds, which training refuses. Where the model has no record, or not of everything that it was trained on, returns a
    note that says so. Names are compared without folder, letter case, suffix and resolution; the same file under another name
    is not recognised.

    Raises InputError naming the assets, and for a training.json that cannot be read.
    """
    asked = frozenset(assets)
    if not asked:
        return None
    folder = _model_folder(model)
    records = {} if folder is None else read_records(folder)
    seen = {(kind, plain_name(name)) for record in records.values() for kind, name in record.assets}
    leaked = sorted((kind, name) for kind, name in asked if (kind, plain_name(name)) in seen)
    if leaked:
        advice = "score it on the assets of the split test, or train it on `dataset --split train`"
        raise InputError(f"clips of assets that {model} was not trained on", _listing(leaked), advice)
    if not records:
        return f"{model} has no record of the assets it was trained on: whether it has seen those of these clips is unknown"
    unsure = [stage for stage, record in records.items() if not record.complete]
    if unsure:
        stages = ", ".join(unsure)
        return f"{model} has no full record of the assets it was trained on ({stages}): it may have seen those of these clips"
    return None


def training_assets(assets: Iterable[tuple[str, str]]) -> str | None:
    """A note that names the assets which the split keeps for training; None when all are for testing."""
    found = sorted((kind, name) for kind, name in frozenset(assets) if split_of(kind, name) == "train")
    return f"assets that are for training are among these clips: {_listing(found)}" if found else None


def _listing(assets: list[tuple[str, str]]) -> str:
    named = ", ".join(f"{kind} {name}" for kind, name in assets[:_NAMED])
    return named if len(assets) <= _NAMED else f"{named} and {len(assets) - _NAMED} more"


def _model_folder(model: str | Path) -> Path | None:
    """Where the training.json of a model lies: beside its two renderers. None for a model that is not on this machine."""
    folder = local_folder(model)
    if folder is None or not (folder / "unet").is_dir() or (folder / "training.json").is_file():
        return folder
    return folder.resolve().parent  # the folder of one renderer was given
