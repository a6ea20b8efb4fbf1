"""Saving memory: the same pictures where a plan promises that, a plan that fits, and the next one when memory runs out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from models_random import LATENTS, save_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import BUFFERS, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.editing import load_forward as load_any_forward
from diffusion_renderer.models import LatentCodec, SmallDecoder
from diffusion_renderer.pipelines import DiffusionInverseRenderer, MemoryBudget, load_forward, load_inverse
from diffusion_renderer.pipelines import memory as memory_module
from diffusion_renderer.pipelines.memory import (
    PLANS,
    Managed,
    MemoryManager,
    available_bytes,
    is_out_of_memory,
    limit_memory,
    needed_bytes,
)
from diffusion_renderer.pipelines.offload import DirectCopies, Offload

#: Largest difference between a lossless plan and the plain path, values in [0, 1], sums in another order: 1.3e-5 measured with
#: the forward renderer and its LoRA.
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "inverse", "inverse", decode_chunk=2)
    save_model(folder / "forward", "forward", lora=True)
    return folder


@pytest.fixture(scope="module")
def with_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inverse renderer with a small decoder, which is its default."""
    folder = tmp_path_factory.mktemp("small") / "inverse"
    save_model(folder, "inverse", decode_chunk=8, decoder="small")
    torch.manual_seed(5)
    decoder = SmallDecoder(LATENTS, 4, scales=(1, 2), widths=(16, 8), layers=(1, 1))
    nn.init.normal_(decoder.conv_out.weight, std=0.1)
    decoder.save_pretrained(folder / "decoder_small")
    return folder


def clip_of(frames: int) -> Clip:
    return Clip(torch.rand(frames, 3, 16, 16, generator=torch.Generator().manual_seed(0)), fps=12.0, name="shot")


def inverse(folder: Path, memory: str | None, said: list[str] | None = None) -> DiffusionInverseRenderer:
    return load_inverse(folder / "inverse", device="cpu", memory=memory, say=(said if said is not None else []).append)


def difference(one: GBuffer, other: GBuffer) -> float:
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)


def test_lossless_plans_give_the_plain_result(folder: Path) -> None:
    """In double precision: norms over two values, as these networks have, make 7e-4 of float32's rounding."""
    clip = clip_of(3)
    double = {"device": "cpu", "dtype": torch.float64}
    plain = load_inverse(folder / "inverse", **double)(clip, buffers=("basecolor", "depth"))
    managed = load_inverse(folder / "inverse", memory="max", **double)
    for level, plan in enumerate(PLANS):
        if plan.lossless(framewise=False):
            managed.memory._go(level)
            assert difference(managed(clip, buffers=("basecolor", "depth")), plain) <= ROUNDING
    assert managed.memory.plan.sliced  # the loop reached the plan that slices


def test_frames_decoded_each_by_itself_may_be_decoded_in_any_number(with_small: Path) -> None:
    """The third plan decodes four frames at once; a small decoder does not mind, the VAE's own does."""
    clip, call = clip_of(6), {"buffers": ("basecolor", "depth")}
    for decoder, level in (("small", 2), ("full", 1)):
        plain = load_inverse(with_small, device="cpu", dtype=torch.float64, decoder=decoder)
        managed = limit_memory(plain, "auto")
        assert managed.memory._lowest == level and not PLANS[3].lossless(plain.codec.framewise)
        expected = plain(clip, **call)
        managed.memory._go(2)
        # Worst measured in double precision: 1e-15 with the small decoder, 0.1 with the full one.
        assert (difference(managed(clip, **call), expected) <= 1e-9) == PLANS[2].lossless(plain.codec.framewise)
    said: list[str] = []
    managed = load_inverse(with_small, device="cpu", memory="max", say=said.append)
    assert all(managed.memory.step_down() for _ in PLANS[1:])
    assert [", the same result " in line for line in said] == [True, True, False] and ", another result " in said[-1]


