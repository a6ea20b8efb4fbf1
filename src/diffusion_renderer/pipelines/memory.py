"""Running in less memory: what each way of saving needs, which one fits, and the next one when memory runs out all the same."""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, Literal, TypeVar
from weakref import WeakSet

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.pipelines.diffusion import DiffusionRenderer
from diffusion_renderer.pipelines.forward import DiffusionForwardRenderer
from diffusion_renderer.pipelines.inverse import DiffusionInverseRenderer
from diffusion_renderer.pipelines.offload import Offload
from diffusion_renderer.pipelines.resuming import Note, ResumePoint

#: What ``--memory`` takes beside "auto" and "max", in bytes.
BUDGETS = {"8GB": 8 * 10**9, "12GB": 12 * 10**9, "24GB": 24 * 10**9}
MEMORY_NAMES = ("auto", *BUDGETS, "max")
#: Parts that sliced layers compute one after the other.
SLICES = 4
#: Share of what is free that "auto" plans with; the rest is for libraries' workspaces and fragments.
USABLE = 0.85
#: Live values at the peak, per pixel, frame and channel of the finest level, of the UNet (whole and sliced), the VAE's encoder
#: and its decoder. Counted at the published sizes (24 frames of 64 x 64 latents, 8 frames of 512 x 512 pixels) on the meta
#: device, every allocation noted and every release: 26, 15, 5.0 and 8.0. Attention is taken to be fused.
UNET_VALUES, SLICED_VALUES, ENCODER_VALUES, DECODER_VALUES = 26, 15, 5, 8

Say = Callable[[str], None]
Renderer = TypeVar("Renderer")


@dataclass(frozen=True)
class MemoryPlan:
    """One way of running.

    Attributes
    ----------
    offload : see `Offload`; nothing on a CPU, where the weights are in main memory anyway.
    chunk : frames that the VAE sees at once, at most; None for the model's own. Encoding is the same whatever it is; the
        VAE's decoder is temporal, so that fewer frames change the result. A small decoder looks at one frame at a time.
    sliced : feed-forward layers and self-attention of the UNet in `SLICES` parts; the same result.
    float8 : the UNet's weights stored in 8 bits and widened layer by layer; changes the result. Not done to a checkpoint with
        a LoRA.
    """

    name: str
    offload: Literal["none", "component", "group"] = "none"
    chunk: int | None = None
    sliced: bool = False
    float8: bool = False

    def lossless(self, framewise: bool) -> bool:
        """Whether the result is that of the first plan, up to rounding, where frames are decoded each by itself or not."""
        return (self.chunk is None or framewise) and not self.float8


#: From the fastest to the one that needs least.
PLANS = (
    MemoryPlan("everything in place"),
    MemoryPlan("one network at a time", "component", sliced=True),
    MemoryPlan("one network at a time, 4 frames decoded at once", "component", chunk=4, sliced=True),
    MemoryPlan("one block at a time in float8, 1 frame decoded at once", "group", chunk=1, sliced=True, float8=True),
)


class SlicedFeedForward(FeedForward):
    """diffusers' feed-forward layer, computed for some of the batch at a time: its wide middle is the UNet's peak."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.cat([super(SlicedFeedForward, self).forward(part) for part in hidden_states.chunk(SLICES)])


class SlicedAttention:
    """An attention processor that computes self-attention for some of the batch at a time."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **rest: Any
    ) -> Tensor:
        if encoder_hidden_states is not None:
            return self.whole(attn, hidden_states, encoder_hidden_states, **rest)
        return torch.cat([self.whole(attn, part, None, **rest) for part in hidden_states.chunk(SLICES)])


