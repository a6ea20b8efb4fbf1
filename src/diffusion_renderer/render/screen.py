"""Rays marched through a depth buffer: which pixel a ray from a visible surface meets.

The idea of stepping along the projected ray, perspective-correct because 1/z is linear on the screen, is that of McGuire and
Mara 2014, "Efficient GPU Screen-Space Ray Tracing". What the screen does not show is unknown: the far side of things is guessed
to be a fixed share of their depth behind the near side, and a ray that leaves the picture meets nothing. Where that guess is
too thin, light leaks under an outline: single pixels of a floor just below a ball are too bright.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32, Int64
from torch import Tensor

#: Rays start this far from the surface along its normal, in pixels' footprints, so that they do not meet the pixel they leave.
START_OFFSET = 0.25
#: Distance of the first step from the start, in pixels.
FIRST_STEP = 0.5
#: A jump of 1/z between neighbours above this share is an outline, not a slope.
OUTLINE = 0.2
#: After this many steps, rays that have ended are dropped.
COMPACT_EVERY = 4


@dataclass(frozen=True)
class Screen:
    """The depth buffer of one frame as rays are compared with it.

    Attributes
    ----------
    inverse : 1/z near each pixel as a plane over the picture: ``a + b column + c row``, three rows of numbers (0: background).
        Planes, so that a floor seen at a grazing angle is not a staircase that shades itself.
    focal : pixels.
    near, far : smallest and largest z-depth of a surface.
    """

    inverse: Float[Tensor, "3 pixels"]
    width: int
    height: int
    focal: float
    near: float
    far: float

    @classmethod
    def build(cls, depth: Float[Tensor, "height width"], focal: float) -> Screen:
        """Of metric z-depth, +inf in the background."""
        height, width = depth.shape
        finite = torch.isfinite(depth)
        inverse = torch.where(finite, 1 / torch.where(finite, depth, 1.0), 0.0)
        right, down = (_slope(inverse, axis) for axis in (1, 0))
        row, column = (torch.arange(count, device=depth.device) + 0.5 for count in (height, width))
        start = inverse - right * column - down * row[:, None]
        near, far = (float(inverse.max()), float(inverse[finite].min())) if bool(finite.any()) else (1.0, 1.0)
        return cls(torch.stack((start, right, down)).reshape(3, -1), width, height, focal, 1 / near, 1 / far)


@dataclass(frozen=True)
class _Rays:
    """Rays on the screen, each a line in (column, row, 1/z): at distance s pixels it is at ``start + s * step``."""

    x: Float[Tensor, " rays"]
    y: Float[Tensor, " rays"]
    w: Float[Tensor, " rays"]
    x_step: Float[Tensor, " rays"]
    y_step: Float[Tensor, " rays"]
    w_step: Float[Tensor, " rays"]
    length: Float[Tensor, " rays"]

    def __getitem__(self, index: Tensor) -> _Rays:
        return _Rays(*(getattr(self, field.name).index_select(0, index) for field in fields(self)))


@torch.no_grad()
def march(
    screen: Screen,
    position: Float[Tensor, "rays 3"],
    normal: Float[Tensor, "rays 3"],
    direction: Float[Tensor, "rays 3"],
    jitter: Float[Tensor, " rays"],
    *,
    steps: int,
    thickness: float,
    refinements: int = 4,
) -> Int64[Tensor, " rays"]:
    """Index (row-major) of the pixel whose surface each ray meets first; -1 for none.

    Parameters
    ----------
    position, normal : surface points seen by the camera, camera space.
    jitter : in [0, 1); shifts the steps, which turns bands into noise.
    steps : at most so many per ray. The first are a pixel long; they grow so that the last reaches the picture's edge.
    thickness : how far behind the visible surface things are taken to be solid, as a share of its depth.
    refinements : halvings of the step in which a ray went behind a surface.
    """
    hit = torch.full((len(position),), -1, dtype=torch.int64, device=position.device)
    rays = _project(screen, position, normal, direction)
    alive = torch.arange(len(hit), device=hit.device)
    growth = (rays.length - steps).clamp_min(0.0) / steps**2
    before, behind = torch.zeros_like(jitter), torch.zeros_like(jitter, dtype=torch.bool)
    for number in range(steps):
        place = number + jitter
        here = FIRST_STEP + place + growth * place * place
        w, surface, pixel = _compare(screen, rays, torch.minimum(here, rays.length))
        inside = here < rays.length
        now = inside & (w < surface)
        solid = now & (w * (1 + thickness) > surface)
        crossing = now & ~behind
        meets = numbers(solid | crossing)
        if len(meets):
            found, met = _settle(screen, rays, meets, before, here, crossing, solid, pixel, thickness, refinements)
            hit[alive[meets[met]]] = found[met].long()
            inside[meets[met]] = False
        behind, before = now, here
        if number % COMPACT_EVERY == COMPACT_EVERY - 1:
            keep = numbers(inside)
            if len(keep) == 0:
                break
            if len(keep) < 0.8 * len(inside):
                state = (alive, growth, jitter, before, behind)
                rays, (alive, growth, jitter, before, behind) = rays[keep], (each.index_select(0, keep) for each in state)
            else:
                rays = _ended(rays, inside)
        else:
            rays = _ended(rays, inside)
    return hit


def _ended(rays: _Rays, going: Bool[Tensor, " rays"]) -> _Rays:
    """The rays, with those that are not ``going`` any more cut to no length."""
    return replace(rays, length=torch.where(going, rays.length, rays.length.new_zeros(())))


def numbers(mask: Bool[Tensor, " rays"]) -> Int[Tensor, " some"]:
    """Where a mask is True. In 32 bits, which is faster to look up with; on a CPU by NumPy, five times as fast as torch."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()).astype(np.int32))
    return mask.nonzero()[:, 0].int()


