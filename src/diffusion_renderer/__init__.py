"""Open DiffusionRenderer: videos to G-buffers, G-buffers and light back to videos.

    import diffusion_renderer as dr
    gbuffer = dr.load_inverse("tiny")(dr.Clip.read("shot.mp4"))
    relit = dr.load_forward("tiny")(gbuffer, dr.EnvironmentMap.read("sunset.hdr"))
    relit.write("relit.mp4")

Importing this module loads neither torch nor any other heavy library; the names below load theirs on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from diffusion_renderer.core import persistence

__version__ = "0.1.0"

_EXPORTS = {
    "Clip": "core.types",
    "GBuffer": "core.types",
    "EnvironmentMap": "core.types",
    "Camera": "core.types",
    "InputError": "core.errors",
    "load_inverse": "pipelines",
    "load_forward": "editing",
}

__all__ = ["Camera", "Clip", "EnvironmentMap", "GBuffer", "InputError", "load_forward", "load_inverse"]


def _on_first_use(module: str, function: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return getattr(import_module(f"diffusion_renderer.{module}"), function)(*args, **options)

    return call


# `core` declares Clip.read and its siblings, `io` implements them; only this module may know both.
for _kind, _noun in (("Clip", "clip"), ("GBuffer", "gbuffer"), ("EnvironmentMap", "environment"), ("Camera", "cameras")):
    persistence.register(_kind, _on_first_use("io", f"read_{_noun}"), _on_first_use("io", f"write_{_noun}"))


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"diffusion_renderer.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
