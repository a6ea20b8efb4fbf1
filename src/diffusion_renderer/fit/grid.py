"""A coarse panorama as unknowns: radiance at the nodes of a grid, bilinear between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.geometry import direction_to_equirect, equirect_to_direction
from diffusion_renderer.core.panorama import row_solid_angle


@dataclass(frozen=True)
class Grid:
    """``rows`` x ``2 rows`` nodes at the pixel centres of an equirectangular panorama, read as `light.sample_panorama` reads.

    Integrals over the sphere are sums over ``finer`` x ``finer`` directions for every node.
    """

    rows: int
    finer: int = 2

    @property
    def columns(self) -> int:
        """Nodes around the horizon."""
        return 2 * self.rows

    @property
    def spacing(self) -> float:
        """Angle between neighbouring directions of `directions` at the horizon, radians."""
        return math.pi / (self.rows * self.finer)

    def directions(self) -> Float[Tensor, "directions 3"]:
        """Unit directions over which integrals are summed, row by row."""
        rows = self.rows * self.finer
        v, u = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(2 * rows) + 0.5) / (2 * rows), indexing="ij")
        return equirect_to_direction(u, v).flatten(0, 1)

    def solid_angles(self) -> Float[Tensor, " directions"]:
        """Solid angle of each of `directions`, steradians; their sum is 4 pi."""
        rows = self.rows * self.finer
        return row_solid_angle(rows, 2 * rows).repeat_interleave(2 * rows)

    def node_solid_angles(self) -> Float[Tensor, " nodes"]:
        """Solid angle of the pixel around each node, steradians."""
        return row_solid_angle(self.rows, self.columns).repeat_interleave(self.columns)

    def onto_nodes(self, values: Float[Tensor, "points directions"]) -> Float[Tensor, "points nodes"]:
        """Weights of `directions` as weights of the nodes between which they are read."""
        rows = self.rows * self.finer
        down = tents((torch.arange(rows) + 0.5) / self.finer - 0.5, self.rows, wrap=False)
        across = tents((torch.arange(2 * rows) + 0.5) / self.finer - 0.5, self.columns, wrap=True)
        image = rearrange(values, "p (h w) -> p h w", h=rows)
        return rearrange(einsum(image @ across, down, "p h w, h r -> p r w"), "p r w -> p (r w)")

    def reading(self, direction: Float[Tensor, "points 3"]) -> Float[Tensor, "points nodes"]:
        """Weights of the nodes in the radiance seen in each unit direction; they sum to 1."""
        u, v = direction_to_equirect(direction)
        down = tents(v * self.rows - 0.5, self.rows, wrap=False)
        across = tents(u * self.columns - 0.5, self.columns, wrap=True)
        return rearrange(einsum(down, across, "p r, p w -> p r w"), "p r w -> p (r w)")

    def roughness_of(self) -> Float[Tensor, "nodes nodes"]:
        """The matrix S whose ``x^T S x`` is the integral over the sphere of the squared gradient of x.

        Dimensionless, and the same for a panorama on a finer grid: in two dimensions the integral does not depend on scale.
        """
        rows, columns = self.rows, self.columns
        index = torch.arange(rows * columns).view(rows, columns)
        sine = torch.sin((torch.arange(rows) + 0.5) * math.pi / rows)
        edge = torch.sin(torch.arange(1, rows) * math.pi / rows)
        # A step around the horizon is sin(theta) times as long as one along a meridian.
        sides = [(index, index.roll(-1, 1), 1 / sine), (index[:-1], index[1:], edge)]
        matrix = torch.zeros(rows * columns, rows * columns, dtype=torch.float64)
        for one, other, weight in sides:
            i, j, w = one.flatten(), other.flatten(), weight.double().repeat_interleave(columns)
            for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
                matrix.index_put_((a, b), sign * w, accumulate=True)
        return matrix

    def variance_of(self) -> Float[Tensor, "nodes nodes"]:
        """The matrix whose quadratic form is the variance of x over the sphere."""
        share = self.node_solid_angles().double() / (4 * math.pi)
        return torch.diag(share) - einsum(share, share, "i, j -> i j")


def tents(position: Float[Tensor, " points"], count: int, *, wrap: bool) -> Float[Tensor, "points {count}"]:
    """Linear interpolation weights of ``count`` nodes at 0, 1, ...; beyond the ends the last node, or around with ``wrap``."""
    if not wrap:
        position = position.clamp(0, count - 1)
    distance = (position[:, None] - torch.arange(count)).abs()
    if wrap:
        distance = torch.minimum(distance, count - distance)
    return (1 - distance).clamp_min(0.0)
