"""Presets, and the start from Stable Video Diffusion, rehearsed on small random networks of its classes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models import UNetCustomSpatioTemporalConditionModel
from diffusion_renderer.pipelines.settings import default_settings, read_settings
from diffusion_renderer.training.presets import PRESETS, SVD, TINY, Preset
from diffusion_renderer.training.record import read_record
from diffusion_renderer.training.svd import initial_weights, start_from_svd, svd_autoencoder, unpack_svd

PUBLISHED = Path(__file__).parent / "data" / "conformance" / "published_shapes"
SHIPPED = Path(__file__).parents[1] / "src" / "diffusion_renderer" / "weights" / "tiny"

#: fps - 1, motion bucket, strength of noise augmentation.
TIME_IDS = torch.tensor([[6.0, 127.0, 0.0]]).double()

SMALL = replace(
    SVD,
    name="small",
    inverse_widths=(32, 32, 64, 64),
    forward_widths=(32, 32, 64, 64),
    env_widths=(32, 32, 64, 64),
    vae_widths=(32, 32, 32, 32),
    head_width=32,
    context_channels=16,
    time_channels=32,
    layers=1,
)


@pytest.mark.parametrize("network", ["inverse_unet", "forward_unet", "env_encoder", "vae"])
def test_svd_has_the_published_parameters(network: str) -> None:
    lines = (PUBLISHED / f"{network}.tsv").read_text().splitlines()
    published = dict(line.split("\t") for line in lines)
    with torch.device("meta"):
        ours = getattr(SVD, network)()
    assert {name: "x".join(map(str, value.shape)) for name, value in ours.state_dict().items()} == published


@pytest.mark.parametrize(
    ("network", "folder"),
    [
        ("inverse_unet", "inverse/unet"),
        ("forward_unet", "forward/unet"),
        ("env_encoder", "env_encoder"),
        ("vae", "vae"),
        ("small_decoder", "decoder_small"),
    ],
)
def test_the_shipped_weights_fit_tiny(network: str, folder: str) -> None:
    """Name by name and shape by shape; the first convolution may be from before the classical picture."""
    path = SHIPPED / folder / "diffusion_pytorch_model.safetensors"
    if not path.exists():
        pytest.skip(f"no weights in {path.parent}")
    with torch.device("meta"):
        ours = getattr(TINY, network)().state_dict()
    shipped = load_file(path)
    assert shipped.keys() == ours.keys()
    assert {name for name in ours if ours[name].shape != shipped[name].shape} <= {"conv_in.weight"}


@pytest.mark.parametrize("kind", ["inverse", "forward"])
def test_svd_is_run_as_the_published_renderers(kind: str) -> None:
    """But for what those leave to the UNet's configuration: the window; the inverse one makes the forward one's buffers."""
    settings = read_settings(kind, SVD.renderer_settings(kind), "preset")
    assert settings == replace(default_settings(kind), window=24, groups=SVD.groups)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_lengths_share_all_steps(preset: Preset) -> None:
    assert sum(preset.lengths.values()) == pytest.approx(1)
    assert max(preset.lengths) <= preset.window
    assert replace(preset, window=2).lengths == {1: 1.0}


def test_students_learn_at_one_rate() -> None:
    assert TINY.learning_rate("distill-forward-2") == TINY.learning_rates.distill
    assert TINY.learning_rate("inverse") == 1.5e-3


def test_sigma_of_svd_never_starts_at_the_largest_level() -> None:
    drawn = SVD.draw_sigma(2000, torch.Generator().manual_seed(0)).log()
    assert drawn.exp().max() < SVD.sigma_max
    # The mean of 2000 draws deviates by 1.6 / sqrt(2000) = 0.036; this is four times as much.
    assert abs(drawn.mean() - SVD.sigma_mean) < 0.15


def svd_unet() -> diffusers.UNetSpatioTemporalConditionModel:
    torch.manual_seed(0)
    network = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=SMALL.inverse_widths,
        num_attention_heads=(1, 1, 2, 2),
        cross_attention_dim=SMALL.context_channels,
        addition_time_embed_dim=SMALL.time_channels,
        projection_class_embeddings_input_dim=3 * SMALL.time_channels,
        layers_per_block=SMALL.layers,
        num_frames=3,
    )
    return network.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Video Diffusion in small: random weights in its own classes and layout."""
    made = tmp_path_factory.mktemp("svd")
    svd_unet().save_pretrained(made / "unet")
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=SMALL.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=SMALL.layers,
        scaling_factor=0.25,
    )
    vae.save_pretrained(made / "vae")
    return made


@torch.no_grad()
def published_output(folder: Path, sample: Tensor) -> Tensor:
    """What Stable Video Diffusion makes of noise and image channels when its context is zero."""
    unet = diffusers.UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet").eval().double()
    return unet(sample, 0.3, torch.zeros(1, 1, SMALL.context_channels).double(), TIME_IDS).sample


@torch.no_grad()
def our_output(network: nn.Module, sample: Tensor, context: object, ids: Tensor | None = None) -> Tensor:
    return network.eval().double()(sample, 0.3, context, TIME_IDS, ids)


def noise(channels: int) -> Tensor:
    return torch.randn(1, 3, channels, 8, 8, generator=torch.Generator().manual_seed(2)).double()


