"""Licences: a MANIFEST.csv beside or above the assets, or Objaverse's annotations."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.objects import Source

MANIFEST = "MANIFEST.csv"
_ANNOTATIONS = ("annotations.json", "annotations.json.gz")
_KINDS = {"hdri": "panorama", "hdr": "panorama"}
#: Objaverse's short names (Sketchfab's) as SPDX names.
_SPDX = {
    "by": "CC-BY-4.0",
    "by-sa": "CC-BY-SA-4.0",
    "by-nd": "CC-BY-ND-4.0",
    "by-nc": "CC-BY-NC-4.0",
    "by-nc-sa": "CC-BY-NC-SA-4.0",
    "by-nc-nd": "CC-BY-NC-ND-4.0",
    "cc0": "CC0-1.0",
}


class Licences:
    """What is known about the assets of one folder. Files are read on the first question."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._by_path: dict[Path, tuple[str, str]] | None = None
        self._by_name: dict[str, tuple[str, str]] = {}

    def source(self, name: str, path: Path) -> Source:
        """The source of the asset ``name`` at ``path`` (a file or a folder); its licence is "unknown" without an entry."""
        if self._by_path is None:
            self._by_path = {}
            self._read()
        short = name.rpartition("/")[2]
        entry = self._by_path.get(path) or self._by_name.get(name) or self._by_name.get(short)
        licence, author = entry or ("unknown", "")
        return Source(name, self._kind, licence or "unknown", author)

    def _read(self) -> None:
        for folder in (self._folder, self._folder.parent):
            for name in _ANNOTATIONS:
                if (folder / name).is_file():
                    self._read_annotations(folder / name)
            if (folder / MANIFEST).is_file():
                self._read_manifest(folder / MANIFEST)
                return

    def _read_manifest(self, path: Path) -> None:
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"a readable table in {path}", str(error), "save it as CSV in UTF-8") from error
        if rows and "licence" not in rows[0]:
            raise InputError(
                f"a column 'licence' in {path}", ", ".join(map(str, rows[0])), "add the column, or remove the file"
            )
        for row in rows:
            kind = row.get("kind") or self._kind
            if _KINDS.get(kind, kind) != self._kind:
                continue
            entry = (row.get("licence") or "unknown", row.get("author") or "")
            if row.get("path"):
                file = path.parent / row["path"]
                self._by_path[file] = self._by_path[file.parent] = entry
            if row.get("name"):
                self._by_name.setdefault(row["name"], entry)

    def _read_annotations(self, path: Path) -> None:
        data = path.read_bytes()
        try:
            entries = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
            for uid, entry in entries.items():
                licence = str(entry.get("license") or "unknown")
                user = entry.get("user") or {}
                author = str(user.get("displayName") or user.get("username") or "")
                self._by_name.setdefault(uid, (_SPDX.get(licence, licence), author))
        except (OSError, ValueError, AttributeError) as error:
            advice = "fetch it again, or remove it"
            raise InputError(f"Objaverse's annotations in {path}", str(error), advice) from error
