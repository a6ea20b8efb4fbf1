"""What callers of a forward renderer look at, for the classical ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffusion_renderer.core.types import DEFAULT_BUFFERS

#: Called as ``progress(done, total, what)``; the same as of the diffusion renderers.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ClassicalSettings:
    """Settings of a classical renderer, under the names that the diffusion renderers' settings have.

    Attributes
    ----------
    buffers : the buffers that the renderer reads.
    light_luminance : darkest and brightest mean luminance of panoramas that it can render; None because any will do.
    """

    buffers: tuple[str, ...] = DEFAULT_BUFFERS
    light_luminance: tuple[float, float] | None = None
