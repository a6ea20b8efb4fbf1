"""Students of one, two and four steps by every method, from a trained run, against the ground truth and against the teacher.

    python benchmarks/distillation.py --rehearse
    python benchmarks/distillation.py --run RUN --data SHARDS [--test SHARDS] [--teacher forward] [--train-steps 2000]

Trains each student for --train-steps steps in a folder of its own below --out and prints a Markdown table, one row per student:
network calls per result, and the mean squared error of its latents (per element; those of ground truth vary by about 1) from
the ground truth and from what the guided teacher makes of the same noise in --teacher-steps steps. The first rows are the
teacher itself: as it is exported, in its own many steps, and in the students' few, which is what a student has to beat.

--test is a folder of clips that were not trained on; without it the training clips are used, unvaried. --rehearse shows that it
all runs, in a few minutes: spheres by formula, networks of a few thousand parameters, a teacher trained for a moment. Its
figures say nothing about real students.
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.training.data import DataSource, Mixture, load_mixture, store_clips
from diffusion_renderer.training.distill import DistillStage
from diffusion_renderer.training.latent import Conditions
from diffusion_renderer.training.loop import run as train
from diffusion_renderer.training.options import STUDENT_STEPS, TrainOptions
from diffusion_renderer.training.presets import PRESETS, TINY, Preset
from diffusion_renderer.training.steps import Part
from diffusion_renderer.training.students import METHODS
from diffusion_renderer.training.vae import VaeStage, load_vae

#: Networks of other stages that a student needs: its teacher's folder is added.
NEEDED = ("vae/vae", "env/env_encoder")
#: For --rehearse: steps of the teacher's training.
TEACHER_STEPS = 100
#: For --rehearse: every network and image as small as it goes.
SMALL = replace(
    TINY,
    name="small",
    latent_channels=4,
    vae_widths=(32, 32),
    inverse_widths=(32, 32, 32, 32),
    forward_widths=(32, 32, 32, 32),
    env_widths=(32, 32, 32, 32),
    env_size=32,
    size=32,
    window=2,
    context_channels=8,
    prior=None,
    residual=False,
    start_weight=0.5,
)

Make = Callable[[Conditions, Part], Tensor]


def sphere(seed: int, size: int = 32) -> Sample:
    """A still of a rough ball under one lamp, orthographic, with its exact G-buffers."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1.15, 1.15, size)
    y, x = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    inside = (x**2 + y**2 < 1)[None, None]
    normal = torch.stack((x, y, (1 - x**2 - y**2).clamp_min(0).sqrt()))[None] * inside
    colour, lamp = torch.rand(1, 3, 1, 1, generator=generator), normalize(torch.rand(3, generator=generator) - 0.5, dim=0)
    light = (normal * lamp[:, None, None]).sum(dim=1, keepdim=True).clamp_min(0) + 0.2
    name = f"ball{seed}"
    gbuffer = GBuffer(
        basecolor=colour * inside,
        normal=normalize(normal, dim=1),
        depth=torch.where(inside, 3 - normal[:, 2:], torch.inf),
        roughness=torch.rand(1, 1, 1, 1, generator=generator) * inside,
        metallic=(torch.rand(1, 1, 1, 1, generator=generator) > 0.5) * inside.float(),
        mask=inside,
        name=name,
    )
    radiance = EnvironmentMap(torch.rand(3, 16, 32, generator=generator) + 0.2 * math.pi)
    return Sample(Clip(srgb_oetf(colour * inside * light), name=name), gbuffer, radiance, Camera.identity(1), meta={})


def rehearsal(out: Path, options: TrainOptions) -> tuple[Mixture, Mixture]:
    """Clips to train and to test on, and a run with a teacher that was trained on them for ``TEACHER_STEPS`` steps."""
    from diffusion_renderer.training.env import EnvStage
    from diffusion_renderer.training.forward import ForwardStage
    from diffusion_renderer.training.inverse import InverseStage

    data, test = (Mixture.of(store_clips([sphere(seed) for seed in seeds])) for seeds in (range(24), range(100, 112)))
    # Latents are what is compared: the encoder has a closed form, and the decoder needs no training here.
    short = replace(options, out=out, max_steps=2)
    train(VaeStage(SMALL, data, short), short)
    if options.teacher == "forward":
        train(EnvStage(SMALL, data, short), replace(short, max_steps=30))
    kind, longer = {"inverse": InverseStage, "forward": ForwardStage}[options.teacher], replace(short, max_steps=TEACHER_STEPS)
    train(kind(SMALL, load_vae(out), data, longer), longer)
    return data, test


def student_run(run: Path, out: Path, teacher: str) -> Path:
    """A run folder with copies of the networks that a student needs, so that every method has one of its own."""
    for part in (*NEEDED, f"{teacher}/unet"):
        if (run / part).is_dir() and not (out / part).exists():
            shutil.copytree(run / part, out / part)
    return out


