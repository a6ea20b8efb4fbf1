"""Multi-illumination images in the wild: 1000 real scenes under 25 flash directions each (Murmann et al., ICCV 2019; MIT).

Layout, as its SDK gives it (https://github.com/lmurmann/multi_illumination):

    <scene>/dir_{0..24}_mip2.{exr,jpg}                 mip 2 is 1500 x 1000
    <scene>/probes/dir_{0..24}_chrome256.{exr,jpg}     a mirror ball standing in the scene; gray256 is a diffuse one
    <scene>/meta.json, <scene>/materials_mip2.png      boxes of the balls and material labels; not read

EXR is linear, JPEG display-referred. EXR is taken where there is one; then a light has its own exposure by `EXPOSURE_RULE`,
and its probe is multiplied by the same factor. A JPEG is shown as it is, and its probe decoded from sRGB, so that nothing in
that light is brighter than 1: the flash is clipped. Only probes of the images' own format are used.

One sample per scene: the first light is the clip, the others are ``relit``. The light is the chrome ball unwrapped in camera
space (`unwrap_mirror_ball`, with its limits: orthographic, a perfect mirror) and thus holds at the ball's place only; image and
probe are taken to have one scale, as the SDK says nothing else. The camera is the identity by definition, so that the lookup is
the identity; its field of view is not published, and `Camera` has 50 degrees in its place (``fov_x_deg`` in meta is null). A
scene without probes becomes one sample per light, without light and camera. The SDK states no licence
for the data; see the website.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen.readers.common import (
    EXPOSURE_RULE,
    PublicSet,
    choose_exposure,
    describe,
    display_clip,
    exposed,
    layout_error,
    read_display,
    read_linear,
    relative,
    require_folder,
    require_stills,
)
from diffusion_renderer.datagen.readers.mirror_ball import unwrap_mirror_ball
from diffusion_renderer.datagen.settings import Relit, Sample

MULTI_ILLUMINATION = PublicSet(
    "multi-illumination",
    "see the website",
    "https://projects.csail.mit.edu/illumination",
    "<scene>/dir_N_mip2.{exr,jpg} and <scene>/probes/dir_N_chrome256.{exr,jpg}",
)
SPLITS = ("train", "test")
#: The SDK's test scenes are those of this building.
_TEST_PREFIX = "everett"


def read_multi_illumination(folder: str | Path, split: str | None = None, frames: int | None = None) -> Iterator[Sample]:
    """One sample per scene with its other lights in ``relit``, or one per light where there are no probes; see the module.

    ``folder`` holds scenes or is one. ``split``: test is everett_*, train the rest, as in the SDK. Raises InputError at once
    for a wrong layout, an unknown split or ``frames`` above 1, while iterating for unreadable files.
    """
    folder = require_folder(MULTI_ILLUMINATION, folder)
    require_stills(MULTI_ILLUMINATION, frames)
    if split is not None:
        check_name("split", split, SPLITS)
    scenes = [folder] if _lights(folder) else [path for path in sorted(folder.iterdir()) if path.is_dir() and _lights(path)]
    if split is not None:
        scenes = [scene for scene in scenes if scene.name.startswith(_TEST_PREFIX) == (split == "test")]
    if not scenes:
        missing = f"any <scene>/dir_N_mip2.exr or .jpg{f' of the split {split}' if split else ''}"
        raise layout_error(MULTI_ILLUMINATION, folder, missing)
    return (sample for scene in scenes for sample in _read_scene(folder, scene))


def _lights(scene: Path) -> dict[int, Path]:
    """The image of every light: EXR before JPEG for all of them, and the mip level closest to 2."""
    found: dict[tuple[bool, int, int], dict[int, Path]] = {}
    for path in scene.glob("dir_*_mip*"):
        match = re.fullmatch(r"dir_(\d+)_mip(\d+)\.(exr|jpg)", path.name)
        if match:
            level = int(match[2])
            found.setdefault((match[3] != "exr", abs(level - 2), level), {})[int(match[1])] = path
    return dict(sorted(found[min(found)].items())) if found else {}


def _probes(scene: Path, images: dict[int, Path]) -> dict[int, Path]:
    """The largest chrome ball of every light, in the images' format; empty unless every light has one."""
    probes: dict[int, Path] = {}
    for light, image in images.items():
        balls = list((scene / "probes").glob(f"dir_{light}_chrome*{image.suffix}"))
        if not balls:
            return {}
        probes[light] = max(balls, key=lambda path: int(re.sub(r"\D", "", path.stem.split("chrome")[-1]) or 0))
    return probes


def _read_scene(folder: Path, scene: Path) -> Iterator[Sample]:
    images = _lights(scene)
    probes = _probes(scene, images)
    root = folder if folder != scene else folder.parent
    if not probes:
        for light, image in images.items():
            clip, exposure = _clip(image, f"{scene.name}_dir{light:02d}")
            more = {"lights": [_light(light, exposure, image, root)], "fov_x_deg": None}
            yield Sample(clip, GBuffer(name=clip.name), meta=_meta(scene, clip, [image], root, more))
        return
    relit, lights = [], []
    for light, image in images.items():
        clip, exposure = _clip(image, scene.name)
        relit.append(Relit(clip, _environment(probes[light], exposure, f"{scene.name} dir_{light}")))
        lights.append({**_light(light, exposure, image, root), "probe": relative([probes[light]], root)[0]})
    first = relit[0]
    files = [path for light in images for path in (images[light], probes[light])]
    meta = _meta(scene, first.clip, files, root, {"lights": lights, "fov_x_deg": None, "exposure": lights[0]["exposure"]})
    camera = Camera.identity(1)
    yield Sample(first.clip, GBuffer(name=scene.name), first.environment, camera, meta, relit=tuple(relit[1:]))


def _clip(image: Path, name: str) -> tuple[Clip, float]:
    """The still and its exposure: 1 for a JPEG, which is display-referred already."""
    if image.suffix == ".exr":
        linear = read_linear(image)[None]
        exposure = choose_exposure(linear, None)
        return display_clip(linear, exposure, name), exposure
    return Clip(read_display(image)[None], name=name), 1.0


def _environment(probe: Path, exposure: float, name: str) -> EnvironmentMap:
    ball = read_linear(probe) if probe.suffix == ".exr" else srgb_eotf(read_display(probe))
    if ball.shape[-1] != ball.shape[-2]:
        found = f"{ball.shape[-1]}x{ball.shape[-2]}"
        raise InputError(f"a square picture of a mirror ball in {probe}", found, "fetch the scene's probes again")
    return exposed(unwrap_mirror_ball(ball), exposure, name)


def _light(light: int, exposure: float, image: Path, root: Path) -> dict[str, Any]:
    return {"direction": light, "exposure": exposure, "file": relative([image], root)[0]}


def _meta(scene: Path, clip: Clip, files: list[Path], root: Path, more: dict[str, Any]) -> dict[str, Any]:
    converted = {
        "rgb": f"EXR: linear times exposure, sRGB; exposure per light: {EXPOSURE_RULE}; JPEG: as stored",
        "light": "chrome ball to a panorama in camera space: orthographic, a perfect mirror, the image's scale",
        "camera": "identity by definition; the field of view is unknown",
    }
    return describe(MULTI_ILLUMINATION, scene.name, clip, GBuffer(), relative(files, root), converted, **more)
