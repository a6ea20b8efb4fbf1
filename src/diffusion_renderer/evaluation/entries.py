"""The rows of one table: models, predictions and baselines, made ready to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.editing import distinct_names
from diffusion_renderer.evaluation.baselines import Constants
from diffusion_renderer.evaluation.clips import Data, Progress
from diffusion_renderer.evaluation.options import EvaluateOptions
from diffusion_renderer.evaluation.predictions import Expected, Predictions
from diffusion_renderer.evaluation.retraced import Retraced
from diffusion_renderer.evaluation.systems import (
    CLASSICAL,
    Estimates,
    Folder,
    Renderer,
    Simple,
    System,
    applicable,
    folder_name,
    weights_of,
)

#: What stands beside the models when the user does not say. Screen-space ray tracing is slow: only when asked for.
USUAL_BASELINES = {
    "inverse": ("constant", "input"),
    "forward": ("splitsum", "constant", "clip-mean", "basecolor-light"),
    "relight": ("splitsum", "constant", "clip-mean", "input"),
    "temporal": (),
}
#: Rows that are not a system's: no folder of predictions is named like them.
_RESERVED = ("truth", "input")


def baselines_of(task: str, options: EvaluateOptions) -> tuple[str, ...]:
    """The baselines that the user names and that mean something for the task, else the usual ones."""
    return applicable(task, USUAL_BASELINES[task] if options.baselines is None else options.baselines)


def find_systems(task: str, data: Data, baselines: Sequence[str], options: EvaluateOptions, tell: Progress) -> list[System]:
    """Everything that is compared, under names of its own: the first model first, then predictions, then baselines.

    Raises InputError when nothing makes the G-buffers that the task needs, and for predictions that are not complete.
    """
    estimates = [Estimates(model, options.steps, weights_of(model)) for model in options.models if model not in CLASSICAL]
    if task != "forward" and not estimates:
        expected = "a model that makes G-buffers, first among --model"
        raise InputError(expected, ", ".join(options.models), "give tiny, a folder or an id before it")
    # The true G-buffers go into forward renderers, so that no estimate decides their results.
    shared = estimates[0] if task != "forward" else None
    systems: list[System] = []
    for model in options.models:
        own = next((item for item in estimates if item.model == model and shared is not None), shared)
        systems.append(_renderer(model, own, options))
    systems += [_predictions(task, data, text, options) for text in options.predictions]
    for name in baselines:
        if name == "pathtrace":
            folders = {"models": options.models_folder, "materials": options.materials, "panoramas": options.panoramas}
            systems.append(Retraced(folders))
        else:
            systems.append(_renderer(name, shared, options) if name in CLASSICAL else Simple(name))
    if "constant" in baselines:
        tell(0, data.count or 1, "measuring the best constants")
        constants = Constants.measure(data.read())
        systems = [replace(item, constants=constants) if isinstance(item, Simple) else item for item in systems]
    _name_apart(systems)
    return systems


def _renderer(name: str, estimates: Estimates | None, options: EvaluateOptions) -> Renderer:
    """A model or a classical renderer, which knows nothing of steps and weights."""
    if name in CLASSICAL:
        return Renderer(name, name, estimates)
    return Renderer(name, name, estimates, options.steps, options.lora_scale, weights_of(name))


def _name_apart(systems: Sequence[System]) -> None:
    """Baselines and renderers keep their names; predictions that are named like them get a number."""
    baselines = [system for system in systems if isinstance(system, Simple)]
    others = sorted((system for system in systems if not isinstance(system, Simple)), key=lambda item: isinstance(item, Folder))
    taken = [*_RESERVED, *(system.name for system in baselines if system.name not in _RESERVED)]
    names = distinct_names([*taken, *(system.name for system in others)])[len(taken) :]
    for system, name in zip(others, names, strict=True):
        system.name = name


def _predictions(task: str, data: Data, text: str, options: EvaluateOptions) -> Folder:
    """A folder of predictions, checked against every clip before anything is computed."""
    name, folder = folder_name(text)
    predictions = Predictions(folder, name)
    buffers: tuple[str, ...] = ()
    if task in ("inverse", "temporal"):
        found = predictions.buffers(sample.clip.name for sample in data.read())
        buffers = tuple(buffer for buffer in data.buffers if buffer in found)
    expected = []
    for sample in data.read():
        size, frames, clip = sample.clip.size, len(sample.clip), sample.clip.name
        expected += [Expected(clip, view.light, frames, size) for view in data.targets(sample)]
        if task == "inverse" or (task == "temporal" and buffers):
            expected.append(Expected(clip, "", frames, size, buffers or data.buffers))
    predictions.check(expected)
    return Folder(name, predictions, makes_buffers=bool(buffers))
