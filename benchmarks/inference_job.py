"""The job of the inference benchmark: what goes in, the networks' folders, and the job in both orders of work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from inference_counting import Stages
from inference_reference import Reference
from inference_rows import DTYPES, JOINT, Row, accepted
from torch import Tensor

from diffusion_renderer import editing, pipelines
from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.geometry import rotation_y
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.models import Kind
from diffusion_renderer.pipelines.noise import frame_noise
from diffusion_renderer.render import Prior
from diffusion_renderer.training.presets import Preset

COMPONENTS = ("unet", "vae", "decoder_small", "env_encoder", "scheduler", "lora")
KINDS: tuple[Kind, Kind] = ("inverse", "forward")
#: A part of the job that is ready to run: gives its outputs by name.
Run = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Job:
    """Five buffers of a clip, and its G-buffers under a light (given ones, so that both halves stand on their own)."""

    folders: dict[Kind, Path]
    device: torch.device
    dtype: str
    frames: int
    window: int
    size: int
    steps: int
    guidance: float
    clip: Clip
    gbuffer: GBuffer
    light: EnvironmentMap
    rotations: Tensor
    seed: int = 0


def make_inputs(frames: int, size: int, turning: bool) -> dict[str, Any]:
    """A ball of five materials that moves in front of nothing, by formula, and a light with one lamp that may turn."""
    axis = (torch.arange(size) + 0.5) / size * 2.4 - 1.2
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    x = x - torch.linspace(-0.2, 0.2, frames)[:, None, None]
    y = y.expand_as(x)
    inside = (x**2 + y**2 < 1)[:, None]
    z = (1 - x**2 - y**2).clamp_min(0).sqrt()
    normal = torch.nn.functional.normalize(torch.stack((x, y, z), dim=1), dim=1) * inside
    bands = (0.5 + 0.5 * torch.sin(torch.stack((7 * x, 9 * y, 5 * x + 5 * y), dim=1))) * inside
    # Relative, as an inverse renderer gives it: what is relit here stands for a video's own buffers.
    depth = torch.where(inside, 0.9 * (1 - z[:, None]), 1.0)
    gbuffer = GBuffer(bands, normal, depth, (0.2 + 0.6 * bands[:, :1]) * inside, (bands[:, 1:2] > 0.8).float())
    lamp = torch.tensor([0.4, 0.7, 0.6])[:, None, None]
    shade = (normal * lamp).sum(dim=1, keepdim=True).clamp_min(0) + 0.2
    radiance = torch.full((3, 32, 64), 0.4)
    radiance[:, 6:10, 28:34] = 12.0
    angles = torch.linspace(0, 2 * math.pi, frames) if turning else torch.zeros(frames)
    rotations = torch.stack([rotation_y(float(angle)) for angle in angles])
    clip = Clip(srgb_oetf((bands * shade).clamp(0, 1)))
    return {"clip": clip, "gbuffer": gbuffer, "light": EnvironmentMap(radiance), "rotations": rotations}


def prepare_folders(source: Path, target: Path, window: int) -> dict[Kind, Path]:
    """Model folders like those in ``source`` whose windows are of ``window`` frames, weights by symbolic link.

    Calibration and guidance by the frames, which are no work of the networks, are left out, and so is an adapter.
    """
    made: dict[Kind, Path] = {}
    for kind in KINDS:
        folder = made[kind] = target / kind
        folder.mkdir(parents=True, exist_ok=True)
        for name in COMPONENTS:
            places = (source / kind / name, source / name)
            if found := next((place for place in places if place.is_dir()), None):
                (folder / name).symlink_to(found.resolve())
        settings = json.loads((source / kind / "renderer.json").read_text())
        for name in ("calibration", "guided", "relative_lora_scale"):
            settings.pop(name, None)
        (folder / "renderer.json").write_text(json.dumps({**settings, "window": window}))
    return made


def write_random_model(preset: Preset, folder: Path, dtype: torch.dtype, device: torch.device) -> Path:
    """Networks of a preset's sizes with random weights that keep activations of unit size, in the layout of checkpoints."""
    torch.manual_seed(0)
    networks = {"vae": preset.vae, "decoder_small": preset.small_decoder, "env_encoder": preset.env_encoder}
    networks |= {"inverse/unet": preset.inverse_unet, "forward/unet": preset.forward_unet}
    for name, build in networks.items():
        with torch.device("meta"):
            network = build()
        network = network.to_empty(device=device).to(dtype)
        for key, value in network.named_parameters():
            _fill(key, value.data)
        network.save_pretrained(folder / name)
        del network
    for kind in KINDS:
        (folder / kind / "scheduler").mkdir()
        (folder / kind / "scheduler" / "scheduler_config.json").write_text(json.dumps(preset.scheduler_config()))
        settings = {**preset.renderer_settings(kind), "kind": kind}
        (folder / kind / "renderer.json").write_text(json.dumps(settings))
    return folder


