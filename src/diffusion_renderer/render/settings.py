"""What callers of a forward renderer look at, for the classical ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from diffusion_renderer.core.sources import GBufferSource
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Clip, EnvironmentMap

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


class ClassicalRenderer:
    """What the classical renderers share: a call is all of `stream`, in memory. See `pipelines.ForwardRenderer`."""

    settings = ClassicalSettings()

    def __call__(self, gbuffer: GBufferSource, light: EnvironmentMap, **options: Any) -> Clip:
        """The shot under ``light``, at the G-buffers' size, on the CPU; ``options`` and errors are those of `stream`."""
        return Clip.join(self.stream(gbuffer, light, **options), len(gbuffer))

    def stream(self, gbuffer: GBufferSource, light: EnvironmentMap, **options: Any) -> Iterator[Clip]:
        """The same, a few frames at a time; every renderer has its own."""
        raise NotImplementedError
