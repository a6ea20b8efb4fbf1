"""`demo`: the main job on a clip that ships with the package, or on the user's own, shown on one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffusion_renderer.cli import values


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Relight a clip by three lights and show everything on one page: what `make demo` runs.

    Writes the G-buffers, the relit clips, sheet.png and index.html. The clip and lights of the package come with ground
    truth, so the page shows the errors too; a clip of your own gets the same lights.
    """

    input: Annotated[Positional[Path | None], arg(metavar="[INPUT]", help_behavior_hint="(default: the package's clip)")] = None
    """A video, an image or a folder of frames."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")] = Path("demo-out")
    """Folder for the results."""
    model: Annotated[str, *values.one("NAME|PATH", str, "tiny")] = "tiny"
    """The networks, as in `relight --help`."""
    steps: values.Steps = None
    """Denoising steps."""
    seed: values.Seed = 0
    """Seed of the starting noise."""
    size: values.Size = None
    """Working size in pixels; results come back at the input's size."""
    frames: values.Frames = None
    """Frames to process, from the first one."""
    device: Annotated[str | None, *values.one("DEVICE", str, "cuda if there is one, else cpu")] = None
    """Where the networks run: cpu, cuda, cuda:1, mps."""
    overwrite: values.Flag = False
    """Make results again that are complete already."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Relight, compare, write the page."""
        from diffusion_renderer.cli.progress import Progress

        with Progress() as progress:
            from diffusion_renderer.cli import showcase

            showcase.run_demo(self, progress)
