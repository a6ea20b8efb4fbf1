"""What every form of the report shows: the table's cells, who is best, and which systems are close."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from diffusion_renderer.evaluation.metrics import Metric
from diffusion_renderer.evaluation.results import Results
from diffusion_renderer.evaluation.statistics import FEWEST_CLIPS, ClipValues, Comparison, Summary, overlap

#: Decimals by unit; numbers without a unit have three, or four where the whole column is below 0.1.
DECIMALS = {"dB": 2, "deg": 2, "°": 2, "%": 1, "JOD": 2}
BEST, SECOND = 1, 2
#: Stands where there is no number.
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """A column of a table, with the decimals that its numbers are shown with."""

    what: str
    metric: Metric
    decimals: int
    unavailable: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """(what, metric's name)."""
        return self.what, self.metric.name

    @property
    def unit(self) -> str:
        """The unit as it is written."""
        return {"deg": "°"}.get(self.metric.unit, self.metric.unit)

    @property
    def title(self) -> str:
        """Name, unit, and an arrow to the better side, such as "PSNR (dB) ↑"; a unit that the name holds is not repeated."""
        unit = f" ({self.unit})" if self.unit and self.unit not in self.metric.name else ""
        return f"{self.metric.name}{unit} {self.arrow}"

    @property
    def arrow(self) -> str:
        """To the better side."""
        return "↑" if self.metric.higher_is_better else "↓"

    def text(self, value: float) -> str:
        """The number as it is shown; a dash where there is none."""
        return f"{value:.{self.decimals}f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else NOTHING

    def signed(self, value: float) -> str:
        """The number with its sign, for differences."""
        text = f"{value:+.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")
        return text if math.isfinite(value) else NOTHING


@dataclass(frozen=True)
class Row:
    """One system's summaries and their ranks (`BEST`, `SECOND`, 0), in the columns' order; ``group`` is a part or light."""

    system: str
    summaries: tuple[Summary, ...]
    ranks: tuple[int, ...]
    group: str = ""


@dataclass(frozen=True)
class Pair:
    """The paired comparison of two systems in one column; ``close`` when their intervals overlap."""

    column: Column
    first: str
    second: str
    comparison: Comparison
    close: bool


def columns_of(results: Results, values: ClipValues) -> tuple[Column, ...]:
    """The table's columns. A column that could not be computed says why."""
    return tuple(
        Column(what, metric, _decimals(results, values, what, metric), results.unavailable.get(metric.name, ""))
        for what, metric in results.metrics
    )


def _decimals(results: Results, values: ClipValues, what: str, metric: Metric) -> int:
    if metric.unit in DECIMALS:
        return DECIMALS[metric.unit]
    means = [values.summary(system, what, metric.name).mean for system in results.systems]
    known = [abs(mean) for mean in means if math.isfinite(mean)]
    return 4 if known and max(known) < 0.1 else 3


def rows_of(
    results: Results, values: ClipValues, columns: Sequence[Column], part: str = "all", light: str | None = None
) -> tuple[Row, ...]:
    """One row per system, over the pixels of ``part`` and all lights or ``light`` alone."""
    table = [[values.summary(system, *column.key, part, light) for column in columns] for system in results.systems]
    by_column = [_ranks(column, [row[i] for row in table]) for i, column in enumerate(columns)]
    group = light if light is not None else part
    return tuple(
        Row(system, tuple(table[i]), tuple(ranks[i] for ranks in by_column), group) for i, system in enumerate(results.systems)
    )


def _ranks(column: Column, summaries: Sequence[Summary]) -> list[int]:
    """`BEST` and `SECOND` of a column.

    Systems that fail on more clips than another are left out: their mean is over other clips, perhaps the easy ones. Numbers
    that look alike share their rank. One system alone is not the best.
    """
    most = max((summary.clips for summary in summaries), default=0)
    shown = [column.text(summary.mean) if summary.clips == most and most > 0 else None for summary in summaries]
    means = {text: summary.mean for text, summary in zip(shown, summaries, strict=True) if text is not None}
    order = sorted(means, key=means.__getitem__, reverse=column.metric.higher_is_better)
    if sum(text is not None for text in shown) < 2 or len(order) < 2:
        return [0] * len(shown)
    # Of two systems the second is the worst, which needs no mark.
    ranks = {order[0]: BEST, order[1]: SECOND} if sum(text is not None for text in shown) > 2 else {order[0]: BEST}
    return [0 if text is None else ranks.get(text, 0) for text in shown]


def pairs_of(results: Results, values: ClipValues, columns: Sequence[Column]) -> tuple[Pair, ...]:
    """The first system against every other, and any other two that are close, where they share a clip."""
    pairs = []
    for column in columns:
        summaries = {system: values.summary(system, *column.key) for system in results.systems}
        for first, second in combinations(results.systems, 2):
            close = overlap(summaries[first], summaries[second])
            if close or first == results.systems[0]:
                comparison = values.comparison(first, second, column.what, column.metric)
                pairs.append(Pair(column, first, second, comparison, close))
    return tuple(pair for pair in pairs if pair.comparison.clips > 0)


def p_text(p_value: float) -> str:
    """A p value with the digits that mean something."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def notes_of(results: Results, second: str) -> tuple[str, ...]:
    """What must be known to read the table: the numbers' meaning, absent columns, then the results' own notes.

    ``second`` says how the second best is marked.
    """
    general = (
        "A number is the mean over clips of a clip's mean over its lights, with its 95 % bootstrap interval (BCa, over clips; "
        f"[low, high], or ± half the width; none below {FEWEST_CLIPS} clips). Arrows point to the better side; the best of a "
        f"column is bold, the second of three or more {second}. A clip with a failed figure does not count in that column, the "
        "number of such clips is given; a system with more of them than another is not marked as best."
    )
    return (general, *absent_notes(results), *results.notes)


def absent_notes(results: Results) -> tuple[str, ...]:
    """Why metrics are absent, one line each."""
    return tuple(f"{name} could not be computed: {why}" for name, why in results.unavailable.items())
