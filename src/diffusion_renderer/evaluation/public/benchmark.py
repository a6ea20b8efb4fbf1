"""What a published benchmark is: `Benchmark`, its `Case`s, and the `Pair`s of estimate and truth that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import Clip, GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.evaluation.metrics import Metric

#: What the systems of each task make.
Estimate = Clip | GBuffer


@dataclass(frozen=True)
class Case:
    """One picture of a benchmark.

    Attributes
    ----------
    sample : what a system is given, and the truth as far as a `Sample` can hold it.
    extra : further truth, ``frames channels height width``: "hdr" (linear radiance as photographed), "shading", ...
    """

    sample: Sample
    extra: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """An estimate and the truth in the values that the benchmark's metrics of one ``what`` take."""

    estimate: Float[Tensor, "frames channels height width"]
    truth: Float[Tensor, "frames channels height width"]
    mask: Bool[Tensor, "frames 1 height width"]


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark with its own protocol.

    Attributes
    ----------
    name : of the data set, as in `datagen.readers.READERS`.
    source : the paper, and where in it or in its code the protocol stands.
    rules : colour space, scale and mask, in words for the reader of the table.
    limits : what of the published protocol is not reproduced, or is uncertain.
    columns : of each task's table, as (what, metric), in order.
    read : the cases of a folder.
    compare : the pairs by ``what``, of (task, case, estimate, light); what the estimate lacks is left out. ``light`` counts
        the sample's lights: 0 is that of its clip, i is ``relit[i - 1]``.
    """

    name: str
    source: str
    rules: str
    limits: tuple[str, ...]
    columns: dict[str, tuple[tuple[str, Metric], ...]]
    read: Callable[[Path], Iterator[Case]]
    compare: Callable[[str, Case, Estimate, int], dict[str, Pair]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be evaluated on it."""
        return tuple(self.columns)

    def cases(self, folder: str | Path) -> Iterator[Case]:
        """The benchmark's pictures, one at a time. Raises InputError at once for a folder that is not the data set's."""
        return self.read(Path(folder))

    def samples(self, folder: str | Path) -> Iterator[Sample]:
        """What the systems are given, one at a time; see `cases`."""
        return (case.sample for case in self.cases(folder))

    def lights(self, task: str, case: Case) -> tuple[int, ...]:
        """The lights under which a system must show a case: those of ``relit`` where there are any, else the clip's own."""
        check_name(f"task of {self.name}", task, self.tasks)
        return tuple(range(1, 1 + len(case.sample.relit))) if task == "relight" and case.sample.relit else (0,)

    def score(self, task: str, case: Case, estimate: Estimate, light: int = 0) -> dict[tuple[str, str], float]:
        """The figures of one case by (what, metric's name); nan for what the estimate lacks, and where it is not finite.

        Columns whose metric is unavailable on this machine are left out; `Metric.unavailable` says why. Raises InputError for
        a task that the benchmark does not have and for an estimate of another size than the case.
        """
        check_name(f"task of {self.name}", task, self.tasks)
        _check_size(case, estimate)
        pairs = self.compare(task, case, estimate, light)
        figures = {}
        for what, metric in self.columns[task]:
            if metric.unavailable() is None:
                pair = pairs.get(what)
                value = float("nan") if pair is None else metric(pair.estimate, pair.truth, pair.mask)
                figures[what, metric.name] = value
        return figures


def _check_size(case: Case, estimate: Estimate) -> None:
    found, wanted = (len(estimate), *estimate.size), (len(case.sample.clip), *case.sample.clip.size)
    if found != wanted:
        name = case.sample.clip.name
        raise InputError(
            f"{wanted[0]} frames of {wanted[1]}x{wanted[2]} for {name}", f"{found[0]} of {found[1]}x{found[2]}", "write it so"
        )


def pooled(images: Float[Tensor, "frames channels _h _w"], width: int) -> Float[Tensor, "frames channels _height _width"]:
    """Images averaged over blocks of pixels, the largest that leave at least ``width`` columns; smaller ones as they are."""
    factor = max(1, images.shape[-1] // width)
    return images if factor == 1 else torch.nn.functional.avg_pool2d(images, factor)


def albedo(gbuffer: GBuffer) -> Float[Tensor, "frames 3 height width"] | None:
    """What an estimate says of the diffuse reflectance, linear: its diffuse albedo where it has one, else its base colour."""
    return gbuffer.diffuse_albedo if gbuffer.diffuse_albedo is not None else gbuffer.basecolor
