"""What is evaluated: renderers by name, constants, and the output folders of other systems, all asked the same questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Clip, GBuffer
from diffusion_renderer.editing import check_model, load_forward
from diffusion_renderer.evaluation.baselines import Constants, base_color_times_light
from diffusion_renderer.evaluation.predictions import Predictions
from diffusion_renderer.evaluation.views import View
from diffusion_renderer.io.fingerprint import fingerprint
from diffusion_renderer.models import Kind
from diffusion_renderer.pipelines import load_inverse, weights_fingerprint
from diffusion_renderer.render import RENDERERS

#: Baselines that are computed from the truth or the input alone, by task, and what they are.
SIMPLE = {
    "inverse": {
        "constant": "the best constant for the clips that are scored",
        "input": "the input frame as base colour",
    },
    "forward": {
        "constant": "the mean of all true frames",
        "clip-mean": "each clip's mean colour",
        "basecolor": "base colour, unlit",
        "basecolor-light": "base colour under the mean of the panorama",
    },
    "relight": {
        "constant": "the mean of all true frames",
        "clip-mean": "each clip's mean colour",
        "input": "the input, not relit",
    },
}
#: The classical renderers that have all they need in G-buffers and a panorama.
CLASSICAL = tuple(name for name in RENDERERS if name != "pathtrace")


@runtime_checkable
class System(Protocol):
    """Whatever turns clips into G-buffers, or G-buffers and lights into clips."""

    name: str
    #: Whether it makes G-buffers; classical renderers do not.
    makes_buffers: bool

    def identity(self) -> dict[str, Any]:
        """What decides its results, as plain values: results of the same identity need not be made again."""
        ...

    def buffers(self, view: View) -> GBuffer:
        """The G-buffers of a clip."""
        ...

    def relit(self, source: View | None, targets: Sequence[View]) -> Iterator[Clip]:
        """The clip under the lights of ``targets``: from its true G-buffers, or from ``source``, it under another light."""
        ...


@dataclass
class Estimates:
    """The inverse renderer that several systems share; the last clip's G-buffers are kept for the next of them."""

    model: str
    steps: int | None = None
    #: What the weights are; see `weights_of`.
    weights: str | None = None
    _last: tuple[str, str, GBuffer] | None = field(default=None, repr=False)

    @cached_property
    def _inverse(self) -> Any:
        return load_inverse(self.model)

    def __call__(self, view: View) -> GBuffer:
        if self._last is None or self._last[:2] != (view.name, view.light):
            self._last = (view.name, view.light, self._inverse(view.clip, buffers=DEFAULT_BUFFERS, steps=self.steps))
        return self._last[2]

    def identity(self) -> dict[str, Any]:
        """What decides the estimates, as plain values."""
        return {"inverse": self.model, "weights": self.weights, "steps": self.steps}


@dataclass
class Renderer:
    """A forward renderer by name, and the inverse renderer whose estimates it relights; None where true G-buffers go in."""

    name: str
    forward_name: str
    estimates: Estimates | None
    steps: int | None = None
    lora_scale: float | None = None
    weights: str | None = None

    @property
    def makes_buffers(self) -> bool:
        return self.forward_name not in RENDERERS

    @cached_property
    def _forward(self) -> Any:
        return load_forward(self.forward_name)

    def identity(self) -> dict[str, Any]:
        return {
            "forward": self.forward_name,
            "steps": self.steps,
            "lora_scale": self.lora_scale,
            "weights": self.weights,
            "estimates": self.estimates and self.estimates.identity(),
        }

    def buffers(self, view: View) -> GBuffer:
        return self.estimates(view)

    def relit(self, source: View | None, targets: Sequence[View]) -> Iterator[Clip]:
        for target in targets:
            gbuffer = target.sample.gbuffer if source is None else self.estimates(source)
            light, rotations = target.lit()
            options = {"camera": target.sample.camera, "rotations": rotations}
            if self.forward_name not in RENDERERS:
                options |= {"steps": self.steps, "lora_scale": self.lora_scale}
            yield self._forward(gbuffer, light, **options)


