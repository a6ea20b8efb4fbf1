"""The path tracer as a row of the table: it has the scene itself, so it shows how exact the truth is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_renderer.core.types import Clip, GBuffer
from diffusion_renderer.datagen import retrace
from diffusion_renderer.evaluation.views import View, views


@dataclass
class Retraced:
    """Renders each clip's scene once more with other random numbers; no G-buffers go in.

    Only for clips that the data engine rendered, and with their assets at hand (``folders``): see `datagen.retrace`.
    """

    folders: dict[str, Path | None] = field(default_factory=dict)
    name: str = "pathtrace"
    makes_buffers: bool = False

    def identity(self) -> dict[str, Any]:
        """The scene is the clip's own, so nothing else decides."""
        return {"retraced": True}

    def buffers(self, view: View) -> GBuffer:
        """It is given the scene and finds nothing."""
        raise NotImplementedError("the path tracer makes no G-buffers")

    def relit(self, source: View | None, targets: Sequence[View]) -> Iterator[Clip]:
        """The clips under the targets' lights; all lights of the scene are traced at once."""
        if not targets:
            return
        sample = targets[0].sample
        by_light = dict(zip([view.light for view in views(sample)], retrace(sample, **self.folders), strict=True))
        for target in targets:
            yield by_light[target.light]
