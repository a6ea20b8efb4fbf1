"""What a model's training.json says about the assets that its stages have seen: written by training, read by evaluations.

A stage's entry holds ``"assets": {"model": [...], "material": [...], "panorama": [...]}`` and ``"assets_complete": true`` (or
false) beside its steps and seconds. A list that is not complete says what is known: some of the stage's data left no record. A
stage without "assets" has no record at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.assets.split import NamedAssets, by_kind, from_kinds


@dataclass(frozen=True)
class AssetRecord:
    """The models, materials and panoramas of a stage's data; procedural ones do not count.

    Attributes
    ----------
    assets : (kind, name) of each.
    complete : False when the stage has also seen data that nothing is known about.
    """

    assets: NamedAssets = frozenset()
    complete: bool = True

    def __or__(self, other: AssetRecord) -> AssetRecord:
        return AssetRecord(self.assets | other.assets, self.complete and other.complete)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a stage's entry of training.json."""
        return {"assets": by_kind(self.assets), "assets_complete": self.complete}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> AssetRecord:
        """The inverse of `to_json`; an entry without a record is empty and not complete."""
        return cls(from_kinds(entry.get("assets", {})), bool(entry.get("assets_complete", False)))


def read_records(model: Path) -> dict[str, AssetRecord]:
    """The record of every stage in a model's training.json; empty where there is no such file.

    Raises InputError when it cannot be read.
    """
    path = model / "training.json"
    if not path.is_file():
        return {}
    try:
        return {stage: AssetRecord.from_json(entry) for stage, entry in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"a training record in {path}", str(error), "copy or download it again") from error
