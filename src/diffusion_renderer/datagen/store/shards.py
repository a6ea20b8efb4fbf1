"""WebDataset shards of clips: writing them side by side in several processes, and reading them."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.engine.variant import activate, choose_variant, trust
from diffusion_renderer.datagen.generate import Unfinished, asset_library, draw, finish, render_unfinished
from diffusion_renderer.datagen.settings import DatasetSettings, Sample, without_later
from diffusion_renderer.datagen.store.encode import decode_clip, encode_clip

#: Clips that wait to be traced, and clips that wait to be finished, in every process.
_AHEAD = 2


def generate_shards(
    out: str | Path,
    settings: DatasetSettings | None = None,
    *,
    clips: int,
    shard_size: int = 64,
    seed: int = 0,
    workers: int = 1,
    max_minutes: float | None = None,
    only: tuple[int, int] | None = None,
    progress: bool | Callable[[int, int, str], None] = True,
) -> dict[str, Any]:
    """Render clips 0 .. ``clips`` - 1 of dataset ``seed`` into ``out/shard-{i:06d}.tar`` and list them in ``out/index.json``.

    Shard i holds clips i * shard_size and up, and depends on nothing else. A shard is written under a name ending in .part and
    renamed when it is complete; a run that was interrupted continues with the shards that are missing. After ``max_minutes`` no
    new shard is started, so a run may last longer by the time of one shard. ``workers`` processes render at once; 0 takes one
    per core, or a single one on a GPU. ``only`` (first, end) leaves the shards outside of first <= i < end to other runs, on
    this machine or others that share the folder; index.json lists what is there when a run ends. ``progress`` shows a bar, or
    is called with (clips done, clips in all, "rendering clips"). Returns the contents of index.json, in which ``skipped``
    names the assets that could not be used and why.

    Raises InputError when ``out`` holds a dataset of another seed, shard size or other settings.
    """
    settings = settings or DatasetSettings()
    for name, value, least in (("clips", clips, 1), ("shard_size", shard_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} of at least {least}", str(value), "give a larger number")
    library = asset_library(settings)  # complains about folders that are not there before anything is written
    out = Path(out)
    assets = None if library is None else library.to_json()
    identity = {"seed": seed, "shard_size": shard_size, "settings": settings.to_json(), "assets": assets}
    found = _claim(out, identity)
    # Settled here, so that the worker processes need not probe again.
    settings = replace(settings, variant=choose_variant(settings.variant))
    workers = workers or (1 if settings.variant.startswith("cuda") else os.cpu_count() or 1)
    spans = {i: range(i * shard_size, min((i + 1) * shard_size, clips)) for i in range(-(-clips // shard_size))}
    if only is not None and not 0 <= only[0] < only[1]:
        raise InputError("shards A:B with A below B", f"{only[0]}:{only[1]}", "count them from 0; B itself is left out")
    mine = {i: span for i, span in spans.items() if only is None or only[0] <= i < only[1]}
    missing = [i for i in mine if not _complete(shard_path(out, i), len(spans[i]))]
    deadline = None if max_minutes is None else time.time() + 60 * max_minutes
    wanted = sum(map(len, mine.values()))
    bar = _bar(wanted, wanted - sum(len(spans[i]) for i in missing), progress)
    jobs = [(out, i, spans[i], seed, settings, deadline) for i in missing]
    skipped: dict[str, str] = dict(found.get("skipped", {}))
    with bar:
        if workers == 1 or len(missing) < 2:
            for job in jobs:
                skipped |= _write_shard(*job, bar=bar)[1]
        else:
            _in_processes(jobs, workers, bar, skipped)
    return _write_index(out, identity, list(spans.values()), skipped)


def write_samples(
    out: str | Path, samples: Iterable[Sample], shard_size: int = 64, image_format: str = "png8", progress: bool = True
) -> dict[str, Any]:
    """Write samples that come from elsewhere, such as a public data set, as shards; returns the contents of index.json.

    A run that was interrupted starts anew, for samples cannot be counted before they are read.
    """
    out = Path(out)
    identity = {"seed": None, "shard_size": shard_size, "settings": {"format": image_format}}
    _claim(out, identity)
    spans, pending, start = [], iter(tqdm(samples, unit="clip", disable=not progress)), 0
    while group := list(islice(pending, shard_size)):
        encoded = (encode_clip(sample, image_format) for sample in group)
        spans.append(range(start, start + len(group)))
        _write_tar(shard_path(out, len(spans) - 1), zip(spans[-1], encoded, strict=True))
        start += len(group)
    return _write_index(out, identity, spans, {})


class _Count:
    """In place of a bar: tells a function how many clips are done."""

    def __init__(self, tell: Callable[[int, int, str], None], total: int, done: int) -> None:
        self._tell, self._total, self._done = tell, total, done

    def __enter__(self) -> None:
        self.update(0)

    def __exit__(self, *error: object) -> None:
        """Nothing is drawn, so nothing is left to close."""

    def update(self, clips: int) -> None:
        """So many more are done."""
        self._done += clips
        self._tell(self._done, self._total, "rendering clips")


def _bar(total: int, done: int, progress: bool | Callable[[int, int, str], None]) -> tqdm | _Count:
    if callable(progress):
        return _Count(progress, total, done)
    return tqdm(total=total, initial=done, unit="clip", disable=not progress)


def shard_path(out: Path, index: int) -> Path:
    """Where shard ``index`` of a dataset lies."""
    return out / f"shard-{index:06d}.tar"


def _claim(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Make the folder, or check that what is in it was asked for in the same way; returns the index found there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("a folder that can be written", f"{out}: {error}", "choose another output folder") from error
    if not os.access(out, os.W_OK):
        raise InputError("a folder that can be written", f"{out}, which is read-only", "choose another output folder")
    index = out / "index.json"
    if index.exists():
        found = json.loads(index.read_text())
        if isinstance(found.get("settings"), dict) and "split" in identity["settings"]:
            # Data sets begun before there was a split, and when all settings were written down.
            found["settings"] = {"split": "all"} | without_later(found["settings"])
        differs = [name for name in identity if found.get(name) != json.loads(json.dumps(identity[name]))]
        if differs:
            raise InputError(
                f"a dataset of the same {', '.join(identity)}",
                f"another {', '.join(differs)} in {index}",
                "use a new output folder",
            )
        return found
    _replace_text(index, json.dumps({**identity, "complete": False, "clips": 0, "shards": []}, indent=1) + "\n")
    return {}


def _replace_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def _complete(path: Path, clips: int) -> bool:
    """Whether a shard exists with the right number of clips (an earlier, smaller run cuts its last one short)."""
    if not path.exists():
        return False
    with tarfile.open(path) as tar:
        return sum(name.endswith("/clip.json") for name in tar.getnames()) == clips


def _in_processes(jobs: list[tuple[Any, ...]], workers: int, bar: tqdm | _Count, skipped: dict[str, str]) -> None:
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")  # Dr.Jit and torch have threads already, which do not survive a fork
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(threads, jobs[0][4].variant)
    ) as pool:
        futures = [pool.submit(_write_shard, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                done, reasons = future.result()
                bar.update(done)
                skipped |= reasons
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, however it went: it would render on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker(threads: int, variant: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Before the libraries load: each process has its share of the cores, and no thread is pinned to one of them.
    os.environ["OIDN_NUM_THREADS"] = str(threads)
    os.environ["OIDN_SET_AFFINITY"] = "0"
    torch.set_num_threads(threads)
    trust(variant)
    activate(variant)
    import drjit

    drjit.set_thread_count(threads)


def _write_shard(
    out: Path,
    index: int,
    span: range,
    seed: int,
    settings: DatasetSettings,
    deadline: float | None,
    bar: tqdm | _Count | None = None,
) -> tuple[int, dict[str, str]]:
    """Render and write one shard; returns its number of clips, 0 when the time was up before it began, and skipped assets."""
    if deadline is not None and time.time() > deadline:
        return 0, {}
    _write_tar(shard_path(out, index), encoded_clips(span, seed, settings), bar)
    library = asset_library(settings)
    return len(span), {} if library is None else dict(library.skipped)


def encoded_clips(span: range, seed: int, settings: DatasetSettings) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Clips and their files, in order. While one is traced, the next is drawn and the ones before are denoised and encoded.

    At most `_AHEAD` clips wait at either end, so memory does not grow with the length of the data set.
    """

    def finished(unfinished: Unfinished) -> dict[str, bytes]:
        return encode_clip(finish(unfinished, settings), settings.format)

    with ThreadPoolExecutor(1) as drawers, ThreadPoolExecutor(1) as finishers:
        waiting = deque(drawers.submit(draw, seed, clip, settings) for clip in span[:_AHEAD])
        ending: deque[tuple[int, Future]] = deque()
        for position, clip in enumerate(span):
            drawn = waiting.popleft().result()
            if position + _AHEAD < len(span):
                waiting.append(drawers.submit(draw, seed, span[position + _AHEAD], settings))
            ending.append((clip, finishers.submit(finished, render_unfinished(drawn, settings))))
            if len(ending) > _AHEAD:
                number, future = ending.popleft()
                yield number, future.result()
        for number, future in ending:
            yield number, future.result()


