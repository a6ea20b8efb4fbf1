"""Whether files are still what they were, without reading them."""

from __future__ import annotations

import hashlib
from pathlib import Path

#: The file beside each result that says what it was made from; not part of what it describes.
RECORD = "run.json"


def fingerprint(path: Path) -> str:
    """A digest of the names, sizes and modification times of a file or of all files below a folder; nothing is read.

    Records and half-written files do not count. A path that does not exist has the digest of its name.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.name == RECORD or file.name.startswith(".") or file.is_dir():
            continue
        relative = file.relative_to(path).as_posix() if file != path else file.name
        state = file.stat() if file.exists() else None
        digest.update(f"{relative}\0{state and (state.st_size, state.st_mtime_ns)}\0".encode())
    return digest.hexdigest()[:16]
