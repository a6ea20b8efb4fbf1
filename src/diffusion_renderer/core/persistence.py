"""Lets ``Clip.read`` and its siblings exist without `core` knowing a file format.

The package's root module registers, for each type, the functions of the `io` layer that read and write it. They are given as
callables that import on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_readers: dict[str, Callable[..., Any]] = {}
_writers: dict[str, Callable[..., Path]] = {}


def register(kind: str, reader: Callable[..., Any], writer: Callable[..., Path]) -> None:
    """Say how the type named ``kind`` is read and written; a later call replaces an earlier one."""
    _readers[kind] = reader
    _writers[kind] = writer


def read(kind: type, path: str | Path, **options: Any) -> Any:
    """Read a ``kind`` from ``path`` with the registered reader."""
    return _readers[kind.__name__](path, **options)


def write(value: Any, path: str | Path, **options: Any) -> Path:
    """Write ``value`` to ``path`` with the writer registered for its type."""
    return _writers[type(value).__name__](value, path, **options)
