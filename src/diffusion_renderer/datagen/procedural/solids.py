"""Solids made from other solids: displaced by noise, added to, cut from and intersected with each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.procedural.meshes import Mesh, flat_shaded, solid, weld


def displaced(rng: np.random.Generator, base: Mesh) -> Mesh:
    """Moved along its normals by noise in space: dents, lumps, ridges, coarse or fine; now and then faceted.

    Vertices at one place move together, so that a closed mesh stays closed. Strong displacement can make a surface cut itself.
    """
    place = weld(base.positions)
    normals = np.stack([np.bincount(place, weights=base.normals[:, k]) for k in range(3)], -1)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    positions = np.empty_like(normals)
    positions[place] = base.positions
    frequency = np.exp(rng.uniform(np.log(1.0), np.log(5.0)))
    height = _waves(rng, positions, frequency, rng.uniform(0.3, 1.0))
    if rng.random() < 0.35:  # ridges: sharp crests between round valleys, or turned over
        height = rng.choice([-1.0, 1.0]) * (1 - 2.5 * np.abs(height))
    strength = np.exp(rng.uniform(np.log(0.025), np.log(0.2))) * min(1.0, 2.2 / frequency)
    mesh = solid((positions + strength * height[:, None] * normals)[place], base.faces, base.uv, 60.0, "displaced")
    return flat_shaded(mesh) if rng.random() < 0.1 else mesh


def _waves(rng: np.random.Generator, positions: np.ndarray, frequency: float, persistence: float) -> Float[np.ndarray, " n"]:
    """Plane waves in random directions over three octaves from ``frequency`` (radians per unit) on; deviation about 1."""
    octave = np.repeat([1.0, 2.0, 4.0], 8)
    direction = rng.normal(0, 1, (24, 3))
    direction *= (frequency * octave * 1.5 / np.linalg.norm(direction, axis=-1))[:, None]
    weight = persistence ** np.log2(octave) / octave
    weight *= np.sqrt(2 / (weight**2).sum())
    return np.sin(positions @ direction.T + rng.uniform(0, 2 * np.pi, 24)) @ weight


# --- boolean solids (package manifold3d) ------------------------------------------------------------------------------


def boolean(rng: np.random.Generator) -> Mesh:
    """Union, difference and intersection of simple solids: machined parts, bricks with holes, dice, fittings, letters.

    Raises ModuleNotFoundError where the package manifold3d is missing. Of several pieces the largest is kept.
    """
    from manifold3d import Manifold

    kinds = {
        "cut block": _cut_block,
        "drilled block": _drilled_block,
        "rounded by a ball": _rounded_by_ball,
        "cluster": _cluster,
        "fitting": _fitting,
        "letter": _letter,
    }
    for _ in range(8):
        name = str(rng.choice(list(kinds)))
        pieces = kinds[name](rng, Manifold).decompose()
        body = max(pieces, key=lambda piece: piece.volume(), default=None)
        if body is not None and body.volume() > 0.02 and body.num_tri() <= 20_000:
            break
    else:
        body, name = Manifold.sphere(1.0, 48) - Manifold.cube((2, 2, 2)), "cut ball"
    mesh = body.to_mesh()
    positions = np.asarray(mesh.vert_properties, np.float64)[:, :3]
    return solid(positions / np.abs(positions).max(), np.asarray(mesh.tri_verts, np.int64), name=name)


def _primitive(rng: np.random.Generator, manifold: Any) -> Any:
    """A box, ball, cylinder, cone, prism or ring of about unit size, turned at random."""
    kind, size = int(rng.integers(0, 6)), rng.uniform(0.4, 1.0, 3)
    if kind == 0:
        shape = manifold.cube(tuple(2 * size), True)
    elif kind == 1:
        shape = manifold.sphere(1.0, 56).scale(tuple(size if rng.random() < 0.4 else [size[0]] * 3))
    elif kind in (2, 3):
        tip = size[0] * (1.0 if kind == 2 else rng.uniform(0.05, 0.7))
        shape = manifold.cylinder(2 * size[1], size[0], tip, 48, True)
    elif kind == 4:
        shape = manifold.cylinder(2 * size[1], size[0], size[0], int(rng.integers(3, 9)), True)
    else:
        shape = _ring(manifold, 0.75, 0.3 * size[1])
    return shape.rotate(tuple(rng.uniform(0, 360, 3) if rng.random() < 0.5 else 90.0 * rng.integers(0, 4, 3)))


def _ring(manifold: Any, radius: float, thickness: float) -> Any:
    from manifold3d import CrossSection

    return manifold.revolve(CrossSection.circle(thickness, 20).translate((radius, 0.0)), 48)


def _cut_block(rng: np.random.Generator, manifold: Any) -> Any:
    """A primitive with one to four others cut out of it."""
    body = _primitive(rng, manifold)
    for _ in range(int(rng.integers(1, 5))):
        direction = rng.normal(0, 1, 3)
        offset = direction / np.linalg.norm(direction) * rng.uniform(0.5, 1.1)
        body = body - _primitive(rng, manifold).scale((0.65,) * 3).translate(tuple(offset))
    return body


def _drilled_block(rng: np.random.Generator, manifold: Any) -> Any:
    """A slab or block with a raster of holes or studs."""
    size = rng.uniform([0.5, 0.15, 0.5], [1.0, 0.7, 1.0])
    columns, rows = (int(n) for n in rng.integers(1, 5, 2))
    radius = rng.uniform(0.2, 0.4) * min(2 * size[0] / columns, 2 * size[2] / rows)
    through, sides = rng.random() < 0.6, int(rng.choice([4, 6, 28, 28]))
    pins = []
    for x in (np.arange(columns) + 0.5) / columns * 2 - 1:
        for z in (np.arange(rows) + 0.5) / rows * 2 - 1:
            pin = manifold.cylinder(4.0 if through else 0.5, radius, radius, sides, True).rotate((90.0, 0.0, 0.0))
            pins.append(pin.translate((x * size[0], 0.0 if through else size[1], z * size[2])))
    pins = manifold.compose(pins)
    body = manifold.cube(tuple(2 * size), True)
    return body - pins if through or rng.random() < 0.4 else body + pins


def _rounded_by_ball(rng: np.random.Generator, manifold: Any) -> Any:
    """A box or prism meeting a ball, as dice and knobs do, sometimes with holes along the axes."""
    body = manifold.cube((2.0, 2.0, 2.0), True) if rng.random() < 0.6 else manifold.cylinder(2.0, 1.1, 1.1, 6, True)
    body = body ^ manifold.sphere(rng.uniform(1.15, 1.5), 64)
    if rng.random() < 0.5:
        radius = rng.uniform(0.25, 0.75)
        for turn in ((0.0, 0.0, 0.0), (90.0, 0.0, 0.0), (0.0, 90.0, 0.0))[: int(rng.integers(1, 4))]:
            body = body - manifold.cylinder(4.0, radius, radius, 40, True).rotate(turn)
    return body


def _cluster(rng: np.random.Generator, manifold: Any) -> Any:
    """Two to five primitives grown together."""
    body = _primitive(rng, manifold)
    for _ in range(int(rng.integers(1, 5))):
        part = _primitive(rng, manifold).scale((rng.uniform(0.4, 0.9),) * 3)
        body = body + part.translate(tuple(rng.normal(0, 0.45, 3)))
    return body


def _fitting(rng: np.random.Generator, manifold: Any) -> Any:
    """Pipes that meet, with flanges, hollow inside."""
    outer, wall = rng.uniform(0.25, 0.5), rng.uniform(0.04, 0.1)
    turns = [(0.0, 0.0, 0.0), (90.0, 0.0, 0.0), (0.0, 90.0, 0.0)]
    body, bores = manifold.sphere(1.05 * outer, 40), manifold.sphere(outer - wall, 40)
    for turn in [turns[int(k)] for k in rng.permutation(3)[: int(rng.integers(1, 4))]]:
        both = rng.random() < 0.6
        start = -1.0 if both else 0.0
        pipe = manifold.cylinder(1.0 - start, outer, outer, 40).translate((0.0, 0.0, start))
        flange = manifold.cylinder(0.14, 1.35 * outer, 1.35 * outer, int(rng.choice([6, 40]))).translate((0.0, 0.0, 0.86))
        body = body + (pipe + flange).rotate(turn)
        bores = bores + manifold.cylinder(1.2 - start, outer - wall, outer - wall, 40).translate(
            (0.0, 0.0, start - 0.1)
        ).rotate(turn)
    return body - bores


def _letter(rng: np.random.Generator, manifold: Any) -> Any:
    """A sign of bars, rings and half rings, upright, as thick as a stroke is wide or less."""
    pen, depth = rng.uniform(0.14, 0.26), rng.uniform(0.1, 0.3)
    body = manifold.cube((2 * pen, 2.0, 2 * depth), True).translate((rng.choice([-0.6, 0.0, 0.6]), 0.0, 0.0))
    for _ in range(int(rng.integers(1, 4))):
        kind, y = rng.random(), float(rng.choice([-1, 0, 1])) * (1 - pen)
        if kind < 0.55:
            part = manifold.cube((1.4, 2 * pen, 2 * depth), True).translate((0.0, y, 0.0))
        elif kind < 0.75:
            part = manifold.cube((2.1, 2 * pen, 2 * depth), True).rotate((0.0, 0.0, float(rng.choice([-55, 55]))))
        else:
            disc = manifold.cylinder(2 * depth, 0.65, 0.65, 48, True)
            part = (disc - manifold.cylinder(3 * depth, 0.65 - 1.6 * pen, 0.65 - 1.6 * pen, 48, True)).translate(
                (0.0, 0.5 * y, 0.0)
            )
        body = body + part
    return body