@dataclass
class Simple:
    """A baseline of `SIMPLE`: it needs no renderer, but ``constant`` needs the truth of all clips."""

    name: str
    constants: Constants | None = None
    makes_buffers: bool = True

    def identity(self) -> dict[str, Any]:
        return {"baseline": self.name, "constants": None if self.constants is None else self.constants.digest()}

    def buffers(self, view: View) -> GBuffer:
        if self.name == "input":
            return GBuffer(basecolor=srgb_eotf(view.clip.frames), fps=view.clip.fps, name=view.name)
        return self._constants().buffers(view.sample)

    def relit(self, source: View | None, targets: Sequence[View]) -> Iterator[Clip]:
        for target in targets:
            yield Clip(self._frames(source, target), target.clip.fps, target.name)

    def _frames(self, source: View | None, target: View) -> Tensor:
        truth = target.clip.frames
        if self.name == "constant":
            return self._constants().image(target.clip.size).expand_as(truth)
        if self.name == "clip-mean":
            return truth.mean(dim=(0, 2, 3), keepdim=True).expand_as(truth)
        if self.name == "input" and source is not None:
            return source.clip.frames
        target.sample.gbuffer.require(("basecolor",))
        basecolor = target.sample.gbuffer.basecolor
        if self.name == "basecolor":
            return srgb_oetf(basecolor)
        return base_color_times_light(basecolor, target.lit()[0])

    def _constants(self) -> Constants:
        if self.constants is None:
            raise ValueError("the constants of the clips that are scored")
        return self.constants


@dataclass
class Folder:
    """The output folder of any other system."""

    name: str
    predictions: Predictions
    makes_buffers: bool = True

    def identity(self) -> dict[str, Any]:
        return {"predictions": self._files}

    @cached_property
    def _files(self) -> str:
        return fingerprint(self.predictions.folder)

    def buffers(self, view: View) -> GBuffer:
        return self.predictions.load_buffers(view.name)

    def relit(self, source: View | None, targets: Sequence[View]) -> Iterator[Clip]:
        for target in targets:
            yield self.predictions.load(target.name, target.light)


def baseline_names(task: str) -> tuple[str, ...]:
    """The baselines that a task can be compared with."""
    simple = tuple(SIMPLE.get(task, ()))
    return simple if task == "inverse" else (*RENDERERS, *simple)


def applicable(task: str, names: Sequence[str]) -> tuple[str, ...]:
    """The baselines among ``names`` that mean something for a task, each once: one list serves several tasks.

    Raises InputError, naming the nearest valid one, for a name that no task knows.
    """
    known = tuple(dict.fromkeys((*RENDERERS, *(name for simple in SIMPLE.values() for name in simple))))
    for name in names:
        check_name("baseline", name, known)
    return tuple(name for name in dict.fromkeys(names) if name in baseline_names(task))


def check_systems(task: str, models: Sequence[str], predictions: Sequence[str] = ()) -> None:
    """Find models and folders before any work is done. Raises InputError for those that do not exist or are of the wrong
    kind."""
    for text in predictions:
        name, folder = folder_name(text)
        Predictions(folder, name)
    for name in models:
        if name in RENDERERS and name not in CLASSICAL:
            advice = f"give --baseline {name}, which traces the clips' own scenes"
            raise InputError("a model that is given G-buffers", name, advice)
        both: tuple[Kind, ...] = ("forward",) if name in CLASSICAL else ("inverse", "forward")
        for kind in both if task in ("relight", "temporal") else (task,):
            check_model(name, kind)


def folder_name(text: str) -> tuple[str, Path]:
    """``NAME=DIR`` or ``DIR``, whose last part is then the name. A folder whose own name has the sign is a ``DIR``."""
    name, sign, rest = text.partition("=")
    named = sign and name and "/" not in name and not Path(text).is_dir()
    return (name, Path(rest)) if named else (Path(text).resolve().name, Path(text))


def weights_of(model: str) -> str | None:
    """What a model's weights are; None for a renderer that has none and for a model that is not on this machine."""
    return None if model in RENDERERS else weights_fingerprint(model)
