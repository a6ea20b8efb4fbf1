"""Small PNG pictures of frames, buffers and errors for the report."""

from __future__ import annotations

import math
from functools import lru_cache

import imagecodecs
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.evaluation.results import Picture
from diffusion_renderer.io.images import quantise

#: Pictures are made at most this wide; pixels.
WIDTH = 256
#: The error that gets the brightest colour. Fixed, so that the maps of all systems and clips can be compared.
COLOUR_ERROR, ANGLE_ERROR = 0.25, 45.0
#: Colour of pixels whose estimate is not finite; the scale does not contain it.
NOT_FINITE = (0.0, 0.85, 1.0)
#: Colour of pixels that do not count.
OUTSIDE = (0.5, 0.5, 0.5)


def picture(
    system: str,
    clip: str,
    light: str,
    what: str,
    frame: Float[Tensor, "channels height width"],
    truth: Float[Tensor, "channels height width"] | None = None,
    mask: Bool[Tensor, "1 height width"] | None = None,
    width: int = WIDTH,
) -> Picture:
    """A `Picture` of one frame, with its error against ``truth`` where that is given.

    ``what`` is "rgb" (sRGB in [0, 1]) or a buffer's name; a buffer comes as it is in memory (`GBuffer`), but depth as relative
    depth of its clip (`core.encoding.relative_depth`): one frame does not know the clip's range.
    """
    error = None if truth is None else png(error_map(what, frame, truth, mask, width))
    return Picture(system, clip, light, what, png(_encoded(what, frame), width), error)


def png(image: Float[Tensor, "channels height width"], width: int = WIDTH) -> bytes:
    """PNG bytes of an image in [0, 1], 1 or 3 channels, made ``width`` pixels wide when it is wider (area average)."""
    return imagecodecs.png_encode(quantise(_smaller(image.detach().float(), width)), level=6)


def error_of(
    what: str, estimate: Float[Tensor, "channels height width"], truth: Float[Tensor, "channels height width"]
) -> Float[Tensor, "1 height width"]:
    """Error per pixel: the angle between normals in degrees, else the mean absolute difference of the encoded channels.

    Not finite where the estimate is not. A zero normal (background) is 90 degrees from a normal, and 0 from another zero.
    """
    if what == "normal":
        cosine = torch.nn.functional.cosine_similarity(estimate, truth, dim=0, eps=1e-8).clamp(-1, 1)
        angle = torch.rad2deg(torch.acos(cosine))
        both_zero = (estimate == 0).all(dim=0) & (truth == 0).all(dim=0)
        return torch.where(both_zero, torch.zeros_like(angle), angle)[None]
    # Encoding clamps, which would make an infinite value look like the brightest colour.
    finite = torch.isfinite(estimate)
    difference = (_encoded(what, estimate) - _encoded(what, truth)).abs()
    return torch.where(finite, difference, torch.full_like(difference, math.nan)).mean(dim=0, keepdim=True)


def error_scale(what: str) -> tuple[float, str]:
    """The error at the bright end of the colours, and its unit."""
    return (ANGLE_ERROR, "°") if what == "normal" else (COLOUR_ERROR, "")


def error_map(
    what: str,
    estimate: Float[Tensor, "channels height width"],
    truth: Float[Tensor, "channels height width"],
    mask: Bool[Tensor, "1 height width"] | None = None,
    width: int = WIDTH,
) -> Float[Tensor, "3 rows columns"]:
    """`error_of` as colours, black for 0 to pale yellow for `error_scale` and more; sRGB.

    The error is averaged over the pixels that become one, so that thin peaks look lower in the small picture. Pixels outside
    ``mask`` are grey; those that are not finite are cyan.
    """
    error = error_of(what, estimate, truth).detach().float()
    counted = torch.ones_like(error, dtype=torch.bool) if mask is None else mask
    broken = counted & ~torch.isfinite(error)
    weight = (counted & ~broken).float()
    small_weight = _smaller(weight, width)
    small = _smaller(torch.where(weight > 0, error, torch.zeros_like(error)), width) / small_weight.clamp_min(1e-6)
    colours = colour_map(small[0] / error_scale(what)[0])
    colours = torch.where(small_weight > 0, colours, torch.tensor(OUTSIDE).view(3, 1, 1))
    return torch.where(_smaller(broken.float(), width) > 0, torch.tensor(NOT_FINITE).view(3, 1, 1), colours)


def colour_map(values: Float[Tensor, "height width"]) -> Float[Tensor, "3 height width"]:
    """[0, 1] to sRGB colours whose lightness rises evenly from black to pale yellow; values outside are clamped."""
    index = (values.clamp(0, 1) * (len(_palette()) - 1)).round().long()
    return rearrange(_palette()[index], "h w c -> c h w")


def palette_stops(count: int = 9) -> list[str]:
    """Evenly spaced colours of `colour_map` as ``#rrggbb``, for a legend."""
    colours = _palette()[torch.linspace(0, len(_palette()) - 1, count).round().long()]
    return ["#" + "".join(f"{round(255 * channel):02x}" for channel in colour.tolist()) for colour in colours]


@lru_cache(maxsize=1)
def _palette(steps: int = 256) -> Float[Tensor, "steps 3"]:
    """Colours with evenly rising lightness: a path through Oklab (B. Ottosson, 2020), blue, red, orange, yellow.

    Lightness is linear in the value; the hue turns from 280 to 105 degrees through red; colourfulness is an arc, small at
    both ends, chosen low enough that (nearly) all colours lie in sRGB.
    """
    t = torch.linspace(0, 1, steps, dtype=torch.float64)
    lightness = 0.06 + 0.91 * t
    hue = torch.deg2rad(280 + 185 * t)
    chroma = 0.19 * torch.sin(math.pi * t.clamp(0, 1)) ** 0.75 + 0.06 * t
    a, b = chroma * torch.cos(hue), chroma * torch.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = torch.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        dim=-1,
    )
    return srgb_oetf(linear).float()


def _encoded(what: str, frame: Float[Tensor, "channels height width"]) -> Float[Tensor, "channels height width"]:
    """One frame as an image in [0, 1]; frames and relative depth are that already."""
    return frame.clamp(0, 1) if what in ("rgb", "depth") else encode_buffer(what, frame[None])[0]


def _smaller(image: Float[Tensor, "channels height width"], width: int) -> Float[Tensor, "channels rows columns"]:
    """Area average down to ``width`` columns; unchanged when not wider."""
    _, rows, columns = image.shape
    if columns <= width:
        return image
    size = (max(1, round(rows * width / columns)), width)
    return torch.nn.functional.interpolate(image[None], size=size, mode="area")[0]
