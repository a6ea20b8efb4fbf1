"""Folders of shards as a `Mixture`; decoded shards are kept in a cache."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen import Sample, read_shard
from diffusion_renderer.datagen.assets.split import by_kind, from_kinds, named_assets
from diffusion_renderer.datagen.settings import EVALUATION_SEEDS
from diffusion_renderer.datagen.store.shards import read_metas
from diffusion_renderer.io.atomic import atomic_path, make_folder, write_bytes
from diffusion_renderer.training.data.faults import SkippedShard, attempt, check_limit, clip_names
from diffusion_renderer.training.data.mixture import Mixture, Source
from diffusion_renderer.training.data.samples import complete, has_true_buffers, stores_by_size
from diffusion_renderer.training.data.store import (
    BUFFERS5,
    DEPTH,
    IMAGES,
    PRIOR_VERSION,
    FrameStore,
    concatenate,
    require_one_size,
)

#: Counts the changes of what is kept of a shard: what was kept before the last one is decoded anew.
CACHE_VERSION = 2
#: Shards that are decoded at once.
THREADS = 2
#: The arrays of a `FrameStore` that are kept; ``images`` and ``defined`` are its only array of each.
_ARRAYS = ("clip", "rotation", "light", "present", "real", "has_light")


@dataclass(frozen=True)
class DataSource:
    """A folder of shards and how much it counts.

    Attributes
    ----------
    path : folder with .tar shards, at any depth.
    weight : share of the images that are drawn, relative to the other sources' weights; None for as many as there are frames.
    """

    path: Path
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < math.inf:
            found = f"{self.path}={self.weight:g}"
            raise InputError("a weight above 0 in --data DIR=WEIGHT", found, "leave the folder out to weigh it 0")

    @classmethod
    def parse(cls, text: str | Path) -> DataSource:
        """``DIR`` or ``DIR=WEIGHT``, as on the command line. A folder that is there under the whole name is taken as it is."""
        folder, equals, weight = str(text).rpartition("=")
        if not equals or not folder or Path(text).is_dir():
            return cls(Path(text))
        try:
            return cls(Path(folder), float(weight))
        except InputError:
            raise
        except ValueError as error:
            raise InputError("--data DIR or DIR=WEIGHT with a number as weight", str(text), "such as data/scenes=2") from error


def load_mixture(data: tuple[DataSource, ...], cache: Path, prior: str | None = None, max_bad: float = 0.1) -> Mixture:
    """All clips of all shards below the sources; decoded shards are kept in ``cache``, so that the next stage starts at once.

    A source has one store for every frame size. ``prior`` names a classical renderer (`render.prior.PRIORS`) whose pictures of
    the frames are wanted too: about half a second of a core for each still, once.

    Shards that cannot be read are skipped, logged, and listed in `Mixture.skipped`. Raises InputError when more than the share
    ``max_bad`` of all shards is skipped, or all of a source; for a source without shards; for shards of an evaluation seed.
    """
    if not data:
        raise InputError("--data folders with .tar shards", "no folder", "render some with `diffusion-renderer dataset OUT`")
    shards = {source: find_shards(source.path) for source in dict.fromkeys(data)}
    make_folder(cache)
    jobs = [(path, path.relative_to(source.path).with_suffix("")) for source, paths in shards.items() for path in paths]
    results = _load_all([lambda job=job: _load_shard(*job, cache, prior) for job in jobs], max_bad)
    sources, skipped, start = [], [], 0
    names = _short_names([source.path for source in shards])
    for (source, paths), name in zip(shards.items(), names, strict=True):
        mine = results[start : start + len(paths)]
        start += len(paths)
        bad = [result for result in mine if isinstance(result, SkippedShard)]
        check_limit(bad, len(paths), 1.0)
        skipped += bad
        sources.append(Source(name, source.weight, merge_sizes(s for r in mine if not isinstance(r, SkippedShard) for s in r)))
    return Mixture(tuple(sources), tuple(skipped))


def load_frames(folders: tuple[Path, ...], cache: Path, prior: str | None = None) -> FrameStore:
    """All frames of all shards below ``folders``, which must have one size, as one store; see `load_mixture`."""
    stores = load_mixture(tuple(DataSource(Path(folder)) for folder in folders), cache, prior).stores
    require_one_size(stores)
    return merge_sizes(stores)[0]


def find_shards(folder: Path) -> list[Path]:
    """The shards below a folder, in order. InputError when there is none."""
    shards = sorted(Path(folder).rglob("*.tar"))
    if not shards:
        found = f"none in {folder}" if Path(folder).is_dir() else f"no folder {folder}"
        raise InputError("--data folders with .tar shards", found, "render some with `diffusion-renderer dataset OUT`")
    return shards


def merge_sizes(stores: Iterable[FrameStore]) -> tuple[FrameStore, ...]:
    """One store for every frame size, smallest frames first."""
    groups: dict[tuple[int, int], list[FrameStore]] = {}
    for store in stores:
        groups.setdefault(store.size, []).append(store)
    return tuple(concatenate(group) if len(group) > 1 else group[0] for _, group in sorted(groups.items()))


def _short_names(folders: list[Path]) -> list[str]:
    """The folders' own names where they tell them apart, else their whole paths as given."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [folder.as_posix() for folder in folders]


