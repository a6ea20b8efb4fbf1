"""Stage `autolabel`: real videos become training clips with estimated G-buffers and light (paper section 4.3).

Each video is cut into segments, the inverse renderer makes their G-buffers, a light estimator or a file gives the panorama, and
the result is written as shards whose clips say ``"real": true``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from einops import rearrange
from tqdm import tqdm

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.panorama import average_panorama
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.store.encode import decode_clip, encode_clip
from diffusion_renderer.datagen.store.shards import write_samples
from diffusion_renderer.fit import FileLights, LightEstimator, LinearLight
from diffusion_renderer.io import atomic_path, list_clips, open_clip
from diffusion_renderer.io.fingerprint import fingerprint
from diffusion_renderer.pipelines import InverseRenderer, load_inverse, weights_fingerprint
from diffusion_renderer.render import surfaces
from diffusion_renderer.render.surface import DEFAULT_FOV
from diffusion_renderer.training.segments import Segment, segments_of

log = logging.getLogger(__name__)

#: Folder of the labelled segments within the output folder; the shards are made of them.
LABELLED = "segments"
#: Rows of the panoramas in the shards at most; the environment encoder of `tiny` sees as many.
LIGHT_ROWS = 64
#: Counts the changes of what a label is; labels made before the last one are made anew.
VERSION = 1


@dataclass(frozen=True)
class AutolabelOptions:
    """What to label and how.

    Attributes
    ----------
    data : videos, folders of frames, or folders of these.
    out : folder of the shards. A run with the same ``out`` continues where the last one stopped.
    model : the inverse renderer, as for `pipelines.load_inverse`.
    light_dir : folder of panoramas, ``<segment>.hdr`` or ``<video>.hdr`` (also .exr); None to estimate the light.
    segments : at most so many of each video.
    frames : of each segment, consecutive.
    size : side of the square frames, pixels.
    shard_size : clips of a shard.
    seed : of the inverse renderer's noise and of the pixels that the light is estimated from.
    progress : show a bar.
    """

    data: tuple[Path, ...]
    out: Path
    model: str | Path = "tiny"
    light_dir: Path | None = None
    segments: int = 15
    frames: int = 24
    size: int = 128
    shard_size: int = 64
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("segments", 1), ("frames", 1), ("size", 16), ("shard_size", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"--{name.replace('_', '-')} of {least} or more", str(getattr(self, name)), "give a larger number"
                )
        if self.size % 8:
            raise InputError("--size a multiple of 8", str(self.size), f"give {8 * round(self.size / 8)}")


def autolabel(
    options: AutolabelOptions, *, inverse: InverseRenderer | None = None, estimator: LightEstimator | None = None
) -> dict[str, Any]:
    """Label every video and write the shards; returns what was done.

    A video that cannot be read, has too few frames or no light to be found is skipped, named and counted. Segments labelled
    by an earlier run are kept in ``out/segments`` and not labelled again, unless the video, the model or the options differ.

    There are no poses: clips get a camera at rest with a field of view of `render.surface.DEFAULT_FOV` degrees, so the light is
    fixed to the camera. Depth is relative, spread from 1 to 3.

    Parameters
    ----------
    inverse : in place of ``options.model``.
    estimator : in place of the light of ``options``.

    Returns ``videos``, ``clips`` (in the shards), ``labelled`` and ``reused`` (segments of this run), ``skipped`` (reason by
    name), ``index`` (contents of index.json). Raises InputError when there is no video, or not one segment could be labelled.
    """
    videos = [clip for path in options.data for clip in list_clips(path)]
    if not videos:
        raise InputError("videos or folders of frames to label", "none", "give --data PATH")
    labeller = _Labeller(options, inverse, estimator)
    done: list[Path] = []
    skipped: dict[str, str] = {}
    bar = tqdm(total=len(videos) * options.segments, unit="clip", desc="autolabel", disable=not options.progress)
    with bar:
        for number, video in enumerate(videos):
            try:
                for path in labeller.label_video(video):
                    done.append(path)
                    bar.update(1)
            except (InputError, OSError, ValueError) as error:
                skipped[_unique(video.name, skipped)] = str(error)
                log.warning("%s skipped: %s", video.name, error)
            skipped |= labeller.take_skipped()
            bar.update((number + 1) * options.segments - bar.n)
    if not done:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise InputError("at least one segment that can be labelled", f"none ({reasons})", "give other videos")
    index = _write(options, done)
    counts = {"labelled": labeller.labelled, "reused": len(done) - labeller.labelled}
    return {"videos": len(videos), "clips": len(done), **counts, "skipped": skipped, "index": index}


class _Labeller:
    """Labels videos segment by segment; the model is loaded when the first one is needed."""

    def __init__(self, options: AutolabelOptions, inverse: InverseRenderer | None, estimator: LightEstimator | None) -> None:
        self.options, self._inverse, self.labelled = options, inverse, 0
        self._skipped: dict[str, str] = {}
        self.files = None if options.light_dir is None or estimator else FileLights(options.light_dir)
        self.estimator = estimator or LinearLight(seed=options.seed)
        name = type(inverse).__name__ if inverse else str(options.model)
        self.model = {
            "name": Path(name).name,
            "fingerprint": None if inverse else weights_fingerprint(options.model),
        }
        self.light = "file" if self.files else type(self.estimator).__name__
        self.folder = Path(options.out) / LABELLED
        self.folder.mkdir(parents=True, exist_ok=True)

    def take_skipped(self) -> dict[str, str]:
        """Segments skipped since the last call, with reasons."""
        taken, self._skipped = self._skipped, {}
        return taken

    def label_video(self, path: Path) -> Iterator[Path]:
        """The labelled segments of a video, as files; those of an earlier run at once, without decoding the video."""
        key = self._key(path)
        listing = self.folder / f"{key}.json"
        if listing.exists():
            names = json.loads(listing.read_text())
            if all((self.folder / name).exists() for name in names):
                yield from (self.folder / name for name in names)
                return
        options, names = self.options, []
        for segment in segments_of(open_clip(path), options.segments, options.frames, options.size):
            target = self.folder / f"{key}-{segment.start:06d}.zip"
            if not target.exists():
                try:
                    sample = self._label(segment, path)
                except InputError as error:
                    self._skipped[segment.clip.name] = str(error)
                    log.warning("%s skipped: %s", segment.clip.name, error)
                    continue
                _pack(target, sample)
                self.labelled += 1
            names.append(target.name)
            yield target
        if not self._skipped:
            with atomic_path(listing) as temporary:
                temporary.write_text(json.dumps(names) + "\n")

    def _key(self, path: Path) -> str:
        """Names the labels of a video: another video, model, light or other options give another name."""
        options = self.options
        given = None if self.files is None else fingerprint(Path(self.files.folder))
        settings = (options.segments, options.frames, options.size, options.seed)
        parts = (VERSION, path.name, fingerprint(path), self.model, self.light, given, settings)
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
        return f"{path.stem}-{digest}"

    def _label(self, segment: Segment, path: Path) -> Sample:
        if self._inverse is None:
            self._inverse = load_inverse(self.options.model)
        made = absolute(self._inverse(segment.clip, seed=self.options.seed))
        light = self._light_of(segment.clip, made, path)
        meta = {
            "real": True,
            "family": "real",
            "source": path.name,
            "segment": segment.number,
            "start": segment.start,
            "model": self.model,
            "light": {"source": self.light, "name": light.name},
            "assumed_fov": DEFAULT_FOV,
        }
        camera = Camera.identity(len(segment.clip), DEFAULT_FOV)
        return Sample(segment.clip, made, light, camera, meta)

    def _light_of(self, clip: Clip, gbuffer: GBuffer, path: Path) -> EnvironmentMap:
        """From the file of the segment or of its video, or estimated; at most `LIGHT_ROWS` rows."""
        light = self.estimator(clip, gbuffer, None) if self.files is None else self.files.read(clip.name, path.stem)
        return replace(light, radiance=average_panorama(light.radiance, LIGHT_ROWS, 2 * LIGHT_ROWS))


def absolute(gbuffer: GBuffer) -> GBuffer:
    """The G-buffers of an inverse renderer as a data set stores them: depth above 0, +inf and no normal in the background.

    Relative depth is spread as `render.surfaces` spreads it. Normals that face away from the viewer, which no surface that is
    seen has, are bent to the nearest that do not.
    """
    surface = surfaces(gbuffer, relative=True)
    mask = rearrange(surface.coverage, "f h w 1 -> f 1 h w") > 0
    image = lambda value: rearrange(value, "f h w c -> f c h w") * mask  # noqa: E731
    return GBuffer(
        basecolor=image(surface.basecolor),
        normal=image(surface.normal),
        depth=rearrange(surface.depth, "f h w -> f 1 h w"),
        roughness=image(surface.roughness),
        metallic=image(surface.metallic),
        mask=mask,
        fps=gbuffer.fps,
        name=gbuffer.name,
    )


def _pack(path: Path, sample: Sample) -> None:
    """A labelled segment as a file of its own, with the files that a shard has; not a shard, so that no training finds it."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, data in encode_clip(sample).items():
            archive.writestr(name, data)


def _unpack(path: Path) -> Sample:
    try:
        with zipfile.ZipFile(path) as archive:
            return decode_clip({name: archive.read(name) for name in archive.namelist()})
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise InputError(f"a labelled segment in {path}", str(error), "delete that file and run again") from error


def _write(options: AutolabelOptions, done: list[Path]) -> dict[str, Any]:
    """All labelled segments as shards; shards beyond the last, of an earlier and longer run, are removed."""
    out = Path(options.out)
    index = write_samples(out, map(_unpack, done), options.shard_size, progress=False)
    names = {shard["name"] for shard in index["shards"]}
    for path in out.glob("shard-*.tar"):
        if path.name not in names:
            path.unlink()
    return index


def _unique(name: str, taken: dict[str, str]) -> str:
    """The name itself, or with a number when it is taken."""
    number, chosen = 2, name
    while chosen in taken:
        chosen, number = f"{name} ({number})", number + 1
    return chosen
