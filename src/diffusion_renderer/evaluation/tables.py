"""Tables of results, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A titled table; every row has one cell per column. Numbers are kept as they are and rounded when written."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]

    def markdown(self) -> str:
        """GitHub-flavoured Markdown, numbers with three significant decimals."""
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.columns) + " |", "|" + " --- |" * len(self.columns)]
        lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join(lines)

    def csv(self) -> str:
        """Comma-separated values, numbers unrounded."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return buffer.getvalue()


def _text(cell: str | float) -> str:
    return cell if isinstance(cell, str) else f"{cell:.3f}" if abs(cell) < 10 else f"{cell:.2f}"