class MemoryBudget:
    """What several renderers may use of a device together: what one holds counts against the others.

    Given as ``memory`` to the loaders of all of them; each of them has one of its own where a word is given. Not for renderers
    that work at the same time: only weights are counted, which stay, and not what a call makes and lets go.

    Parameters
    ----------
    memory : one of `MEMORY_NAMES`. Raises InputError for another word.
    """

    def __init__(self, memory: str) -> None:
        if memory not in MEMORY_NAMES:
            raise InputError(f"a memory limit, one of {', '.join(MEMORY_NAMES)}", repr(memory), "for example --memory 8GB")
        self.memory = memory
        self._members: WeakSet[MemoryManager] = WeakSet()
        self._free: dict[torch.device, int] = {}

    @property
    def lossless(self) -> bool:
        """Whether a plan that changes the result may only follow when memory ran out."""
        return self.memory == "auto"

    def join(self, member: MemoryManager) -> None:
        """Count a renderer, which has been loaded; "auto" measures here what is free beside all that are counted."""
        self._members.add(member)
        if self.memory == "auto":
            held = sum(each.held for each in self._members if each.device == member.device)
            self._free[member.device] = int(USABLE * available_bytes(member.device)) + held

    def left(self, member: MemoryManager) -> int | None:
        """Bytes for one of the renderers, its weights among them; None without a limit."""
        if self.memory == "max":
            return None
        total = self._free[member.device] if self.memory == "auto" else BUDGETS[self.memory]
        return total - sum(each.held for each in self._members if each is not member and each.device == member.device)


class MemoryManager:
    """Which plan a renderer's networks run with. Plans only go down, towards less memory: they change the networks."""

    def __init__(self, renderer: DiffusionRenderer, budget: MemoryBudget, say: Say) -> None:
        lora = renderer.checkpoint.lora
        self._trees = [renderer.unet] if lora is None else [renderer.unet, lora.adapted]
        self._renderer, self._budget, self._say = renderer, budget, say
        kept = [level for level, plan in enumerate(PLANS) if plan.lossless(renderer.codec.framewise)]
        self._lowest = max(kept) if budget.lossless else len(PLANS) - 1
        self.device, self.level, self.lock = renderer.unet.device, 0, RLock()
        networks = [self._trees, [renderer.checkpoint.vae]]
        if renderer.checkpoint.env_encoder is not None:
            networks.append([renderer.checkpoint.env_encoder])
        self.offload = Offload(networks, self.device)
        budget.join(self)

    @property
    def held(self) -> int:
        """Bytes of weights that lie on the device now."""
        return weight_bytes(self._renderer) - self.offload.waiting_bytes

    @property
    def plan(self) -> MemoryPlan:
        """The plan at hand."""
        return PLANS[self.level]

    def prepare(self, pixels: int) -> None:
        """Go down to the first plan whose need for images of so many pixels is within the budget; to the lowest if none is."""
        budget = self._budget.left(self)
        if budget is None:
            return
        needs = [needed_bytes(self._renderer, plan, pixels) for plan in PLANS]
        fitting = (level for level, need in enumerate(needs) if need <= budget)
        self._go(max(self.level, min(next(fitting, len(PLANS) - 1), self._lowest)))

    def groups_at_once(self, pixels: int, groups: int) -> int:
        """Image groups, of so many in all, that one call of the network may make: as many as the budget has room for.

        One on a CPU, where a larger batch gains nothing, and in plans that save memory in the network.
        """
        if self.device.type == "cpu" or self.plan.sliced:
            return 1
        budget = self._budget.left(self)
        fitting = (n for n in range(groups, 1, -1) if needed_bytes(self._renderer, self.plan, pixels, n) <= budget)
        return groups if budget is None else next(fitting, 1)

    def step_down(self) -> bool:
        """Take the next plan after memory ran out, and say so; False when there is none."""
        if self.level + 1 == len(PLANS):
            return False
        self._go(self.level + 1)
        kept = "the same result" if self.plan.lossless(self._renderer.codec.framewise) else "another result"
        self._say(f"out of memory: going on with {self.plan.name}, {kept} (give --memory to start that way)")
        return True

    def _go(self, level: int) -> None:
        if level == self.level:
            return
        self.level = level
        self.offload.set_mode("none")
        if self.plan.sliced:
            for tree in self._trees:
                slice_layers(tree)
        if self.plan.float8 and len(self._trees) == 1:
            self._renderer.unet.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=self._renderer.unet.dtype)
        if self.device.type != "cpu":
            self.offload.set_mode(self.plan.offload)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class Managed(DiffusionRenderer):
    """A diffusion renderer whose `stream` keeps within a memory budget; made by `limit_memory`.

    When memory runs out in the middle the pieces that came already are kept and the rest is made with the next plan. Calls of
    several threads take turns, piece by piece. Of the methods for one stage, `encode`, `decode` and `denoise`, none falls back.
    """

    memory: MemoryManager

    def stream(self, source: Any, *args: Any, **options: Any) -> Iterator[Any]:
        """As the plain renderer's."""
        inner = self.fit(source.size, options.get("size")).padded if min(source.size) > 0 else (0, 0)
        with self.memory.lock:
            self.memory.prepare(inner[0] * inner[1])

        asked, told = options.pop("resume", None), options.pop("note", None)

        def start(point: ResumePoint | None, note: Note) -> Iterator[Any]:
            view = copy.copy(self)
            # Of its own: another call that runs out of memory must not change how many frames this one decodes at once.
            view.codec = replace(self.codec, chunk=min(self.codec.chunk, self.memory.plan.chunk or self.codec.chunk))
            given = {**self._fitting(inner[0] * inner[1]), **options}
            return super(Managed, view).stream(source, *args, resume=point, note=note, **given)

        return resumed(start, self.memory, asked, told)

    def _fitting(self, pixels: int) -> dict[str, Any]:
        """Options of `stream` that go by the plan at hand, for images of so many pixels."""
        return {}


