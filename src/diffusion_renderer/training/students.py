"""Students of few steps: where one long step of a student should end, as functions of denoisers that know no network.

A student runs in the sampler of its teacher (`diffusion.sample_euler`) with one, two or four steps. One step goes from a noise
level to a much lower one, so its "denoised" estimate is no posterior mean but the point at which the step has to aim. Every
function here takes noise levels per item, ``items 1 1 ...``, and denoisers ``(x, sigma) -> x0`` of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.diffusion import Denoiser, NoiseSchedule
from diffusion_renderer.diffusion.schedule import RHO
from diffusion_renderer.training.options import Method

METHODS: tuple[str, ...] = get_args(Method)
#: Numbers of steps that a student may have, and the lowest noise level that it visits, in units of the latents' deviation.
#: Karras' levels down to 0.002 would waste a step of so few: nothing is left to do there. The values are chosen, not tuned.
LAST_SIGMA = {1: None, 2: 2.0, 4: 0.5}


@dataclass(frozen=True)
class Student:
    """How a student is trained and run.

    Attributes
    ----------
    method : ``regression``, ``trajectory`` or ``consistency``.
    steps : 1, 2 or 4 calls of the network.

    Raises InputError for another method or number of steps.
    """

    method: str
    steps: int

    def __post_init__(self) -> None:
        check_name("distillation method", self.method, METHODS)
        if self.steps not in LAST_SIGMA:
            raise InputError("a student of 1, 2 or 4 steps", str(self.steps), "choose one of these numbers of steps")

    @property
    def initial_noise(self) -> bool:
        """Whether sampling starts from noise. Regression gives the mean of what is possible, for which zero is enough."""
        return self.method != "regression"

    def scheduler_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The teacher's scheduler file with the levels of this student: Karras' between the same start and `LAST_SIGMA`."""
        last = LAST_SIGMA[self.steps]
        return {**config, "use_karras_sigmas": True} | ({} if last is None else {"sigma_min": last})

    def levels(self, config: Mapping[str, Any]) -> Float[Tensor, " {self.steps}+1"]:
        """The noise levels that the pipelines take for this student, falling, the last one 0."""
        return NoiseSchedule.from_config(self.scheduler_config(config)).sigmas(self.steps)


def per_item(values: Shaped[Tensor, "items"], like: Shaped[Tensor, "items *shape"]) -> Shaped[Tensor, "items *ones"]:
    """One value per item, shaped to multiply ``like``."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def euler_step(
    x: Float[Tensor, "*shape"], x0: Float[Tensor, "*shape"], sigma: Float[Tensor, "*#shape"], end: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """Where a step to ``end`` that aims at ``x0`` lands: ``x0 + (x - x0) end / sigma``, the step of `sample_euler`."""
    return x0 + (x - x0) * (end / sigma)


def aim_at(
    x: Float[Tensor, "*shape"],
    landing: Float[Tensor, "*shape"],
    sigma: Float[Tensor, "*#shape"],
    end: Float[Tensor, "*#shape"],
) -> Float[Tensor, "*shape"]:
    """The inverse of `euler_step`: the x0 at which the step has to aim (Salimans and Ho 2022, algorithm 2).

    Errors of ``landing`` grow by ``1 / (1 - end / sigma)``; ``end`` must lie below ``sigma``.
    """
    ratio = end / sigma
    return (landing - ratio * x) / (1 - ratio)


def fine_levels(levels: Float[Tensor, "coarse"], substeps: int, floor: float = 0.002) -> Float[Tensor, "coarse-1 {substeps}+1"]:
    """The teacher's levels inside each of the student's steps: ``substeps`` steps spaced as by Karras et al. 2022, equation 5.

    The last step, to 0, goes to ``floor`` first, unless ``substeps`` is 1.
    """
    ramp = torch.linspace(0, 1, substeps + 1, dtype=torch.float64)
    rows = []
    for high, low in pairwise(levels.double()):
        if low > 0:
            row = (high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
        else:
            inner = torch.linspace(0, 1, substeps, dtype=torch.float64)
            row = (high ** (1 / RHO) + inner * (min(floor, high) ** (1 / RHO) - high ** (1 / RHO))) ** RHO
            row = torch.cat((row, row.new_zeros(1)))
        row[0], row[-1] = high, low
        rows.append(row)
    return torch.stack(rows).to(levels)


def guided(given: Denoiser, free: Denoiser, guidance: float) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022) as one denoiser of two calls: ``D_free + guidance (D_given - D_free)``.

    A student of it needs one call (Meng et al. 2023, for one fixed strength). 1 or less is no guidance, as in the pipelines.
    """
    if guidance <= 1:
        return given

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        base = free(x, sigma)
        return base + guidance * (given(x, sigma) - base)

    return denoise


