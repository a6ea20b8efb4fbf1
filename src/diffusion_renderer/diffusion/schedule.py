"""Noise levels as Stable Video Diffusion's scheduler file defines them (Karras et al. 2022, equation 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError

#: Exponent of Karras et al.'s levels.
RHO = 7.0
SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class NoiseSchedule:
    """Which noise levels a sampler visits, and how large the first noise is. The defaults are SVD's.

    Attributes
    ----------
    sigma_min, sigma_max : ends of the Karras levels; None takes them from the training levels at the visited timesteps.
    karras : False visits the training levels themselves, interpolated at the timesteps.
    spacing : "leading", "trailing" or "linspace": which timesteps are visited, and the size of the first noise.
    steps_offset : added to "leading" timesteps.
    final_zero : the last level is 0; False ends at the smallest training level.
    train_steps, beta_start, beta_end, beta_schedule : define the training levels.
    """

    sigma_min: float | None = 0.002
    sigma_max: float | None = 700.0
    karras: bool = True
    spacing: str = "leading"
    steps_offset: int = 1
    final_zero: bool = True
    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spacing: str | None = None) -> NoiseSchedule:
        """From diffusers' ``scheduler_config.json`` of an `EulerDiscreteScheduler`; ``spacing`` overrides the file's.

        Raises InputError for what this project's networks are not trained with: another prediction than v, discrete timesteps,
        exponential or beta levels, given betas.
        """
        fixed = {"prediction_type": "v_prediction", "timestep_type": "continuous", "interpolation_type": "linear"}
        absent = ("trained_betas", "use_exponential_sigmas", "use_beta_sigmas", "rescale_betas_zero_snr")
        wrong = {key: config[key] for key, value in fixed.items() if config.get(key, value) != value}
        wrong |= {key: config[key] for key in absent if config.get(key)}
        spacing = spacing or config.get("timestep_spacing", "linspace")
        if config.get("beta_schedule", "linear") not in ("linear", "scaled_linear"):
            wrong["beta_schedule"] = config["beta_schedule"]
        if spacing not in SPACINGS:
            wrong["timestep_spacing"] = spacing
        if wrong:
            found = ", ".join(f"{key} {value}" for key, value in wrong.items())
            raise InputError(
                "a scheduler file of SVD's kind (v-prediction, continuous timesteps)", found, "use another checkpoint"
            )
        return cls(
            sigma_min=config.get("sigma_min"),
            sigma_max=config.get("sigma_max"),
            karras=config.get("use_karras_sigmas", False),
            spacing=spacing,
            steps_offset=config.get("steps_offset", 0),
            final_zero=config.get("final_sigmas_type", "zero") == "zero",
            train_steps=config.get("num_train_timesteps", 1000),
            beta_start=config.get("beta_start", 0.0001),
            beta_end=config.get("beta_end", 0.02),
            beta_schedule=config.get("beta_schedule", "linear"),
        )

    def sigmas(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        """The ``steps`` noise levels, falling, and the final one."""
        if steps < 1:
            raise InputError("at least 1 step", str(steps), "ask for more steps")
        if self.karras:
            levels = self._karras_levels(steps)
        else:
            levels = self._training_levels(self._timesteps(steps))
        last = 0.0 if self.final_zero else self._training_levels(np.zeros(1))[0]
        return torch.from_numpy(np.append(levels, last).astype(np.float32))

    def initial_scale(self, steps: int) -> float:
        """Standard deviation of the first noise: sigma_max, or with "leading" spacing ``sqrt(sigma_max^2 + 1)``."""
        largest = float(self.sigmas(steps).max())
        return math.sqrt(largest**2 + 1) if self.spacing == "leading" else largest

    def _karras_levels(self, steps: int) -> np.ndarray:
        """``sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``"""
        low, high = self.sigma_min, self.sigma_max
        if low is None or high is None:
            visited = self._training_levels(self._timesteps(steps))
            low, high = (visited[-1] if low is None else low), (visited[0] if high is None else high)
        ramp = np.linspace(0, 1, steps)
        return (high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO

    def _timesteps(self, steps: int) -> np.ndarray:
        """Falling training timesteps (Lin et al. 2024, table 2)."""
        if self.spacing == "linspace":
            return np.linspace(0, self.train_steps - 1, steps, dtype=np.float32)[::-1]
        if self.spacing == "leading":
            return (np.arange(steps) * (self.train_steps // steps))[::-1].astype(np.float32) + self.steps_offset
        # One level per step even where rounding of the stride would give one more.
        return np.arange(self.train_steps, 0, -self.train_steps / steps).round().astype(np.float32)[:steps] - 1

    def _training_levels(self, timesteps: np.ndarray) -> np.ndarray:
        """``sigma(t) = sqrt((1 - alpha_bar) / alpha_bar)``, interpolated between the training timesteps."""
        power = 2.0 if self.beta_schedule == "scaled_linear" else 1.0
        ends = (self.beta_start ** (1 / power), self.beta_end ** (1 / power))
        # In float32 as the reference computes it: at the largest timestep float64 differs by 1e-5 of the level.
        betas = torch.linspace(*ends, self.train_steps, dtype=torch.float32) ** power
        alphas = torch.cumprod(1.0 - betas, dim=0)
        levels = (((1 - alphas) / alphas) ** 0.5).numpy()
        return np.interp(timesteps, np.arange(len(levels)), levels)
