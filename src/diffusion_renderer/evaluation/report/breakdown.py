"""Where a system is good and where it is not: by material, by light, by clip."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass

from diffusion_renderer.evaluation.report.grid import Column, Row, columns_of, rows_of
from diffusion_renderer.evaluation.results import Picture, Results
from diffusion_renderer.evaluation.statistics import ClipValues

#: So many of the worst and so many of the best clips are shown.
SHOWN_CLIPS = 3


@dataclass(frozen=True)
class Failure:
    """A reason, and how many figures and which clips of a system it stands for."""

    system: str
    reason: str
    figures: int
    clips: tuple[str, ...]


@dataclass(frozen=True)
class ClipExample:
    """A clip with the pictures that are shown of it, as rows of (what, light, pictures), and the first system's value."""

    clip: str
    value: float
    rows: tuple[tuple[str, str, tuple[Picture, ...]], ...]


def by_part(results: Results, values: ClipValues, columns: Sequence[Column]) -> tuple[Row, ...]:
    """The table for every group of pixels that has figures, besides all of them."""
    parts = (part for part in values.parts if part != "all")
    return _present(row for part in parts for row in rows_of(results, values, columns, part))


def by_light(results: Results, values: ClipValues, columns: Sequence[Column]) -> tuple[Row, ...]:
    """The table for every light; empty when there are none, or one."""
    if len(values.lights) < 2:
        return ()
    return _present(row for light in values.lights for row in rows_of(results, values, columns, light=light))


def _present(rows) -> tuple[Row, ...]:
    return tuple(row for row in rows if any(summary.asked for summary in row.summaries))


def by_clip(results: Results, values: ClipValues, columns: Sequence[Column]) -> list[tuple[str, str, list[float]]]:
    """(clip, system, value per column) of every clip and system with a figure; nan where there is none."""
    table = {
        system: [values.of(system, *column.key) for column in columns]  # one dictionary by clip per column
        for system in results.systems
    }
    return [
        (clip, system, [column.get(clip, math.nan) for column in table[system]])
        for clip in values.clips
        for system in results.systems
        if any(clip in column for column in table[system])
    ]


def failures_of(results: Results) -> list[Failure]:
    """The failed figures over all pixels, gathered by system and reason."""
    gathered = defaultdict(list)
    for figure in results.figures:
        if figure.failed and figure.part == "all":
            gathered[(figure.system, figure.failure or "not a finite number")].append(figure.clip)
    return [Failure(system, reason, len(clips), tuple(dict.fromkeys(clips))) for (system, reason), clips in gathered.items()]


def examples_of(
    results: Results, values: ClipValues, columns: Sequence[Column]
) -> tuple[Column | None, list[ClipExample], list[ClipExample]]:
    """The worst and the best clips of the first system by the first column with values, and that column.

    Only clips with pictures can be shown. Of the lights of a clip that one is shown under which the system is worst, or best,
    among those with pictures.
    """
    pictured = {picture.clip for picture in results.pictures}
    column, ranked = _ranking(results, values, columns, pictured)
    if column is None:
        return None, [], []
    worst, best = _ends(ranked)
    return (
        column,
        [_example(results, values, column, clip, value, worst=True) for clip, value in worst],
        [_example(results, values, column, clip, value, worst=False) for clip, value in best],
    )


def clips_to_show(results: Results) -> tuple[str, ...]:
    """The clips that `examples_of` would show if all had pictures: nobody looks at the pictures of others."""
    values = ClipValues(results.figures)
    _, ranked = _ranking(results, values, columns_of(results, values), set(values.clips))
    return tuple(clip for end in _ends(ranked) for clip, _ in end)


def _ends(ranked: Sequence[tuple[str, float]]) -> tuple[Sequence[tuple[str, float]], Sequence[tuple[str, float]]]:
    """The worst clips, worst first, and the best ones, best first; none is among both."""
    count = min(SHOWN_CLIPS, (len(ranked) + 1) // 2)
    return ranked[:count], ranked[count:][-count:][::-1]


def _ranking(
    results: Results, values: ClipValues, columns: Sequence[Column], pictured: Set[str]
) -> tuple[Column | None, list[tuple[str, float]]]:
    """The column that ranks, and (clip, value) of the first system from worst to best, of the clips ``pictured``."""
    for column in columns:
        found = values.of(results.systems[0], *column.key) if results.systems else {}
        ranked = [(clip, value) for clip, value in found.items() if math.isfinite(value) and clip in pictured]
        if ranked:
            return column, sorted(ranked, key=lambda item: item[1], reverse=not column.metric.higher_is_better)
    return None, []


def _example(results: Results, values: ClipValues, column: Column, clip: str, value: float, *, worst: bool) -> ClipExample:
    pictures = [picture for picture in results.pictures if picture.clip == clip]
    inputs = [picture for picture in pictures if picture.system == "input"]
    pictures = [picture for picture in pictures if picture.system != "input"]
    lights = list(dict.fromkeys(picture.light for picture in pictures if picture.light))
    if lights:
        light = _telling_light(values, results.systems[0], column, clip, lights, worst)
        pictures = [picture for picture in pictures if picture.light in ("", light)]
        inputs = [picture for picture in inputs if picture.light in ("", light)] or inputs
    rows: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    order = {name: i for i, name in enumerate(("truth", *results.systems))}
    for picture in sorted(pictures, key=lambda picture: order.get(picture.system, len(order))):
        rows[(picture.what, picture.light)].append(picture)
    # The input is the same for every row: it stands in the first one, and alone where there is nothing else.
    first = next(iter(rows), ("", ""))
    rows[first] = inputs[:1] + rows[first]
    return ClipExample(clip, value, tuple((what, light, tuple(row)) for (what, light), row in rows.items()))


def _telling_light(values: ClipValues, system: str, column: Column, clip: str, lights: Sequence[str], worst: bool) -> str:
    """The light under which a system is worst, or best, on a clip; the first where it has no value under any."""
    of_light = {light: values.of(system, *column.key, light=light).get(clip, math.nan) for light in lights}
    known = [light for light in lights if math.isfinite(of_light[light])]
    lowest = worst == column.metric.higher_is_better
    return (min if lowest else max)(known, key=of_light.__getitem__) if known else lights[0]