def _fill(name: str, value: Tensor) -> None:
    if value.ndim > 1:
        value.normal_(std=value[0].numel() ** -0.5)
    else:
        value.fill_(1.0 if name.endswith("weight") else 0.0)


@contextmanager
def part(job: Job, row: Row, kind: Kind, stages: Stages) -> Iterator[Run]:
    """One half of the job, its networks loaded and watched while it lasts."""
    if row.name.startswith("reference"):
        yield _reference_part(job, row, kind, stages)
    else:
        yield _package_part(job, row, kind, stages)


def _reference_part(job: Job, row: Row, kind: Kind, stages: Stages) -> Run:
    def noise(purpose: str, frames: int, shape: tuple[int, int, int]) -> Tensor:
        return frame_noise(job.seed, purpose, frames, shape)

    reference = Reference(job.folders[kind], kind, job.device, DTYPES[row.dtype or job.dtype], noise)
    stages.watch(reference.unet, reference.vae, reference.env_encoder)
    chunks = [slice(start, start + job.window) for start in range(0, job.frames, job.window)]

    def together() -> dict[str, Tensor]:
        parts = [reference.buffers(job.clip[chunk], job.steps) for chunk in chunks]
        return {name: torch.cat([part[name] for part in parts]) for name in DEFAULT_BUFFERS}

    def inverse() -> dict[str, Tensor]:
        if row.name == JOINT:
            return together()
        return {
            name: torch.cat([reference.buffer(job.clip[chunk], name, job.steps) for chunk in chunks])
            for name in DEFAULT_BUFFERS
        }

    def forward() -> dict[str, Tensor]:
        parts = [
            reference.relight(job.gbuffer[chunk], job.light, job.rotations[chunk], job.steps, job.guidance, Prior)
            for chunk in chunks
        ]
        return {"relit": torch.cat(parts)}

    return inverse if kind == "inverse" else forward


def _package_part(job: Job, row: Row, kind: Kind, stages: Stages) -> Run:
    load = pipelines.load_inverse if kind == "inverse" else editing.load_forward
    options = accepted(load, row.options)
    renderer: Any = load(job.folders[kind], device=job.device, dtype=DTYPES[row.dtype or job.dtype], **options)
    stages.watch(renderer.unet, renderer.codec.vae, getattr(renderer, "env_encoder", None), renderer.codec.small)
    call = {"steps": row.steps or job.steps, "seed": job.seed, "size": (job.size, job.size)}
    call |= accepted(renderer.stream, row.options)
    guidance = job.guidance if row.guidance is None else row.guidance

    def inverse() -> dict[str, Tensor]:
        pieces = renderer.stream(job.clip, buffers=DEFAULT_BUFFERS, **call)
        made = GBuffer.join(pieces, job.frames)
        return {name: getattr(made, name) for name in DEFAULT_BUFFERS}

    def forward() -> dict[str, Tensor]:
        pieces = renderer.stream(job.gbuffer, job.light, rotations=job.rotations, guidance=guidance, **call)
        return {"relit": Clip.join(pieces, job.frames).frames}

    return inverse if kind == "inverse" else forward


def takes(row: Row, kind: Kind) -> bool:
    """Whether this half of the job has the row's options at all."""
    load, renderer = {
        "inverse": (pipelines.load_inverse, pipelines.DiffusionInverseRenderer),
        "forward": (editing.load_forward, pipelines.DiffusionForwardRenderer),
    }[kind]
    return not row.options or bool(accepted(load, row.options) or accepted(renderer.stream, row.options))
