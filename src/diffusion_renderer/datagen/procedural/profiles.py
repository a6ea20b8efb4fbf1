"""Shapes from a profile: turned on a lathe, extruded with a bevel, swept along a curve."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.procedural.meshes import Mesh, solid, transformed

_Profile = Float[np.ndarray, "_ 2"]


def ring_grid(rows: int, columns: int) -> np.ndarray:
    """Triangles of a grid of ``rows`` x ``columns`` vertices, row after row."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    a, b, c, d = corner, corner + 1, corner + columns + 1, corner + columns
    return np.concatenate((np.stack((a, b, c), -1), np.stack((a, c, d), -1)))


def turned(
    profile: _Profile,
    outline: _Profile,
    weights: np.ndarray | None = None,
    crease: float = 30.0,
    name: str = "turned",
    boxed: bool = False,
) -> Mesh:
    """``profile`` (radius, height) carried around the y axis along the closed ``outline`` (x, z), a circle for a lathe.

    Where ``weights`` (one per profile point) is below 1, the outline fades into a circle: a gear with a round bore. The profile
    should start and end on the axis or be a closed loop; then the surface is closed. The texture runs around the axis, or is
    projected from six sides (``boxed``), which suits flat ends.
    """
    outline = np.concatenate((outline, outline[:1]))
    if weights is not None:
        round_one = outline / np.linalg.norm(outline, axis=-1, keepdims=True)
        outline = round_one + np.asarray(weights)[:, None, None] * (outline - round_one)
    else:
        outline = np.broadcast_to(outline, (len(profile), *outline.shape))
    xz = outline * profile[:, :1, None]
    y = np.broadcast_to(profile[:, 1:2], xz.shape[:2])
    positions = np.stack((xz[..., 0], y, xz[..., 1]), -1).reshape(-1, 3)
    faces = ring_grid(len(profile), outline.shape[1])
    if boxed:
        return solid(positions, faces, None, crease, name)
    along = _arc_length(profile)
    around = _arc_length(outline[0])
    v, u = np.meshgrid(along / max(along[-1], 1e-9) * max(round(along[-1] / 3.0), 1), around / around[-1] * 2.0, indexing="ij")
    uv = np.stack((u, v), -1).reshape(-1, 2)
    return solid(positions, faces, uv, crease, name)


def _arc_length(points: np.ndarray) -> np.ndarray:
    return np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=-1))))


def smooth_curve(points: np.ndarray, steps: int, closed: bool = False) -> np.ndarray:
    """A Catmull-Rom curve through ``points`` (points dimensions), ``steps`` samples per span; both ends are kept."""
    before, after = (points[-1:], points[:2]) if closed else (2 * points[:1] - points[1:2], 2 * points[-1:] - points[-2:-1])
    p = np.concatenate((before, points, after))
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, points.shape[1])
    return curve if closed else np.concatenate((curve, points[-1:]))


# --- outlines ---------------------------------------------------------------------------------------------------------


def circle(count: int) -> _Profile:
    """Points of the unit circle."""
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack((np.sin(angle), np.cos(angle)), -1)


def _polygon(corners: _Profile, per_edge: int) -> _Profile:
    t = (np.arange(per_edge) / per_edge)[None, :, None]
    return ((1 - t) * corners[:, None] + t * np.roll(corners, -1, axis=0)[:, None]).reshape(-1, 2)


