"""Frames as arrays: what the stages draw their batches from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import DEFAULT_BUFFERS
from diffusion_renderer.datagen.assets.split import NamedAssets

#: The images of a frame, in the order of `FrameStore.images`: the input video, then the groups of the `tiny` preset.
GROUPS = (("basecolor",), ("normal",), ("depth", "roughness", "metallic"))
IMAGES = ("rgb", *("+".join(group) for group in GROUPS))
#: Image and channel that hold relative depth. 255 is background there, and nothing else: the farthest surface is stored as 254.
DEPTH = next((1 + index, group.index("depth")) for index, group in enumerate(GROUPS) if "depth" in group)
#: The columns of `FrameStore.present`.
BUFFERS5 = DEFAULT_BUFFERS

#: Counts the changes of what `render.Prior` draws: pictures that were kept before the last one are drawn anew.
PRIOR_VERSION = 3


@dataclass(frozen=True, eq=False)
class FrameStore:
    """Frames of one size, 8-bit encoded, with their light.

    Attributes
    ----------
    images : the images named by `IMAGES`, encoded as for the network; one array per shard, memory-mapped when it comes from a
        cache: several trainings share the memory, and a data set may exceed it. A buffer that is not ``present`` is 0.
    clip : index of the clip that a frame belongs to; a clip's frames are consecutive.
    rotation : R of each frame: camera-space direction d sees the panorama at R d; the identity without light.
    light : panorama of each clip, linear, already scaled by the clip's exposure; 0 without light.
    present : which of `BUFFERS5` have ground truth in each frame.
    keys : name of every clip, such as ``shard-000003/00000012``.
    real : the clip is a real one: its buffers and light are estimates.
    estimated : the clip is rendered, its light is the true one, and its buffers are estimates (see `training.estimate`).
    has_light : the clip comes with a panorama, and with poses that tell how the camera sees it.
    defined : 1 where a frame's ground truth is defined, else 0, for all buffers together; one array per entry of ``images``, or
        none at all when it is defined everywhere. Background is defined: there is nothing, and that is known.
    prior : the pictures that a classical renderer makes of every frame from its G-buffers, as `images`; empty when not asked
        for, 0 for clips that lack a buffer or the light.
    assets : the models, materials and panoramas from files that the clips show.
    """

    images: tuple[UInt8[Tensor, "_frames images 3 height width"], ...]
    clip: Int[Tensor, "total"]
    rotation: Float[Tensor, "total 3 3"]
    light: Float[Tensor, "clips 3 lightheight lightwidth"]
    present: Bool[Tensor, "total buffers"]
    keys: tuple[str, ...]
    real: Bool[Tensor, "clips"]
    estimated: Bool[Tensor, "clips"]
    has_light: Bool[Tensor, "clips"]
    defined: tuple[UInt8[Tensor, "_frames height width"], ...] = ()
    prior: tuple[UInt8[Tensor, "_frames pictures 3 height width"], ...] = ()
    assets: NamedAssets = frozenset()

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every frame, pixels."""
        height, width = self.images[0].shape[-2:]
        return height, width

    @property
    def lit(self) -> Bool[Tensor, "total"]:
        """Frames of clips with a light."""
        return self.has_light[self.clip]

    @property
    def measured(self) -> Bool[Tensor, "total"]:
        """Frames whose buffers are the truth, and nobody's estimates."""
        return ~(self.real | self.estimated)[self.clip]

    def having(self, names: Sequence[str]) -> Bool[Tensor, "total"]:
        """Frames that have ground truth of all these buffers. InputError for a name that is not one of `BUFFERS5`."""
        columns = [BUFFERS5.index(check_name("buffer", name, BUFFERS5)) for name in names]
        return self.present[:, columns].all(dim=1)

    def take(self, index: Int[Tensor, "*shape"]) -> UInt8[Tensor, "*shape images 3 height width"]:
        """The images of the frames ``index``."""
        return _taken(self.images, index)

    def take_prior(self, index: Int[Tensor, "*shape"]) -> UInt8[Tensor, "*shape pictures 3 height width"]:
        """The classical pictures of the frames ``index``."""
        return _taken(self.prior, index)

    def take_defined(self, index: Int[Tensor, "*shape"]) -> UInt8[Tensor, "*shape height width"]:
        """1 where the ground truth of the frames ``index`` is defined, else 0."""
        if not self.defined:
            return torch.ones((), dtype=torch.uint8).expand(*index.shape, *self.size)
        return _taken(self.defined, index)

    def starts(self, frames: int, passing: Bool[Tensor, "total"] | None = None) -> Int[Tensor, "choices"]:
        """Indices from which ``frames`` consecutive frames belong to one clip; empty when no clip is that long.

        Where ``passing`` is given, all these frames must pass.
        """
        index = torch.arange(max(0, len(self) - frames + 1))
        index = index[self.clip[index] == self.clip[index + frames - 1]]
        if passing is None:
            return index
        before = torch.nn.functional.pad(passing.long().cumsum(0), (1, 0))
        return index[before[index + frames] - before[index] == frames]


#: Which frames of a store may be drawn. A function of its own or of a module, not one made anew for every draw: what it
#: gives is kept.
Accept = Callable[[FrameStore], Tensor]


def _taken(parts: tuple[Tensor, ...], index: Int[Tensor, "*shape"]) -> Tensor:
    """What lies at ``index`` of the concatenation of ``parts``."""
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    owner = torch.searchsorted(ends, index.flatten(), right=True).tolist()
    first = [0, *ends.tolist()]
    frames = [parts[k][i - first[k]] for k, i in zip(owner, index.flatten().tolist(), strict=True)]
    return torch.stack(frames).reshape(*index.shape, *parts[0].shape[1:])


def concatenate(parts: Sequence[FrameStore]) -> FrameStore:
    """One store out of several. InputError when their frames differ in size."""
    require_one_size(parts)
    offset, clip = 0, []
    for part in parts:
        clip.append(part.clip + offset)
        offset += part.light.shape[0]
    return FrameStore(
        images=tuple(images for part in parts for images in part.images),
        clip=torch.cat(clip),
        rotation=torch.cat([part.rotation for part in parts]),
        light=torch.cat([part.light for part in parts]),
        present=torch.cat([part.present for part in parts]),
        keys=tuple(key for part in parts for key in part.keys),
        real=torch.cat([part.real for part in parts]),
        estimated=torch.cat([part.estimated for part in parts]),
        has_light=torch.cat([part.has_light for part in parts]),
        defined=_all_defined(parts),
        prior=tuple(pictures for part in parts for pictures in part.prior),
        assets=frozenset().union(*(part.assets for part in parts)),
    )


def _all_defined(parts: Sequence[FrameStore]) -> tuple[UInt8[Tensor, "_frames height width"], ...]:
    """The masks of all parts. Those that have none get ones, which take no memory; nothing when no part has any."""
    if not any(part.defined for part in parts):
        return ()
    one = torch.ones((), dtype=torch.uint8)
    masks = (part.defined or tuple(one.expand(len(x), *part.size) for x in part.images) for part in parts)
    return tuple(mask for group in masks for mask in group)


def require_one_size(parts: Sequence[FrameStore]) -> None:
    """InputError when frames differ in size."""
    sizes = {part.size for part in parts}
    if len(sizes) > 1:
        listing = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise InputError("shards whose frames have one size", listing, "train on folders of one size")
