"""Simple furniture, lamps, stacks and rasters: several closed parts as one mesh. The parts touch or overlap."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from diffusion_renderer.datagen.procedural.meshes import Mesh, joined, transformed
from diffusion_renderer.datagen.procedural.profiles import circle, ring_grid, smooth_curve, swept, turned


def bevelled_box(size: tuple[float, float, float], bevel: float, steps: int = 3) -> Mesh:
    """A box of half extents ``size`` with rounded edges of radius ``bevel``; exact normals; one texture per 2 units."""
    half = np.asarray(size, float)
    bevel = float(min(bevel, 0.95 * half.min()))
    parts = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            right, up = _sides(axis, sign)
            a, b = (_bevel_axis(half[np.abs(direction).argmax()], bevel, steps) for direction in (right, up))
            grid_up, grid_right = np.meshgrid(b[::-1], a, indexing="ij")
            p = sign * half[axis] * np.eye(3)[axis] + grid_right[..., None] * right + grid_up[..., None] * up
            p = p.reshape(-1, 3)
            core = np.clip(p, bevel - half, half - bevel)
            normal = p - core
            normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
            uv = 0.5 * np.stack((p @ right + half.max(), half.max() - p @ up), -1)
            faces = ring_grid(*grid_up.shape)[:, ::-1]
            parts.append(Mesh(core + bevel * normal, normal, uv, faces, "box"))
    return joined(*parts)


def _sides(axis: int, sign: float) -> tuple[np.ndarray, np.ndarray]:
    """To the right and up on a box's side seen from outside."""
    up = np.array([0.0, 1.0, 0.0]) if axis != 1 else np.array([0.0, 0.0, -sign])
    return np.cross(up, sign * np.eye(3)[axis]), up


def _bevel_axis(half: float, bevel: float, steps: int) -> np.ndarray:
    """Coordinates from -half to half: dense over the bevel, whose places are those of equal angles."""
    edge = half - bevel + bevel * np.tan(np.linspace(0, np.pi / 4, steps + 1))
    return np.concatenate((-edge[::-1], edge))


def _placed(mesh: Mesh, x: float, y: float, z: float) -> Mesh:
    return transformed(mesh, np.eye(3), np.array([x, y, z]))


def _rod(low: tuple[float, float, float], high: tuple[float, float, float], radius: float, square: bool = False) -> Mesh:
    path = np.linspace(low, high, 3)
    return swept(path, radius * circle(4 if square else 16), closed=False)


def _disc(radius: float, height: float) -> Mesh:
    profile = np.array([[0, 0], [0.96, 0], [1, 0.2], [1, 0.8], [0.96, 1], [0, 1]]) * [radius, height]
    return turned(profile, circle(40), boxed=True)


def composition(rng: np.random.Generator) -> Mesh:
    """A chair, table, lamp, stack, raster or shelf; it stands upright."""
    kinds = (_chair, _table, _lamp, _stack, _raster, _shelf)
    return kinds[int(rng.integers(0, len(kinds)))](rng)


def _legs(rng: np.random.Generator, half_x: float, half_z: float, height: float) -> list[Mesh]:
    thick, splay, square = rng.uniform(0.03, 0.08), rng.uniform(1.0, 1.25), rng.random() < 0.5
    corners = [(x * half_x, z * half_z) for x in (-0.85, 0.85) for z in (-0.85, 0.85)]
    return [_rod((x * splay, 0.0, z * splay), (x, height, z), thick, square) for x, z in corners]


def _chair(rng: np.random.Generator) -> Mesh:
    w, seat, back = rng.uniform(0.4, 0.55), rng.uniform(0.7, 1.0), rng.uniform(0.5, 1.1)
    parts = [*_legs(rng, w, w, seat), _placed(bevelled_box((w, 0.06, w), 0.03), 0.0, seat, 0.0)]
    if rng.random() < 0.5:
        parts.append(_placed(bevelled_box((w, 0.5 * back, 0.05), 0.03), 0.0, seat + 0.5 * back, 0.05 - w))
    else:
        count = int(rng.integers(2, 6))
        parts += [_rod((x, seat, 0.06 - w), (x, seat + back, -w), 0.035) for x in np.linspace(-0.88 * w, 0.88 * w, count)]
        parts.append(_placed(bevelled_box((w, 0.08, 0.045), 0.03), 0.0, seat + back, -w))
    return joined(*parts)


def _table(rng: np.random.Generator) -> Mesh:
    x, z, h = rng.uniform(0.5, 1.0), rng.uniform(0.4, 0.8), rng.uniform(0.5, 1.1)
    if rng.random() < 0.35:
        foot = [_disc(0.5 * z, 0.06), _rod((0, 0, 0), (0, h, 0), rng.uniform(0.05, 0.12))]
        return joined(*foot, _placed(_disc(z, 0.08), 0.0, h, 0.0))
    return joined(_placed(bevelled_box((x, rng.uniform(0.03, 0.08), z), 0.03), 0.0, h, 0.0), *_legs(rng, x, z, h))


