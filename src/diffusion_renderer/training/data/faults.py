"""Shards that cannot be used: they are skipped, named and counted, up to a limit."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from diffusion_renderer.core.errors import InputError, one_line

log = logging.getLogger(__name__)
Result = TypeVar("Result")

#: What reading a broken or foreign file may raise.
FAULTS = (
    tarfile.TarError,
    OSError,
    EOFError,
    LookupError,
    ValueError,  # InputError is one
    TypeError,
    AttributeError,
    RuntimeError,
)
#: Faults that a message lists.
LISTED = 3
#: A tar archive ends with two blocks of zeros.
_END = 1024


@dataclass(frozen=True)
class SkippedShard:
    """A shard that was left out, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def attempt(path: Path, read: Callable[[], Result]) -> Result | SkippedShard:
    """What ``read`` returns, or the shard with what is wrong with it. Not for writing: a full disk is nobody's shard."""
    try:
        return read()
    except FAULTS as error:
        skipped = SkippedShard(str(path), _reason(error))
        log.warning("skipped the shard %s: %s", skipped.name, skipped.reason)
        return skipped


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, KeyError):
        return f"no file {cause.args[0]}"
    return one_line(cause) or type(cause).__name__


def clip_names(path: Path) -> list[str]:
    """The folders of a shard's clips, in order. Raises ValueError for an archive without any, or cut off at its end.

    tarfile itself takes an archive that was cut between two files for a whole, shorter one.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END))
        tail = file.read()
    if size == 0:
        raise ValueError("an empty file")
    with tarfile.open(path) as tar:
        names = [name for name, _ in groupby(member.name.split("/")[0] for member in tar if member.isfile())]
    if len(tail) < _END or any(tail):
        raise ValueError("cut off: the archive's end is missing")
    if not names:
        raise ValueError("no clip in it")
    return names


def check_limit(skipped: Sequence[SkippedShard], shards: int, max_bad: float) -> None:
    """InputError when more than the share ``max_bad`` of the ``shards`` was skipped, or all of them."""
    if not skipped or (len(skipped) <= max_bad * shards and len(skipped) < shards):
        return
    first = "; ".join(map(str, skipped[:LISTED])) + ("; ..." if len(skipped) > LISTED else "")
    expected, advice = "whole shards", "make them again, or leave them out"
    if len(skipped) < shards:
        expected, advice = f"{expected}, at most {max_bad:.0%} broken", f"{advice}, or allow more with --max-bad"
    raise InputError(expected, f"{len(skipped)} of {shards} broken: {first}", advice)
