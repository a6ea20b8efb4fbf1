"""Random directions: points that fill the square evenly, and directions drawn in proportion to a panorama's light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import luminance
from diffusion_renderer.core.geometry import direction_to_equirect, dot, equirect_to_direction, unit, vectors
from diffusion_renderer.core.panorama import row_solid_angle
from diffusion_renderer.core.types import EnvironmentMap

#: Smallest sine of the polar angle that a density divides by; the poles themselves have no solid angle.
MIN_SINE = 1e-6


@dataclass(frozen=True)
class PanoramaSampler:
    """Draws directions with a density proportional to the panorama's luminance as `light.sample_panorama` reads it.

    The density is the bilinear interpolant of the texels' luminance (times the sine of the polar angle, as an area of the
    panorama has more solid angle at the equator). A table of single texels would be blind to the light that interpolation
    carries into a dark texel beside a sun, and each sample that falls there would be a bright speck.

    Attributes
    ----------
    texels : radiance and density over the unit square (mean 1); one column is repeated on either side.
    rows : cumulative probability up to and with each row.
    columns : row number plus the cumulative probability in the row, one ascending list.
    """

    texels: Float[Tensor, "4 height padded"]
    rows: Float[Tensor, " height"]
    columns: Float[Tensor, " texels"]

    @classmethod
    def build(cls, environment: EnvironmentMap) -> PanoramaSampler:
        """The table of a panorama. One without light gets a uniform density; NaN and negative radiance count as none.

        The radiance that `read` returns is differentiable in the panorama's; the density is a constant.
        """
        radiance = environment.radiance.nan_to_num(0.0, posinf=65504.0, neginf=0.0).clamp_min(0.0)
        height, width = radiance.shape[-2:]
        with torch.no_grad():
            area = row_solid_angle(height, width, radiance.device).to(radiance)[:, None]
            weight = luminance(radiance)[0] * area
            # Sums in float64: in float32 the share of a texel of a 512 x 1024 panorama is lost in rounding.
            weight = (weight if float(weight.sum()) > 0 else area.expand(height, width)).double()
            in_row = weight.cumsum(dim=1)
            row_sums = in_row[:, -1]
            number = torch.arange(height, device=weight.device, dtype=weight.dtype)
            columns = (in_row / row_sums.clamp_min(1e-300)[:, None]).clamp_max(1.0) + number[:, None]
            rows = row_sums.cumsum(dim=0)
            density = (weight * (weight.numel() / rows[-1])).to(radiance)
        texels = torch.cat((radiance, density[None]))
        padded = torch.cat((texels[..., -1:], texels, texels[..., :1]), dim=-1)
        return cls(padded, rows / rows[-1], columns.reshape(-1))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the panorama."""
        return self.texels.shape[2] - 2, self.texels.shape[1]

    def sample(self, uniform: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape 3"]:
        """Unit panorama directions from points of the unit square.

        A texel is drawn by inversion, then a tent-shaped distance from its centre: a sum of tents is the bilinear interpolant.
        """
        width, height = self.size
        first, second = uniform.double().clamp(0.0, 1.0).unbind(-1)
        row = torch.searchsorted(self.rows, first.contiguous(), right=True).clamp_max(height - 1)
        down = _rest(self.rows, row, first, torch.zeros_like(first))
        place = torch.searchsorted(self.columns, (row + second).contiguous(), right=True)
        place = torch.minimum(torch.maximum(place, row * width), row * width + width - 1)
        across = _rest(self.columns, place, row + second, row.double())
        u = (place - row * width + 0.5 + _tent(across)) / width % 1.0
        # Beyond the poles the first and the last row are repeated when read, which is the same as reflecting what falls there.
        v = ((row + 0.5 + _tent(down)) / height).abs()
        v = 1 - (1 - v).abs()
        return equirect_to_direction(u.to(uniform), v.to(uniform))

    def read(self, direction: Float[Tensor, "*shape 3"]) -> tuple[Float[Tensor, "*shape 3"], Float[Tensor, "*shape 1"]]:
        """Radiance seen in unit panorama directions, and the density per steradian with which `sample` draws them."""
        u, v = direction_to_equirect(direction.reshape(-1, 3))
        width = self.size[0]
        grid = torch.stack((2 * (u * width + 1) / (width + 2) - 1, 2 * v - 1), dim=-1)
        value = torch.nn.functional.grid_sample(self.texels[None], grid[None, None], padding_mode="border", align_corners=False)
        value = rearrange(value, "1 c 1 n -> n c")
        sine = torch.sin(math.pi * v).clamp_min(MIN_SINE)
        pdf = value[:, 3:].detach() / (2 * math.pi**2 * sine[:, None])
        return value[:, :3].reshape(direction.shape), pdf.reshape(*direction.shape[:-1], 1)


def even_points(count: int, dimensions: int, seed: int) -> Float[Tensor, "{count} {dimensions}"]:
    """The first points of a Sobol sequence (Sobol 1967), scrambled by ``seed``; on the CPU, the same on every device."""
    return torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed).draw(count)


