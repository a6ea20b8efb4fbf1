"""Time, counted work and memory of inference: the published order of work and the package, both in one run on this machine.

    python benchmarks/inference.py --preset tiny --clock cpu --repeat 3
    python benchmarks/inference.py --preset svd --device cuda --json svd.json
    python benchmarks/inference.py --preset svd --paper

The job: five buffers of a clip of 24 frames (512 x 512, 128 x 128 for tiny), and G-buffers relit by one light. `tiny` has its
real weights; `svd` has the published sizes with random weights, on whose values neither time nor memory depends. `--model`
takes a folder of one's own. Rows: `reference` is the published order of work (`inference_reference.py`), `reference, joint` the
same but for one pass of a model that makes all buffers at once, `package` what this package does by default, the others one
option more each. --only takes the beginnings of rows' names.

Each half of the job runs alone, its networks loaded just before: loading is not timed. The counting run comes first and warms
up; the fastest of --repeat runs is reported. Stages are the networks' own time; "other" is the rest: environment images, the
classical picture, packing, copies. "% of rate" is counted work per second in the UNet over what products of large matrices
reach here, in the same precision. Memory is that of the larger half: allocated on a GPU, else resident in the process, the
interpreter and the libraries included. Differences from the reference are over all buffers and the relit clip in memory's
units; "-" stands where other output is meant. --window N gives both orders windows of N frames: as published these are chunks
that know nothing of each other, so outputs then differ.

--clock cpu counts seconds of the processor, over all threads, which other programs hardly disturb. --paper only counts, on
tensors without contents: any size on any machine, about a minute.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from inference_counting import (
    STAGES,
    Meter,
    PeakMemory,
    Stages,
    Work,
    count_launches,
    matrix_rate,
    read_clock,
    wait,
)
from inference_job import KINDS, Job, Run, make_inputs, part, prepare_folders, takes, write_random_model
from inference_paper import report
from inference_rows import DTYPES, Row, all_rows, choose
from torch import Tensor

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.pipelines import locate_model
from diffusion_renderer.training.presets import PRESETS


@dataclass
class Measured:
    """Of one half of the job, or of both.

    Attributes
    ----------
    seconds, stages : of the fastest run; of the whole, and of the networks of each stage.
    calls : of the networks, by stage.
    work : counted, by stage and "other"; empty where it cannot be (a compiled network).
    peak : bytes.
    launches : kernels of one run on a GPU; None elsewhere.
    """

    seconds: float = float("inf")
    stages: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)
    peak: int = 0
    launches: int | None = None

    def plus(self, other: Measured) -> Measured:
        """Both halves."""
        work = {name: Work(**vars(value)) for name, value in self.work.items()}
        for name, more in other.work.items():
            found = work.setdefault(name, Work())
            work[name] = Work(found.flops + more.flops, found.bytes + more.bytes, found.launches + more.launches)
        return Measured(
            self.seconds + other.seconds,
            {stage: self.stages[stage] + other.stages[stage] for stage in STAGES},
            {stage: self.calls[stage] + other.calls[stage] for stage in STAGES},
            work if self.work and other.work else {},
            max(self.peak, other.peak),
            None if self.launches is None or other.launches is None else self.launches + other.launches,
        )


class OutOfTime(Exception):
    """The minutes given are over."""


def measure(
    run: Run, stages: Stages, arguments: argparse.Namespace, countable: bool, deadline: float
) -> tuple[Measured, dict[str, Tensor]]:
    """Count, then time ``run``; its outputs too. Raises OutOfTime when too little time is left for another run."""
    device, found = stages.device, Measured()
    memory, outputs, slowest = PeakMemory(device), {}, 0.0
    for attempt in range(arguments.repeat + 1):
        begun = time.monotonic()
        if begun + slowest > deadline:
            if found.stages:
                break
            raise OutOfTime
        memory.reset()
        wait(device)
        start = read_clock(arguments.clock)
        if attempt == 0 and countable:
            with Meter(lambda: stages.current) as meter:
                outputs = run()
            found.work = dict(meter.work)
        else:
            outputs = run()
        wait(device)
        seconds = read_clock(arguments.clock) - start
        parts, calls = stages.take()
        slowest = max(slowest, time.monotonic() - begun)
        if attempt and seconds < found.seconds:
            found.seconds, found.stages, found.calls = seconds, parts, calls
        # The first run's books of what was counted are no part of the job's memory.
        found.peak = memory.read() if attempt == 1 else max(found.peak, memory.read() if attempt else 0)
    if device.type == "cuda" and time.monotonic() + slowest < deadline:
        found.launches = count_launches(run)
        stages.take()
    return found, outputs


def measure_row(job: Job, row: Row, arguments: argparse.Namespace, deadline: float) -> tuple[Measured, dict[str, Tensor]]:
    """Both halves, one after the other."""
    whole, outputs = None, {}
    for kind in KINDS:
        stages = Stages(job.device, arguments.clock)
        with part(job, row, kind, stages) as run:
            measured, made = measure(run, stages, arguments, "compile" not in row.name, deadline)
        whole = measured if whole is None else whole.plus(measured)
        outputs |= made
        del run
        gc.collect()
        if job.device.type == "cuda":
            torch.cuda.empty_cache()
    return whole, outputs


def difference(outputs: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Largest and mean absolute difference of every output."""
    found = {}
    for name, value in outputs.items():
        gap = (value.float() - reference[name].float()).abs()
        found[name] = (float(gap.max()), float(gap.mean()))
    return found


