"""`train estimate`: rendered clips whose buffers are an inverse renderer's, for a forward renderer that is to be given such.

Whoever relights a video has estimated G-buffers: blurred, with traces of the old light, and drawn to the middle where the
network is unsure. A forward renderer that has only seen true ones takes them at their word. Here it is shown what it will get,
and the true picture under another light as the answer: with the same light, what the old light left in the buffers would be a
hint that it never has when a clip is relit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen import Sample, read_shard
from diffusion_renderer.datagen.store.shards import write_samples
from diffusion_renderer.pipelines import InverseRenderer, load_inverse, weights_fingerprint
from diffusion_renderer.training.autolabel import absolute
from diffusion_renderer.training.data.faults import SkippedShard, attempt, check_limit
from diffusion_renderer.training.data.loading import find_shards

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EstimateOptions:
    """What to make new shards of.

    Attributes
    ----------
    data : folders of shards, rendered with two lights or more (``dataset --lights 2``). Real clips in them are left out.
    out : folder of the new shards.
    model : the inverse renderer, as for `pipelines.load_inverse`.
    shard_size : clips of a shard.
    seed : of the inverse renderer's noise.
    max_bad : largest share of the shards that may be damaged; they are skipped.
    progress : show a bar.
    """

    data: tuple[Path, ...]
    out: Path
    model: str | Path = "tiny"
    shard_size: int = 64
    seed: int = 0
    max_bad: float = 0.1
    progress: bool = True

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise InputError("--shard-size of 1 or more", str(self.shard_size), "give a larger number")


def estimate(options: EstimateOptions, *, inverse: InverseRenderer | None = None) -> dict[str, Any]:
    """Write the shards; returns ``clips`` (written), ``passed`` (left out: real, or under one light), ``skipped``, ``index``.

    A clip under n lights becomes n clips: under each light, with the buffers that ``inverse`` (default: ``options.model``)
    makes of its frames under the next one. They say ``"estimated"`` in clip.json, with the model and that light; only the stage
    `forward` trains on their buffers. Depth is relative, spread from 1 to 3. A run that was stopped begins again.

    Raises InputError when there is no clip under two lights, and for shards that cannot be read, beyond ``options.max_bad``.
    """
    shards = [path for folder in options.data for path in find_shards(Path(folder))]
    renderer = inverse or load_inverse(options.model)
    name = type(inverse).__name__ if inverse else Path(str(options.model)).name
    model = {"name": name, "fingerprint": None if inverse else weights_fingerprint(options.model)}
    skipped: list[SkippedShard] = []
    counts = {"clips": 0, "passed": 0}

    def samples() -> Iterator[Sample]:
        for path in shards:
            found = attempt(path, lambda path=path: list(read_shard(path)))
            if isinstance(found, SkippedShard):
                skipped.append(found)
                check_limit(skipped, len(shards), options.max_bad)
                continue
            for item in found:
                if not item.relit or item.meta.get("real", False):
                    counts["passed"] += 1
                    continue
                for made in with_estimates(item, renderer, model, options.seed):
                    counts["clips"] += 1
                    yield made

    made = samples()
    first = next(made, None)
    if first is None:
        wanted = "rendered clips under at least two lights"
        raise InputError(wanted, f"none in {len(shards)} shards", "render them with `dataset --lights 2`")
    index = write_samples(options.out, _chain(first, made), options.shard_size, progress=options.progress)
    return {**counts, "skipped": {bad.name: bad.reason for bad in skipped}, "index": index}


def with_estimates(sample: Sample, inverse: InverseRenderer, model: dict[str, Any], seed: int = 0) -> Iterator[Sample]:
    """The clip under each of its lights, with buffers estimated from its frames under the next one."""
    lit = list(sample.under_each_light())
    for number, target in enumerate(lit):
        source = lit[(number + 1) % len(lit)]
        buffers = absolute(inverse(source.clip, seed=seed))
        light = source.environment.name if source.environment is not None else ""
        meta = {**sample.meta, "estimated": {"model": model, "light": light}}
        yield replace(target, gbuffer=replace(buffers, name=target.gbuffer.name, fps=target.gbuffer.fps), meta=meta, ids=None)


def _chain(first: Sample, others: Iterator[Sample]) -> Iterator[Sample]:
    yield first
    yield from others
