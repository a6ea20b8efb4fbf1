"""A surface while it is being made: `Layers`, with the colours that real surfaces have and the normals of a height field."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.colour import srgb_decoded
from diffusion_renderer.datagen.procedural.noise import slopes

#: Bounds of every texture's roughness.
ROUGHNESS = (0.05, 1.0)
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)

# Linear reflectance at normal incidence of common metals, from measured optical constants.
_METALS = {
    "gold": (1.0, 0.71, 0.29),
    "copper": (0.93, 0.55, 0.40),
    "silver": (0.95, 0.93, 0.88),
    "aluminium": (0.91, 0.92, 0.92),
    "brass": (0.89, 0.74, 0.42),
    "iron": (0.56, 0.57, 0.58),
    "chromium": (0.55, 0.56, 0.55),
    "titanium": (0.54, 0.50, 0.45),
}


@dataclass(frozen=True)
class Layers:
    """Square seamless textures before they become a `Material`, float32.

    Attributes
    ----------
    basecolor : linear reflectance.
    roughness, metallic : in [0, 1]; clipped to their range only at the end.
    height : of the surface along its normal, in widths of the texture; only its slopes matter.
    name : what it is.
    """

    basecolor: Float[np.ndarray, "size size 3"]
    roughness: Float[np.ndarray, "size size"]
    metallic: Float[np.ndarray, "size size"]
    height: Float[np.ndarray, "size size"]
    name: str

    @property
    def size(self) -> int:
        """Texels a side."""
        return len(self.roughness)

    def covered(
        self,
        mask: np.ndarray,
        basecolor: np.ndarray | None = None,
        roughness: np.ndarray | float | None = None,
        metallic: np.ndarray | float | None = None,
        lift: float = 0.0,
    ) -> Layers:
        """With another surface where ``mask`` (in [0, 1]) is 1. None keeps what is there; ``lift`` raises the covered part."""
        mask = mask.astype(np.float32)
        new = {}
        if basecolor is not None:
            new["basecolor"] = self.basecolor + mask[..., None] * (np.asarray(basecolor, np.float32) - self.basecolor)
        if roughness is not None:
            new["roughness"] = self.roughness + mask * (np.asarray(roughness, np.float32) - self.roughness)
        if metallic is not None:
            new["metallic"] = self.metallic + mask * (np.asarray(metallic, np.float32) - self.metallic)
        if lift:
            new["height"] = self.height + mask * np.float32(lift)
        return replace(self, **new)


def layers(
    size: int,
    basecolor: np.ndarray,
    roughness: np.ndarray | float,
    metallic: np.ndarray | float = 0.0,
    height: np.ndarray | float = 0.0,
    name: str = "",
) -> Layers:
    """`Layers` from arrays or single values; a colour is (3,) or ``size size 3``."""
    fields = (np.broadcast_to(np.asarray(value, np.float32), (size, size)) for value in (roughness, metallic, height))
    return Layers(np.broadcast_to(np.asarray(basecolor, np.float32), (size, size, 3)), *fields, name=name)


def height_normals(height: Float[np.ndarray, "size size"]) -> Float[np.ndarray, "size size 3"]:
    """Unit normals of a periodic height field in the frame of `Material.normal`: x along u, y along falling v, z outwards."""
    along_u, along_v = slopes(height)
    normal = np.empty((*height.shape, 3), np.float32)
    scale = 1.0 / np.sqrt(1.0 + along_u**2 + along_v**2)
    normal[..., 0], normal[..., 1], normal[..., 2] = -along_u * scale, along_v * scale, scale
    return normal


# --- colours ----------------------------------------------------------------------------------------------------------


def hsv_colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """Linear colour of an sRGB colour given as hue (turns), saturation and value."""
    offsets = (np.array([5.0, 3.0, 1.0]) + hue * 6.0) % 6.0
    return srgb_decoded(value - value * saturation * np.clip(np.minimum(offsets, 4.0 - offsets), 0.0, 1.0))


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """A plausible linear colour: mostly muted, sometimes vivid, sometimes grey, from dark to light."""
    hue = rng.random()
    saturation = rng.choice([rng.uniform(0.0, 0.12), rng.beta(2, 3), rng.uniform(0.6, 1.0)], p=[0.35, 0.48, 0.17])
    return hsv_colour(hue, saturation, rng.uniform(0.12, 0.97) ** rng.choice([0.7, 1.0, 1.5]))


def earth_colour(rng: np.random.Generator, darkest: float = 0.25, lightest: float = 0.85) -> np.ndarray:
    """A linear colour of stone, soil, plaster, clay: greyish, from yellow to red; the bounds are sRGB values."""
    return hsv_colour(rng.uniform(0.03, 0.13), rng.uniform(0.0, 0.4), rng.uniform(darkest, lightest))


def near(rng: np.random.Generator, colour: np.ndarray, spread: float) -> np.ndarray:
    """Another colour like ``colour``: brightness and tint off by about ``spread`` (relative)."""
    return np.clip(colour * np.exp(rng.normal(0, spread) + rng.normal(0, 0.3 * spread, 3)), 0.0, 0.95)


def metal_colour(rng: np.random.Generator) -> np.ndarray:
    """Reflectance of a metal, now and then with a coloured coating."""
    tint = np.array(_METALS[str(rng.choice(list(_METALS)))]) * rng.uniform(0.75, 1.0)
    if rng.random() < 0.15:
        tint = 0.5 * tint + 0.5 * np.clip(random_colour(rng) * 1.5, 0.0, 1.0)
    return tint


def ramp(field: Float[np.ndarray, "size size"], colours: np.ndarray) -> Float[np.ndarray, "size size 3"]:
    """Colours (stops 3) interpolated along a field in [0, 1], through a table of 1024 steps."""
    position = np.linspace(0.0, 1.0, 1024)
    stops = np.linspace(0.0, 1.0, len(colours))
    table = np.stack([np.interp(position, stops, np.asarray(colours)[:, channel]) for channel in range(3)], -1)
    return table.astype(np.float32)[(np.clip(field, 0.0, 1.0) * 1023).astype(np.int32)]


def varied(basecolor: np.ndarray, field: np.ndarray, strength: float) -> np.ndarray:
    """A colour made lighter and darker along a field of mean 0 and deviation 1; ``strength`` is the relative deviation."""
    return np.asarray(basecolor, np.float32) * np.maximum(1.0 + np.float32(strength) * field, 0.1)[..., None]
