"""`dataset`: render training clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffusion_renderer.cli import values

Count = Annotated[int, *values.one("N", values.count_at_least("--clips", 1), "64")]
Minutes = Annotated[float | None, *values.one("MIN", values.number_at_least("--max-minutes", 0.0, "minutes"), "no limit")]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Render random scenes with exact G-buffers as WebDataset shards.

    Needs Mitsuba (pip install 'diffusion-renderer[data]'; make setup has it). A run that was stopped continues with the
    missing shards; the same seed gives the same clips.
    """

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder of the shards."""
    clips: Count = 64
    """Clips in all."""
    frames: Annotated[int, *values.one("N", values.count_at_least("--frames", 1), "4")] = 4
    """Frames per clip."""
    size: Annotated[tuple[int, int], *values.one("WxH", values.size, "128x128")] = (128, 128)
    """Pixels."""
    samples: Annotated[int, *values.one("N", values.count_at_least("--samples", 1), "16")] = 16
    """Light paths per pixel."""
    seed: values.Seed = 0
    """Seed of the dataset; training and evaluation use different ones."""
    workers: Annotated[int, *values.one("N", values.count_at_least("--workers", 1), "1")] = 1
    """Processes that render at once."""
    panoramas: Annotated[Path | None, *values.one("DIR", Path, "procedural light only")] = None
    """Folder of .hdr and .exr panoramas that light half of the clips."""
    max_minutes: Minutes = None
    """Start no new shard after this many minutes."""
    shard_size: Annotated[int, *values.one("N", values.count_at_least("--shard-size", 1), "64")] = 64
    """Clips per shard."""
    no_denoise: values.Flag = False
    """Leave Open Image Denoise out."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Render what is missing."""
        from diffusion_renderer.cli.progress import Progress
        from diffusion_renderer.cli.record import make_output_folder
        from diffusion_renderer.datagen import DatasetSettings, generate_shards

        settings = DatasetSettings(
            frames=self.frames,
            width=self.size[0],
            height=self.size[1],
            samples=self.samples,
            denoise=not self.no_denoise,
            panoramas=self.panoramas,
        )
        with Progress() as progress:
            generate_shards(
                make_output_folder(self.out),
                settings,
                clips=self.clips,
                shard_size=self.shard_size,
                seed=self.seed,
                workers=self.workers,
                max_minutes=self.max_minutes,
            )
            progress.made(self.out)
