"""The rows of the inference benchmark: the package as it is, and every option that it has, switched on one at a time.

Options are found by looking at the signatures of `load_inverse`, `load_forward` and the renderers' ``stream``, so that one that
is new has a row without a word here, as long as its type is bool or Literal; for others the values are listed in `VALUES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from diffusion_renderer import diffusion, editing, pipelines
from diffusion_renderer.pipelines import DiffusionForwardRenderer, DiffusionInverseRenderer

#: Values worth a row, of options whose type does not tell.
VALUES: dict[str, tuple[Any, ...]] = {
    "memory": ("auto", "8GB", "12GB", "24GB", "max"),
    "solver": tuple(name for name in getattr(diffusion, "SOLVERS", ()) if name != "euler"),
    "batch_groups": (1, 2, 5),
}
#: Options that change what is computed, not only how.
OTHER_OUTPUT = {"solver"}
#: What a call is about, and what has rows of its own.
NOT_OPTIONS = {
    "name_or_path",
    "device",
    "dtype",
    "prior",
    "geometry",
    "self",
    "clip",
    "gbuffer",
    "light",
    "camera",
    "rotations",
}
NOT_OPTIONS |= {"buffers", "steps", "guidance", "lora_scale", "seed", "size", "progress", "start", "resume", "state", "noise"}
#: The reference with one pass of a joint model for all its buffers; left out for models that are not.
JOINT = "reference, joint"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STUDENT_STEPS = (1, 2, 4)


@dataclass(frozen=True)
class Row:
    """One way to run the job.

    Attributes
    ----------
    comparable : same steps and the same noise as the reference, so that outputs are compared with its.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    steps: int | None = None
    guidance: float | None = None
    comparable: bool = True


def all_rows(dtype: str, device: torch.device, joint: bool) -> list[Row]:
    """Every row for a job whose networks run in ``dtype``; the published order of work comes first."""
    rows = [Row("reference"), Row(JOINT), Row("package")]
    rows += [Row(name, dtype=name) for name in DTYPES if name != dtype and not (device.type == "cpu" and name == "float16")]
    for name, values in find_options().items():
        rows += [Row(f"{name}={value}", {name: value}, comparable=name not in OTHER_OUTPUT) for value in values]
    rows.append(Row("guidance off", guidance=1.0, comparable=False))
    # With guidance folded in. Time does not depend on the weights' values; what a student's pictures are worth is not seen.
    rows += [Row(f"student of {n} steps", steps=n, guidance=1.0, comparable=False) for n in STUDENT_STEPS]
    return [row for row in rows if joint or row.name != JOINT]


def find_options() -> dict[str, tuple[Any, ...]]:
    """Name and the values to try of every option of the package, other than the default."""
    found: dict[str, tuple[Any, ...]] = {}
    for function in entry_points():
        hints = _hints(function)
        for name, parameter in inspect.signature(function).parameters.items():
            if name in NOT_OPTIONS or parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            values = VALUES.get(name) or _values(hints.get(name))
            kept = tuple(value for value in values if _differs(value, parameter.default))
            if kept:
                found.setdefault(name, kept)
    return found


def entry_points() -> tuple[Callable[..., Any], ...]:
    """The calls whose options are rows."""
    streams = DiffusionInverseRenderer.stream, DiffusionForwardRenderer.stream
    return (pipelines.load_inverse, editing.load_forward, pipelines.load_forward, *streams)


def accepted(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that ``function`` takes by name."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def choose(rows: Iterable[Row], only: list[str]) -> list[Row]:
    """The rows whose names begin with one of ``only``; all without any. The reference is always among them."""
    return [row for row in rows if not only or row.name == "reference" or any(row.name.startswith(name) for name in only)]


def _differs(value: Any, default: Any) -> bool:
    return type(value) is not type(default) or value != default


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # names that are imported for type checkers only
        return {}


def _values(hint: Any) -> tuple[Any, ...]:
    """What an option of this type may be: both truth values, or the literals; nothing for types that do not tell."""
    if hint is bool:
        return (True, False)
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(value for part in get_args(hint) if part is not type(None) for value in _values(part))
