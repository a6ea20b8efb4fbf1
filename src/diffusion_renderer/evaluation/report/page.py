"""The report as one self-contained HTML page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby

from diffusion_renderer.evaluation.report.breakdown import (
    ClipExample,
    by_clip,
    by_light,
    by_part,
    examples_of,
    failures_of,
)
from diffusion_renderer.evaluation.report.grid import BEST, SECOND, Column, Row, columns_of, notes_of, pairs_of, rows_of
from diffusion_renderer.evaluation.report.html import Markup, document, element, image, joined, prose
from diffusion_renderer.evaluation.report.pictures import error_scale, palette_stops
from diffusion_renderer.evaluation.report.tables import COMPARISON_NOTE, comparison_cells, title_of
from diffusion_renderer.evaluation.results import Picture, Results
from diffusion_renderer.evaluation.statistics import ClipValues, Summary

#: Longer tables are folded.
FOLDED_ROWS = 16


def page(results: Results) -> str:
    """The HTML: table, notes, failures, comparisons, breakdown, worst and best clips, all clips.

    Sections that have nothing to show are left out.
    """
    values = ClipValues(results.figures)
    columns = columns_of(results, values)
    sections = [
        ("Table", _main_table(results, values, columns)),
        ("Failed", _failures(results)),
        ("Paired comparisons", _comparisons(results, values, columns)),
        ("By material", _breakdown("material", columns, by_part(results, values, columns))),
        ("By light", _breakdown("light", columns, by_light(results, values, columns))),
        *_example_sections(results, values, columns),
        ("All clips", _clip_list(results, values, columns)),
    ]
    present = [(title, content) for title, content in sections if content]
    links = [element("a", title, href=f"#{_anchor(title)}") for title, _ in present]
    header = element(
        "header",
        element("h1", title_of(results)),
        element("p", prose(results.protocol)),
        element("div", *links, class_="contents"),
    )
    body = [element("section", element("h2", title), content, id=_anchor(title)) for title, content in present]
    return document(title_of(results), header, element("main", joined(body, "\n")))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _main_table(results: Results, values: ClipValues, columns: Sequence[Column]) -> Markup:
    if not columns:
        return Markup()
    rows = [element("tr", element("td", row.system), *_cells(columns, row)) for row in rows_of(results, values, columns)]
    notes = element("ul", *(element("li", prose(note)) for note in notes_of(results, "underlined")))
    return joined((_table(_grouped_head(("system",), columns), rows), notes), "\n")


def _grouped_head(names: Sequence[str], columns: Sequence[Column]) -> Markup:
    """Two rows: what is compared above the metrics."""
    groups = [(what, len(list(group))) for what, group in groupby(columns, key=lambda column: column.what)]
    above = [element("th", name, rowspan=2, scope="col", class_="text") for name in names]
    above += [element("th", what, colspan=count, scope="colgroup", class_="group") for what, count in groups]
    below = [element("th", _unbroken(column.title), title=column.unavailable or None, scope="col") for column in columns]
    return joined((element("tr", *above), element("tr", *below, class_="below")), "\n")


def _unbroken(title: str) -> str:
    """A title whose arrow, unit and comparison sign stay on the line of their neighbour."""
    return re.sub(r" (?=[↑↓(])|(?<=<) ", "\N{NO-BREAK SPACE}", title)


def _cells(columns: Sequence[Column], row: Row) -> list[Markup]:
    return [_cell(*cell) for cell in zip(columns, row.summaries, row.ranks, strict=True)]


def _cell(column: Column, summary: Summary, rank: int) -> Markup:
    """Mean, interval in small print, failed clips; or why there is nothing."""
    if column.unavailable and not summary.clips:
        return element("td", element("span", "n/a", title=column.unavailable))
    text = column.text(summary.mean)
    parts = [element("b", text) if rank == BEST else element("u", text) if rank == SECOND else text]
    if math.isfinite(summary.low):
        parts.append(element("small", f"[{column.text(summary.low)}, {column.text(summary.high)}]"))
    if summary.failed:
        parts.append(element("small", f"{summary.failed} failed", class_="bad"))
    return element("td", *parts, class_="best" if rank == BEST else None)


def _failures(results: Results) -> Markup:
    rows = [
        element("tr", element("td", f.system), element("td", str(f.figures)), _clips(f.clips), element("td", f.reason))
        for f in failures_of(results)
    ]
    return _plain_table(("system", "figures", "clips", "reason"), rows) if rows else Markup()


def _clips(clips: Sequence[str]) -> Markup:
    """Names of clips; behind a line to click on when they are many."""
    names = ", ".join(clips)
    if len(clips) <= 4:
        return element("td", names)
    return element("td", element("details", element("summary", f"{len(clips)} clips"), names), class_="wrap")


def _comparisons(results: Results, values: ClipValues, columns: Sequence[Column]) -> Markup:
    pairs = pairs_of(results, values, columns)
    if not pairs:
        return Markup()
    header = ("compared", "metric", "first", "second", "difference", "95 % interval", "first better on", "p", "close")
    rows = [element("tr", *(element("td", cell) for cell in comparison_cells(pair))) for pair in pairs]
    return joined((element("p", COMPARISON_NOTE), _folded(_plain_table(header, rows), len(rows), "comparisons")), "\n")


def _breakdown(name: str, columns: Sequence[Column], rows: Sequence[Row]) -> Markup:
    if not rows:
        return Markup()
    used = [i for i in range(len(columns)) if any(row.summaries[i].asked for row in rows)]
    shown = [columns[i] for i in used]
    body = [
        element(
            "tr",
            element("td", row.group),
            _text(row.system),
            *(_cell(columns[i], row.summaries[i], row.ranks[i]) for i in used),
            class_="start" if at == 0 or rows[at - 1].group != row.group else None,
        )
        for at, row in enumerate(rows)
    ]
    return _folded(_table(_grouped_head((name, "system"), shown), body), len(body), "rows")


def _example_sections(results: Results, values: ClipValues, columns: Sequence[Column]) -> list[tuple[str, Markup]]:
    column, worst, best = examples_of(results, values, columns)
    if column is None:
        return []
    text = f"Of {results.systems[0]}, by {column.what} {column.title}, among the clips with pictures."
    about = joined((element("p", text), _legend({row[0] for example in (*worst, *best) for row in example.rows})), "\n")
    return [
        (title, joined((about, *(_example(values, column, example) for example in examples)), "\n") if examples else Markup())
        for title, examples in (("Worst clips", worst), ("Best clips", best))
    ]


def _legend(whats: set[str]) -> Markup:
    """What the colours of the error maps mean."""
    scales = sorted({error_scale(what) for what in whats})
    shown = ", ".join(f"{top:g}{unit}" + (" (normals)" if unit else "") for top, unit in scales)
    bar = element("i", style=f"background: linear-gradient(to right, {', '.join(palette_stops())})")
    key = element("i", class_="key", style="background: #00d9ff")
    return element("div", "error: 0", bar, f"{shown} and more", key, "not a number", class_="legend")


def _example(values: ClipValues, column: Column, example: ClipExample) -> Markup:
    parts = [element("h3", f"{example.clip}: {column.text(example.value)} {column.unit}".rstrip())]
    for what, light, pictures in example.rows:
        if what or light:
            parts.append(element("h4", " under ".join(text for text in (what, light) if text)))
        shown = (_picture(picture, _caption(values, column, picture)) for picture in pictures)
        parts.append(element("div", *shown, class_="strip"))
    return joined(parts, "\n")


def _caption(values: ClipValues, column: Column, picture: Picture) -> str:
    """The figure that ranks the clips, for the very picture; nothing for pictures of other things."""
    found = values.of(picture.system, *column.key, light=picture.light or None)
    if picture.what != column.what or picture.clip not in found:
        return ""
    value = found[picture.clip]
    return f"{column.text(value)} {column.unit}".rstrip() if math.isfinite(value) else "failed"


def _picture(picture: Picture, caption: str) -> Markup:
    label = f"{picture.system}, {picture.what}, {picture.clip}"
    error = [image(picture.error, f"error of {label}")] if picture.error is not None else []
    small = [element("small", caption)] if caption else []
    return element("figure", image(picture.image, label), *error, element("figcaption", picture.system, *small))


def _clip_list(results: Results, values: ClipValues, columns: Sequence[Column]) -> Markup:
    rows = by_clip(results, values, columns)
    if not rows:
        return Markup()
    names = ["clip", "system", *(f"{column.what} {column.title}" for column in columns)]
    head = element("tr", *(element("th", element("button", name, type="button"), scope="col") for name in names))
    body = [
        element(
            "tr",
            element("td", clip, data_value=clip),
            element("td", system, data_value=system, class_="text"),
            *(_value(column, value) for column, value in zip(columns, numbers, strict=True)),
        )
        for clip, system, numbers in rows
    ]
    field = element("input", type="search", placeholder="clip or system", aria_label="Show only rows with these words")
    return element("div", field, _table(head, body, "sortable"))


def _value(column: Column, value: float) -> Markup:
    known = math.isfinite(value)
    return element("td", column.text(value), data_value=f"{value:.6g}" if known else "")


def _text(cell: str) -> Markup:
    return element("td", cell, class_="text")


def _plain_table(header: Sequence[str], rows: Sequence[Markup]) -> Markup:
    return _table(element("tr", *(element("th", name, scope="col") for name in header)), rows, "plain")


def _table(head: Markup, rows: Sequence[Markup], kind: str | None = None) -> Markup:
    table = element("table", element("thead", head), "\n", element("tbody", joined(rows, "\n")), class_=kind)
    return element("div", table, class_="table")


def _folded(content: Markup, count: int, name: str) -> Markup:
    """``content`` behind a line to click on when it is long."""
    return content if count <= FOLDED_ROWS else element("details", element("summary", f"{count} {name}"), content)
