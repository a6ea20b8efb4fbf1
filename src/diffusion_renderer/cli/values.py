"""How one word of the command line becomes a value, and the tyro types made of it.

tyro turns any ValueError of a parser into a box of several lines; ours must be one line. So a bad value travels as
`BadOption`, which tyro lets through, and `app.main` prints the InputError inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from diffusion_renderer.core.errors import InputError

T = TypeVar("T")


class BadOption(Exception):
    """Carries the InputError of an option's value through tyro."""

    def __init__(self, error: InputError) -> None:
        super().__init__(str(error))
        self.error = error


def _reject(expected: str, found: str, advice: str) -> BadOption:
    return BadOption(InputError(expected, found, advice))


def _whole(option: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise _reject(
            f"{option} to be a whole number of at least {least}", f"{text!r}", f"for example {option} {max(least, 1)}"
        )
    return value


def _real(option: str, text: str, least: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise _reject(f"{option} to be a number{bound}", f"{text!r}", f"give {what}")
    return value


def size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and 0 < int(side) <= 16384 for side in sides):
        raise _reject("--size WxH, two whole numbers from 1 to 16384 pixels", f"{text!r}", "for example --size 512x288")
    return int(sides[0]), int(sides[1])


def span(text: str) -> tuple[int, int]:
    """A:B, whole numbers, A below B."""
    ends = text.split(":")
    if len(ends) != 2 or not all(end.isascii() and end.isdigit() for end in ends) or int(ends[0]) >= int(ends[1]):
        raise _reject("--shards A:B, two whole numbers, A below B", f"{text!r}", "for example --shards 0:100; B is left out")
    return int(ends[0]), int(ends[1])


def _frames(text: str) -> int | None:
    if text.lower() == "all":
        return None
    try:
        return _whole("--frames", text, 1)
    except BadOption:
        raise _reject("--frames to be a whole number of at least 1, or all", f"{text!r}", "for example --frames 24") from None


def _light_scale(text: str) -> float | Literal["auto"]:
    if text.lower() == "auto":
        return "auto"
    try:
        return _real("--light-scale", text, 0.0, "")
    except BadOption:
        raise _reject(
            "--light-scale to be auto or a number of at least 0", f"{text!r}", "for example --light-scale 2"
        ) from None


def one(metavar: str, parse: Callable[[str], T], default: str) -> tuple[Any, Any]:
    """The tyro annotation of an option with one value; ``default`` is what the help says for None."""
    spec: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: ["None" if value is None else str(value)],
    )
    return spec, arg(help_behavior_hint=f"(default: {default})")


def several(metavar: str, parse: Callable[[str], T], option: str) -> PrimitiveConstructorSpec[Any]:
    """The values after one occurrence of an option that may be repeated."""

    def parse_all(words: list[str]) -> tuple[T, ...]:
        if not words:
            raise _reject(
                f"at least one value after {option}", "none", f"for example {option} {metavar.split()[0].split('|')[0]}"
            )
        return tuple(parse(word) for word in words)

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=parse_all,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(part) for part in value],
    )


def choice(option: str, valid: Iterable[str]) -> Callable[[str], str]:
    """A parser that takes one of ``valid``."""
    names = tuple(valid)

    def parse(text: str) -> str:
        if text not in names:
            advice = f"for example {option} {names[0]}" if option.startswith("-") else f"for example {names[0]}"
            raise _reject(f"{option} to be one of {', '.join(names)}", f"{text!r}", advice)
        return text

    return parse


def flatten(groups: tuple[tuple[T, ...], ...]) -> tuple[T, ...]:
    """The values of a repeatable option in the order given, each once."""
    return tuple(dict.fromkeys(value for group in groups for value in group))


def count_at_least(option: str, least: int) -> Callable[[str], int]:
    """A parser of whole numbers of at least ``least``."""
    return lambda text: _whole(option, text, least)


def number_at_least(option: str, least: float, what: str) -> Callable[[str], float]:
    """A parser of finite numbers of at least ``least``; ``what`` says what it measures."""
    return lambda text: _real(option, text, least, what)


FORMATS = ("png", "exr", "mp4")

Flag = Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")]
Size = Annotated[tuple[int, int] | None, *one("WxH", size, "the model's own")]
Frames = Annotated[int | None, *one("N|all", _frames, "all")]
Steps = Annotated[int | None, *one("N", count_at_least("--steps", 1), "the model's own")]
Seed = Annotated[int, *one("N", count_at_least("--seed", 0), "0")]
LightScale = Annotated[float | Literal["auto"] | None, *one("auto|X", _light_scale, "auto for tiny, 1 for other models")]
Formats = Annotated[
    tuple[Annotated[tuple[str, ...], several("png|exr|mp4 ...", choice("--format", FORMATS), "--format")], ...], UseAppendAction
]
Paths = Annotated[tuple[Annotated[tuple[Path, ...], several("A.hdr ...", Path, "--light")], ...], UseAppendAction]
