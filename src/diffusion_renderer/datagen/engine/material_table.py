"""All materials of a scene in one array, and the readable reference of looking one up at a hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion_renderer.datagen.engine.mitsuba_scene import FLAT
from diffusion_renderer.datagen.procedural.materials import Material

#: Numbers per texel: base colour (3), roughness, metallic, tangent-space normal (3).
CHANNELS = 8


@dataclass(frozen=True)
class MaterialTable:
    """Textures of several materials, one after the other.

    Attributes
    ----------
    texels : all texels, row by row.
    offset, columns, rows : per material, its first texel and the size of its textures.
    """

    texels: Float[np.ndarray, "texels 8"]
    offset: Int[np.ndarray, "materials"]
    columns: Int[np.ndarray, "materials"]
    rows: Int[np.ndarray, "materials"]


def material_table(materials: Sequence[Material]) -> MaterialTable:
    """Pack ``materials``; one that occurs several times is stored once."""
    first: dict[int, int] = {}
    blocks: list[np.ndarray] = []
    offset, total = [], 0
    for material in materials:
        if id(material) not in first:
            first[id(material)] = total
            shape = material.basecolor.shape[:2]
            normal = np.broadcast_to(FLAT if material.normal is None else material.normal, (*shape, 3))
            block = np.concatenate((material.basecolor, material.roughness, material.metallic, normal), -1)
            blocks.append(block.reshape(-1, CHANNELS).astype(np.float32))
            total += len(blocks[-1])
        offset.append(first[id(material)])
    sizes = np.array([material.basecolor.shape[:2] for material in materials])
    return MaterialTable(np.concatenate(blocks), np.array(offset), sizes[:, 1], sizes[:, 0])


def look_up(table: MaterialTable, material: Int[Tensor, "hits"], uv: Float[Tensor, "hits 2"]) -> Float[Tensor, "hits 8"]:
    """The material at every hit: bilinear and repeating, as Mitsuba's `bitmap` reads its texels. Normals are not made unit."""
    size = torch.from_numpy(np.stack((table.columns, table.rows), -1))[material]
    offset = torch.from_numpy(table.offset)[material]
    texels = torch.from_numpy(table.texels)
    texel = uv * size - 0.5
    low = texel.floor()
    fraction = texel - low
    low = low.long()
    found = torch.zeros(len(uv), CHANNELS)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = (low[:, 0] + dx) % size[:, 0], (low[:, 1] + dy) % size[:, 1]
            weight = (fraction[:, 0] if dx else 1 - fraction[:, 0]) * (fraction[:, 1] if dy else 1 - fraction[:, 1])
            found += weight[:, None] * texels[offset + row * size[:, 0] + column]
    return found
