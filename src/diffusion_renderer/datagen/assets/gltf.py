"""glTF 2.0 containers (.glb, .gltf): JSON, buffers and accessors as arrays.

Read here and not with trimesh, whose reader (5.2) leaves out what decides how a model looks: second texture coordinates,
texture transforms, the scale of normal maps, normalised integers, sparse accessors.
Source: Khronos, glTF 2.0 specification, sections 3.6 (buffers, accessors), 4 (GLB); KHR_draco_mesh_compression.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from diffusion_renderer.datagen.assets.limits import AssetLimits, Unusable

_MAGIC, _JSON, _BINARY = 0x46546C67, 0x4E4F534A, 0x004E4942
_COMPONENTS = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")


class Document:
    """One glTF file: ``json`` as parsed, and its binary data on demand.

    Raises Unusable for files over the limit, data compressed with meshopt, and references outside of the files at hand.
    Other damage shows as ValueError, KeyError, IndexError or TypeError.
    """

    def __init__(self, path: Path, limits: AssetLimits) -> None:
        self.path, self.limits = path, limits
        data = self._file(path)
        self._binary: bytes | None = None
        if path.suffix.lower() == ".glb":
            text, self._binary = _chunks(data)
        else:
            text = data
        self.json: dict[str, Any] = json.loads(text)
        version = str(self.json.get("asset", {}).get("version", "2.0"))
        if not version.startswith("2"):
            raise Unusable(f"glTF version {version}; only version 2 is read")
        if any(name in self.json.get("extensionsRequired", ()) for name in _MESHOPT):
            raise Unusable("compressed with meshopt, which is not read")
        self._buffers: dict[int, bytes] = {}
        self._decoded: dict[int, np.ndarray] = {}

    def _file(self, path: Path) -> bytes:
        size = path.stat().st_size
        if size > self.limits.max_file_bytes:
            raise Unusable(f"{path.name} has {size} bytes, more than {self.limits.max_file_bytes}")
        return path.read_bytes()

    def resource(self, uri: str) -> bytes:
        """The bytes of a data URI or of a file beside this one."""
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        path = Path(unquote(uri))
        if path.is_absolute() or "://" in uri:
            raise Unusable("refers to a file by an absolute address")
        return self._file(self.path.parent / path)

    def buffer_view(self, index: int) -> bytes:
        """The bytes of a buffer view."""
        view = self.json["bufferViews"][index]
        start = view.get("byteOffset", 0)
        data = self._buffer(view["buffer"])[start : start + view["byteLength"]]
        if len(data) != view["byteLength"]:
            raise Unusable("its binary data is cut short")
        return data

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            uri = self.json["buffers"][index].get("uri")
            if uri is None and (index > 0 or self._binary is None):
                raise Unusable("its binary data is missing")
            self._buffers[index] = self._binary if uri is None else self.resource(uri)
        return self._buffers[index]

    def accessor(self, index: int) -> np.ndarray:
        """``count width``; normalised integers as float32 in [0, 1] or [-1, 1], other values as stored."""
        if index in self._decoded:
            return self._decoded[index]
        entry = self.json["accessors"][index]
        count, width = entry["count"], _WIDTHS[entry["type"]]
        if count > 3 * self.limits.max_faces + 3:
            raise Unusable(f"an array of {count} entries, more than {self.limits.max_faces} triangles need")
        dtype = np.dtype(_COMPONENTS[entry["componentType"]]).newbyteorder("<")
        values = np.zeros((count, width), dtype)
        if "bufferView" in entry:
            values = self._strided(entry["bufferView"], entry.get("byteOffset", 0), count, width, dtype)
        if "sparse" in entry:
            values = self._sparse(entry["sparse"], values)
        return _normalised(values) if entry.get("normalized") else values

    def _strided(self, view: int, offset: int, count: int, width: int, dtype: np.dtype) -> np.ndarray:
        stride = self.json["bufferViews"][view].get("byteStride") or width * dtype.itemsize
        data = self.buffer_view(view)
        if offset + (count - 1) * stride + width * dtype.itemsize > len(data) or stride < width * dtype.itemsize:
            raise Unusable("an array reaches beyond its data")
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize)).copy()

    def _sparse(self, sparse: dict[str, Any], values: np.ndarray) -> np.ndarray:
        where, new, count = sparse["indices"], sparse["values"], sparse["count"]
        kind = np.dtype(_COMPONENTS[where["componentType"]]).newbyteorder("<")
        rows = self._strided(where["bufferView"], where.get("byteOffset", 0), count, 1, kind)[:, 0]
        values[rows] = self._strided(new["bufferView"], new.get("byteOffset", 0), count, values.shape[1], values.dtype)
        return values

    def decompress(self, primitive: dict[str, Any]) -> None:
        """Decode a Draco-compressed primitive, so that `accessor` finds its arrays. Does nothing for other primitives."""
        extensions = primitive.get("extensions", {})
        if any(name in self.json["bufferViews"][0].get("extensions", {}) for name in _MESHOPT):
            raise Unusable("compressed with meshopt, which is not read")
        draco = extensions.get("KHR_draco_mesh_compression")
        if draco is None:
            return
        try:
            import DracoPy
        except ImportError as error:
            raise Unusable("compressed with Draco; install DracoPy to read it") from error
        decoded = DracoPy.decode(self.buffer_view(draco["bufferView"]))
        names = {unique: name for name, unique in draco["attributes"].items()}
        for attribute in decoded.attributes:
            target = primitive["attributes"].get(names.get(attribute["unique_id"]))
            if target is not None:
                values = np.asarray(attribute["data"])
                normalised = self.json["accessors"][target].get("normalized", False)
                self._decoded[target] = _normalised(values) if normalised else values
        self._decoded[primitive["indices"]] = np.asarray(decoded.faces).reshape(-1, 1)


def _chunks(data: bytes) -> tuple[bytes, bytes | None]:
    if len(data) < 20 or struct.unpack_from("<I", data)[0] != _MAGIC:
        raise Unusable("not a GLB file")
    chunks: dict[int, bytes] = {}
    offset = 12
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from("<II", data, offset)
        chunks.setdefault(kind, data[offset + 8 : offset + 8 + length])
        offset += 8 + length
    if _JSON not in chunks or offset > len(data):
        raise Unusable("a GLB file that is cut short")
    return chunks[_JSON], chunks.get(_BINARY)


def _normalised(values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer):
        return values
    return np.maximum(values.astype(np.float32) / np.iinfo(values.dtype).max, -1.0)
