"""Do windows show? python benchmarks/seams.py VIDEO|SHARD.tar ... [--light SKY.hdr] [--size 128] [--frames 32] [--overlap N]

Every clip goes through the inverse and the forward renderer. Printed, in Markdown: the mean change from frame to frame where
one window hands over to the next against the change elsewhere (`pipelines.seams`), divided by the same ratio of what the
renderer is compared with: the input's frames for a video; for a clip of a shard of the data engine, which is ground truth, its
own buffers, and its own frames under its own light, from its own buffers. The goal is at most 1.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion_renderer import io, pipelines
from diffusion_renderer.core.encoding import network_image
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import read_shard
from diffusion_renderer.editing import light_scale, load_forward, scaled
from diffusion_renderer.pipelines.seams import frame_changes, handover_pairs, seam_ratio
from diffusion_renderer.pipelines.windows import plan_windows


@dataclass(frozen=True)
class Case:
    """A clip, the light it is relit by, and the truth where it is known."""

    clip: Clip
    light: EnvironmentMap
    rotations: Tensor | None = None
    camera: Camera | None = None
    truth: GBuffer | None = None


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The clips of the files."""
    for path in options.paths:
        if path.suffix == ".tar":
            for sample in read_shard(path):
                part = slice(0, options.frames)
                yield Case(
                    sample.clip[part], sample.environment, sample.lookup[part], sample.camera[part], sample.gbuffer[part]
                )
        else:
            yield Case(io.read_clip(path, frames=options.frames), io.read_environment(options.light))


def images(gbuffer: GBuffer) -> dict[str, Tensor]:
    """The buffers as network images: depths of the truth and of the estimate are both relative."""
    span = gbuffer.depth_range()
    return {name: network_image(name, getattr(gbuffer, name), span) for name in DEFAULT_BUFFERS}


def measure(case: Case, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """By what was made: the ratio, and the mean change from frame to frame."""
    inverse = pipelines.load_inverse(options.model, device="cpu")
    forward = load_forward(options.model, device="cpu")
    for renderer in (inverse, forward):
        renderer.overlap = renderer.overlap if options.overlap is None else options.overlap
    borders = handover_pairs(plan_windows(len(case.clip), inverse.window, inverse.overlap), inverse.overlap)
    size = (options.size, options.size)
    made = inverse(case.clip, size=size)
    light = case.light if case.truth is not None else scaled(case.light, light_scale(case.light, forward.settings))
    lit = {"relit": forward(made, light, rotations=case.rotations, camera=case.camera, size=size).frames}
    given = {name: case.clip.frames for name in (*DEFAULT_BUFFERS, "relit")}
    if case.truth is not None:
        given |= images(case.truth)
        given["relit, true buffers"] = case.clip.frames
        lit["relit, true buffers"] = forward(case.truth, light, rotations=case.rotations, camera=case.camera, size=size).frames
    found = {**images(made), **lit}
    return {
        name: (seam_ratio(video, borders) / seam_ratio(given[name], borders), float(frame_changes(video).mean()))
        for name, video in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+", help="videos, or shards of the data engine")
    parser.add_argument("--light", type=Path, help="panorama that videos are relit by")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=128, help="box that the networks' images fill, pixels")
    parser.add_argument("--overlap", type=int, help="frames that windows share; the model's own by default")
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    if options.light is None and any(path.suffix != ".tar" for path in options.paths):
        parser.error("a video needs --light")
    torch.set_num_threads(1)
    for case in cases(options):
        rows = measure(case, options)
        print(f"{case.clip.name}, {len(case.clip)} frames of {case.clip.size[0]} x {case.clip.size[1]}\n")
        print(f"| | {' | '.join(rows)} |\n|---|{'---|' * len(rows)}")
        print(f"| ratio | {' | '.join(f'{ratio:.2f}' for ratio, _ in rows.values())} |")
        print(f"| mean change | {' | '.join(f'{change:.4f}' for _, change in rows.values())} |\n", flush=True)


if __name__ == "__main__":
    main()
