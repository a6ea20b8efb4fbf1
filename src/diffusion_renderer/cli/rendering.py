"""`inverse`, `forward` and `relight`: which clips, under which lights, and what is still to be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_renderer import io
from diffusion_renderer.cli.options import Forward, Inverse, Lighting, Relight
from diffusion_renderer.cli.progress import Progress
from diffusion_renderer.cli.record import Result, fingerprint, make_output_folder
from diffusion_renderer.cli.session import (
    FRAME_FORMATS,
    KINDS,
    Light,
    Models,
    Session,
    checked_buffers,
    each,
    read_lights,
    read_shot,
)
from diffusion_renderer.cli.values import flatten
from diffusion_renderer.core.sources import GBufferSource
from diffusion_renderer.core.types import DEFAULT_BUFFERS
from diffusion_renderer.editing import Shot, distinct_names, relit_name
from diffusion_renderer.io.layout import clip_name


def run_inverse(options: Inverse, progress: Progress) -> None:
    """G-buffers of every clip of the input."""
    buffers = checked_buffers(options.buffer_names) or DEFAULT_BUFFERS
    paths = io.list_clips(options.input)
    names = distinct_names([name_of(path) for path in paths])
    models = Models(options.model, options.model, options.device)
    models.check("inverse", decoder=options.decoder)
    session = Session(options, make_output_folder(options.out), flatten(options.format) or ("png",), models, progress)

    def work(index: int) -> None:
        result = session.gbuffer_result(names[index], paths[index], buffers, options.frames)
        if not session.is_complete(result):
            session.make_gbuffers(paths[index], result)

    each(names, work, progress)


def run_forward(options: Forward, progress: Progress) -> None:
    """Every set of G-buffers under every light."""
    paths = io.list_gbuffers(options.gbuffers)
    names = distinct_names([name_of(path) for path in paths])
    lights, shot = read_lights(options.light_paths), read_shot(options, options.frames)
    models = Models(options.model, options.model, options.device, options.geometry)
    models.check("forward", decoder=options.decoder)
    session = Session(options, make_output_folder(options.out), flatten(options.format) or ("png", "mp4"), models, progress)
    relit = relit_names(names, lights, taken=[])

    def work(index: int) -> None:
        source = fingerprint_of_buffers(paths[index])
        results = [session.relit_result(name, source, light, options) for name, light in zip(relit[index], lights, strict=True)]
        pending = [(result, light) for result, light in zip(results, lights, strict=True) if not session.is_complete(result)]
        if not pending:
            return
        gbuffer = played(session.open_buffers(paths[index]), shot)
        for result, light in pending:
            session.make_relit(gbuffer, result, light, options, shot)

    each(names, work, progress)


def run_relight(options: Relight, progress: Progress) -> None:
    """G-buffers of every clip of the input, and every clip under every light."""
    lights, shot = read_lights(options.light_paths), read_shot(options, options.frames)
    inverse, forward = options.inverse_model or options.model, options.forward_model or options.model
    models = Models(inverse, forward, options.device, options.geometry)
    models.check(*KINDS, decoder=options.decoder)
    paths = io.list_clips(options.input)
    names = distinct_names([name_of(path) for path in paths])
    formats = flatten(options.format) or ("png", "mp4")
    session = Session(options, make_output_folder(options.out), formats, models, progress)
    relit = relit_names(names, lights, taken=names)
    buffers = tuple(dict.fromkeys((*DEFAULT_BUFFERS, *checked_buffers(options.buffer_names))))

    def work(index: int) -> None:
        tasks = [Task(name, light, options, shot) for name, light in zip(relit[index], lights, strict=True)]
        source = session.gbuffer_result(names[index], paths[index], buffers, frames_needed(options))
        relight_clip(session, paths[index], source, tasks)

    each(names, work, progress)


@dataclass(frozen=True)
class Task:
    """A clip under one light: the name of the result, the light, and how it is placed."""

    name: str
    light: Light
    lighting: Lighting
    shot: Shot


def relight_clip(session: Session, path: Path, source: Result, tasks: Sequence[Task]) -> None:
    """The clip at ``path``: its G-buffers, ``source``, then the clip as each of the tasks wants it, as far as it is not there.

    The G-buffers are read back from the frames that were written, so that a run that was stopped in between ends with the same
    pictures as one that was not. Without a format that holds frames they stay in memory, and a continued run makes them again.
    """
    complete = session.is_complete(source)
    results = [session.relit_result(task.name, source.key, task.light, task.lighting) for task in tasks]
    pending = [(result, task) for result, task in zip(results, tasks, strict=True) if not session.is_complete(result)]
    has_frames = bool(FRAME_FORMATS & set(session.formats))
    gbuffer: GBufferSource | None = None
    if not complete or (pending and not has_frames):
        gbuffer = session.make_gbuffers(path, source, [task.shot for task in tasks], keep=bool(pending) and not has_frames)
    if pending and has_frames:
        gbuffer = replace(session.open_buffers(session.out / source.name), name=source.name)
    for result, task in pending:
        session.make_relit(gbuffer, result, task.light, task.lighting, task.shot)


def frames_needed(options: Relight) -> int | None:
    """How many frames of the input to read: with a held frame, at least up to that one."""
    if options.frames is None or options.static_frame is None:
        return options.frames
    return max(options.frames, options.static_frame + 1)


def played(gbuffer: GBufferSource, shot: Shot) -> GBufferSource:
    """The frames asked for; all of them when one is held, for then their number is that of the result."""
    return gbuffer if shot.static_frame is not None or shot.frames is None else gbuffer[: shot.frames]


def name_of(path: Path) -> str:
    """The clip's name; G-buffers that exist as videos only have a path that does not exist."""
    return clip_name(path.resolve()) if path.exists() else path.name


def relit_names(clips: list[str], lights: list[Light], taken: list[str]) -> list[list[str]]:
    """Per clip and light the name of the result, distinct from each other and from ``taken``."""
    flat = distinct_names([*taken, *(relit_name(clip, light.name) for clip in clips for light in lights)])[len(taken) :]
    return [flat[index * len(lights) : (index + 1) * len(lights)] for index in range(len(clips))]


def fingerprint_of_buffers(path: Path) -> str:
    """What a set of G-buffers is made of: its folder, or the videos beside it."""
    if path.is_dir():
        return fingerprint(path)
    return " ".join(fingerprint(video) for video in sorted(path.parent.glob(f"{path.name}.*.mp4")))
