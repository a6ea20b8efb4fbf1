"""What makes a stopped run continue: beside each result, ``run.json`` says what it was made from and which files it has.

A result is complete when its record is finished, was made from the same input with the same settings by the same version of
the package, and all its files are there. The record is written unfinished before the first file and finished after the last
one, always atomically. Where an unfinished result goes on is `resuming`'s.
"""

from __future__ import annotations

import glob
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_renderer import __version__
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io import atomic_path
from diffusion_renderer.io.fingerprint import RECORD, fingerprint

__all__ = ["RECORD", "Result", "fingerprint", "make_output_folder"]


@dataclass(frozen=True)
class Result:
    """One clip to be written below ``root``: its record is ``root/name/run.json``.

    Attributes
    ----------
    kind : what it is ("gbuffers" or "relit"); a record of another kind is never cleaned up after.
    made_from : everything that decides the result, as JSON-able values.
    """

    root: Path
    name: str
    kind: str
    made_from: Mapping[str, Any]

    @property
    def record_path(self) -> Path:
        return self.root / self.name / RECORD

    @property
    def key(self) -> str:
        """Digest of all that decides the result, the package's version included."""
        text = json.dumps({"version": __version__, "kind": self.kind, **self.made_from}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _record(self) -> dict[str, Any]:
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def complete(self) -> bool:
        """Whether the result is there as these settings would make it."""
        record = self._record()
        files = record.get("files", [])
        return (
            record.get("finished") is True
            and record.get("key") == self.key
            and bool(files)
            and all((self.root / file).is_file() and (self.root / file).stat().st_size > 0 for file in files)
        )

    def write(self, files: Sequence[str], writer: Callable[[], object]) -> None:
        """Call ``writer``, which makes ``files`` (relative to the root), and record them.

        Files that an earlier run with other settings recorded here and that are not among ``files`` are removed first: a
        shorter clip must not keep the tail of a longer one. Those that differ in format only are kept.
        """
        earlier = self._record()
        self._save(files, finished=False)
        if earlier.get("kind") == self.kind and _but_formats(earlier.get("made_from")) != _but_formats(self.made_from):
            for stale in set(earlier.get("files", [])) - set(files):
                (self.root / stale).unlink(missing_ok=True)
        for left in (*self.record_path.parent.glob(".*.part-*"), *self.root.glob(f".{glob.escape(self.name)}.*.part-*")):
            left.unlink(missing_ok=True)  # by a process that was killed
        writer()
        missing = [file for file in files if not (self.root / file).is_file()]
        if missing:
            raise OSError(f"{len(missing)} files of {self.name} were not written, {missing[0]} first")
        self._save(files, finished=True)

    def _save(self, files: Sequence[str], finished: bool) -> None:
        record = {
            "kind": self.kind,
            "finished": finished,
            "version": __version__,
            "key": self.key,
            "made_from": dict(self.made_from),
            "files": list(files),
        }
        self.record_path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.record_path) as temporary:
            temporary.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def _but_formats(made_from: object) -> object:
    """What decides the content, as it comes back from JSON."""
    if not isinstance(made_from, Mapping):
        return made_from
    return json.loads(json.dumps({name: value for name, value in made_from.items() if name != "formats"}, default=str))


def make_output_folder(folder: Path) -> Path:
    """The folder, made when missing. Raises InputError when it is not a folder or not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of a name of its own: the processes of one training begin with the same folder at the same time.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            "an output folder that can be written", f"{folder}: {error.strerror or error}", "give another -o OUT"
        ) from error
    return folder
