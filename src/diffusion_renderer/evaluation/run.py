"""One evaluation: clips, systems, figures, report; what was computed before is kept."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from diffusion_renderer import __version__
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import DEFAULT_BUFFERS
from diffusion_renderer.datagen import Sample, read_shards
from diffusion_renderer.editing import distinct_names
from diffusion_renderer.evaluation.baselines import Constants
from diffusion_renderer.evaluation.export import export_inputs
from diffusion_renderer.evaluation.leaks import assets_in, check_unseen, training_assets
from diffusion_renderer.evaluation.metrics import Metric
from diffusion_renderer.evaluation.options import EvaluateOptions
from diffusion_renderer.evaluation.predictions import Expected, Predictions
from diffusion_renderer.evaluation.published import case_figures, find_benchmark
from diffusion_renderer.evaluation.records import Records
from diffusion_renderer.evaluation.report import write_report
from diffusion_renderer.evaluation.results import Figure, Picture, Results
from diffusion_renderer.evaluation.retraced import Retraced
from diffusion_renderer.evaluation.suites import SUITES, find_suite, read_suite, render_suite
from diffusion_renderer.evaluation.systems import (
    CLASSICAL,
    Estimates,
    Folder,
    Renderer,
    Simple,
    System,
    applicable,
    check_systems,
    folder_name,
    weights_of,
)
from diffusion_renderer.evaluation.tasks import (
    PROTOCOLS,
    TASKS,
    answers,
    clip_motion,
    columns,
    figures,
    pictures,
    references,
    targets_of,
)
from diffusion_renderer.io.fingerprint import fingerprint

Progress = Callable[[int, int, str], None]

#: What stands beside the models when the user does not say. Screen-space ray tracing is slow: only when asked for.
USUAL_BASELINES = {
    "inverse": ("constant", "input"),
    "forward": ("splitsum", "constant", "clip-mean", "basecolor-light"),
    "relight": ("splitsum", "constant", "clip-mean", "input"),
    "temporal": (),
}


@dataclass(frozen=True)
class Data:
    """The clips of one table: a name, where they lie, and how they are read, one at a time."""

    name: str
    folder: Path
    read: Callable[[], Iterator[Sample]]
    count: int | None = None


def evaluate(task: str, options: EvaluateOptions, progress: Progress | None = None) -> list[Results]:
    """Score on every suite; writes each report into ``options.out`` (see `report.write_report`) and returns the results.

    Whatever was computed for the same clips, systems and metrics before is taken from ``options.out``. Raises InputError for
    unknown names, models that were trained on the clips' assets, and predictions that are not complete.
    """
    check_name("evaluation task", task, TASKS)
    if options.benchmark is not None:
        results = _score_published(task, options, progress or _silent)
        write_report(results, options.out)
        return [results]
    chosen = columns(task, options.metrics)
    baselines = applicable(task, USUAL_BASELINES[task] if options.baselines is None else options.baselines)
    check_systems(task, options.models)
    tell = progress or _silent
    found = []
    for name in _names(options):
        results = _score(task, _data(task, name, options, tell), chosen, baselines, options, tell)
        write_report(results, options.out)
        found.append(results)
    return found


def export(task: str, options: EvaluateOptions, folder: Path, progress: Progress | None = None) -> Path:
    """Write what systems are given, for those that do not run here, below ``folder``, a folder for each suite."""
    check_name("evaluation task", task, TASKS)
    tell = progress or _silent
    for name in _names(options):
        data = _data(task, name, options, tell)
        export_inputs(data.read(), folder / data.name, partial(_count, tell, count(1), data.count or 1))
    return folder


def _count(tell: Progress, numbers: Iterator[int], total: int, clip: str) -> None:
    tell(next(numbers), total, "exporting")


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""


def _names(options: EvaluateOptions) -> tuple[str, ...]:
    if options.data is not None:
        return ("data",)
    for name in options.suites:
        check_name("suite", name, SUITES)
    return options.suites


def _data(task: str, name: str, options: EvaluateOptions, tell: Progress) -> Data:
    if options.data is not None:
        return Data(Path(options.data).resolve().name, options.data, lambda: read_shards(options.data))
    # A quick look has one light; relighting needs a second one.
    least = 2 if task == "relight" and name == "small" else None
    suite = find_suite(
        name,
        clips=options.clips,
        frames=options.frames,
        size=options.size,
        samples=options.samples,
        lights=options.lights or least,
        models=options.models_folder,
        materials=options.materials,
        panoramas=options.panoramas,
    )
    folder = render_suite(suite, options.out / "clips", tell, workers=0)
    return Data(name, folder, lambda: read_suite(folder), suite.clips)


def _score(
    task: str,
    data: Data,
    chosen: Sequence[tuple[str, Metric]],
    baselines: Sequence[str],
    options: EvaluateOptions,
    tell: Progress,
) -> Results:
    assets = assets_in(data.folder)
    notes = [check_unseen(model, assets) for model in options.models] + [training_assets(assets)]
    systems = _systems(task, data, baselines, options, tell)
    work = _Work(task, data, chosen, Records(options.out / "figures" / f"{task}-{data.folder.name}"))
    made: list[Figure] = []
    seen: list[Picture] = []
    total = (data.count or 1) * len(systems)
    for number, sample in enumerate(data.read()):
        total = max(total, (number + 1) * len(systems))
        for index, system in enumerate(systems):
            tell(number * len(systems) + index, total, f"{task}, {data.name}")
            new, drawn = work.clip(system, sample)
            made += new
            seen += drawn
        seen += references(task, sample)
    tell(total, total, f"{task}, {data.name}")
    return Results(
        task=task,
        suite=data.name,
        protocol=PROTOCOLS[task],
        systems=tuple(system.name for system in systems),
        metrics=tuple(chosen),
        figures=made,
        unavailable=_unavailable(chosen),
        pictures=seen,
        notes=tuple(note for note in (_about(data, made), *notes) if note is not None),
    )


def _score_published(task: str, options: EvaluateOptions, tell: Progress) -> Results:
    """A public benchmark by its own protocol."""
    benchmark = find_benchmark(options.benchmark, task)
    if options.data is None:
        raise InputError(f"--data, the folder of {benchmark.name}", "none", "download the data set and give its folder")
    baselines = applicable(task, USUAL_BASELINES[task] if options.baselines is None else options.baselines)
    check_systems(task, options.models)
    folder = Path(options.data)
    data = Data(benchmark.name, folder, lambda: benchmark.samples(folder))
    systems = _systems(task, data, baselines, options, tell)
    records = Records(options.out / "figures" / f"{task}-{benchmark.name}")
    made: list[Figure] = []
    for number, case in enumerate(benchmark.cases(folder)):
        for index, system in enumerate(systems):
            done = number * len(systems) + index
            tell(done, done + len(systems), f"{task}, {benchmark.name}")
            made += case_figures(benchmark, task, case, system, folder, records)
    return Results(
        task=task,
        suite=benchmark.name,
        protocol=f"{benchmark.rules} Protocol: {benchmark.source}",
        systems=tuple(system.name for system in systems),
        metrics=benchmark.columns[task],
        figures=made,
        unavailable=_unavailable(benchmark.columns[task]),
        notes=(_about(data, made), *benchmark.limits),
    )


def _unavailable(chosen: Sequence[tuple[str, Metric]]) -> dict[str, str]:
    return {metric.name: why for _, metric in chosen if (why := metric.unavailable()) is not None}


@dataclass
class _Work:
    """Figures and pictures of one clip after the other; the motion of the last clip is kept for the next system."""

    task: str
    data: Data
    chosen: Sequence[tuple[str, Metric]]
    records: Records
    _motion: tuple[str, Any] | None = None

    def clip(self, system: System, sample: Sample) -> tuple[list[Figure], list[Picture]]:
        """A clip's results, from the records when they are there."""
        name = sample.clip.name
        key = {
            "task": self.task,
            "clips": fingerprint(self.data.folder),
            "columns": [(what, metric.name) for what, metric in self.chosen],
            "system": system.identity(),
            "version": __version__,
        }
        kept = self.records.load(system.name, name, key)
        if kept is not None:
            return kept
        made: list[Figure] = []
        drawn: list[Picture] = []
        for answer in answers(self.task, system, sample):
            made += figures(answer, system.name, sample, self.chosen, self._motion_of(sample))
            drawn += pictures(answer, system.name, sample)
        self.records.save(system.name, name, key, made, drawn)
        return made, drawn

    def _motion_of(self, sample: Sample) -> Any:
        if self._motion is None or self._motion[0] != sample.clip.name:
            self._motion = (sample.clip.name, clip_motion(sample, self.chosen))
        return self._motion[1]