def test_the_inverse_renderer_starts_as_svd(folder: Path) -> None:
    """Whatever buffer is asked for. In float64, worst difference measured: 7e-14 of values up to 1.2."""
    network, sample = start_from_svd(folder, SMALL, "inverse"), noise(8)
    expected = published_output(folder, sample)
    for index in (0, 4):
        made = our_output(network, sample, torch.zeros(1, 1, SMALL.context_channels).double(), torch.tensor([index]))
        torch.testing.assert_close(made, expected, atol=1e-11, rtol=0)


def test_the_forward_renderer_starts_as_svd_whatever_the_light(folder: Path) -> None:
    """Base colour is the image that it animates. Worst difference: 2.4e-6, from dividing float32 weights by the scale."""
    network, sample = start_from_svd(folder, SMALL, "forward"), noise(8)
    expected = published_output(folder, sample)
    scaled = torch.cat((sample[:, :, :4], sample[:, :, 4:] * SMALL.vae_scale, noise(16)), dim=2)
    light = [torch.randn(1, 1, width, 4, 4).double() for width in SMALL.env_widths]
    made = our_output(network, scaled, light)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_the_forward_renderer_can_learn_from_what_is_new(folder: Path) -> None:
    """New channels and the values of the light get gradients, although they start at zero."""
    network = start_from_svd(folder, SMALL, "forward").train()
    light = [torch.randn(1, 1, width, 4, 4) for width in SMALL.env_widths]
    network(noise(24).float(), 0.3, light, torch.zeros(1, 3)).square().mean().backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    assert (gradients["conv_in.weight"][:, 8:] != 0).any(dim=(0, 2, 3)).all()
    values = [value for name, value in gradients.items() if name.endswith("transformer_blocks.0.attn2.to_v.weight")]
    assert values
    assert all((value != 0).any() for value in values)


def test_every_tensor_is_accounted_for() -> None:
    found = svd_unet().state_dict()
    weights, origin = initial_weights(found, SMALL.forward_unet())
    assert {*origin.kept, *origin.changed, *origin.new} == weights.keys()
    assert len(origin.kept) + len(origin.changed) + len(origin.new) == len(weights)
    assert all(".temporal_transformer_blocks." in name for name in origin.left_out)


@pytest.mark.parametrize("form", ["shards", "float16", "float16 shards"])
def test_weights_are_read_in_every_published_form(folder: Path, tmp_path: Path, form: str) -> None:
    shutil.copytree(folder / "vae", tmp_path / "vae")
    unet = svd_unet().half() if "float16" in form else svd_unet()
    options = {"variant": "fp16"} if "float16" in form else {}
    unet.save_pretrained(tmp_path / "unet", max_shard_size="2MB" if "shards" in form else "1GB", **options)
    assert (len(list((tmp_path / "unet").glob("*.safetensors"))) > 1) == ("shards" in form)
    whole, other = (start_from_svd(source, SMALL, "inverse").state_dict() for source in (folder, tmp_path))
    assert {value.dtype for value in other.values()} == {torch.float32}
    # float16 keeps 11 bits: half of 2^-11 relative, and 2^-25 below its smallest normal number.
    tolerance = {"rtol": 2**-11, "atol": 2**-24} if "float16" in form else {"rtol": 0, "atol": 0}
    for name, value in whole.items():
        torch.testing.assert_close(other[name], value, **tolerance)


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "vae", tmp_path / "vae")
    svd_unet().save_pretrained(tmp_path / "unet", max_shard_size="2MB")
    next((tmp_path / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="shards"):
        start_from_svd(tmp_path, SMALL, "inverse")


def test_other_networks_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not fit, such as"):
        start_from_svd(folder, replace(SMALL, inverse_widths=(32, 64, 64, 64)), "inverse")
    with pytest.raises(InputError, match="autoencoder of preset small"):
        svd_autoencoder(folder, replace(SMALL, vae_widths=(32, 32, 32, 64)))
    with pytest.raises(InputError, match=r"no unet/config\.json"):
        start_from_svd(tmp_path, SMALL, "inverse")
    with pytest.raises(InputError, match="no folder"):
        start_from_svd(tmp_path / "nowhere", SMALL, "inverse")
    with pytest.raises(InputError, match="inverse, forward"):
        start_from_svd(folder, SMALL, "env")


def test_a_run_folder_is_laid_out(folder: Path, tmp_path: Path) -> None:
    """In diffusers' folders, the autoencoder bit for bit; a second call changes nothing."""
    unpack_svd(folder, tmp_path, SMALL)
    network = UNetCustomSpatioTemporalConditionModel.from_pretrained(tmp_path / "forward" / "unet")
    expected = start_from_svd(folder, SMALL, "forward").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    vae = diffusers.AutoencoderKLTemporalDecoder.from_pretrained(tmp_path / "vae" / "vae")
    original = diffusers.AutoencoderKLTemporalDecoder.from_pretrained(folder / "vae")
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in vae.state_dict().items())
    assert vae.config.scaling_factor == original.config.scaling_factor == 0.25
    assert read_record(tmp_path / "forward").complete is False
    path = tmp_path / "inverse" / "unet" / "diffusion_pytorch_model.safetensors"
    before = path.stat().st_mtime_ns
    unpack_svd(folder, tmp_path, SMALL)
    assert path.stat().st_mtime_ns == before
