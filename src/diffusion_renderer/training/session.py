"""`train all`: render, train every stage and assemble a model within a number of minutes; started again, it goes on."""

from __future__ import annotations

import csv
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.io.atomic import atomic_path
from diffusion_renderer.training.digest import belongs
from diffusion_renderer.training.export import PARTS, assemble
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import PRESETS, Preset
from diffusion_renderer.training.session_data import count_images, render_data, render_held_out

if TYPE_CHECKING:
    from diffusion_renderer.training.calibration import Fitted

log = logging.getLogger(__name__)

#: The phases in order; each has a share of the minutes. `evaluate` is the caller's: training knows nothing of evaluation.
PHASES = ("render", "vae", "decoder", "env", "inverse", "forward", "calibrate", "evaluate")
#: The stages that are trained, in order.
STAGES = ("vae", "decoder", "env", "inverse", "forward")
#: Stages whose networks others are built on: trained once, then kept.
FOUNDATIONS = ("vae", "decoder", "env")
#: In place of a number of steps while nobody knows how many there is time for.
MANY_STEPS = 10**9
#: Share of a stage's minutes in which its speed is measured, at the full learning rate; they count as training.
PROBE = 0.15
#: Minutes of a stage that is needed when the time is up: enough for the steps that its log begins with.
LEAST_MINUTES = 0.02

RECORD, CURVE = "session.json", "learning.csv"


