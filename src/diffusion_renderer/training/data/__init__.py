"""The data of a training: shards decoded to `FrameStore`s, of which a `Mixture` draws the samples of every step."""

from diffusion_renderer.training.data.faults import SkippedShard
from diffusion_renderer.training.data.loading import DataSource, load_frames, load_mixture
from diffusion_renderer.training.data.mixture import Drawn, Mixture, Source, draw_part
from diffusion_renderer.training.data.samples import store_clips
from diffusion_renderer.training.data.store import (
    BUFFERS5,
    DEPTH,
    GROUPS,
    IMAGES,
    PRIOR_VERSION,
    Accept,
    FrameStore,
    concatenate,
)

__all__ = [
    "BUFFERS5",
    "DEPTH",
    "GROUPS",
    "IMAGES",
    "PRIOR_VERSION",
    "Accept",
    "DataSource",
    "Drawn",
    "FrameStore",
    "Mixture",
    "SkippedShard",
    "Source",
    "concatenate",
    "draw_part",
    "load_frames",
    "load_mixture",
    "store_clips",
]
