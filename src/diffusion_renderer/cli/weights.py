"""`weights`: which models there are, fetching them, what is in one, making one of what was trained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg, subcommand

from diffusion_renderer.cli import values
from diffusion_renderer.core.errors import InputError

COMPONENTS = ("unet", "vae", "decoder_small", "env_encoder", "lora")
KINDS = ("inverse", "forward")


@dataclass(frozen=True, kw_only=True)
class ListModels:
    """The models known by name, and which of them are on this machine."""

    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Print one line per model and kind."""
        from diffusion_renderer.pipelines import MODEL_NAMES, PUBLISHED, local_folder

        print(f"{'name':<15}{'kind':<9}{'here':<6}from")
        for name in MODEL_NAMES:
            for kind in KINDS:
                here = "yes" if local_folder(name, kind) else "no"
                source = PUBLISHED[name][kind] if name in PUBLISHED else "this package"
                print(f"{name:<15}{kind:<9}{here:<6}{source}")


@dataclass(frozen=True, kw_only=True)
class Download:
    """Fetch a published model from Hugging Face, safetensors and JSON files only."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """A name from `weights list`, or a Hugging Face id owner/name."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Download and print the folders."""
        from diffusion_renderer.models import download_checkpoint
        from diffusion_renderer.pipelines import PUBLISHED, locate_model

        if self.name == "tiny":
            print(locate_model("tiny", "inverse").parent)
            return
        if self.name not in PUBLISHED and self.name.count("/") != 1:
            names = ", ".join(PUBLISHED)
            raise InputError(f"{names}, or a Hugging Face id owner/name", repr(self.name), "see `weights list`")
        repositories = PUBLISHED[self.name].values() if self.name in PUBLISHED else [self.name]
        for repository in repositories:
            print(download_checkpoint(repository), flush=True)


@dataclass(frozen=True, kw_only=True)
class Info:
    """What is in a model: its kind, the parameters of each network, its settings and its training record."""

    name: Annotated[Positional[str], arg(metavar="NAME|PATH")]
    """A name from `weights list`, a local folder, or a Hugging Face id that was downloaded."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Print a description of every renderer found."""
        from diffusion_renderer.pipelines import local_folder, locate_model

        folders = dict.fromkeys(folder for kind in KINDS if (folder := local_folder(self.name, kind)))
        if not folders:
            folders = dict.fromkeys([locate_model(self.name, "inverse")])
        for folder in folders:
            print("\n".join(describe(folder)) + "\n", flush=True)


@dataclass(frozen=True, kw_only=True)
class Assemble:
    """Make a model folder of what `train` has trained so far; give it to --model."""

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of `train`."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """Folder of the model; made when missing."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Copy the weights in float16."""
        from diffusion_renderer.cli.record import make_output_folder
        from diffusion_renderer.training import assemble

        size = assemble(self.run_folder, make_output_folder(self.out))
        print(f"{self.out}\nweights: {size / 1e6:.1f} MB")


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Fit the calibration of a model's buffers, and the noise of what it adds to classical pictures, on clips that it was not
    trained on; what helps is written to its renderer.json.

    Half of the clips are fitted on. A setting is taken where it is better on the other half by more than the standard error.
    """

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    """Model folder, as `weights assemble` makes it, or that of one renderer."""
    data: Annotated[tuple[Annotated[tuple[Path, ...], values.several("DIR ...", Path, "--data")], ...], UseAppendAction] = ()  # type: ignore[valid-type]
    """Folders of shards written by `dataset`, with a seed that the model was not trained on."""
    clips: Annotated[int | None, *values.one("N", values.count_at_least("--clips", 8), "64")] = None
    """At most so many of the clips, evenly spaced."""
    device: Annotated[str | None, *values.one("DEVICE", str, "cuda if there is one, else cpu")] = None
    """Where the renderers run: cpu, cuda, cuda:1."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Fit, write, and print what came of it."""
        from diffusion_renderer.cli.progress import Progress
        from diffusion_renderer.training.calibration import calibrate, table

        with Progress() as progress:
            fitted = calibrate(self.model, values.flatten(self.data), self.clips or 64, self.device, progress)
            progress.close()
            print(table(fitted) or "nothing to fit: the forward renderer makes whole frames")


Action = (
    Annotated[ListModels, subcommand("list")]
    | Annotated[Download, subcommand("download")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Assemble, subcommand("assemble")]
    | Annotated[Calibrate, subcommand("calibrate")]
)


@dataclass(frozen=True)
class Weights:
    """List, download, describe, assemble and calibrate models."""

    action: Action

    def run(self) -> None:
        """Run the action."""
        self.action.run()


def describe(folder: Path) -> Iterator[str]:
    """Lines that tell what the model in ``folder`` is; parameters are counted from the files' headers, not loaded.

    Raises InputError for a folder without networks and for damaged files.
    """
    from diffusion_renderer.models import check_kind

    yield f"model       {folder}"
    for kind in KINDS:
        try:
            check_kind(folder, kind)  # type: ignore[arg-type]
        except InputError as error:
            if kind == KINDS[-1]:
                raise error
            continue
        yield f"kind        {kind} renderer"
        break
    total = 0
    for name in COMPONENTS:
        files = sorted(component(folder, name).glob("*.safetensors"))
        count = sum(parameters(file) for file in files)
        total += count
        if files:
            size = sum(file.stat().st_size for file in files)
            yield f"{name:<14}{count:>13,} parameters, {size / 1e6:,.1f} MB"
    yield f"{'all':<14}{total:>13,} parameters"
    for title, path in (
        ("settings", folder / "renderer.json"),
        ("scheduler", folder / "scheduler" / "scheduler_config.json"),
        ("training", folder.parent / "training.json"),
        ("licence", folder.parent / "LICENSE"),
    ):
        if path.is_file():
            yield f"{title:<12}{_summary(path)}"


def component(folder: Path, name: str) -> Path:
    """Where a component lies: in the folder, or beside it when two renderers share it."""
    return folder / name if (folder / name).is_dir() else folder.parent / name


def parameters(path: Path) -> int:
    """Number of weights in a safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"a whole safetensors file at {path}", str(error), "copy or download it again") from error


def _summary(path: Path) -> str:
    if path.suffix != ".json":
        return path.read_text(encoding="utf-8").strip().splitlines()[0]
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"readable JSON in {path}", str(error), "copy or download it again") from error
    return ", ".join(f"{name} {_shortened(value)}" for name, value in entries.items() if not name.startswith("_"))


def _shortened(value: object) -> object:
    """A training record names every asset; here their number will do."""
    if not isinstance(value, dict):
        return value
    names = lambda entry: isinstance(entry, list) and all(isinstance(name, str) for name in entry)  # noqa: E731
    return {key: f"{len(entry)} names" if names(entry) else _shortened(entry) for key, entry in value.items()}
