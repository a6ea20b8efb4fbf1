"""`dataset`: render training clips; look at data sets, check them, make them of public ones."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from diffusion_renderer.cli import values
from diffusion_renderer.core.errors import InputError

# As in datagen.settings, which is not imported here: the help must not load torch.
FAMILIES = ("objects", "scenes", "mixed")
MOTIONS = ("orbit", "oscillation", "light", "object-rotation", "object-translation", "static")
FORMATS = ("png8", "png16", "exr")
SPLITS = ("all", "train", "test")
DENOISE_QUALITIES = ("high", "balanced", "fast")
VARIANTS = {"auto": None, "cuda": "cuda_ad_rgb", "llvm": "llvm_ad_rgb", "scalar": "scalar_rgb"}

Count = Annotated[int, *values.one("N", values.count_at_least("--clips", 1), "64")]
Minutes = Annotated[float | None, *values.one("MIN", values.number_at_least("--max-minutes", 0.0, "minutes"), "no limit")]
ShardSize = Annotated[int, *values.one("N", values.count_at_least("--shard-size", 1), "64")]
Format = Annotated[str, *values.one("png8|png16|exr", values.choice("--format", FORMATS), "png8")]
Motions = Annotated[
    tuple[Annotated[tuple[str, ...], values.several("NAME ...", values.choice("--motions", MOTIONS), "--motions")], ...],
    UseAppendAction,
]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Render random scenes with exact G-buffers as WebDataset shards.

    Needs Mitsuba (pip install 'diffusion-renderer[data]'; make setup has it). A run that was stopped continues with the
    missing shards; the same seed gives the same clips.

    Instead of a folder OUT: `dataset inspect DIR` makes contact sheets and statistics, `dataset validate DIR` checks every
    clip, `dataset convert NAME DIR -o OUT` makes shards of a public data set, `dataset generate OUT` is this command; each has
    a --help. For a folder of such a name write ./inspect.
    """

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder of the shards."""
    clips: Count = 64
    """Clips in all."""
    frames: Annotated[int, *values.one("N", values.count_at_least("--frames", 1), "4")] = 4
    """Frames per clip."""
    fps: Annotated[float, *values.one("FPS", values.number_at_least("--fps", 0.01, "frames per second"), "12")] = 12.0
    """Frames per second, written beside the clip."""
    size: Annotated[tuple[int, int], *values.one("WxH", values.size, "128x128")] = (128, 128)
    """Pixels."""
    samples: Annotated[int, *values.one("N", values.count_at_least("--samples", 1), "16")] = 16
    """Light paths per pixel."""
    depth: Annotated[int, *values.one("N", values.count_at_least("--depth", 1), "5")] = 5
    """Longest light path; 2 is direct light only."""
    seed: values.Seed = 0
    """Seed of the dataset; training and evaluation use different ones."""
    family: Annotated[str, *values.one("objects|scenes|mixed", values.choice("--family", FAMILIES), "mixed")] = "mixed"
    """One object without a ground, objects on a ground, or both."""
    walls: Annotated[float, *values.one("P", values.number_at_least("--walls", 0.0, "a share from 0 to 1"), "0")] = 0.0
    """How often objects on a ground stand before one to three walls, as in rooms."""
    prints: Annotated[float, *values.one("P", values.number_at_least("--prints", 0.0, "a share from 0 to 1"), "0")] = 0.0
    """How often they stand on a printed mat, board or cloth: lines and letters on an even colour."""
    motions: Motions = ()
    """What moves: orbit oscillation light object-rotation object-translation static (default: all but static)."""
    lights: Annotated[int, *values.one("K", values.count_at_least("--lights", 1), "1")] = 1
    """Lights that every clip is rendered under."""
    assets: Annotated[Path | None, *values.one("DIR", Path, "none")] = None
    """Folder with models, materials and hdri, or some of them: used beside the procedural ones."""
    models: Annotated[Path | None, *values.one("DIR", Path, "DIR/models of --assets")] = None
    """Folder of 3D models."""
    materials: Annotated[Path | None, *values.one("DIR", Path, "DIR/materials of --assets")] = None
    """Folder of materials."""
    panoramas: Annotated[Path | None, *values.one("DIR", Path, "DIR/hdri of --assets, else procedural light only")] = None
    """Folder of .hdr and .exr panoramas that light half of the clips."""
    split: Annotated[str, *values.one("all|train|test", values.choice("--split", SPLITS), "all")] = "all"
    """Which of the folders' assets are used, by the hash of their names; a fifth is for testing."""
    format: Format = "png8"
    """Buffers as PNG of 8 or 16 bits, or as EXR."""
    shard_size: ShardSize = 64
    """Clips per shard."""
    shards: Annotated[tuple[int, int] | None, *values.one("A:B", values.span, "all")] = None
    """Only shards A to B - 1, counted from 0: several machines can share OUT."""
    workers: Annotated[int, *values.one("N", values.count_at_least("--workers", 0), "0: one per core, or one on a GPU")] = 0
    """Processes that render at once."""
    max_minutes: Minutes = None
    """Start no new shard after this many minutes."""
    variant: Annotated[
        str, *values.one("auto|cuda|llvm|scalar", values.choice("--variant", VARIANTS), "auto, the first that works")
    ] = "auto"
    """Where Mitsuba renders: on a GPU, on the CPU with or without vector code."""
    denoise_quality: Annotated[
        str, *values.one("high|balanced|fast", values.choice("--denoise-quality", DENOISE_QUALITIES), "fast")
    ] = "fast"
    """Effort of Open Image Denoise."""
    no_denoise: values.Flag = False
    """Leave Open Image Denoise out."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Render what is missing; say what was skipped and how fast it went."""
        from diffusion_renderer.cli.progress import Progress
        from diffusion_renderer.cli.record import make_output_folder
        from diffusion_renderer.datagen import generate_shards

        settings = self.settings()
        with Progress() as progress:
            started = time.time()
            summary = generate_shards(
                make_output_folder(self.out),
                settings,
                clips=self.clips,
                shard_size=self.shard_size,
                seed=self.seed,
                workers=self.workers,
                max_minutes=self.max_minutes,
                only=self.shards,
            )
            for line in describe_skipped(summary.get("skipped", {})):
                progress.say(line)
            frames = self.frames * fresh_clips(self.out, summary, started)
            if frames:
                progress.say(f"{frames} frames, {frames / (time.time() - started):.2f} frames/s")
            progress.made(self.out)

    def settings(self) -> Any:
        """The options as `DatasetSettings`. Raises InputError for a split of no assets."""
        from diffusion_renderer.datagen import DatasetSettings

        chosen, folders = values.flatten(self.motions), self.asset_folders()
        if self.split != "all" and not any(folders.values()):
            advice = "add --assets DIR, or leave --split out: procedural assets have no split"
            raise InputError(f"a folder of assets with --split {self.split}", "none", advice)
        return DatasetSettings(
            frames=self.frames,
            width=self.size[0],
            height=self.size[1],
            samples=self.samples,
            depth=self.depth,
            denoise=not self.no_denoise,
            denoise_quality=self.denoise_quality,
            family=self.family,
            walls=self.walls,
            prints=self.prints,
            lights=self.lights,
            split=self.split,
            format=self.format,
            fps=self.fps,
            variant=VARIANTS[self.variant],
            **({"motions": chosen} if chosen else {}),
            **folders,
        )

    def asset_folders(self) -> dict[str, Path | None]:
        """The folder of each kind of asset: its own option, else the one below --assets.

        Raises InputError when --assets has none of them.
        """
        from diffusion_renderer.datagen.assets import asset_folders

        inside = {} if self.assets is None else asset_folders(self.assets)
        return {name: getattr(self, name) or inside.get(name) for name in ("models", "materials", "panoramas")}


