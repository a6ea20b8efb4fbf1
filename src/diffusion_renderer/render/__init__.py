"""Classical renderers: split-sum, screen-space ray tracing, path tracing.

picture = load_renderer("splitsum")(gbuffer, light)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.render.surface import Surface, surfaces

if TYPE_CHECKING:
    from diffusion_renderer.render.pathtrace import PathTracer
    from diffusion_renderer.render.prior import Prior
    from diffusion_renderer.render.splitsum import SplitSum
    from diffusion_renderer.render.ssrt import ScreenSpaceRayTracer

__all__ = ["RENDERERS", "PathTracer", "Prior", "ScreenSpaceRayTracer", "SplitSum", "Surface", "load_renderer", "surfaces"]

#: Names of the classical forward renderers; each is also the name of its module.
RENDERERS = ("splitsum", "ssrt", "pathtrace")
_CLASSES = {"splitsum": "SplitSum", "ssrt": "ScreenSpaceRayTracer", "pathtrace": "PathTracer"}


def load_renderer(name: str, device: str | torch.device | None = None, **options: Any) -> Any:
    """The forward renderer of this name (`RENDERERS`), made with ``options``.

    ``device`` is where it computes; None leaves the choice to the renderer. The path tracer has none of its own: Mitsuba's
    variant decides. Raises InputError for an unknown name or an option that the renderer does not have.
    """
    check_name("a classical renderer", name, RENDERERS)
    renderer = getattr(import_module(f"{__name__}.{name}"), _CLASSES[name])
    if device is not None and name != "pathtrace":
        options = {**options, "device": device}
    try:
        return renderer(**options)
    except TypeError as error:
        raise InputError(f"options of the renderer {name}", str(error), "see docs/renderers.md for its options") from error


def __getattr__(name: str) -> Any:
    """The renderers' classes, imported when first asked for: each pulls in modules that the others do not need."""
    for module, class_name in {**_CLASSES, "prior": "Prior"}.items():
        if class_name == name:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
