"""Environment maps: reading radiance by direction, turning lights, and the three images that the forward renderer sees."""

from diffusion_renderer.light.images import EnvironmentImages, environment_images
from diffusion_renderer.light.radiance import mean_radiance, sample_panorama, scale_exposure
from diffusion_renderer.light.rotations import camera_fixed, compose, elevated, rotating, world_fixed, yawed

__all__ = [
    "EnvironmentImages",
    "camera_fixed",
    "compose",
    "elevated",
    "environment_images",
    "mean_radiance",
    "rotating",
    "sample_panorama",
    "scale_exposure",
    "world_fixed",
    "yawed",
]
