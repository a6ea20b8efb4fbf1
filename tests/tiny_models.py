"""A random model folder small enough to run the whole command line in a second; its pictures mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import torch

LATENTS, WIDTHS = 4, (32, 32)


def save_tiny_model(folder: Path, **settings: object) -> Path:
    """Write ``folder/{vae,env_encoder,inverse,forward}``, seeded; ``settings`` go to both renderer.json."""
    from diffusion_renderer.models import AutoencoderKLTemporalDecoder, EnvEncoder, UNetCustomSpatioTemporalConditionModel

    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=LATENTS,
        layers_per_block=1,
        scaling_factor=1.0,
        force_upcast=False,
    )
    common = {
        "out_channels": LATENTS,
        "block_out_channels": WIDTHS,
        "layers_per_block": 1,
        "num_attention_heads": (1, 1),
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
        "num_frames": 4,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    }
    inverse = UNetCustomSpatioTemporalConditionModel(
        in_channels=2 * LATENTS, cross_attention_dim=32, temporal_cross_attention_dim=32, **common
    )
    forward = UNetCustomSpatioTemporalConditionModel(
        in_channels=6 * LATENTS,
        cross_attention_dim=WIDTHS,
        temporal_cross_attention_dim=None,
        context_embedding_type=None,
        multi_res_encoder_hidden_states=True,
        **common,
    )
    vae.save_pretrained(folder / "vae")
    EnvEncoder(in_channels=3 * LATENTS, channels=WIDTHS, num_res_blocks=1).save_pretrained(folder / "env_encoder")
    for kind, unet in (("inverse", inverse), ("forward", forward)):
        unet.save_pretrained(folder / kind / "unet")
        values = {"kind": kind, "default_steps": 1, "working_area": 1024, "env_size": 16, **settings}
        (folder / kind / "renderer.json").write_text(json.dumps(values))
    return folder