def _systems(task: str, data: Data, baselines: Sequence[str], options: EvaluateOptions, tell: Progress) -> list[System]:
    """Everything that is compared, the first model first, then predictions, then baselines."""
    estimates = [Estimates(model, options.steps) for model in options.models if model not in CLASSICAL]
    if task != "forward" and not estimates:
        expected = "a model that makes G-buffers, first among --model"
        raise InputError(expected, ", ".join(options.models), "give tiny, a folder or an id before it")
    shared = estimates[0] if estimates else None
    systems: list[System] = []
    for model in options.models:
        own = next((item for item in estimates if item.model == model), shared)
        systems.append(Renderer(model, model, own, options.steps, options.lora_scale, weights_of(model)))
    for text in options.predictions:
        systems.append(_predictions(task, data, text, options))
    for name in baselines:
        if name == "pathtrace":
            folders = {"models": options.models_folder, "materials": options.materials, "panoramas": options.panoramas}
            systems.append(Retraced(folders))
        elif name in CLASSICAL:
            systems.append(Renderer(name, name, shared, fingerprint=weights_of(options.models[0])))
        else:
            systems.append(Simple(name))
    if any(isinstance(system, Simple) and system.name == "constant" for system in systems):
        tell(0, data.count or 1, "measuring the best constants")
        constants = Constants.measure(data.read())
        systems = [replace(item, constants=constants) if getattr(item, "name", "") == "constant" else item for item in systems]
    names = distinct_names([system.name for system in systems])
    for system, name in zip(systems, names, strict=True):
        system.name = name
    return systems


def _predictions(task: str, data: Data, text: str, options: EvaluateOptions) -> Folder:
    """A folder of predictions, checked against every clip before anything is computed."""
    name, folder = folder_name(text)
    predictions = Predictions(folder, name)
    buffers: tuple[str, ...] = ()
    if task in ("inverse", "temporal"):
        found = predictions.buffers(sample.clip.name for sample in data.read())
        buffers = tuple(buffer for buffer in DEFAULT_BUFFERS if buffer in found)
    expected = []
    for sample in data.read():
        size, frames, clip = sample.clip.size, len(sample.clip), sample.clip.name
        expected += [Expected(clip, view.light, frames, size) for view in targets_of(task, sample)]
        if task == "inverse" or (task == "temporal" and buffers):
            expected.append(Expected(clip, "", frames, size, buffers or DEFAULT_BUFFERS))
    predictions.check(expected)
    return Folder(name, predictions, makes_buffers=bool(buffers))


def _about(data: Data, made: Sequence[Figure]) -> str:
    """What was scored, and where."""
    clips = len({figure.clip for figure in made})
    processor = platform.processor() or platform.machine()
    return f"{clips} clips of {data.folder.name}, diffusion-renderer {__version__}, {processor}"
