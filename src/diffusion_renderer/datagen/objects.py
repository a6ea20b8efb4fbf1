"""What stands in a scene, before any renderer: `Part`, `Asset`, `SceneObject`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.procedural.materials import Material
from diffusion_renderer.datagen.procedural.shapes import Mesh, transformed


@dataclass(frozen=True)
class Part:
    """A mesh and what it is made of."""

    mesh: Mesh
    material: Material


@dataclass(frozen=True)
class Source:
    """Where an asset comes from: written into every clip that shows it.

    Attributes
    ----------
    name : of the asset; the split into training and evaluation goes by it.
    kind : "model", "material", "panorama" or "procedural".
    licence : SPDX name, or "unknown" when nothing was said about the file.
    author : empty when unknown.
    """

    name: str
    kind: str = "procedural"
    licence: str = "Apache-2.0"
    author: str = ""

    def to_json(self) -> dict[str, str]:
        """As plain values."""
        return {"name": self.name, "kind": self.kind, "licence": self.licence, "author": self.author}


@dataclass(frozen=True)
class Asset:
    """A 3D asset: parts in one common frame, +y up, centred so that all lies within the unit sphere and touches it."""

    name: str
    parts: tuple[Part, ...]
    source: Source


@dataclass(frozen=True)
class SceneObject:
    """Something that stands in a scene and moves as one.

    Attributes
    ----------
    parts : meshes in world space, where the object stands when it is at rest.
    name : shown in clip.json.
    sources : the assets used, for clip.json.
    poses : rigid motion per frame, applied to the world-space meshes; None at rest.
    """

    parts: tuple[Part, ...]
    name: str
    sources: tuple[Source, ...] = ()
    poses: Float[np.ndarray, "frames 4 4"] | None = None

    @property
    def positions(self) -> Float[np.ndarray, "vertices 3"]:
        """All vertices at rest."""
        return np.concatenate([part.mesh.positions for part in self.parts])


def solid(mesh: Mesh, material: Material, source: Source | None = None) -> SceneObject:
    """An object of one part, named after its mesh. Under a normal map its texture is laid on the right way round."""
    if material.normal is not None:
        mesh = unmirrored(mesh)
    sources = (Source(f"{mesh.name}, {material.name}"),) if source is None else (Source(mesh.name), source)
    return SceneObject((Part(mesh, material),), mesh.name, sources)


def placed(
    item: SceneObject, matrix: Float[np.ndarray, "3 3"] | None = None, offset: Float[np.ndarray, 3] | None = None
) -> SceneObject:
    """The object with every vertex p at ``matrix @ p + offset``; its poses are kept as they are."""
    matrix = np.eye(3) if matrix is None else matrix
    offset = np.zeros(3) if offset is None else offset
    return replace(item, parts=tuple(replace(part, mesh=transformed(part.mesh, matrix, offset)) for part in item.parts))


def unmirrored(mesh: Mesh) -> Mesh:
    """The mesh with its texture laid on so that, seen from outside, v falls upwards when u grows to the right.

    Normal maps take this for granted (see `Material.normal`); on a patch that is laid on mirrored, v is turned round. A patch
    is what edges join.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces, count = mesh.faces, len(mesh.positions)
    rows, columns = faces.ravel(), np.roll(faces, 1, axis=1).ravel()
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, patch = connected_components(graph, directed=False)
    corner, uv = mesh.positions[faces], mesh.uv[faces]
    outside = (np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]) * mesh.normals[faces].sum(1)).sum(-1)
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    area = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    # Positive where (u, v, normal) is right-handed: v grows upwards.
    handed = np.bincount(patch[faces[:, 0]], area * np.sign(outside), minlength=patch.max() + 1)
    low, high = np.full(len(handed), np.inf), np.full(len(handed), -np.inf)
    np.minimum.at(low, patch, mesh.uv[:, 1])
    np.maximum.at(high, patch, mesh.uv[:, 1])
    turned = np.where(handed[patch] > 0, (low + high)[patch] - mesh.uv[:, 1], mesh.uv[:, 1])
    return replace(mesh, uv=np.stack((mesh.uv[:, 0], turned), -1))
