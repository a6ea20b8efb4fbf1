"""Editing a shot between the inverse and the forward renderer; so far: relighting."""

from diffusion_renderer.editing.lighting import LightOptions, light_rotations, light_scale, scaled
from diffusion_renderer.editing.names import distinct_names, relit_name
from diffusion_renderer.editing.relight import (
    STILL_FRAMES,
    Forward,
    Inverse,
    Relit,
    Shot,
    hold_frame,
    play,
    relight,
    relight_gbuffer,
)

__all__ = [
    "STILL_FRAMES",
    "Forward",
    "Inverse",
    "LightOptions",
    "Relit",
    "Shot",
    "distinct_names",
    "hold_frame",
    "light_rotations",
    "light_scale",
    "play",
    "relight",
    "relight_gbuffer",
    "relit_name",
    "scaled",
]
