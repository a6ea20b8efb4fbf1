"""What any inverse and forward renderer can do, so that evaluation, editing and the command line take them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.sources import ClipSource, GBufferSource
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.pipelines.settings import RendererSettings

#: Called as ``progress(done, total, what)``; ``what`` names the stage, each of which counts to its own total.
Progress = Callable[[int, int, str], None]


@runtime_checkable
class InverseRenderer(Protocol):
    """Clip to G-buffers."""

    settings: RendererSettings

    def __call__(
        self,
        clip: ClipSource,
        *,
        buffers: Sequence[str] = DEFAULT_BUFFERS,
        steps: int | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
        solver: str | None = None,
    ) -> GBuffer:
        """The G-buffers of a clip, at its size."""
        ...

    def stream(self, clip: ClipSource, **options: Any) -> Iterator[GBuffer]:
        """The same, with the same options, a few frames at a time."""
        ...


@runtime_checkable
class ForwardSettings(Protocol):
    """What the callers of a forward renderer look at: the buffers that it reads, and the brightness of the lights it knows."""

    @property
    def buffers(self) -> tuple[str, ...]: ...

    @property
    def light_luminance(self) -> tuple[float, float] | None: ...


@runtime_checkable
class ForwardRenderer(Protocol):
    """G-buffers and a light to a clip. ``camera`` holds the frames' poses and fields of view: classical renderers need them."""

    settings: ForwardSettings

    def __call__(
        self,
        gbuffer: GBufferSource,
        light: EnvironmentMap,
        *,
        camera: Camera | None = None,
        rotations: Float[Tensor, "frames 3 3"] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        lora_scale: float | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
        solver: str | None = None,
    ) -> Clip:
        """The shot that the G-buffers show under the light, at their size."""
        ...

    def stream(self, gbuffer: GBufferSource, light: EnvironmentMap, **options: Any) -> Iterator[Clip]:
        """The same, with the same options, a few frames at a time."""
        ...
