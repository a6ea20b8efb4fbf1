"""Editing a shot between the inverse and the forward renderer (so far: relighting), and renderers by name."""

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
from diffusion_renderer.editing.renderers import FORWARD_NAMES, check_model, load_forward

__all__ = [
    "FORWARD_NAMES",
    "STILL_FRAMES",
    "Forward",
    "Inverse",
    "LightOptions",
    "Relit",
    "Shot",
    "check_model",
    "distinct_names",
    "hold_frame",
    "light_rotations",
    "light_scale",
    "load_forward",
    "play",
    "relight",
    "relight_gbuffer",
    "relit_name",
    "scaled",
]
