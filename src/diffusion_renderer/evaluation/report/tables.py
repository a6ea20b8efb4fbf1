"""The report as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from diffusion_renderer.evaluation.report.breakdown import failures_of
from diffusion_renderer.evaluation.report.grid import (
    BEST,
    NOTHING,
    SECOND,
    Column,
    Pair,
    Row,
    absent_notes,
    columns_of,
    notes_of,
    p_text,
    pairs_of,
    rows_of,
)
from diffusion_renderer.evaluation.results import Results
from diffusion_renderer.evaluation.statistics import ClipValues, Summary

SUMMARY_HEADER = (
    *("system", "what", "metric", "unit", "higher_is_better", "part", "light"),
    *("mean", "low", "high", "clips", "failed", "unavailable"),
)
FIGURE_HEADER = ("system", "clip", "light", "what", "metric", "part", "value", "failure")


def title_of(results: Results) -> str:
    """The report's title."""
    return f"{results.task} on {results.suite}"


def print_table(results: Results) -> str:
    """The table as Markdown for a terminal: no comparisons, and of the notes only what could not be computed and failures."""
    values = ClipValues(results.figures)
    columns = columns_of(results, values)
    absent = [f"* {_cell(note)}" for note in absent_notes(results)]
    blocks = [f"**{_cell(title_of(results))}**", *_main_tables(columns, rows_of(results, values, columns))]
    return "\n\n".join([*blocks, *_block([*absent, *_failure_lines(results)])]) + "\n"


def markdown(results: Results) -> str:
    """Title, protocol, a table for each thing compared, failures, comparisons and notes, as GitHub-flavoured Markdown."""
    values = ClipValues(results.figures)
    columns = columns_of(results, values)
    blocks = [f"# {_cell(title_of(results))}", _cell(results.protocol)]
    blocks += _main_tables(columns, rows_of(results, values, columns))
    if failures := _failure_lines(results):
        blocks += ["## Failed", "\n".join(failures)]
    if pairs := pairs_of(results, values, columns):
        blocks += ["## Paired comparisons", COMPARISON_NOTE, _comparison_table(pairs)]
    blocks += ["## Notes", "\n".join(f"* {_cell(note)}" for note in notes_of(results, "in italics"))]
    return "\n\n".join(blocks) + "\n"


#: Says how the comparisons are to be read, in every form of the report.
COMPARISON_NOTE = (
    "The first system minus the second, on the clips on which both have a value, with the 95 % bootstrap interval of the mean "
    "difference; p is of the sign-flip test, two-sided, not corrected for the number of comparisons. Pairs are close when "
    "their own intervals overlap."
)


def summary_csv(results: Results) -> str:
    """Mean, interval and counts of every system and column: over all, for every part, and for every light. Not rounded."""
    values = ClipValues(results.figures)
    columns = columns_of(results, values)
    places = [("all", None), *((part, None) for part in values.parts if part != "all")]
    places += [("all", light) for light in values.lights]
    lines = []
    for part, light in places:
        for row in rows_of(results, values, columns, part, light):
            for column, summary in zip(columns, row.summaries, strict=True):
                if summary.asked or (column.unavailable and (part, light) == ("all", None)):
                    lines.append(_summary_line(row.system, column, part, light, summary))
    return _csv(SUMMARY_HEADER, lines)


def _summary_line(system: str, column: Column, part: str, light: str | None, summary: Summary) -> tuple:
    numbers = (_number(summary.mean), _number(summary.low), _number(summary.high), summary.clips, summary.failed)
    metric = column.metric
    named = (system, column.what, metric.name, metric.unit, str(metric.higher_is_better).lower(), part, light or "")
    return *named, *numbers, column.unavailable


def figures_csv(results: Results) -> str:
    """Every figure as it was measured, failed ones with their reason and without a value."""
    return _csv(
        FIGURE_HEADER,
        (
            (f.system, f.clip, f.light, f.what, f.metric, f.part, _number(f.value), _reason(f.failed, f.failure))
            for f in results.figures
        ),
    )


