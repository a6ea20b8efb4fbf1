"""One command's work on clips: skip what is complete, call the renderers, write through `io`, record what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from diffusion_renderer import io, pipelines
from diffusion_renderer.cli.options import Buffers, Common, Lighting
from diffusion_renderer.cli.progress import Progress
from diffusion_renderer.cli.record import Result, fingerprint
from diffusion_renderer.cli.resuming import Continued
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.sources import GBufferSource
from diffusion_renderer.core.types import BUFFERS, Camera, EnvironmentMap, GBuffer
from diffusion_renderer.editing import (
    LightOptions,
    Shot,
    check_model,
    distinct_names,
    light_scale,
    load_forward,
    play,
    scaled,
)
from diffusion_renderer.io.background import BackgroundWriter
from diffusion_renderer.models import Kind
from diffusion_renderer.pipelines.diffusion import DiffusionRenderer
from diffusion_renderer.render import RENDERERS

KINDS: tuple[Kind, Kind] = ("inverse", "forward")
#: Formats that hold every frame of a G-buffer, so that it can be read back.
FRAME_FORMATS = frozenset({"png", "exr"})


@dataclass(frozen=True)
class Light:
    """A panorama as given: its file, its distinct name, its radiance."""

    path: Path
    name: str
    environment: EnvironmentMap


@dataclass(frozen=True)
class Models:
    """The renderers of a command, loaded when the first clip needs them and kept for the others.

    ``running`` says how they run (None: as they are), ``say`` is told when they have to run otherwise.
    """

    inverse_name: str
    forward_name: str
    device: str | None = None
    geometry: Path | None = None
    running: Common | None = None
    say: Callable[[str], None] | None = None

    @cached_property
    def inverse(self) -> pipelines.InverseRenderer:
        pipelines.set_threads()
        return pipelines.load_inverse(self.inverse_name, device=self.device, **self._running)

    @cached_property
    def forward(self) -> pipelines.ForwardRenderer:
        pipelines.set_threads()
        return load_forward(self.forward_name, device=self.device, geometry=self.geometry, **self._running)

    @cached_property
    def _running(self) -> dict[str, Any]:
        """Memory, which both renderers share, and compilation, as the options say."""
        if self.running is None:
            return {}
        budget = pipelines.MemoryBudget(self.running.memory)
        return {"memory": budget, "decoder": self.running.decoder, "compile": self.running.compile, "say": self.say}

    def check(self, *kinds: Kind, decoder: pipelines.Decoder | None = None) -> None:
        """Find (or download) the models and check that they are of their kind and have the decoder that is asked for, so that a
        mistake shows before an hour's work, not after it."""
        for kind in kinds:
            check_model(self.inverse_name if kind == "inverse" else self.forward_name, kind, self.geometry, decoder)


