"""`train`: the stages of the tiny preset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from diffusion_renderer.cli import values
from diffusion_renderer.cli.dataset import Minutes
from diffusion_renderer.core.errors import InputError

Folders = Annotated[tuple[Annotated[tuple[Path, ...], values.several("DIR ...", Path, "--data")], ...], UseAppendAction]
Rate = Annotated[float | None, *values.one("X", values.number_at_least("--learning-rate", 0.0, "a rate"), "the stage's own")]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one stage: vae first, then env, inverse and forward; forward needs vae and env, the others vae.

    Run again with the same -o to continue. Checkpoints, a CSV log, sample sheets and the exported network go to OUT/<stage>;
    `weights assemble` makes a model folder of them.
    """

    stage: Annotated[Positional[str], arg(metavar="vae|env|inverse|forward")]
    """What to train."""
    data: Folders
    """Folders of shards written by `dataset`."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")] = Path("runs/tiny")
    """Run folder, shared by the stages."""
    preset: Annotated[str, *values.one("NAME", str, "tiny")] = "tiny"
    """Sizes of the networks."""
    max_steps: Annotated[int, *values.one("N", values.count_at_least("--max-steps", 1), "4000")] = 4000
    """Optimiser steps in all, over every run of the stage."""
    max_minutes: Minutes = None
    """Stop this run after this many minutes."""
    batch: Annotated[int, *values.one("N", values.count_at_least("--batch", 1), "24")] = 24
    """Images per step."""
    learning_rate: Rate = None
    """Peak learning rate."""
    seed: values.Seed = 0
    """Seed of data order, noise and initial weights."""
    save_minutes: Annotated[float, *values.one("MIN", values.number_at_least("--save-minutes", 0.0, "minutes"), "4")] = 4.0
    """Minutes between checkpoints."""
    sheet_steps: Annotated[int, *values.one("N", values.count_at_least("--sheet-steps", 0), "1000")] = 1000
    """Steps between sample sheets; 0 for none."""
    precision: Annotated[str, *values.one("bf16|fp32", values.choice("--precision", ("bf16", "fp32")), "bf16")] = "bf16"
    """Of the networks' forward pass; weights are float32."""
    start_from: Annotated[str | None, *values.one("NAME|PATH", str, "nothing")] = None
    """A model whose networks a new run goes on from, such as tiny."""
    light: Annotated[
        str, *values.one("encoder|concat", values.choice("--light", ("encoder", "concat")), "encoder: cross-attention")
    ] = "encoder"
    """How forward is told the light; concat, its latents beside the G-buffers', is an ablation and needs no env."""
    device: Annotated[str | None, *values.one("DEVICE", str, "cuda if there is one, else cpu")] = None
    """Where to train: cpu, cuda, cuda:1."""
    debug: values.Flag = False
    """Show tracebacks."""

    def run(self) -> None:
        """Train until a limit is reached."""
        from diffusion_renderer.cli.progress import Progress
        from diffusion_renderer.cli.record import make_output_folder
        from diffusion_renderer.training import TrainOptions, train

        if not self.data:
            raise InputError("at least one folder of shards", "none", "for example --data shards (made by `dataset`)")
        options = TrainOptions(
            data=values.flatten(self.data),
            out=make_output_folder(self.out),
            max_steps=self.max_steps,
            max_minutes=self.max_minutes,
            batch=self.batch,
            learning_rate=self.learning_rate,
            seed=self.seed,
            save_minutes=self.save_minutes,
            sheet_steps=self.sheet_steps,
            precision=self.precision,  # type: ignore[arg-type]
            device=self.device,
            start_from=self._start_folder(),
            light=self.light,  # type: ignore[arg-type]
        )
        with Progress() as progress:
            train(self.stage, options, self.preset)
            progress.made(self.out / self.stage)

    def _start_folder(self) -> Path | None:
        """Where the networks to start from lie."""
        if self.start_from is None:
            return None
        from diffusion_renderer.pipelines import locate_model

        return locate_model(self.start_from, "inverse").parent
