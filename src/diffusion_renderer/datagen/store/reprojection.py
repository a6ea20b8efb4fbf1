"""Depth against poses: what one frame shows must be found by the next one, or be hidden from it.

A pixel of frame a is lifted to the world with its depth and the camera of a, moved with its object, and projected into frame b.
There the depth map says the same depth (agreement), a smaller one (something stands in front), or a larger one: frame b looks
through the place where the surface should be, which no scene explains. Wrong depth or wrong poses show as the last kind in at
least one of the directions a to b and b to a.

Depth is read between pixels through its inverse, which is linear on planes. Pixels at an edge of depth, where a pixel's mean
depth belongs to no surface, take no part. This cannot see an error that moves surfaces within themselves, as a rotation does
with a sphere about its own centre, nor errors below the tolerance of `tolerance`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from diffusion_renderer.core.types import Camera

#: Where depth changes by more than this share between neighbours, a pixel is at an edge.
EDGE = 0.1
#: Parts of the depth by which two readings may differ beside the steps of the file and the surface's curvature.
RELATIVE = 1e-3

#: Cosine to the other camera below which a surface counts as turned away; shading normals lean a little beyond the triangle's.
TURNED_AWAY = 0.2


@dataclass(frozen=True)
class Agreement:
    """Pixels of frame ``source`` seen from frame ``target``: numbers that agree, that are hidden, that contradict.

    Only what stands still counts as hidden.
    """

    source: int
    target: int
    agree: int
    hidden: int
    contradict: int

    @property
    def visible(self) -> int:
        """Pixels that both frames see, or should see."""
        return self.agree + self.contradict

    @property
    def share(self) -> float:
        """Part of the visible pixels that agree; 1 without any."""
        return self.agree / self.visible if self.visible else 1.0

    @property
    def hidden_share(self) -> float:
        """Part of all compared pixels that something hides."""
        total = self.visible + self.hidden
        return self.hidden / total if total else 0.0


@dataclass(frozen=True)
class DepthMap:
    """A frame's depth and what is needed to compare it; see `steady`, `tolerance`, `nothing`.

    ``depth`` is in scene units, +inf without a surface.
    """

    depth: Float[Tensor, "height width"]
    steady: Bool[Tensor, "height width"]
    tolerance: Float[Tensor, "height width"]
    nothing: Bool[Tensor, "height width"]

    @classmethod
    def of(cls, depth: Float[Tensor, "height width"]) -> DepthMap:
        """Look at each pixel's 3 x 3 neighbours."""
        return cls(depth, steady(depth), tolerance(depth), nothing(depth))


def compare_frames(
    maps: Sequence[DepthMap],
    camera: Camera,
    source: int,
    target: int,
    step: float = 0.0,
    ids: UInt8[Tensor, "frames 1 height width"] | None = None,
    motions: dict[int, Float[Tensor, "frames 4 4"]] | None = None,
    normals: Float[Tensor, "frames 3 height width"] | None = None,
) -> Agreement:
    """Project frame ``source`` into frame ``target`` and count.

    Parameters
    ----------
    maps : one per frame.
    step : the smallest difference that the file can hold, scene units.
    ids, motions : which object each pixel shows and, for those that move, the rigid motion of each frame from the rest pose.
    normals : in camera space; surfaces that have turned away from the other camera then take no part, so that a quick turn
        does not look as if something stood before everything.
    """
    here, there = maps[source], maps[target]
    chosen, (height, width) = here.steady, there.depth.shape
    points = lift(here.depth.double(), camera, source)[chosen]
    moved = torch.zeros(len(points), dtype=torch.bool)
    facing = None
    if normals is not None:
        facing = normals[source].double().permute(1, 2, 0)[chosen] @ camera.pose[source, :3, :3].double().T
    for number, poses in (motions or {}).items():
        if ids is not None:
            mine = ids[source, 0][chosen] == number
            motion = poses[target].double() @ torch.linalg.inv(poses[source].double())
            points[mine] = points[mine] @ motion[:3, :3].T + motion[:3, 3]
            moved |= mine
            if facing is not None:
                facing[mine] = facing[mine] @ motion[:3, :3].T
    if facing is not None:
        towards = torch.nn.functional.normalize(camera.pose[target, :3, 3].double() - points, dim=-1)
        kept = (facing * towards).sum(-1) > TURNED_AWAY
        points, moved, chosen = points[kept], moved[kept], _kept(chosen, kept)
    column, row, expected = project(points, camera, target, (height, width))
    # The pixels between whose centres the point falls must all be there.
    inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1) & (expected > 1e-6)
    column, row, expected = column[inside], row[inside], expected[inside]
    found, reliable = _read_between(there, column, row)
    curved = here.tolerance[chosen][inside] + there.tolerance[row.round().long(), column.round().long()]
    allowed = 2 * step + RELATIVE * expected + curved
    difference = found - expected
    agree = reliable & (difference.abs() <= allowed)
    hidden = reliable & (difference < -allowed) & ~moved[inside]  # a thing that turns may hide most of itself
    contradict = reliable & (difference > allowed)
    return Agreement(source, target, int(agree.sum()), int(hidden.sum()), int(contradict.sum()))


