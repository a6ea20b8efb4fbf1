"""What `demo` does: relight every clip by the package's lights, then a contact sheet and a page of everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import diffusion_renderer
from diffusion_renderer import io
from diffusion_renderer.cli.demo import Demo
from diffusion_renderer.cli.options import Relight
from diffusion_renderer.cli.progress import Progress, duration
from diffusion_renderer.cli.record import make_output_folder
from diffusion_renderer.cli.rendering import Task, name_of, relight_clip, relit_names
from diffusion_renderer.cli.session import KINDS, Light, Models, Session, each, read_lights, read_shot
from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Clip, GBuffer
from diffusion_renderer.editing import distinct_names
from diffusion_renderer.evaluation.metrics import ANGLE, PSNR, RMSE, Metric

#: The clip, its ground truth and the lights, rendered by scripts/make_demo_assets.py.
ASSETS = Path(diffusion_renderer.__file__).parent / "demo"
METRICS: dict[str, Metric] = {"basecolor": PSNR, "normal": ANGLE, "roughness": RMSE, "metallic": RMSE}
SHEET_COLUMNS = 5
#: Folder of what only the page shows: the input and the ground truth as videos, the lights as pictures.
PAGE_MEDIA = "page"


@dataclass(frozen=True)
class Truth:
    """What the package's clip really looks like: its buffers, and the clip under each light by the light's name."""

    gbuffer: GBuffer
    relit: dict[str, Clip]


@dataclass(frozen=True)
class Shown:
    """One clip's results, read back from their files.

    Without ground truth only the frames of the contact sheet are held, however long the clip; with it, all of them.

    Attributes
    ----------
    frames, size : of the whole clip.
    picks : which of the frames held are shown on the sheet.
    """

    name: str
    frames: int
    size: tuple[int, int]
    picks: tuple[int, ...]
    clip: Clip
    gbuffer: GBuffer
    relit: dict[str, tuple[str, Clip]]
    truth: Truth | None


def run_demo(options: Demo, progress: Progress) -> None:
    """Relight the clips, then write ``sheet.png`` and ``index.html``."""
    if not (ASSETS / "lights").is_dir():
        raise InputError("the demo's lights in the package", f"none in {ASSETS}", "make them with scripts/make_demo_assets.py")
    truth = ASSETS if options.input is None else None
    paths = [ASSETS / "clip"] if options.input is None else io.list_clips(options.input)
    names = ["demo"] if options.input is None else distinct_names([name_of(path) for path in paths])
    lights = read_lights(sorted(path for path in (ASSETS / "lights").iterdir() if path.suffix in (".exr", ".hdr")))
    out = make_output_folder(options.out)
    base = relight_options(options, paths[0], lights)
    models = Models(options.model, options.model, options.device)
    session = Session(base, out, ("png", "mp4"), models, progress)
    relit = relit_names(names, lights, taken=names)
    shown: list[Shown] = []

    def work(index: int) -> None:
        tasks = make_tasks(base, lights, relit[index])
        source = session.gbuffer_result(names[index], paths[index], DEFAULT_BUFFERS, options.frames)
        relight_clip(session, paths[index], source, tasks)
        shown.append(collect(out, names[index], paths[index], tasks, options.frames, truth))

    try:
        models.check(*KINDS)
        each(names, work, progress)
    finally:
        if shown:
            progress.subject = ""
            progress.say("writing the contact sheet and the page")
            progress.made(write_sheet(out / "sheet.png", shown))
            progress.made(write_page(out / "index.html", shown, lights, out, duration(progress.elapsed)))


def relight_options(options: Demo, path: Path, lights: Sequence[Light]) -> Relight:
    """The demo's options as those of `relight`. Its lights are exposed for a mid-grey picture and taken as they are."""
    cameras = path / "cameras.json"
    return Relight(
        input=path,
        cameras=cameras if cameras.is_file() else None,
        out=options.out,
        light=(tuple(light.path for light in lights),),
        light_scale=1.0,
        model=options.model,
        steps=options.steps,
        seed=options.seed,
        size=options.size,
        frames=options.frames,
        device=options.device,
        overwrite=options.overwrite,
    )


def make_tasks(base: Relight, lights: Sequence[Light], names: Sequence[str]) -> list[Task]:
    """One task per light; a light whose name says so turns around the camera, the others stay fixed to the world if it can."""
    tasks = []
    for light, name in zip(lights, names, strict=True):
        rotating = "rotating" in light.name
        lighting = replace(base, rotate_light=rotating, light_frame="camera" if rotating else None)
        tasks.append(Task(name, light, lighting, read_shot(lighting, base.frames)))
    return tasks


def collect(out: Path, name: str, path: Path, tasks: Sequence[Task], frames: int | None, assets: Path | None) -> Shown:
    """Read a clip's results back; the ground truth too when the clip is the package's."""
    clip = io.open_clip(path, frames=frames)
    io.write_video(out / PAGE_MEDIA / name / "input.rgb.mp4", clip.images(), clip.fps)
    count = len(clip)
    picks = sorted({round(index * (count - 1) / (SHEET_COLUMNS - 1)) for index in range(SHEET_COLUMNS)})
    held = picks if assets is None else list(range(count))
    gbuffer = io.open_gbuffer(out / name)
    relit = {task.light.name: (task.name, frames_of(io.open_clip(out / task.name), held)) for task in tasks}
    truth = None
    if assets is not None:
        pictures = {task.light.name: assets / "relit" / task.light.name for task in tasks}
        truth = Truth(
            io.read_gbuffer(assets / "clip")[:count],
            {light: io.read_clip(folder, frames=count) for light, folder in pictures.items() if folder.is_dir()},
        )
        write_truth(truth, out / PAGE_MEDIA / name)
    return Shown(
        name=name,
        frames=count,
        size=clip.size,
        picks=tuple(held.index(pick) for pick in picks),
        clip=frames_of(clip, held),
        gbuffer=GBuffer.join((next(gbuffer[pick : pick + 1].chunks(1)) for pick in held), len(held)),
        relit=relit,
        truth=truth,
    )


