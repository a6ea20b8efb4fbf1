"""Stage `distill`: a student of one, two or four steps of a trained renderer, with the teacher's guidance folded in."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.diffusion import Denoiser, NoiseSchedule, sample_euler
from diffusion_renderer.models import AutoencoderKLTemporalDecoder
from diffusion_renderer.training.data import Mixture, draw_part
from diffusion_renderer.training.forward import ForwardStage
from diffusion_renderer.training.inverse import InverseStage
from diffusion_renderer.training.latent import Conditions, LatentStage
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.steps import Part
from diffusion_renderer.training.students import (
    Student,
    consistency_target,
    draw_levels,
    fine_levels,
    from_zero,
    regression_target,
    trajectory_target,
    visited,
)
from diffusion_renderer.training.variation import Variation


class _Lessons(LatentStage):
    """Conditions for a student: never dropped, for guidance is learnt from the teacher, but of clips that are varied."""

    varied = False

    def variation(self, part: Part, training: bool = True) -> Variation:
        return super().variation(part, training or self.varied)


class _InverseLessons(_Lessons, InverseStage):
    """Of an inverse renderer."""


class _ForwardLessons(_Lessons, ForwardStage):
    """Of a forward renderer."""


TEACHERS: dict[str, type[LatentStage]] = {"inverse": _InverseLessons, "forward": _ForwardLessons}


class DistillStage:
    """A student that starts as a copy of the run's teacher and learns to sample in fewer steps; see `students` for the methods.

    It learns on the teacher's synthetic clips: what a teacher knows of real ones, in its adapter, is not handed down. One
    network call per step: conditions are never dropped, and guidance is the teacher's.

    Parameters
    ----------
    options : ``teacher``, ``student_steps`` and ``method`` say which student; ``teacher_steps`` is the number of steps of the
        teacher's sampler over all noise levels; ``teacher_guidance`` None takes what the teacher's own export says.

    Raises InputError when the teacher has not been trained, and for a teacher of fewer steps than the student.
    """

    def __init__(self, preset: Preset, vae: AutoencoderKLTemporalDecoder, data: Mixture, options: TrainOptions) -> None:
        self.student = Student(options.method, options.student_steps)
        self.name = f"distill-{options.teacher}-{self.student.steps}"
        unet = options.out / options.teacher / "unet"
        if not any(unet.glob("diffusion_pytorch_model*.safetensors")):
            advice = f"run `diffusion-renderer train {options.teacher}` first"
            raise InputError(f"a trained teacher in {unet}", "none", advice)
        # A rank of 0: clips with estimated buffers, and the adapter that they train, play no part here.
        self.base = TEACHERS[options.teacher](preset, vae, data, replace(options, lora_rank=0))
        self.lessons = copy.copy(self.base)
        self.lessons.varied = True
        self.preset, self.data, self.options, self.device = preset, data, options, self.base.device
        self.learning_rate = preset.learning_rate(self.name)
        self.network: nn.Module = copy.deepcopy(self.base.network)
        self.teacher = self.base.network.eval().requires_grad_(False)
        known = self.base.settings["default_guidance"]
        self.guidance = known if options.teacher_guidance is None else options.teacher_guidance
        self._check_teacher()
        self.schedule = NoiseSchedule.from_config(self.student.scheduler_config(preset.scheduler_config()))
        self.levels = self.schedule.sigmas(self.student.steps)
        self.fine = fine_levels(self.levels, -(-options.teacher_steps // self.student.steps))

    def _check_teacher(self) -> None:
        """InputError when there is nothing to be learnt from it."""
        least = self.student.steps + (self.student.method != "regression" and self.guidance <= 1)
        if self.options.teacher_steps < least:
            raise InputError(
                f"--teacher-steps of at least {least} for a student of {self.student.steps}",
                str(self.options.teacher_steps),
                "give a larger number",
            )

    def plan(self, step: int) -> tuple[Part, ...]:
        """Synthetic clips or stills, as the teacher's stage draws them."""
        options, preset = self.options, self.preset
        return (
            draw_part(
                self.data,
                step,
                options.seed,
                options.batch,
                preset.lengths,
                estimated=False,
                accept=self.base.usable,
                area=preset.counted_area(self.base.kind),
            ),
        )

    def losses(self, network: nn.Module, part: Part) -> tuple[Float[Tensor, "items"], dict[str, float]]:
        """The error of one of the student's steps per item, weighted as the teacher's loss is."""
        asked = self.lessons.conditions(part, training=False)
        drawn = draw_levels(self.fine, [item.generator("level") for item in part.items])
        x, sigma, target = self._lesson(network, asked, part, *drawn)
        sigma = rearrange(sigma.to(x), "b -> b 1 1 1 1")
        return self.base.errors(self._denoiser(network, asked)(x, sigma), replace(asked, clean=target), sigma), {}

    @torch.no_grad()
    def _lesson(
        self, network: nn.Module, asked: Conditions, part: Part, step: Tensor, number: Tensor
    ) -> tuple[Tensor, Float[Tensor, "items"], Tensor]:
        """Where each item's step begins, its noise level, and what it should aim at.

        ``step`` is the student's step that it is about, ``number`` the teacher's inside it.
        """
        clean, levels, fine = asked.clean, self.levels.to(self.device), self.fine.to(self.device)
        step, number = step.to(self.device), number.to(self.device)
        if self.student.method == "regression":
            x = visited(self._denoiser(network, asked), torch.zeros_like(clean), levels, step)
            return x, levels[step], regression_target(clean)
        noise = self.base.noise(clean.shape[1:], part)
        teacher = self._teacher(asked)
        if self.student.method == "trajectory":
            x = clean + rearrange(levels[step], "b -> b 1 1 1 1") * noise
            return x, levels[step], trajectory_target(teacher, x, fine[step].T)
        sigma, following, end = fine[step, number], fine[step, number + 1], levels[step + 1]
        x = clean + rearrange(sigma, "b -> b 1 1 1 1") * noise
        return x, sigma, consistency_target(teacher, self._denoiser(network, asked), x, sigma, following, end)

    def _denoiser(self, network: nn.Module, asked: Conditions, guidance: float = 1.0) -> Denoiser:
        return lambda x, sigma: self.base.denoised(network, asked, x, sigma, guidance)

    def _teacher(self, asked: Conditions) -> Denoiser:
        """The teacher, guided; where it starts from zero it is shown no noise at the largest level."""
        denoise = self._denoiser(self.teacher, asked, self.guidance)
        return from_zero(denoise, self.preset.sigma_max) if self.preset.one_step else denoise

    @torch.no_grad()
    def sample(self, network: nn.Module, asked: Conditions, part: Part) -> Tensor:
        """What the exported student makes of a part, from the items' own noise."""
        start = self._start(asked, part) if self.student.initial_noise else torch.zeros_like(asked.clean)
        return sample_euler(self._denoiser(network, asked), start, self.levels.to(start))

    @torch.no_grad()
    def sample_teacher(self, asked: Conditions, part: Part, levels: Float[Tensor, "levels"] | None = None) -> Tensor:
        """What the guided teacher makes of the same noise: over ``levels``, or in ``teacher_steps`` steps over its own."""
        start = self._start(asked, part)
        if levels is None:
            levels = fine_levels(self.levels[[0, -1]], self.options.teacher_steps)[0]
        return sample_euler(self._teacher(asked), start, levels.to(start))

    def _start(self, asked: Conditions, part: Part) -> Tensor:
        return self.base.noise(asked.clean.shape[1:], part) * self.schedule.initial_scale(self.student.steps)

    def sheet(self) -> Tensor:
        """Six frames; of every image that is made: ground truth, teacher, student."""
        part = self.base.sheet_part()
        asked = self.base.conditions(part, training=False)
        offset = 0 if asked.offset is None else asked.offset
        made = (asked.clean, self.sample_teacher(asked, part), self.sample(self.network, asked, part))
        split = [(latents + offset).split(self.preset.latent_channels, dim=2) for latents in made]
        rows = [self.base.decode(latents) for image in zip(*split, strict=True) for latents in image]
        return rearrange(torch.stack(rows), "r n c h w -> c (r h) (n w)")

    def export(self, folder: Path) -> None:
        """Write a whole model that the pipelines load from ``folder``: the student, the autoencoder, the light's encoder."""
        exported = copy.copy(self.base)
        exported.network = self.network
        exported.settings = {
            **self.base.settings,
            "default_steps": self.student.steps,
            "default_guidance": 1.0,
            "initial_noise": self.student.initial_noise,
            "timestep_spacing": self.schedule.spacing,
        }
        exported.export(folder)
        config = self.student.scheduler_config(self.preset.scheduler_config())
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config, indent=2))
        self.base.vae.save_pretrained(folder / "vae")
        encoder = self.options.out / "env" / "env_encoder"
        if exported.settings.get("light", "encoder") == "encoder" and self.options.teacher == "forward" and encoder.is_dir():
            shutil.copytree(encoder, folder / "env_encoder", dirs_exist_ok=True)
