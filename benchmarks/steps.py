"""Quality against steps, for every solver: which number of steps and which solver a model should have as its own.

    python benchmarks/steps.py [--model tiny] [--data DIR] [--clips 4] [--steps 1 2 4 8] [--solvers euler heun]
                               [--tasks inverse forward exact]

Prints one Markdown table for the inverse renderer (PSNR of base colour, mean angle of normals, RMSE of relative depth,
roughness and metallic, over surfaces) and one for the forward renderer (PSNR of sRGB pictures, whole and over surfaces
only), means over clips. Calls are those of the network per window; CPU seconds are those of the whole call of the renderer,
encoding and decoding included, per frame, over all threads. One step is the same with every solver and measured once. The
clips are those of the suite "small" (see `evaluation.suites`), rendered into a temporary folder or into --out, or shards read
from --data.

--tasks exact needs no model: unit noise to data of a known Gaussian over SVD's noise levels, where the exact result is known.
It says which solver to take for a model that is trained for many steps.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Clip, GBuffer
from diffusion_renderer.datagen import Sample, read_shards
from diffusion_renderer.diffusion import SOLVERS, NoiseSchedule, network_calls
from diffusion_renderer.evaluation.metrics import METRICS
from diffusion_renderer.evaluation.suites import find_suite, render_suite
from diffusion_renderer.evaluation.tasks import answers, figures
from diffusion_renderer.evaluation.views import View
from diffusion_renderer.pipelines import DiffusionForwardRenderer, DiffusionInverseRenderer, load_forward, load_inverse
from diffusion_renderer.render import Prior

#: What is shown: (column's head, thing compared, metric, decimals).
SHOWN = {
    "inverse": (
        ("base colour PSNR, dB", "basecolor", "psnr", 2),
        ("normal, deg", "normal", "angle-mean", 2),
        ("depth RMSE", "depth", "depth-rmse", 4),
        ("roughness RMSE", "roughness", "rmse", 4),
        ("metallic RMSE", "metallic", "rmse", 4),
    ),
    "forward": (("picture PSNR, dB", "rgb", "psnr", 2), ("surface PSNR, dB", "surface", "psnr", 2)),
}


@dataclass
class Choice:
    """A renderer with a solver and a number of steps, as a system to score; it keeps what its calls cost."""

    renderer: Any
    solver: str
    steps: int
    name: str = "choice"
    makes_buffers: bool = True
    seconds: float = 0.0
    frames: int = 0
    #: By what is compared, the figures of all clips.
    values: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def calls(self) -> int:
        """Of the network, per window."""
        return network_calls(self.solver, self.renderer.schedule.sigmas(self.steps))

    def identity(self) -> dict[str, Any]:
        return {"solver": self.solver, "steps": self.steps}

    def buffers(self, view: View) -> GBuffer:
        return self._timed(view.clip, buffers=DEFAULT_BUFFERS)

    def relit(self, source: View | None, targets: Sequence[View]) -> Iterator[Clip]:
        for target in targets:
            light, rotations = target.lit()
            yield self._timed(target.sample.gbuffer, light, camera=target.sample.camera, rotations=rotations)

    def _timed(self, *given: Any, **options: Any) -> Any:
        start = time.process_time()
        made = self.renderer(*given, steps=self.steps, solver=self.solver, **options)
        self.seconds += time.process_time() - start
        self.frames += len(made)
        return made

    def score(self, task: str, sample: Sample) -> None:
        """Add the figures of one clip."""
        wanted = [(what, METRICS[metric]) for _, what, metric, _ in SHOWN[task]]
        for answer in answers(task, self, sample):
            for figure in figures(answer, self.name, sample, wanted, None):
                if figure.part == "all":
                    self.values[figure.what, figure.metric].append(figure.value)

    def row(self, task: str, label: str) -> str:
        cells = [label, str(self.steps), str(self.calls), f"{self.seconds / self.frames:.3f}"]
        for _, what, metric, decimals in SHOWN[task]:
            values = self.values[what, METRICS[metric].name]
            cells.append(f"{sum(values) / len(values):.{decimals}f}" if values else "-")
        return f"| {' | '.join(cells)} |"


def choices(make: Callable[[], Any], solvers: Sequence[str], steps: Sequence[int]) -> list[Choice]:
    """Every pair to be measured; of one step only the first solver, for there all are the same.

    Each has a renderer object of its own, for what one call encoded the next one with the same object need not encode.
    """
    return [Choice(make(), solver, n) for solver in solvers for n in steps if n > 1 or solver == solvers[0]]


def load(task: str, model: str) -> Callable[[], Any]:
    """Makes renderer objects of one checkpoint, which is loaded once."""
    if task == "inverse":
        return partial(DiffusionInverseRenderer, load_inverse(model, device="cpu").checkpoint)
    return partial(DiffusionForwardRenderer, load_forward(model, device="cpu", prior=Prior).checkpoint, Prior)


def measure(task: str, samples: Sequence[Sample], options: argparse.Namespace) -> None:
    """Run all choices on all clips and print the task's table."""
    make = load(task, options.model)
    # The first call pays for what is loaded on first use.
    Choice(make(), options.solvers[0], 1).score(task, samples[0])
    made = choices(make, options.solvers, options.steps)
    for choice in made:
        for sample in samples:
            choice.score(task, sample)
        print(f"{task}: {choice.row(task, choice.solver)}", file=sys.stderr, flush=True)
    settings = made[0].renderer.settings
    start = "noise" if settings.initial_noise else "zero"
    heads = ["solver", "steps", "calls", "CPU s per frame", *(head for head, *_ in SHOWN[task])]
    print(f"\n### {task} (starts from {start}; the model's own: {settings.default_steps} step(s), {settings.solver})\n")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * 3}{' ---: |' * (len(heads) - 3)}")
    for choice in made:
        print(choice.row(task, "any" if choice.steps == 1 else choice.solver))