@dataclass(frozen=True)
class Session:
    """What the clips of one command share."""

    options: Common
    out: Path
    formats: tuple[str, ...]
    models: Models
    progress: Progress

    @cached_property
    def renderers(self) -> Models:
        """The models, run as the options say."""
        return replace(self.models, running=self.options, say=self.progress.say)

    def gbuffer_result(self, name: str, path: Path, buffers: Sequence[str], frames: int | None) -> Result:
        """Where the G-buffers of the clip at ``path`` go, and what decides them."""
        made_from = {
            **self._settings(self.models.inverse_name),
            "input": fingerprint(path),
            "buffers": list(buffers),
            "guided": self._guided,
            "frames": frames,
        }
        return Result(self.out, name, "gbuffers", made_from)

    def relit_result(self, name: str, source: str, light: Light, lighting: Lighting) -> Result:
        """Where a clip under ``light`` goes; ``source`` stands for its G-buffers."""
        made_from = {
            **self._settings(self.models.forward_name),
            "source": source,
            "light": [light.path.name, fingerprint(light.path)],
            "rotate_light": lighting.rotate_light,
            "light_rotation": lighting.light_rotation,
            "light_elevation": lighting.light_elevation,
            "light_frame": lighting.light_frame,
            "light_scale": lighting.light_scale,
            "cameras": lighting.cameras and fingerprint(lighting.cameras),
            "static_frame": lighting.static_frame,
            "frames": self.options.frames,
            "guidance": lighting.guidance,
            "lora_scale": lighting.lora_scale,
            "geometry": lighting.geometry and fingerprint(lighting.geometry),
        }
        return Result(self.out, name, "relit", made_from)

    def is_complete(self, result: Result) -> bool:
        """Whether a result may be kept; says so when it is."""
        if self.options.overwrite or not result.complete():
            return False
        self.progress.say(f"{result.name} is complete already, kept (--overwrite makes it again)")
        self._report(result.name, "rgb" if result.kind == "relit" else "*")
        return True

    def make_gbuffers(self, path: Path, result: Result, shots: Sequence[Shot] = (), *, keep: bool = False) -> GBuffer | None:
        """Estimate and write the G-buffers of the clip at ``path``; ``shots`` that do not fit its length are refused first.

        They are written as they are decoded and not held in memory, unless ``keep`` asks for them.
        """
        buffers = tuple(result.made_from["buffers"])
        self.progress.subject = result.name
        clip = replace(io.open_clip(path, frames=result.made_from["frames"]), name=result.name)
        for shot in shots:
            shot.rotations(len(clip))
        files = frame_names(result.name, len(clip), buffers, self.formats, "gbuffer")
        run = self._continued(result, self.renderers.inverse, len(clip), buffers, "gbuffer", whole=keep)
        pieces = self.renderers.inverse.stream(
            clip, buffers=buffers, guided=self._guided, **self._call_options(), **run.options
        )
        first = next(pieces)  # whatever is wrong with the clip or the options shows before anything is written
        if first.mask is not None and "png" in self.formats:
            files += frame_names(result.name, len(clip), ("mask",), ("png",), "")
        kept: list[GBuffer] = []

        def write() -> None:
            target = run.noting(io.GBufferWriter(self.out, result.name, clip.fps, self.formats, buffers, first=run.first))
            with BackgroundWriter(target) as writer:
                for piece in self._counted(chain([first], pieces), run.first, len(clip), "writing G-buffers"):
                    writer.write(piece)
                    if keep:
                        kept.append(piece)

        result.write(files, write)
        run.end()
        self._report(result.name, "*")
        return GBuffer.join(kept, len(clip)) if keep else None

    def open_buffers(self, path: Path) -> io.GBufferFiles:
        """G-buffers that the forward renderer is to be given.

        Where it shades them, steps of 8-bit normals are smoothed. The published networks are given what is in the files.
        """
        classical = self.models.forward_name in RENDERERS
        shades = classical or self.renderers.forward.settings.prior is not None
        return io.open_gbuffer(path, smooth_normals=shades)

    def make_relit(self, gbuffer: GBufferSource, result: Result, light: Light, lighting: Lighting, shot: Shot) -> None:
        """Render and write a clip under one light."""
        self.progress.subject = result.name
        options = {**self._call_options(), "guidance": lighting.guidance, "lora_scale": lighting.lora_scale}
        forward = self.renderers.forward
        environment = scaled(light.environment, self._scale(light.environment, lighting.light_scale, forward))
        camera = shot.cameras(len(gbuffer))
        gbuffer, rotations = play(gbuffer, shot)
        run = self._continued(result, forward, len(gbuffer), ("rgb",), "rgb")
        pieces = forward.stream(gbuffer, environment, camera=camera, rotations=rotations, **options, **run.options)
        first = next(pieces)

        def write() -> None:
            target = run.noting(io.ClipWriter(self.out, result.name, gbuffer.fps, self.formats, run.first))
            with BackgroundWriter(target) as writer:
                for piece in self._counted(chain([first], pieces), run.first, len(gbuffer), "writing frames"):
                    writer.write(piece)
            if shot.camera is not None:
                io.write_cameras(shot.camera, self.out / result.name / "cameras.json")

        files = frame_names(result.name, len(gbuffer), ("rgb",), self.formats, "rgb")
        result.write([*files, f"{result.name}/cameras.json"] if shot.camera is not None else files, write)
        run.end()
        self._report(result.name, "rgb")

    def _continued(
        self, result: Result, renderer: Any, frames: int, buffers: Sequence[str], layered: str, whole: bool = False
    ) -> Continued:
        """How a result goes on in the middle. Classical renderers begin it again, and so does every renderer where no format
        holds frames (a video cannot be appended to) or the ``whole`` result is needed in memory."""
        held = [name for name in self.formats if name in FRAME_FORMATS]
        can = isinstance(renderer, DiffusionRenderer) and bool(held) and not whole

        def files(before: int) -> list[str]:
            return frame_names(result.name, before, buffers, held, layered)

        return Continued(result, can, frames, files, self.progress.say, self.options.overwrite)

    def _counted(self, pieces: Iterator[Any], done: int, total: int, what: str) -> Iterator[Any]:
        """The pieces that come after ``done`` frames, each reported when the writer has taken it."""
        for piece in pieces:
            yield piece
            done += len(piece)
            self.progress(done, total, what)

    def _scale(self, environment: EnvironmentMap, wanted: Any, forward: Any) -> float:
        if isinstance(wanted, float):
            return wanted
        return light_scale(environment, forward.settings)

    def _settings(self, model: str) -> dict[str, Any]:
        options = self.options
        return {
            "model": model,
            "weights": pipelines.weights_fingerprint(model),
            "steps": options.steps,
            "solver": options.solver,
            # What saves memory may change the pictures; what "auto" chooses does not.
            "memory": None if options.memory in ("auto", "max") else options.memory,
            "decoder": options.decoder,
            "seed": options.seed,
            "size": options.size,
            "formats": list(self.formats),
        }

    @property
    def _guided(self) -> bool | None:
        """Whether the frames sharpen the buffers that are made; None for the model's own."""
        return False if isinstance(self.options, Buffers) and self.options.unguided else None

    def _call_options(self) -> dict[str, Any]:
        options = self.options
        asked = {"steps": options.steps, "solver": options.solver, "seed": options.seed, "size": options.size}
        return {**asked, "progress": self.progress}

    def _report(self, name: str, buffer: str) -> None:
        if FRAME_FORMATS & set(self.formats):
            self.progress.made(self.out / name)
        if "mp4" in self.formats:
            self.progress.made(self.out / f"{name}.{buffer}.mp4")


