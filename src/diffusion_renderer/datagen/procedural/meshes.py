"""`Mesh`, and what can be done with any mesh: shading normals, texture coordinates, joining, moving.

Everything is a triangle mesh, so that all scenes share one kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

#: Texture coordinates stay in [0, MAX_UV): `renderer` stores the slot of a mesh in the whole multiples above it.
MAX_UV = 32.0
SurfaceFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Mesh:
    """Triangles with one normal and one texture coordinate per vertex; counter-clockwise seen from outside."""

    positions: Float[np.ndarray, "vertices 3"]
    normals: Float[np.ndarray, "vertices 3"]
    uv: Float[np.ndarray, "vertices 2"]
    faces: Int[np.ndarray, "faces 3"]
    name: str = "mesh"


def surface(function: SurfaceFunction, columns: int, rows: int) -> Mesh:
    """The mesh of ``function(u, v) -> positions`` over the unit square, with normals by central differences.

    Normals point away from the origin on average, so the surface should enclose it or face away from it.
    """
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    u, v = u.ravel(), v.ravel()
    positions = function(u, v)
    # A little inside of the border: at the poles of a sphere one derivative vanishes.
    step = 1e-4
    inner_u, inner_v = np.clip(u, 2 * step, 1 - 2 * step), np.clip(v, 2 * step, 1 - 2 * step)
    along_u = function(inner_u + step, inner_v) - function(inner_u - step, inner_v)
    along_v = function(inner_u, inner_v + step) - function(inner_u, inner_v - step)
    normals = np.cross(along_u, along_v)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    outwards = positions / np.maximum(np.linalg.norm(positions, axis=-1, keepdims=True), 1e-9)
    normals = normals / np.maximum(length, 1e-30)
    if (normals * positions).sum() < 0:
        normals = -normals
    normals = np.where(length > 1e-14, normals, outwards)
    return oriented(Mesh(positions, normals, np.stack((u, v), -1), _grid_faces(columns, rows)))


def _grid_faces(columns: int, rows: int) -> np.ndarray:
    corner = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).ravel()
    a, b, c, d = corner, corner + 1, corner + columns + 2, corner + columns + 1
    return np.concatenate((np.stack((a, b, c), -1), np.stack((a, c, d), -1)))


def oriented(mesh: Mesh) -> Mesh:
    """Turn the triangles so that they wind counter-clockwise around their normals; drop those without area."""
    a, b, c = (mesh.positions[mesh.faces[:, i]] for i in range(3))
    face = np.cross(b - a, c - a)
    agree = (face * mesh.normals[mesh.faces].sum(1)).sum(-1)
    faces = np.where((agree < 0)[:, None], mesh.faces[:, [0, 2, 1]], mesh.faces)
    return replace(mesh, faces=faces[np.linalg.norm(face, axis=-1) > 1e-12])


def joined(*meshes: Mesh) -> Mesh:
    """Several meshes as one."""
    offsets = np.cumsum([0] + [len(mesh.positions) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.positions for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.uv for mesh in meshes]),
        np.concatenate([mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=True)]),
        meshes[0].name,
    )


def transformed(mesh: Mesh, matrix: Float[np.ndarray, "3 3"], offset: Float[np.ndarray, 3]) -> Mesh:
    """``matrix @ p + offset`` for every vertex; normals by the inverse transpose. ``matrix`` must not mirror."""
    normals = mesh.normals @ np.linalg.inv(matrix)
    normals = normals / np.linalg.norm(normals, axis=-1, keepdims=True)
    return replace(mesh, positions=mesh.positions @ matrix.T + offset, normals=normals)


def flat_shaded(mesh: Mesh) -> Mesh:
    """Every triangle with its own vertices and its own normal."""
    corners = mesh.positions[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-30)
    return Mesh(
        corners.reshape(-1, 3),
        np.repeat(normals, 3, axis=0),
        mesh.uv[mesh.faces].reshape(-1, 2),
        np.arange(3 * len(mesh.faces)).reshape(-1, 3),
        mesh.name,
    )


def centred(mesh: Mesh) -> Mesh:
    """Moved and scaled so that the bounding box is centred at the origin and the farthest vertex is at distance 1."""
    middle = (mesh.positions.min(0) + mesh.positions.max(0)) / 2
    radius = np.linalg.norm(mesh.positions - middle, axis=-1).max()
    return replace(mesh, positions=(mesh.positions - middle) / radius)


# --- meshes from bare triangles ---------------------------------------------------------------------------------------


def solid(
    positions: Float[np.ndarray, "vertices 3"],
    faces: Int[np.ndarray, "faces 3"],
    uv: Float[np.ndarray, "vertices 2"] | None = None,
    crease: float = 30.0,
    name: str = "mesh",
) -> Mesh:
    """A mesh from consistently wound triangles, turned inside out where its signed volume is negative.

    Shading is smooth where neighbouring faces meet at up to ``crease`` degrees and sharp above. Vertices at the same place
    count as one for that, so that texture seams do not show. ``uv`` None projects from six sides, see `box_uv`. Triangles
    without area are dropped. The surface should be closed; an open one may come out inside out.
    """
    a, b, c = (positions[faces[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)
    # Divergence theorem, about the middle so that an open surface is judged by its shape, not by where it lies.
    if ((a - positions.mean(0)) * area).sum() < 0:
        faces, area = faces[:, ::-1], -area
    kept = np.linalg.norm(area, axis=-1) > 1e-12
    faces, area = faces[kept], area[kept]
    normals = _creased_normals(weld(positions), faces, area, np.radians(crease))
    corner_uv = box_uv(positions[faces], area) if uv is None else uv[faces]
    return _indexed(positions, faces, normals, corner_uv.reshape(-1, 2), name)


def weld(positions: Float[np.ndarray, "vertices 3"]) -> Int[np.ndarray, " vertices"]:
    """One number per place: vertices nearer than about 1e-6 get the same one."""
    # The offset keeps round numbers, such as 1/64, away from the edges of the cells, where round-off would part them.
    return np.unique(_hashed(np.round(positions * 1e6 + 0.31415926).astype(np.int64)), return_inverse=True)[1]


def _hashed(rows: Int[np.ndarray, "rows values"]) -> Int[np.ndarray, " rows"]:
    # Odd multipliers spread the rows over 2^64 values: two of 10^5 different rows agree with a probability of about 1e-9.
    factors = np.random.default_rng(0).integers(1, 2**63 - 1, rows.shape[1]) | 1
    with np.errstate(over="ignore"):
        return (rows * factors).sum(-1)


def _creased_normals(place: np.ndarray, faces: np.ndarray, area: np.ndarray, crease: float) -> Float[np.ndarray, "corners 3"]:
    """Per corner the mean of the area vectors of those faces around its place that are tilted little against its own face."""
    corner_place = place[faces].ravel()
    unit = area / np.linalg.norm(area, axis=-1, keepdims=True)
    total = _summed(np.repeat(area, 3, axis=0), corner_place)
    smooth = total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-30)
    # Where all faces around a place lie within half the angle of their mean, any two of them lie within the angle.
    tilted = np.einsum("ij,ij->i", np.repeat(unit, 3, axis=0), smooth[corner_place]) < np.cos(0.5 * crease)
    sharp = np.zeros(len(smooth), bool)
    sharp[corner_place[tilted]] = True
    normals = smooth[corner_place]
    corners = np.flatnonzero(sharp[corner_place])
    if len(corners):
        mine, other = _pairs(corner_place[corners])
        own, around = corners[mine] // 3, corners[other] // 3
        near = (own == around) | (np.einsum("ij,ij->i", unit[own], unit[around]) >= np.cos(crease))
        total = _summed(area[around[near]], mine[near])
        normals[corners] = total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-30)
    return normals


def _summed(vectors: Float[np.ndarray, "rows 3"], group: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "groups 3"]:
    return np.stack([np.bincount(group, weights=vectors[:, k]) for k in range(3)], -1)


def _pairs(group: Int[np.ndarray, " rows"]) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows of one group, each row with itself included."""
    order = np.argsort(group, kind="stable")
    count = np.bincount(group)
    start = np.cumsum(count) - count
    mine = np.repeat(np.arange(len(group)), count[group])
    first = np.cumsum(count[group]) - count[group]
    return mine, order[start[group[mine]] + np.arange(len(mine)) - first[mine]]