def _write_tar(path: Path, clips: Iterable[tuple[int, dict[str, bytes]]], bar: tqdm | _Count | None = None) -> None:
    """A shard of these clips' files; it has its name only when it is complete."""
    part = path.with_name(path.name + ".part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for clip, files in clips:
            for name, data in files.items():
                entry = tarfile.TarInfo(f"{clip:08d}/{name}")
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))
            if bar is not None:
                bar.update(1)
    part.replace(path)


def _write_index(out: Path, identity: dict[str, Any], spans: list[range], skipped: dict[str, str]) -> dict[str, Any]:
    shards = []
    for index, span in enumerate(spans):
        path = shard_path(out, index)
        if path.exists():
            digest = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
            shards.append({"name": path.name, "clips": len(span), "bytes": path.stat().st_size, "sha256": digest})
    clips = sum(shard["clips"] for shard in shards)
    summary = {
        **identity,
        "complete": len(shards) == len(spans),
        "clips": clips,
        "skipped": dict(sorted(skipped.items())),
        "shards": shards,
    }
    if "frames" in identity["settings"]:
        summary["frames"] = clips * identity["settings"]["frames"]
    _replace_text(out / "index.json", json.dumps(summary, indent=1) + "\n")
    return summary


def read_metas(path: str | Path) -> list[dict[str, Any]]:
    """The clip.json of every clip of one shard, in order; no image is decoded. Raises InputError as `read_shard` does."""
    try:
        with tarfile.open(path) as tar:
            return [json.load(tar.extractfile(member)) for member in tar if member.name.endswith("/clip.json")]
    except (tarfile.TarError, OSError, ValueError) as error:
        raise _not_whole(path, error) from error