def _load_all(
    jobs: list[Callable[[], tuple[FrameStore, ...] | SkippedShard]], max_bad: float
) -> list[tuple[FrameStore, ...] | SkippedShard]:
    """Run the jobs side by side; results in order. The first error, or one fault too many, ends it."""
    results: list[tuple[FrameStore, ...] | SkippedShard] = []
    with _divided_threads(), ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for future in tqdm(futures, desc="shards", unit="shard"):
                results.append(future.result())
                check_limit([result for result in results if isinstance(result, SkippedShard)], len(jobs), max_bad)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


@contextmanager
def _divided_threads() -> Iterator[None]:
    """PyTorch's threads divided among the jobs: teams of all cores for each of them wait for each other.

    On two cores a shard's classical pictures took 5 s with one thread for each job and 20 s with two.
    """
    threads = torch.get_num_threads()
    # Threads that begin from now on take this number; those of the pool are new.
    torch.set_num_threads(max(1, threads // THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _load_shard(path: Path, label: Path, cache: Path, prior: str | None) -> tuple[FrameStore, ...] | SkippedShard:
    """The stores of one shard, one for every frame size; clips are named ``label``/folder."""
    key = attempt(path, lambda: _cache_key(path))
    if isinstance(key, SkippedShard):
        return key
    kept = cache / f"{key}.json"
    stores = _read_kept(kept, path) or _decode(path, kept)
    if isinstance(stores, SkippedShard):
        return stores
    if prior is not None:
        stores = tuple(replace(store, prior=(_load_prior(path, kept, store.size, prior),)) for store in stores)
    return tuple(replace(store, keys=tuple(f"{label.as_posix()}/{key}" for key in store.keys)) for store in stores)


def _decode(path: Path, kept: Path) -> tuple[FrameStore, ...] | SkippedShard:
    """Decode a shard and keep it. Its seeds are looked at first, for that takes no time."""
    facts = attempt(path, lambda: _facts(path))
    if isinstance(facts, SkippedShard):
        return facts
    refuse_evaluation_seeds(path, facts["seeds"])
    stores = attempt(path, lambda: stores_by_size(read_shard(path), clip_names(path)))
    if isinstance(stores, SkippedShard):
        return stores
    _keep(kept, facts, stores)
    return _read_kept(kept, path) or stores


def _cache_key(path: Path) -> str:
    status = path.stat()
    layout = f"{CACHE_VERSION} {IMAGES} {DEPTH} {BUFFERS5}"
    return hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {layout}".encode()).hexdigest()[:16]


def _facts(path: Path) -> dict[str, Any]:
    """Seeds and assets of a shard, as JSON. Raises one of `faults.FAULTS` for what is no whole shard."""
    clip_names(path)
    metas = read_metas(path)
    return {
        "seeds": sorted({int(meta["seed"]) for meta in metas if meta.get("seed") is not None}),
        "assets": by_kind(frozenset().union(*map(named_assets, metas))),
    }


def refuse_evaluation_seeds(path: Path, seeds: Iterable[int]) -> None:
    """InputError when one of a shard's seeds is one that renderers are scored on."""
    if EVALUATION_SEEDS & set(seeds):
        advice = "leave it out: the model would be scored on what it has seen"
        raise InputError("shards to train on", f"clips of the evaluation seed in {path}", advice)


def _array_file(kept: Path, size: tuple[int, int], kind: str = "") -> Path:
    height, width = size
    return kept.with_name(f"{kept.stem}-{width}x{height}{kind}.safetensors")


def _keep(kept: Path, facts: dict[str, Any], stores: tuple[FrameStore, ...]) -> None:
    """Write a decoded shard. The JSON, which lists the parts, comes last: where it is, they are whole."""
    for store in stores:
        arrays = {"images": store.images[0], **{name: getattr(store, name) for name in _ARRAYS}}
        if store.defined:
            arrays["defined"] = store.defined[0]
        _save(arrays, _array_file(kept, store.size))
    parts = [
        {"size": list(store.size), "keys": list(store.keys), "estimated": store.estimated.nonzero()[:, 0].tolist()}
        for store in stores
    ]
    write_bytes(kept, json.dumps({**facts, "parts": parts}).encode())


def _save(arrays: dict[str, Tensor], path: Path) -> None:
    with atomic_path(path) as temporary:
        try:
            save_file({name: value.contiguous() for name, value in arrays.items()}, temporary)
        except SafetensorError as error:  # what a full disk raises
            raise OSError(str(error)) from error


def _read_kept(kept: Path, path: Path) -> tuple[FrameStore, ...] | None:
    """What the cache holds of a shard, memory-mapped; None when it is not there or not whole. The seeds are checked anew."""
    try:
        facts = json.loads(kept.read_text())
        parts = [(load_file(_array_file(kept, tuple(part["size"]))), part) for part in facts["parts"]]
    except (OSError, ValueError, LookupError, SafetensorError):
        return None
    refuse_evaluation_seeds(path, facts["seeds"])
    return tuple(
        FrameStore(
            images=(arrays["images"],),
            **{name: arrays[name] for name in _ARRAYS},
            keys=tuple(part["keys"]),
            estimated=_at(part.get("estimated", []), len(part["keys"])),
            defined=(arrays["defined"],) if "defined" in arrays else (),
            assets=from_kinds(facts["assets"]),
        )
        for arrays, part in parts
    )


def _at(places: list[int], count: int) -> Bool[Tensor, "{count}"]:
    """True at the places of a list of ``count``. What was kept before there were estimated clips lists none."""
    found = torch.zeros(count, dtype=torch.bool)
    found[places] = True
    return found


def _load_prior(path: Path, kept: Path, size: tuple[int, int], name: str) -> UInt8[Tensor, "frames pictures 3 height width"]:
    """What the classical renderer ``name`` makes of a shard's frames of one size, from their G-buffers; kept in files.

    One that traces rays makes two pictures: the second one is what it makes where depth is relative (see `render.Prior`). Of
    estimated buffers, whose depth is, both are that one.
    """
    plain = _load_pictures(path, kept, size, "splitsum")
    return plain[:, None] if name == "splitsum" else torch.stack((_load_pictures(path, kept, size, name, plain), plain), dim=1)


def _load_pictures(
    path: Path, kept: Path, size: tuple[int, int], name: str, untraced: UInt8[Tensor, "frames 3 height width"] | None = None
) -> UInt8[Tensor, "frames 3 height width"]:
    """The pictures of one classical renderer; of estimated buffers those of ``untraced``, where they are given."""
    file = _array_file(kept, size, f".{name}-{PRIOR_VERSION}")
    if not file.exists():
        frames: list[Tensor] = []
        done = 0
        for item in read_shard(path):
            if item.clip.frames.shape[-2:] != size:
                continue
            estimated = not has_true_buffers(item.meta)
            for lit in item.under_each_light():
                copied = untraced is not None and estimated
                frames.append(untraced[done : done + len(lit.clip)] if copied else _picture(lit, name))
                done += len(lit.clip)
        _save({"prior": torch.cat(frames)}, file)
    return load_file(file)["prior"]


def _picture(item: Sample, name: str) -> UInt8[Tensor, "frames 3 height width"]:
    """What a classical renderer makes of a clip; black where it lacks what that needs."""
    from diffusion_renderer.render import Prior

    if not complete(item):
        return torch.zeros_like(item.clip.frames, dtype=torch.uint8)
    picture = Prior(name, item.environment)(item.gbuffer, item.camera, item.lookup).nan_to_num(0.0)
    return picture.clamp(0, 1).mul(255).round().to(torch.uint8)
