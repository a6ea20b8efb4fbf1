"""Names that a user types: "did you mean"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from diffusion_renderer.core.errors import InputError


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to ``name`` in spelling, or None when none is close; letter case and ``-``/``_`` do not count."""
    plain = {_plain(option): option for option in valid}
    close = get_close_matches(_plain(name), plain, n=1, cutoff=0.5)
    return plain[close[0]] if close else None


def check_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return ``name`` when it is one of ``valid``, else raise InputError that suggests the nearest one."""
    options = tuple(valid)
    if name in options:
        return name
    guess = nearest(name, options)
    advice = f"did you mean {guess}?" if guess else f"choose one of {', '.join(options)}"
    raise InputError(f"{kind}: one of {', '.join(options)}", repr(name), advice)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
