"""Checkpoints: what loads, what is refused and how, and LoRA adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models_random import LATENTS, random_unet, save_lora, save_model
from safetensors.torch import load_file, save_file

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models import Checkpoint, LoraNetwork, UNetCustomSpatioTemporalConditionModel, load_checkpoint
from diffusion_renderer.models.lora import FUSED_BYTES, KEPT_VIEWS

WEIGHTS = "diffusion_pytorch_model.safetensors"
TIME_IDS = torch.tensor([[6.0, 127.0, 0.0]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both kinds."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "inverse", "inverse")
    save_model(folder / "forward", "forward", lora=True)
    return folder


@pytest.fixture
def inverse(models: Path, tmp_path: Path) -> Path:
    """A copy of the inverse model, to be damaged."""
    return Path(shutil.copytree(models / "inverse", tmp_path / "model"))


@pytest.fixture
def forward(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "forward", tmp_path / "model"))


def load(folder: Path, kind: str = "inverse", dtype: torch.dtype = torch.float32) -> Checkpoint:
    return load_checkpoint(folder, kind, device=torch.device("cpu"), dtype=dtype)


def refused(folder: Path, *words: str, kind: str = "inverse") -> None:
    with pytest.raises(InputError) as caught:
        load(folder, kind)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_loads_both_kinds(models: Path) -> None:
    inverse, forward = load(models / "inverse"), load(models / "forward", "forward")
    assert inverse.env_encoder is None and inverse.lora is None and forward.env_encoder is not None and forward.lora is not None
    assert not inverse.unet.training and not any(p.requires_grad for p in inverse.unet.parameters())
    assert torch.equal(inverse.unet.conv_in.weight, random_unet("inverse").conv_in.weight)
    assert inverse.settings["default_steps"] == 1 and inverse.scheduler == {}


def test_foreign_model_index_and_components_are_ignored(inverse: Path) -> None:
    (inverse / "model_index.json").write_text(json.dumps({"_class_name": "SomebodysPipeline", "image_encoder": ["x", "Y"]}))
    (inverse / "image_encoder").mkdir()
    assert load(inverse).kind == "inverse"


def test_components_may_lie_beside_the_model(models: Path, tmp_path: Path) -> None:
    for kind in ("inverse", "forward"):
        shutil.copytree(models / kind / "unet", tmp_path / kind / "unet")
    shutil.copytree(models / "inverse" / "vae", tmp_path / "vae")
    shutil.copytree(models / "forward" / "env_encoder", tmp_path / "env_encoder")
    assert load(tmp_path / "inverse").kind == "inverse"
    assert load(tmp_path / "forward", "forward").env_encoder is not None


def test_shards_load(inverse: Path) -> None:
    expected = load(inverse).unet
    (inverse / "unet" / WEIGHTS).unlink()
    expected.save_pretrained(inverse / "unet", max_shard_size="400KB")
    assert len(list((inverse / "unet").glob("*.safetensors"))) > 2
    found = load(inverse).unet
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))
    next((inverse / "unet").glob("*-00002-of-*.safetensors")).unlink()
    refused(inverse, "UNetCustomSpatioTemporalConditionModel", "copy the checkpoint again")


def test_half_precision_keeps_the_vae_whole_where_it_asks(inverse: Path) -> None:
    checkpoint = load(inverse, dtype=torch.float16)
    assert checkpoint.unet.dtype == torch.float16 and checkpoint.vae.dtype == torch.float32
    config = inverse / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": False}))
    assert load(inverse, dtype=torch.float16).vae.dtype == torch.float16


def test_the_other_kind_is_refused(models: Path) -> None:
    refused(models / "forward", "expected an inverse renderer", "found forward", "load_forward")
    refused(models / "inverse", "expected a forward renderer", "found inverse", "load_inverse", kind="forward")


@pytest.mark.parametrize("ending", [".bin", ".pt", ".ckpt", ".pkl"])
def test_pickles_are_refused_unread(inverse: Path, ending: str) -> None:
    (inverse / "unet" / WEIGHTS).unlink()
    (inverse / "unet" / f"diffusion_pytorch_model{ending}").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    refused(inverse, "pickle", "convert it to safetensors")


def test_a_pickled_lora_is_refused(forward: Path) -> None:
    (forward / "lora" / "pytorch_lora_weights.safetensors").rename(forward / "lora" / "pytorch_lora_weights.bin")
    refused(forward, "pickle", kind="forward")


@pytest.mark.parametrize("component", ["unet", "vae"])
@pytest.mark.parametrize("size", [0, 6, 1000, -4])
def test_truncated_weights_are_refused(inverse: Path, component: str, size: int) -> None:
    path = inverse / component / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    refused(inverse, component, "copy the checkpoint again")


def test_damaged_files_are_refused(inverse: Path) -> None:
    config = inverse / "unet" / "config.json"
    whole = config.read_text()
    config.write_text(whole[:-20])
    refused(inverse, "config.json", "JSON")
    config.unlink()
    refused(inverse, "config.json", "found none")
    config.write_text(whole)
    (inverse / "renderer.json").write_text("[]")
    refused(inverse, "renderer.json", "list")


def test_missing_parts_are_refused(inverse: Path, tmp_path: Path) -> None:
    (inverse / "unet" / WEIGHTS).unlink()
    refused(inverse, ".safetensors", "found none")
    shutil.rmtree(inverse / "vae")
    refused(inverse, "subfolder vae")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "subfolder unet", "an empty folder")


@pytest.mark.parametrize("change", ["missing", "added", "reshaped"])
def test_weights_of_another_network_are_refused(inverse: Path, change: str) -> None:
    path = inverse / "unet" / WEIGHTS
    state = load_file(path)
    if change == "missing":
        state.pop("conv_out.weight")
    elif change == "added":
        state["stranger.weight"] = torch.zeros(2)
    else:
        state["conv_out.bias"] = torch.zeros(LATENTS + 1)
    save_file(state, path, metadata={"format": "pt"})
    refused(inverse, "UNetCustomSpatioTemporalConditionModel")


def test_an_encoder_of_other_widths_is_refused(forward: Path) -> None:
    shutil.rmtree(forward / "unet")
    random_unet("forward", cross_attention_dim=(32, 32, 64)).save_pretrained(forward / "unet")
    refused(forward, "environment encoder of widths [32, 32, 64]", kind="forward")


def output(unet: UNetCustomSpatioTemporalConditionModel) -> torch.Tensor:
    x = torch.randn(1, 2, 2 * LATENTS, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return unet(x, 0.5, torch.zeros(1, 1, 16), TIME_IDS, context_ids=torch.tensor([1]))


def merged(adapter: Path, scale: float) -> UNetCustomSpatioTemporalConditionModel:
    """The readable reference: ``W + scale * up @ down``."""
    unet, tensors = random_unet("inverse"), load_file(adapter)
    for key in tensors:
        if key.endswith(".lora.down.weight"):
            name = key.removesuffix(".lora.down.weight")
            weight = unet.get_submodule(name.removeprefix("unet.")).weight
            weight.data += scale * tensors[f"{name}.lora.up.weight"] @ tensors[key]
    return unet


@pytest.fixture(params=[0, FUSED_BYTES], ids=["shared weights", "copied weights"])
def copied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the adapter's change is added to a copy's weights, as of small networks, or made beside shared ones."""
    monkeypatch.setattr("diffusion_renderer.models.lora.FUSED_BYTES", request.param)
    return bool(request.param)


