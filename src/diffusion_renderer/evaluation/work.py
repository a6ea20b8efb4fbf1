"""The figures of one clip after the other, kept in the records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffusion_renderer import __version__
from diffusion_renderer.datagen import Sample
from diffusion_renderer.evaluation.clips import Data
from diffusion_renderer.evaluation.metrics import Metric
from diffusion_renderer.evaluation.records import Records
from diffusion_renderer.evaluation.results import Figure, Picture
from diffusion_renderer.evaluation.systems import System
from diffusion_renderer.evaluation.tasks import answers, clip_motion, figures, pictures, references
from diffusion_renderer.io.fingerprint import fingerprint


@dataclass
class Work:
    """Figures and pictures of one clip after the other; the motion of the last clip is kept for the next system."""

    task: str
    data: Data
    chosen: Sequence[tuple[str, Metric]]
    systems: Sequence[System]
    records: Records
    _motion: tuple[str, Any] | None = None

    def figures(self, system: System, sample: Sample) -> list[Figure]:
        """A clip's figures, from the records when they are there."""
        name, key = sample.clip.name, self._key_of(system)
        kept = self.records.load(system.name, name, key)
        if kept is not None:
            return kept[0]
        made: list[Figure] = []
        drawn: list[Picture] = []
        for answer in answers(self.task, system, sample):
            made += figures(answer, system.name, sample, self.chosen, self._motion_of(sample))
            drawn += pictures(answer, system.name, sample)
        self.records.save(system.name, name, key, made, drawn)
        return made

    def keep_references(self, sample: Sample) -> None:
        """Records the pictures of the truth beside those of the systems."""
        if self.records.load("truth", sample.clip.name, self._key) is None:
            self.records.save("truth", sample.clip.name, self._key, [], list(references(self.task, sample)))

    def pictures(self, clip: str) -> Iterator[Picture]:
        """What is recorded of a clip: every system's pictures, and the truth's."""
        for name, key in [(system.name, self._key_of(system)) for system in self.systems] + [("truth", self._key)]:
            kept = self.records.load(name, clip, key)
            yield from kept[1] if kept is not None else ()

    @cached_property
    def _key(self) -> dict[str, Any]:
        """What decides all results. A metric that becomes available later makes them incomplete."""
        return {
            "task": self.task,
            "clips": fingerprint(self.data.folder),
            "columns": [(what, metric.name) for what, metric in self.chosen if metric.unavailable() is None],
            "version": __version__,
        }

    def _key_of(self, system: System) -> dict[str, Any]:
        return {**self._key, "name": system.name, "system": system.identity()}

    def _motion_of(self, sample: Sample) -> Any:
        if self._motion is None or self._motion[0] != sample.clip.name:
            self._motion = (sample.clip.name, clip_motion(sample, self.chosen))
        return self._motion[1]
