"""Checkpoints in diffusers' folder layout: ``unet``, ``vae``, ``scheduler``, ``env_encoder``, ``lora``, and our own
``decoder_small``; safetensors only.

``model_index.json`` and folders of other components are ignored: the class names in them belong to whoever saved them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models.autoencoder import AutoencoderKLTemporalDecoder
from diffusion_renderer.models.env_encoder import EnvEncoder
from diffusion_renderer.models.lora import WEIGHTS_NAME, LoraNetwork
from diffusion_renderer.models.small_decoder import FOLDER as SMALL_DECODER
from diffusion_renderer.models.small_decoder import SmallDecoder
from diffusion_renderer.models.unet import UNetCustomSpatioTemporalConditionModel

Kind = Literal["inverse", "forward"]
#: Files that can run code when loaded.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Checkpoint:
    """The networks and settings files of one renderer.

    Attributes
    ----------
    scheduler : contents of ``scheduler/scheduler_config.json``; empty when there is none.
    settings : contents of ``renderer.json``; empty when there is none.
    env_encoder, lora, decoder_small : None where the checkpoint has none. A forward renderer whose settings say
        ``"light": "concat"`` needs no environment encoder (see `models.lighting`).
    """

    kind: Kind
    folder: Path
    unet: UNetCustomSpatioTemporalConditionModel
    vae: AutoencoderKLTemporalDecoder
    scheduler: dict[str, Any]
    settings: dict[str, Any]
    env_encoder: EnvEncoder | None = None
    lora: LoraNetwork | None = None
    decoder_small: SmallDecoder | None = None


def download_checkpoint(repository: str) -> Path:
    """The local copy of a Hugging Face repository, downloaded where needed: JSON and safetensors files only.

    Raises InputError for an unknown repository, and without a network for one that is not there already.
    """
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"]))
    except HFValidationError as error:
        raise InputError("a Hugging Face repository id like owner/name", repository, "correct the name") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"the Hugging Face repository {repository}, or a folder of that name",
            f"neither ({type(error).__name__})",
            "check the name and the network, or download it elsewhere and give its folder",
        ) from error


def load_checkpoint(folder: Path, kind: Kind, *, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """Load a renderer's networks, in evaluation mode and without gradients.

    A component that is not in ``folder`` is looked for beside it, so that two renderers can share a VAE. With ``dtype`` float16
    a VAE whose config asks for it (``force_upcast``) stays in float32.

    Raises InputError for a folder that is not a checkpoint or of the other kind, for pickled, missing, truncated or foreign
    weights.
    """
    check_kind(folder, kind)
    unet = _load(UNetCustomSpatioTemporalConditionModel, _component(folder, "unet"), dtype)
    vae_folder = _component(folder, "vae")
    upcast = dtype == torch.float16 and _read_json(vae_folder / "config.json").get("force_upcast", True)
    vae = _load(AutoencoderKLTemporalDecoder, vae_folder, torch.float32 if upcast else dtype)
    settings = _read_json(folder / "renderer.json", optional=True)
    encoder = None
    if kind == "forward" and settings.get("light", "encoder") == "encoder":
        encoder = _load(EnvEncoder, _component(folder, "env_encoder"), dtype).to(device)
        _check_levels(folder, unet, encoder)
    unet = unet.to(device)
    adapter = folder / "lora" / WEIGHTS_NAME
    _refuse_pickles(adapter.parent)
    return Checkpoint(
        kind=kind,
        folder=folder,
        unet=unet,
        vae=vae.to(device),
        scheduler=_read_json(folder / "scheduler" / "scheduler_config.json", optional=True),
        settings=settings,
        env_encoder=encoder,
        lora=LoraNetwork(unet, adapter) if adapter.exists() else None,
        decoder_small=_small_decoder(folder, vae, device),
    )


def check_kind(folder: Path, kind: Kind) -> None:
    """Raise InputError unless ``folder`` holds a checkpoint of this kind, as far as its config files tell."""
    unet = _read_json(_component(folder, "unet") / "config.json")
    latents = _read_json(_component(folder, "vae") / "config.json").get("latent_channels", 4)
    images, rest = divmod(unet.get("in_channels", 0), latents)
    made = unet.get("out_channels", 4) // latents
    # An inverse renderer reads one condition latent beside the noise of what it makes, and names the buffer by a domain
    # embedding; a forward renderer reads several condition latents and, as one map per level, the light's features (zeros
    # where the light is concatenated).
    if rest == 0 and images == made + 1 and not unet.get("multi_res_encoder_hidden_states"):
        found: str = "inverse"
    elif rest == 0 and images > 2 and unet.get("multi_res_encoder_hidden_states"):
        found = "forward"
    else:
        found = f"a UNet of {unet.get('in_channels')} input channels over {latents} latent channels"
    if found != kind:
        other = f"load it with load_{found}" if found in ("inverse", "forward") else "give the folder of another checkpoint"
        raise InputError(
            f"an {kind} renderer in {folder}" if kind == "inverse" else f"a {kind} renderer in {folder}", found, other
        )


def check_decoder(folder: Path, decoder: str | None) -> None:
    """Raise InputError where a small decoder is asked for, or by None that of ``renderer.json``, and ``folder`` has none."""
    wanted = decoder or _read_json(folder / "renderer.json", optional=True).get("decoder", "full")
    if wanted == "small" and _small_decoder_folder(folder) is None:
        advice = "take the full decoder (--decoder full), or train a small one with `diffusion-renderer train decoder`"
        raise InputError(f"a small decoder in {folder}", "none", advice)


def _small_decoder_folder(folder: Path) -> Path | None:
    return next((place / SMALL_DECODER for place in (folder, folder.parent) if (place / SMALL_DECODER).is_dir()), None)


def _small_decoder(folder: Path, vae: AutoencoderKLTemporalDecoder, device: torch.device) -> SmallDecoder | None:
    """The small decoder, in the VAE's dtype; None where there is none."""
    source = _small_decoder_folder(folder)
    if source is None:
        return None
    small = _load(SmallDecoder, source, vae.dtype)
    expected = {"latent_channels": vae.config.latent_channels, "factor": 2 ** (len(vae.config.block_out_channels) - 1)}
    found = {name: small.config[name] for name in expected}
    if found != expected:
        raise InputError(f"a small decoder of {expected} in {source}", str(found), "use the one that came with the VAE")
    # On a CPU it is a quarter faster in this order, on tensor cores it is the native one.
    return small.to(device, memory_format=torch.channels_last)