def exact(steps: Sequence[int], solvers: Sequence[str], spreads: Sequence[float] = (0.1, 0.5, 1.0)) -> None:
    """Print the error of every solver for data N(0, s^2), as a part of the exact result, over the levels of SVD's scheduler.

    The result is the start times ``s / sqrt(s^2 + sigma_max^2)``; the error is the same for every start.
    """
    print("\n### exact (SVD's noise levels, 700 to 0.002 and 0; error as a part of the exact result)\n")
    heads = ["solver", "steps", "calls", *(f"data of deviation {spread:g}" for spread in spreads)]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * 3}{' ---: |' * len(spreads)}")
    for solver in solvers:
        for count in steps:
            sigmas = NoiseSchedule().sigmas(count).double()
            cells = [solver, str(count), str(network_calls(solver, sigmas))]
            for s in spreads:
                made = SOLVERS[solver](lambda x, sigma, s=s: x * s**2 / (s**2 + sigma**2), sigmas[0], sigmas)
                goal = sigmas[0] * s / (s**2 + sigmas[0] ** 2) ** 0.5
                cells.append(f"{abs(float(made / goal) - 1):.2g}")
            print(f"| {' | '.join(cells)} |")


def clips(options: argparse.Namespace, folder: Path) -> list[Sample]:
    """The first ``--clips`` clips."""
    if options.data is None:
        suite = find_suite("small", clips=options.clips, frames=options.frames)
        return list(read_shards(render_suite(suite, folder)))
    return list(islice(read_shards(options.data), options.clips))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny", help="a name, a folder or an id, as for the command line")
    parser.add_argument("--data", type=Path, help="a folder of shards; without it the suite small is rendered")
    parser.add_argument("--out", type=Path, help="where clips are rendered to, and kept; without it a temporary folder")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, help="frames of the clips that are rendered; 4 without it")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 20])
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS))
    parser.add_argument("--tasks", nargs="+", default=list(SHOWN), help="inverse, forward, exact")
    options = parser.parse_args(argv)
    for name in options.solvers:
        check_name("solver", name, SOLVERS)
    for name in options.tasks:
        check_name("task", name, (*SHOWN, "exact"))
    if "exact" in options.tasks:
        exact(options.steps, options.solvers)
    tasks = [name for name in options.tasks if name in SHOWN]
    if not tasks:
        return
    with tempfile.TemporaryDirectory() as temporary:
        samples = clips(options, options.out or Path(temporary))
    frames, (width, height) = sum(len(sample.clip) for sample in samples), samples[0].clip.size
    machine = f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} of {os.cpu_count()} threads, {torch.__version__}"
    print(f"{options.model}: {len(samples)} clips, {frames} frames of {width} x {height}; {machine}")
    for task in tasks:
        measure(task, samples, options)


if __name__ == "__main__":
    main()