def random_outline(rng: np.random.Generator) -> tuple[str, _Profile]:
    """Kind and points of a closed outline about the origin; every point of it is seen from there."""
    kind = str(rng.choice(["polygon", "star", "gear", "flower", "cross", "pebble", "heart", "letter"]))
    if kind == "polygon":
        return kind, _polygon(circle(int(rng.integers(3, 9))), 6)
    if kind in ("star", "gear"):
        teeth = int(rng.integers(4, 9)) if kind == "star" else int(rng.integers(8, 22))
        deep = rng.uniform(0.35, 0.75) if kind == "star" else rng.uniform(0.75, 0.9)
        places = np.array([0.0, 0.5]) if kind == "star" else np.array([0.0, 0.3, 0.5, 0.8]) + 0.03
        radius = np.array([1.0, deep]) if kind == "star" else np.array([1.0, 1.0, deep, deep])
        angle = 2 * np.pi * (np.arange(teeth)[:, None] + places).ravel() / teeth
        corners = np.stack((np.sin(angle), np.cos(angle)), -1) * np.tile(radius, teeth)[:, None]
        return kind, _polygon(corners, 4 if kind == "star" else 1)
    if kind == "cross":
        w = rng.uniform(0.2, 0.45)
        quarter = np.array([[w, 1.0], [w, w], [1.0, w], [1.0, -w], [w, -w], [w, -1.0]])
        return kind, _polygon(np.concatenate((quarter, -quarter)), 4)
    if kind == "letter":  # an arrow, a chevron, a T: a spine with two arms
        w, arm, low = rng.uniform(0.15, 0.3), rng.uniform(0.6, 1.0), rng.uniform(-0.1, 0.35)
        right = np.array([[0.0, 1.0], [arm, rng.uniform(0.4, 1.0)], [arm, low], [w, low], [w, -1.0]])
        return kind, _polygon(np.concatenate((right, right[:0:-1] * [-1, 1])), 4)
    angle = 2 * np.pi * np.arange(96) / 96
    if kind == "flower":
        radius = 1 + rng.uniform(0.05, 0.3) * np.cos(int(rng.integers(3, 9)) * angle)
    elif kind == "heart":
        return kind, np.stack(
            (16 * np.sin(angle) ** 3, 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle)), -1
        ) / 16
    else:
        radius = 1 + sum(rng.normal(0, 0.2 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(1, 5))
        radius = np.clip(radius, 0.4, 1.7)
    return kind, np.stack((radius * np.sin(angle), radius * np.cos(angle)), -1)


# --- shapes -----------------------------------------------------------------------------------------------------------


def extrusion(rng: np.random.Generator) -> Mesh:
    """A bevelled slab of a random outline, sometimes with a bore; lying or standing, sometimes tapered or twisted."""
    name, outline = random_outline(rng)
    h, bevel = np.exp(rng.uniform(np.log(0.12), np.log(1.2))), rng.uniform(0.02, 0.09)
    arc = np.linspace(0, np.pi / 2, 4 if rng.random() < 0.6 else 2)
    taper = rng.uniform(0.6, 1.0) if rng.random() < 0.2 else 1.0
    bottom = np.stack((1 - bevel + bevel * np.sin(arc), -h + bevel * (1 - np.cos(arc))), -1)
    outside = np.concatenate((bottom, (bottom * [taper, -1])[::-1]))
    smallest = float(np.linalg.norm(outline, axis=-1).min())
    if name in ("gear", "flower", "polygon", "pebble") and rng.random() < 0.6:
        bore = rng.uniform(0.15, 0.6) * smallest * taper
        inside = np.array([[bore, h], [bore, -h]])
        profile = np.concatenate((outside, inside, outside[:1]))
        weights = np.concatenate((np.ones(len(outside)), np.zeros(2), np.ones(1)))
    else:
        profile, weights = np.concatenate(([[0.0, -h]], outside, [[0.0, h]])), None
    mesh = turned(profile, outline, weights, name=f"extruded {name}", boxed=True)
    if rng.random() < 0.6:  # stands on its edge, its face to the front
        mesh = transformed(mesh, np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]), np.zeros(3))
    return mesh


def _side(rng: np.random.Generator, kind: str) -> tuple[_Profile, float]:
    """Outer wall (radius over growing height, from 0) of a vessel and the height of its floor."""
    h = rng.uniform(1.2, 2.6)
    if kind == "wine glass":
        foot, stem, bowl = rng.uniform(0.5, 0.8), rng.uniform(0.05, 0.1), rng.uniform(0.6, 0.95)
        y = rng.uniform(0.35, 0.55) * h
        points = [(foot, 0), (0.9 * foot, 0.05), (stem + 0.06, 0.12), (stem, 0.3 * h), (stem + 0.02, y), (0.8 * bowl, y + 0.25)]
        points += [(bowl, y + 0.5 * (h - y) + 0.1), (bowl * rng.uniform(0.7, 1.0), h + 0.25)]
        return np.array(points), y + 0.1
    if kind == "bottle":
        body, neck = rng.uniform(0.45, 0.8), rng.uniform(0.14, 0.24)
        y, top = rng.uniform(0.5, 0.7) * h, h * rng.uniform(1.05, 1.3)
        points = [(0.9 * body, 0), (body, 0.1), (body, 0.5 * y), (body, y), (0.7 * body, y + 0.2), (neck, y + 0.5), (neck, top)]
        return np.array([*points, (neck * 1.25, top + 0.04), (neck * 1.25, top + 0.14)]), 0.1
    if kind == "bowl":
        foot, high = rng.uniform(0.25, 0.6), rng.uniform(0.15, 0.8)
        points = [(foot, 0), (foot * 1.02, 0.06), (foot + 0.55 * (1 - foot), 0.06 + 0.3 * high), (0.93, 0.06 + 0.75 * high)]
        return np.array([*points, (1.0, 0.1 + high)]), 0.1
    if kind == "tumbler":
        low, middle = rng.uniform(0.4, 0.8), rng.uniform(0.5, 0.8)
        return np.array([(low, 0), (low * 1.05, 0.08), (middle, 0.5 * h), (rng.uniform(0.5, 0.9), h)]), 0.12
    points = [(rng.uniform(0.3, 0.9), y) for y in np.linspace(0, h, int(rng.integers(4, 7)))]
    return np.array(points), 0.12


