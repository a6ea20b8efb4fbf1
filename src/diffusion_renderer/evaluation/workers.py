"""Clips scored side by side in several processes. What they find meets in the records, where an evaluation looks first."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch

from diffusion_renderer.datagen.store.shards import read_metas, read_shard
from diffusion_renderer.evaluation.clips import Progress
from diffusion_renderer.evaluation.options import EvaluateOptions
from diffusion_renderer.evaluation.tasks import columns
from diffusion_renderer.evaluation.work import Work

#: Of this process, where it is a worker.
_work: Work | None = None


def score_side_by_side(work: Work, options: EvaluateOptions, tell: Progress) -> None:
    """Compute and record the figures of every clip of ``work`` in ``options.workers`` processes.

    The processors are shared out between them. Each loads the renderers for itself when its first clip needs them, so that
    memory grows with their number; on one GPU they all use that one. What is recorded already is not computed again.

    The first error of any of them ends it, and is raised here.
    """
    clips = list(_clips(work.data.folder))
    workers = min(options.workers, len(clips))
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Metrics are found again by name: some hold functions that cannot travel. Bytes, so that no memory is shared.
    told = pickle.dumps((replace(work, chosen=()), work.task, options.metrics))
    context = multiprocessing.get_context("spawn")  # torch has threads already, which do not survive a fork
    what, total = f"{work.task}, {work.data.name}", len(clips) * len(work.systems)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(told, threads)) as pool:
        futures = [pool.submit(_score, path, place) for path, place in clips]
        try:
            for done, future in enumerate(as_completed(futures)):
                tell(done * len(work.systems), total, what)
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _clips(folder: Path) -> Iterator[tuple[Path, int]]:
    """Shard of every clip, and its place in there."""
    for path in sorted(Path(folder).glob("shard-*.tar")):
        for place in range(len(read_metas(path))):
            yield path, place


def _begin(told: bytes, threads: int) -> None:
    global _work
    torch.set_num_threads(threads)
    work, task, metrics = pickle.loads(told)
    _work = replace(work, chosen=columns(task, metrics))


def _score(path: Path, place: int) -> None:
    """Record what every system makes of one clip."""
    if _work is None:
        raise RuntimeError("a process that was not begun")
    for sample in read_shard(path, only=(place,)):
        for system in _work.systems:
            _work.figures(system, sample)
