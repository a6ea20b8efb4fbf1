"""Samples, as the data engine and the readers of public sets make them, packed into a `FrameStore`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.packing import pack_image
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.datagen.assets.split import NamedAssets, named_assets
from diffusion_renderer.training.data.store import BUFFERS5, DEPTH, GROUPS, FrameStore, require_one_size

#: Rows and columns of the panoramas that are kept.
LIGHT_SIZE = (64, 128)
#: A normal shorter than this is none: where a file holds no direction, readers leave the zero vector.
SHORTEST_NORMAL = 0.5


@dataclass(frozen=True)
class _Packed:
    """One clip of a store."""

    images: UInt8[Tensor, "frames images 3 height width"]
    rotation: Float[Tensor, "frames 3 3"]
    light: Float[Tensor, "3 lightheight lightwidth"]
    present: Bool[Tensor, "buffers"]
    real: bool
    estimated: bool
    has_light: bool
    defined: Bool[Tensor, "frames height width"] | None
    assets: NamedAssets
    key: str


def store_clips(clips: Iterable[Sample], keys: Sequence[str] | None = None) -> FrameStore:
    """Pack clips of one size into a `FrameStore`; ``keys`` are their names where those of the clips do not do.

    A clip may lack buffers, the light or the poses: `FrameStore.present` and `FrameStore.has_light` say so. InputError when
    frames differ in size, within a clip or between clips, and for no clip at all.
    """
    clips = list(clips)
    stores = stores_by_size(clips, [clip.clip.name for clip in clips] if keys is None else keys)
    if not stores:
        raise InputError("clips to train on", "none", "give at least one")
    require_one_size(stores)
    return stores[0]


def stores_by_size(clips: Iterable[Sample], keys: Iterable[str]) -> tuple[FrameStore, ...]:
    """One store for every frame size among the clips, in the order in which the sizes come. Holds one sample at a time.

    A clip under several lights is a clip for each of them; the further ones are called ``key/light1``, ``key/light2``.
    """
    groups: dict[tuple[int, int], list[_Packed]] = {}
    for item, key in zip(clips, keys, strict=True):
        for number, lit in enumerate(item.under_each_light()):
            groups.setdefault(item.clip.size, []).append(_pack(lit, f"{key}/light{number}" if number else key))
    return tuple(_join(group) for group in groups.values())


def _join(clips: list[_Packed]) -> FrameStore:
    lengths = [len(item.images) for item in clips]
    defined: tuple[Tensor, ...] = ()
    if any(item.defined is not None for item in clips):
        masks = [torch.ones_like(x.images[:, 0, 0], dtype=torch.bool) if x.defined is None else x.defined for x in clips]
        defined = (torch.cat(masks).to(torch.uint8),)
    return FrameStore(
        images=(torch.cat([item.images for item in clips]),),
        clip=torch.arange(len(clips)).repeat_interleave(torch.tensor(lengths)),
        rotation=torch.cat([item.rotation for item in clips]),
        light=torch.stack([item.light for item in clips]),
        present=torch.cat([item.present.expand(length, -1) for item, length in zip(clips, lengths, strict=True)]),
        keys=tuple(item.key for item in clips),
        real=torch.tensor([item.real for item in clips]),
        estimated=torch.tensor([item.estimated for item in clips]),
        has_light=torch.tensor([item.has_light for item in clips]),
        defined=defined,
        assets=frozenset().union(*(item.assets for item in clips)),
    )


def _pack(item: Sample, key: str) -> _Packed:
    gbuffer = item.gbuffer
    if (gbuffer.present or gbuffer.mask is not None) and gbuffer.size != item.clip.size:
        (wide, high), (width, height) = gbuffer.size, item.clip.size
        raise InputError(f"G-buffers of the video's {width}x{height} pixels", f"{wide}x{high} in {key}", "make them agree")
    light, rotation = _seen_light(item)
    return _Packed(
        images=_encoded(item),
        rotation=rotation,
        light=light,
        present=torch.tensor([getattr(gbuffer, name) is not None for name in BUFFERS5]),
        real=bool(item.meta.get("real", False)),
        estimated=is_estimated(item),
        has_light=has_light(item),
        defined=defined_pixels(item),
        assets=named_assets(item.meta),
        key=key,
    )


def is_estimated(item: Sample) -> bool:
    """Whether the buffers of a rendered clip are not the truth but an inverse renderer's (see `training.estimate`)."""
    return "estimated" in item.meta


