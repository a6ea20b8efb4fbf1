"""A preset of a few thousand parameters, for tests that train."""

from __future__ import annotations

from dataclasses import replace

from diffusion_renderer.training.presets import TINY

#: `tiny` with networks as narrow as its classes allow; without the classical picture, which has tests of its own.
SMALL = replace(
    TINY,
    name="small",
    latent_channels=4,
    vae_widths=(32, 32),
    inverse_widths=(32, 32, 32, 32),
    forward_widths=(32, 32, 32, 32),
    env_widths=(32, 32, 32, 32),
    env_size=32,
    inverse_size=None,
    size=32,
    window=4,
    context_channels=8,
    prior=None,
    residual=False,
)
