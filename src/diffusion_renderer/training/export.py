"""Collects the stages' networks into the model folders that the pipelines load."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.assets.record import AssetRecord, read_records
from diffusion_renderer.models import LightCondition
from diffusion_renderer.training import checkpoint
from diffusion_renderer.training.digest import belongs, weights_digest
from diffusion_renderer.training.options import STAGES
from diffusion_renderer.training.record import extend_record, read_record

log = logging.getLogger(__name__)

#: Settings that are fitted to the weights of a renderer, see `calibration`.
FITTED = ("calibration", "residual_noise")
#: Part of the model -> folder of the run that the stage wrote.
PARTS = {
    "vae": "vae/vae",
    "decoder_small": "decoder/decoder_small",
    "env_encoder": "env/env_encoder",
    "inverse/unet": "inverse/unet",
    "inverse/scheduler": "inverse/scheduler",
    "forward/unet": "forward/unet",
    "forward/scheduler": "forward/scheduler",
    "forward/lora": "forward/lora",
}


def assemble(run: Path, out: Path) -> int:
    """Copy what a run has trained so far to ``out``, weights in float16; returns the bytes of the weights.

    The two renderers share the autoencoder, which lies beside them; the environment encoder lies there as well, except where
    the forward renderer reads its light by concatenation. A stage that has not run yet is left out. InputError when none has.
    A small decoder that was trained is what the renderers use, unless a call says otherwise; one that was trained for another
    autoencoder than the run has now is left out, with a warning. What `calibration.calibrate` has fitted in ``out`` is kept
    where the weights that come are those that are there.
    training.json says of every stage how long it was trained and which assets it has seen (see `datagen.assets.record`).
    """
    found = {part: run / source for part, source in PARTS.items() if (run / source).is_dir()}
    if "decoder_small" in found and "vae" in found and not belongs(found["decoder_small"], found["vae"]):
        log.warning("%s was trained for another autoencoder and is left out: train decoder again", found.pop("decoder_small"))
    encoder = _light(run / "forward") == "encoder"
    if not encoder:
        found.pop("env_encoder", None)
    if "forward/lora" not in found and "forward/unet" in found:
        # The adapter of a network that was here before does not fit the one that comes.
        shutil.rmtree(out / "forward/lora", ignore_errors=True)
    if not found:
        raise InputError(f"trained stages in {run}", "none", "run `diffusion-renderer train vae` and the later stages first")
    fitted = {kind: _still_fitted(kind, found, out) for kind in ("inverse", "forward")}
    total = 0
    for part, source in found.items():
        target = out / part
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for path in sorted(source.iterdir()):
            if path.suffix == ".json":
                shutil.copy(path, target / path.name)
            elif path.suffix == ".safetensors":
                halves = {name: value.half().contiguous() for name, value in load_file(path).items()}
                save_file(halves, target / path.name, metadata={"format": "pt"})
                total += (target / path.name).stat().st_size
    if "decoder_small" not in found:
        # That of a model that was here before reads other latents.
        shutil.rmtree(out / "decoder_small", ignore_errors=True)
    for kind in ("inverse", "forward"):
        if (run / kind / "renderer.json").exists():
            settings = {**_settings(run / kind), **fitted[kind]}
            # A renderer that was copied from a model may name a decoder that the run does not have.
            settings.pop("decoder", None)
            settings |= {"decoder": "small"} if "decoder_small" in found else {}
            (out / kind / "renderer.json").write_text(json.dumps(settings, indent=2))
    stages = [stage for stage in STAGES if (run / stage).is_dir() and (encoder or stage != "env")]
    records = {stage: _record(run / stage) for stage in stages}
    (out / "training.json").write_text(json.dumps(records, indent=2))
    return total


def _still_fitted(kind: str, found: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """What was fitted to the renderer in ``out``, where none of the networks that decide what it makes is to change."""
    known = {name: value for name, value in _settings(out / kind).items() if name in FITTED}
    if not known:
        return {}
    others = ("forward/", "env_encoder") if kind == "inverse" else ("inverse/",)
    for part in PARTS:
        if part.startswith(others) or part.endswith("scheduler"):
            continue
        if part in found and weights_digest(out / part) != weights_digest(found[part]):
            return {}
        if part == "decoder_small" and part not in found and (out / part).is_dir():
            return {}
    return known


def unpack(model: Path, run: Path, light: LightCondition = "encoder", residual: bool | None = None) -> None:
    """The reverse of `assemble`: lay a model's networks into a run folder, so that its stages go on from them.

    What the run has already is left alone; the stages of what is copied inherit the model's record of assets, and a renderer
    keeps its settings until it is trained. A forward renderer that is told the light in another way than ``light`` is left out,
    since no network of ours can go on from it: the ablation takes the autoencoder of any model. Where one that makes the
    difference to a classical picture (``residual``; None: as the model has it) is to go on from one that makes the whole frame,
    its last convolution is set to zero: it begins with the picture. The other way round it is left out. InputError when the
    model has none of the parts.
    """
    found = {part: target for part, target in PARTS.items() if (model / part).is_dir()}
    settings = _settings(model / "forward")
    made = bool(settings.get("residual", False))
    if settings.get("light", "encoder") != light or (made and residual is False):
        found = {part: target for part, target in found.items() if not part.startswith("forward/")}
    if "forward/unet" not in found:
        # An adapter is nothing without its network.
        found.pop("forward/lora", None)
    if not found:
        raise InputError(f"a model with {', '.join(PARTS)}", f"none of them in {model}", "give the folder that holds them")
    missing = {part: target for part, target in found.items() if not (run / target).exists()}
    records = read_records(model)
    # First, so that a copy that is interrupted leaves no networks without their record.
    for stage in dict.fromkeys(target.split("/")[0] for target in missing.values()):
        extend_record(run / stage, records.get(stage, AssetRecord(complete=False)))
    for part, target in missing.items():
        shutil.copytree(model / part, run / target)
    for kind in ("inverse", "forward"):
        silenced = kind == "forward" and residual and not made
        if f"{kind}/unet" in missing and (model / kind / "renderer.json").exists() and not silenced:
            shutil.copy(model / kind / "renderer.json", run / kind / "renderer.json")
    if "forward/unet" in missing and residual and not made:
        _silence(run / missing["forward/unet"])


def _silence(unet: Path) -> None:
    """Set the last convolution of a network to zero: it makes nothing."""
    for path in unet.glob("*.safetensors"):
        weights = load_file(path)
        last = {name: torch.zeros_like(value) for name, value in weights.items() if name.startswith("conv_out.")}
        save_file(weights | last, path, metadata={"format": "pt"})


def _light(forward: Path) -> str:
    """How the forward renderer in a folder is told the light, by its renderer.json; the default where there is none."""
    return _settings(forward).get("light", "encoder")


def _settings(folder: Path) -> dict[str, Any]:
    """What renderer.json in a folder says; nothing where there is none."""
    path = folder / "renderer.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"readable settings in {path}", str(error), "copy or export the model again") from error


def _record(folder: Path) -> dict[str, Any]:
    """Steps and seconds that a stage has trained for, and the assets that it has seen."""
    newest, assets = checkpoint.newest(folder), read_record(folder)
    state = None if newest is None else checkpoint.read_state(newest)
    steps = {} if state is None else {"step": state.step, "seconds": state.seconds}
    return steps | ({} if assets is None else assets.to_json())
