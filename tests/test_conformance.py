"""The published system's numbers, reproduced (tests/data/conformance/README.md; another folder by CONFORMANCE_DIR).

Which entries there are, their step counts, guidance and LoRA scales are read from the files, never assumed.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffusion_renderer.light import EnvironmentImages
from diffusion_renderer.models import AutoencoderKLTemporalDecoder, EnvEncoder, UNetCustomSpatioTemporalConditionModel
from diffusion_renderer.pipelines import DiffusionForwardRenderer, DiffusionInverseRenderer, load_forward, load_inverse

FOLDER = Path(os.environ.get("CONFORMANCE_DIR") or Path(__file__).parent / "data" / "conformance")
TINY = FOLDER / "published_tiny"

# The reference ran in float32, and its own rounding exceeds 1e-4 in single values: it subtracts numbers near sigma_max = 700
# (one unit in the last place there is 6e-5 to 2.4e-4), and its group norms over single pixels amplify rounding a thousand
# times. Two of its entries that are equal by mathematics, LoRA scale 0 and no LoRA, differ by 5.8e-5 in the mean and by 4e-4
# at most. So latents are held to 1e-4 in the mean, and we compute in float64, so that no rounding of ours comes on top. Worst
# of all entries without guidance: mean 6.4e-5, maximum 3.4e-4. Guidance g = g * conditional - (g - 1) * unconditional
# multiplies errors by up to 2 g - 1; worst at 1.2: mean 7.8e-5, maximum 5.8e-4. The environment encoder's group-norm epsilon
# wrong by a factor of ten gives a mean of 1.5e-4 there.
LATENT_MEAN, LATENT_MAX = 1e-4, 1e-3
# Images are compared value by value. Worst: 3.0e-4 without guidance, 5.8e-4 with 1.2.
IMAGE_MAX = 1e-3

INVERSE_KEY = re.compile(r"^inverse\.steps(?P<steps>\d+)\.(?P<buffer>[a-z_]+)$")
FORWARD_KEY = re.compile(r"^forward\.steps(?P<steps>\d+)\.cfg(?P<cfg>\d+(?:\.\d+)?)(?:\.lora(?P<lora>\d+(?:\.\d+)?))?$")


def entries(kind: str) -> list[str]:
    """Names of the results in a file, without the ending that says image or latent."""
    path = TINY / f"{kind}_io.safetensors"
    if not path.exists():
        return []
    with safe_open(path, "pt") as file:
        names = {key.removesuffix(".latent") for key in file.keys()}
    return sorted(name for name in names if name.startswith(f"{kind}."))


@cache
def numbers(kind: str) -> dict[str, Tensor]:
    return load_file(TINY / f"{kind}_io.safetensors")


def whole(renderer: Any) -> Any:
    """The published pipelines know no windows: every clip in one piece."""
    renderer.window = 10**6
    return renderer


@cache
def inverse_renderer(dtype: torch.dtype = torch.float64) -> DiffusionInverseRenderer:
    return whole(load_inverse(TINY / "inverse", device="cpu", dtype=dtype))


@cache
def forward_renderer() -> DiffusionForwardRenderer:
    return whole(load_forward(TINY / "forward", device="cpu", dtype=torch.float64))


def inverse_latents(renderer: DiffusionInverseRenderer, entry: str) -> list[Tensor]:
    match, io = INVERSE_KEY.match(entry), numbers("inverse")
    assert match, f"an entry of unknown form: {entry}"
    images, noise = rearrange(io["rgb"], "b f h w c -> b f c h w"), io["latents"]
    group = (match["buffer"],)
    return [
        renderer.denoise(renderer.encode(clip), group, start, int(match["steps"]))
        for clip, start in zip(images, noise, strict=True)
    ]


def forward_latents(renderer: DiffusionForwardRenderer, entry: str) -> list[Tensor]:
    match, io = FORWARD_KEY.match(entry), numbers("forward")
    assert match, f"an entry of unknown form: {entry}"
    scale = None if match["lora"] is None else float(match["lora"])
    results = []
    for clip, start in enumerate(io["latents"]):
        conditions = [renderer.encode(io[f"cond.{name}"][clip]) for (name,) in renderer.settings.groups]
        lights = EnvironmentImages(*(io[f"cond.{name}"][clip] for name in renderer.env_encoder.config.in_labels))
        results.append(
            renderer.denoise(
                torch.cat(conditions, dim=1),
                renderer.encode_light_images(lights),
                start,
                int(match["steps"]),
                guidance=float(match["cfg"]),
                lora_scale=scale,
            )
        )
    return results


def check(
    renderer: DiffusionInverseRenderer | DiffusionForwardRenderer, latents: list[Tensor], entry: str, amplified: float = 1.0
) -> None:
    io = numbers(entry.split(".")[0])
    for clip, latent in enumerate(latents):
        if f"{entry}.latent" in io:
            error = (latent - io[f"{entry}.latent"][clip]).abs()
            assert error.mean() < LATENT_MEAN * amplified
            assert error.max() < LATENT_MAX * amplified
        if entry in io:
            images = rearrange(renderer.decode(latent), "f c h w -> f h w c")
            assert (images - io[entry][clip]).abs().max() < IMAGE_MAX * amplified


def test_there_are_entries() -> None:
    """The folder exists and its names are understood, so that the tests below cannot pass by being empty."""
    assert entries("inverse") and entries("forward"), f"no conformance numbers in {FOLDER}"


@pytest.mark.parametrize("entry", entries("inverse"))
def test_inverse(entry: str) -> None:
    check(inverse_renderer(), inverse_latents(inverse_renderer(), entry), entry)


@pytest.mark.parametrize("entry", entries("forward"))
def test_forward(entry: str) -> None:
    guidance = float(FORWARD_KEY.match(entry)["cfg"])
    check(forward_renderer(), forward_latents(forward_renderer(), entry), entry, max(1.0, 2 * guidance - 1))


def test_float32_agrees_with_float64() -> None:
    """The precision that users get. Measured over the inverse entries: mean 2.0e-5 to 5.7e-5, from the amplification above."""
    entry = entries("inverse")[0]
    single = inverse_latents(inverse_renderer(torch.float32), entry)
    double = inverse_latents(inverse_renderer(), entry)
    for a, b in zip(single, double, strict=True):
        assert (a - b).abs().mean() < 2 * LATENT_MEAN


FORWARD_UNET = {
    "in_channels": 24,
    "cross_attention_dim": (320, 640, 1280, 1280),
    "temporal_cross_attention_dim": None,
    "context_embedding_type": None,
    "multi_res_encoder_hidden_states": True,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
NETWORKS = {
    "inverse_unet": (UNetCustomSpatioTemporalConditionModel, {}),
    "forward_unet": (UNetCustomSpatioTemporalConditionModel, FORWARD_UNET),
    "env_encoder": (EnvEncoder, {}),
    "vae": (AutoencoderKLTemporalDecoder, VAE),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_name_and_shape(name: str) -> None:
    """The full-size networks, built on the meta device."""
    path = FOLDER / "published_shapes" / f"{name}.tsv"
    if not path.exists():
        pytest.skip(f"needs {path.name} in published_shapes of the conformance folder")
    network, options = NETWORKS[name]
    with torch.device("meta"):
        state = network(**options).state_dict()
    found = {key: "x".join(map(str, value.shape)) for key, value in state.items()}
    assert found == dict(line.split("\t") for line in path.read_text().splitlines())
