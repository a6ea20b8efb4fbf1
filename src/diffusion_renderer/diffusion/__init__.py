"""Diffusion: noise schedule, parameterisation and sampler, three things that do not know each other nor any network."""

from diffusion_renderer.diffusion.parameterisation import VPrediction
from diffusion_renderer.diffusion.sampler import Denoiser, sample_euler
from diffusion_renderer.diffusion.schedule import NoiseSchedule

__all__ = ["Denoiser", "NoiseSchedule", "VPrediction", "sample_euler"]
