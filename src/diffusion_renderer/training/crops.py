"""What an autoencoder is trained on: crops of every kind of image that the renderers encode and decode."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.training.data import Mixture
from diffusion_renderer.training.images import evenly, network_images
from diffusion_renderer.training.lights import varied_light_images
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.steps import Item, Part

#: Side of the training crops, pixels.
CROP = 64


def draw_crop(item: Item, part: Part, preset: Preset, lights: float = 0.0) -> Float[Tensor, "frames 3 crop crop"]:
    """A random crop, in [0, 1], of a random kind of image that the clip has: video or buffers.

    ``lights`` is the share of the stills that are environment images instead, which are encoded and never decoded.
    """
    store, generator = part.store, item.generator("crop")
    height, width = store.size
    crop = min(CROP, height, width)
    frames = torch.tensor(item.frames)
    if len(frames) == 1 and float(torch.rand((), generator=generator)) < lights and store.lit[frames[0]]:
        return _light(item, part, preset, crop)
    images, known = network_images(store, frames[None], preset.groups)
    kinds = known[0].all(dim=0).nonzero()[:, 0]
    kind, top, left = (
        int(torch.randint(high, (), generator=generator)) for high in (len(kinds), height - crop + 1, width - crop + 1)
    )
    return images[0, :, kinds[kind], :, top : top + crop, left : left + crop]


def _light(item: Item, part: Part, preset: Preset, crop: int) -> Float[Tensor, "1 3 crop crop"]:
    """One of the environment images of the clip's light, varied."""
    radiance = part.store.light[part.store.clip[item.frames[0]]].float()
    seen = varied_light_images(radiance, preset.env_size, item.generator("light"))[0]
    chosen = int(torch.randint(3, (), generator=item.generator("kind")))
    return F.interpolate(seen[None, chosen], size=(crop, crop), mode="bilinear", antialias=True)


def sample_images(data: Mixture, preset: Preset, count: int) -> Iterable[Float[Tensor, "images 3 _h _w"]]:
    """Images in [-1, 1] of about ``count`` frames spread over the data, all kinds that they have; the same ones every time."""
    for store, index in evenly(data, count):
        for some in index.split(64):
            images, known = network_images(store, some[:, None], preset.groups)
            yield 2 * images[known] - 1
