"""Pieces of a file to the parts of an `Asset`: cut out, merged, baked, normalised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from diffusion_renderer.datagen.assets.bake import corner_values, divided, palette, plain_colours, tinted_texture
from diffusion_renderer.datagen.assets.cutout import cut_out
from diffusion_renderer.datagen.assets.limits import AssetLimits, Unusable
from diffusion_renderer.datagen.assets.normals import completed
from diffusion_renderer.datagen.assets.surface import COLOUR, NORMAL, POSITION, TURN, UV, Piece, material, triangle_areas
from diffusion_renderer.datagen.objects import Part
from diffusion_renderer.datagen.procedural.shapes import MAX_UV, Mesh, oriented

#: Triangles of less area than this, in a model of radius 1, are dropped.
_LEAST_AREA = 1e-12
#: A model's smallest extent must be at least this share of its largest.
_LEAST_EXTENT = 1e-3
#: Vertex colours that differ by less are one colour: half a step of 8 bits.
_SAME_COLOUR = 0.002


def parts(pieces: list[Piece], limits: AssetLimits, crease: float) -> tuple[Part, ...]:
    """At most ``limits.max_parts`` parts in one common frame: bounding box centred, farthest vertex at distance 1.

    ``crease`` as in `normals.completed`. Raises Unusable for models without triangles or without any material or vertex
    colour (nothing says what they look like), and for those flat as a sheet.
    """
    pieces = _prepared(pieces, crease)
    pieces = _without_holes(pieces, limits)
    textured, plain = _sorted_by_kind(pieces, limits)
    room = limits.max_parts - (1 if plain else 0)
    if len(textured) > room:
        textured.sort(key=lambda piece: -piece.area().sum())
        textured, small = textured[: limits.max_parts - 1], textured[limits.max_parts - 1 :]
        plain += small
    if plain:
        values = np.concatenate([corner_values(piece) for piece in plain])
        corners = np.concatenate([piece.corners for piece in plain])
        most = min((limits.texture_size // 2) ** 2, limits.max_faces - sum(len(piece.corners) for piece in textured))
        corners, values = divided(corners, values, most)
        uv, surface = palette(values, limits.texture_size)
        corners[..., UV] = uv
        textured.append(Piece(corners, surface))
    return _bumped_alike(_framed(textured), limits)


def _bumped_alike(pieces: list[Piece], limits: AssetLimits) -> tuple[Part, ...]:
    """The parts, with normal maps the right way round where a texture is laid on mirrored, as on one half of many models.

    A path tracer takes the second tangent as normal x dp/du; glTF takes its negative on mirrored triangles (section 3.7.2.1,
    the tangent's w). So these become a part of their own whose map falls where it rose, as long as ``limits.max_parts`` allows.
    """
    made: list[Part] = []
    for number, piece in enumerate(pieces):
        surface = material(piece.surface, limits.texture_size)
        mirrored = _mirrored(piece.corners)
        if surface.normal is None or not mirrored.any():
            made.append(Part(_mesh(piece), surface))
            continue
        turned = replace(surface, normal=surface.normal * np.float32([1.0, -1.0, 1.0]))
        if len(made) + len(pieces) - number >= limits.max_parts and not mirrored.all():
            area = triangle_areas(piece.corners)
            mostly = area[mirrored].sum() > area[~mirrored].sum()
            made.append(Part(_mesh(piece), turned if mostly else surface))
            continue
        for chosen, its in ((~mirrored, surface), (mirrored, turned)):
            if chosen.any():
                made.append(Part(_mesh(piece.chosen(chosen)), its))
    return tuple(made)


def _mirrored(corners: Float[np.ndarray, "faces 3 columns"]) -> Bool[np.ndarray, "faces"]:
    """Triangles whose tangents say so; without tangents, those on which v grows upwards when u grows to the right.

    Seen from outside. For files without tangents glTF asks for those of MikkTSpace, which come to the same.
    """
    position, uv = corners[..., POSITION], corners[..., UV]
    face = np.cross(position[:, 1] - position[:, 0], position[:, 2] - position[:, 0])
    outside = (face * corners[..., NORMAL].sum(1)).sum(-1)
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    said = corners[..., TURN].sum((1, 2))
    return np.where(said != 0, said < 0, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) * outside > 0)


def _prepared(pieces: list[Piece], crease: float) -> list[Piece]:
    """Scaled to radius 1, without degenerate triangles, with normals. What has no material is kept beside what has one."""
    if not any(len(piece.corners) for piece in pieces):
        raise Unusable("no triangles")
    coloured = any((piece.corners[..., COLOUR] != 1.0).any() for piece in pieces)
    if not coloured and not any(piece.surface.stated for piece in pieces):
        raise Unusable("neither a material nor vertex colours")
    pieces = _framed(pieces)
    pieces = [piece.chosen(triangle_areas(piece.corners) > _LEAST_AREA) for piece in pieces]
    pieces = [piece for piece in pieces if len(piece.corners)]
    if not pieces:
        raise Unusable("no triangles with an area")
    return [replace(piece, corners=completed(piece.corners, crease)) for piece in pieces]


def _framed(pieces: list[Piece]) -> list[Piece]:
    points = np.concatenate([piece.corners[..., POSITION].reshape(-1, 3) for piece in pieces])
    low, high = points.min(0), points.max(0)
    extent = high - low
    if not np.isfinite(extent).all() or extent.max() <= 0 or extent.min() < _LEAST_EXTENT * extent.max():
        raise Unusable("no extent, or flat as a sheet")
    middle = (low + high) / 2
    radius = np.linalg.norm(points - middle, axis=-1).max()
    moved = []
    for piece in pieces:
        corners = piece.corners.copy()
        corners[..., POSITION] = (corners[..., POSITION] - middle) / radius
        moved.append(replace(piece, corners=corners))
    return moved


def _without_holes(pieces: list[Piece], limits: AssetLimits) -> list[Piece]:
    """Clear glass is dropped and alpha maps are cut out; a model that would vanish by this is taken as opaque."""
    visible = [piece for piece in pieces if not piece.surface.invisible]
    if not visible:
        return pieces
    others = sum(len(piece.corners) for piece in visible)
    cut = []
    for piece in visible:
        alpha = piece.surface.alpha
        if alpha is None or not piece.has_uv:
            cut.append(piece)
            continue
        budget = limits.max_faces - (others - len(piece.corners))
        corners = cut_out(piece.corners, alpha, piece.surface.cutoff, budget)
        corners = corners[triangle_areas(corners) > _LEAST_AREA]
        others += len(corners) - len(piece.corners)
        cut.append(replace(piece, corners=corners))
    remaining = [piece for piece in cut if len(piece.corners)]
    return remaining or visible


def _sorted_by_kind(pieces: list[Piece], limits: AssetLimits) -> tuple[list[Piece], list[Piece]]:
    """Textured pieces, one per surface, and those that the palette can show. Vertex colours on textures are baked."""
    groups: dict[tuple, list[Piece]] = {}
    plain = []
    for piece in pieces:
        if not piece.has_uv or not piece.surface.textured:
            plain.append(piece)
            continue
        colours = piece.corners[..., COLOUR].reshape(-1, 3)
        tint = colours.mean(0)
        constant = np.abs(colours - tint).max() < _SAME_COLOUR
        key = (id(piece.surface), tuple(np.round(tint, 3)) if constant else None)
        groups.setdefault(key, []).append(piece)
    textured = []
    for (_, tint), group in groups.items():
        whole = Piece(np.concatenate([piece.corners for piece in group]), group[0].surface)
        if tint is None:
            whole = tinted_texture(whole, limits.texture_size)
        elif tint != (1.0, 1.0, 1.0):
            whole = plain_colours(replace(whole, surface=whole.surface.tinted(np.array(tint))))
        textured.append(whole)
    return textured, plain


def _mesh(piece: Piece) -> Mesh:
    corners = piece.corners.copy()
    normals = corners[..., NORMAL]
    corners[..., NORMAL] = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-20)
    corners[..., UV] = wrapped(corners[..., UV])
    vertices, faces = welded(corners[..., :8].reshape(-1, 8))
    return oriented(Mesh(vertices[:, POSITION], vertices[:, NORMAL], vertices[:, UV], faces.reshape(-1, 3), piece.surface.name))


def wrapped(uv: Float[np.ndarray, "faces 3 2"]) -> Float[np.ndarray, "faces 3 2"]:
    """Texture coordinates in [0, MAX_UV), moved by whole numbers: together where they fit, else each triangle by itself.

    A triangle that repeats its texture more often than MAX_UV times shows it less often.
    """
    room = MAX_UV - 0.01
    moved = np.empty_like(uv)
    for axis in range(2):
        values = uv[..., axis]
        together = values - np.floor(values.min())
        alone = values - np.floor(values.min(1, keepdims=True))
        values = together if together.max() <= room else alone
        moved[..., axis] = values * (room / np.maximum(values.max(1, keepdims=True), room))
    return moved


def welded(rows: Float[np.ndarray, "corners columns"]) -> tuple[np.ndarray, np.ndarray]:
    """The different rows (as float32) and for every row the number of its own."""
    rows = np.ascontiguousarray(rows.astype(np.float32) + np.float32(0.0))  # + 0 turns -0 to 0
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64) | np.uint64(1)
    words = rows.view(np.uint32).astype(np.uint64)
    # Spread the bits before summing: many rows differ in a few bits only.
    key = np.zeros(len(rows), np.uint64)
    for column, factor in zip(words.T, factors, strict=True):
        key = (key ^ column) * factor
        key ^= key >> np.uint64(29)
    _, first, index = np.unique(key, return_index=True, return_inverse=True)
    if not np.array_equal(rows[first][index], rows):  # two rows with one key: about one model in 10^8
        return rows.astype(np.float64), np.arange(len(rows))
    return rows[first].astype(np.float64), index
