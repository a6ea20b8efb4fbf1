"""Names of results, so that none overwrites another."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names in order, with ``-2``, ``-3``, ... added to those that came before; case is ignored, as on some disks.

    A name that is unique keeps itself: ``["sky", "sun", "sky"]`` gives ``["sky", "sun", "sky-2"]``.
    """
    taken: set[str] = {name.casefold() for name in names}
    seen: set[str] = set()
    distinct = []
    for name in names:
        candidate, number = name, 2
        while candidate.casefold() in seen or (number > 2 and candidate.casefold() in taken):
            candidate, number = f"{name}-{number}", number + 1
        seen.add(candidate.casefold())
        distinct.append(candidate)
    return distinct


def relit_name(clip: str, light: str) -> str:
    """Name of ``clip`` under ``light``."""
    return f"{clip}_{light}"
