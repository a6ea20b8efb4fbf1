"""Procedural meshes with texture coordinates. Everything is a triangle mesh, so that all scenes share one kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

#: Texture coordinates stay in [0, MAX_UV): `renderer` stores the slot of a mesh in the whole multiples above it.
MAX_UV = 32.0
_SurfaceFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Mesh:
    """Triangles with one normal and one texture coordinate per vertex; counter-clockwise seen from outside."""

    positions: Float[np.ndarray, "vertices 3"]
    normals: Float[np.ndarray, "vertices 3"]
    uv: Float[np.ndarray, "vertices 2"]
    faces: Int[np.ndarray, "faces 3"]
    name: str = "mesh"


def surface(function: _SurfaceFunction, columns: int, rows: int) -> Mesh:
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


# --- the shapes -------------------------------------------------------------------------------------------------------


def plane(half_size: float, repeats: float) -> Mesh:
    """A square at y = 0 facing up, its texture repeated ``repeats`` times."""

    def function(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.stack(((2 * u - 1) * half_size, np.zeros_like(u), (1 - 2 * v) * half_size), -1)

    mesh = surface(function, 1, 1)
    mesh = replace(mesh, normals=np.tile([0.0, 1.0, 0.0], (4, 1)), uv=mesh.uv * min(repeats, MAX_UV - 1), name="plane")
    return oriented(mesh)


def sphere(columns: int = 64, rows: int = 32) -> Mesh:
    """Radius 1, with exact normals."""
    mesh = surface(lambda u, v: _sphere_direction(u, v), columns, rows)
    return replace(mesh, normals=mesh.positions / np.linalg.norm(mesh.positions, axis=-1, keepdims=True), name="sphere")


def _sphere_direction(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    phi, theta = 2 * np.pi * u, np.pi * v
    return np.stack((np.sin(phi) * np.sin(theta), np.cos(theta), np.cos(phi) * np.sin(theta)), -1)


def _lathe(radius: Callable[[np.ndarray], np.ndarray], height: Callable[[np.ndarray], np.ndarray]) -> _SurfaceFunction:
    """The surface of revolution of a profile ``(radius(v), height(v))`` about the y axis."""

    def function(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        r, phi = radius(v), 2 * np.pi * u
        return np.stack((r * np.sin(phi), height(v), r * np.cos(phi)), -1)

    return function


def _polyline(points: list[tuple[float, float]], columns: int, rows: int = 6) -> Mesh:
    """Revolve a polyline of (radius, height) with sharp edges at its corners."""
    parts = []
    for (r0, y0), (r1, y1) in pairwise(points):
        radius = lambda v, a=r0, b=r1: a + (b - a) * v  # noqa: E731
        height = lambda v, a=y0, b=y1: a + (b - a) * v  # noqa: E731
        parts.append(surface(_lathe(radius, height), columns, rows))
    return joined(*parts)


def cylinder(rng: np.random.Generator) -> Mesh:
    """Upright, capped."""
    h = rng.uniform(0.3, 1.8)
    return _polyline([(0, h), (1, h), (1, -h), (0, -h)], int(rng.choice([6, 8, 64], p=[0.1, 0.1, 0.8])))


def cone(rng: np.random.Generator) -> Mesh:
    """Upright, with its base; sometimes truncated."""
    h, tip = rng.uniform(0.5, 1.3), rng.choice([0.0, rng.uniform(0.2, 0.8)])
    profile = [(tip, h), (1.0, -h), (0.0, -h)]
    return _polyline([(0.0, h), *profile] if tip > 0 else profile, int(rng.choice([4, 6, 64], p=[0.1, 0.1, 0.8])))


def torus(rng: np.random.Generator) -> Mesh:
    """A ring around the y axis."""
    r = rng.uniform(0.15, 0.48)
    return surface(_lathe(lambda v: 1 + r * np.cos(2 * np.pi * v), lambda v: r * np.sin(2 * np.pi * v)), 64, 32)


def capsule(rng: np.random.Generator) -> Mesh:
    """A cylinder with half-spheres for ends."""
    h = rng.uniform(0.3, 1.4)
    length = np.pi + 2 * h

    def profile(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = v * length
        top, bottom = np.minimum(s, np.pi / 2), np.maximum(s - np.pi / 2 - 2 * h, 0)
        angle = top + bottom
        return np.sin(angle), np.cos(angle) + h - np.clip(s - np.pi / 2, 0, 2 * h)

    return surface(_lathe(lambda v: profile(v)[0], lambda v: profile(v)[1]), 48, 48)


def vase(rng: np.random.Generator) -> Mesh:
    """A turned body with a random smooth profile, closed at both ends."""
    waves = [(rng.normal(0, 0.28 / k), rng.uniform(0, 2 * np.pi), k) for k in range(1, 5)]
    h, blunt = rng.uniform(0.8, 1.8), rng.integers(3, 9) * 2

    def radius(v: np.ndarray) -> np.ndarray:
        swing = sum(a * np.cos(np.pi * k * v + p) for a, p, k in waves)
        return np.clip(0.75 + swing, 0.25, 1.5) * (1 - (2 * v - 1) ** blunt) ** 0.5

    return surface(_lathe(radius, lambda v: h * (1 - 2 * v)), 56, 64)


def superquadric(rng: np.random.Generator) -> Mesh:
    """Between a box, a sphere, a cylinder and an octahedron."""
    e1, e2 = rng.uniform(0.25, 1.9, 2)

    def power(x: np.ndarray, e: float) -> np.ndarray:
        return np.sign(x) * np.abs(x) ** e

    def function(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        phi, theta = 2 * np.pi * u, np.pi * (v - 0.5)
        ring = power(np.cos(theta), e1)
        return np.stack((ring * power(np.sin(phi), e2), power(np.sin(theta), e1), ring * power(np.cos(phi), e2)), -1)

    return surface(function, 72, 48)


def blob(rng: np.random.Generator) -> Mesh:
    """A sphere displaced by a few random waves: pebbles, fruit, lumps."""
    count = int(rng.integers(3, 9))
    frequency = rng.normal(0, 1, (count, 3)) * rng.uniform(1.0, 4.0)
    phase, strength = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.05, 0.45) / np.sqrt(count)

    def function(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        d = _sphere_direction(u, v)
        return d * (1 + strength * np.sin(d @ frequency.T + phase).sum(-1, keepdims=True))

    if rng.random() < 0.25:  # a faceted stone
        return flat_shaded(surface(function, int(rng.integers(7, 14)), int(rng.integers(5, 9))))
    return surface(function, 72, 40)


def cuboid() -> Mesh:
    """A cube with sharp edges; each face has the whole texture."""
    return _box(0.0, 1)


def rounded_box(rng: np.random.Generator) -> Mesh:
    """A cube with rounded edges."""
    return _box(rng.uniform(0.04, 0.5), 24)


def _box(radius: float, cells: int) -> Mesh:
    inner = 1.0 - radius
    parts = []
    for axis in range(3):
        for sign in (-1.0, 1.0):

            def function(u: np.ndarray, v: np.ndarray, axis: int = axis, sign: float = sign) -> np.ndarray:
                p = np.zeros((len(u), 3))
                p[:, axis], p[:, (axis + 1) % 3], p[:, (axis + 2) % 3] = sign, 2 * u - 1, 2 * v - 1
                core = np.clip(p, -inner, inner)
                out = p - core
                length = np.linalg.norm(out, axis=-1, keepdims=True)
                return core + radius * out / np.maximum(length, 1e-12)

            parts.append(surface(function if radius > 0 else _sharp(axis, sign), cells, cells))
    return joined(*parts)


def _sharp(axis: int, sign: float) -> _SurfaceFunction:
    def function(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        p = np.zeros((len(u), 3))
        p[:, axis], p[:, (axis + 1) % 3], p[:, (axis + 2) % 3] = sign, 2 * u - 1, 2 * v - 1
        return p

    return function


_SHAPES: dict[str, tuple[float, Callable[[np.random.Generator], Mesh]]] = {
    "cuboid": (0.13, lambda rng: cuboid()),
    "rounded box": (0.12, rounded_box),
    "sphere": (0.16, lambda rng: sphere()),
    "cylinder": (0.11, cylinder),
    "cone": (0.07, cone),
    "torus": (0.09, torus),
    "capsule": (0.06, capsule),
    "superquadric": (0.08, superquadric),
    "blob": (0.10, blob),
    "vase": (0.08, vase),
}


def random_shape(rng: np.random.Generator) -> Mesh:
    """A random shape, stretched at random, within the unit sphere, its texture repeated one to four times."""
    names = list(_SHAPES)
    name = str(rng.choice(names, p=np.array([_SHAPES[n][0] for n in names])))
    mesh = _SHAPES[name][1](rng)
    if name != "sphere" or rng.random() < 0.3:
        mesh = transformed(mesh, np.diag(np.exp(rng.uniform(-0.4, 0.4, 3))), np.zeros(3))
    repeats = rng.choice([1.0, 2.0, 3.0, 4.0], p=[0.4, 0.3, 0.15, 0.15])
    return replace(centred(mesh), uv=mesh.uv * repeats, name=name)