class ManagedInverseRenderer(Managed, DiffusionInverseRenderer):
    """`DiffusionInverseRenderer` within a memory budget: as many image groups in one call as it has room for."""

    def _fitting(self, pixels: int) -> dict[str, Any]:
        return {"batch_groups": self.memory.groups_at_once(pixels, len(self.settings.groups))}


class ManagedForwardRenderer(Managed, DiffusionForwardRenderer):
    """`DiffusionForwardRenderer` within a memory budget."""


def limit_memory(renderer: Renderer, memory: str | MemoryBudget | None, say: Say | None = None) -> Renderer:
    """The renderer, keeping within ``memory``; one that is no diffusion renderer is returned as it is.

    Parameters
    ----------
    memory : one of `MEMORY_NAMES`: "auto" measures what is free and takes a plan that does not change the result; "max" saves
        nothing until memory runs out; None returns the renderer as it is, without the fallback. When memory runs out all the
        same, any plan may follow. A `MemoryBudget` is shared with the other renderers that are given it.
    say : is told in one line when memory ran out; the default prints it on stderr.

    The networks are changed and must not be used through other renderers. Raises InputError for another word.
    """
    if memory is None:
        return renderer
    budget = memory if isinstance(memory, MemoryBudget) else MemoryBudget(memory)
    kinds = {DiffusionInverseRenderer: ManagedInverseRenderer, DiffusionForwardRenderer: ManagedForwardRenderer}
    if type(renderer) not in kinds:
        return renderer
    managed = copy.copy(renderer)
    managed.__class__ = kinds[type(renderer)]
    managed.memory = MemoryManager(managed, budget, say or partial(print, file=sys.stderr, flush=True))
    return managed


#: Starts a stream at a point, with what is to be told the later ones.
Start = Callable[[ResumePoint | None, Note], Iterator[Any]]


def resumed(start: Start, memory: MemoryManager, point: ResumePoint | None, told: Note | None) -> Iterator[Any]:
    """The pieces of a stream; when memory runs out it goes on with the next plan, at the frames that have not come yet.

    ``point`` and ``told`` are the caller's ``resume`` and ``note``. The stream is started here, so that mistakes of the caller
    show at once.
    """
    here = point

    def note(reached: ResumePoint) -> None:
        nonlocal here
        here = reached
        if told is not None:
            told(reached)

    return _resumed(lambda: start(here, note), start(here, note), memory)


