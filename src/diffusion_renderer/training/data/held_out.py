"""Clips of shards that no training has drawn from, as they are: what is fitted after training is fitted on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen import Sample, read_shard
from diffusion_renderer.datagen.store.shards import read_metas
from diffusion_renderer.training.data.loading import find_shards, refuse_evaluation_seeds
from diffusion_renderer.training.data.samples import has_true_buffers


class HeldOut:
    """Up to ``count`` clips with true buffers, evenly spaced over those of all shards below ``folders``; decoded one by one.

    Whether a model has been trained on them only the user knows. Raises InputError for folders without shards, damaged shards,
    and shards of an evaluation seed: what is fitted on those would be scored on them.
    """

    def __init__(self, folders: Sequence[Path], count: int) -> None:
        if not folders:
            raise InputError("--data folders with .tar shards", "no folder", "give clips that the model was not trained on")
        places: list[tuple[Path, int]] = []
        for path in dict.fromkeys(path for folder in folders for path in find_shards(folder)):
            metas = read_metas(path)
            refuse_evaluation_seeds(path, [int(meta["seed"]) for meta in metas if meta.get("seed") is not None])
            # On its own estimates an inverse renderer would be found right as it is.
            places += [(path, place) for place, meta in enumerate(metas) if has_true_buffers(meta)]
        chosen = torch.linspace(0, max(0, len(places) - 1), min(count, len(places))).round().long().tolist()
        self._places: dict[Path, list[int]] = {}
        for path, place in (places[index] for index in chosen):
            self._places.setdefault(path, []).append(place)

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    def __iter__(self) -> Iterator[Sample]:
        for path, wanted in self._places.items():
            yield from read_shard(path, wanted)
