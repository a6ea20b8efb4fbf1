"""Evaluation on a public benchmark by its own protocol, with the same systems and the same report as the suites."""

from __future__ import annotations

import math
from typing import Any

from diffusion_renderer import __version__
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.datagen import Sample
from diffusion_renderer.evaluation.public import BENCHMARKS, Benchmark, Case
from diffusion_renderer.evaluation.records import Records
from diffusion_renderer.evaluation.results import Figure
from diffusion_renderer.evaluation.systems import System
from diffusion_renderer.evaluation.views import View, views


def tasks_of(benchmark: str) -> tuple[str, ...]:
    """The tasks of a benchmark by name. Raises InputError when there is none of this name."""
    return BENCHMARKS[check_name("benchmark", benchmark, BENCHMARKS)].tasks


def find_benchmark(name: str, task: str) -> Benchmark:
    """The benchmark of this name. Raises InputError when there is none, or when it does not have the task."""
    benchmark = BENCHMARKS[check_name("benchmark", name, BENCHMARKS)]
    if task not in benchmark.tasks:
        expected = f"a task of {name}: {', '.join(benchmark.tasks)}"
        raise InputError(expected, task, f"give `evaluate {benchmark.tasks[0]}`")
    return benchmark


def targets_in(benchmark: Benchmark, task: str, sample: Sample) -> tuple[View, ...]:
    """The views of a benchmark's picture that a system must make frames of; none for a task that makes G-buffers."""
    lit = views(sample)
    return tuple(lit[light] for light in benchmark.lights(task, Case(sample))) if task != "inverse" else ()


def case_figures(benchmark: Benchmark, task: str, case: Case, system: System, data: str, records: Records) -> list[Figure]:
    """Every figure of one system on one case, from the records when they are there; ``data`` is the fingerprint of its data."""
    clip = case.sample.clip.name
    key: dict[str, Any] = {
        "benchmark": benchmark.name,
        "task": task,
        "data": data,
        "columns": [(what, metric.name) for what, metric in benchmark.columns[task] if metric.unavailable() is None],
        "name": system.name,
        "system": system.identity(),
        "version": __version__,
    }
    kept = records.load(system.name, clip, key)
    if kept is not None:
        return kept[0]
    lit = views(case.sample)
    made: list[Figure] = []
    for light in benchmark.lights(task, case):
        target = lit[light]
        estimate = system.buffers(lit[0]) if task == "inverse" else next(iter(system.relit(lit[0], [target])))
        for (what, metric), value in benchmark.score(task, case, estimate, light).items():
            failure = "" if math.isfinite(value) else "the estimate lacks it, or is not finite"
            made.append(Figure(system.name, clip, target.light, what, metric, value, failure=failure))
    records.save(system.name, clip, key, made, [])
    return made
