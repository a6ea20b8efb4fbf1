"""Start from Stable Video Diffusion: its UNet becomes either renderer's, its autoencoder is taken as it is (paper, section 4).

What the widened network computes before training is exactly what Stable Video Diffusion computes with its context at zero: the
new input channels have zero weights, the domain embeddings are zero, and cross-attention to the light has values of zero. The
environment encoder is not in Stable Video Diffusion; its stage trains it from nothing.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.datagen.assets.record import AssetRecord
from diffusion_renderer.models import AutoencoderKLTemporalDecoder, LightCondition, download_checkpoint
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.record import extend_record
from diffusion_renderer.training.steps import derived_seed

log = logging.getLogger(__name__)

STAGES = ("inverse", "forward")
#: Precisions in which the weights are published, the better one first: the middle part of the file names.
VARIANTS = ("", ".fp16")
#: Noise channels of Stable Video Diffusion's first convolution, ahead of those of the image that it animates.
NOISE_CHANNELS = 4
#: Projections of the context, whose input changes its width where the light's features take its place.
_CONTEXT = ("attn2.to_k.weight", "attn2.to_v.weight")
#: What a temporal block without cross-attention does not have.
_TEMPORAL_CROSS = (".attn2.", ".norm2.")


@dataclass(frozen=True)
class Origin:
    """Where the tensors of a UNet come from, by name.

    Attributes
    ----------
    kept : of Stable Video Diffusion, unchanged.
    changed : of Stable Video Diffusion, widened by zeros or with a bias moved into them.
    new : not in Stable Video Diffusion, or there in another shape.
    left_out : of Stable Video Diffusion, not used.
    """

    kept: tuple[str, ...]
    changed: tuple[str, ...]
    new: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.kept)} tensors kept, {len(self.changed)} changed, {len(self.new)} new,"
            f" {len(self.left_out)} of Stable Video Diffusion left out"
        )


def start_from_svd(source: str | Path, preset: Preset, stage: str, light: LightCondition = "encoder") -> nn.Module:
    """The UNet of stage ``inverse`` or ``forward`` with the weights of Stable Video Diffusion, in float32 on the CPU.

    ``source`` is a folder in diffusers' layout (``unet``, ``vae``) or a Hugging Face repository id. Weights may be whole or
    sharded safetensors, float32 or the float16 variant; where both are there, float32 is read. It cannot read the original
    single-file checkpoints. Raises InputError for anything else, and for a preset of other sizes.
    """
    check_name("stage that starts from Stable Video Diffusion", stage, STAGES)
    folder = _located(source)
    # On the meta device: random weights for 1.5 billion parameters, to be overwritten, take longer than reading the file.
    with torch.device("meta"):
        network = preset.inverse_unet() if stage == "inverse" else preset.forward_unet(light)
    weights, origin = initial_weights(_read(folder / "unet"), network, _image_scale(preset, stage))
    network.load_state_dict(weights, assign=True)
    log.info("%s from %s: %s; new: %s", stage, folder, origin, ", ".join(origin.new) or "none")
    return network


def svd_autoencoder(source: str | Path, preset: Preset) -> AutoencoderKLTemporalDecoder:
    """The autoencoder of Stable Video Diffusion, unchanged, in float32. ``source`` and errors as for `start_from_svd`."""
    folder = _located(source) / "vae"
    with torch.device("meta"):
        vae = preset.vae()
    weights = {name: value.float() for name, value in _read(folder).items()}
    wrong = _differences(weights, vae)
    if wrong:
        raise InputError(f"the autoencoder of preset {preset.name} in {folder}", wrong, "give Stable Video Diffusion's folder")
    vae.load_state_dict(weights, assign=True)
    scale = _config(folder).get("scaling_factor", preset.vae_scale)
    vae.register_to_config(scaling_factor=scale)
    return vae.eval().requires_grad_(False)


def unpack_svd(
    source: str | Path, run: Path, preset: Preset, stages: tuple[str, ...] = STAGES, light: LightCondition = "encoder"
) -> None:
    """Lay Stable Video Diffusion into a run folder, so that the stages go on from it, as `export.unpack` does with our models.

    What the run has already is left alone. The record of assets says that it is not complete: nobody knows which videos Stable
    Video Diffusion has seen.
    """
    folders = {"vae": run / "vae" / "vae", **{stage: run / stage / "unet" for stage in stages}}
    for stage, target in folders.items():
        if (target / "config.json").exists():
            continue
        network = svd_autoencoder(source, preset) if stage == "vae" else start_from_svd(source, preset, stage, light)
        extend_record(run / stage, AssetRecord(complete=False))
        # In one file, which is what the stages read.
        network.save_pretrained(target, max_shard_size="100GB")


def initial_weights(found: dict[str, Tensor], network: nn.Module, image_scale: float = 1.0) -> tuple[dict[str, Tensor], Origin]:
    """Weights for all of the network's parameters, in float32, from those of Stable Video Diffusion's UNet.

    ``image_scale`` is what the latents that take the place of Stable Video Diffusion's image condition are multiplied by; the
    weights are divided by it, so that the network sees them as it knows them. Raises InputError when the sizes do not fit.
    """
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    left_out = {name for name in found if name not in wanted and _is_temporal_cross(name)}
    weights: dict[str, Tensor] = {}
    new, wrong = set(), [name for name in found if name not in wanted and name not in left_out]
    for name, shape in wanted.items():
        value = found.get(name)
        if value is not None and value.shape == shape:
            weights[name] = value.float().clone()
        elif name == "conv_in.weight" and value is not None and _widens(value.shape, shape):
            weights[name] = torch.zeros(shape)
            weights[name][:, : value.shape[1]] = value
        elif name == "context_embedding.weight":
            weights[name] = torch.zeros(shape)
            new.add(name)
        elif name.endswith(_CONTEXT) and value is not None and value.shape[0] == shape[0]:
            weights[name] = _new_projection(name, shape)
            new.add(name)
        else:
            wrong.append(name)
    if wrong:
        raise InputError(
            f"Stable Video Diffusion's UNet, of {len(wanted)} tensors with the sizes of the preset",
            f"{len(wrong)} tensors that do not fit, such as {wrong[0]}",
            "give its folder in diffusers' layout, and the preset svd",
        )
    first = weights["conv_in.weight"]
    first[:, NOISE_CHANNELS : found["conv_in.weight"].shape[1]] /= image_scale
    changed = _keep_constants(weights, found, left_out)
    if image_scale != 1 or first.shape != found["conv_in.weight"].shape:
        changed.add("conv_in.weight")
    kept = tuple(name for name in wanted if name not in changed | new)
    return weights, Origin(kept, tuple(sorted(changed)), tuple(sorted(new)), tuple(sorted(left_out)))


def _image_scale(preset: Preset, stage: str) -> float:
    """Stable Video Diffusion reads the latent of its image unscaled; the forward renderer reads its conditions scaled."""
    return preset.vae_scale if preset.renderer_settings(stage)["condition_scaled"] else 1.0


def _keep_constants(weights: dict[str, Tensor], found: dict[str, Tensor], left_out: set[str]) -> set[str]:
    """Move the bias of cross-attention that is left out into that of the self-attention before it; names of what changed.

    With the context at zero, which stands for "no condition" in Stable Video Diffusion's training, cross-attention adds its
    bias to the residual stream and nothing else. So does the bias of the self-attention just before it.
    """
    changed = set()
    for name in left_out:
        if name.endswith(".attn2.to_out.0.bias"):
            before = name.replace(".attn2.", ".attn1.")
            weights[before] = weights[before] + found[name].float()
            changed.add(before)
    return changed


def _new_projection(name: str, shape: torch.Size) -> Tensor:
    """A projection of the light's features: values start at zero, keys at PyTorch's default for linear layers.

    So the light has no effect at first, and its values learn from the first step on, its keys from the second.
    """
    if name.endswith("to_v.weight"):
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(derived_seed("svd", name))
    return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[1])


def _is_temporal_cross(name: str) -> bool:
    return ".temporal_transformer_blocks." in name and any(part in name for part in _TEMPORAL_CROSS)


def _widens(found: torch.Size, wanted: torch.Size) -> bool:
    """The same convolution over more input channels."""
    return found[0] == wanted[0] and found[2:] == wanted[2:] and found[1] < wanted[1]


def _located(source: str | Path) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        if isinstance(source, Path) and (source.is_absolute() or len(source.parts) != 2):
            raise InputError("a folder of Stable Video Diffusion", f"no folder {source}", "correct the path")
        folder = download_checkpoint(str(source))
    for part in ("unet", "vae"):
        if not (folder / part / "config.json").exists():
            raise InputError(
                f"Stable Video Diffusion in diffusers' layout (unet, vae) in {folder}",
                f"no {part}/config.json",
                "give the folder that holds unet and vae",
            )
    return folder


def _config(folder: Path) -> dict[str, object]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"a readable JSON file {folder / 'config.json'}", f"{error}", "copy the folder again") from error


def _read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a component: one whole file or all shards, of the first variant of `VARIANTS` that is there."""
    for variant in VARIANTS:
        whole = folder / f"diffusion_pytorch_model{variant}.safetensors"
        files = [whole] if whole.exists() else sorted(folder.glob(f"diffusion_pytorch_model{variant}-*-of-*.safetensors"))
        if files:
            _check_complete(files)
            try:
                return {name: value for file in files for name, value in load_file(file).items()}
            except (OSError, SafetensorError) as error:
                raise InputError(f"readable weights in {folder}", f"{error}", "copy the folder again") from error
    raise InputError(f"safetensors weights in {folder}", "none", "copy the whole folder, or another variant of it")


def _check_complete(files: list[Path]) -> None:
    """InputError where shards are missing; their names end in their number and how many there are."""
    if "-of-" not in files[0].name:
        return
    count = int(files[0].stem.rsplit("-of-", 1)[1])
    if len(files) != count:
        raise InputError(f"{count} shards of weights in {files[0].parent}", str(len(files)), "copy the missing ones")


def _differences(weights: dict[str, Tensor], network: nn.Module) -> str:
    """In words, how many tensors are missing, unexpected or of another shape; empty where they fit."""
    wanted = network.state_dict()
    other = [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape]
    counts = {"missing": wanted.keys() - weights.keys(), "unexpected": weights.keys() - wanted.keys(), "of other shapes": other}
    return ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names)
