"""What has been computed, kept per system and clip, so that an evaluation that was interrupted continues."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusion_renderer.evaluation.results import Figure, Picture
from diffusion_renderer.io.atomic import write_bytes


@dataclass(frozen=True)
class Records:
    """The results of one task on one set of clips, a JSON file per system and clip below ``folder``.

    A file counts only when it was made for the same ``key``: all that decides the figures, the system's identity included.
    """

    folder: Path

    def load(self, system: str, clip: str, key: dict[str, Any]) -> tuple[list[Figure], list[Picture]] | None:
        """Figures and pictures of a clip; None when they are not there, damaged, or of something else."""
        try:
            stored = json.loads(self._path(system, clip).read_text())
            if stored["key"] != digest(key):
                return None
            figures = [Figure(**{**entry, "value": _number(entry["value"])}) for entry in stored["figures"]]
            pictures = [
                Picture(**{**entry, "image": _bytes(entry["image"]), "error": _bytes(entry["error"])})
                for entry in stored["pictures"]
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return figures, pictures

    def save(self, system: str, clip: str, key: dict[str, Any], figures: Sequence[Figure], pictures: Sequence[Picture]) -> None:
        """Keep a clip's results; the file is complete or not there."""
        stored = {
            "key": digest(key),
            "figures": [{**asdict(figure), "value": _text(figure.value)} for figure in figures],
            "pictures": [{**vars(item), "image": _base64(item.image), "error": _base64(item.error)} for item in pictures],
        }
        path = self._path(system, clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(stored).encode())

    def _path(self, system: str, clip: str) -> Path:
        return self.folder / re.sub(r"[^\w.+-]+", "_", system) / f"{clip}.json"


def digest(key: dict[str, Any]) -> str:
    """A short name of plain values."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _text(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