def _component(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder.parent / name):
        if candidate.is_dir():
            return candidate
    parts = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no folder"
    raise InputError(
        f"a checkpoint folder with a subfolder {name} in {folder}",
        parts or "an empty folder",
        "give the folder that holds unet and vae",
    )


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        if optional:
            return {}
        raise InputError(f"the file {path}", "none", "copy the whole checkpoint again") from error
    except (OSError, ValueError) as error:
        raise InputError(f"a readable JSON file {path}", f"{error}", "copy the whole checkpoint again") from error
    if not isinstance(value, dict):
        raise InputError(f"a JSON object in {path}", type(value).__name__, "copy the whole checkpoint again")
    return value


def _refuse_pickles(folder: Path) -> None:
    files = list(folder.iterdir()) if folder.is_dir() else []
    pickled = [file.name for file in files if file.suffix.lower() in PICKLES]
    if pickled and not any(file.suffix == ".safetensors" for file in files):
        raise InputError(
            f"safetensors weights in {folder}",
            f"{pickled[0]}, a pickle, which can run code when loaded",
            "convert it to safetensors where you trust it (safetensors.torch.save_file)",
        )


def _load(kind: type[ModelMixin], folder: Path, dtype: torch.dtype) -> Any:
    """One network of diffusers' layout, whole files or shards."""
    _read_json(folder / "config.json")
    _refuse_pickles(folder)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"a .safetensors file in {folder}", "none", "copy the whole checkpoint again")
    try:
        network, info = kind.from_pretrained(folder, use_safetensors=True, torch_dtype=dtype, output_loading_info=True)
    # Damaged files and configs surface as almost any exception, from three libraries; each of them means the same to the user.
    except Exception as error:
        raise InputError(
            f"readable {kind.__name__} weights in {folder}", f"{error}"[:300], "copy the checkpoint again"
        ) from error
    wrong = [
        f"{len(info[key])} {key.replace('_', ' ')}"
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[key]
    ]
    if wrong:
        raise InputError(
            f"the weights of a {kind.__name__} in {folder}", ", ".join(wrong), "use the config.json that belongs to them"
        )
    return network.eval().requires_grad_(False)


def _check_levels(folder: Path, unet: UNetCustomSpatioTemporalConditionModel, encoder: EnvEncoder) -> None:
    if list(encoder.config.channels) != unet.context_channels:
        raise InputError(
            f"an environment encoder of widths {unet.context_channels} in {folder}",
            str(list(encoder.config.channels)),
            "use the encoder that came with the UNet",
        )
