"""Real clips train an adapter, synthetic ones the network: each leaves the other alone, and the pipelines read the result."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import synthetic_clip
from test_training import SMALL, options, trained_vae

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models.lora import WEIGHTS_NAME
from diffusion_renderer.pipelines import load_forward
from diffusion_renderer.training import assemble, export, loop
from diffusion_renderer.training.adapters import AdaptedUNet, all_layers, attention_layers, base_parameters
from diffusion_renderer.training.data import Mixture, store_clips
from diffusion_renderer.training.env import EnvStage
from diffusion_renderer.training.forward import ForwardStage
from diffusion_renderer.training.vae import load_vae


@pytest.fixture(scope="module")
def data() -> Mixture:
    """Two synthetic clips and one that passes for real."""
    clips = [synthetic_clip(index, frames=4, size=16) for index in range(3)]
    return Mixture.of(store_clips([*clips[:2], replace(clips[2], meta={"real": True})]))


@pytest.fixture(scope="module")
def run(data: Mixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with autoencoder and environment encoder."""
    out = tmp_path_factory.mktemp("run")
    trained_vae(out, data)
    EnvStage(SMALL, data, options(out, 1)).export(out / "env")
    return out


def stage(run: Path, data: Mixture, **others: object) -> ForwardStage:
    return ForwardStage(SMALL, load_vae(run), data, options(run, 2, lora_rank=4, **others))