def _kept(chosen: Bool[Tensor, "height width"], kept: Bool[Tensor, "chosen"]) -> Bool[Tensor, "height width"]:
    """``chosen`` without those of its pixels that are not ``kept``."""
    result = chosen.clone()
    result[chosen] = kept
    return result


def steady(depth: Float[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Pixels whose 3 x 3 neighbours all show a surface of about the same depth."""
    known = torch.isfinite(depth) & (depth > 0)
    value = torch.where(known, depth, 1e30)[None, None]
    largest = torch.nn.functional.max_pool2d(value, 3, 1, 1)
    smallest = -torch.nn.functional.max_pool2d(-value, 3, 1, 1)
    return (largest < (1 + 2 * EDGE) * smallest)[0, 0] & known


def tolerance(depth: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """How far depth is from linear within a pixel's surroundings: the largest second difference of 3 x 3 pixels.

    A pixel's depth is a mean over its footprint and is read between pixels; both are exact on a plane, and wrong by about an
    eighth of the second difference elsewhere.
    """
    depth = torch.where(torch.isfinite(depth), depth, 0.0)[None, None]
    padded = torch.nn.functional.pad(depth, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2] - 2 * depth).abs()
    down = (padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1] - 2 * depth).abs()
    return 0.5 * torch.nn.functional.max_pool2d(across + down, 3, 1, 1)[0, 0]


def rays(camera: Camera, frame: int, height: int, width: int) -> Float[Tensor, "height width 3"]:
    """Camera-space directions through the pixels' centres with z = -1: times the depth they are the points seen."""
    focal = _focal(camera, frame, width)
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) / focal
    y = -(torch.arange(height, dtype=torch.float64) + 0.5 - height / 2) / focal
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width), torch.full((height, width), -1.0)), -1)


def lift(depth: Float[Tensor, "height width"], camera: Camera, frame: int) -> Float[Tensor, "height width 3"]:
    """World points of a depth map; without meaning where the depth is infinite."""
    points = rays(camera, frame, *depth.shape) * torch.where(torch.isfinite(depth), depth, 1.0)[..., None]
    pose = camera.pose[frame].double()
    return points @ pose[:3, :3].T + pose[:3, 3]


def project(
    points: Float[Tensor, "points 3"], camera: Camera, frame: int, size: tuple[int, int]
) -> tuple[Float[Tensor, "points"], Float[Tensor, "points"], Float[Tensor, "points"]]:
    """Column, row (whole numbers are pixels' centres) and depth of world points in a frame of ``size`` (height, width)."""
    pose = camera.pose[frame].double()
    local = (points - pose[:3, 3]) @ torch.linalg.inv(pose[:3, :3]).T
    depth = -local[:, 2]
    scale = _focal(camera, frame, size[1]) / depth.clamp_min(1e-9)
    return local[:, 0] * scale + size[1] / 2 - 0.5, -local[:, 1] * scale + size[0] / 2 - 0.5, depth


def _focal(camera: Camera, frame: int, width: int) -> float:
    """Focal length, pixels."""
    return width / (2 * math.tan(math.radians(float(camera.fov_x[frame])) / 2))


def _read_between(
    there: DepthMap, column: Float[Tensor, "points"], row: Float[Tensor, "points"]
) -> tuple[Float[Tensor, "points"], Bool[Tensor, "points"]]:
    """Depth between pixels' centres, and where it can be relied on.

    Also reliable, with infinite depth, is a place all of whose four pixels show no surface: there one looks through.
    """
    height, width = there.depth.shape
    left, top = column.floor().long().clamp(0, max(width - 2, 0)), row.floor().long().clamp(0, max(height - 2, 0))
    right, bottom = (left + 1).clamp_max(width - 1), (top + 1).clamp_max(height - 1)
    across, down = column - left, row - top
    corners = ((top, left), (top, right), (bottom, left), (bottom, right))
    weights = ((1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across)
    inverse = sum(w / there.depth[c].double() for w, c in zip(weights, corners, strict=True))  # 0 where depth is infinite
    surface = torch.stack([there.steady[c] for c in corners]).all(0)
    empty = torch.stack([there.nothing[c] for c in corners]).all(0)
    return torch.where(empty, torch.inf, 1 / inverse.clamp_min(1e-30)), surface | empty


def nothing(depth: Float[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Pixels that, with their neighbours, show no surface."""
    known = torch.isfinite(depth).float()[None, None]
    return torch.nn.functional.max_pool2d(known, 3, 1, 1)[0, 0] == 0
