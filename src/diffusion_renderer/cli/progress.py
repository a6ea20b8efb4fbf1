"""What the user sees while a command works: a bar per stage on stderr, at the end the paths and the time on stdout."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from tqdm import tqdm


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Callable as the pipelines want it, ``progress(done, total, what)``; prefixes each stage with what is being made.

    Stages of one long clip take turns, piece by piece: the one that began last has the bar, and reports of those before it are
    left out while it is open. Used as a context manager it ends with the paths reported through `made` and the time taken. Not
    for several threads.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.subject = ""
        self.results: list[Path] = []
        self._bar: tqdm | None = None
        self._stage: tuple[str, int] | None = None
        self._begun: set[tuple[str, int]] = set()

    def __call__(self, done: int, total: int, what: str) -> None:
        stage = (f"{self.subject}: {what}" if self.subject else what, total)
        if self._bar is not None and stage != self._stage and stage in self._begun:
            return
        self._begun.add(stage)
        if self._bar is None or stage != self._stage:
            self.close()
            interval = 0.2 if sys.stderr.isatty() else 5.0  # a log file does not want five lines a second
            self._bar = tqdm(total=total, desc=stage[0], file=sys.stderr, mininterval=interval, dynamic_ncols=True)
            self._stage = stage
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def say(self, line: str) -> None:
        """One line on stderr, between the bars."""
        self.close()
        print(f"{self.subject}: {line}" if self.subject else line, file=sys.stderr, flush=True)

    def made(self, path: Path) -> None:
        """Note a result for the closing list."""
        self.results.append(path)

    def close(self) -> None:
        """End the bar at hand."""
        if self._bar is not None:
            self._bar.close()
        self._bar = self._stage = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if error is None:
            for path in dict.fromkeys(self.results):
                print(path)
            print(f"done in {duration(self.elapsed)}", flush=True)
