"""The clips of one table: a rendered suite, a folder of shards, or a public benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import BUFFERS, DEFAULT_BUFFERS
from diffusion_renderer.datagen import Sample, read_shards
from diffusion_renderer.evaluation.leaks import metas_in
from diffusion_renderer.evaluation.options import EvaluateOptions
from diffusion_renderer.evaluation.public import Benchmark
from diffusion_renderer.evaluation.published import targets_in
from diffusion_renderer.evaluation.suites import SUITES, find_suite, read_suite, render_suite
from diffusion_renderer.evaluation.tasks import targets_of
from diffusion_renderer.evaluation.views import View

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Data:
    """The clips of one table.

    Attributes
    ----------
    name : in the report.
    folder : where they lie.
    read : gives them, one at a time.
    targets : the views of a clip that a system must make frames of.
    count : how many; None when they cannot be counted without reading them.
    buffers : those that may be scored.
    """

    name: str
    folder: Path
    read: Callable[[], Iterator[Sample]]
    targets: Callable[[Sample], tuple[View, ...]]
    count: int | None = None
    buffers: tuple[str, ...] = DEFAULT_BUFFERS


def chosen_names(options: EvaluateOptions) -> tuple[str, ...]:
    """The suites, each once; InputError for one that does not exist. A folder of the user's is one suite."""
    if options.data is not None:
        return ("data",)
    for name in options.suites:
        check_name("suite", name, SUITES)
    return tuple(dict.fromkeys(options.suites))


def find_data(task: str, name: str, options: EvaluateOptions, tell: Progress) -> Data:
    """The clips of a suite, which is rendered where it is missing, or of the user's folder.

    Raises InputError for a task that the clips cannot serve, as far as that is known before they are read.
    """
    if options.data is not None:
        return _given(task, Path(options.data))
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
    if task == "relight" and suite.settings.lights < 2:
        raise InputError("clips under at least two lights for relight", "--lights 1", "give --lights 2 or more")
    folder = render_suite(suite, options.out / "clips", tell, workers=0)
    return Data(name, folder, partial(read_suite, folder), partial(targets_of, task), suite.clips)


def _given(task: str, folder: Path) -> Data:
    """A folder of shards. Figures are told apart by the names of clips, so these must differ."""
    names = Counter(str(meta.get("name")) for meta in metas_in(folder))
    if names and (most := names.most_common(1)[0])[1] > 1:
        advice = "score shards that come from different data sets in folders of their own"
        raise InputError(f"clips of different names in {folder}", f"{most[1]} named {most[0]}", advice)
    return Data(folder.resolve().name, folder, partial(read_shards, folder), partial(targets_of, task), names.total())


def benchmark_data(task: str, benchmark: Benchmark, options: EvaluateOptions) -> Data:
    """The pictures of a public benchmark in the user's folder. Raises InputError when none is given."""
    if options.data is None:
        raise InputError(f"--data, the folder of {benchmark.name}", "none", "download the data set and give its folder")
    folder = Path(options.data)
    targets = partial(targets_in, benchmark, task)
    return Data(benchmark.name, folder, lambda: benchmark.samples(folder), targets, buffers=BUFFERS)
