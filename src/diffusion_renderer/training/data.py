"""Rendered shards as arrays: what the stages draw their batches from."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.packing import pack_image
from diffusion_renderer.datagen import Sample, read_shard
from diffusion_renderer.datagen.assets.split import NamedAssets, by_kind, from_kinds, named_assets
from diffusion_renderer.datagen.settings import EVALUATION_SEEDS
from diffusion_renderer.datagen.store.shards import read_metas

#: The images of a frame, in the order of `FrameStore.images`: the input video, then the groups of the `tiny` preset.
GROUPS = (("basecolor",), ("normal",), ("depth", "roughness", "metallic"))
IMAGES = ("rgb", *("+".join(group) for group in GROUPS))
#: Image and channel that hold relative depth. 255 is background there, and nothing else: the farthest surface is stored as 254.
DEPTH = next((1 + index, group.index("depth")) for index, group in enumerate(GROUPS) if "depth" in group)

#: Counts the changes of what `render.Prior` draws: pictures that were kept before the last one are drawn anew.
PRIOR_VERSION = 2


@dataclass(frozen=True)
class FrameStore:
    """Every frame of a data set, 8-bit encoded, with its light.

    Attributes
    ----------
    images : the images named by `IMAGES`, encoded as for the network; one array per shard, memory-mapped when it comes from a
        cache: several trainings share the memory, and a data set may exceed it.
    clip : index of the clip that a frame belongs to; a clip's frames are consecutive.
    rotation : R of each frame: camera-space direction d sees the panorama at R d.
    light : panorama of each clip, linear, already scaled by the clip's exposure.
    prior : what a classical renderer makes of every frame from its true G-buffers, as `images`; empty when not asked for.
    assets : the models, materials and panoramas from files that the clips show.
    """

    images: tuple[UInt8[Tensor, "_frames images 3 height width"], ...]
    clip: Int[Tensor, "total"]
    rotation: Float[Tensor, "total 3 3"]
    light: Float[Tensor, "clips 3 lightheight lightwidth"]
    prior: tuple[UInt8[Tensor, "_frames 3 height width"], ...] = ()
    assets: NamedAssets = frozenset()

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every frame, pixels."""
        height, width = self.images[0].shape[-2:]
        return height, width

    def take(self, index: Int[Tensor, "*shape"]) -> UInt8[Tensor, "*shape images 3 height width"]:
        """The images of the frames ``index``."""
        return _taken(self.images, index)

    def take_prior(self, index: Int[Tensor, "*shape"]) -> UInt8[Tensor, "*shape 3 height width"]:
        """The classical pictures of the frames ``index``."""
        return _taken(self.prior, index)

    def starts(self, frames: int) -> Int[Tensor, "choices"]:
        """Indices from which ``frames`` consecutive frames belong to one clip; empty when no clip is that long."""
        index = torch.arange(max(0, len(self) - frames + 1))
        return index[self.clip[index] == self.clip[index + frames - 1]]


def _taken(parts: tuple[Tensor, ...], index: Int[Tensor, "*shape"]) -> Tensor:
    """What lies at ``index`` of the concatenation of ``parts``."""
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    owner = torch.searchsorted(ends, index.flatten(), right=True).tolist()
    first = [0, *ends.tolist()]
    frames = [parts[k][i - first[k]] for k, i in zip(owner, index.flatten().tolist(), strict=True)]
    return torch.stack(frames).unflatten(0, index.shape)


def store_clips(clips: list[Sample]) -> FrameStore:
    """Pack clips of one size into a `FrameStore`. Raises InputError for clips that lack a buffer, the light or the poses."""
    images, owner, rotation, light = [], [], [], []
    for number, item in enumerate(clips):
        item.gbuffer.require(tuple(name for group in GROUPS for name in group))
        if item.environment is None or item.camera is None:
            missing = "light" if item.environment is None else "camera poses"
            raise InputError("clips with a light and camera poses", f"no {missing} in {item.clip.name}", "leave them out")
        stack = [item.clip.frames, *(pack_image(item.gbuffer, group) for group in GROUPS)]
        frames = torch.stack(stack, dim=1).mul(255).round().to(torch.uint8)
        kind, channel = DEPTH
        hit = torch.isfinite(item.gbuffer.depth[:, 0])
        frames[:, kind, channel][hit] = frames[:, kind, channel][hit].clamp_max(254)
        images.append(frames)
        owner.append(torch.full((len(item.clip),), number))
        rotation.append(item.lookup)
        light.append(torch.nn.functional.interpolate(item.environment.radiance[None], size=(64, 128), mode="area")[0])
    assets = frozenset().union(*(named_assets(item.meta) for item in clips))
    return FrameStore((torch.cat(images),), torch.cat(owner), torch.cat(rotation), torch.stack(light), assets=assets)