class LiveValues(TorchDispatchMode):
    """The largest sum of the sizes of tensors that exist at one time, in values of four bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known | given:
                self._known.add(storage._cdata)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes() // 4)
                self.now += storage.nbytes() // 4
                self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, values: int) -> None:
        self._known.discard(key)
        self.now -= values


@pytest.mark.parametrize(
    "sizes",
    [{}, {"widths": (96, 48)}, {"scales": (1, 2), "widths": (16, 8)}, {"scales": (1, 8), "widths": (96, 64)}],
)
def test_a_small_decoder_holds_as_much_as_is_planned(sizes: dict[str, tuple[int, ...]]) -> None:
    decoder = SmallDecoder(**sizes).to("meta")
    with torch.no_grad(), LiveValues() as live:
        decoder(torch.empty(2, 4, 8, 8, device="meta"))
    # Counted per pixel, and planned: 31.5 and 36, 55.5 and 60, 13 and 14, 263.5 and 268.
    assert live.peak / (2 * 64 * 64) <= decoder.live_values <= 1.2 * live.peak / (2 * 64 * 64)


def test_a_small_decoder_needs_less(with_small: Path) -> None:
    small, full = (load_inverse(with_small, device="cpu", decoder=name) for name in ("small", "full"))
    beside = memory_module.module_bytes(small.checkpoint.decoder_small)
    assert memory_module.weight_bytes(small) - memory_module.module_bytes(small.checkpoint.vae) > beside > 0
    for plan in PLANS[:3]:
        # Images so large that values, and not weights, decide: 32 channels, 8 values of each, against 20 values.
        needs = [needed_bytes(renderer, plan, 1024 * 1024) for renderer in (small, full)]
        assert needs[0] < needs[1]


def test_a_lora_is_applied_to_sliced_layers(folder: Path) -> None:
    light = EnvironmentMap(torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(1)))
    buffers = {name: torch.rand(2, 3 if name in ("basecolor", "normal") else 1, 16, 16) for name in BUFFERS[:5]}
    plain = load_forward(folder / "forward", device="cpu")
    managed = load_forward(folder / "forward", device="cpu", memory="max")
    managed.memory._go(1)
    pictures = [r(GBuffer(**buffers), light, lora_scale=0.5).frames for r in (plain, managed)]
    without = plain(GBuffer(**buffers), light, lora_scale=0.0).frames
    assert float((pictures[0] - pictures[1]).abs().max()) <= ROUNDING < float((pictures[0] - without).abs().max())


def test_float8_storage_halves_what_it_says_and_stays_close(folder: Path) -> None:
    clip, plain = clip_of(2), inverse(folder, None)
    managed = inverse(folder, "max")
    managed.memory._go(len(PLANS) - 1)
    stored = memory_module.module_bytes(managed.unet)
    assert stored < 0.5 * memory_module.module_bytes(plain.unet)  # from 4 bytes to 1, but for norms and embeddings
    assert managed.unet.dtype == torch.float32
    # Random networks, one frame decoded at once instead of two: 0.1 measured; an untouched result would be 0.
    assert 0 < difference(managed(clip, buffers=("basecolor",)), plain(clip, buffers=("basecolor",))) < 0.5


class FullDevice:
    """Decoding raises as a full device does, until as few frames as fit are decoded at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fitting: int, error: Exception, after: int = 0) -> None:
        self.calls, decode = 0, LatentCodec.decode

        def limited(codec: LatentCodec, latents: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > after and min(codec.chunk, len(latents)) > fitting:
                raise error
            return decode(codec, latents)

        monkeypatch.setattr(LatentCodec, "decode", limited)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_every_device_says_in_its_own_words_that_memory_ran_out(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_out_of_memory_goes_on_with_less_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    managed = inverse(folder, "max", said)
    FullDevice(monkeypatch, fitting=1, error=torch.OutOfMemoryError("CUDA out of memory"))
    result = managed(clip_of(2), buffers=("basecolor",))
    assert len(result) == 2 and torch.isfinite(result.basecolor).all()
    assert managed.memory.plan is PLANS[-1]
    assert len(said) == len(PLANS) - 1 and all("out of memory" in line and "\n" not in line for line in said)


def test_pieces_that_came_before_are_kept_and_none_is_missing_or_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = inverse(folder, None)(clip_of(4), buffers=("basecolor",))
    managed = inverse(folder, "max")
    FullDevice(monkeypatch, fitting=1, error=MemoryError(), after=1)
    pieces = list(managed.stream(clip_of(4), buffers=("basecolor",)))
    assert sum(map(len, pieces)) == 4 and len(pieces[0]) == 2
    assert torch.equal(pieces[0].basecolor, plain.basecolor[:2])  # made before memory ran out
    # Float8 and single frames from there on.
    later = torch.cat([piece.basecolor for piece in pieces[1:]])
    assert 0 < float((later - plain.basecolor[2:]).abs().max()) < 0.5


def test_when_nothing_helps_the_error_surfaces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDevice(monkeypatch, fitting=0, error=MemoryError("full"))
    with pytest.raises(MemoryError, match="full"):
        inverse(folder, "max")(clip_of(2), buffers=("basecolor",))


def test_other_errors_are_not_taken_for_full_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    FullDevice(monkeypatch, fitting=0, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        inverse(folder, "max", said)(clip_of(2), buffers=("basecolor",))
    assert not said and not is_out_of_memory(ValueError("out of memory"))


def test_the_plan_is_the_fastest_that_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = inverse(folder, None)
    needs = [needed_bytes(plain, plan, 16 * 16) for plan in PLANS]
    assert needs == sorted(needs, reverse=True) and needs[0] > needs[-1]
    for budget, expected in ((needs[0], 0), (needs[2], 2), (needs[-1] - 1, len(PLANS) - 1)):
        monkeypatch.setitem(memory_module.BUDGETS, "8GB", budget)
        managed = limit_memory(plain, "8GB")
        managed.memory.prepare(16 * 16)
        fits = next((i for i, need in enumerate(needs) if need <= budget), len(PLANS) - 1)
        assert managed.memory.level == fits <= expected


def test_image_groups_are_made_beside_each_other_where_there_is_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on a CPU, where nothing is gained; in a plan that saves memory in the network, and without room, one by one.

    In double precision, for the reason given above.
    """
    managed, calls = load_inverse(folder / "inverse", device="cpu", dtype=torch.float64, memory="24GB"), []
    predict = DiffusionInverseRenderer.predict_batch
    monkeypatch.setattr(
        DiffusionInverseRenderer,
        "predict_batch",
        lambda self, unet, inputs, *rest, **named: calls.append(len(inputs)) or predict(self, unet, inputs, *rest, **named),
    )
    one_by_one = managed(clip_of(2), buffers=BUFFERS[:3], steps=1)
    assert set(calls) == {1}
    calls.clear()
    manager = managed.memory
    monkeypatch.setattr(MemoryManager, "groups_at_once", lambda self, pixels, groups: 2)
    assert difference(managed(clip_of(2), buffers=BUFFERS[:3], steps=1), one_by_one) <= ROUNDING
    assert calls == [2, 1]
    monkeypatch.undo()

    monkeypatch.setattr(manager, "device", torch.device("cuda"))
    plan, pixels = PLANS[0], 16 * 16
    room = {count: needed_bytes(managed, plan, pixels, count) for count in (1, 2, 3, 4, 5)}
    assert room[1] == needed_bytes(managed, plan, pixels) <= room[2] and room[3] < room[5]
    for count in (3, 5):
        monkeypatch.setattr(MemoryBudget, "left", lambda self, member, count=count: room[count])
        assert manager.groups_at_once(pixels, 5) == count
    monkeypatch.setattr(MemoryBudget, "left", lambda self, member: room[1] - 1)
    assert manager.groups_at_once(pixels, 5) == 1
    monkeypatch.setattr(MemoryBudget, "left", lambda self, member: None)
    assert manager.groups_at_once(pixels, 5) == 5
    monkeypatch.setattr(manager, "level", 1)
    assert manager.groups_at_once(pixels, 5) == 1


def test_auto_measures_what_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < available_bytes(torch.device("cpu")) < 2**50
    # Never a plan that changes the result.
    lowest = max(level for level, plan in enumerate(PLANS) if plan.lossless(framewise=False))
    for free, level in ((2**40, 0), (0, lowest)):
        monkeypatch.setattr(memory_module, "available_bytes", lambda device, free=free: free)
        managed = inverse(folder, "auto")
        managed.memory.prepare(16 * 16)
        assert managed.memory.level == level


def test_two_renderers_share_a_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first holds is not there for the second, and is again when the first is gone."""
    plain = inverse(folder, None)
    needs = [needed_bytes(plain, plan, 16 * 16) for plan in PLANS]
    weights, need, smaller = memory_module.weight_bytes(plain), needs[0], next(i for i, n in enumerate(needs) if n < needs[0])
    for beside, level in ((weights, 0), (weights - 1, smaller)):
        monkeypatch.setitem(memory_module.BUDGETS, "8GB", need + beside)
        budget = MemoryBudget("8GB")
        first, second = (load_inverse(folder / "inverse", device="cpu", memory=budget) for _ in range(2))
        assert budget.left(first.memory) == need + beside - weights
        second.memory.prepare(16 * 16)
        assert second.memory.level == level and second(clip_of(1), buffers=("basecolor",)).basecolor.isfinite().all()
        del second
        gc.collect()
        assert budget.left(first.memory) == need + beside
    # A classical renderer holds nothing of it, and takes the options that every renderer takes.
    assert not isinstance(load_any_forward("splitsum", memory=budget, compile=True), Managed)


def test_free_memory_is_what_is_free_beside_both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, said = [1000], []
    monkeypatch.setattr(memory_module, "available_bytes", lambda device: free[0])
    budget = MemoryBudget("auto")
    first = load_inverse(folder / "inverse", device="cpu", memory=budget)
    assert budget.left(first.memory) == 850 + first.memory.held
    free[0] = 400
    second = load_any_forward(folder / "forward", device="cpu", memory=budget, say=said.append)
    assert second.memory.held != first.memory.held == memory_module.weight_bytes(first)
    assert budget.left(second.memory) == 340 + second.memory.held and budget.left(first.memory) == 340 + first.memory.held
    assert MemoryBudget("max").left(first.memory) is None
    second.memory.step_down()
    assert len(said) == 1


def test_weights_that_wait_in_main_memory_are_not_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectCopies, "start", lambda self, weights: ([tensor.clone() for tensor in weights], None))
    managed = inverse(folder, "max")
    everything = managed.memory.held
    managed.memory.offload.set_mode("component")  # as on a GPU, where it begins with everything put away
    assert managed.memory.held < 0.2 * everything
    managed.memory.offload.set_mode("none")
    assert managed.memory.held == everything


def test_a_word_that_is_no_limit_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="8GB, 12GB"):
        inverse(folder, "16GB")
    renderer = object()
    assert limit_memory(renderer, "8GB") is renderer  # a classical renderer


class Chain(nn.Module):
    """Two blocks and a part of its own, and a note of which weights were on the device when each ran."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.down_blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.decoder = nn.Linear(4, 4)


class Notes:
    """Copies that stand for a GPU's: weights at another address than in main memory are on it. Notes what happens when."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def start(self, weights: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], int]:
        self.events.append(("start", weights[0].data_ptr()))
        return [tensor.clone() for tensor in weights], weights[0].data_ptr()

    def wait(self, ticket: int) -> None:
        self.events.append(("wait", ticket))


def offloaded(mode: str) -> tuple[tuple[nn.Module, ...], dict[nn.Module, int], Offload, Notes]:
    """Blocks of a chain in the order in which they run, their addresses in main memory, and what moves them."""
    network, notes = Chain(), Notes()
    blocks = (*network.down_blocks, network.decoder)
    offload = Offload([[network]], torch.device("cpu"), notes)
    offload.set_mode(mode)
    return blocks, {block: block.weight.data_ptr() for block in blocks}, offload, notes


@pytest.mark.parametrize(("mode", "most"), [("component", 2), ("group", 2)])
def test_weights_are_on_the_device_when_they_are_needed_and_only_then(mode: str, most: int) -> None:
    blocks, home, offload, notes = offloaded(mode)
    inputs = torch.rand(1, 4)
    expected = [nn.functional.linear(inputs, block.weight, block.bias) for block in blocks]
    for _ in range(2):
        for block, value in zip(blocks, expected, strict=True):
            assert torch.equal(block(inputs), value) and block.weight.data_ptr() != home[block]
            assert len(offload.present) <= most
            # It ran after its weights had come.
            assert notes.events.count(("wait", home[block])) == notes.events.count(("start", home[block]))
    offload.park()
    assert all(block.weight.data_ptr() == home[block] for block in blocks)


def test_a_networks_weights_come_in_the_order_in_which_its_blocks_run_each_awaited_by_its_own_block() -> None:
    (first, second, _), home, _, notes = offloaded("component")
    first(torch.rand(1, 4))
    assert notes.events == [("start", home[first]), ("start", home[second]), ("wait", home[first])]
    second(torch.rand(1, 4))
    assert notes.events[3:] == [("wait", home[second])]


def test_the_block_that_ran_next_the_last_time_is_fetched_while_one_runs() -> None:
    (first, second, decoder), home, offload, notes = offloaded("group")
    inputs = torch.rand(1, 4)
    first(inputs)
    second(inputs)
    offload.park()
    notes.events.clear()
    first(inputs)
    assert notes.events == [("start", home[first]), ("start", home[second]), ("wait", home[first])]
    decoder(inputs)  # something else after all: what was fetched in vain goes
    assert second.weight.data_ptr() == home[second] and len(offload.present) == 1


def test_weights_that_were_still_on_their_way_are_awaited_when_all_of_them_stay() -> None:
    (first, second, _), home, offload, notes = offloaded("component")
    first(torch.rand(1, 4))
    offload.set_mode("none")
    assert notes.events.count(("wait", home[second])) == 1 and not offload.waiting_bytes
