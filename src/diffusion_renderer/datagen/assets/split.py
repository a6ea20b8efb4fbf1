"""Which assets are for training and which for testing, by their names alone: the same on every machine and in every folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Split = Literal["train", "test"]
#: Assets as (kind, name).
NamedAssets = frozenset[tuple[str, str]]

#: The kinds of assets that come from files. Procedural ones are drawn anew for every seed and belong to no split.
KINDS = ("model", "material", "panorama")
#: Share of the names that are kept for testing.
TEST_SHARE = 0.2
#: Mixed into the hash. The number was searched for: with it the panoramas that the first weights were trained with, before
#: there was a split, are for training, and the four that were kept out then are for testing.
_SALT = "diffusion-renderer/2994"
#: Endings that do not make another asset: the file's kind, and the resolution as Poly Haven and ambientCG write it.
_SUFFIX = re.compile(r"\.(glb|gltf|obj|hdr|exr)$")
_RESOLUTION = re.compile(r"[_-]\d+k([_-](jpe?g|png|exr|hdr))?$")
#: File names that many models share, as Sketchfab, Google Scanned Objects and ShapeNet write them: the folder above is the
#: name.
_GENERIC = frozenset({"scene", "model", "models", "mesh", "meshes", "source", "model_normalized", "textured"})


def plain_name(name: str) -> str:
    """What makes an asset of its name: without folders, letter case, file suffix and resolution.

    Two assets of one plain name count as the same. A name that says nothing, such as ``chair/scene``, is its folder's.
    """
    parts = [part for part in name.lower().split("/") if part]
    plain = [_RESOLUTION.sub("", _SUFFIX.sub("", part)) for part in parts]
    return next((part for part in reversed(plain) if part not in _GENERIC), plain[-1] if plain else "")


def split_of(kind: str, name: str) -> Split:
    """The split of a "model", "material" or "panorama" by its `plain_name`."""
    digest = hashlib.sha256(f"{_SALT}/{kind}/{plain_name(name)}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64 else "train"


def in_split(kind: str, names: Iterable[str], split: str) -> list[str]:
    """The names that belong to ``split``, one of `settings.SPLITS`."""
    return [name for name in names if split in ("all", split_of(kind, name))]


def named_assets(meta: Mapping[str, Any]) -> NamedAssets:
    """The assets from files that a clip shows, after its clip.json.

    Clips rendered before there were ``sources`` could only have a panorama from a file. Clips of public data sets name none:
    their pictures are not made of assets.
    """
    assets = meta.get("assets", {})
    sources = assets.get("sources")
    if sources is not None:
        return frozenset((entry["kind"], entry["name"]) for entry in sources if entry.get("kind") in KINDS)
    panoramas = (assets.get("panorama"), *assets.get("relit_panoramas", ())) if "seed" in meta else ()
    return frozenset(("panorama", name) for name in panoramas if isinstance(name, str) and not name.startswith("procedural"))


def by_kind(assets: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """For JSON: the sorted names of every one of `KINDS`."""
    found = frozenset(assets)
    return {kind: sorted(name for of, name in found if of == kind) for kind in KINDS}


def from_kinds(value: Mapping[str, Iterable[str]]) -> NamedAssets:
    """The inverse of `by_kind`."""
    return frozenset((kind, name) for kind in KINDS for name in value.get(kind, ()))
