"""Panoramas convolved with lobes of every width, to be read back in one look-up for each lobe.

Convolution is dense quadrature over solid angle: every source pixel counts with its kernel's value and its solid angle. On an
equirectangular grid a kernel that is symmetric about its axis depends on two rows and the difference of two columns, so along
columns it is a cyclic convolution, done by FFT. No sampling, so the result is deterministic, and it is linear in the panorama,
so gradients are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.geometry import equirect_to_direction
from diffusion_renderer.core.panorama import average_panorama, row_solid_angle
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.light import sample_panorama

#: Spread of a lobe is 1 - its mean cosine (for narrow ones, the variance of the angle in radians^2 per axis).
WIDEST_SPREAD = 0.7
#: Filtered levels, each of twice the spread of the one before it; the first has a standard deviation of 0.75 degrees.
LEVELS = 13
NARROWEST_SPREAD = WIDEST_SPREAD / 2 ** (LEVELS - 1)
#: Rows of the filtered panoramas: as many as the panorama has, within these bounds. One of 512 rows makes a stack of 88 MB.
MIN_ROWS, MAX_ROWS = 64, 512
#: Rows at which a lobe is convolved, times its standard deviation: linear interpolation between them is off by about 1 %.
ROWS_TIMES_DEVIATION = 4 * math.pi
#: Rows of the panoramas for the diffuse lobe, which is wider than any that needs more.
DIFFUSE_ROWS = 64
#: Kernel values held at once, about 64 MB with those of their transform.
KERNEL_VALUES = 2**22


@dataclass(frozen=True)
class PanoramaStack:
    """Panoramas of one size that are read together, with a border so that reading needs no special cases.

    ``texels``: "channels levels rows + 2 columns + 2": one column more on either side, and beyond each pole the row that lies
    across it.
    """

    texels: Float[Tensor, "channels levels _rows _columns"]

    @classmethod
    def of(cls, maps: Float[Tensor, "channels levels rows columns"]) -> PanoramaStack:
        """With the border added; ``columns`` must be even."""
        across = maps.roll(maps.shape[-1] // 2, dims=-1)
        rows = torch.cat((across[..., :1, :], maps, across[..., -1:, :]), dim=-2)
        return cls(torch.cat((rows[..., -1:], rows, rows[..., :1]), dim=-1))

    def read(self, direction: Float[Tensor, "points 3"], level: Float[Tensor, " points"]) -> Float[Tensor, "points channels"]:
        """Read between columns, rows and levels linearly. Gradients are finite at the poles too."""
        levels, rows, columns = (size - border for size, border in zip(self.texels.shape[1:], (0, 2, 2), strict=True))
        u, v = _equirect(direction)
        if levels == 1:
            return self._read_flat(u * columns + 0.5, v * rows + 0.5)
        x = 2 * (u * columns + 1) / (columns + 2) - 1
        y = 2 * (v * rows + 1) / (rows + 2) - 1
        z = 2 * (level + 0.5) / levels - 1
        grid = torch.stack((x, y, z), dim=-1)[None, None, None]
        value = torch.nn.functional.grid_sample(self.texels[None], grid, padding_mode="border", align_corners=False)
        return value[0, :, 0, 0].T

    def _read_flat(self, x: Float[Tensor, " points"], y: Float[Tensor, " points"]) -> Float[Tensor, "points channels"]:
        """`read` of one level, at texels: all channels of the four neighbours at once. Of 42 in a quarter of the time."""
        rows, columns = self.texels.shape[2:]
        left, above = x.detach().floor().clamp(0, columns - 2), y.detach().floor().clamp(0, rows - 2)
        right, below = x - left, y - above
        corner = (above * columns + left).long()
        places = torch.stack((corner, corner + 1, corner + columns, corner + columns + 1), dim=-1)
        shares = torch.stack(((1 - right) * (1 - below), right * (1 - below), (1 - right) * below, right * below), dim=-1)
        return torch.nn.functional.embedding_bag(places, self._flat, mode="sum", per_sample_weights=shares)

    @cached_property
    def _flat(self) -> Float[Tensor, "texels channels"]:
        return rearrange(self.texels, "channels 1 rows columns -> (rows columns) channels").contiguous()


def glossy_stack(environment: EnvironmentMap, max_rows: int = MAX_ROWS) -> PanoramaStack:
    """Level 0 is the panorama; level k >= 1 is filtered by a von Mises-Fisher lobe of spread ``NARROWEST_SPREAD * 2^(k-1)``.

    See `level_of` for the level of any spread. Radiance finer than ``max_rows`` rows is averaged.
    """
    rows = min(max(environment.radiance.shape[-2], MIN_ROWS), max_rows)
    maps = [at_rows(environment, rows)]
    for level in range(LEVELS):
        spread = NARROWEST_SPREAD * 2**level
        own_rows = min(rows, max(24, math.ceil(ROWS_TIMES_DEVIATION / math.sqrt(spread))))
        own_rows += own_rows % 2
        kappa = concentration(spread)
        filtered = convolve(
            at_rows(environment, own_rows),
            lambda cosine, kappa=kappa: torch.exp(kappa * (cosine - 1)),
            integral=1.0,
            # The kernel is below 1e-7 of its peak outside.
            reach=math.sqrt(2 * 16.5 / kappa) if kappa > 8 else math.pi,
        )
        maps.append(filtered if own_rows == rows else at_rows(EnvironmentMap(filtered), rows))
    return PanoramaStack.of(torch.stack(maps, dim=1))


def level_of(spread: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The level, a real number, at which `glossy_stack` shows lobes of this spread: a mixture of two levels has it."""
    ratio = spread.clamp_max(WIDEST_SPREAD) / NARROWEST_SPREAD
    octave = torch.log2(ratio.detach().clamp_min(1.0)).floor()
    return torch.where(ratio < 1, ratio, octave + ratio / 2**octave)