def _lamp(rng: np.random.Generator) -> Mesh:
    h, low, top = rng.uniform(0.9, 2.0), rng.uniform(0.35, 0.7), rng.uniform(0.15, 0.5)
    tall, wall = rng.uniform(0.3, 0.7), 0.02
    shade = [(low, 0.0), (top, tall), (top - wall, tall), (low - wall, 0.0), (low, 0.0)]
    profile = np.concatenate([np.linspace(a, b, 5)[:-1] for a, b in pairwise(shade)] + [[shade[-1]]])
    bend = np.array([[0, 0, 0], [rng.normal(0, 0.15), 0.5 * h, 0], [0, h, 0]])
    stem = swept(smooth_curve(bend, 10), 0.04 * circle(12), closed=False)
    bulb = turned(
        np.stack((0.12 * np.sin(np.linspace(0, np.pi, 14)), -0.12 * np.cos(np.linspace(0, np.pi, 14))), -1), circle(24)
    )
    return joined(
        _disc(rng.uniform(0.3, 0.5), 0.08),
        stem,
        _placed(turned(profile, circle(48)), 0, h - 0.5 * tall, 0),
        _placed(bulb, 0, h, 0),
    )


def _stack(rng: np.random.Generator) -> Mesh:
    """Boxes, discs and balls on top of each other, each a little turned and off the middle."""
    parts, y, size = [], 0.0, rng.uniform(0.6, 0.9)
    for _ in range(int(rng.integers(3, 8))):
        kind, h = rng.integers(0, 3), rng.uniform(0.06, 0.35)
        angle, shift = rng.normal(0, 0.4), rng.normal(0, 0.06, 2)
        if kind == 0:
            part, h = bevelled_box((size, h, size * rng.uniform(0.6, 1.0)), 0.04), 2 * h
            part = _placed(part, 0.0, 0.5 * h, 0.0)
        elif kind == 1:
            part = _disc(size, h)
        else:
            t, h = np.linspace(0, np.pi, 24), 2 * h
            part = turned(np.stack((0.8 * size * np.sin(t), 0.5 * h * (1 - np.cos(t))), -1), circle(40))
        c, s = np.cos(angle), np.sin(angle)
        parts.append(transformed(part, np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]), np.array([shift[0], y, shift[1]])))
        y, size = y + h, size * rng.uniform(0.7, 1.05)
    return joined(*parts)


def _raster(rng: np.random.Generator) -> Mesh:
    """A raster of equal boxes, balls or rods of different heights on a plate."""
    columns, rows = (int(n) for n in rng.integers(2, 5, 2))
    kind, pitch = rng.integers(0, 3), 0.5
    parts = [bevelled_box((0.5 * pitch * columns, 0.05, 0.5 * pitch * rows), 0.02)]
    t = np.linspace(0, np.pi, 16)
    ball = turned(0.2 * np.stack((np.sin(t), 1 - np.cos(t)), -1), circle(28))
    for i in range(columns):
        for k in range(rows):
            x, z, h = (i + 0.5 - 0.5 * columns) * pitch, (k + 0.5 - 0.5 * rows) * pitch, rng.uniform(0.1, 0.6)
            if kind == 0:
                parts.append(_placed(bevelled_box((0.18, h, 0.18), 0.03), x, h, z))
            else:
                parts.append(_placed(ball, x, 0.05, z) if kind == 1 else _rod((x, 0, z), (x, 2 * h, z), 0.14))
    return joined(*parts)


def _shelf(rng: np.random.Generator) -> Mesh:
    """Boards between two sides, with boxes like books on them."""
    w, h, d, boards = rng.uniform(0.4, 0.9), rng.uniform(0.6, 1.3), rng.uniform(0.15, 0.35), int(rng.integers(2, 5))
    parts = [_placed(bevelled_box((0.03, h, d), 0.012), x, h, 0.0) for x in (-w, w)]
    levels = np.linspace(0.05, 2 * h - 0.05, boards)
    parts += [_placed(bevelled_box((w, 0.03, d), 0.012), 0.0, float(y), 0.0) for y in levels]
    room = float(levels[1] - levels[0]) - 0.08
    for y in levels[:-1]:
        x = -w + 0.04
        while x < w - 0.2 and len(parts) < 40:
            thick, tall = rng.uniform(0.03, 0.1), room * rng.uniform(0.5, 0.95)
            if rng.random() < 0.75:
                parts.append(
                    _placed(bevelled_box((thick, 0.5 * tall, 0.8 * d), 0.012), x + thick, float(y) + 0.03 + 0.5 * tall, 0.0)
                )
            x += 2 * thick
    return joined(*parts)
