"""Simple closed shapes, and `random_shape`, which draws one of these or of the richer ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.procedural.compositions import composition
from diffusion_renderer.datagen.procedural.meshes import (
    MAX_UV,
    Mesh,
    SurfaceFunction,
    centred,
    flat_shaded,
    joined,
    oriented,
    surface,
    transformed,
)
from diffusion_renderer.datagen.procedural.profiles import extrusion, sweep, turned_piece, vessel
from diffusion_renderer.datagen.procedural.solids import boolean, displaced

__all__ = [
    "MAX_UV",
    "SHAPE_KINDS",
    "Mesh",
    "blob",
    "capsule",
    "centred",
    "cone",
    "cuboid",
    "cylinder",
    "flat_shaded",
    "joined",
    "oriented",
    "plane",
    "random_shape",
    "rounded_box",
    "sphere",
    "superquadric",
    "surface",
    "torus",
    "transformed",
    "vase",
]

#: What `random_shape` may be asked for: everything; the paper's cubes, spheres and cylinders; everything but these.
SHAPE_KINDS = ("all", "primitives", "rich")


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


def _lathe(radius: Callable[[np.ndarray], np.ndarray], height: Callable[[np.ndarray], np.ndarray]) -> SurfaceFunction:
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
        # sin(2 pi) in floating point, raised to the power 0.25, would leave a gap of 1e-4 at the seam.
        return np.where(np.abs(x) < 1e-12, 0.0, np.sign(x) * np.abs(x) ** e)

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


def _sharp(axis: int, sign: float) -> SurfaceFunction:
    def function(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        p = np.zeros((len(u), 3))
        p[:, axis], p[:, (axis + 1) % 3], p[:, (axis + 2) % 3] = sign, 2 * u - 1, 2 * v - 1
        return p

    return function


def _displaced(rng: np.random.Generator) -> Mesh:
    bases = (rounded_box, torus, capsule, superquadric, cylinder_like)
    base = sphere(72, 40) if rng.random() < 0.3 else bases[int(rng.integers(0, len(bases)))](rng)
    return displaced(rng, base)


def cylinder_like(rng: np.random.Generator) -> Mesh:
    """A cylinder with rounded rims, fine enough everywhere to be bent or displaced."""
    h, edge = rng.uniform(0.4, 1.5), rng.uniform(6, 14)

    def radius(v: np.ndarray) -> np.ndarray:
        return (1 - np.abs(2 * v - 1) ** edge) ** (1 / edge)

    return surface(_lathe(radius, lambda v: h * (1 - 2 * v)), 64, 48)


_PRIMITIVES: dict[str, tuple[float, Callable[[np.random.Generator], Mesh]]] = {
    "cuboid": (0.34, lambda rng: cuboid()),
    "sphere": (0.33, lambda rng: sphere()),
    "cylinder": (0.33, cylinder),
}

_RICH: dict[str, tuple[float, Callable[[np.random.Generator], Mesh]]] = {
    "rounded box": (0.08, rounded_box),
    "cone": (0.05, cone),
    "torus": (0.05, torus),
    "capsule": (0.04, capsule),
    "superquadric": (0.06, superquadric),
    "blob": (0.06, blob),
    "vase": (0.05, vase),
    "displaced": (0.09, _displaced),
    "boolean": (0.14, boolean),
    "vessel": (0.08, vessel),
    "turned piece": (0.07, turned_piece),
    "sweep": (0.08, sweep),
    "extrusion": (0.08, extrusion),
    "composition": (0.07, composition),
}

#: Share of primitives among all shapes.
_PRIMITIVE_SHARE = 0.25


def random_shape(rng: np.random.Generator, kinds: str = "all") -> Mesh:
    """A random shape of `SHAPE_KINDS`, centred within the unit sphere and touching it, +y up, stretched at random.

    Its texture repeats one to four times as often as on the shape as it is made. Raises InputError for an unknown kind, and
    ModuleNotFoundError where a shape needs the package manifold3d (one of the extra ``data``) and it is missing.
    """
    if kinds not in SHAPE_KINDS:
        raise InputError(f"shapes of a kind among {', '.join(SHAPE_KINDS)}", repr(kinds), "give one of these")
    if kinds == "all":
        kinds = "primitives" if rng.random() < _PRIMITIVE_SHARE else "rich"
    table = _PRIMITIVES if kinds == "primitives" else _RICH
    weights = np.array([weight for weight, _ in table.values()])
    name = str(rng.choice(list(table), p=weights / weights.sum()))
    mesh = table[name][1](rng)
    if name != "sphere" or rng.random() < 0.3:
        stretch = 0.4 if name not in ("composition", "sweep") else 0.2
        mesh = transformed(mesh, np.diag(np.exp(rng.uniform(-stretch, stretch, 3))), np.zeros(3))
    repeats = rng.choice([1.0, 2.0, 3.0, 4.0], p=[0.4, 0.3, 0.15, 0.15])
    return replace(centred(mesh), uv=mesh.uv * min(repeats, (MAX_UV - 0.5) / float(mesh.uv.max())), name=name)
