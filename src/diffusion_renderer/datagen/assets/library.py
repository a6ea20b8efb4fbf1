"""Folders of assets: listing, loading, what was skipped and why."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffusion_renderer.core.errors import InputError, one_line
from diffusion_renderer.core.names import check_name
from diffusion_renderer.datagen.assets.assemble import parts
from diffusion_renderer.datagen.assets.gltf_scene import read_gltf
from diffusion_renderer.datagen.assets.limits import AssetLimits, SkippedAsset, Unusable
from diffusion_renderer.datagen.assets.manifest import MANIFEST, Licences
from diffusion_renderer.datagen.assets.maps import MapFiles, find_materials, read_material
from diffusion_renderer.datagen.assets.obj import read_obj
from diffusion_renderer.datagen.assets.split import in_split
from diffusion_renderer.datagen.objects import Asset, Source
from diffusion_renderer.datagen.procedural.materials import Material
from diffusion_renderer.datagen.procedural.panoramas import list_panoramas
from diffusion_renderer.datagen.settings import SPLITS

_MODEL_SUFFIXES = (".glb", ".gltf", ".obj")
_KINDS = {"models": "model", "materials": "material", "panoramas": "panorama"}
_FOLDERS = {"models": ("models",), "materials": ("materials",), "panoramas": ("panoramas", "hdri")}
#: OBJ files without normals are smooth across edges less sharp than this, in degrees; glTF without normals is flat.
_OBJ_CREASE = 40.0
#: Bytes of meshes and textures that a library keeps; reading a model takes 0.3 s on average, which a clip must not cost.
_KEPT_BYTES = 512 * 2**20

Loaded = TypeVar("Loaded")


def asset_folders(folder: Path) -> dict[str, Path | None]:
    """The folders of models, materials and panoramas inside ``folder``; None for one that is not there.

    Raises InputError when none is.
    """
    folder = Path(folder)
    found = {
        kind: next((folder / name for name in names if (folder / name).is_dir()), None) for kind, names in _FOLDERS.items()
    }
    if not any(found.values()):
        what = "a folder" if folder.is_dir() else "no folder"
        expected = "a folder of assets with the folders models, materials, hdri (or panoramas), or some of them"
        raise InputError(expected, f"{what} {folder} with none", "check the path")
    return found


class AssetLibrary:
    """Models, materials and panoramas in folders, by name, the same every time.

    Parameters
    ----------
    models : searched below for .glb, .gltf and .obj files. A model's name is its file's, without the suffix; where that is
        not unique, its path below the folder.
    materials : as in `maps.find_materials`.
    panoramas : .hdr and .exr files, directly in the folder.
    limits : what is too much.
    split : "train" or "test" lists only the assets that `split.split_of` gives to it.

    Raises InputError for a path that is not a folder, and for a folder without an asset of the split. Listing opens no file.
    Can be sent to other processes; the caches stay.
    """

    def __init__(
        self,
        models: Path | None = None,
        materials: Path | None = None,
        panoramas: Path | None = None,
        limits: AssetLimits | None = None,
        split: str = "all",
    ) -> None:
        self.limits = limits or AssetLimits()
        given = {"models": models, "materials": materials, "panoramas": panoramas}
        self._folders = {kind: _folder(kind, path) for kind, path in given.items() if path is not None}
        check_name("split", split, SPLITS)
        find = {"models": _find_models, "materials": find_materials, "panoramas": _find_panoramas}
        entries = {name: _kept(_KINDS[name], find[name](folder), split, folder) for name, folder in self._folders.items()}
        self._models: dict[str, Path] = entries.get("models", {})
        self._materials: dict[str, MapFiles] = entries.get("materials", {})
        self._panoramas: dict[str, Path] = entries.get("panoramas", {})
        self._licences = {_KINDS[name]: Licences(folder, _KINDS[name]) for name, folder in self._folders.items()}
        self.skipped: dict[str, str] = {}
        self._cache: OrderedDict[str, Any] = OrderedDict()

    @classmethod
    def from_folder(cls, folder: Path, limits: AssetLimits | None = None, split: str = "all") -> AssetLibrary:
        """A folder with any of ``models``, ``materials``, ``panoramas`` (or ``hdri``). Raises InputError when it has none."""
        return cls(**asset_folders(folder), limits=limits, split=split)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(self._models)

    @property
    def material_names(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(self._materials)

    @property
    def panorama_names(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(self._panoramas)

    def model(self, name: str) -> Asset:
        """The model. Raises SkippedAsset when it cannot be used, InputError when there is no such name."""
        path = _known("model", name, self._models)

        def load() -> Asset:
            read, crease = (read_obj, _OBJ_CREASE) if path.suffix.lower() == ".obj" else (read_gltf, 0.0)
            return Asset(name, parts(read(path, self.limits), self.limits, crease), self.source("model", name))

        return self._loaded(f"model {name}", name, load)

    def material(self, name: str) -> tuple[Material, Source]:
        """The material. Raises SkippedAsset when it cannot be used, InputError when there is no such name."""
        maps = _known("material", name, self._materials)
        load = lambda: (read_material(name, maps, self.limits), self.source("material", name))  # noqa: E731
        return self._loaded(f"material {name}", name, load)

    def panorama_path(self, name: str) -> Path:
        """The file of a panorama. Raises InputError when there is no such name."""
        return _known("panorama", name, self._panoramas)

    def source(self, kind: str, name: str) -> Source:
        """Licence and author of a "model", "material" or "panorama". Raises InputError for unknown kinds and names."""
        lists = {"model": self._models, "material": self._materials, "panorama": self._panoramas}
        if kind not in lists:
            raise InputError(f"one of {', '.join(lists)}", kind, "choose one of these kinds")
        entry = _known(kind, name, lists[kind])
        path = entry
        if isinstance(entry, MapFiles):
            path = next(iter(entry.files.values()))
        return self._licences[kind].source(name, path)

    def to_json(self) -> dict[str, Any]:
        """What decides the assets, as plain values; folders by their own name only, so that no machine's paths are stored.

        A digest of the assets' names tells folders of one name apart; files that change under their names are not noticed.
        """
        names = {kind: self._folders[kind].resolve().name if kind in self._folders else None for kind in _FOLDERS}
        listing = json.dumps([self.model_names, self.material_names, self.panorama_names])
        digest = hashlib.sha256(listing.encode()).hexdigest()[:16]
        return {**names, "names": digest, "limits": self.limits.to_json()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}

    def _loaded(self, key: str, name: str, load: Callable[[], Loaded]) -> Loaded:
        if key in self.skipped:
            raise SkippedAsset(name, self.skipped[key])
        if key not in self._cache:
            try:
                self._cache[key] = load()
            except InputError as error:
                if MANIFEST in error.expected or "annotations" in error.expected:
                    raise  # not about this asset
                self._skip(key, name, str(error), error)
            except Unusable as error:
                self._skip(key, name, str(error), error)
            except Exception as error:  # damaged files of strangers fail in every way; one of them must not end a long run
                self._skip(key, name, f"cannot be read ({type(error).__name__}: {error})", error)
            while len(self._cache) > 1 and sum(map(_bytes, self._cache.values())) > _KEPT_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _skip(self, key: str, name: str, reason: str, error: Exception) -> None:
        self.skipped[key] = one_line(reason)
        raise SkippedAsset(name, self.skipped[key]) from error


def _bytes(loaded: Asset | tuple[Material, Source]) -> int:
    """Memory of what was loaded."""
    pairs = [(part.mesh, part.material) for part in loaded.parts] if isinstance(loaded, Asset) else [(None, loaded[0])]
    arrays = [value for pair in pairs for thing in pair if thing is not None for value in vars(thing).values()]
    return sum(value.nbytes for value in arrays if isinstance(value, np.ndarray))


def _folder(kind: str, path: Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"a folder of {kind}", f"{path}, which is not a folder", "check the path, or leave it out")
    return path


def _kept(kind: str, entries: dict[str, Any], split: str, folder: Path) -> dict[str, Any]:
    """The entries of one split; a folder without any is refused unless all are asked for."""
    kept = in_split(kind, entries, split)
    if not kept and split != "all":
        found = f"none among {len(entries)}" + (", which are all for the other split" if entries else "")
        advice = f"add more {kind}s (about one in five is for testing), leave the folder out, or use the split all"
        raise InputError(f"a {kind} of the split {split} in {folder}", found, advice)
    return {name: entries[name] for name in kept}


def _known(kind: str, name: str, entries: dict[str, Any]) -> Any:
    if name not in entries:
        raise InputError(f"the name of a {kind}", name, f"choose one of the {len(entries)} names of the library")
    return entries[name]


def _find_models(folder: Path) -> dict[str, Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _MODEL_SUFFIXES)
    for name_of in (
        lambda path: path.stem,
        lambda path: path.relative_to(folder).with_suffix("").as_posix(),
        lambda path: path.relative_to(folder).as_posix(),
    ):
        named: dict[str, list[Path]] = {}
        for path in files:
            named.setdefault(name_of(path), []).append(path)
        if all(len(paths) == 1 for paths in named.values()):
            break
    return {name: paths[0] for name, paths in sorted(named.items())}


def _find_panoramas(folder: Path) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in list_panoramas(folder):
        named.setdefault(path.stem if path.stem not in named else path.name, path)
    return dict(sorted(named.items()))
