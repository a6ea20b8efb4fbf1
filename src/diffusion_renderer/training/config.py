"""Configuration files: options of training in TOML or JSON, and the record of what a stage was trained with.

Keys are the names of the options. Those at the top count for every stage; a table named like a stage counts for that one::

    preset = "tiny"
    data = ["shards", "real=0.3"]
    batch = 24

    [forward]
    batch = 16
    max_steps = 8000
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import nearest
from diffusion_renderer.io.atomic import atomic_path
from diffusion_renderer.training.data import DataSource
from diffusion_renderer.training.options import STAGES, TrainOptions

log = logging.getLogger(__name__)

#: Name of the record in a stage's folder of a run.
FILE = "config.json"
#: Settings that a continued run may change without changing what it trains; all others are warned of.
HARMLESS = frozenset(
    """out max_steps max_minutes accumulate checkpointing save_minutes save_steps keep explode sheet_steps tensorboard
    start_from device""".split()
)
#: Settings that only some stages read: in the record of another stage they say nothing.
_STUDENT = ("teacher", "student_steps", "method", "teacher_steps", "teacher_guidance")
_ONLY = dict.fromkeys(_STUDENT, ("distill",)) | {
    "lora_rank": ("forward",),
    "estimated_share": ("forward",),
    "augment": ("inverse", "forward", "distill"),
}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path in quotes"}


@dataclass(frozen=True)
class Config:
    """A configuration file, checked.

    Attributes
    ----------
    shared : options that count for every stage.
    tables : those of one stage, of ``all`` (see `session.SessionOptions`), ``autolabel`` and ``estimate``.
    """

    shared: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def options(self, stage: str) -> dict[str, Any]:
        """What the file says of a training stage: its table before what counts for every stage."""
        return {**self.shared, **self.tables.get(stage, {})}

    def table(self, name: str) -> dict[str, Any]:
        """What the file says in one table only."""
        return dict(self.tables.get(name, {}))


def read_config(path: Path) -> Config:
    """Read a .toml or .json file.

    Raises InputError for a file that is not there or cannot be read, and for unknown keys and values of another type, with the
    file, the table and the nearest key. Whether a value makes sense is for the options themselves to say. Paths are taken as
    on the command line: relative to the working directory.
    """
    entries = _parse(path)
    shared: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    known = _known_keys()
    top = {**_shared_keys(), **dict.fromkeys(known, dict)}
    for key, value in entries.items():
        name = _find_key(key, top, f"{path}")
        if name in known:
            tables[name] = _read_table(value, known[name], f"{path}, table [{name}]")
        else:
            shared[name] = _convert(value, top[name], f"{name} in {path}")
    return Config(shared, tables)


def _parse(path: Path) -> Mapping[str, Any]:
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix.lower() not in readers:
        raise InputError("a configuration file .toml or .json", str(path), "rename it, or write one (see docs/training.md)")
    try:
        entries = readers[path.suffix.lower()](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("a configuration file", f"{path}: {error.strerror or error}", "check --config") from error
    except ValueError as error:
        raise InputError(f"readable {path.suffix[1:].upper()} in {path}", str(error), "correct that line") from error
    if not isinstance(entries, dict):
        raise InputError(f"names and values in {path}", type(entries).__name__, 'write {"batch": 16} for example')
    return entries


def _read_table(entries: Any, hints: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(entries, dict):
        raise InputError(f"names and values in {where}", repr(entries), "make it a table of options")
    found = {}
    for key, value in entries.items():
        name = _find_key(key, hints, where)
        found[name] = _convert(value, hints[name], f"{name} in {where}")
    return found


def _find_key(key: str, valid: Mapping[str, Any], where: str) -> str:
    """The option that a key names; ``-`` and ``_`` are alike."""
    name = key.replace("-", "_")
    if name in valid:
        return name
    guess = nearest(key, valid)
    raise InputError(
        f"the name of an option in {where}", repr(key), f"did you mean {guess}?" if guess else f"one of {', '.join(valid)}"
    )


def _shared_keys() -> dict[str, Any]:
    """Option -> type, of the top of a file."""
    return {"preset": str, **get_type_hints(TrainOptions)}


def _known_keys() -> dict[str, dict[str, Any]]:
    """Table -> option -> type. A run has one folder and one preset, so that these stand at the top only."""
    from diffusion_renderer.training.autolabel import AutolabelOptions
    from diffusion_renderer.training.estimate import EstimateOptions
    from diffusion_renderer.training.session import SessionOptions

    stage = {name: hint for name, hint in get_type_hints(TrainOptions).items() if name != "out"}
    return dict.fromkeys(STAGES, stage) | {
        "all": get_type_hints(SessionOptions),
        "autolabel": get_type_hints(AutolabelOptions),
        "estimate": get_type_hints(EstimateOptions),
    }


def _convert(value: Any, hint: Any, where: str) -> Any:
    """A value of a file as the type of its option: paths of words, floats of whole numbers, tuples of lists.

    A single value will do for a list of one.
    """
    if get_origin(hint) in (Union, UnionType):
        if str in get_args(hint) and isinstance(value, str):
            return value
        choices = get_args(hint)
        if value is None and type(None) in choices:
            return None
        chosen = [choice for choice in choices if choice is not type(None)]
        return _convert(value, str if str in chosen else chosen[0], where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            valid = ", ".join(map(str, get_args(hint)))
            raise InputError(f"{where}: one of {valid}", repr(value), f"choose one of {valid}")
        return value
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return tuple(_convert(part, inner, where) for part in (value if isinstance(value, list) else [value]))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in _KINDS and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise InputError(f"{where} to be {_KINDS[hint]}", json.dumps(value, default=str), "correct the value")
    return value


def to_record(preset: str, options: TrainOptions) -> dict[str, Any]:
    """The effective settings as plain values."""
    return {"preset": preset, **{item.name: _plain(getattr(options, item.name)) for item in fields(options)}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, DataSource):
        return str(value.path) if value.weight is None else f"{value.path}={value.weight:g}"
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def keep_record(folder: Path, stage: str, preset: str, options: TrainOptions) -> list[str]:
    """Write the effective settings into a stage's folder; returns the names of those that an earlier run had otherwise.

    Only settings that change what the stage learns are compared, and only where it has a checkpoint to go on from. One warning
    names them with both values. A record that is damaged is replaced.
    """
    record = to_record(preset, options)
    changed = _changed(_read_record(folder / FILE), record, stage) if any(folder.glob("checkpoint*")) else {}
    if changed:
        told = ", ".join(f"{name} {json.dumps(now)} (before: {json.dumps(then)})" for name, (then, now) in changed.items())
        log.warning("%s goes on with other settings, which change its result: %s", folder.name, told)
    with atomic_path(folder / FILE) as part:
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return list(changed)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], stage: str) -> dict[str, tuple[Any, Any]]:
    """Settings of a stage that are in both records and differ."""
    return {
        name: (before[name], now[name])
        for name in now
        if name in before and before[name] != now[name] and name not in HARMLESS and stage in _ONLY.get(name, STAGES)
    }