def concentration(spread: float) -> float:
    """Concentration kappa of the von Mises-Fisher lobe whose mean cosine ``coth(kappa) - 1 / kappa`` is ``1 - spread``."""
    low, high = 1e-3, 1e6
    for _ in range(100):
        kappa = math.sqrt(low * high)
        coth = 1 / math.tanh(kappa)
        low, high = (kappa, high) if coth - 1 / kappa < 1 - spread else (low, kappa)
    return math.sqrt(low * high)


def at_rows(environment: EnvironmentMap, rows: int) -> Float[Tensor, "3 {rows} {2*rows}"]:
    """The panorama with ``rows`` rows and twice as many columns: averaged where finer, interpolated where coarser."""
    # Averaging is float32 only.
    radiance = average_panorama(environment.radiance.float(), rows, 2 * rows).to(environment.radiance)
    if radiance.shape[-2:] == (rows, 2 * rows):
        return radiance
    coarse = EnvironmentMap(radiance)
    return rearrange(sample_panorama(coarse, grid_directions(rows).to(radiance)), "h w c -> c h w")


def grid_directions(rows: int) -> Float[Tensor, "{rows} {2*rows} 3"]:
    """Directions of the pixels' centres of a panorama of ``rows`` rows."""
    v, u = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(2 * rows) + 0.5) / (2 * rows), indexing="ij")
    return equirect_to_direction(u, v)


def convolve(
    maps: Float[Tensor, "channels rows columns"],
    kernel: Callable[[Float[Tensor, "*shape"]], Float[Tensor, "*shape"]],
    integral: float,
    reach: float = math.pi,
) -> Float[Tensor, "channels rows columns"]:
    """The integral of ``maps`` times ``kernel(cosine)`` about every pixel's direction, over solid angle.

    Parameters
    ----------
    kernel : of the cosine between the two directions.
    integral : of the kernel over the sphere. The quadrature is scaled to have exactly this, so that constants stay constant.
    reach : angle in radians beyond which the kernel is taken as 0.
    """
    rows, columns = maps.shape[-2:]
    theta = (torch.arange(rows, dtype=maps.dtype, device=maps.device) + 0.5) * (math.pi / rows)
    turn = (2 * math.pi / columns * torch.arange(columns, dtype=maps.dtype, device=maps.device)).cos()
    area = row_solid_angle(rows, columns, maps.device).to(maps)
    spectrum = torch.fft.rfft(maps, dim=-1)
    window = min(rows, 2 * math.ceil(reach / math.pi * rows) + 1)
    # As many rows at once as one of them reaches: more would only meet more rows that they do not reach.
    block = max(1, min(window, KERNEL_VALUES // (2 * window * columns)))
    parts = []
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        near = slice(max(0, start - window // 2), min(rows, stop + window // 2)) if window < rows else slice(0, rows)
        target, source = theta[start:stop, None, None], theta[None, near, None]
        cosine = target.cos() * source.cos() + target.sin() * source.sin() * turn
        weight = kernel(cosine.clamp(-1.0, 1.0)) * area[near, None]
        weight = weight * (integral / weight.sum(dim=(1, 2), keepdim=True))
        # Even in the turn, so its transform is real.
        response = torch.fft.rfft(weight, dim=-1).real
        seen = spectrum[:, near]
        parts.append(
            torch.complex(
                einsum(response, seen.real, "t s f, c s f -> c t f"), einsum(response, seen.imag, "t s f, c s f -> c t f")
            )
        )
    return torch.fft.irfft(torch.cat(parts, dim=1), n=columns, dim=-1)


def _equirect(direction: Float[Tensor, "points 3"]) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """`core.geometry.direction_to_equirect` with gradients that are finite everywhere, at the poles 0 in u."""
    x, y, z = direction.unbind(-1)
    level2 = x.square() + z.square()
    polar = level2 < 1e-12
    z = torch.where(polar, 1.0, z)
    u = (torch.atan2(-torch.where(polar, 0.0, x), z) / (2 * math.pi) + 0.5) % 1.0
    v = torch.atan2(torch.sqrt(level2.clamp_min(1e-12)), y) / math.pi
    return u, v
