"""Fitting a light to a clip: the panorama that, with the G-buffers, explains the frames.

light = estimate_light(clip, gbuffer).environment
"""

from diffusion_renderer.fit.estimators import FileLights, LightEstimator, LinearLight
from diffusion_renderer.fit.light import LightEstimate, estimate_light

__all__ = ["FileLights", "LightEstimate", "LightEstimator", "LinearLight", "estimate_light"]