def from_zero(denoise: Denoiser, sigma_max: float) -> Denoiser:
    """A denoiser that is shown zeros at the largest level, for teachers trained so (Martin Garcia et al. 2025).

    There noise tells nothing of the sample, hence the posterior mean does not depend on it; such a teacher has never seen any.
    """

    def blind(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x * (sigma < sigma_max * (1 - 1e-6)), sigma)

    return blind


def visited(
    denoise: Denoiser,
    start: Float[Tensor, "items *shape"],
    levels: Float[Tensor, "coarse"],
    index: Int[Tensor, "items"],
) -> Float[Tensor, "items *shape"]:
    """Where the student's own sampler stands when it comes to its step ``index`` (per item, from 0).

    Always ``steps - 1`` calls for all items, whatever ``index`` says: processes that share a network must call it alike.
    """
    x, where = start, per_item(index, start)
    for number, (sigma, end) in enumerate(pairwise(levels[:-1])):
        high, low = (per_item(level.expand(len(x)), x) for level in (sigma, end))
        x = torch.where(where > number, euler_step(x, denoise(x, high), high, low), x)
    return x


def regression_target(clean: Float[Tensor, "items *shape"]) -> Float[Tensor, "items *shape"]:
    """``regression``: every step aims at the ground truth itself, from where the student stands (see `visited`).

    End-to-end fine-tuning (Martin Garcia et al. 2025, "Fine-tuning image-conditional diffusion models is easier than you
    think"), with the error taken on latents. Theirs is one step; with more, the later ones correct what the first ones made,
    which is ours. What comes out is the mean of all that is possible: best in mean squared error, and blurred where the
    conditions leave much open.
    """
    return clean


def trajectory_target(
    teacher: Denoiser, x: Float[Tensor, "items *shape"], levels: Float[Tensor, "levels items"]
) -> Float[Tensor, "items *shape"]:
    """``trajectory``: one step aims so that it lands where the teacher's sampler lands from ``x`` in as many steps as given.

    Progressive distillation (Salimans and Ho 2022, algorithm 2), in one go instead of by halves; with a `guided` teacher, that
    of Meng et al. 2023. ``levels`` fall from each item's level to the end of its step, which may be 0.
    """
    columns, y = [per_item(level, x) for level in levels], x
    for sigma, following in pairwise(columns):
        y = euler_step(y, teacher(y, sigma), sigma, following)
    return aim_at(x, y, columns[0], columns[-1])


def consistency_target(
    teacher: Denoiser,
    target: Denoiser,
    x: Float[Tensor, "items *shape"],
    sigma: Float[Tensor, "items"],
    following: Float[Tensor, "items"],
    end: Float[Tensor, "items"],
) -> Float[Tensor, "items *shape"]:
    """``consistency``: from ``x`` the student has to land where it lands from one small step of the teacher farther on.

    Consistency distillation (Song et al. 2023, algorithm 2), ``target`` being the student's slow copy; for steps that do not
    end at 0, the multistep form of Heek et al. 2024: every one of the student's steps is a consistency model of its own, which
    lands at ``end``. Where ``following`` is ``end`` the teacher has landed itself.
    """
    high, low, last = (per_item(level, x) for level in (sigma, following, end))
    y = euler_step(x, teacher(x, high), high, low)
    # A level of 0 would have no noise level to tell the network; what is computed for it is thrown away.
    safe = torch.where(low > last, low, high)
    landing = torch.where(low > last, euler_step(y, target(y, safe), safe, last), y)
    return aim_at(x, landing, high, last)


def draw_levels(
    fine: Float[Tensor, "segments levels"], generators: list[torch.Generator]
) -> tuple[Int[Tensor, "items"], Int[Tensor, "items"]]:
    """For every item one of the student's steps and one of the teacher's steps inside it, both uniform."""
    segments, levels = fine.shape
    drawn = [(torch.randint(segments, (), generator=g), torch.randint(levels - 1, (), generator=g)) for g in generators]
    return torch.stack([first for first, _ in drawn]), torch.stack([second for _, second in drawn])
