"""What a metric is: `Metric`, and `Context`, which holds what some of them need beside the pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError, one_line
from diffusion_renderer.evaluation.motion import Motion

#: How a metric treats what lies outside the mask.
MASK_RULES = {
    "pixels": "only the mask's pixels are looked at; the figure is a mean, a root or a median over them",
    "map": "pixels outside the mask are set to grey 0.5 in both pictures, for windows and filters reach over them; the map of "
    "the error is then averaged over the mask's pixels, so that the size of the background does not change the figure",
    "box": "pixels outside the mask are set to grey 0.5 in both pictures, which are then cut to the box around the mask: "
    "the metric has one number for a picture, and a large background without error would improve it",
}
#: What the values of a picture can be. "sRGB": display-referred, [0, 1]. "linear": quantities in [0, 1] such as roughness, or
#: radiance. "vector": three components, of any length but zero. "depth": truth as z-depth in scene units or relative, +inf
#: without a surface; estimate known up to scale and shift.
SPACES = ("sRGB", "linear", "vector", "depth")
#: What stands outside the mask for the rules "map" and "box".
NEUTRAL = 0.5


@dataclass(frozen=True)
class Context:
    """What some metrics need beside estimate, truth and mask.

    Attributes
    ----------
    motion : where each frame's surface points are in the next one; None when unknown.
    fps : frames per second at which the clip is watched.
    """

    motion: Motion | None = None
    fps: float = 24.0


def always() -> None:
    """The reason why a metric without needs is unavailable: there is none."""


@dataclass(frozen=True)
class Metric:
    """A number for an estimate against the truth, both ``frames channels height width``, over the pixels of a mask.

    ``metric(estimate, truth, mask)`` is one number for a whole clip. Pixels whose truth is not finite do not count. A nan or
    inf of the estimate at a pixel that counts makes the figure nan, and so does a mask without a pixel that counts. A metric
    that is `unavailable`, or that lacks motion or pixels, raises InputError. ``better(a, b)`` tells whether a beats b, so that
    nobody else needs to know the direction.

    Attributes
    ----------
    name : the column's title.
    unit : "" for pure numbers.
    compute : the formula, of (estimate, truth, pixels that count, context); see `MASK_RULES` for what it may look at.
    best, worst : the ends of the range; a figure of a bad estimate may have no bound.
    mask_rule : one of `MASK_RULES`.
    spaces : the `SPACES` in which the values may be. The metric cannot tell; values are compared as they are given.
    needs_clip : it compares frames with each other: a clip of one frame has no figure (nan).
    needs_motion : `Context.motion` must be given.
    least_size : the smallest width and height of a picture.
    reason : why the metric cannot be computed on this machine, or None; see `unavailable`.
    """

    name: str
    unit: str
    higher_is_better: bool
    compute: Callable[[Tensor, Tensor, Tensor, Context], float]
    best: float = 0.0
    worst: float = float("inf")
    mask_rule: str = "pixels"
    spaces: tuple[str, ...] = ("sRGB", "linear")
    needs_clip: bool = False
    needs_motion: bool = False
    least_size: int = 1
    reason: Callable[[], str | None] = always

    def __call__(
        self,
        estimate: Float[Tensor, "frames channels height width"],
        truth: Float[Tensor, "frames channels height width"],
        mask: Bool[Tensor, "frames 1 height width"],
        context: Context | None = None,
    ) -> float:
        context = context or Context()
        self._check(truth, context)
        counted = mask & finite(truth)
        if not counted.any() or not finite(estimate)[counted].all():
            return float("nan")
        return float(self.compute(estimate, truth, counted, context))

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is the better value; nan is never better, and nothing is better than nan."""
        return a > b if self.higher_is_better else a < b

    def unavailable(self) -> str | None:
        """Why the metric cannot be computed here, in words for the table's column; None when it can.

        The first call imports the library, later ones cost nothing. Never downloads anything unless the user allowed it (see
        `perceptual.DOWNLOAD`).
        """
        return self.reason()

    def _check(self, truth: Tensor, context: Context) -> None:
        height, width = truth.shape[-2:]
        if min(height, width) < self.least_size:
            least = f"{self.least_size}x{self.least_size}"
            raise InputError(
                f"pictures of at least {least} pixels for {self.name}", f"{width}x{height}", "leave this metric out"
            )
        if self.needs_motion and context.motion is None:
            advice = "give Context(motion=motion_of(sample)), or leave this metric out"
            raise InputError(f"the motion of the surfaces for {self.name}", "none", advice)
        if (why := self.unavailable()) is not None:
            raise InputError(f"what {self.name} needs", why, "install it, or leave this metric out")


def finite(picture: Float[Tensor, "frames channels height width"]) -> Bool[Tensor, "frames 1 height width"]:
    """Pixels all of whose channels are finite."""
    return torch.isfinite(picture).all(dim=1, keepdim=True)


def gathered(
    picture: Float[Tensor, "frames channels height width"], counted: Bool[Tensor, "frames 1 height width"]
) -> Float[Tensor, "pixels channels"]:
    """The values of the pixels that count, in double precision: sums over a clip have millions of terms."""
    return rearrange(picture, "f c h w -> f h w c")[counted[:, 0]].double()


def neutral_outside(
    picture: Float[Tensor, "frames channels height width"], counted: Bool[Tensor, "frames 1 height width"]
) -> Float[Tensor, "frames channels height width"]:
    """The picture with grey where pixels do not count; nothing that stood there is left."""
    return torch.where(counted, picture, NEUTRAL)


def box(counted: Bool[Tensor, "frames 1 height width"], least: int) -> tuple[slice, slice]:
    """(rows, columns) of the smallest box around every frame's pixels that count, at least ``least`` wide and high.

    One box for the whole clip. Smaller than ``least`` only where the picture is.
    """
    seen = counted.any(dim=0)[0]
    return _span(seen.any(dim=1), least), _span(seen.any(dim=0), least)


def _span(seen: Bool[Tensor, "count"], least: int) -> slice:
    places = seen.nonzero()
    first, last = int(places.min()), int(places.max()) + 1
    missing = max(least - (last - first), 0)
    first = max(min(first - missing // 2, len(seen) - least), 0)
    return slice(first, min(max(last, first + least), len(seen)))


@cache
def not_installed(module: str, package: str) -> str | None:
    """Why a library cannot be used, or None. Looks once, and imports what is installed: a torchvision that was built for
    another torch is found, but cannot be imported."""
    if find_spec(module) is None:
        return f"the package {package} is not installed"
    try:
        import_module(module)
    except Exception as error:  # whatever a broken installation raises
        return f"the package {package} cannot be imported ({one_line(f'{type(error).__name__}: {error}')})"
    return None
