"""Parts of procedural panoramas: directions, colours of lights, lamps of a given shape."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from diffusion_renderer.core.geometry import equirect_to_direction
from diffusion_renderer.datagen.procedural.noise import smoothstep


def directions(height: int) -> Float[np.ndarray, "height width 3"]:
    """World direction of every texel's centre of a panorama of ``height`` rows and twice as many columns."""
    v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(2 * height) + 0.5) / (2 * height), indexing="ij")
    return equirect_to_direction(u, v).numpy()


def tint(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A light's colour, warm or cool or (rarely) saturated, of luminance near 1."""
    warmth = rng.normal(0.0, strength)
    colour = np.array([np.exp(warmth), 1.0, np.exp(-warmth)])
    if rng.random() < 0.5 * strength:
        colour = colour * rng.uniform(0.15, 1.0, 3)
    return colour / colour.mean()


def random_direction(rng: np.random.Generator, lowest: float, highest: float) -> np.ndarray:
    """A random direction with its elevation (degrees) in the given range."""
    elevation, azimuth = np.radians(rng.uniform(lowest, highest)), rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])


def sun_disc(rng: np.random.Generator, d: np.ndarray, towards: np.ndarray, overcast: bool) -> np.ndarray:
    """Radiance of a disc at least two texels wide whose irradiance is 1.5 to 25 (the sky's is near 3), less if overcast."""
    texel = np.pi / d.shape[0]
    radius = max(np.radians(rng.uniform(0.8, 4.0)), texel)
    disc = smoothstep(np.cos(radius + texel), np.cos(max(radius - texel, 0.0)), d @ towards)
    solid_angle = float((disc * np.sqrt(np.clip(1 - d[..., 1] ** 2, 0, 1))).sum()) * texel**2
    irradiance = np.exp(rng.uniform(np.log(1.5), np.log(25.0))) * (0.04 if overcast else 1.0)
    return disc * irradiance / max(solid_angle, 1e-6)


def rectangle(d: np.ndarray, centre: np.ndarray, roll: float, half_width: float, half_height: float, soft: float) -> np.ndarray:
    """Mask of a rectangle on the tangent plane at ``centre``; half sizes are tangents of half angles."""
    right = np.cross([0.0, 1.0, 0.0], centre)
    right = right / max(np.linalg.norm(right), 1e-6)
    up = np.cross(centre, right)
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    depth = d @ centre
    x, y = np.abs(d @ right) / np.maximum(depth, 1e-3), np.abs(d @ up) / np.maximum(depth, 1e-3)
    inside = smoothstep(half_width + soft, half_width, x) * smoothstep(half_height + soft, half_height, y)
    return np.where(depth > 1e-2, inside, 0.0)
