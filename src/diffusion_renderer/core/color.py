"""Colour: the sRGB transfer curve and luminance.

A clip is display-referred sRGB, ``srgb_oetf(clip(exposure * linear, 0, 1))``, with no filmic curve.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Rec. 709 luminance weights of linear RGB.
LUMINANCE = (0.2126, 0.7152, 0.0722)


def srgb_oetf(linear: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Encode linear light in [0, 1] as sRGB in [0, 1] (IEC 61966-2-1). Values outside are clamped."""
    linear = linear.clamp(0.0, 1.0)
    # The clamp inside the power keeps its gradient finite at 0.
    curve = 1.055 * linear.clamp_min(0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, curve)


def srgb_eotf(encoded: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Decode sRGB in [0, 1] to linear light in [0, 1]; the inverse of `srgb_oetf`. Values outside are clamped."""
    encoded = encoded.clamp(0.0, 1.0)
    curve = ((encoded.clamp_min(0.04045) + 0.055) / 1.055).pow(2.4)
    return torch.where(encoded <= 0.04045, encoded / 12.92, curve)


def luminance(linear: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 1 height width"]:
    """Rec. 709 luminance of linear RGB."""
    weights = linear.new_tensor(LUMINANCE).view(3, 1, 1)
    return (linear * weights).sum(dim=-3, keepdim=True)