def describe_skipped(skipped: dict[str, str]) -> list[str]:
    """A line per asset that could not be used, and before them how many there are."""
    if not skipped:
        return []
    return [f"{len(skipped)} assets skipped:", *(f"  {name}: {' '.join(str(why).split())}" for name, why in skipped.items())]


def fresh_clips(out: Path, summary: dict[str, Any], since: float) -> int:
    """Clips in the shards that were written after the time ``since``."""
    # A second of slack: file systems keep coarser times than the clock.
    return sum(shard["clips"] for shard in summary["shards"] if (out / shard["name"]).stat().st_mtime >= since - 1)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Contact sheets and statistics of a data set.

    Writes clips.png (a frame of every clip with its normals, depth, base colour and objects), buffers.png (every buffer of the
    first 16), histograms.png, statistics.md and statistics.json. The clips are spread evenly over the data set.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder of shards."""
    out: Annotated[Path | None, *values.one("OUT", Path, "DIR/inspection"), arg(aliases=["-o"])] = None
    """Folder for the results."""
    clips: Count = 64
    """Clips to look at."""
    cell: Annotated[int, *values.one("PX", values.count_at_least("--cell", 16), "160")] = 160
    """Width of a picture, pixels."""
    middle: values.Flag = False
    """Show the middle frame of each clip, not the first."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Make the sheets."""
        from diffusion_renderer.cli.progress import Progress
        from diffusion_renderer.datagen.store.inspection import inspect

        out = self.out or self.folder / "inspection"
        with Progress() as progress:
            inspect(self.folder, out, self.clips, cell=self.cell, middle=self.middle, progress=progress)
            for name in ("clips.png", "buffers.png", "histograms.png", "statistics.md", "statistics.json"):
                progress.made(out / name)


@dataclass(frozen=True, kw_only=True)
class Validate:
    """Check a data set: archives, files, values, poses, lights, and depth against poses.

    Prints a table of the checks and a line per fault. Exit status 0 without a fault, 1 with one.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder of shards."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> int:
        """Print the report; returns the exit status."""
        from diffusion_renderer.cli.progress import Progress
        from diffusion_renderer.datagen.store.validation import validate

        with Progress() as progress:
            report = validate(self.folder, progress)
            progress.close()
            print(report.to_text())
        return 0 if report.ok else 1


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Make shards of a public data set that was downloaded and unpacked.

    What the data set lacks is left out of the shards.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Which data set it is; a wrong name lists those that are known."""
    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Its folder."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """Folder of the shards."""
    split: Annotated[str | None, *values.one("NAME", str, "everything")] = None
    """One of the data set's own splits."""
    frames: Annotated[int | None, *values.one("N", values.count_at_least("--frames", 1), "the reader's own")] = None
    """Frames per clip."""
    format: Format = "png8"
    """Buffers as PNG of 8 or 16 bits, or as EXR."""
    shard_size: ShardSize = 64
    """Clips per shard."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Read and write one clip after the other."""
        from diffusion_renderer.cli.progress import Progress
        from diffusion_renderer.cli.record import make_output_folder
        from diffusion_renderer.datagen.readers import read_public
        from diffusion_renderer.datagen.store.shards import write_samples

        with Progress() as progress:
            samples = read_public(self.name, self.folder, split=self.split, frames=self.frames)
            write_samples(make_output_folder(self.out), samples, self.shard_size, self.format)
            progress.made(self.out)


#: What may follow `dataset` instead of a folder.
ACTIONS: dict[str, type] = {"generate": Dataset, "inspect": Inspect, "validate": Validate, "convert": Convert}
