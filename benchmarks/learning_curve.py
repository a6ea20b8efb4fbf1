"""The learning curve of a renderer against data and compute: what more clips and what more steps are worth.

    python benchmarks/learning_curve.py inverse --data SHARDS ... --held-out SHARDS --steps 1600 --scores 5 --out learning

Trains `inverse` or `forward` from nothing on 1/16, 1/4 and all of the shards (--shares), as many steps each, with the same seed
and at a constant learning rate, and scores the averaged weights on the way: after --steps, half as many, a quarter, and so on,
--scores times. (A rate that falls to zero would end better, but its way there tells nothing about fewer steps; so these curves
compare with each other and lie below what a run of so many steps that is meant to be used reaches.) The autoencoder and the
environment encoder are those of --foundations. Shares take every 16th, every 4th and every shard, so that each holds the ones
before; real numbers of frames are in the table.

Scores are means over the first frames of up to --clips held-out clips; inverse: PSNR of base colour (sRGB) on surfaces, mean
angle of normals, RMSE of depth, roughness and metallic there, beside the best constants for these very frames; forward: PSNR of
the whole picture, beside the classical picture that the renderer is given. Frames are made in one step from zero, without
guidance by the frames, windows or calibration: the network alone.

Writes OUT/STAGE.json, .md and .svg after every score; started again with the same options it goes on, and a run that was
stopped inside a training loses what came after its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from learning_report import markdown, picture
from learning_scores import Stills, baseline, score

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io.atomic import make_folder, write_bytes
from diffusion_renderer.pipelines import local_folder
from diffusion_renderer.training import TrainOptions, train
from diffusion_renderer.training.data import DataSource, load_mixture
from diffusion_renderer.training.data.loading import find_shards
from diffusion_renderer.training.export import PARTS
from diffusion_renderer.training.presets import PRESETS

#: What a stage stands on, besides its data.
FOUNDATIONS = {"inverse": ("vae",), "forward": ("vae", "env_encoder")}
SAVE_MINUTES = 3.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("stage", choices=tuple(FOUNDATIONS))
    found.add_argument("--preset", default="tiny", help="sizes of the networks")
    found.add_argument("--foundations", default="tiny", help="model whose autoencoder and environment encoder are used")
    found.add_argument("--data", type=Path, nargs="+", required=True, help="folders of shards")
    found.add_argument("--held-out", type=Path, nargs="+", required=True, help="folders of shards that are not trained on")
    found.add_argument("--steps", type=int, default=1600, help="optimiser steps of each training")
    found.add_argument("--scores", type=int, default=5, help="points of each curve")
    found.add_argument("--shares", type=Fraction, nargs="+", default=[Fraction(1, 16), Fraction(1, 4), Fraction(1)])
    found.add_argument("--clips", type=int, default=64, help="held-out clips, evenly spaced")
    found.add_argument("--batch", type=int, default=24, help="images per step")
    found.add_argument("--learning-rate", type=float, help="default: the preset's own")
    found.add_argument("--warmup", type=int, default=100, help="steps to the learning rate")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--max-bad", type=float, default=0.1, help="share of the shards that may be damaged")
    found.add_argument("--cache", type=Path, help="decoded shards of other runs (default: OUT/cache)")
    found.add_argument("--device", help="default: cuda where there is one")
    found.add_argument("--out", type=Path, default=Path("learning"))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Train, score and write what is not there yet."""
    args = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    make_folder(args.out)
    path, record = args.out / f"{args.stage}.json", opened(args)
    stills = Stills.read(args.held_out, args.clips, PRESETS[args.preset].prior if args.stage == "forward" else None)
    for share in sorted(args.shares):
        run, frames = lay_out(args, share), None
        for step in points(args.steps, args.scores):
            if any((row["share"], row["step"]) == (str(share), step) for row in record["rows"]):
                continue
            frames = frames or count_frames(args, run)
            state = train(args.stage, options(args, run, share, step), args.preset)
            began = time.monotonic()
            scores = score(args.stage, PRESETS[args.preset], run, stills, local_folder(args.foundations), args.device)
            if not record["baseline"]:
                record["baseline"] = baseline(args.stage, PRESETS[args.preset], run, stills, args.device)
            seen = {"share": str(share), "shards": len(chosen(args.data, share)), "frames": frames}
            took = {"seconds": round(state.seconds, 1), "scoring_seconds": round(time.monotonic() - began, 1)}
            record["rows"].append({**seen, "step": step, "images": step * args.batch, **took, "scores": scores})
            write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
            write_bytes(path.with_suffix(".md"), (markdown(record) + "\n").encode())
            write_bytes(path.with_suffix(".svg"), picture(record).encode())
    print(markdown(record))


