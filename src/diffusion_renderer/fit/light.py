"""The light of a clip from its frames and G-buffers, by non-negative least squares on the linear light transport."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.fit.grid import Grid
from diffusion_renderer.fit.nonnegative import solve_nonnegative
from diffusion_renderer.fit.pixels import Pixels, choose_pixels
from diffusion_renderer.fit.transport import transport
from diffusion_renderer.light import sample_panorama

#: Rows of the panorama that is returned, which the coarse estimate is read at.
OUT_ROWS = 64
#: Directions along a meridian over which integrals are summed.
DIRECTION_ROWS = 32
#: sRGB values from here on may have been anything brighter.
SATURATED = 0.99
#: Rounds of weights and solution.
ROUNDS = 8
#: Error of a pixel that is always there, sRGB: rounding to 8 bits, and the grid.
LEAST_NOISE = 0.004
#: Pixels that share one error: errors of G-buffers cover whole objects, so thousands of pixels are few observations. On four
#: real clips with the buffers of `tiny`, 8 instead of 32 lowers the residual by 3% at most, for blots of strong colour.
PIXELS_PER_ERROR = 32.0
#: By how much radiance is expected to change over a radian, in means of the panorama.
EXPECTED_CHANGE = 2.0
#: Weight of the variance of the panorama beside that of its gradient.
TOWARDS_MEAN = 0.1
#: Radiance below which errors count as at this radiance: the sRGB curve is so steep at black that noise would decide.
DARKEST = 0.02


@dataclass(frozen=True)
class LightEstimate:
    """What `estimate_light` found.

    Attributes
    ----------
    environment : the panorama, linear, in the exposure of the frames.
    residual : root mean square error, sRGB, of the used pixels rendered with the estimate; saturated ones count up to 1.
    coverage : for each node of the coarse panorama, the share of what decides it that comes from pixels, in [0, 1]; the rest
        comes from its neighbours. About each node alone: that several nodes can only be told together, it does not show.
    """

    environment: EnvironmentMap
    residual: float
    coverage: Float[Tensor, "rows columns"]

    @property
    def covered(self) -> float:
        """Mean of ``coverage`` over solid angle."""
        rows, columns = self.coverage.shape
        share = Grid(rows, 1).node_solid_angles().view(rows, columns) / (4 * math.pi)
        return float((share * self.coverage).sum())


def estimate_light(
    clip: Clip,
    gbuffer: GBuffer,
    *,
    camera: Camera | None = None,
    rotations: Float[Tensor, "_ 3 3"] | None = None,
    rows: int = 16,
    pixels: int = 4096,
    seed: int = 0,
) -> LightEstimate:
    """The panorama under which the G-buffers look like the frames.

    Each of some thousand pixels is one linear equation per colour: its linear radiance is the transport-weighted sum of the
    panorama's (`transport`); background pixels show the panorama itself. The equations are solved for radiance of 0 and more,
    weighted so that errors count as they look in sRGB, with less weight for those that do not fit (Huber 1964), and for
    saturated colours as lower bounds. Nodes that nothing constrains are filled in smoothly from their neighbours; how
    strongly neighbours hold together follows from how well the pixels can be explained. Deterministic.

    It cannot see shadows, light from one surface to another, or nearby lamps, and explains them as distant light; a light that
    no glossy surface mirrors is blurred; where base colours are wrong by a factor, so is the light.

    Parameters
    ----------
    camera : poses and fields of view; the light is then fixed to the world, else to the camera. See ``rotations``.
    rotations : R of each frame, if it is neither: camera-space direction d sees the panorama at ``R d``.
    rows : of the coarse panorama that is solved for, 4 to 32; twice as many columns.
    pixels : how many are used, of all frames together.
    seed : of the choice of pixels.

    Raises InputError for a missing buffer, inputs of different frames or size, no surface, black frames, senseless options.
    """
    _check_options(rows, pixels)
    chosen = choose_pixels(clip, gbuffer, camera, rotations, pixels, seed)
    if not bool((chosen.colour[chosen.surface] > 1 / 255).any()):
        raise InputError("frames that show some light", f"black surfaces in {clip.name}", "give another clip")
    grid = Grid(rows, -(-DIRECTION_ROWS // rows))
    weights = transport(chosen, grid)
    solution, residual, coverage = _solve(chosen, weights, grid)
    coarse = EnvironmentMap(rearrange(solution.float(), "c (h w) -> c h w", h=rows))
    fine = rearrange(sample_panorama(coarse, Grid(OUT_ROWS, 1).directions()), "(h w) c -> c h w", h=OUT_ROWS)
    environment = EnvironmentMap(fine.clamp(0.0, 65504.0).contiguous(), f"{clip.name} (estimated)")
    return LightEstimate(environment, residual, rearrange(coverage.float(), "(h w) -> h w", h=rows))


def _check_options(rows: int, pixels: int) -> None:
    if not 4 <= rows <= 32:
        raise InputError("rows of the estimated panorama from 4 to 32", str(rows), "give 8, 16 or 32")
    if pixels < 16:
        raise InputError("16 pixels or more to estimate a light from", str(pixels), "give some thousand")


def _solve(
    pixels: Pixels, weights: Float[Tensor, "3 points nodes"], grid: Grid
) -> tuple[Float[Tensor, "3 nodes"], float, Float[Tensor, " nodes"]]:
    """Iteratively re-weighted non-negative least squares: radiance of the nodes, residual, coverage of the nodes."""
    shown = rearrange(pixels.colour, "p c -> c p").contiguous()
    target, saturated = srgb_eotf(shown), shown >= SATURATED
    prior = grid.roughness_of() + TOWARDS_MEAN * grid.variance_of()
    solution = _constant(weights, target, grid)
    made = _rendered(weights, solution)
    data = torch.zeros(len(prior), dtype=torch.float64)
    strength = 0.0
    for _ in range(ROUNDS):
        importance, noise = _importance(made, target, saturated)
        mean = float((solution @ grid.node_solid_angles().double()).mean() / (4 * math.pi))
        strength = PIXELS_PER_ERROR * (noise / (EXPECTED_CHANGE * max(mean, 1e-8))) ** 2
        data = torch.zeros_like(data)
        solved = []
        for channel in range(3):
            scale = importance[channel].sqrt()
            rows = scale[:, None] * weights[channel]
            matrix = (rows.T @ rows).double()
            data += matrix.diagonal() / 3
            vector = (rows.T @ (scale * target[channel])).double()
            solved.append(solve_nonnegative(matrix + strength * prior, vector))
        solution = torch.stack(solved)
        made = _rendered(weights, solution)
    residual = float((srgb_oetf(made) - shown).square().mean().sqrt())
    return solution, residual, data / (data + strength * prior.diagonal())


def _importance(
    made: Float[Tensor, "3 points"], target: Float[Tensor, "3 points"], saturated: Bool[Tensor, "3 points"]
) -> tuple[Float[Tensor, "3 points"], float]:
    """Weights of the squared linear errors, and the typical error in sRGB.

    With the curve's secant times its slope at what was rendered, the weighted linear problem has the gradient of the squared
    sRGB error. Large errors count linearly (Huber 1964, with the scale from the median). A saturated colour says "at least
    this": it does not count where the estimate is brighter, and pulls where it is darker.
    """
    made, target = made.clamp_min(DARKEST), target.clamp_min(DARKEST)
    error, apart = _curve(made) - _curve(target), made - target
    slope = _slope(made)
    secant = torch.where(apart.abs() > 1e-4, error / torch.where(apart == 0, 1.0, apart), slope)
    met = saturated & (made >= target)
    typical = 1.4826 * float(error[~met].abs().median()) if bool((~met).any()) else 0.0
    noise = max(LEAST_NOISE, typical)
    trust = (1.345 * noise / error.abs().clamp_min(1e-9)).clamp_max(1.0)
    return torch.where(met, 0.0, secant * slope * trust), noise


def _rendered(weights: Float[Tensor, "3 points nodes"], solution: Float[Tensor, "3 nodes"]) -> Float[Tensor, "3 points"]:
    """Linear radiance of the pixels under a panorama."""
    return einsum(weights, solution.float(), "c p n, c n -> c p")


def _constant(
    weights: Float[Tensor, "3 points nodes"], target: Float[Tensor, "3 points"], grid: Grid
) -> Float[Tensor, "3 nodes"]:
    """The constant panorama that explains the pixels' mean radiance, of each colour; where the scale of everything starts."""
    level = target.mean(dim=1) / weights.sum(dim=2).mean(dim=1).clamp_min(1e-6)
    return level.double()[:, None].expand(3, grid.rows * grid.columns)


def _curve(linear: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sRGB curve above its linear foot, without its end at 1."""
    return 1.055 * linear.pow(1 / 2.4) - 0.055


def _slope(linear: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Derivative of `_curve`."""
    return (1.055 / 2.4) * linear.pow(1 / 2.4 - 1)