def frame_names(clip: str, frames: int, buffers: Sequence[str], formats: Sequence[str], layered: str) -> list[str]:
    """The files that `io` writes for a clip, relative to the output folder; ``layered`` names the EXR that has all buffers."""
    names = []
    if "png" in formats:
        names += [f"{clip}/{frame:04d}.{buffer}.png" for frame in range(frames) for buffer in buffers]
    if "exr" in formats:
        names += [f"{clip}/{frame:04d}.{layered}.exr" for frame in range(frames)]
    if "mp4" in formats:
        names += [f"{clip}.{buffer}.mp4" for buffer in buffers]
    return names


def each(names: Sequence[str], work: Callable[[int], None], progress: Progress) -> None:
    """Call ``work`` for every clip. With several, one that fails does not stop the others; the end tells of all that failed."""
    failed: list[tuple[str, InputError]] = []
    for index, name in enumerate(names):
        progress.subject = ""
        try:
            work(index)
        except InputError as error:
            if len(names) == 1:
                raise
            progress.subject = ""
            progress.say(f"error: {name}: {error}")
            failed.append((name, error))
    if failed:
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        first = failed[0][1]
        raise InputError(
            f"{len(names)} clips that can be processed",
            f"{len(failed)} that cannot: {failed[0][0]}{others} ({first})",
            first.advice,
        )


def read_lights(paths: Sequence[Path]) -> list[Light]:
    """The panoramas, named after their files; two files of one name get distinct names."""
    if not paths:
        raise InputError("at least one --light", "none", "for example --light sunset.hdr")
    environments = [io.read_environment(path) for path in paths]
    names = distinct_names([path.stem for path in paths])
    return [Light(path, name, replace(env, name=name)) for path, name, env in zip(paths, names, environments, strict=True)]


def read_shot(options: Lighting, frames: int | None) -> Shot:
    """How the lights are placed and whether a frame is held, the cameras file read."""
    camera: Camera | None = io.read_cameras(options.cameras) if options.cameras else None
    lighting = LightOptions(
        rotate=options.rotate_light, yaw=options.light_rotation, elevation=options.light_elevation, frame=options.light_frame
    )
    if lighting.frame == "world" and camera is None:
        raise InputError("--cameras for --light-frame world", "none", "give --cameras cameras.json, or --light-frame camera")
    return Shot(lighting, camera, options.static_frame, frames)


def checked_buffers(names: Sequence[str]) -> tuple[str, ...]:
    """The buffer names, InputError for one that does not exist."""
    return tuple(check_name("--buffers", name, BUFFERS) for name in names)