def frames_of(clip: io.ClipFile, held: Sequence[int]) -> Clip:
    """Some frames of a clip."""
    wanted = set(held)
    kept = [image for index, image in enumerate(clip.images()) if index in wanted]
    return Clip(torch.stack(kept), clip.fps, clip.name)


def write_truth(truth: Truth, folder: Path) -> None:
    """The ground truth as videos for the page."""
    io.write_gbuffer(replace(truth.gbuffer, name="truth"), folder, formats=("mp4",), buffers=DEFAULT_BUFFERS)
    for light, clip in truth.relit.items():
        io.write_clip(replace(clip, name=f"truth_{light}"), folder, formats=("mp4",))


def errors(shown: Shown) -> list[tuple[str, str, str]]:
    """(what, metric, value) of every estimate that has a ground truth; buffers are compared where there is a surface."""
    if shown.truth is None:
        return []
    rows = []
    mask = shown.truth.gbuffer.mask
    for name, metric in METRICS.items():
        estimate, truth = _compared(shown.gbuffer, name), _compared(shown.truth.gbuffer, name)
        where = mask if mask is not None else truth[:, :1].isfinite()
        rows.append((name, _title(metric), f"{metric(estimate, truth, where):.3g}"))
    for light, clip in shown.truth.relit.items():
        estimate = shown.relit[light][1].frames
        everywhere = clip.frames[:, :1].isfinite()
        rows.append((f"relit by {light}", _title(PSNR), f"{PSNR(estimate, clip.frames, everywhere):.3g}"))
    return rows


def _compared(gbuffer: GBuffer, name: str) -> Tensor:
    value = getattr(gbuffer, name)
    return value if name == "normal" else encode_buffer(name, value)


def _title(metric: Metric) -> str:
    better = "higher is better" if metric.higher_is_better else "lower is better"
    return f"{metric.name}{f', {metric.unit}' if metric.unit else ''} ({better})"


def write_sheet(path: Path, shown: Sequence[Shown]) -> Path:
    """A few frames of everything, ground truth below its estimate."""
    rows: list[tuple[str, list[Tensor]]] = []
    for item in shown:
        prefix = f"{item.name}: " if len(shown) > 1 else ""
        picks = item.picks
        rows.append((f"{prefix}input", [item.clip.frames[pick] for pick in picks]))
        for name in DEFAULT_BUFFERS:
            for label, gbuffer in _with_truth(name, item.gbuffer, item.truth and item.truth.gbuffer):
                images = encode_buffer(name, getattr(gbuffer, name)).expand(-1, 3, -1, -1)
                rows.append((f"{prefix}{label}", [images[pick] for pick in picks]))
        for light, (_, clip) in item.relit.items():
            for label, frames in _with_truth(f"by {light}", clip, item.truth and item.truth.relit.get(light)):
                rows.append((f"{prefix}{label}", [frames.frames[pick] for pick in picks]))
    return io.write_sheet(path, rows)


def _with_truth(label: str, estimate, truth):  # type: ignore[no-untyped-def]
    return [(label, estimate)] + ([(f"{label}, truth", truth)] if truth is not None else [])


def write_page(path: Path, shown: Sequence[Shown], lights: Sequence[Light], out: Path, took: str) -> Path:
    """``index.html``: per clip the input, the buffers and the relit videos, ground truth and errors where known."""
    panoramas = {light.name: out / PAGE_MEDIA / "lights" / f"{light.name}.png" for light in lights}
    for light in lights:
        io.write_image(panoramas[light.name], srgb_oetf(light.environment.radiance))
    sections = [section for item in shown for section in clip_sections(item, panoramas, out)]
    frames = sum(item.frames for item in shown)
    text = f"{frames} frames, {len(DEFAULT_BUFFERS)} buffers, {len(lights)} lights, in {took}. All videos play together."
    return io.write_page(
        path, "DiffusionRenderer: a video, its G-buffers, and the video under other lights", sections, text=text
    )


def clip_sections(item: Shown, panoramas: dict[str, Path], out: Path) -> list[io.Section]:
    """The page's sections of one clip."""
    folder = out / PAGE_MEDIA / item.name
    truth = item.truth
    buffers = [io.Figure(name, out / f"{item.name}.{name}.mp4") for name in DEFAULT_BUFFERS]
    relit = [
        io.Figure(f"relit by {light}", out / f"{name}.rgb.mp4", "estimated G-buffers")
        for light, (name, _) in item.relit.items()
    ]
    if truth is not None:
        buffers += [io.Figure(f"{name}, ground truth", folder / f"truth.{name}.mp4") for name in DEFAULT_BUFFERS]
        relit += [
            io.Figure(f"{light}, ground truth", folder / f"truth_{light}.rgb.mp4", "path-traced") for light in truth.relit
        ]
    numbers = errors(item)
    table = io.Table(("", "metric", "value"), numbers, "Against the ground truth") if numbers else None
    size = f"{item.size[0]} x {item.size[1]}, {item.frames} frames"
    lights = [io.Figure(name, path, "turns once" if "rotating" in name else "") for name, path in panoramas.items()]
    return [
        io.Section(f"{item.name}: input", [io.Figure("input", folder / "input.rgb.mp4", size)]),
        io.Section("G-buffers", buffers, "What the inverse renderer made of the input."),
        io.Section("Lights", lights),
        io.Section("Relit", relit, "What the forward renderer made of the G-buffers and a light.", table),
    ]
