"""`evaluate`: score the renderers against ground truth, with baselines beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffusion_renderer.cli import values

TASKS = ("inverse", "forward")
Tasks = Annotated[
    Positional[tuple[Annotated[str, *values.one("inverse|forward", values.choice("the task", TASKS), "both")], ...]],
    arg(metavar="[inverse|forward ...]"),
]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a model on clips with ground truth and print the tables, the baselines beside it.

    Without --data it renders clips of a seed that training refuses (needs Mitsuba), and keeps them for the next run. Writes
    OUT/<task>.md and OUT/<task>.csv.
    """

    task: Tasks = ()
    """What to score; both when left out."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")] = Path("evaluation-out")
    """Folder of the tables and of the rendered clips."""
    model: Annotated[str, *values.one("NAME|PATH", str, "tiny")] = "tiny"
    """The networks, as in `inverse --help`."""
    data: Annotated[Path | None, *values.one("DIR", Path, "rendered")] = None
    """A folder of shards to score on."""
    clips: Annotated[int, *values.one("N", values.count_at_least("--clips", 1), "24")] = 24
    """Clips to render."""
    frames: Annotated[int, *values.one("N", values.count_at_least("--frames", 1), "4")] = 4
    """Frames per rendered clip."""
    size: Annotated[int, *values.one("N", values.count_at_least("--size", 8), "128")] = 128
    """Side of the rendered frames, pixels."""
    samples: Annotated[int, *values.one("N", values.count_at_least("--samples", 1), "32")] = 32
    """Light paths per pixel of the rendered frames."""
    panoramas: Annotated[Path | None, *values.one("DIR", Path, "procedural light only")] = None
    """Folder of panoramas that light half of the rendered clips."""
    steps: values.Steps = None
    """Denoising steps."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Score, print and write the tables."""
        from diffusion_renderer.cli.progress import Progress
        from diffusion_renderer.cli.record import make_output_folder
        from diffusion_renderer.evaluation import EvaluateOptions, evaluate

        options = EvaluateOptions(
            model=self.model,
            data=self.data,
            out=make_output_folder(self.out),
            clips=self.clips,
            frames=self.frames,
            size=self.size,
            samples=self.samples,
            panoramas=self.panoramas,
            steps=self.steps,
        )
        with Progress() as progress:
            for task in self.task or TASKS:
                print(evaluate(task, options, progress).markdown() + "\n", flush=True)
                progress.made(self.out / f"{task}.md")