HEAD = ("row", "s", "times faster", *STAGES, "other", "UNet calls", "TFLOP", "% of rate", "peak GB", "launches", "max", "mean")


def cells(row: str, found: Measured, first: Measured, rate: float, gaps: dict[str, tuple[float, float]] | None) -> list[str]:
    """One line of the table."""
    other = found.seconds - sum(found.stages.values())
    total = sum(work.flops for work in found.work.values()) / 1e12
    share = found.work["denoise"].flops / found.stages["denoise"] / rate if found.work and found.stages["denoise"] else None
    launches = found.launches
    if launches is None and found.work:
        launches = f"({sum(work.launches for work in found.work.values())})"
    return [
        row,
        f"{found.seconds:.2f}",
        f"{first.seconds / found.seconds:.2f}",
        *(f"{found.stages[stage]:.2f}" for stage in STAGES),
        f"{other:.2f}",
        str(found.calls["denoise"]),
        f"{total:.4g}" if found.work else "-",
        "-" if share is None else f"{100 * share:.0f}",
        f"{found.peak / 1e9:.2f}",
        "-" if launches is None else str(launches),
        *(("-", "-") if not gaps else (f"{max(g[0] for g in gaps.values()):.1e}", f"{_mean(gaps):.1e}")),
    ]


def _mean(gaps: dict[str, tuple[float, float]]) -> float:
    return sum(mean for _, mean in gaps.values()) / len(gaps)


