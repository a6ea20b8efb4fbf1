"""Render the demo's clip, its three lights and the ground truth under each of them into a folder.

    python scripts/make_demo_assets.py OUT [--frames 24] [--width 192] [--height 128] [--samples 64]

OUT/clip holds the input frames with their ground-truth buffers, cameras.json and the clip's own light; OUT/lights the
panoramas; OUT/relit/<light> the frames under each of them; OUT/lights.json says which light rotates. Needs the extra `data`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from diffusion_renderer.datagen import DEMO_SETTINGS, demo_clip, demo_relit
from diffusion_renderer.datagen.store.encode import encode_clip, encode_exr, encode_png


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the clip, lights and ground truth that ship with the project.")
    parser.add_argument("out", type=Path)
    for name in ("frames", "width", "height", "samples"):
        parser.add_argument(f"--{name}", type=int, default=getattr(DEMO_SETTINGS, name))
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    settings = replace(DEMO_SETTINGS, **arguments)
    for name, data in encode_clip(demo_clip(settings), compression=9).items():
        save(out / "clip" / name, data)
    print(f"{out / 'clip'}: {settings.frames} frames", flush=True)
    lights = {}
    for light in demo_relit(settings):
        name = light.environment.name
        save(out / "lights" / f"{name}.exr", encode_exr(light.environment.radiance))
        for index, frame in enumerate(light.clip.frames):
            save(out / "relit" / name / f"{index:04d}.rgb.png", encode_png(frame, compression=9))
        lights[name] = {
            "file": f"lights/{name}.exr",
            "rotates": light.rotates,
            # A light that rotates does so in the camera's frame; the others are fixed to the world.
            "light_frame": "camera" if light.rotates else "world",
        }
        print(f"{out / 'relit' / name}: {settings.frames} frames", flush=True)
    save(out / "lights.json", (json.dumps(lights, indent=1) + "\n").encode())


def save(path: Path, data: bytes) -> None:
    """Write a file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    main()
