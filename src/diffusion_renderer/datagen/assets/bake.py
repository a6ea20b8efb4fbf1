"""Constant and per-vertex values as small textures, so that a part of many colours needs one material.

A triangle gets a cell of 2 x 2 texels with its corners at three texel centres: bilinear lookup between them is linear over
the triangle when the fourth texel is ``b + c - a``. Triangles with the same values share a cell.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float, UInt8

from diffusion_renderer.datagen.assets.images import sampled
from diffusion_renderer.datagen.assets.surface import COLOUR, UV, Piece, Surface, mean
from diffusion_renderer.datagen.colour import srgb_decoded, srgb_encoded

#: Base colour, roughness, metallic.
VALUES = 5
#: Texture coordinates of the corners in a cell, in texels. A cell of one colour is shrunk, so that lookups stay clear of the
#: neighbours even with the few bits that a renderer leaves to texture coordinates.
_CORNERS = np.array([[0.5, 0.5], [1.5, 0.5], [0.5, 1.5]])
_SMALL_CORNERS = np.array([[0.9, 0.9], [1.1, 0.9], [0.9, 1.1]])
#: A textured triangle with vertex colours needs at least this many texels along its cell; below, the mean colour is used.
_LEAST_CELL = 4


def corner_values(piece: Piece) -> Float[np.ndarray, "faces 3 5"]:
    """Linear base colour times vertex colour, roughness and metallic per corner; maps are averaged per triangle."""
    surface, shape = piece.surface, piece.corners.shape[:2]
    values = np.ones((*shape, VALUES))
    for columns, image in ((slice(0, 3), surface.basecolor), (slice(3, 4), surface.roughness), (slice(4, 5), surface.metallic)):
        if image.shape[:2] == (1, 1) or not piece.has_uv:
            values[..., columns] = mean(image)[0, 0]
        else:
            values[..., columns] = _triangle_means(image, piece.corners[..., UV])[:, None]
    values[..., :3] *= piece.corners[..., COLOUR]
    return np.clip(values, 0.0, 1.0)


def _triangle_means(image: np.ndarray, uv: Float[np.ndarray, "faces 3 2"]) -> np.ndarray:
    """The mean of ten points spread evenly over each triangle."""
    steps = np.array([(i, j, 3 - i - j) for i in range(4) for j in range(4 - i)]) / 3
    weights = 0.8 * steps + 0.2 / 3
    return sampled(image, np.einsum("pk,fkc->fpc", weights, uv)).mean(1)


def divided(
    corners: Float[np.ndarray, "faces 3 columns"], values: Float[np.ndarray, "faces 3 5"], most: int
) -> tuple[Float[np.ndarray, "faces2 3 columns"], Float[np.ndarray, "faces2 3 5"]]:
    """Triangles whose fourth texel would lie outside of [0, 1], in four; left as they are when that gives more than ``most``.

    After that a `palette` is exact for all: the fourth texel of each quarter is a point of the triangle itself.
    """
    clipped = _excess(values).min(1) > 0.5 / 255
    if not clipped.any() or len(values) + 3 * clipped.sum() > most:
        return corners, values
    both = np.concatenate((corners, values), -1)
    a, b, c = np.moveaxis(both[clipped], 1, 0)
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    quarters = [np.stack(points, 1) for points in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    both = np.concatenate((both[~clipped], *quarters))
    return both[..., : corners.shape[-1]], both[..., corners.shape[-1] :]


def _excess(values: Float[np.ndarray, "faces 3 5"]) -> Float[np.ndarray, "faces 3"]:
    """How far the texel opposite to each corner would lie outside of [0, 1], summed over the channels."""
    opposite = values.sum(1, keepdims=True) - 2 * values
    return np.maximum(np.maximum(opposite - 1, -opposite), 0).sum(-1)


def palette(values: Float[np.ndarray, "faces 3 5"], size: int) -> tuple[Float[np.ndarray, "faces 3 2"], Surface]:
    """Texture coordinates and a surface that show ``values`` over the triangles (`divided` first).

    Exact to 8 bits (base colour sRGB-encoded) while the different triangles fit into ``size`` x ``size`` texels. Beyond, every
    triangle shows its mean, with as many bits as fit.
    """
    capacity = (size // 2) ** 2
    encoded = np.concatenate((srgb_encoded(values[..., :3]), values[..., 3:]), -1)
    cells, index = _different(_quantised(encoded, 8))
    if len(cells) > capacity:
        encoded = np.repeat(encoded.mean(1, keepdims=True), 3, 1)
        for bits in range(8, 0, -1):
            cells, index = _different(_quantised(encoded, bits))
            if len(cells) <= capacity:
                break
    cells = cells / 255.0
    cells[..., :3] = srgb_decoded(cells[..., :3])
    textures, uv = _drawn(cells)
    surface = Surface(textures[..., :3], textures[..., 3:4], textures[..., 4:5], name="palette")
    return uv[index], surface


def _quantised(encoded: np.ndarray, bits: int) -> UInt8[np.ndarray, "faces 3 5"]:
    top = 2**bits - 1
    return (np.round(encoded * top) * (255.0 / top)).round().astype(np.uint8)


def _different(keys: UInt8[np.ndarray, "faces 3 5"]) -> tuple[np.ndarray, np.ndarray]:
    """The different rows, and for each triangle the number of its own."""
    rows = np.ascontiguousarray(keys.reshape(len(keys), -1))
    _, first, index = np.unique(rows.view(f"V{rows.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    return keys[first], index


def _drawn(cells: Float[np.ndarray, "cells 3 5"]) -> tuple[np.ndarray, Float[np.ndarray, "cells 3 2"]]:
    """The texture of all cells, and texture coordinates of the corners of each."""
    side = math.ceil(math.sqrt(len(cells)))
    row, column = np.divmod(np.arange(len(cells)), side)
    # The fourth texel must lie in [0, 1]: the corner opposite to it is the one that needs least clipping.
    first = _excess(cells).argmin(1)
    order = (first[:, None] + np.arange(3)) % 3
    a, b, c = np.moveaxis(np.take_along_axis(cells, order[..., None], 1), 1, 0)
    textures = np.zeros((2 * side, 2 * side, VALUES), np.float32)
    textures[2 * row, 2 * column], textures[2 * row, 2 * column + 1] = a, b
    textures[2 * row + 1, 2 * column] = c
    textures[2 * row + 1, 2 * column + 1] = np.clip(b + c - a, 0.0, 1.0)
    plain = (cells == cells[:, :1]).all((1, 2))
    shape = np.where(plain[:, None, None], _SMALL_CORNERS, _CORNERS)
    uv = np.zeros((len(cells), 3, 2))
    np.put_along_axis(uv, order[..., None], shape, 1)
    return textures, (uv + 2 * np.stack((column, row), -1)[:, None]) / (2 * side)


def tinted_texture(piece: Piece, size: int) -> Piece:
    """A textured piece with vertex colours, as a texture alone: each triangle gets a cell with its cut of the maps.

    Without bumps: their directions would change from cell to cell. With too many triangles for cells of four texels, the
    texture is kept and multiplied by the mean vertex colour.
    """
    side = math.ceil(math.sqrt(len(piece.corners)))
    cell = size // side
    if cell < _LEAST_CELL:
        weights = piece.area()[:, None]
        tint = (piece.corners[..., COLOUR].mean(1) * weights).sum(0) / max(weights.sum(), 1e-30)
        return plain_colours(replace(piece, surface=piece.surface.tinted(tint)))
    step = np.arange(cell) / (cell - 1)
    down, right = np.meshgrid(step, step, indexing="ij")
    weights = np.stack((1 - down - right, right, down), -1)
    points = np.einsum("yxk,fkc->fyxc", weights, piece.corners)
    surface = piece.surface
    colour = np.clip(sampled(surface.basecolor, points[..., UV]) * np.maximum(points[..., COLOUR], 0.0), 0.0, 1.0)
    maps = [colour] + [sampled(image, points[..., UV]) for image in (surface.roughness, surface.metallic)]
    uv, textures = _grid(np.concatenate(maps, -1), side)
    corners = piece.corners.copy()
    corners[..., UV] = uv
    baked = Surface(textures[..., :3], textures[..., 3:4], textures[..., 4:5], name=surface.name)
    return plain_colours(replace(piece, corners=corners, surface=baked))


def _grid(cells: Float[np.ndarray, "cells k k 5"], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Square cells side by side; texture coordinates of three corners of each, at texel centres."""
    count, cell = cells.shape[:2]
    filled = np.zeros((side * side, *cells.shape[1:]), np.float32)
    filled[:count] = cells
    textures = filled.reshape(side, side, cell, cell, -1).transpose(0, 2, 1, 3, 4).reshape(side * cell, side * cell, -1)
    row, column = np.divmod(np.arange(count), side)
    corners = np.array([[0.5, 0.5], [cell - 0.5, 0.5], [0.5, cell - 0.5]])
    return (corners + cell * np.stack((column, row), -1)[:, None]) / (side * cell), textures


def plain_colours(piece: Piece) -> Piece:
    """The same without vertex colours."""
    corners = piece.corners.copy()
    corners[..., COLOUR] = 1.0
    return replace(piece, corners=corners)
