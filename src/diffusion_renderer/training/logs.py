"""What a run leaves to read: ``log.csv``, TensorBoard's files, pictures, the progress bar. The main process alone writes."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io.atomic import atomic_path, not_writable


class Logs:
    """The log of one run of a stage. Does nothing in processes that are not ``main``."""

    def __init__(self, folder: Path, bar: tqdm, board: Any | None, main: bool) -> None:
        self._folder, self._bar, self._board, self._main = folder, bar, board, main

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def row(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step: a line of ``log.csv``, a point in TensorBoard, the end of the progress bar."""
        if not self._main:
            return
        append_row(self._folder / "log.csv", {"step": step, **values})
        for name, value in values.items() if self._board is not None else ():
            self._board.add_scalar(name, value, step)
        shown = {name: f"{values[name]:.4g}" for name in ("loss", "samples_per_second") if name in values}
        self._bar.set_postfix(shown, refresh=False)

    def sheet(self, name: str, picture: Float[Tensor, "3 height width"], step: int) -> None:
        """Write a picture, values in [0, 1], to ``NAME.png``, and to TensorBoard."""
        if not self._main:
            return
        from PIL import Image

        whole = picture.detach().float().cpu().clamp(0, 1).mul(255).round().byte()
        with atomic_path(self._folder / f"{name}.png") as path:
            Image.fromarray(whole.permute(1, 2, 0).numpy()).save(path)
        if self._board is not None:
            self._board.add_image("sheet", whole, step)


@contextmanager
def open_logs(folder: Path, name: str, step: int, max_steps: int, tensorboard: bool, main: bool) -> Iterator[Logs]:
    """The log of a run of stage ``name`` that goes on from ``step``.

    What an earlier run logged after that step, before it was killed, is dropped: those steps are done again. Raises InputError
    when TensorBoard is asked for and not installed, and when the folder cannot be written.
    """
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "the package tensorboard", "it is not installed", "pip install tensorboard, or leave --tensorboard out"
        )
    board = None
    if main:
        drop_rows(folder / "log.csv", step)
    if main and tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
    with tqdm(total=max_steps, initial=step, desc=name, unit="step", mininterval=5, disable=not main) as bar:
        try:
            yield Logs(folder, bar, board, main)
        finally:
            if board is not None:
                board.close()


def append_row(path: Path, row: dict[str, float]) -> None:
    """Add a line to a CSV file. A column that is new is added to the file, empty in the lines before."""
    columns, rows = read_rows(path) if path.exists() else ([], [])
    added = [name for name in row if name not in columns]
    if added:
        write_rows(path, [*columns, *added], [*rows, row])
        return
    try:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)
    except OSError as error:
        raise not_writable(path, error) from error


def drop_rows(path: Path, step: int) -> None:
    """Remove from a CSV file the lines of steps after ``step``, and a last line that a kill cut short."""
    if not path.exists():
        return
    columns, rows = read_rows(path)
    kept = [row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) <= step and None not in row.values()]
    if len(kept) < len(rows):
        write_rows(path, columns, kept)


def read_rows(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and lines of a CSV file; the missing end of a line that was cut short is None."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return list(reader.fieldnames or ()), rows


def write_rows(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Write a whole CSV file, atomically."""
    with atomic_path(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
