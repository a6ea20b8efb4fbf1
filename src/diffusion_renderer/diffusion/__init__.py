"""Diffusion: noise schedule, parameterisation and samplers, three things that do not know each other nor any network."""

from diffusion_renderer.diffusion.parameterisation import VPrediction
from diffusion_renderer.diffusion.sampler import (
    SOLVERS,
    Denoiser,
    Solver,
    find_solver,
    network_calls,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
    sample_unipc,
)
from diffusion_renderer.diffusion.schedule import NoiseSchedule

__all__ = [
    "SOLVERS",
    "Denoiser",
    "NoiseSchedule",
    "Solver",
    "VPrediction",
    "find_solver",
    "network_calls",
    "sample_dpmpp_2m",
    "sample_euler",
    "sample_heun",
    "sample_unipc",
]
