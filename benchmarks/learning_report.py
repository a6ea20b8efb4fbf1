"""The learning curve as a Markdown table and as a drawing."""

from __future__ import annotations

import math
from typing import Any
from xml.sax.saxutils import escape

from learning_scores import SCORES

#: Size of a panel and its margins, pixels.
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 300, 200, 52, 30, 42, 24
#: Colours of the shares, from the smallest on (Okabe and Ito, legible to the colour-blind).
COLOURS = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")


def names(record: dict[str, Any]) -> list[str]:
    """The scores of a record, in their usual order."""
    known = record["rows"][0]["scores"] if record["rows"] else {}
    return [name for name in SCORES if name in known]


def shares(record: dict[str, Any]) -> list[str]:
    """From the smallest on."""
    return sorted({row["share"] for row in record["rows"]}, key=_number)


def markdown(record: dict[str, Any]) -> str:
    """One row per share and number of steps, the baseline last."""
    found = names(record)
    head = [f"{name}, {SCORES[name][1]}" for name in found]
    lines = [_row(["shards", "frames", "steps", "images seen", "minutes", *head]), _row(["---"] * (5 + len(head)))]
    for share in shares(record):
        for row in sorted((row for row in record["rows"] if row["share"] == share), key=lambda row: row["step"]):
            said = [
                f"{row['shards']} ({share})",
                f"{row['frames']:,}",
                row["step"],
                f"{row['images']:,}",
                f"{row['seconds'] / 60:.1f}",
            ]
            lines.append(_row([*said, *(_figure(name, row["scores"][name]) for name in found)]))
    if record["baseline"]:
        lines.append(_row([_baseline(record), "", "", "", "", *(_figure(name, record["baseline"][name]) for name in found)]))
    return "\n".join(lines)


def picture(record: dict[str, Any]) -> str:
    """An SVG with a panel per score: against steps on a logarithmic axis, a line per share, the baseline dashed."""
    found = names(record)
    columns = min(3, max(1, len(found)))
    rows = -(-len(found) // columns)
    wide, high = columns * (LEFT + WIDTH + GAP), rows * (TOP + HEIGHT + BOTTOM) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
    ]
    for number, name in enumerate(found):
        x, y = LEFT + number % columns * (LEFT + WIDTH + GAP), TOP + number // columns * (TOP + HEIGHT + BOTTOM)
        parts.append(f'<g transform="translate({x},{y})">{_panel(record, name)}</g>')
    for number, share in enumerate(shares(record)):
        x = LEFT + 150 * number
        parts.append(f'<path d="M{x},{high - 12}h24" stroke="{_colour(number)}" stroke-width="2"/>')
        parts.append(_text(x + 30, high - 8, f"{'all' if share == '1' else share} of the shards"))
    if record["baseline"]:
        x = LEFT + 150 * len(shares(record))
        parts.append(f'<path d="M{x},{high - 12}h24" stroke="#555" stroke-dasharray="5 4"/>')
        parts.append(_text(x + 30, high - 8, _baseline(record)))
    return "\n".join([*parts, "</svg>\n"])


def _baseline(record: dict[str, Any]) -> str:
    return "classical picture or mean colour" if record["settings"]["stage"] == "forward" else "best constant"


def _panel(record: dict[str, Any], name: str) -> str:
    level = record["baseline"].get(name)
    values = [row["scores"][name] for row in record["rows"]] + ([] if level is None else [level])
    steps = sorted({row["step"] for row in record["rows"]})
    low, high = _span(min(values), max(values))

    def across(step: int) -> float:
        wide = math.log(steps[-1] / steps[0]) or 1.0
        return WIDTH * math.log(step / steps[0]) / wide if len(steps) > 1 else WIDTH / 2

    def up(value: float) -> float:
        return HEIGHT * (1 - (value - low) / (high - low))

    better, unit = SCORES[name]
    parts = [_text(0, -10, f"{name}: {unit} ({'higher' if better else 'lower'} is better)")]
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>')
    for tick in (low, (low + high) / 2, high):
        parts.append(_text(-6, up(tick) + 4, f"{tick:.3g}", "end"))
    for step in steps:
        parts.append(_text(across(step), HEIGHT + 16, str(step), "middle"))
    parts.append(_text(WIDTH / 2, HEIGHT + 32, "steps", "middle"))
    if level is not None:
        parts.append(f'<path d="M0,{up(level):.1f}h{WIDTH}" stroke="#555" stroke-dasharray="5 4"/>')
    for number, share in enumerate(shares(record)):
        mine = sorted((row["step"], row["scores"][name]) for row in record["rows"] if row["share"] == share)
        line = " ".join(f"{across(step):.1f},{up(value):.1f}" for step, value in mine)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{_colour(number)}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" fill="{_colour(number)}"/>' for p in line.split()
        ]
    return "".join(parts)


def _span(low: float, high: float) -> tuple[float, float]:
    """A little more than from ``low`` to ``high``."""
    margin = 0.08 * (high - low) or max(1e-3, 0.01 * abs(high))
    return low - margin, high + margin


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(name: str, value: float) -> str:
    return f"{value:.2f}" if SCORES[name][1] != "RMSE" else f"{value:.4f}"


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _number(share: str) -> float:
    top, _, bottom = share.partition("/")
    return float(top) / float(bottom or 1)
