"""Peak memory of relighting clips of different lengths: python benchmarks/long_video.py [--frames 100 1000] [--size 32].

Every length runs in a process of its own, as the command line does it: the inverse renderer streams G-buffers into files, the
forward renderer streams them back under a panorama that turns, and the frames are written. The clip is made up while it is
read, so that what grows with the length would be ours. Prints Markdown: peak resident memory, what of it came after loading,
seconds, and the ratio of the last length to the first. The goal is at most 1.2.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion_renderer import io, pipelines
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Clip, EnvironmentMap
from diffusion_renderer.editing import load_forward
from diffusion_renderer.light import rotating

GOAL = 1.2


@dataclass(frozen=True)
class MovingPattern:
    """A clip of any length that is nowhere: soft blobs that move."""

    frames: int
    side: int
    name: str = "pattern"
    fps: float = 24.0

    def __len__(self) -> int:
        return self.frames

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.side, self.side

    def chunks(self, frames: int) -> Iterator[Clip]:
        """Pieces of ``frames`` frames."""
        line = torch.linspace(0.0, 6.0, self.side)
        for start in range(0, self.frames, frames):
            times = torch.arange(start, min(start + frames, self.frames))[:, None, None, None] * 0.05
            colours = torch.arange(3)[None, :, None, None]
            waves = torch.sin(line[:, None] + times + colours) * torch.cos(line + 0.7 * times)
            yield Clip(0.5 + 0.5 * waves, self.fps, self.name)


def peak() -> float:
    """Peak resident memory of this process so far, MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**20 if sys.platform == "darwin" else used / 2**10


def relight(frames: int, size: int, model: str) -> dict[str, float]:
    """Relight one clip of so many frames; peaks in MiB and seconds."""
    inverse, forward = pipelines.load_inverse(model, device="cpu"), load_forward(model, device="cpu")
    loaded, begin = peak(), time.monotonic()
    clip, light = MovingPattern(frames, size), EnvironmentMap(torch.rand(3, 32, 64, generator=torch.Generator().manual_seed(0)))
    with tempfile.TemporaryDirectory() as folder:
        with io.GBufferWriter(folder, clip.name, clip.fps, ("png",), DEFAULT_BUFFERS) as writer:
            for piece in inverse.stream(clip, size=clip.size):
                writer.write(piece)
        gbuffer = io.open_gbuffer(Path(folder) / clip.name)
        with io.ClipWriter(folder, "relit", clip.fps, ("png",)) as writer:
            for part in forward.stream(gbuffer, light, rotations=rotating(frames), size=clip.size):
                writer.write(part)
    return {"frames": frames, "peak": peak(), "loaded": loaded, "seconds": time.monotonic() - begin}


def measure(frames: int, options: argparse.Namespace) -> dict[str, float]:
    """The same in a process of its own, so that its peak is its own."""
    command = [sys.executable, __file__, "--one", str(frames), "--size", str(options.size), "--model", options.model]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: Sequence[dict[str, float]]) -> str:
    """Markdown."""
    rows = ["| frames | peak MiB | after loading, MiB | s |", "|---|---|---|---|"]
    for each in results:
        rows.append(
            f"| {each['frames']:.0f} | {each['peak']:.0f} | {each['peak'] - each['loaded']:.0f} | {each['seconds']:.0f} |"
        )
    ratio = results[-1]["peak"] / results[0]["peak"]
    rows.append(f"\nPeak of the last to the first: {ratio:.3f} (goal: at most {GOAL}).")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 1000], help="lengths to compare")
    parser.add_argument("--size", type=int, default=32, help="side of the frames, pixels")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one is not None:
        print(json.dumps(relight(options.one, options.size, options.model)))
        return
    print(f"{platform.platform()}, torch {torch.__version__}, one thread, {options.model}, {options.size} px\n")
    print(table([measure(frames, options) for frames in options.frames]))


if __name__ == "__main__":
    main()