def load_frames(folders: tuple[Path, ...], cache: Path, prior: str | None = None) -> FrameStore:
    """All frames of all shards below ``folders``; decoded shards are kept in ``cache`` so that the next stage starts at once.

    ``prior`` names a classical renderer (`render.prior.PRIORS`) whose pictures of the frames are wanted too: about 0.15 s of a
    core for each still, once.

    Raises InputError when no shard is there, when frames differ in size, and for shards of an evaluation seed.
    """
    shards = sorted(path for folder in folders for path in Path(folder).rglob("*.tar"))
    if not shards:
        where = ", ".join(map(str, folders)) or "no folder"
        raise InputError("--data folders with .tar shards", where, "render some with `diffusion-renderer dataset OUT`")
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        parts = list(tqdm(pool.map(lambda path: _load_shard(path, cache, prior), shards), total=len(shards), desc="shards"))
    sizes = {part.size for part in parts}
    if len(sizes) > 1:
        listing = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise InputError("shards whose frames have one size", listing, "train on folders of one size")
    return concatenate(parts)


def concatenate(parts: list[FrameStore]) -> FrameStore:
    """One store out of several."""
    offset, clip = 0, []
    for part in parts:
        clip.append(part.clip + offset)
        offset += part.light.shape[0]
    return FrameStore(
        images=tuple(images for part in parts for images in part.images),
        clip=torch.cat(clip),
        rotation=torch.cat([part.rotation for part in parts]),
        light=torch.cat([part.light for part in parts]),
        prior=tuple(pictures for part in parts for pictures in part.prior),
        assets=frozenset().union(*(part.assets for part in parts)),
    )


def _load_shard(path: Path, cache: Path, prior: str | None) -> FrameStore:
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {IMAGES} {DEPTH}".encode()).hexdigest()[:16]
    assets = _checked_assets(path, cache / f"{key}.json")
    kept = cache / f"{key}.safetensors"
    if not kept.exists():
        store = store_clips(list(read_shard(path)))
        part = kept.with_suffix(".part")
        arrays = {"images": store.images[0], "clip": store.clip, "rotation": store.rotation, "light": store.light}
        save_file({name: value.contiguous() for name, value in arrays.items()}, part)
        part.replace(kept)
    arrays = load_file(kept)
    pictures = () if prior is None else (_load_prior(path, cache / f"{key}.{prior}-{PRIOR_VERSION}.safetensors", prior),)
    return FrameStore(images=(arrays.pop("images"),), **arrays, assets=assets, prior=pictures)


def _load_prior(path: Path, kept: Path, name: str) -> UInt8[Tensor, "frames 3 height width"]:
    """What the classical renderer ``name`` makes of every frame of a shard, from the true G-buffers; kept in a file."""
    if not kept.exists():
        from diffusion_renderer.render import Prior

        frames = [
            Prior(name, item.environment)(item.gbuffer, item.camera, item.lookup).mul(255).round().to(torch.uint8)
            for item in read_shard(path)
        ]
        part = kept.with_suffix(".part")
        save_file({"prior": torch.cat(frames).contiguous()}, part)
        part.replace(kept)
    return load_file(kept)["prior"]


def _checked_assets(path: Path, kept: Path) -> NamedAssets:
    """The assets of a shard, which are listed in ``kept``, beside the decoded shard. Refuses the seeds of evaluations.

    A file of its own: caches decoded before there was such a list stay as they are, and the seeds are checked every time.
    """
    if not kept.exists():
        metas = read_metas(path)
        listed = {
            "seeds": sorted({meta["seed"] for meta in metas if meta.get("seed") is not None}),
            "assets": by_kind(frozenset().union(*map(named_assets, metas))),
        }
        part = kept.with_suffix(".json.part")
        part.write_text(json.dumps(listed))
        part.replace(kept)
    listed = json.loads(kept.read_text())
    if EVALUATION_SEEDS & set(listed["seeds"]):
        advice = "leave it out: the model would be scored on what it has seen"
        raise InputError("shards to train on", f"clips of the evaluation seed in {path}", advice)
    return from_kinds(listed["assets"])