def errors(stage: DistillStage, makers: dict[str, Make], test: Mixture, items: int) -> dict[str, tuple[float, float]]:
    """Mean squared latent error of every maker: from ground truth, and from the many-step teacher, over defined cells.

    The same items and the same noise whatever the stage: its seed alone decides.
    """
    probe = copy_for(stage, test, items)
    part = probe.plan(0)[0]
    asked = probe.base.conditions(part, training=False)
    many = probe.sample_teacher(asked, part)
    channels = stage.preset.latent_channels
    counted = asked.counted.repeat_interleave(channels, dim=2)

    def distance(made: Tensor, wanted: Tensor) -> float:
        return (((made - wanted) ** 2 * counted).sum() / counted.sum()).item()

    found = {name: make(asked, part) for name, make in makers.items()}
    return {name: (distance(made, asked.clean), distance(made, many)) for name, made in found.items()}


def copy_for(stage: DistillStage, test: Mixture, items: int) -> DistillStage:
    """The stage over other clips: the networks are shared."""
    other = copy.copy(stage)
    other.data, other.options = test, replace(stage.options, batch=items)
    other.preset = replace(stage.preset, clip_share=0.0)
    return other


def teacher_rows(stage: DistillStage, test: Mixture, items: int) -> list[str]:
    """The teacher as exported, in many steps, and in the levels of the students without training."""
    calls = 2 if stage.guidance > 1 else 1
    makers: dict[str, Make] = {
        "teacher, as exported": lambda asked, part: stage.base.sample(stage.teacher, asked, part),
        "teacher, many steps": stage.sample_teacher,
    }
    counts = {"teacher, as exported": stage.base.settings["default_steps"], "teacher, many steps": stage.options.teacher_steps}
    for steps in STUDENT_STEPS:
        levels = replace(stage.student, steps=steps).levels(stage.preset.scheduler_config())
        name = f"teacher, {steps} of a student's levels"
        makers[name] = lambda asked, part, levels=levels: stage.sample_teacher(asked, part, levels)
        counts[name] = steps
    found = errors(stage, makers, test, items)
    return [row(counts[name], name, *found[name], calls * counts[name]) for name in makers]


def row(steps: int, method: str, truth: float, teacher: float, calls: int, seconds: float | None = None) -> str:
    trained = "" if seconds is None else f"{seconds:.0f}"
    return f"| {steps} | {method} | {truth:.4f} | {teacher:.4f} | {calls} | {trained} |"


def compare(preset: Preset, run: Path, data: Mixture, test: Mixture, options: TrainOptions, items: int) -> None:
    """Train every student and print the table."""
    print("| steps | method | error, truth | error, many-step teacher | network calls | training, s |", flush=True)
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    first = True
    for method in METHODS:
        out = student_run(run, options.out / method, options.teacher)
        for steps in STUDENT_STEPS:
            chosen = replace(options, out=out, method=method, student_steps=steps)
            stage = DistillStage(preset, load_vae(out), data, chosen)
            if first:
                print("\n".join(teacher_rows(stage, test, items)), flush=True)
                first = False
            start = time.perf_counter()
            train(stage, chosen)
            seconds = time.perf_counter() - start
            made = errors(stage, {method: lambda asked, part, s=stage: s.sample(s.network, asked, part)}, test, items)
            print(row(steps, method, *made[method], steps, seconds), flush=True)


def main() -> None:
    """Read the command line, train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder with a trained teacher")
    parser.add_argument("--data", type=Path, nargs="+", help="shards to train on")
    parser.add_argument("--test", type=Path, nargs="+", help="shards to measure on")
    parser.add_argument("--out", type=Path, help="where the students are kept; a temporary folder by default")
    parser.add_argument("--rehearse", action="store_true", help="small networks, made-up clips")
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--teacher", default="forward", choices=("inverse", "forward"))
    parser.add_argument("--teacher-steps", type=int, default=16)
    parser.add_argument("--teacher-guidance", type=float)
    parser.add_argument("--train-steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--items", type=int, default=32, help="stills to measure on")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    given = parser.parse_args()
    if not given.rehearse and not (given.run and given.data):
        parser.error("give --run and --data, or --rehearse")
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        options = TrainOptions(
            out=out / "students",
            max_steps=given.train_steps,
            batch=given.batch,
            sheet_steps=0,
            precision=given.precision,
            teacher=given.teacher,
            teacher_steps=given.teacher_steps,
            teacher_guidance=given.teacher_guidance,
        )
        if given.rehearse:
            run = out / "run"
            data, test = rehearsal(run, options)
            compare(SMALL, run, data, test, options, given.items)
            return
        preset = PRESETS[given.preset]
        prior = preset.prior if given.teacher == "forward" else None
        data, test = (
            load_mixture(tuple(map(DataSource, folders)), out / "cache", prior)
            for folders in (given.data, given.test or given.data)
        )
        compare(preset, given.run, data, test, options, given.items)


if __name__ == "__main__":
    main()