def run_rows(job: Job, rows: list[Row], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print the rows; a row that fails says why, and the others go on."""
    deadline = time.monotonic() + 60 * arguments.minutes
    rates: dict[str, float] = {}
    first, reference, kept, fastest = None, {}, [], 0.0
    print("| " + " | ".join(HEAD) + " |")
    print("|---|" + "---:|" * (len(HEAD) - 1), flush=True)
    for row in rows:
        begun, dtype = time.monotonic(), row.dtype or job.dtype
        halves = [kind for kind in KINDS if takes(row, kind)]
        name = row.name if len(halves) == len(KINDS) else f"{row.name} ({', '.join(halves) or 'nowhere'} only)"
        try:
            if begun + fastest > deadline:
                raise OutOfTime
            if dtype not in rates:
                rates[dtype] = matrix_rate(job.device, DTYPES[dtype], arguments.clock)
            found, outputs = measure_row(job, row, arguments, deadline)
        except OutOfTime:
            print(f"| {name} | not run: the {arguments.minutes:g} minutes are over |", flush=True)
            continue
        # A row is any combination of options, and one that fails on this device is a result, not a reason to lose the others.
        except Exception as error:
            if first is None:
                raise
            reason = (str(error).splitlines() or [""])[0]
            print(f"| {name} | failed: {type(error).__name__}: {reason[:120]} |", flush=True)
            kept.append({"row": name, "failed": f"{type(error).__name__}: {error}"})
            continue
        spent = time.monotonic() - begun
        fastest = min(fastest or spent, spent)
        if first is None:
            first, reference = found, outputs
        gaps = difference(outputs, reference) if row.comparable and outputs is not reference else None
        print("| " + " | ".join(cells(name, found, first, rates[dtype], gaps)) + " |", flush=True)
        kept.append({"row": name, "matrix_rate": rates[dtype], "differences": gaps, **asdict(found)})
    return kept


def build_job(arguments: argparse.Namespace, folder: Path, device: torch.device) -> Job:
    """The networks in ``folder`` and the inputs that the arguments ask for."""
    preset = PRESETS[arguments.preset]
    dtype = arguments.dtype or ("float32" if device.type == "cpu" else "float16")
    if arguments.model is not None:
        source = arguments.model
    elif preset.name == "tiny":
        source = locate_model("tiny", "inverse").parent
    else:
        source = write_random_model(preset, folder / "random", DTYPES[dtype], device)
    defaults = json.loads((source / "forward" / "renderer.json").read_text())
    window = arguments.window or arguments.frames
    steps = arguments.steps or defaults.get("default_steps", 20)
    guidance = defaults.get("default_guidance", 1.2) if arguments.guidance is None else arguments.guidance
    inputs = make_inputs(arguments.frames, arguments.size, arguments.rotate_light)
    folders = prepare_folders(source, folder, window)
    return Job(folders, device, dtype, arguments.frames, window, arguments.size, steps, guidance, **inputs)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--model", type=Path, help="folder with inverse/ and forward/ instead of a preset's networks")
    parser.add_argument("--device", help="cpu, cuda; a GPU where there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="float32 on a CPU, float16 elsewhere")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, help="side of the frames in pixels; the preset's own")
    parser.add_argument("--window", type=int, help="frames per window; all of them")
    parser.add_argument("--steps", type=int, help="the model's own")
    parser.add_argument("--guidance", type=float, help="of relighting; the model's own")
    parser.add_argument("--rotate-light", action="store_true", help="a light that turns is another one in every frame")
    parser.add_argument("--repeat", type=int, default=2, help="timed runs of each row")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="beginnings of rows' names; reference always runs")
    parser.add_argument("--minutes", type=float, default=60.0, help="no run is begun that would end later")
    parser.add_argument("--paper", action="store_true", help="count a preset's work and stop")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(given)
    for name in ("frames", "repeat", "size", "window", "steps"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"expected --{name} of at least 1, found {value}; give a larger one")
    arguments.size = arguments.size or PRESETS[arguments.preset].size
    return arguments


def main(given: list[str] | None = None) -> None:
    """Print the tables and write them where --json says."""
    arguments = parse(given)
    device, preset = find_device(arguments.device), PRESETS[arguments.preset]
    if arguments.clock == "cpu" and device.type != "cpu":
        raise InputError("--clock wall", f"--clock cpu on {device}", "leave it out: a GPU's work is not the processor's")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    machine = f"{name}, {os.cpu_count()} processors, {torch.get_num_threads()} threads, torch {torch.__version__}"
    result: dict[str, Any] = {"machine": machine, "arguments": {k: str(v) for k, v in vars(arguments).items()}}
    print(f"{machine}; seconds by the {arguments.clock} clock\n")
    if arguments.paper:
        fallback = preset.renderer_settings("forward")
        steps, guidance = arguments.steps or fallback["default_steps"], arguments.guidance or fallback["default_guidance"]
        text, result["paper"] = report(preset, arguments.frames, arguments.size, steps, guidance)
        print(text)
    else:
        with tempfile.TemporaryDirectory() as folder:
            job = build_job(arguments, Path(folder), device)
            result["job"] = {"steps": job.steps, "guidance": job.guidance, "dtype": job.dtype, "window": job.window}
            print(f"{job.frames} frames of {job.size} x {job.size}, {job.steps} steps, guidance {job.guidance:g}, ", end="")
            print(f"{job.dtype}, windows of {job.window} frames\n")
            joint = json.loads((job.folders["inverse"] / "renderer.json").read_text()).get("joint", False)
            rows = choose(all_rows(job.dtype, device, joint), arguments.only)
            result["rows"] = run_rows(job, rows, arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