def box_uv(corners: Float[np.ndarray, "faces 3 3"], area: Float[np.ndarray, "faces 3"]) -> Float[np.ndarray, "faces 3 2"]:
    """Texture coordinates by projecting each face along the axis it faces most: one texture per 2 units, upright, not mirrored.

    ``area`` are the faces' area vectors. All coordinates are at least 0.
    """
    axis = np.abs(area).argmax(-1)
    sign = np.sign(np.take_along_axis(area, axis[:, None], -1))
    x, y, z = np.moveaxis(corners, -1, 0)
    right = np.where((axis == 0)[:, None], -sign * z, np.where((axis == 1)[:, None], x, sign * x))
    up = np.where((axis == 1)[:, None], -sign * z, y)
    uv = 0.5 * np.stack((right, -up), -1)
    return uv - np.floor(uv.reshape(-1, 2).min(0))


def _indexed(positions: np.ndarray, faces: np.ndarray, normals: np.ndarray, uv: np.ndarray, name: str) -> Mesh:
    """Corners with equal place, normal and texture coordinate become one vertex."""
    index = faces.ravel()
    keys = np.concatenate((index[:, None], np.round(normals * 1e4), np.round(uv * 1e5)), -1).astype(np.int64)
    _, first, inverse = np.unique(_hashed(keys), return_index=True, return_inverse=True)
    return Mesh(positions[index[first]], normals[first], uv[first], inverse.reshape(-1, 3), name)