@dataclass(frozen=True)
class SessionOptions:
    """What `train all` is told beside the options of the stages.

    Attributes
    ----------
    max_minutes : for everything, wall clock. It is kept to within the time of one shard, one checkpoint and the evaluation.
    assets : folders with models, materials and panoramas, or some of them; those of the split "train" are rendered beside
        procedural ones. Without any, everything is procedural.
    frames : of the clips that are rendered beside stills; None for the preset's longest. 1 for stills only.
    size : side of the frames, pixels; None for the preset's.
    samples : light paths per pixel.
    clips : at most so many clips, and as many stills, per folder of assets; None for as many as there is time for.
    shard_images : frames per shard. No shard is begun after the time for rendering is up.
    workers : processes that render at once; 0 for one per core, or one on a GPU.
    variant : Mitsuba's, as in `datagen.DatasetSettings`; None for the first that works.
    render, vae, decoder, env, inverse, forward, calibrate, evaluate : share of the minutes of each phase, relative to each
        other. A phase gets its share of what is left when it begins; 0 leaves it out. `vae`, `decoder` and `env` are left out
        when the run has them; `decoder` also where the preset's autoencoder is a frozen one, which keeps its own.
    calibrate_clips : at most so many stills that the model is calibrated on, rendered beside the data and never trained on.
    evaluate_clips : clips that the model is scored on at the end; 0 for no evaluation.
    """

    max_minutes: float = 60.0
    assets: tuple[Path, ...] = ()
    frames: int | None = None
    size: int | None = None
    samples: int = 16
    clips: int | None = None
    shard_images: int = 64
    workers: int = 0
    variant: str | None = None
    render: float = 0.3
    vae: float = 0.08
    decoder: float = 0.05
    env: float = 0.04
    inverse: float = 0.28
    forward: float = 0.25
    calibrate: float = 0.03
    evaluate: float = 0.05
    calibrate_clips: int = 32
    evaluate_clips: int = 8

    def __post_init__(self) -> None:
        if not self.max_minutes > 0:
            raise InputError("--max-minutes above 0", str(self.max_minutes), "give the minutes that everything may take")
        for name, least in (("samples", 1), ("shard_images", 1), ("workers", 0), ("calibrate_clips", 8), ("evaluate_clips", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} of at least {least}", str(getattr(self, name)), "give a larger number")
        for name, least in (("frames", 1), ("size", 8), ("clips", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} of at least {least}", str(value), "give a larger number")
        for name in PHASES:
            if not getattr(self, name) >= 0:
                raise InputError(f"a share of the minutes for {name}, 0 or more", str(getattr(self, name)), "0 leaves it out")
        if not any(getattr(self, name) for name in PHASES):
            raise InputError("a share of the minutes above 0", "only zeros", "leave the shares out for the usual ones")


@dataclass(frozen=True)
class Session:
    """What a session leaves.

    Attributes
    ----------
    number : of the session in this run, from 1.
    model : folder of the assembled model.
    images : frames that were rendered so far.
    steps : stage to optimiser steps, in all sessions.
    minutes : that all sessions have taken so far.
    left : minutes that are left of this one, for the evaluation.
    fitted : what the calibration made of the model's settings.
    """

    number: int
    model: Path
    images: int
    steps: dict[str, int]
    minutes: float
    left: float
    fitted: tuple[Fitted, ...] = ()


def _check_alone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        advice = "render with `dataset`, then launch the stages one after the other"
        raise InputError("`train all` in one process", f"WORLD_SIZE={os.environ['WORLD_SIZE']}", advice)


class _Clock:
    """Divides what is left of the minutes among the phases that are still to come."""

    def __init__(self, options: SessionOptions) -> None:
        self.started = time.monotonic()
        self._minutes = options.max_minutes
        self._shares = {name: getattr(options, name) for name in PHASES}
        if not options.evaluate_clips:
            self._shares["evaluate"] = 0.0

    @property
    def left(self) -> float:
        """Minutes; not below 0."""
        return max(0.0, self._minutes - self.spent)

    @property
    def spent(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.started) / 60

    def leave_out(self, phase: str) -> None:
        """Give the minutes of a phase that need not run to the others."""
        self._shares[phase] = 0.0

    def begin(self, phase: str) -> float | None:
        """Minutes for a phase, which counts as over from now on; None when it is to be left out."""
        share, total = self._shares[phase], sum(self._shares.values())
        self._shares[phase] = 0.0
        return self.left * share / total if share else None


def run_session(options: SessionOptions, stages: Mapping[str, TrainOptions], preset: str) -> Session:
    """Render, train and assemble in ``options.max_minutes``, in the run folder of the stages' options.

    Parameters
    ----------
    stages : the options of all stages of `STAGES`, all of one ``out``. Their data comes beside what is rendered; their
        ``max_steps`` is an upper bound (`MANY_STEPS` for none), their ``max_minutes`` is not used.
    preset : name of a preset.

    Every stage is trained for its share of the time, the learning rate falling to zero at its end: the number of steps comes
    from its measured speed. Started again in the same folder, a session renders further clips and takes further steps from the
    last checkpoints, with the learning rate back up; a session that was interrupted loses no more than its last shard and what
    came after its last checkpoint. Neither is a session bit for bit repeatable: speeds decide about numbers of steps.

    Raises InputError as `train` does, and when there is neither data nor time to render some.
    """
    check_name("preset", preset, PRESETS)
    _check_alone()
    out, clock = next(iter(stages.values())).out, _Clock(options)
    record = _Record(out)
    trained = _kept(record, PRESETS[preset])
    for stage in trained:
        clock.leave_out(stage)
    folders = render_data(options, PRESETS[preset], out / "data", clock.begin("render"))
    record.note("render", minutes=clock.spent)
    for stage, told in stages.items():
        if stage in trained:
            continue
        minutes = clock.begin(stage)
        if minutes is not None and record.needs(stage):
            minutes = max(minutes, LEAST_MINUTES)
        if minutes:
            _train_stage(stage, replace(told, data=(*told.data, *folders)), preset, minutes, record)
    model = out / "model"
    assemble(out, model)
    fitted = _calibrate(model, options, stages, PRESETS[preset], clock, record)
    record.finish(clock.spent)
    return Session(record.number, model, count_images(folders), record.steps, record.minutes, clock.left, fitted)


def _kept(record: _Record, preset: Preset) -> list[str]:
    """The foundations that are not trained: those that the run has, and what a frozen autoencoder does without."""
    if preset.frozen_vae:
        return ["vae", "decoder", *(["env"] if not record.needs("env") else [])]
    kept = [stage for stage in FOUNDATIONS if not record.needs(stage)]
    # A small decoder belongs to one autoencoder.
    return kept if "vae" in kept else [stage for stage in kept if stage != "decoder"]


def _calibrate(
    model: Path,
    options: SessionOptions,
    stages: Mapping[str, TrainOptions],
    preset: Preset,
    clock: _Clock,
    record: _Record,
) -> tuple[Fitted, ...]:
    """Render clips for it where there are none yet, and calibrate the renderers of the model; nothing when there is no time."""
    from diffusion_renderer.training.calibration import LEAST_CLIPS, calibrate

    minutes, began = clock.begin("calibrate"), clock.spent
    if not minutes or not any((model / kind / "unet").is_dir() for kind in ("inverse", "forward")):
        return ()
    told = next(iter(stages.values()))
    # Rendering and two renderers take about three seconds a clip on a core.
    clips = min(options.calibrate_clips, max(LEAST_CLIPS, int(20 * minutes)))
    folders = render_held_out(options, preset, told.out / "held-out", clips, minutes / 2)
    if count_images(folders) < LEAST_CLIPS:
        log.warning("there was no time to render the clips that the model is calibrated on: it is left as it is")
        return ()
    fitted = calibrate(model, folders, clips, told.device)
    record.note("calibrate", minutes=clock.spent - began)
    return fitted


def _train_stage(stage: str, options: TrainOptions, preset: str, minutes: float, record: _Record) -> None:
    """Train for so many minutes: first to see how fast it goes, then the steps that there is time for."""
    from diffusion_renderer.training import train

    began, most = time.monotonic(), options.max_steps
    record.begin(stage)
    probe = replace(options, max_steps=MANY_STEPS, max_minutes=PROBE * minutes)
    if most < MANY_STEPS:
        probe = replace(probe, max_steps=most)
    before = record.progress(stage)
    state = train(stage, probe, preset)
    steps, seconds = state.step - before[0], state.seconds - before[1]
    # What the probe needed beside its steps (reading the data, building, exporting) comes again.
    overhead = time.monotonic() - began - seconds
    left = 60 * minutes - (time.monotonic() - began) - overhead
    if left > 0 and state.step < most:
        further = max(1, int(left * steps / max(seconds, 1e-6)))
        target = min(most, state.step + further)
        log.info("%s: %.2f steps per second, %d steps to come", stage, steps / max(seconds, 1e-6), target - state.step)
        state = train(stage, replace(options, max_steps=target, max_minutes=left / 60), preset)
    record.end(stage, state.step, state.seconds, (time.monotonic() - began) / 60)


class _Record:
    """``session.json`` of a run: what was done in which session, and which stage was begun and not ended."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._path = out / RECORD
        self._content: dict[str, Any] = {"sessions": [], "unfinished": []}
        if self._path.exists():
            try:
                self._content |= json.loads(self._path.read_text(encoding="utf-8"))
            except (ValueError, TypeError) as error:
                advice = "delete it: the stages go on, what the sessions before did is forgotten"
                raise InputError(f"a record of sessions in {self._path}", str(error), advice) from error
        self._content["sessions"].append({"phases": {}, "steps": {}, "minutes": 0.0})

    @property
    def number(self) -> int:
        """Of this session, from 1."""
        return len(self._content["sessions"])

    @property
    def minutes(self) -> float:
        """Of all sessions."""
        return sum(session["minutes"] for session in self._content["sessions"])

    @property
    def steps(self) -> dict[str, int]:
        """Stage to the steps that it has taken in all."""
        return {stage: step for session in self._content["sessions"] for stage, step in session["steps"].items()}

    def needs(self, stage: str) -> bool:
        """Whether a stage is to be trained: its network is not there, a session was stopped while it trained, or a small
        decoder is of an autoencoder that the run had before."""
        network = self._out / next(folder for folder in PARTS.values() if folder.startswith(f"{stage}/"))
        stale = stage == "decoder" and network.is_dir() and not belongs(network, self._out / PARTS["vae"])
        return not network.is_dir() or stale or stage in self._content["unfinished"]

    def progress(self, stage: str) -> tuple[int, float]:
        """Steps and seconds that a stage has been trained for, by its newest checkpoint."""
        from diffusion_renderer.training.checkpoint import newest, read_state

        found = newest(self._out / stage)
        if found is None:
            return 0, 0.0
        state = read_state(found)
        return state.step, state.seconds

    def begin(self, stage: str) -> None:
        """A stage begins to train."""
        if stage not in self._content["unfinished"]:
            self._content["unfinished"].append(stage)
        self._save()

    def end(self, stage: str, steps: int, seconds: float, minutes: float) -> None:
        """A stage has used its time."""
        self._content["unfinished"].remove(stage)
        self._content["sessions"][-1]["steps"][stage] = steps
        self.note(stage, minutes=minutes, seconds=seconds)

    def note(self, phase: str, **values: float) -> None:
        """Keep numbers about a phase of this session."""
        self._content["sessions"][-1]["phases"][phase] = {name: round(value, 3) for name, value in values.items()}
        self._save()

    def finish(self, minutes: float) -> None:
        """The session is over."""
        self._content["sessions"][-1]["minutes"] = round(minutes, 3)
        self._save()

    def _save(self) -> None:
        with atomic_path(self._path) as part:
            part.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")


def keep_figures(session: Session, task: str, figures: Iterable[tuple[str, str, float]]) -> Path:
    """Add what a model scored, (what, metric, mean) each, to ``learning.csv`` of its run: the curve against data and time.

    One line per number, with the session's frames, minutes of all sessions, and steps of every stage.
    """
    path = session.model.parent / CURVE
    new = not path.exists()
    steps = " ".join(f"{stage}={count}" for stage, count in session.steps.items())
    told = (session.number, round(session.minutes, 2), session.images, steps, task)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(("session", "minutes", "images", "steps", "task", "what", "metric", "mean"))
        writer.writerows((*told, *figure) for figure in figures)
    return path