def opened(args: argparse.Namespace) -> dict[str, Any]:
    """The record of an earlier run with the same settings, or a new one. InputError where the settings differ."""
    same = ("stage", "preset", "foundations", "clips", "batch", "learning_rate", "warmup", "seed")
    settings = {name: getattr(args, name) for name in same}
    settings |= {"data": [folder.name for folder in args.data], "held_out": [folder.name for folder in args.held_out]}
    path = args.out / f"{args.stage}.json"
    if not path.exists():
        return {"settings": settings, "baseline": {}, "rows": []}
    record = json.loads(path.read_text(encoding="utf-8"))
    differ = [name for name, value in settings.items() if record["settings"].get(name) != value]
    if differ:
        raise InputError(f"the settings of {path}", f"another {', '.join(differ)}", "use another --out")
    return record


def points(steps: int, scores: int) -> list[int]:
    """Numbers of steps at which a training is scored: ``steps``, half of them, and so on."""
    return sorted({max(1, round(steps / 2**half)) for half in range(scores)})


def chosen(data: list[Path], share: Fraction) -> list[Path]:
    """Every n-th of all shards, n being one over the share; InputError for a share that has no such n."""
    if share.numerator != 1:
        raise InputError("shares of 1, 1/2, 1/3 and so on", str(share), "give such shares")
    return [path for folder in data for path in find_shards(folder)][:: share.denominator]


def lay_out(args: argparse.Namespace, share: Fraction) -> Path:
    """The run folder of a share: links to its shards and to the decoded ones, and copies of what the stage stands on."""
    run = make_folder(args.out / f"{args.stage}-{share.denominator}")
    shards = make_folder(run / "shards")
    for number, path in enumerate(chosen(args.data, share)):
        link = shards / f"{number:05d}-{path.parent.name}-{path.name}"
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    if not (run / "cache").is_symlink():
        (run / "cache").symlink_to(make_folder(args.cache or args.out / "cache").resolve())
    model = local_folder(args.foundations)
    for part in FOUNDATIONS[args.stage]:
        if model is None or not (model / part).is_dir():
            raise InputError(f"a model with {part}", str(args.foundations), "give --foundations MODEL")
        if not (run / PARTS[part]).is_dir():
            shutil.copytree(model / part, run / PARTS[part])
    return run


def options(args: argparse.Namespace, run: Path, share: Fraction, steps: int) -> TrainOptions:
    """Of a training up to so many steps, at a constant rate."""
    return TrainOptions(
        data=(DataSource(run / "shards"),),
        out=run,
        max_steps=steps,
        decay=0.0,
        warmup=args.warmup,
        batch=args.batch,
        learning_rate=args.learning_rate,
        seed=args.seed,
        max_bad=args.max_bad,
        save_minutes=SAVE_MINUTES,
        sheet_steps=0,
        keep=1,
        device=args.device,
    )


def count_frames(args: argparse.Namespace, run: Path) -> int:
    """That the run trains on; decodes shards that no run has decoded yet."""
    return len(load_mixture((DataSource(run / "shards"),), run / "cache", max_bad=args.max_bad))


if __name__ == "__main__":
    main()
