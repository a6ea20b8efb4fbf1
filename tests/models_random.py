"""Tiny models with random weights, in the folder layout of checkpoints. Sizes differ from the published ones on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from diffusion_renderer.models import AutoencoderKLTemporalDecoder, EnvEncoder, UNetCustomSpatioTemporalConditionModel

LATENTS = 8
WIDTHS = (32, 64, 64)
GROUPS = [["basecolor"], ["normal"], ["depth", "roughness", "metallic"]]


def random_unet(
    kind: str, latents: int = LATENTS, conditions: int = 5, **options: Any
) -> UNetCustomSpatioTemporalConditionModel:
    """Three levels; cross-attention at the lower two (inverse) or the upper two and the middle (forward)."""
    torch.manual_seed(0)
    sizes = {
        "in_channels": latents * (2 if kind == "inverse" else 1 + conditions),
        "out_channels": latents,
        "block_out_channels": WIDTHS,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
        "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
        "layers_per_block": 1,
        "num_attention_heads": (1, 2, 2),
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
        "num_frames": 4,
    }
    if kind == "inverse":
        sizes |= {"cross_attention_dim": 16, "temporal_cross_attention_dim": 16, "context_vocab_size": 16}
    else:
        sizes |= {"cross_attention_dim": WIDTHS, "temporal_cross_attention_dim": None, "context_embedding_type": None}
        sizes |= {"multi_res_encoder_hidden_states": True}
    return UNetCustomSpatioTemporalConditionModel(**{**sizes, **options}).eval()


def random_vae(latents: int = LATENTS) -> AutoencoderKLTemporalDecoder:
    """Three levels: factor 4."""
    torch.manual_seed(1)
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        latent_channels=latents,
        scaling_factor=0.5,
    ).eval()


def random_env_encoder(latents: int = LATENTS) -> EnvEncoder:
    torch.manual_seed(2)
    return EnvEncoder(in_channels=3 * latents, channels=WIDTHS, num_res_blocks=1).eval()


def save_model(folder: Path, kind: str, *, lora: bool = False, conditions: int = 5, **settings: Any) -> Path:
    """A checkpoint folder; ``settings`` go to its renderer.json."""
    sizes = {}
    if settings.get("joint"):
        made = len(settings["groups"])
        sizes = {"in_channels": (made + 1) * LATENTS, "out_channels": made * LATENTS}
    random_unet(kind, conditions=conditions, **sizes).save_pretrained(folder / "unet")
    random_vae().save_pretrained(folder / "vae")
    if kind == "forward":
        random_env_encoder().save_pretrained(folder / "env_encoder")
    if lora:
        save_lora(folder, random_unet(kind, conditions=conditions))
    values = {"default_steps": 1, "working_area": None, "env_size": 16, **settings}
    (folder / "renderer.json").write_text(json.dumps(values))
    return folder


def save_shared_model(folder: Path, **settings: Any) -> Path:
    """Both renderers around one autoencoder, as the package's own: ``folder/{vae,env_encoder,inverse,forward}``."""
    random_vae().save_pretrained(folder / "vae")
    random_env_encoder().save_pretrained(folder / "env_encoder")
    for kind in ("inverse", "forward"):
        random_unet(kind).save_pretrained(folder / kind / "unet")
        values = {"kind": kind, "default_steps": 1, "working_area": 1024, "env_size": 16, **settings}
        (folder / kind / "renderer.json").write_text(json.dumps(values))
    return folder


def save_lora(folder: Path, network: nn.Module, rank: int = 4) -> Path:
    """A random adapter of every attention layer, in diffusers' old key names."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            tensors[f"unet.{name}.lora.down.weight"] = torch.randn(rank, module.in_features, generator=generator) * 0.3
            tensors[f"unet.{name}.lora.up.weight"] = torch.randn(module.out_features, rank, generator=generator) * 0.3
    (folder / "lora").mkdir(parents=True, exist_ok=True)
    path = folder / "lora" / "pytorch_lora_weights.safetensors"
    save_file(tensors, path)
    return path