def read_shards(folder: str | Path) -> Iterator[Sample]:
    """Every clip of a dataset, shard by shard, in order. Raises InputError when there is no complete shard."""
    paths = sorted(Path(folder).glob("shard-*.tar"))
    if not paths:
        raise InputError("a folder with shard-*.tar files", f"none in {folder}", "make them with `diffusion-renderer dataset`")
    for path in paths:
        yield from read_shard(path)


def read_shard(path: str | Path, only: Container[int] | None = None) -> Iterator[Sample]:
    """The clips of one shard, in order; with ``only``, those in these places, the others not decoded.

    Raises InputError when it is not a whole shard of this data engine.
    """
    try:
        with tarfile.open(path) as tar:
            members = (member for member in tar if member.isfile())
            for place, (clip, group) in enumerate(groupby(members, key=lambda member: member.name.split("/")[0])):
                if only is not None and place not in only:
                    continue
                files = {member.name.removeprefix(f"{clip}/"): tar.extractfile(member).read() for member in group}
                yield decode_clip(files)
    except (tarfile.TarError, OSError, KeyError, ValueError) as error:
        raise _not_whole(path, error) from error


def _not_whole(path: str | Path, error: Exception) -> InputError:
    return InputError("a whole shard of this data engine", f"{path}: {error}", "remove it and generate it again")