def pixel_shifts(pixels: int, dimensions: int, seed: int) -> Float[Tensor, "{pixels} {dimensions}"]:
    """One random shift of the points for each pixel, in [0, 1) (Cranley and Patterson 1976); on the CPU."""
    return torch.rand(pixels, dimensions, generator=torch.Generator().manual_seed(seed))


def shifted(
    points: Float[Tensor, "count dimensions"], shifts: Float[Tensor, "pixels dimensions"]
) -> Float[Tensor, "pixels count dimensions"]:
    """The points of every pixel: moved by its shift, around the edges of the unit square."""
    # Dimensions first in memory, where each is read on its own. Sums lie in [0, 2), so this is their remainder, exactly.
    moved = points.mT[:, None] + shifts.mT[:, :, None]
    return moved.sub_(moved.floor()).movedim(0, -1)


def sample_cosine(normal: Float[Tensor, "*#shape 3"], uniform: Float[Tensor, "*#shape 2"]) -> Float[Tensor, "... 3"]:
    """Directions with density ``cos / pi`` about ``normal``: a point of the unit sphere added to the normal, made unit."""
    z, angle = 1 - 2 * uniform[..., 0], 2 * math.pi * uniform[..., 1]
    radius = (1 - z * z).clamp_min(0.0).sqrt()
    # Opposite to the normal the sum vanishes; a trace of the normal keeps the direction defined.
    x, y, w = (component * (1 + 1e-6) for component in normal.unbind(-1))
    return unit(vectors(x + radius * angle.cos(), y + radius * angle.sin(), w + z))


def pdf_cosine(normal: Float[Tensor, "*#shape 3"], direction: Float[Tensor, "*#shape 3"]) -> Float[Tensor, "... 1"]:
    """Density per steradian of `sample_cosine`; 0 below the surface."""
    return dot(normal, direction).clamp_min(0.0) / math.pi


def _rest(cumulative: Tensor, index: Tensor, value: Tensor, start: Tensor) -> Tensor:
    """Where in [0, 1] ``value`` lies between the cumulative entry before ``index`` (at least ``start``) and the one at it."""
    before = torch.where(index > 0, cumulative[(index - 1).clamp_min(0)], 0.0)
    before = torch.maximum(before, start)
    return ((value - before) / (cumulative[index] - before).clamp_min(1e-300)).clamp(0.0, 1.0)


def _tent(uniform: Tensor) -> Tensor:
    """A number in [-1, 1] of density ``1 - |x|`` from one that is uniform in [0, 1]."""
    lower = (2 * uniform).clamp_min(0.0).sqrt() - 1
    upper = 1 - (2 * (1 - uniform)).clamp_min(0.0).sqrt()
    return torch.where(uniform < 0.5, lower, upper)