def has_true_buffers(meta: Mapping[str, Any]) -> bool:
    """Whether a clip's buffers are the truth, by its clip.json, and not estimates of a real or a rendered clip."""
    return not (meta.get("real", False) or "estimated" in meta)


def has_light(item: Sample) -> bool:
    """Whether the clip's light is known as its cameras see it."""
    return item.environment is not None and item.camera is not None


def _seen_light(item: Sample) -> tuple[Float[Tensor, "3 lightheight lightwidth"], Float[Tensor, "frames 3 3"]]:
    if not has_light(item):
        return torch.zeros(3, *LIGHT_SIZE), torch.eye(3).repeat(len(item.clip), 1, 1)
    radiance = item.environment.radiance.float()
    return torch.nn.functional.interpolate(radiance[None], size=LIGHT_SIZE, mode="area")[0], item.lookup.float()


def _encoded(item: Sample) -> UInt8[Tensor, "frames images 3 height width"]:
    """The images of `IMAGES`; what is missing, or not a number, is 0."""
    stack = [item.clip.frames, *(_group_image(item.gbuffer, group, item.clip.frames) for group in GROUPS)]
    frames = torch.stack(stack, dim=1).nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    if item.gbuffer.depth is not None:
        kind, channel = DEPTH
        hit = torch.isfinite(item.gbuffer.depth[:, 0])
        frames[:, kind, channel][hit] = frames[:, kind, channel][hit].clamp_max(254)
    return frames


def _group_image(
    gbuffer: GBuffer, group: tuple[str, ...], like: Float[Tensor, "frames 3 height width"]
) -> Float[Tensor, "frames 3 height width"]:
    """The network image of a group, 0 in the channels of buffers that are missing."""
    missing = [name for name in group if getattr(gbuffer, name) is None]
    if len(missing) == len(group):
        return torch.zeros_like(like)
    image = pack_image(replace(gbuffer, **{name: torch.zeros_like(like[:, :1]) for name in missing}), group)
    for name in missing:  # only packs have several buffers, of one channel each
        image[:, group.index(name)] = 0.0
    return image


def defined_pixels(item: Sample) -> Bool[Tensor, "frames height width"] | None:
    """Where the clip's ground truth is defined; None for everywhere.

    Files hold no mark of their own for it, so this is what tells:

    * Clips of this data engine (``renderer`` in clip.json) are exact everywhere: a False mask is background.
    * Clips of public sets (``dataset``) have a mask that says where their ground truth is valid (see `datagen.readers`):
      nothing is known elsewhere, not even whether it is background.
    * Anywhere, a pixel on a surface without finite depth or without a normal has lost its ground truth, and so has one with
      values that are not numbers.

    One mask for all buffers: a pixel that one of them lacks is left out of all.
    """
    gbuffer = item.gbuffer
    images = [(name, getattr(gbuffer, name)) for name in BUFFERS5 if getattr(gbuffer, name) is not None]
    if "renderer" in item.meta or not images:
        return None
    known = torch.stack([~image.isnan().any(dim=1) for _, image in images]).all(dim=0)
    if gbuffer.mask is not None:
        mask = gbuffer.mask[:, 0]
        if "dataset" in item.meta:
            known &= mask
        for name, image in images:
            if name in ("depth", "normal"):
                found = torch.isfinite(image[:, 0]) if name == "depth" else image.norm(dim=1) > SHORTEST_NORMAL
                known &= found | ~mask
    return None if known.all() else known


def complete(item: Sample) -> bool:
    """Whether a clip has all that a classical renderer needs: the five buffers and the light."""
    return has_light(item) and all(getattr(item.gbuffer, name) is not None for name in BUFFERS5)
