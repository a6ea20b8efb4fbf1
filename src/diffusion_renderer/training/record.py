"""Which assets a stage was trained on: ``assets.json`` in its folder of the run; `export.assemble` passes it on to models."""

from __future__ import annotations

import json
from pathlib import Path

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.assets.record import AssetRecord

FILE = "assets.json"


def read_record(stage: Path) -> AssetRecord | None:
    """The record in a stage's folder of a run, None where there is none. Raises InputError for a damaged file."""
    path = stage / FILE
    if not path.exists():
        return None
    try:
        return AssetRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError, TypeError) as error:
        advice = "delete it: what the stage has seen so far then counts as unknown"
        raise InputError(f"a list of assets in {path}", str(error), advice) from error


def extend_record(stage: Path, more: AssetRecord) -> AssetRecord:
    """Add to the record in a stage's folder before the stage trains or is given networks; returns what it says now.

    A folder that has networks or checkpoints and no record was trained before there were any: what it saw is unknown.
    """
    known = read_record(stage)
    if known is None:
        trained = stage.is_dir() and any(path.is_dir() for path in stage.iterdir())
        known = AssetRecord(complete=not trained)
    known |= more
    stage.mkdir(parents=True, exist_ok=True)
    part = stage / f"{FILE}.part"
    part.write_text(json.dumps(known.to_json()), encoding="utf-8")
    part.replace(stage / FILE)
    return known
