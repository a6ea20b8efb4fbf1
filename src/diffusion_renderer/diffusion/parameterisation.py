"""v-prediction as a preconditioner of the denoiser (Karras et al. 2022, equation 7; Salimans and Ho 2022), as SVD uses it.

A noisy sample is ``x = x0 + sigma * noise``. The network sees ``c_in x`` and ``c_noise`` and gives v; the denoised sample is
``D(x; sigma) = c_skip x + c_out v``.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class VPrediction:
    """The four coefficients, as functions of the noise level sigma > 0 (any shape, elementwise)."""

    def c_skip(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``1 / (sigma^2 + 1)``"""
        return 1 / (sigma**2 + 1)

    def c_out(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``-sigma / sqrt(sigma^2 + 1)``"""
        return -sigma / (sigma**2 + 1).sqrt()

    def c_in(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``1 / sqrt(sigma^2 + 1)``"""
        return 1 / (sigma**2 + 1).sqrt()

    def c_noise(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``ln(sigma) / 4``"""
        return 0.25 * sigma.log()

    def denoised(
        self, v: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], sigma: Float[Tensor, "*#shape"]
    ) -> Float[Tensor, "*shape"]:
        """``D = c_skip x + c_out v``"""
        return self.c_skip(sigma) * x + self.c_out(sigma) * v

    def velocity(
        self, x0: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], sigma: Float[Tensor, "*#shape"]
    ) -> Float[Tensor, "*shape"]:
        """``v = (noise - sigma x0) / sqrt(sigma^2 + 1)``, the target whose `denoised` is x0 (noise of unit variance)."""
        return (noise - sigma * x0) * self.c_in(sigma)