def latex(results: Results) -> str:
    """A table for a paper that loads booktabs: best bold, second of three or more underlined, half intervals small."""
    values = ClipValues(results.figures)
    columns = [column for column in columns_of(results, values) if not column.unavailable]
    groups = [(what, len(list(group))) for what, group in groupby(columns, key=lambda column: column.what)]
    first = " & ".join(["", *(rf"\multicolumn{{{count}}}{{c}}{{{latex_escape(what)}}}" for what, count in groups)])
    rules, at = [], 2
    for _, count in groups:
        rules.append(rf"\cmidrule(lr){{{at}-{at + count - 1}}}")
        at += count
    second = " & ".join(["system", *(_latex_title(column) for column in columns)])
    body = [
        " & ".join(
            [latex_escape(row.system), *(_latex_cell(*cell) for cell in zip(columns, row.summaries, row.ranks, strict=True))]
        )
        + r" \\"
        for row in rows_of(results, values, columns)
    ]
    caption = latex_escape(f"{title_of(results)}. {results.protocol}")
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", first + r" \\", " ".join(rules), second + r" \\"]
    lines += [r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(line for line in lines if line) + "\n"


def latex_escape(text: str) -> str:
    """``text`` with LaTeX's special characters made harmless."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "°": r"\textdegree{}",
        "\N{MULTIPLICATION SIGN}": r"$\times$",
        **{character: "\\" + character for character in "&%$#_{}"},
    }
    return "".join(special.get(character, character) for character in text)


def _latex_title(column: Column) -> str:
    arrow = r"$\uparrow$" if column.metric.higher_is_better else r"$\downarrow$"
    return f"{latex_escape(column.title[:-2])} {arrow}"


def _latex_cell(column: Column, summary: Summary, rank: int) -> str:
    if not math.isfinite(summary.mean):
        return "--"
    number = column.text(summary.mean).replace("\N{MINUS SIGN}", "-")
    shown = {BEST: rf"$\mathbf{{{number}}}$", SECOND: rf"\underline{{${number}$}}"}.get(rank, f"${number}$")
    if math.isfinite(summary.half_width):
        shown += rf" {{\scriptsize$\pm{column.text(summary.half_width)}$}}"
    return shown + (rf" {{\scriptsize({summary.failed} failed)}}" if summary.failed else "")


def _main_tables(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """One Markdown table for each thing compared, so that each fits on a screen."""
    tables = []
    indexed = list(enumerate(columns))
    for what, group in groupby(indexed, key=lambda item: item[1].what):
        chosen = list(group)
        header = [_cell(what), *(_cell(column.title) for _, column in chosen)]
        body = [[_cell(row.system), *(_mark(c, row.summaries[i], row.ranks[i]) for i, c in chosen)] for row in rows]
        tables.append(_table(header, body))
    return tables


def _mark(column: Column, summary: Summary, rank: int) -> str:
    """One cell; Markdown has no underline, so the second best is in italics."""
    if column.unavailable and not summary.clips:
        return "not available"
    text = column.text(summary.mean)
    text = {BEST: f"**{text}**", SECOND: f"*{text}*"}.get(rank, text)
    text += f" ±{column.text(summary.half_width)}" if math.isfinite(summary.half_width) else ""
    return text + (f" ({summary.failed} failed)" if summary.failed else "")


def _comparison_table(pairs: Sequence[Pair]) -> str:
    header = ["what", "metric", "first", "second", "difference", "95 % interval", "first better on", "p", "close"]
    return _table(header, [[_cell(cell) for cell in comparison_cells(pair)] for pair in pairs])


def comparison_cells(pair: Pair) -> tuple[str, ...]:
    """A comparison as text: what, metric, first, second, difference, interval, clips won, p, close."""
    column, found = pair.column, pair.comparison
    known = math.isfinite(found.low)
    span = f"[{column.signed(found.low)}, {column.signed(found.high)}]" if known else NOTHING
    won = f"{found.wins} of {found.clips} clips"
    named = (column.what, column.title, pair.first, pair.second)
    return *named, column.signed(found.difference), span, won, p_text(found.p_value), "yes" if pair.close else ""


def _failure_lines(results: Results) -> list[str]:
    return [
        f"* {_cell(f.system)}: {f.figures} {'figure' if f.figures == 1 else 'figures'} on {_cell(', '.join(f.clips))}: "
        f"{_cell(f.reason)}"
        for f in failures_of(results)
    ]


def _block(lines: Sequence[str]) -> list[str]:
    return ["\n".join(lines)] if lines else []


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already, padded so that it also reads well as plain text."""
    table = [list(row) for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table]
    lines.insert(1, "|" + "|".join(" " + "-" * width + " " for width in widths) + "|")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that stays in its cell and line, and starts neither emphasis nor HTML."""
    text = " ".join(text.split()).replace("|", r"\|").replace("*", r"\*")
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", text)


def _reason(failed: bool, reason: str) -> str:
    return (reason or "not a finite number") if failed else ""


def _number(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