def vessel(rng: np.random.Generator) -> Mesh:
    """A bowl, glass, bottle, vase with an inside and a wall of some thickness; round, or fluted or faceted."""
    kind = str(rng.choice(["wine glass", "bottle", "bowl", "tumbler", "vase"], p=[0.15, 0.2, 0.25, 0.2, 0.2]))
    points, floor = _side(rng, kind)
    outer = smooth_curve(points, 5)
    outer[:, 0] = np.maximum(outer[:, 0], 0.04)
    outer[:, 1] = np.maximum.accumulate(outer[:, 1])
    wall = rng.uniform(0.03, 0.09) if kind != "bottle" else 0.05
    y = np.linspace(outer[-1, 1], floor, 22)
    radius = np.interp(y, outer[:, 1], outer[:, 0]) - wall
    inner = np.stack((np.maximum(radius, 0.02), y), -1)
    # The floor inside is a rounded bottom, not a flat disc meeting the wall at a sharp angle.
    inner[-5:, 0] *= np.sqrt(np.linspace(1.0, 0.0, 6)[:5] ** 0.5)
    profile = np.concatenate(([[0.0, 0.0]], outer, inner, [[0.0, floor]]))
    sides = circle(48)
    style = rng.random()
    if style < 0.12:
        count = int(rng.integers(6, 17))
        sides = circle(96) * (1 + rng.uniform(0.02, 0.06) * np.cos(count * 2 * np.pi * np.arange(96) / 96))[:, None]
    elif style < 0.24:
        sides = _polygon(circle(int(rng.integers(5, 11))), 4)
    return turned(profile, sides, crease=35.0, name=kind)


def turned_piece(rng: np.random.Generator) -> Mesh:
    """Solid lathe work: beads, grooves, cones and a knob on a base, as on chess pieces, balusters, spinning tops."""
    profile, y, radius = [(0.0, 0.0)], 0.0, rng.uniform(0.5, 0.9)
    for _ in range(int(rng.integers(3, 8))):
        h, t = rng.uniform(0.08, 0.6), np.linspace(0, 1, 9)
        kind = rng.choice(["bead", "cone", "groove", "curve", "disc"])
        target = float(np.clip(radius * rng.uniform(0.4, 1.5), 0.12, 1.0))
        if kind == "bead":
            r = radius + min(0.5 * h, 0.25) * np.sqrt(np.maximum(1 - (2 * t - 1) ** 2, 0))
            target = radius
        elif kind == "groove":
            r = radius * (1 - 0.35 * np.sin(np.pi * t))
            target = radius
        elif kind == "curve":
            r = radius + (target - radius) * t * t * (3 - 2 * t)
        elif kind == "disc":
            h, r = 0.4 * h, np.full(9, target)
        else:
            t = np.linspace(0, 1, 2)
            r = radius + (target - radius) * t
        profile += list(zip(r, y + h * t, strict=True))
        y, radius = y + h, float(r[-1]) if kind == "disc" else target
    if rng.random() < 0.6:  # a knob
        angle, knob = np.linspace(0.25, np.pi, 14), radius * rng.uniform(0.9, 1.6)
        knob_profile = [(knob * np.sin(a), y + knob * (np.cos(0.25) - np.cos(a))) for a in angle]
        profile += knob_profile[:-1]
        y = knob_profile[-1][1]
    return turned(np.array([*profile, (0.0, y)]), circle(48), name="turned piece")