@pytest.mark.usefixtures("copied")
def test_convolutions_are_adapted_too(tmp_path: Path) -> None:
    """In two and three dimensions; down with the layer's kernel, up with one pixel. Keys as peft writes them."""
    unet, reference = random_unet("inverse"), random_unet("inverse")
    generator, tensors = torch.Generator().manual_seed(5), {}
    for name, module in reference.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)) and module.weight.shape[0] > 2:
            out, *rest = module.weight.shape
            down = 0.1 * torch.randn(2, *rest, generator=generator)
            up = torch.randn(out, 2, *(1,) * (len(rest) - 1), generator=generator)
            tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            module.weight.data += (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
    assert {tensor.ndim for tensor in tensors.values()} == {4, 5}
    save_file(tensors, tmp_path / "adapter.safetensors")
    found = output(LoraNetwork(unet, tmp_path / "adapter.safetensors").at_scale(1.0))
    assert (found - output(unet)).abs().max() > 1e-3
    # As for linear layers; worst measured, for outputs of order 1: 2e-6.
    torch.testing.assert_close(found, output(reference), rtol=0, atol=5e-5)


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("scale", [0.25, 1.0, -2.0])
def test_lora_is_a_change_of_weights(tmp_path: Path, scale: float) -> None:
    unet = random_unet("inverse")
    adapter = save_lora(tmp_path, unet)
    lora = LoraNetwork(unet, adapter)
    found, plain = output(lora.at_scale(scale)), output(unet)
    assert (found - plain).abs().max() > 1e-3
    # Worst measured, for outputs of order 1: 2.5e-6 up to scale 1, 1.3e-5 at -2.
    torch.testing.assert_close(found, output(merged(adapter, scale)), rtol=0, atol=5e-5)


def test_lora_scales_do_not_disturb_each_other(tmp_path: Path, copied: bool) -> None:
    unet = random_unet("inverse")
    before = output(unet)
    flags = [p.requires_grad for p in unet.parameters()]
    lora = LoraNetwork(unet, save_lora(tmp_path, unet))
    half = lora.at_scale(0.5)
    expected = output(half)
    for step in range(KEPT_VIEWS + 1):
        lora.at_scale(step + 1.5)
    assert torch.equal(output(half), expected)
    assert torch.equal(output(lora.at_scale(0.5)), expected)
    assert lora.at_scale(0.0) is unet and torch.equal(output(unet), before)
    assert [p.requires_grad for p in unet.parameters()] == flags
    # Views share the weights.
    assert (half.conv_in.weight is unet.conv_in.weight) != copied


def test_every_scale_is_prepared_once(tmp_path: Path) -> None:
    lora, seen = LoraNetwork(random_unet("inverse"), save_lora(tmp_path, random_unet("inverse"))), []
    lora.prepare = seen.append
    first, second = lora.at_scale(0.5), lora.at_scale(1.0)
    assert lora.at_scale(0.5) is first and lora.at_scale(0.0) is lora.network
    assert len(seen) == 2 and seen[0] is first and seen[1] is second


def test_lora_alpha_and_new_key_names(tmp_path: Path) -> None:
    unet = random_unet("inverse")
    adapter = save_lora(tmp_path, unet)
    renamed = {}
    for key, value in load_file(adapter).items():
        stem, half, _ = key.rsplit(".", 2)
        renamed[f"{stem.removesuffix('.lora')}.lora_{'A' if half == 'down' else 'B'}.weight"] = value
        renamed[f"{stem.removesuffix('.lora')}.alpha"] = torch.tensor(2.0)
    save_file(renamed, adapter)
    # Rank 4, alpha 2: half the strength.
    torch.testing.assert_close(
        output(LoraNetwork(unet, adapter).at_scale(1.0)),
        output(LoraNetwork(unet, save_lora(tmp_path / "old", unet)).at_scale(0.5)),
        rtol=0,
        atol=1e-6,
    )


def test_a_foreign_lora_is_refused(forward: Path) -> None:
    save_lora(forward, random_unet("inverse", cross_attention_dim=48, temporal_cross_attention_dim=48))
    refused(forward, "adapter for this network", kind="forward")
    path = forward / "lora" / "pytorch_lora_weights.safetensors"
    save_file({"text_encoder.x": torch.zeros(1)}, path)
    refused(forward, "lora.down.weight", "text_encoder.x", kind="forward")
    path.write_bytes(b"short")
    refused(forward, "LoRA file", kind="forward")
