"""What `train` does: one stage, all of them, or the making of clips with estimated buffers.

Options that the command line gives count more than those of a configuration file.
"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_renderer.cli import values
from diffusion_renderer.cli.progress import Progress
from diffusion_renderer.cli.record import make_output_folder
from diffusion_renderer.core.errors import InputError, one_line
from diffusion_renderer.core.names import check_name

if TYPE_CHECKING:
    from diffusion_renderer.cli.train import Train
    from diffusion_renderer.training import TrainOptions
    from diffusion_renderer.training.config import Config
    from diffusion_renderer.training.session import Session, SessionOptions

#: What `all` scores its model at.
TASKS = ("inverse", "forward")


def one_stage(command: Train) -> None:
    """Train a stage, or say what it would need."""
    from diffusion_renderer.training import describe, stage_folder, train
    from diffusion_renderer.training.loop import leave_processes

    config = _config(command)
    preset, options = stage_options(command, config, command.stage)
    if command.dry_run:
        print(describe(command.stage, options, preset))
        return
    if not options.data:
        raise InputError("at least one folder of shards", "none", "for example --data shards (made by `dataset`)")
    make_output_folder(options.out)
    with Progress() as progress:
        train(command.stage, options, preset)
        if os.environ.get("RANK", "0") == "0":  # of several processes, one names what they made
            progress.made(stage_folder(command.stage, options))
    leave_processes()


def everything(command: Train) -> None:
    """Render, train, assemble, calibrate and evaluate within the minutes."""
    from diffusion_renderer.training.calibration import table
    from diffusion_renderer.training.session import MANY_STEPS, STAGES, run_session

    config = _config(command)
    stages: dict[str, TrainOptions] = {}
    for stage in STAGES:
        preset, stages[stage] = stage_options(command, config, stage, max_steps=MANY_STEPS)
    session = session_options(command, config)
    make_output_folder(stages[STAGES[0]].out)
    with Progress() as progress:
        done = run_session(session, stages, preset)
        steps = ", ".join(f"{stage} {count}" for stage, count in done.steps.items())
        progress.say(f"session {done.number}: {done.images} frames rendered; steps: {steps or 'none'}")
        if done.fitted:
            print(table(done.fitted) + "\n", flush=True)
        progress.made(done.model)
        if session.evaluate_clips and session.evaluate:
            _evaluate(done, session, progress)


def autolabel(command: Train) -> None:
    """Make shards of videos."""
    from diffusion_renderer.training.autolabel import AutolabelOptions, autolabel

    told = _shard_options(command, AutolabelOptions, "autolabel", "--data with videos or folders of videos", "clips/")
    with Progress() as progress:
        found = autolabel(AutolabelOptions(**told))
        progress.say(f"{found['clips']} clips of {found['videos']} videos, {found['reused']} of them from an earlier run")
        for name, why in found["skipped"].items():
            progress.say(f"skipped {name}: {one_line(why)}")
        progress.made(told["out"])


def estimate(command: Train) -> None:
    """Make shards whose buffers are estimates, of rendered ones."""
    from diffusion_renderer.training.estimate import EstimateOptions, estimate

    told = _shard_options(command, EstimateOptions, "estimate", "--data with folders of shards", "shards/lit")
    with Progress() as progress:
        found = estimate(EstimateOptions(**told))
        left = f", {found['passed']} left out (real, or under one light)" if found["passed"] else ""
        progress.say(f"{found['clips']} clips with estimated buffers{left}")
        for name, why in found["skipped"].items():
            progress.say(f"skipped {name}: {one_line(why)}")
        progress.made(told["out"])


def _shard_options(command: Train, options: type, table: str, wanted: str, example: str) -> dict[str, Any]:
    """What the configuration file and the command line say of a command that makes shards. InputError without in- or output."""
    told = _config(command).table(table) | _given(command, options)
    for name, option, such in (("data", wanted, example), ("out", "-o OUT", "shards")):
        if not told.get(name):
            raise InputError(option, "none", f"for example {option.split()[0]} {such}")
    return told | {"data": tuple(Path(entry) for entry in told["data"])}


def stage_options(command: Train, config: Config, stage: str, **defaults: Any) -> tuple[str, TrainOptions]:
    """The preset and the options of a stage: those given, else the file's, else ``defaults``, else the usual ones."""
    from diffusion_renderer.training import TrainOptions
    from diffusion_renderer.training.presets import PRESETS

    chosen = defaults | config.options(stage)
    preset = command.preset or chosen.pop("preset", "tiny")
    chosen.pop("preset", None)
    check_name("preset", preset, PRESETS)
    return preset, TrainOptions(**{"out": Path("runs") / preset} | chosen | _given(command, TrainOptions))


def session_options(command: Train, config: Config) -> SessionOptions:
    """The options of `all`, in the same order of precedence."""
    from diffusion_renderer.training.session import SessionOptions

    shares = dict(values.flatten(command.share))
    shared = {name: value for name, value in config.shared.items() if name == "max_minutes" and value is not None}
    return SessionOptions(**shared | config.table("all") | _given(command, SessionOptions) | shares)


def given(value: object) -> bool:
    """Whether an option has a value from the command line; 0 is one."""
    return not (value is None or value is False or value == ())


def _config(command: Train) -> Config:
    from diffusion_renderer.training.config import Config, read_config

    return Config() if command.config is None else read_config(command.config)


def _given(command: Train, kind: type) -> dict[str, Any]:
    """The options of the class ``kind`` that the command line gives."""
    found = {}
    for name in (item.name for item in fields(kind)):
        value = getattr(command, name, None)
        if isinstance(value, tuple):
            value = values.flatten(value)
        if given(value):
            found[name] = value
    if command.no_augment and any(item.name == "augment" for item in fields(kind)):
        found["augment"] = False
    return found


def _evaluate(done: Session, session: SessionOptions, progress: Progress) -> None:
    """Score the model, print the tables, and add its means to the learning curve."""
    from diffusion_renderer.datagen.assets import asset_folders
    from diffusion_renderer.evaluation import EvaluateOptions, evaluate
    from diffusion_renderer.evaluation.report import print_table, report_name
    from diffusion_renderer.evaluation.statistics import ClipValues
    from diffusion_renderer.training.session import keep_figures

    folders = asset_folders(session.assets[0]) if session.assets else {}
    out = done.model.parent / "evaluation"
    options = EvaluateOptions(
        models=(str(done.model),),
        out=out,
        clips=session.evaluate_clips,
        size=session.size,
        models_folder=folders.get("models"),
        materials=folders.get("materials"),
        panoramas=folders.get("panoramas"),
    )
    for task in TASKS:
        if not (done.model / task).is_dir():
            continue
        for results in evaluate(task, options, progress):
            print(print_table(results) + "\n", flush=True)
            progress.made(out / f"{report_name(results)}.html")
            ours, means = results.systems[0], ClipValues(results.figures)
            columns = [(what, metric.name) for what, metric in results.metrics if metric.name not in results.unavailable]
            figures = [(*column, means.summary(ours, *column).mean) for column in columns]
            progress.made(keep_figures(done, task, figures))
