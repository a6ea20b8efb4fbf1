"""The data engine: random scenes, path-traced with Mitsuba, with exact G-buffers, as WebDataset shards.

Importing this package loads no renderer; Mitsuba and Open Image Denoise load when the first clip is rendered.
"""

from __future__ import annotations

from diffusion_renderer.datagen.demo import DEMO_SETTINGS, DemoLight, demo_clip, demo_relit
from diffusion_renderer.datagen.generate import render_clip, render_relit, render_scene, retrace
from diffusion_renderer.datagen.settings import EVALUATION_SEED, DatasetSettings, Relit, Sample
from diffusion_renderer.datagen.store.shards import generate_shards, read_shard, read_shards

__all__ = [
    "DEMO_SETTINGS",
    "EVALUATION_SEED",
    "DatasetSettings",
    "DemoLight",
    "Relit",
    "Sample",
    "demo_clip",
    "demo_relit",
    "generate_shards",
    "read_shard",
    "read_shards",
    "render_clip",
    "render_relit",
    "render_scene",
    "retrace",
]
