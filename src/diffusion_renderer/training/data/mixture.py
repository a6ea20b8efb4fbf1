"""Drawing the samples of a step: sources by weight, then a frame size, a length, and items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.assets.split import NamedAssets
from diffusion_renderer.training.data.faults import SkippedShard
from diffusion_renderer.training.data.store import Accept, FrameStore, concatenate, require_one_size
from diffusion_renderer.training.steps import Item, Part, derived_seed

#: Ways of drawing that a mixture remembers the choices of.
_REMEMBERED = 32


@dataclass(frozen=True, eq=False)
class Source:
    """Clips that are weighed together, such as a folder of shards; one store for every frame size.

    ``weight`` is the share of the images that are drawn, relative to the other sources'; None for the number of frames that
    may be drawn, so that sources without weights mix as one pile.
    """

    name: str
    weight: float | None
    stores: tuple[FrameStore, ...]


@dataclass(frozen=True)
class Drawn:
    """Samples of one step.

    Attributes
    ----------
    index : frames of ``store``; every item's are consecutive frames of one clip.
    keys : name of every item's clip, with that of the source where the mixture has several.
    """

    source: Source
    store: FrameStore
    index: Int[Tensor, "items frames"]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class _Bucket:
    """A source, frame size and length that a step may be drawn from.

    ``share`` is how often, not normalised; ``starts`` where its items may begin; ``items`` how many a step has.
    """

    source: Source
    store: FrameStore
    frames: int
    starts: Int[Tensor, "choices"]
    items: int
    share: float


@dataclass(frozen=True, eq=False)
class Mixture:
    """Everything a training draws from. InputError when some sources have weights and others not: they cannot be compared.

    Attributes
    ----------
    skipped : the shards that could not be read.
    """

    sources: tuple[Source, ...]
    skipped: tuple[SkippedShard, ...] = ()
    _remembered: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        without = [source.name for source in self.sources if source.weight is None]
        if without and len(without) < len(self.sources):
            found = f"none for {', '.join(without)}"
            raise InputError("--data DIR=WEIGHT for all folders, or weights for none", found, "give each a weight")

    @classmethod
    def of(cls, *stores: FrameStore, name: str = "data") -> Mixture:
        """Stores as one source."""
        return cls((Source(name, None, stores),))

    def __len__(self) -> int:
        return sum(len(store) for store in self.stores)

    @property
    def stores(self) -> tuple[FrameStore, ...]:
        """The stores of all sources."""
        return tuple(store for source in self.sources for store in source.stores)

    @cached_property
    def single(self) -> FrameStore:
        """All frames as one store, for code that needs just one. InputError when frames differ in size."""
        require_one_size(self.stores)
        return self.stores[0] if len(self.stores) == 1 else concatenate(self.stores)

    @property
    def assets(self) -> NamedAssets:
        """The models, materials and panoramas from files that the clips show."""
        return frozenset().union(*(store.assets for store in self.stores))

    @property
    def area(self) -> int:
        """Pixels of the commonest frame size."""
        pixels: dict[int, int] = {}
        for store in self.stores:
            pixels[_area(store)] = pixels.get(_area(store), 0) + len(store)
        return max(pixels, key=lambda area: pixels[area])

    def draw(
        self,
        generator: torch.Generator,
        images: int,
        lengths: Mapping[int, float],
        accept: Accept | None = None,
        estimated: bool | None = None,
        area: int | None = None,
    ) -> Drawn:
        """Items of one length and one frame size, from one source, with replacement.

        Parameters
        ----------
        images : about how many a step has (a clip of n frames counts n) of ``area`` pixels; larger frames are fewer in
            proportion, but there is always an item.
        lengths : {frames of an item: share of the steps}. Lengths that no clip of a store has are left out there.
        accept : which frames of a store may be drawn; an item's must all pass.
        estimated : only clips with estimated buffers (see `FrameStore.measured`), only others, or any.
        area : pixels of a reference image, such as the preset's; None for the commonest frame size, 0 where every frame counts
            as one image, for all are scaled to one size.

        Sources, and the frame sizes of a source, share the *images* drawn, not the steps: by `Source.weight`, and by their
        number of frames. Raises InputError when nothing passes.
        """
        buckets = self._buckets(images, lengths, accept, estimated, area)
        shares = torch.tensor([bucket.share for bucket in buckets], dtype=torch.float64).cumsum(0)
        aim = torch.rand((), generator=generator, dtype=torch.float64) * shares[-1]
        bucket = buckets[min(int(torch.searchsorted(shares, aim, right=True)), len(buckets) - 1)]
        chosen = bucket.starts[torch.randint(len(bucket.starts), (bucket.items,), generator=generator)]
        prefix = f"{bucket.source.name}/" if len(self.sources) > 1 else ""
        keys = tuple(prefix + bucket.store.keys[clip] for clip in bucket.store.clip[chosen].tolist())
        return Drawn(bucket.source, bucket.store, chosen[:, None] + torch.arange(bucket.frames), keys)

    def _buckets(
        self, images: int, lengths: Mapping[int, float], accept: Accept | None, estimated: bool | None, area: int | None
    ) -> tuple[_Bucket, ...]:
        key = (images, tuple(lengths.items()), accept, estimated, area)
        if key not in self._remembered:
            buckets = self._find_buckets(images, lengths, accept, estimated, self.area if area is None else area)
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = buckets
        return self._remembered[key]

    def _find_buckets(
        self, images: int, lengths: Mapping[int, float], accept: Accept | None, estimated: bool | None, area: int
    ) -> tuple[_Bucket, ...]:
        buckets = []
        for source in self.sources:
            groups = []
            for store in source.stores:
                passing = _passing(store, accept, estimated)
                group = _store_buckets(source, store, passing, images * area / _area(store) if area else images, lengths)
                groups.append((group, int(passing.sum()) if group else 0))
            frames = sum(count for _, count in groups)
            weight = frames if source.weight is None else source.weight
            buckets += [replace(b, share=b.share * weight * count / frames) for group, count in groups for b in group]
        if not buckets:
            raise self._nothing_passes(lengths, estimated)
        return tuple(buckets)

    def _nothing_passes(self, lengths: Mapping[int, float], estimated: bool | None) -> InputError:
        kind = {True: "clips with estimated buffers", False: "rendered clips", None: "clips"}[estimated]
        make = "train autolabel` or `diffusion-renderer train estimate" if estimated else "dataset"
        names = ", ".join(source.name for source in self.sources)
        return InputError(
            f"{kind} of at least {min(lengths)} frames with the buffers and the light that the stage needs",
            f"none among {sum(len(store.keys) for store in self.stores)} of {names}",
            f"add some made by `diffusion-renderer {make}`",
        )


def _area(store: FrameStore) -> int:
    height, width = store.size
    return height * width


def _passing(store: FrameStore, accept: Accept | None, estimated: bool | None) -> Bool[Tensor, "total"]:
    """Frames that may be drawn."""
    passing = torch.ones(len(store), dtype=torch.bool) if accept is None else accept(store)
    return passing if estimated is None else passing & (store.measured != estimated)


def _store_buckets(
    source: Source, store: FrameStore, passing: Bool[Tensor, "total"], images: float, lengths: Mapping[int, float]
) -> list[_Bucket]:
    """The lengths that a store has. Drawn as often as their shares say, they give one image on average."""
    starts = {frames: store.starts(frames, passing) for frames, share in lengths.items() if share > 0}
    here = {frames: lengths[frames] for frames, choices in starts.items() if len(choices)}
    # The tolerance is for products such as 24 * (a / b) * (b / a), which may fall just short of a whole number.
    items = {frames: max(1, int(images / frames + 1e-6)) for frames in here}
    mean = sum(share * frames * items[frames] for frames, share in here.items())
    return [_Bucket(source, store, n, starts[n], items[n], share / mean) for n, share in here.items()]


def draw_part(
    mixture: Mixture,
    step: int,
    seed: int,
    images: int,
    lengths: Mapping[int, float],
    estimated: bool | None = None,
    accept: Accept | None = None,
    weight: float = 1.0,
    area: int | None = None,
) -> Part:
    """Samples of a step, each with a seed of its own. Depends on (seed, step) and the data alone; see `Mixture.draw`.

    Samples with true and with estimated buffers of the same step have nothing in common.
    """
    stream = () if estimated is None else ("real" if estimated else "synthetic",)
    generator = torch.Generator().manual_seed(derived_seed(seed, step, "draw", *stream))
    drawn = mixture.draw(generator, images, lengths, accept, estimated, area)
    items = tuple(
        Item(tuple(frames), derived_seed(seed, step, *stream, number), key)
        for number, (frames, key) in enumerate(zip(drawn.index.tolist(), drawn.keys, strict=True))
    )
    return Part(items, drawn.store, weight, bool(estimated))
