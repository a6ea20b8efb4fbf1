"""One evaluation: clips, systems, figures, report; what was computed before is kept."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from diffusion_renderer import __version__
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.evaluation.clips import Data, Progress, benchmark_data, chosen_names, find_data
from diffusion_renderer.evaluation.entries import baselines_of, find_systems
from diffusion_renderer.evaluation.export import export_inputs
from diffusion_renderer.evaluation.leaks import assets_in, check_unseen, training_assets
from diffusion_renderer.evaluation.metrics import Metric
from diffusion_renderer.evaluation.options import EvaluateOptions
from diffusion_renderer.evaluation.published import case_figures, find_benchmark
from diffusion_renderer.evaluation.records import Records
from diffusion_renderer.evaluation.report import clips_to_show, write_report
from diffusion_renderer.evaluation.results import Figure, Results
from diffusion_renderer.evaluation.systems import CLASSICAL, check_systems
from diffusion_renderer.evaluation.tasks import (
    PROTOCOLS,
    TASKS,
    columns,
)
from diffusion_renderer.evaluation.work import Work
from diffusion_renderer.evaluation.workers import score_side_by_side
from diffusion_renderer.io.fingerprint import fingerprint


def evaluate(task: str, options: EvaluateOptions, progress: Progress | None = None) -> list[Results]:
    """Score on every suite; writes each report into ``options.out`` (see `report.write_report`) and returns the results.

    Whatever was computed for the same clips, systems and metrics before is taken from ``options.out``. Raises InputError for
    unknown names, models that were trained on the clips' assets, predictions that are not complete, and when none of the
    metrics asked for can be computed on this machine.
    """
    check_name("evaluation task", task, TASKS)
    tell = progress or _silent
    if options.benchmark is not None:
        results = _score_published(task, options, tell)
        write_report(results, options.out)
        return [results]
    chosen = columns(task, options.metrics)
    _check_computable(chosen)
    baselines = baselines_of(task, options)
    check_systems(task, options.models, options.predictions)
    found = []
    for name in chosen_names(options):
        results = _score(task, find_data(task, name, options, tell), chosen, baselines, options, tell)
        write_report(results, options.out)
        found.append(results)
    return found


def export(task: str, options: EvaluateOptions, folder: Path, progress: Progress | None = None) -> Path:
    """Write what systems are given, for those that do not run here, below ``folder``, a folder for each suite."""
    check_name("evaluation task", task, TASKS)
    tell = progress or _silent
    if options.benchmark is not None:
        found = iter([benchmark_data(task, find_benchmark(options.benchmark, task), options)])
    else:
        found = (find_data(task, name, options, tell) for name in chosen_names(options))
    for data in found:
        export_inputs(data.read(), folder / data.name, partial(_count, tell, count(1), data.count or 1))
    return folder


def _count(tell: Progress, numbers: Iterator[int], total: int, clip: str) -> None:
    tell(next(numbers), total, "exporting")


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""


def _check_computable(chosen: Sequence[tuple[str, Metric]]) -> None:
    """Refuse before any work is done what would be a table without a number."""
    absent = _unavailable(chosen)
    if absent and all(metric.name in absent for _, metric in chosen):
        found = "; ".join(f"{name}: {why}" for name, why in absent.items())
        raise InputError("a metric that can be computed here", found, "name another one with --metrics")


def _score(
    task: str,
    data: Data,
    chosen: Sequence[tuple[str, Metric]],
    baselines: Sequence[str],
    options: EvaluateOptions,
    tell: Progress,
) -> Results:
    assets = assets_in(data.folder)
    models = [model for model in options.models if model not in CLASSICAL]
    notes = [check_unseen(model, assets) for model in models] + [training_assets(assets)]
    systems = find_systems(task, data, baselines, options, tell)
    work = Work(task, data, chosen, systems, Records(options.out / "figures" / f"{task}-{data.folder.resolve().name}"))
    if options.workers > 1:
        score_side_by_side(work, options, tell)
    made: list[Figure] = []
    total = (data.count or 1) * len(systems)
    for number, sample in enumerate(data.read()):
        for index, system in enumerate(systems):
            tell(number * len(systems) + index, total, f"{task}, {data.name}")
            made += work.figures(system, sample)
        work.keep_references(sample)
    tell(total, total, f"{task}, {data.name}")
    results = Results(
        task=task,
        suite=data.name,
        protocol=PROTOCOLS[task],
        systems=tuple(system.name for system in systems),
        metrics=tuple(chosen),
        figures=made,
        unavailable=_unavailable(chosen) | _without_figures(chosen, made),
        notes=tuple(note for note in (_about(data, made), *notes) if note is not None),
    )
    # Of all clips they would fill the memory: read again for those that the report shows.
    return replace(results, pictures=[item for clip in clips_to_show(results) for item in work.pictures(clip)])


def _score_published(task: str, options: EvaluateOptions, tell: Progress) -> Results:
    """A public benchmark by its own protocol."""
    benchmark = find_benchmark(options.benchmark, task)
    if options.metrics:
        raise InputError(f"no --metrics: {benchmark.name} has its own", ", ".join(options.metrics), "leave --metrics out")
    if options.workers > 1:
        raise InputError("one process for a public benchmark", f"--workers {options.workers}", "leave --workers out")
    data = benchmark_data(task, benchmark, options)
    check_systems(task, options.models, options.predictions)
    baselines = baselines_of(task, options)
    first = next(data.read(), None)
    if task == "relight" and first is not None and not first.relit:
        # The frames that go in are those that must come out.
        baselines = tuple(name for name in baselines if name != "input")
    systems = find_systems(task, data, baselines, options, tell)
    records, state = Records(options.out / "figures" / f"{task}-{benchmark.name}"), fingerprint(data.folder)
    made: list[Figure] = []
    for number, case in enumerate(benchmark.cases(data.folder)):
        for index, system in enumerate(systems):
            done = number * len(systems) + index
            tell(done, done + len(systems), f"{task}, {benchmark.name}")
            made += case_figures(benchmark, task, case, system, state, records)
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


def _without_figures(chosen: Sequence[tuple[str, Metric]], made: Sequence[Figure]) -> dict[str, str]:
    """Why metrics that are available have no figure at all."""
    present = {figure.metric for figure in made}
    return {
        metric.name: "no point of a surface is known to be seen in two frames of a clip"
        if metric.needs_motion
        else f"no clip of at least {metric.least_size}x{metric.least_size} pixels has a truth for it"
        for _, metric in chosen
        if metric.name not in present and metric.unavailable() is None
    }


def _about(data: Data, made: Sequence[Figure]) -> str:
    """What was scored, and where."""
    clips = len({figure.clip for figure in made})
    processor = platform.processor() or platform.machine()
    return f"{clips} clips of {data.folder.resolve().name}, diffusion-renderer {__version__}, {processor}"