def shake(network: AdaptedUNet) -> None:
    """Give the adapter, whose change is zero at first, some other numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def test_a_step_has_a_term_for_each_kind(run: Path, data: Mixture) -> None:
    made = stage(run, data, batch=6, estimated_share=1 / 3)
    clip = data.stores[0].clip
    for step in range(12):
        synthetic, real = made.plan(step)
        assert (synthetic.estimated, real.estimated) == (False, True)
        assert synthetic.weight == pytest.approx(2 / 3) and real.weight == pytest.approx(1 / 3)
        assert {int(clip[frame]) for item in synthetic.items for frame in item.frames} <= {0, 1}
        assert {int(clip[frame]) for item in real.items for frame in item.frames} == {2}
        if len(synthetic.items[0].frames) == 1:
            assert len(synthetic.items) == 4


def test_without_real_clips_there_is_no_adapter(run: Path, data: Mixture) -> None:
    plain = Mixture.of(replace(data.stores[0], real=torch.zeros(3, dtype=torch.bool)))
    for made in (stage(run, plain), stage(run, data, estimated_share=0.0)):
        assert not isinstance(made.network, AdaptedUNet)
        assert [part.estimated for part in made.plan(0)] == [False]
    ablation = ForwardStage(SMALL, load_vae(run), data, options(run, 1, lora_rank=0))
    assert not isinstance(ablation.network, AdaptedUNet) and [part.estimated for part in ablation.plan(0)] == [False, True]


def test_off_the_network_is_the_plain_one_to_the_bit(run: Path, data: Mixture) -> None:
    plain = ForwardStage(SMALL, load_vae(run), data, options(run, 1, lora_rank=0))
    made = stage(run, data)
    assert made.network.base_state().keys() == plain.network.state_dict().keys()
    plain.network.load_state_dict(made.network.base_state())
    shake(made.network)
    synthetic, real = made.plan(0)
    with torch.no_grad():
        assert torch.equal(made.losses(made.network, synthetic)[0], plain.losses(plain.network, synthetic)[0])
        assert not torch.equal(made.losses(made.network, real)[0], plain.losses(plain.network, real)[0])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_kind_trains_its_own_parameters(run: Path, data: Mixture, checkpointing: bool) -> None:
    made = stage(run, data)
    shake(made.network)
    if checkpointing:
        # As the loop asks for it: every module that can.
        for module in list(made.network.modules()):
            if hasattr(module, "enable_gradient_checkpointing") and getattr(module, "_supports_gradient_checkpointing", True):
                module.enable_gradient_checkpointing()
        assert any(getattr(module, "gradient_checkpointing", False) for module in made.network.modules())
    made.network.train()
    trained = [name for name, p in made.network.named_parameters() if p.requires_grad]
    found = {}
    for part in made.plan(0):
        made.network.zero_grad()
        made.losses(made.network, part)[0].mean().backward()
        found[part.estimated] = {name for name, p in made.network.named_parameters() if p.grad is not None}
    assert found[True] and all(".lora_" in name for name in found[True])
    assert found[False] and not any(".lora_" in name for name in found[False])
    # Attention over a single token has no queries; nothing else is left without a gradient.
    left = set(trained) - found[True] - found[False]
    assert all(".to_q." in name or ".to_k." in name for name in left)
    assert [name for name, p in made.network.named_parameters() if p.requires_grad] == trained


def test_checkpointing_changes_no_gradient(run: Path, data: Mixture) -> None:
    made = stage(run, data)
    shake(made.network)
    made.network.train()
    for part in made.plan(0):
        gradients = []
        for _ in range(2):
            made.network.zero_grad()
            made.losses(made.network, part)[0].mean().backward()
            gradients.append([p.grad for p in made.network.parameters() if p.grad is not None])
            made.network.enable_gradient_checkpointing()
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_steps_of_one_kind_leave_the_other_alone(run: Path, data: Mixture) -> None:
    """With AdamW and its weight decay, as in the loop."""
    made = stage(run, data)
    for wanted in (True, False):
        before = {name: p.detach().clone() for name, p in made.network.named_parameters()}
        optimizer = torch.optim.AdamW(made.network.parameters(), lr=1e-2, weight_decay=0.1)
        for step in range(2):
            optimizer.zero_grad()
            part = made.plan(step)[int(wanted)]
            made.losses(made.network, part)[0].mean().backward()
            optimizer.step()
        moved = {name for name, p in made.network.named_parameters() if not torch.equal(p, before[name])}
        assert moved and all((".lora_" in name) == wanted for name in moved)


def test_the_pipelines_read_what_was_trained(run: Path, data: Mixture, tmp_path: Path) -> None:
    """Trained by the loop; at every scale the loaded renderer makes what the network in training makes."""
    out = tmp_path / "run"
    for name in ("vae", "env"):
        shutil.copytree(run / name, out / name)
    made = stage(out, data)
    loop.run(made, options(out, 2, lora_rank=4))
    shake(made.network)
    made.export(out / "forward")
    folder = tmp_path / "model"
    shutil.copytree(out / "forward", folder / "forward")
    shutil.copytree(out / "vae/vae", folder / "vae")
    shutil.copytree(out / "env/env_encoder", folder / "env_encoder")
    forward = load_forward(folder / "forward", device="cpu")
    forward.half = False  # as in training here
    part = made.plan(0)[1]
    part = replace(part, items=part.items[:1])
    seen = made.frames(part, made.variation(part, training=False))
    buffers = made.encode(seen.buffers).flatten(2, 3)[0]
    lights = made.lights(part, made.variation(part, training=False))[0]
    pictures = []
    for real in (False, True):
        asked = made.conditions(replace(part, estimated=real), training=False)
        trained = made.sample(made.network, asked, part)[0]
        loaded = forward.denoise(buffers, lights, torch.zeros_like(trained), 1, lora_scale=float(real))
        # The pipeline's schedule ends at the same noise level; float32 throughout. Measured: 1.2e-6.
        assert torch.allclose(trained, loaded, atol=1e-5)
        pictures.append(loaded)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-2


def test_a_model_folder_carries_the_adapter(run: Path, data: Mixture, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for name in ("vae", "env"):
        shutil.copytree(run / name, out / name)
    made = stage(out, data)
    shake(made.network)
    made.export(out / "forward")
    assemble(out, tmp_path / "model")
    adapter = load_file(tmp_path / "model/forward/lora" / WEIGHTS_NAME)
    assert len(adapter) == 2 * len(all_layers(made.preset.forward_unet()))
    assert all(key.startswith("unet.") for key in adapter)
    export.unpack(tmp_path / "model", tmp_path / "next")
    for name in ("vae", "env"):
        shutil.rmtree(tmp_path / "next" / name, ignore_errors=True)
        shutil.copytree(run / name, tmp_path / "next" / name)
    again = stage(tmp_path / "next", data)
    for name, parameter in again.network.named_parameters():
        assert torch.equal(parameter, dict(made.network.named_parameters())[name].half().float())
    with pytest.raises(InputError, match="--lora-rank"):
        ForwardStage(SMALL, load_vae(run), data, options(tmp_path / "next", 1, lora_rank=8))

    # A network that was trained without real clips takes the place of one with an adapter.
    stage(out, data, estimated_share=0.0).export(out / "forward")
    assert not (out / "forward/lora").exists()
    assemble(out, tmp_path / "model")
    assert not (tmp_path / "model/forward/lora").exists()


def test_training_goes_on_from_an_adapter_of_any_layers_and_ranks(run: Path, data: Mixture, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for name in ("vae", "env"):
        shutil.copytree(run / name, out / name)
    unet = SMALL.forward_unet()
    ranks = {"conv_in": 3, "time_embedding.linear_2": 1, "mid_block.resnets.0.temporal_res_block.conv1": 2}
    AdaptedUNet(unet, ranks).save(out / "forward/lora")
    made = ForwardStage(SMALL, load_vae(run), data, options(out, 1))
    assert {name: layer.r["default"] for name, layer in made.network.layers.items()} == ranks
    saved = load_file(out / "forward/lora" / WEIGHTS_NAME)
    assert torch.equal(made.network.layers["conv_in"].lora_A["default"].weight, saved["unet.conv_in.lora_A.weight"])
    with pytest.raises(InputError, match="ranks from 1 to 3"):
        ForwardStage(SMALL, load_vae(run), data, options(out, 1, lora_rank=3))
    save_file({"unet.conv_in.lora.down.weight": torch.zeros(3, 1)}, out / "forward/lora" / WEIGHTS_NAME)
    with pytest.raises(InputError, match="lora_A"):
        ForwardStage(SMALL, load_vae(run), data, options(out, 1))
    AdaptedUNet(torch.nn.Sequential(torch.nn.Linear(2, 2)), {"0": 1}).save(out / "forward/lora")
    with pytest.raises(InputError, match="one of 0"):
        ForwardStage(SMALL, load_vae(run), data, options(out, 1))


def test_a_foreign_adapter_is_refused(run: Path, data: Mixture, tmp_path: Path) -> None:
    network = stage(run, data).network
    network.save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    save_file({**tensors, "unet.other.lora_A.weight": torch.zeros(1)}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(InputError, match=r"unet\.other"):
        network.load(tmp_path)
    (tmp_path / WEIGHTS_NAME).write_bytes(b"nothing")
    with pytest.raises(InputError, match="adapter of this network"):
        network.load(tmp_path)


def test_the_base_keeps_its_names() -> None:
    unet = SMALL.forward_unet()
    names = {name for name, _ in unet.named_parameters()}
    assert base_parameters(AdaptedUNet(unet, dict.fromkeys(attention_layers(unet), 2)).unet).keys() == names