def _resumed(again: Callable[[], Iterator[Any]], pieces: Iterator[Any], memory: MemoryManager) -> Iterator[Any]:
    try:
        while True:
            piece, failure = None, None
            try:
                with memory.lock:
                    piece = next(pieces, None)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # its frames hold the tensors that there was no room beside
            if failure is not None:
                pieces = iter(())
                with memory.lock:
                    if not memory.step_down():
                        raise failure
                # A renderer notes a piece before it begins with the next one, so nothing comes twice.
                pieces = again()
            elif piece is None:
                return
            else:
                yield piece
    finally:
        with memory.lock:
            memory.offload.park()


def slice_layers(network: nn.Module) -> None:
    """Make a UNet's feed-forward layers and self-attention work in `SLICES` parts; not twice."""
    for module in network.modules():
        if type(module) is FeedForward:
            # The class and not `forward` of the object: views of the network are copies, and theirs must use their own layers.
            module.__class__ = SlicedFeedForward
        elif isinstance(module, Attention) and not isinstance(module.processor, SlicedAttention):
            module.processor = SlicedAttention(module.processor)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in main memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in ("out of memory", "can't allocate memory"))


def needed_bytes(renderer: DiffusionRenderer, plan: MemoryPlan, pixels: int, batch: int = 1) -> int:
    """Estimate of the peak on the device, for images of so many pixels: weights that lie there, and the largest stage's values.

    ``batch`` is the number of image groups that the UNet makes in one call.

    Weights and layer widths are read from the modules. The G-buffers and latents of the clip are small beside these.
    """
    unet, vae, device = renderer.unet, renderer.checkpoint.vae, renderer.unet.device
    small, factor = renderer.codec.small, renderer.codec.factor
    chunk = min(renderer.codec.chunk, plan.chunk or renderer.codec.chunk)
    values = SLICED_VALUES if plan.sliced else UNET_VALUES
    size = torch.finfo(unet.dtype).bits // 8
    denoising = batch * values * size * unet.config.block_out_channels[0] * renderer.window * pixels // factor**2
    width = vae.config.block_out_channels[0]
    encoding = 2 * vae.config.latent_channels / factor**2 if vae.config.patch_encoder else ENCODER_VALUES * width
    decoding = DECODER_VALUES * width if small is None else small.live_values
    coding = int(max(encoding, decoding) * chunk * pixels) * (torch.finfo(vae.dtype).bits // 8)
    networks = [module_bytes(unet), module_bytes(vae), module_bytes(renderer.checkpoint.env_encoder)]
    # It is so small that it is never put away.
    stays = module_bytes(renderer.checkpoint.decoder_small)
    shrink = 2 if plan.float8 and size > 1 else 1
    if plan.offload == "none" or device.type == "cpu":
        return stays + sum(networks) + max(denoising, coding)
    if plan.offload == "component":
        return stays + max(networks[0] // shrink + denoising, networks[1] + coding, networks[2])
    blocks = [module_bytes(part) for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)]
    # One runs, the next one comes; after the last one the first one of the next step.
    pair = max(one + other for one, other in zip(blocks, blocks[1:] + blocks[:1], strict=True))
    return stays + max(pair // shrink + denoising, networks[1] + coding, networks[2])


def module_bytes(module: nn.Module | None) -> int:
    """Bytes of a module's parameters; 0 for none."""
    return 0 if module is None else sum(p.numel() * p.element_size() for p in module.parameters())


def weight_bytes(renderer: DiffusionRenderer) -> int:
    """Bytes of all networks of a renderer."""
    checkpoint = renderer.checkpoint
    return sum(map(module_bytes, (checkpoint.unet, checkpoint.vae, checkpoint.env_encoder, checkpoint.decoder_small)))


def available_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device: a GPU's, or main memory that the system can hand out without swapping."""
    if device.type == "cuda":
        # PyTorch keeps what calls let go for later ones: to the device it is taken, to us it is free.
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        # No such file outside Linux: half of what is built in.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
