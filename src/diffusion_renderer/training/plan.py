"""What a stage would take, without training it: parameters, memory, operations and time per step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.models import AutoencoderKLTemporalDecoder
from diffusion_renderer.training.cost import Call, Cost, measure
from diffusion_renderer.training.crops import CROP
from diffusion_renderer.training.latent import ENCODED_PIXELS
from diffusion_renderer.training.options import STAGES, TrainOptions
from diffusion_renderer.training.presets import Preset

#: Numbers of GPUs for which a plan is printed.
CLUSTERS = (1, 8, 64)
#: Steps of which the fastest is taken as the speed of the machine at hand.
TRIALS = 3
#: Networks of more parameters than this are not tried on a CPU, and are planned for GPUs.
LARGE = 10**8


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    Attributes
    ----------
    rate : floating point operations per second of dense bfloat16 matrix products at its peak.
    exact_rate : the same where the frozen autoencoder works, in float32 on the matrix units (TF32).
    memory : bytes.
    """

    name: str
    rate: float
    exact_rate: float
    memory: float


DEVICES = {
    "a100": Device("A100 80 GB", 312e12, 156e12, 80e9),
    "h100": Device("H100 SXM 80 GB", 989e12, 494e12, 80e9),
    "h200": Device("H200 SXM 141 GB", 989e12, 494e12, 141e9),
}
#: Share of a GPU's memory that a plan may fill; the rest is for the CUDA context, fragments and communication.
USABLE = 0.9
#: Share of the data sheet's rate that is assumed to be reached. Not measured.
UTILISATION = 0.35


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step. With several GPUs everything trained is sharded (FSDP, full shard).

    weights 4 P / N, gradients 4 P / N, AdamW's two moments 8 P / N, averaged weights 4 P / N for P parameters in float32 on N
    GPUs; ``copies`` is 2 P in bfloat16 on one GPU, and on several the weights (4 bytes, and 2 in bfloat16) and the gradients
    (4 bytes) of two `cost.UNITS` at a time; frozen networks are whole everywhere (4 bytes). ``working`` is the larger of the
    activations and of what the autoencoder needs while it encodes, which is not at the same time. Not counted: the CUDA context
    and libraries (about 1 GB), the allocator's fragments, buffers of the communication.
    """

    weights: float
    gradients: float
    moments: float
    average: float
    copies: float
    frozen: float
    working: float

    @property
    def total(self) -> float:
        """Of all of it."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Plan:
    """What one stage of a preset takes.

    Attributes
    ----------
    clip : frames of an item, and size : side of its images, pixels.
    items : of that length in a step, over all processes.
    trained : cost of the trained network for one item, with its backward pass, as the options ask.
    peaks : bytes of activations of one item, without and with gradient checkpointing.
    frozen_parameters : of the networks that are only used.
    frozen : operations for one item of autoencoder and environment encoder, which work in float32.
    frozen_peak : bytes that they work with.
    teacher : operations for one item of the teacher of a student.
    precision, accumulate, steps : of the options.
    """

    preset: str
    stage: str
    clip: int
    size: int
    items: int
    trained: Cost
    peaks: tuple[int, int]
    checkpointing: bool
    frozen_parameters: int
    frozen: float
    frozen_peak: int
    teacher: float
    precision: str
    accumulate: int
    steps: int

    @property
    def operations(self) -> float:
        """Floating point operations of a step over all processes."""
        return self.items * (self.trained.total + self.teacher + self.frozen)

    def items_at_once(self, gpus: int, accumulate: int | None = None) -> int:
        """The largest number of items that one GPU computes together, with the options' ``accumulate`` or another."""
        return -(-self.items // (gpus * (accumulate or self.accumulate)))

    def memory(self, gpus: int, accumulate: int | None = None) -> Memory:
        """On each of ``gpus`` GPUs, see `Memory`."""
        parameters, unit, half = self.trained.parameters, self.trained.largest_unit, self.precision == "bf16"
        copies = 2 * parameters * half if gpus == 1 else 2 * unit * (8 + 2 * half)
        return Memory(
            weights=4 * parameters / gpus,
            gradients=4 * parameters / gpus,
            moments=8 * parameters / gpus,
            average=4 * parameters / gpus,
            copies=copies,
            frozen=4 * self.frozen_parameters,
            working=max(self.peaks[self.checkpointing] * self.items_at_once(gpus, accumulate), self.frozen_peak),
        )

    def fitting(self, device: Device, gpus: int) -> int | None:
        """The smallest ``accumulate`` with which a step fits the device's memory; None where one item alone does not fit."""
        pieces = range(1, -(-self.items // gpus) + 1)
        return next((n for n in pieces if self.memory(gpus, n).total <= USABLE * device.memory), None)

    def seconds(self, device: Device, gpus: int, utilisation: float = UTILISATION) -> float:
        """Of a step, by the GPU with most items; time for communication and for reading data is not in it."""
        rate = device.rate if self.precision == "bf16" else device.exact_rate
        one = (self.trained.total + self.teacher) / rate + self.frozen / device.exact_rate
        return -(-self.items // gpus) * one / utilisation


def describe(
    preset: Preset, stage: str, options: TrainOptions, device: str = "h100", clusters: tuple[int, ...] = CLUSTERS
) -> str:
    """The plan in words, some twenty lines, for ``train --dry-run``.

    Large networks are planned for ``device`` (one of `DEVICES`) in numbers of ``clusters``; the others for the machine at hand,
    whose speed is measured. Raises InputError for a stage without a network, as the frozen autoencoder's.
    """
    check_name("GPU", device, DEVICES)
    made = plan(preset, stage, options)
    lines = [*_sizes(made), *_working(made)]
    if made.trained.parameters > LARGE:
        lines += _clusters(made, DEVICES[device], clusters)
    else:
        lines += _at_hand(made, preset, stage, options)
    return "\n".join(lines)


def plan(preset: Preset, stage: str, options: TrainOptions) -> Plan:
    """Measure a stage's networks on tensors without contents (see `cost.measure`).

    An item is a clip of the preset's longest length and its size; steps of stills or of shorter clips have as many images and
    cost about the same.
    """
    kind = stage.split("-")[0]
    check_name("training stage", kind, STAGES)
    if kind == "vae" and preset.frozen_vae:
        advice = "give its folder to --start-from in the other stages"
        raise InputError("a stage of the preset", f"vae: {preset.name} keeps the autoencoder of Stable Video Diffusion", advice)
    work = _work(preset, kind, options)
    frozen = [measure(build, call, backward=False) for build, call, _ in work.frozen]
    costs = {
        again: measure(work.build, work.call, backward=True, precision=options.precision, checkpointing=again)
        for again in (False, True)
        if work.can_checkpoint or not again
    }
    asked = options.checkpointing and work.can_checkpoint
    parameters = {build: cost.parameters for (build, _, _), cost in zip(work.frozen, frozen, strict=True)}
    return Plan(
        preset=preset.name,
        stage=stage,
        clip=work.frames,
        size=work.size,
        items=max(1, options.batch // work.frames),
        trained=costs[asked],
        peaks=(costs[False].peak, costs[work.can_checkpoint].peak),
        checkpointing=asked,
        frozen_parameters=sum(parameters.values()) + (costs[asked].parameters if kind == "distill" else 0),
        frozen=sum(cost.forward * times for (_, _, times), cost in zip(work.frozen, frozen, strict=True)),
        frozen_peak=max((cost.peak for cost in frozen), default=0),
        teacher=_teacher_calls(options) * costs[asked].forward if kind == "distill" else 0.0,
        precision=options.precision,
        accumulate=options.accumulate,
        steps=options.max_steps,
    )


@dataclass(frozen=True)
class _Work:
    """A stage's trained network and one call of it on one item; its frozen ones: (network, call, calls per item)."""

    build: Callable[[], nn.Module]
    call: Call
    frozen: tuple[tuple[Callable[[], nn.Module], Call, float], ...]
    frames: int
    size: int
    can_checkpoint: bool = True


def _work(preset: Preset, stage: str, options: TrainOptions) -> _Work:
    if stage == "vae":
        return _Work(lambda: _autoencoder(preset), _reconstructed, (), 1, CROP, can_checkpoint=False)
    if stage == "decoder":
        side = CROP // preset.factor
        make = lambda network: network(torch.zeros(1, preset.latent_channels, side, side))  # noqa: E731
        taught = lambda vae: vae.decode(torch.zeros(1, preset.latent_channels, side, side), num_frames=1).sample  # noqa: E731
        frozen = (_encoding(preset, CROP, 1), (preset.vae, taught, 1.0))
        return _Work(preset.small_decoder, make, frozen, 1, CROP, can_checkpoint=False)
    if stage == "env":
        side = preset.env_size // preset.factor
        frozen = (_encoding(preset, preset.env_size, len(preset.labels)),)
        channels = len(preset.labels) * preset.latent_channels
        call = lambda encoder: encoder(torch.zeros(1, 1, channels, side, side))  # noqa: E731
        return _Work(preset.env_encoder, call, frozen, 1, preset.env_size)
    kind = stage if stage != "distill" else options.teacher
    build, call, frozen = _inverse(preset) if kind == "inverse" else _forward(preset, options)
    return _Work(build, call, frozen, preset.window, preset.side(kind))


def _inverse(preset: Preset) -> tuple[Any, Call, tuple]:
    """The video and what is made of it are encoded: all groups, or the one that an item asks for."""
    pixels, images = preset.side("inverse"), 1 + (len(preset.groups) if preset.joint else 1)
    side = pixels // preset.factor

    def call(unet: nn.Module) -> Any:
        sample = torch.zeros(1, preset.window, unet.config.in_channels, side, side)
        context, domain = torch.zeros(1, 1, preset.context_channels), torch.zeros(1, dtype=torch.long)
        return unet(sample, torch.zeros(1), context, torch.zeros(1, 3), domain)

    return preset.inverse_unet, call, (_encoding(preset, pixels, preset.window * images),)


def _forward(preset: Preset, options: TrainOptions) -> tuple[Any, Call, tuple]:
    """The video, all groups, the classical picture, and the light as every frame sees it are encoded."""
    side, light_side = preset.size // preset.factor, preset.env_size // preset.factor
    images = 1 + len(preset.groups) + (preset.prior is not None)
    encoder = options.light == "encoder"
    channels = len(preset.labels) * preset.latent_channels

    def call(unet: nn.Module) -> Any:
        sample = torch.zeros(1, preset.window, unet.config.in_channels, side, side)
        sides = [light_side >> level if encoder else 1 for level in range(len(preset.env_widths))]
        pairs = zip(preset.env_widths, sides, strict=True)
        light = [torch.zeros(1, preset.window if encoder else 1, width, cells, cells) for width, cells in pairs]
        return unet(sample, torch.zeros(1), light, torch.zeros(1, 3))

    frozen = [
        _encoding(preset, preset.size, preset.window * images),
        _encoding(preset, preset.env_size, preset.window * len(preset.labels)),
    ]
    if encoder:
        latents = (1, preset.window, channels, light_side, light_side)
        frozen.append((preset.env_encoder, lambda network: network(torch.zeros(latents)), 1.0))
    return lambda: preset.forward_unet(options.light), call, tuple(frozen)


def _encoding(preset: Preset, size: int, images: int) -> tuple[Any, Call, float]:
    """As many images as go through the autoencoder at once, as often as it takes for all."""
    together = min(images, max(1, ENCODED_PIXELS // size**2))
    call = lambda vae: vae.encode(torch.zeros(together, 3, size, size)).latent_dist.mode()  # noqa: E731
    return preset.vae, call, images / together


def _autoencoder(preset: Preset) -> AutoencoderKLTemporalDecoder:
    """As its stage trains it: a linear encoder has a closed form."""
    vae = preset.vae()
    if preset.patch_encoder:
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
    return vae


def _reconstructed(vae: AutoencoderKLTemporalDecoder) -> Any:
    """A crop, encoded and decoded."""
    return vae.decode(vae.encode(torch.zeros(1, 3, CROP, CROP)).latent_dist.mode(), num_frames=1).sample


def _teacher_calls(options: TrainOptions) -> float:
    """The teacher's calls for one sample of the student, as `training.students` has them on average.

    A trajectory is as long as the teacher's share of the student's step; consistency takes one step of the teacher.
    """
    guided = 1 if options.teacher_guidance in (None, 1.0) else 2
    steps = {"regression": 0, "trajectory": options.teacher_steps / options.student_steps, "consistency": 1}
    return guided * steps[options.method]


def _sizes(made: Plan) -> list[str]:
    item = f"clip of {made.clip} frames" if made.clip > 1 else "image"
    return [
        f"{made.preset} {made.stage}: {made.trained.parameters:,} parameters trained, {made.frozen_parameters:,} frozen",
        f"step: {made.items} x {item}, {made.size} x {made.size} pixels; {made.steps:,} steps",
        f"operations per item: one call {_tera(made.trained.forward)}, with its backward pass {_tera(made.trained.total)},"
        f" frozen networks {_tera(made.frozen)}, teacher {_tera(made.teacher)}; per step {_tera(made.operations)}",
    ]


def _working(made: Plan) -> list[str]:
    return [
        f"activations per item ({made.precision}): {_giga(made.peaks[False])}, with gradient checkpointing"
        f" {_giga(made.peaks[True])}; encoding takes {_giga(made.frozen_peak)} at another time",
    ]


def _clusters(made: Plan, device: Device, clusters: tuple[int, ...]) -> list[str]:
    lines = [
        f"{device.name}, sharded over all GPUs (FSDP, full shard), at {100 * UTILISATION:g} % of {device.rate / 1e12:g} TFLOP/s"
        f" (frozen networks: of {device.exact_rate / 1e12:g}), an assumption; communication and reading data not counted",
        "GPUs | items each, at once | weights | gradients | moments | average | copies | frozen | working | total GB"
        " | fits with --accumulate | s per step | days",
    ]
    for gpus in clusters:
        memory, seconds = made.memory(gpus), made.seconds(device, gpus)
        parts = " | ".join(f"{value / 1e9:.1f}" for value in (*vars(memory).values(), memory.total))
        fits = made.fitting(device, gpus) or "none"
        each = f"{-(-made.items // gpus)}, {made.items_at_once(gpus)}"
        lines.append(f"{gpus} | {each} | {parts} | {fits} | {seconds:.2f} | {made.steps * seconds / 86400:.1f}")
    if made.items < max(clusters):
        lines.append(f"{made.items} items leave GPUs without work beyond {made.items}: give a larger --batch")
    return lines


def _at_hand(made: Plan, preset: Preset, stage: str, options: TrainOptions) -> list[str]:
    device = find_device(options.device)
    work = _work(preset, stage.split("-")[0], options)
    seconds = _probe(work, options, device) * made.operations / made.trained.total
    memory = made.memory(1)
    return [
        f"memory: {_giga(memory.total)}, of which activations {_giga(memory.working)}",
        f"time on {device.type}: about {seconds:.2f} s per step, {made.steps * seconds / 60:.0f} min for {made.steps:,} steps"
        f" at most (one item was timed alone, {torch.get_num_threads()} threads; together they take less)",
    ]


def _probe(work: _Work, options: TrainOptions, device: torch.device) -> float:
    """Seconds that one item takes on this device: forward and backward pass of the network with random weights."""
    network = work.build().to(device).train()
    times = []
    with torch.random.fork_rng(devices=[]), torch.device(device):
        for _ in range(TRIALS):
            start = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
                outputs = work.call(network)
            sum(o.float().square().mean() for o in (outputs if isinstance(outputs, list) else [outputs])).backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return min(times)


def _tera(operations: float) -> str:
    return f"{operations / 1e12:.3g} TFLOP" if operations >= 1e11 else f"{operations / 1e9:.3g} GFLOP"


def _giga(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
