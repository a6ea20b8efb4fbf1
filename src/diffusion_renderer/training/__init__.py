"""Training: the stages of the paper over one loop.

state = train("inverse", TrainOptions(data=(Path("shards"),), out=Path("runs/mine")), preset="tiny")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_renderer.training.checkpoint import TrainState
from diffusion_renderer.training.options import STAGES, TrainOptions

if TYPE_CHECKING:
    from diffusion_renderer.training.data import Mixture
    from diffusion_renderer.training.presets import Preset
    from diffusion_renderer.training.steps import Stage

__all__ = ["STAGES", "TrainOptions", "TrainState", "assemble", "describe", "stage_folder", "train"]


def train(stage: str, options: TrainOptions, preset: str = "tiny") -> TrainState:
    """Train one stage of a preset: `vae`, then `env`, `inverse` and `forward`, which need the ones before them, then `distill`.

    `decoder`, `inverse`, and `forward` where its light is concatenated, need only `vae`; `distill` needs its teacher.

    Continues a run found in ``options.out``; stops at ``max_steps`` or ``max_minutes``; leaves checkpoints, a CSV log, sample
    sheets, the exported network, the effective settings and the list of the assets seen in `stage_folder`. Several processes,
    started by `accelerate launch` or `torchrun`, each call it alike and share the steps; ``options.out`` must be one folder for
    all of them.

    Raises InputError for a stage or preset that is not known, for a concatenated light in another stage than `forward`, for
    data that is not there, and when an earlier stage is missing.
    """
    from diffusion_renderer.training.loop import join_processes, run

    chosen = _check(stage, options, preset)
    options = replace(options, device=str(join_processes(options.device)))
    with _main_process_first() as main:
        data = _prepare(stage, options, chosen, main)
    return run(_build(stage, options, chosen, data), options)


def describe(stage: str, options: TrainOptions, preset: str = "tiny") -> str:
    """Sizes, memory and time of a stage without training it (see `training.plan`). Reads no data and writes nothing."""
    from diffusion_renderer.training import plan

    return plan.describe(_check(stage, options, preset), stage, options)


def assemble(run: Path, out: Path) -> int:
    """See `training.export.assemble`."""
    from diffusion_renderer.training.export import assemble

    return assemble(run, out)


def stage_folder(stage: str, options: TrainOptions) -> Path:
    """Where a stage keeps what it makes: below the run folder, under its name; students have one for each number of steps."""
    name = f"distill-{options.teacher}-{options.student_steps}" if stage == "distill" else stage
    return options.out / name


def _check(stage: str, options: TrainOptions, preset: str) -> Preset:
    """The preset by its name, when all fits together."""
    from diffusion_renderer.core.errors import InputError
    from diffusion_renderer.core.names import check_name
    from diffusion_renderer.training.presets import PRESETS

    check_name("training stage", stage, STAGES)
    check_name("preset", preset, PRESETS)
    if options.light != "encoder" and stage not in ("forward", "distill"):
        raise InputError(f"--light {options.light} with the stage forward", f"stage {stage}", "leave --light out")
    return PRESETS[preset]


@contextmanager
def _main_process_first() -> Iterator[bool]:
    """Let the main process write what the others then find; tells whether this is the main one. Alone, there is no waiting."""
    from accelerate import PartialState

    state = PartialState()
    with state.main_process_first():
        yield state.is_main_process


def _prepare(stage: str, options: TrainOptions, preset: Preset, main: bool) -> Mixture:
    """Lay out what the run goes on from, read the data, and, as the main process, record settings and assets."""
    from diffusion_renderer.datagen.assets.record import AssetRecord
    from diffusion_renderer.training.config import keep_record
    from diffusion_renderer.training.data import load_mixture
    from diffusion_renderer.training.record import extend_record

    folder = stage_folder(stage, options)
    if main and options.start_from is not None:
        _lay_out(stage, options, preset)
    prior = preset.prior if folder.name.startswith(("forward", "distill-forward")) else None
    data = load_mixture(options.data, options.out / "cache", prior, max_bad=options.max_bad)
    if main:
        extend_record(folder, AssetRecord(data.assets))
        keep_record(folder, stage, preset.name, options)
    return data


def _lay_out(stage: str, options: TrainOptions, preset: Preset) -> None:
    """Put the networks that a new run goes on from into its folder; what is there already is left alone."""
    from diffusion_renderer.pipelines import local_folder, locate_model
    from diffusion_renderer.training.export import unpack
    from diffusion_renderer.training.svd import STAGES as STARTED
    from diffusion_renderer.training.svd import unpack_svd

    source = options.start_from
    ours = any((Path(source) / kind / "unet").is_dir() for kind in STARTED)
    if preset.frozen_vae and not ours:
        parts = ("vae", *(name for name in STARTED if name == stage))
        unpack_svd(source, options.out, preset, parts, options.light)
        return
    folder = local_folder(source) or locate_model(str(source), "inverse")
    # The folder of one of the two renderers will do.
    model = folder.parent if (folder / "unet").is_dir() else folder
    unpack(model, options.out, options.light, preset.residual)


def _build(stage: str, options: TrainOptions, preset: Preset, data: Mixture) -> Stage:
    """The stage with its network, on the device of this process."""
    from diffusion_renderer.training.decoder import DecoderStage
    from diffusion_renderer.training.distill import DistillStage
    from diffusion_renderer.training.env import EnvStage
    from diffusion_renderer.training.forward import ForwardStage
    from diffusion_renderer.training.inverse import InverseStage
    from diffusion_renderer.training.vae import VaeStage, load_vae

    if stage in ("vae", "env"):
        return {"vae": VaeStage, "env": EnvStage}[stage](preset, data, options)
    later = {"decoder": DecoderStage, "inverse": InverseStage, "forward": ForwardStage, "distill": DistillStage}
    return later[stage](preset, load_vae(options.out), data, options)