def _path(rng: np.random.Generator) -> tuple[str, np.ndarray, bool]:
    """Name and points of a curve in space, and whether it is closed."""
    kind = str(rng.choice(["knot", "loop", "helix", "curve", "arch"], p=[0.25, 0.2, 0.2, 0.25, 0.1]))
    t = np.linspace(0, 2 * np.pi, 181)
    if kind == "knot":
        p, q = [(2, 3), (3, 2), (2, 5), (3, 4)][int(rng.integers(0, 4))]
        r = 1 + 0.42 * np.cos(q * t)
        return kind, np.stack((r * np.cos(p * t), 0.45 * np.sin(q * t), r * np.sin(p * t)), -1)[:-1], True
    if kind == "loop":
        waves = [(rng.normal(0, 1 / k**2.2, (2, 3)), k) for k in range(1, 4)]
        return kind, sum(a[0] * np.cos(k * t)[:, None] + a[1] * np.sin(k * t)[:, None] for a, k in waves)[:-1], True
    if kind == "helix":
        turns, pitch = rng.uniform(1.5, 5), rng.uniform(0.2, 0.5)
        radius = 1 + rng.uniform(-0.6, 0.2) * t / (2 * np.pi)
        return kind, np.stack((radius * np.cos(turns * t), pitch * turns * t / np.pi, radius * np.sin(turns * t)), -1), False
    if kind == "arch":
        angle = np.linspace(0, np.pi * rng.uniform(0.8, 1.6), 80)
        return kind, np.stack((np.cos(angle), rng.uniform(0.6, 1.4) * np.sin(angle), 0.2 * np.sin(2 * angle)), -1), False
    return kind, smooth_curve(rng.uniform(-1, 1, (int(rng.integers(4, 7)), 3)), 24), False


def sweep(rng: np.random.Generator) -> Mesh:
    """A tube, bar or ribbon along a knot, a loop, a spring or a random curve; open ends are capped."""
    kind, path, closed = _path(rng)
    path = path / np.abs(path - path.mean(0)).max()
    width = rng.uniform(0.06, 0.22)
    section = str(rng.choice(["round", "square", "ribbon", "flower"], p=[0.55, 0.2, 0.15, 0.1]))
    if section == "square":
        profile = _polygon(circle(4), 2)
    elif section == "ribbon":
        profile = circle(18) * [1.5, 0.5]
    else:
        angle = 2 * np.pi * np.arange(18) / 18
        profile = circle(18) * (1 + (0.2 * np.cos(6 * angle) if section == "flower" else 0.0 * angle))[:, None]
    # No thicker than the bend's inside has room for.
    bend = np.linalg.norm(np.gradient(_tangents(path, closed), axis=0), axis=-1)
    step = np.linalg.norm(np.gradient(path, axis=0), axis=-1)
    room = float(np.quantile(step / np.maximum(bend, 1e-6), 0.15))
    width = float(np.clip(min(width, 0.8 * room / np.abs(profile).max()), 0.05, None))
    return swept(path, width * profile, closed, f"{section} {kind}")


def _tangents(path: np.ndarray, closed: bool) -> np.ndarray:
    along = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    return along / np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-12)


def swept(path: Float[np.ndarray, "points 3"], profile: _Profile, closed: bool, name: str = "sweep") -> Mesh:
    """``profile`` carried along ``path`` without needless twist (parallel transport); it may cut through itself."""
    tangent = _tangents(path, closed)
    side = np.cross(tangent[0], np.eye(3)[np.abs(tangent[0]).argmin()])
    sides = [side / np.linalg.norm(side)]
    for direction in (*tangent[1:], tangent[0]) if closed else tangent[1:]:
        side = sides[-1] - direction * (sides[-1] @ direction)
        sides.append(side / np.linalg.norm(side))
    if closed:  # the frame comes back turned: undo that evenly along the way
        path, tangent = np.concatenate((path, path[:1])), np.concatenate((tangent, tangent[:1]))
        turn = np.arctan2(np.cross(sides[-1], sides[0]) @ tangent[0], sides[-1] @ sides[0])
        angle = turn * np.arange(len(path)) / (len(path) - 1)
    else:
        angle = np.zeros(len(path))
    first = np.stack(sides)
    second = np.cross(tangent, first)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = c * first + s * second, c * second - s * first
    ring = np.concatenate((profile, profile[:1]))
    positions = path[:, None] + ring[None, :, :1] * first[:, None] + ring[None, :, 1:] * second[:, None]
    if closed:
        positions[-1] = positions[0]
    else:  # caps: the end rings shrink to a point
        positions = np.concatenate((np.broadcast_to(path[0], (1, *positions.shape[1:])), positions))
        positions = np.concatenate((positions, np.broadcast_to(path[-1], (1, *positions.shape[1:]))))
    along = _arc_length(positions.mean(1))
    around = _arc_length(ring)
    scale = min(round(along[-1] / around[-1]) or 1, 7)
    v, u = np.meshgrid(along / along[-1] * scale, around / around[-1], indexing="ij")
    faces = ring_grid(*positions.shape[:2])
    return solid(positions.reshape(-1, 3), faces, np.stack((u, v), -1).reshape(-1, 2), name=name)
