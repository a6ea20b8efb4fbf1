"""`evaluate`: score renderers against ground truth, with baselines beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from diffusion_renderer.cli import values
from diffusion_renderer.cli.progress import Progress

#: As in evaluation.tasks, which is not imported here: the help must not load torch.
TASKS = ("inverse", "forward", "relight", "temporal")
USUAL = ("inverse", "forward")
Tasks = Annotated[
    Positional[tuple[Annotated[str, *values.one("TASK", values.choice("the task", TASKS), "inverse forward")], ...]],
    arg(metavar="[inverse|forward|relight|temporal ...]"),
]


def _names(metavar: str, option: str) -> tuple[object, ...]:
    return (tuple[Annotated[tuple[str, ...], values.several(metavar, str, option)], ...], UseAppendAction)


Models = Annotated[_names("NAME|PATH ...", "--model")]
Baselines = Annotated[_names("NAME ...", "--baseline")]
Suites = Annotated[_names("NAME ...", "--suite")]
Metrics = Annotated[_names("NAME ...", "--metrics")]
Folders = Annotated[_names("[NAME=]DIR ...", "--predictions")]


def _count(option: str, least: int, default: str) -> tuple[object, ...]:
    return values.one("N", values.count_at_least(option, least), default)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score renderers on clips with ground truth and print the tables, baselines beside them.

    Tasks: inverse (frames to G-buffers), forward (G-buffers and lights to frames), relight (frames under one light to
    frames under another), temporal (flicker). Suites: small (24 clips of 4 frames; the default), objects (30 clips) and
    scenes (40 clips) of 24 frames under 4 lights. They are rendered first, from seeds and assets that training refuses
    (needs Mitsuba), and kept. A run that was stopped continues.

    Writes OUT/<task>-<suite>.md, .csv, .tex, .html (tables, error maps, best and worst clips) and .figures.csv (every number).
    """

    task: Tasks = ()
    """What to score (default: inverse and forward; all that a benchmark has)."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")] = Path("evaluation-out")
    """Folder of the tables, the rendered clips and what was computed."""
    model: Models = ()
    """Renderers to score, as in `forward --help` (default: tiny). The first is compared with the others."""
    baseline: Baselines = ()
    """What stands beside them: splitsum ssrt pathtrace constant clip-mean basecolor basecolor-light input, or none
    (default: by task)."""
    predictions: Folders = ()
    """Output folders of other systems, scored in the same table."""
    suite: Suites = ()
    """Which clips: small objects scenes (default: small)."""
    data: Annotated[Path | None, *values.one("DIR", Path, "the suites")] = None
    """A folder of shards to score on instead."""
    benchmark: Annotated[str | None, *values.one("NAME", str, "none")] = None
    """A public benchmark by its own protocol, --data being its folder: stanford-orb multi-illumination interiorverse
    mit-intrinsic."""
    metrics: Metrics = ()
    """Only these: psnr ssim lpips si-psnr si-lpips flip temporal jod rmse mae angle-mean angle-median "angle<30" absrel delta1
    depth-rmse (default: by task)."""
    clips: Annotated[int | None, *_count("--clips", 1, "the suite's")] = None
    """Clips per suite."""
    frames: Annotated[int | None, *_count("--frames", 1, "the suite's")] = None
    """Frames per clip."""
    size: Annotated[int | None, *_count("--size", 8, "128")] = None
    """Side of the frames, pixels; 512 in the paper."""
    samples: Annotated[int | None, *_count("--samples", 1, "32")] = None
    """Light paths per pixel of the truth."""
    lights: Annotated[int | None, *_count("--lights", 1, "the suite's")] = None
    """Lights per clip."""
    assets: Annotated[Path | None, *values.one("DIR", Path, "none")] = None
    """Folder with models, materials and hdri: the suites show those kept for testing beside procedural ones."""
    panoramas: Annotated[Path | None, *values.one("DIR", Path, "DIR/hdri of --assets")] = None
    """Folder of panoramas; those kept for testing light half of the suites' clips."""
    steps: values.Steps = None
    """Denoising steps."""
    lora_scale: Annotated[
        float | None, *values.one("S", values.number_at_least("--lora-scale", 0.0, "0 for none"), "its own")
    ] = None
    """Strength of the models' LoRA adapters."""
    workers: Annotated[int | None, *_count("--workers", 1, "1")] = None
    """Processes that score clips side by side, each with renderers of its own in memory."""
    export: Annotated[Path | None, *values.one("DIR", Path, "none")] = None
    """Write the clips' inputs (frames, G-buffers, lights, cameras) for other systems, and score nothing."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Score, print and write the tables."""
        with Progress() as progress:
            self._run(progress)

    def _run(self, progress: Progress) -> None:
        from diffusion_renderer.cli.record import make_output_folder
        from diffusion_renderer.datagen.assets import asset_folders
        from diffusion_renderer.evaluation import EvaluateOptions, evaluate, export, tasks_of
        from diffusion_renderer.evaluation.report import print_table, report_name

        folders = {} if self.assets is None else asset_folders(self.assets)
        baselines = values.flatten(self.baseline)
        options = EvaluateOptions(
            models=values.flatten(self.model) or ("tiny",),
            baselines=None if not baselines else tuple(name for name in baselines if name != "none"),
            predictions=values.flatten(self.predictions),
            suites=values.flatten(self.suite) or ("small",),
            data=self.data,
            benchmark=self.benchmark,
            metrics=values.flatten(self.metrics),
            out=make_output_folder(self.out),
            clips=self.clips,
            frames=self.frames,
            size=self.size,
            samples=self.samples,
            lights=self.lights,
            models_folder=folders.get("models"),
            materials=folders.get("materials"),
            panoramas=self.panoramas or folders.get("panoramas"),
            steps=self.steps,
            lora_scale=self.lora_scale,
            workers=self.workers or 1,
        )
        tasks = self.task or (USUAL if self.benchmark is None else tasks_of(self.benchmark))
        if self.export is not None:
            # The same clips serve all tasks, but relighting needs a second light.
            task = "relight" if "relight" in tasks else tasks[0]
            progress.made(export(task, options, self.export, progress))
            return
        for task in dict.fromkeys(tasks):
            for results in evaluate(task, options, progress):
                print(print_table(results) + "\n", flush=True)
                progress.made(self.out / f"{report_name(results)}.html")
