"""The clips of a suite as files, so that systems that do not run here can be given the same inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.evaluation.views import View, views
from diffusion_renderer.io import write_cameras, write_clip, write_environment, write_gbuffer
from diffusion_renderer.io.atomic import write_bytes

README = """\
# Clips to evaluate a renderer on

One folder per clip:

* `0000.rgb.png`, ... : the frames under the clip's first light, sRGB. The input of `inverse` and `relight`.
* `0000.gbuffer.exr`, ... : the true G-buffers, the input of `forward`: layers `basecolor.RGB` (linear), `normal.XYZ` (camera
  space, +x right, +y up, +z to the viewer), `depth.Z` (along the view axis, scene units, infinite where nothing was hit),
  `roughness.Y` (perceptual), `metallic.Y`, `mask.Y`. `0000.<buffer>.png` show the same: base colour as sRGB, normals as
  0.5 n + 0.5, depth relative to the clip's range (near 0, far 1). A data set that lacks a buffer has no file of it.
* `lights/<light>.exr` : the panoramas, linear radiance, equirectangular: centre column in direction +z, right half towards -x,
  top row +y. The exposure is in them: under a panorama of 1 everywhere, a white diffuse surface is displayed as linear 1.
  Frames are the sRGB encoding of linear light, clipped to [0, 1].
* `cameras.json` : camera-to-world poses (the camera looks along -z, world +y up) and horizontal fields of view.
* `clip.json` : frames per second, frames, size, and for each light its file and the rotations R of its frames: direction d in
  camera space shows the panorama at R d.

Write what your system makes of them into a folder of its own, in the same size and with the same number of frames:

* `inverse`: `<clip>/0000.<buffer>.png` or `.exr`, as above, from the frames.
* `forward`: `<clip>_<light>/0000.rgb.png` (or `.exr`, linear), from G-buffers, cameras and each light.
* `relight`: the same from the frames, for every light but the first, which is the one that the frames show.

Then `diffusion-renderer evaluate forward --predictions FOLDER` scores it beside the other systems. The true G-buffers must
not be used for `inverse` and `relight`, nor the frames for `forward`.
"""


def export_inputs(samples: Iterable[Sample], folder: str | Path, progress: Callable[[str], None] | None = None) -> Path:
    """Write what the systems are given into one folder per clip, and a README that says what is what; returns ``folder``.

    Samples are taken one at a time. Frames are PNG of 8 bits (a rendered suite stores no more), G-buffers PNG and half-float
    EXR, panoramas half-float EXR: depth and radiance keep 11 bits of precision. What a sample lacks is left out. ``progress``
    is told each clip's name when it is written. True frames under the other lights are the answers, so they are not written.
    """
    folder = Path(folder)
    write_bytes(folder / "README.md", README.encode())
    for sample in samples:
        _export(sample, folder)
        if progress is not None:
            progress(sample.clip.name)
    return folder


def _export(sample: Sample, folder: Path) -> None:
    place = folder / sample.clip.name
    lights = views(sample)
    write_clip(sample.clip, folder)
    if sample.gbuffer.present:
        write_gbuffer(_named(sample), folder, formats=("png", "exr"))
    if sample.camera is not None:
        write_cameras(sample.camera, place)
    for view in lights:
        if view.environment is not None:
            write_environment(view.environment, place / _light_file(view))
    notes = {
        "fps": sample.clip.fps,
        "frames": len(sample.clip),
        "size": list(sample.clip.size),
        "input_light": lights[0].light,
        "lights": [_light_notes(view) for view in lights],
    }
    write_bytes(place / "clip.json", (json.dumps(notes, indent=1) + "\n").encode())


def _named(sample: Sample) -> GBuffer:
    """The G-buffers under the clip's name, which is where they are written."""
    return replace(sample.gbuffer, name=sample.clip.name, fps=sample.clip.fps)


def _light_file(view: View) -> str:
    return f"lights/{view.light}.exr"


def _light_notes(view: View) -> dict[str, Any]:
    rotations = None if view.rotations is None else view.rotations.tolist()
    return {"name": view.light, "file": None if view.environment is None else _light_file(view), "rotations": rotations}
