"""Reports of an evaluation: Markdown, CSV, LaTeX and one self-contained HTML page."""

from __future__ import annotations

import re
from pathlib import Path

from diffusion_renderer.evaluation.report.breakdown import clips_to_show
from diffusion_renderer.evaluation.report.page import page
from diffusion_renderer.evaluation.report.pictures import error_map, picture, png
from diffusion_renderer.evaluation.report.tables import figures_csv, latex, markdown, print_table, summary_csv
from diffusion_renderer.evaluation.results import Results
from diffusion_renderer.io.atomic import make_folder, write_bytes

__all__ = ["clips_to_show", "error_map", "picture", "png", "print_table", "report_name", "write_report"]

#: The forms of the report by what follows ``<task>-<suite>`` in the file's name.
FORMS = {
    ".md": markdown,
    ".csv": summary_csv,
    ".figures.csv": figures_csv,
    ".tex": latex,
    ".html": page,
}


def report_name(results: Results) -> str:
    """``<task>-<suite>``, with nothing in it that a file's name cannot have."""
    return re.sub(r"[^\w.-]+", "-", f"{results.task}-{results.suite}")


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write every form of the report into ``folder``, as ``<task>-<suite>`` with the endings of `FORMS`; InputError when the
    folder cannot be written. The files are complete or not there; older ones are replaced."""
    make_folder(folder)
    name = report_name(results)
    return [write_bytes(folder / f"{name}{ending}", form(results).encode("utf-8")) for ending, form in FORMS.items()]
