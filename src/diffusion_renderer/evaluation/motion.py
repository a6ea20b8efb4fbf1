"""Where the surface that a pixel shows is in the next frame, from the ground truth's depth, cameras and objects' poses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.store.clip_checks import objects
from diffusion_renderer.datagen.store.reprojection import RELATIVE, DepthMap, lift, project

#: Where depth departs from a plane by more than this part of itself within a pixel's surroundings, the pixel is at an edge too:
#: one between surfaces that are close behind each other.
BENT = 0.02
#: Bilinear weights sum to 1 within this.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Motion:
    """For each pair of neighbouring frames, where the first one's pixels are in the second.

    Attributes
    ----------
    target : (column, row) in the second frame; whole numbers are pixels' centres. Without meaning where not valid.
    valid : the pixel shows a surface that the second frame shows too; False for the background, for points that something
        hides or that leave the picture, and at edges of depth, where a pixel shows more than one surface.
    """

    target: Float[Tensor, "pairs height width 2"]
    valid: Bool[Tensor, "pairs height width"]

    @classmethod
    def still(cls, frames: int, height: int, width: int) -> Motion:
        """Nothing moves, and everything is seen."""
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        target = torch.stack((columns, rows), dim=-1).float().expand(frames - 1, height, width, 2)
        return cls(target, torch.ones(frames - 1, height, width, dtype=torch.bool))

    def read(self, pair: int, image: Float[Tensor, "channels height width"]) -> Float[Tensor, "channels height width"]:
        """The second frame of a pair, read bilinearly where the first one's pixels went."""
        return _read(image, self.target[pair].to(image))


def motion_of(sample: Sample) -> Motion:
    """The motion of a clip's surfaces, on the device of its depth.

    A point is found again when the second frame's depth there agrees with its own, as exactly as `reprojection` asks, and when
    all four pixels around it show the same object (where ``sample.ids`` are known). The background has no surface; a panorama's
    motion is not followed. Cannot know of deforming objects, nor of moving ones whose poses are not in ``sample.meta``: these
    would be taken for standing still, and mostly be found not to agree.

    Raises InputError when depth or cameras are missing, or when objects move and the clip does not tell their pixels.
    """
    depth, poses = _depth(sample), _poses(sample)
    frames, _, height, width = depth.shape
    # Files hold depth in 65,536 steps between the nearest and the farthest; EXR and fresh renderings are finer.
    span = sample.gbuffer.depth_range()
    step = 0.0 if span is None or sample.meta.get("format") == "exr" else (span[1] - span[0]) / 65535
    maps = [DepthMap.of(rearrange(values, "1 h w -> h w")) for values in depth.cpu()]
    target, valid = torch.zeros(frames - 1, height, width, 2), torch.zeros(frames - 1, height, width, dtype=torch.bool)
    for first in range(frames - 1):
        target[first], valid[first] = _pair(sample, maps, poses, first, step)
    return Motion(target.to(depth.device), valid.to(depth.device))


def _depth(sample: Sample) -> Float[Tensor, "frames 1 height width"]:
    depth, camera, name = sample.gbuffer.depth, sample.camera, sample.gbuffer.name
    if depth is None or camera is None:
        missing = "depth" if depth is None else "cameras"
        raise InputError("a clip with depth and cameras, from which motion follows", f"no {missing} in {name}", "leave it out")
    if len(camera) != len(depth):
        found = f"{len(camera)} poses and {len(depth)} frames of depth in {name}"
        raise InputError("one pose for each frame of depth", found, "make them agree")
    return depth


def _poses(sample: Sample) -> dict[int, Float[Tensor, "frames 4 4"]]:
    """The rigid motions of the objects that move, by their ids."""
    listed = enumerate(objects(sample.meta), 1)
    poses = {
        number: torch.tensor(item["poses"], dtype=torch.float64) for number, item in listed if item.get("poses") is not None
    }
    if poses and sample.ids is None:
        found = f"{len(poses)} moving objects without ids in {sample.gbuffer.name}"
        raise InputError("ids that tell which pixels show an object that moves", found, "leave the temporal metric out")
    return poses


def _pair(
    sample: Sample, maps: list[DepthMap], poses: dict[int, Tensor], first: int, step: float
) -> tuple[Float[Tensor, "height width 2"], Bool[Tensor, "height width"]]:
    """(target, valid) from frame ``first`` to the next."""
    here, there = maps[first], maps[first + 1]
    height, width = here.depth.shape
    ids = None if sample.ids is None else sample.ids[first : first + 2, 0].cpu()
    points = lift(here.depth.double(), sample.camera, first)
    for number, pose in poses.items():
        mine = ids[0] == number
        moved = pose[first + 1] @ torch.linalg.inv(pose[first])
        points[mine] = points[mine] @ moved[:3, :3].T + moved[:3, 3]
    column, row, expected = (
        rearrange(x, "(h w) -> h w", h=height)
        for x in project(rearrange(points, "h w c -> (h w) c"), sample.camera, first + 1, (height, width))
    )
    inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1) & (expected > 1e-6) & here.steady
    target = torch.where(inside[..., None], torch.stack((column, row), dim=-1), 0.0)
    valid = inside & _agrees(here, there, target, expected, step)
    if ids is not None:
        valid &= _same_object(ids[0], ids[1], target)
    return target.float(), valid


def _agrees(
    here: DepthMap,
    there: DepthMap,
    target: Float[Tensor, "height width 2"],
    expected: Float[Tensor, "height width"],
    step: float,
) -> Bool[Tensor, "height width"]:
    """Where the second frame has the expected depth, read through its inverse, which is linear on planes."""
    steady = _read(there.steady[None].double(), target)[0] > 1 - ROUNDING
    known = torch.isfinite(there.depth) & (there.depth > 0)
    inverse = torch.where(known, 1 / there.depth.double(), 0.0)
    found = 1 / _read(inverse[None], target)[0].clamp_min(1e-30)
    column, row = target.round().long().unbind(-1)
    bent = here.tolerance + there.tolerance[row, column]
    allowed = 2 * step + RELATIVE * expected + bent
    return steady & (bent <= BENT * expected) & ((found - expected).abs() <= allowed)


def _same_object(first: Tensor, second: Tensor, target: Float[Tensor, "height width 2"]) -> Bool[Tensor, "height width"]:
    """Where all pixels around the target show the object that the first frame's pixel shows."""
    same = torch.zeros(first.shape, dtype=torch.bool)
    for number in first.unique():
        same |= (first == number) & (_read((second == number)[None].double(), target)[0] > 1 - ROUNDING)
    return same


def _read(image: Float[Tensor, "channels height width"], target: Tensor) -> Float[Tensor, "channels height width"]:
    """Bilinear reading at (column, row) of ``target``, ``height width 2``; the edge goes on beyond the picture."""
    height, width = image.shape[-2:]
    size = target.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    grid = (2 * target / size - 1)[None]
    return torch.nn.functional.grid_sample(image[None], grid, "bilinear", "border", align_corners=True)[0]
