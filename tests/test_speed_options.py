"""Speed options: the same result as the plain path, and plain code where an option fails."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models_random import random_vae
from torch import nn

from diffusion_renderer.pipelines import speed
from diffusion_renderer.pipelines.diffusion import DiffusionRenderer
from diffusion_renderer.pipelines.speed import Compiled, channels_last, compiled, default_dtype, fastest_cpu_dtype


def renderer_of(**networks: nn.Module) -> DiffusionRenderer:
    """A renderer with nothing but these networks."""
    renderer = object.__new__(DiffusionRenderer)
    renderer.unet = networks.get("unet", nn.Linear(1, 1))
    renderer.checkpoint = SimpleNamespace(lora=None, vae=networks["vae"])
    return renderer


def test_a_compiled_function_is_used_until_it_fails_and_then_never_again() -> None:
    said: list[str] = []
    calls: list[str] = []

    def plain(x: int) -> int:
        calls.append("plain")
        return x + 1

    def fast(x: int) -> int:
        calls.append("fast")
        if x == 2:
            raise RuntimeError("no compiler\nfor this machine")
        return x + 1

    both = Compiled(plain, fast, said.append)
    assert [both(x) for x in (1, 2, 3)] == [2, 3, 4]
    assert calls == ["fast", "fast", "plain", "plain"]
    assert said == ["torch.compile failed, going on without it (no compiler)"]


def test_a_compiled_function_leaves_full_memory_to_the_memory_plans() -> None:
    def full(x: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    both = Compiled(lambda x: x, full, pytest.fail)
    with pytest.raises(torch.OutOfMemoryError):
        both(1)
    assert not both.failed


def test_a_compiled_network_is_not_copied_with_the_wrong_weights() -> None:
    layer = nn.Linear(1, 1)
    layer.forward = Compiled(layer.forward, layer.forward, pytest.fail)
    with pytest.raises(copy.Error):
        copy.deepcopy(layer)


@pytest.mark.parametrize("light", [False, True])
def test_compiling_replaces_the_networks_and_keeps_the_result(light: bool) -> None:
    """With the backend that captures graphs and runs them as they are; a code generator would take minutes here.

    Of a renderer with a small decoder, that one is compiled and not the VAE's.
    """
    said: list[str] = []
    vae = SimpleNamespace(decoder=nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    renderer = renderer_of(unet=nn.Sequential(nn.Linear(3, 3), nn.Tanh()), vae=vae)
    small = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid())
    renderer.codec = SimpleNamespace(small=small if light else None)
    renderer.unet.device = torch.device("cpu")
    inputs = torch.rand(2, 3)
    expected = [network(inputs) for network in (renderer.unet, vae.decoder, small)]
    compiled(renderer, said.append, backend="eager")
    found = [network(inputs) for network in (renderer.unet, vae.decoder, small)]
    assert [isinstance(network.forward, Compiled) for network in (vae.decoder, small)] == [not light, light]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and not said
    assert not renderer.unet.forward.failed


def test_every_scale_of_an_adapter_is_compiled_when_it_is_first_used() -> None:
    renderer = renderer_of(unet=nn.Linear(3, 3), vae=SimpleNamespace(decoder=nn.Linear(3, 3)))
    renderer.codec, renderer.unet.device = SimpleNamespace(small=None), torch.device("cpu")
    renderer.checkpoint.lora = SimpleNamespace(prepare=None)
    compiled(renderer, pytest.fail, backend="eager")
    scaled, inputs = nn.Linear(3, 3), torch.rand(2, 3)
    expected = scaled(inputs)
    renderer.checkpoint.lora.prepare(scaled)
    assert isinstance(scaled.forward, Compiled) and isinstance(renderer.unet.forward, Compiled)
    assert torch.equal(scaled(inputs), expected) and not scaled.forward.failed


@torch.no_grad()
def test_channels_last_decodes_the_same() -> None:
    vae, latents = random_vae(), torch.rand(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(latents, num_frames=2).sample
    channels_last(renderer_of(vae=vae))
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    found = vae.decode(latents, num_frames=2).sample
    # Convolutions add in another order: values of order 1, some 1e-6 apart.
    assert float((found - expected).abs().max()) < 1e-4


@pytest.mark.parametrize(("wide", "narrow", "expected"), [(2.0, 1.0, torch.bfloat16), (1.1, 1.0, torch.float32)])
def test_bfloat16_must_be_worth_it(wide: float, narrow: float, expected: torch.dtype) -> None:
    assert fastest_cpu_dtype(lambda dtype: wide if dtype == torch.float32 else narrow) == expected


def test_dtypes_of_devices() -> None:
    assert default_dtype(torch.device("cpu")) == torch.float32
    assert default_dtype(torch.device("cuda")) == default_dtype(torch.device("mps")) == torch.float16


@pytest.mark.parametrize(("limit", "most"), [("50000 100000", 1), ("max 100000", 4096), ("nonsense", 4096)])
def test_cores_are_those_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(speed, "CPU_LIMIT", tmp_path / "cpu.max")
    assert 1 <= speed.usable_cores() <= most


def test_threads_are_lowered_but_not_against_the_users_word(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(speed, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "64")
    speed.set_threads()
    assert asked == []
    monkeypatch.delitem(os.environ, "OMP_NUM_THREADS")
    speed.set_threads()
    assert asked == [2]
