"""What an evaluation finds out: `Figure`, one number each, and `Results`, all of a table's with what is needed to read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffusion_renderer.evaluation.metrics import Metric


@dataclass(frozen=True)
class Figure:
    """One number of one system on one clip under one light.

    Attributes
    ----------
    system : name of the renderer, baseline or folder of predictions.
    clip : name of the clip, unique in its suite.
    light : name of the light that the system was to show the clip under; empty where the task has none.
    what : what was compared: "rgb" or the name of a buffer.
    metric : the `Metric.name`.
    value : the number; nan when there is none.
    part : which pixels: "all", or a group of the ground truth's materials such as "metal".
    failure : why there is no number; such a figure is counted, never averaged.
    """

    system: str
    clip: str
    light: str
    what: str
    metric: str
    value: float
    part: str = "all"
    failure: str = ""

    @property
    def failed(self) -> bool:
        """Whether there is no number."""
        return bool(self.failure) or not math.isfinite(self.value)


@dataclass(frozen=True)
class Picture:
    """PNG bytes of what one system made of one frame of a clip, and of its error; a truth has no error.

    ``system`` is "truth", "input" or the name of a system.
    """

    system: str
    clip: str
    light: str
    what: str
    image: bytes
    error: bytes | None = None


@dataclass(frozen=True)
class Results:
    """All figures of one task on one suite.

    Attributes
    ----------
    task, suite : their names.
    protocol : what was compared with what, in words, a sentence or two for the reader of the table.
    systems : in the order of the table's rows; the first is the one that is evaluated, the others stand beside it.
    metrics : the columns, as (what, metric), in order.
    figures : the numbers.
    unavailable : metrics that could not be computed, by name, and why.
    pictures : of some frames.
    notes : lines that stand below the table, such as the command and the machine.
    """

    task: str
    suite: str
    protocol: str
    systems: tuple[str, ...]
    metrics: tuple[tuple[str, Metric], ...]
    figures: Sequence[Figure]
    unavailable: dict[str, str] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    notes: tuple[str, ...] = ()
