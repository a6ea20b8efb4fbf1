"""Training: the stages of the paper over one loop."""

from __future__ import annotations

from pathlib import Path

from diffusion_renderer.training.checkpoint import TrainState
from diffusion_renderer.training.options import STAGES, TrainOptions

__all__ = ["STAGES", "TrainOptions", "TrainState", "assemble", "train"]


def train(stage: str, options: TrainOptions, preset: str = "tiny") -> TrainState:
    """Train one stage of a preset: `vae`, then `env`, `inverse` and `forward`, which need the ones before them.

    `inverse`, and `forward` where its light is concatenated, need only `vae`.

    Continues a run found in ``options.out``; stops at ``max_steps`` or ``max_minutes``; leaves checkpoints, a CSV log, sample
    sheets, the exported network and the list of the assets seen in ``options.out / stage``. Raises InputError for a stage or
    preset that is not known, for a concatenated light in another stage than `forward`, for data that is not there, and when an
    earlier stage is missing.
    """
    from diffusion_renderer.core.errors import InputError
    from diffusion_renderer.core.names import check_name
    from diffusion_renderer.datagen.assets.record import AssetRecord
    from diffusion_renderer.training.autoencoder import VaeStage, load_vae
    from diffusion_renderer.training.data import load_frames
    from diffusion_renderer.training.environment import EnvStage
    from diffusion_renderer.training.export import unpack
    from diffusion_renderer.training.loop import run
    from diffusion_renderer.training.presets import PRESETS
    from diffusion_renderer.training.record import extend_record
    from diffusion_renderer.training.renderers import ForwardStage, InverseStage

    check_name("training stage", stage, STAGES)
    check_name("preset", preset, PRESETS)
    if options.light != "encoder" and stage != "forward":
        raise InputError(f"--light {options.light} with the stage forward", f"stage {stage}", "leave --light out")
    chosen = PRESETS[preset]
    if options.start_from is not None:
        unpack(options.start_from, options.out, options.light)
    store = load_frames(options.data, options.out / "cache", chosen.prior if stage == "forward" else None)
    extend_record(options.out / stage, AssetRecord(store.assets))
    if stage in ("vae", "env"):
        return run({"vae": VaeStage, "env": EnvStage}[stage](chosen, store, options), options)
    vae = load_vae(options.out)
    return run({"inverse": InverseStage, "forward": ForwardStage}[stage](chosen, vae, store, options), options)


def assemble(run: Path, out: Path) -> int:
    """See `training.export.assemble`."""
    from diffusion_renderer.training.export import assemble

    return assemble(run, out)
