"""How fast the data engine is, in one run on this machine.

    python benchmarks/data_engine.py [--sizes 128:8:16 256:8:32 512:4:64] [--clips 20] [--assets DIR] [--skip-throughput]
                                     [--memory 1000]

1. A clip's cost beside the bare `mi.render` calls that it contains: the same scenes, samples and frames by Mitsuba's path
   tracer alone, its kernels compiled, its scenes built. A clip is drawn, built, traced with its G-buffers, denoised, exposed,
   encoded: the columns of the stages are each alone, "clip" is what one costs in a steady run, where stages overlap.
2. Frames a second of `dataset`, all cores, after start-up: the slope between a short and a long run.
3. Resident memory after clips 100, 200, ... (with --memory).
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion_renderer.datagen import DatasetSettings, generate_shards
from diffusion_renderer.datagen.engine.mitsuba_scene import MitsubaScene, path_integrator
from diffusion_renderer.datagen.engine.tracing import Launcher
from diffusion_renderer.datagen.engine.variant import activate, choose_variant
from diffusion_renderer.datagen.generate import draw, finish, render_unfinished
from diffusion_renderer.datagen.store.encode import encode_clip
from diffusion_renderer.datagen.store.shards import encoded_clips

SEED = 4_096


def clip_against_bare(settings: DatasetSettings, clips: int) -> dict[str, float]:
    """Seconds per clip of every stage, and of the bare calls, over ``clips`` clips after three that warm up."""
    variant = choose_variant(settings.variant)
    mi = activate(variant)
    stages = dict.fromkeys(("draw", "trace", "finish", "encode", "bare"), 0.0)
    for index in range(clips + 3):
        times = [time.perf_counter()]
        drawn = draw(SEED, index, settings)
        times.append(time.perf_counter())
        unfinished = render_unfinished(drawn, settings)
        times.append(time.perf_counter())
        sample = finish(unfinished, settings)
        times.append(time.perf_counter())
        encode_clip(sample, settings.format)
        times.append(time.perf_counter())
        bare = _bare(mi, drawn.spec, settings)
        if index >= 3:
            for name, seconds in zip(stages, [*np.diff(times), bare], strict=True):
                stages[name] += seconds / clips
    start = time.perf_counter()
    for _ in encoded_clips(range(3, clips + 3), SEED, settings):
        pass
    return {**stages, "clip": (time.perf_counter() - start) / clips}


def _bare(mi, spec, settings: DatasetSettings) -> float:
    """`mi.render` as anyone would call it, launch by launch as the clip makes them; the better of two."""
    rotation = None if spec.light_rotation is None else spec.light_rotation.double().numpy()
    built = MitsubaScene(mi, spec, spec.environment.radiance.numpy(), rotation)
    launcher = Launcher(built, mi.load_dict(path_integrator(settings.depth)), settings, replay=False)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        launcher.all(0)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def throughput(settings: DatasetSettings, clips: int, workers: int) -> float:
    """Frames a second between the ends of a run of ``clips`` / 5 clips and one of 6 / 5 of them."""
    seconds = []
    few, many = max(2 * workers, clips // 5), max(2 * workers, clips // 5) + clips
    with tempfile.TemporaryDirectory() as folder:
        for name, count in (("few", few), ("many", many)):
            start = time.perf_counter()
            size = max(1, count // (4 * workers))
            generate_shards(
                Path(folder) / name, settings, clips=count, shard_size=size, seed=SEED, workers=workers, progress=False
            )
            seconds.append(time.perf_counter() - start)
    return clips * settings.frames / (seconds[1] - seconds[0])


def memory(settings: DatasetSettings, clips: int) -> list[tuple[int, float]]:
    """(clips made, resident GB) every hundred clips of one process."""
    found = []
    page = os.sysconf("SC_PAGE_SIZE")
    for index in range(clips):
        encode_clip(finish(render_unfinished(draw(SEED, index, settings), settings), settings), settings.format)
        if (index + 1) % 100 == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**30
            found.append((index + 1, resident))
            print(f"  {index + 1} clips: {resident:.2f} GB", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["128:8:16", "256:8:32", "512:4:64"], help="side:frames:samples")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--assets", type=Path, help="a folder with models, materials, hdri")
    parser.add_argument("--skip-throughput", action="store_true")
    parser.add_argument("--memory", type=int, default=0, help="clips to watch the memory over")
    options = parser.parse_args()
    base = DatasetSettings()
    if options.assets:
        base = replace(
            base, models=options.assets / "models", materials=options.assets / "materials", panoramas=options.assets / "hdri"
        )
    variant = choose_variant(None)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {variant}, denoiser at {base.denoise_quality} quality\n")
    print("| frames | samples | bare | clip | ratio | draw | trace | finish | encode | frames/s, one process |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in options.sizes:
        side, frames, samples = (int(value) for value in size.split(":"))
        settings = replace(base, width=side, height=side, frames=frames, samples=samples, variant=variant)
        s = clip_against_bare(settings, options.clips)
        total = s["clip"]
        cells = [f"{s[name]:.3f}" for name in ("draw", "trace", "finish", "encode")]
        print(
            f"| {frames} of {side}x{side} | {samples} | {s['bare']:.3f} s | {total:.3f} s | {total / s['bare']:.2f} | "
            + " | ".join(cells)
            + f" | {frames / total:.1f} |",
            flush=True,
        )
    if not options.skip_throughput:
        settings = replace(base, width=128, height=128, frames=8, samples=16, variant=variant)
        workers = os.cpu_count() or 1
        rate = throughput(settings, 100, workers)
        print(
            f"\n100 clips of 8 frames, 128x128, 16 samples, denoised, {workers} processes: {rate:.1f} frames/s after start-up"
        )
    if options.memory:
        print("\nResident memory of one process:")
        memory(replace(base, frames=2, width=64, height=64, samples=4, variant=variant), options.memory)


if __name__ == "__main__":
    main()
