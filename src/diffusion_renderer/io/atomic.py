"""Outputs appear under their final name only when they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_renderer.core.errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block succeeds, delete it when it does not.

    The temporary name keeps the suffix, so that libraries still recognise the format, and starts with a dot, so that readers of
    folders pass over one that a killed process left behind. Missing folders are made. A folder or file that cannot be written
    raises InputError. It does not force the data to the disk: a power cut may lose the newest files.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.part-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        make_folder(path.parent)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        # Only there when the block failed, whatever the reason, an interrupt included.
        with _ignore_os_errors():
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return path


def make_folder(path: Path) -> Path:
    """Make a folder and its parents; InputError when that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(path, error) from error
    return path


def not_writable(path: Path, error: OSError) -> InputError:
    """The error for an output that cannot be written."""
    reason = error.strerror or type(error).__name__
    return InputError(
        f"a writable place for {path}", reason, "choose another output folder, or make room and permit writing there"
    )


@contextmanager
def _ignore_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        pass