def _slope(inverse: Float[Tensor, "height width"], axis: int) -> Float[Tensor, "height width"]:
    """Change per pixel along an axis: the smaller of the differences to the two neighbours, so that outlines do not count."""
    difference = inverse.diff(dim=axis)
    # Nothing is known beyond the picture's edge: an infinite difference is never the smaller one.
    edge = torch.full_like(inverse.narrow(axis, 0, 1), torch.inf)
    before, after = torch.cat((edge, difference), dim=axis), torch.cat((difference, edge), dim=axis)
    smaller = torch.where(before.abs() < after.abs(), before, after)
    return torch.where(smaller.abs() < OUTLINE * inverse, smaller, 0.0)


def _project(screen: Screen, position: Tensor, normal: Tensor, direction: Tensor) -> _Rays:
    """Rays from their start to where they leave the view, or the range of depths in which there is anything to meet."""
    start = position + normal * (START_OFFSET / screen.focal) * -position[:, 2:]
    (px, py, pz), (dx, dy, dz) = start.unbind(-1), direction.unbind(-1)
    reach = torch.full_like(px, torch.inf)
    half_x, half_y = screen.width / (2 * screen.focal), screen.height / (2 * screen.focal)
    # Distance to each plane that bounds the view: value at the start and change along the ray, positive inside.
    for value, change in (
        (-half_x * pz - px, -half_x * dz - dx),
        (-half_x * pz + px, -half_x * dz + dx),
        (-half_y * pz - py, -half_y * dz - dy),
        (-half_y * pz + py, -half_y * dz + dy),
        (-pz - 0.5 * screen.near, -dz),
        (pz + 2 * screen.far, dz),
    ):
        leaves = change < 0
        distance = value.clamp_min(0.0) / torch.where(leaves, -change, 1.0)
        reach = torch.where(leaves, torch.minimum(reach, distance), reach)
    end = start + reach[:, None] * direction
    (x0, y0, w0), (x1, y1, w1) = _on_screen(screen, start), _on_screen(screen, end)
    x_way, y_way, w_way = x1 - x0, y1 - y0, w1 - w0
    length = torch.maximum(x_way.abs(), y_way.abs())
    scale = 1 / length.clamp_min(1e-6)
    return _Rays(x0, y0, w0, x_way * scale, y_way * scale, w_way * scale, length)


def _on_screen(screen: Screen, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Column and row (pixel centres at .5) and 1/z of camera-space points."""
    w = 1 / (-point[:, 2]).clamp_min(1e-9)
    scale = screen.focal * w
    return point[:, 0] * scale + 0.5 * screen.width, 0.5 * screen.height - point[:, 1] * scale, w


def _compare(screen: Screen, rays: _Rays, distance: Tensor) -> tuple[Tensor, Tensor, Int32[Tensor, " rays"]]:
    """1/z of the rays at a distance, 1/z of the surface there, and its pixel. Smaller is further.

    Numbers of pixels are exact in float32 up to 2^24 of them, a picture of 4096 x 4096.
    """
    x = torch.addcmul(rays.x, distance, rays.x_step)
    y = torch.addcmul(rays.y, distance, rays.y_step)
    w = torch.addcmul(rays.w, distance, rays.w_step)
    column, row = x.floor().clamp_(0, screen.width - 1), y.floor().clamp_(0, screen.height - 1)
    pixel = column.add_(row, alpha=screen.width).int()
    start, right, down = (plane.index_select(0, pixel) for plane in screen.inverse)
    return w, start.addcmul_(right, x).addcmul_(down, y), pixel


def _settle(
    screen: Screen,
    rays: _Rays,
    meets: Int[Tensor, " some"],
    before: Tensor,
    here: Tensor,
    crossing: Tensor,
    solid: Tensor,
    pixel: Tensor,
    thickness: float,
    refinements: int,
) -> tuple[Int32[Tensor, " some"], Bool[Tensor, " some"]]:
    """Pixels that the rays ``meets`` meet in the step from ``before`` to ``here``, and whether they do.

    A ray that went from before a surface to behind it meets it where it crosses; when it is then still far behind, it went past
    an outline. A ray that was behind already meets what it has come near to.
    """
    rays, low, high = rays[meets], before[meets], here[meets]
    crossing, found, met = crossing[meets], pixel[meets], solid[meets]
    for _ in range(refinements):
        middle = 0.5 * (low + high)
        w, surface, _ = _compare(screen, rays, middle)
        behind = w < surface
        low, high = torch.where(behind, low, middle), torch.where(behind, middle, high)
    w, surface, pixel = _compare(screen, rays, high)
    found = torch.where(crossing, pixel, found)
    return found, torch.where(crossing, w * (1 + thickness) > surface, met)
