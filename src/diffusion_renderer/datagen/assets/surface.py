"""What the file readers hand over: triangles as a soup of corners, and their `Surface`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from diffusion_renderer.datagen.assets.images import limited, resize
from diffusion_renderer.datagen.assets.limits import Unusable
from diffusion_renderer.datagen.procedural.materials import Material

#: Columns of `Piece.corners`.
POSITION, NORMAL, UV, COLOUR, TURN = slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 11), slice(11, 12)
WIDTH = 12
LEAST_ROUGHNESS = 0.05
#: Given to materials that say nothing about their reflection (unlit, or none at all).
UNKNOWN_ROUGHNESS = 0.6


@dataclass(frozen=True)
class Surface:
    """A material as a file gives it: each map has its own size; 1 x 1 is a constant. Row 0 lies at v = 0.

    Attributes
    ----------
    basecolor : linear reflectance.
    roughness, metallic : in [0, 1].
    normal : unit vectors in tangent space as in `Material.normal`; None without bumps.
    alpha : what is cut out, or None for an opaque surface.
    cutoff : alpha below this is a hole.
    invisible : all of it lies below the cutoff: clear glass.
    stated : False when the file says nothing about the material.
    """

    basecolor: Float[np.ndarray, "_rows _columns 3"]
    roughness: Float[np.ndarray, "_rows2 _columns2 1"]
    metallic: Float[np.ndarray, "_rows3 _columns3 1"]
    normal: Float[np.ndarray, "_rows4 _columns4 3"] | None = None
    alpha: Float[np.ndarray, "_rows5 _columns5 1"] | None = None
    cutoff: float = 0.5
    invisible: bool = False
    stated: bool = True
    name: str = "material"

    @property
    def maps(self) -> tuple[np.ndarray, ...]:
        """The maps that a renderer needs."""
        return tuple(m for m in (self.basecolor, self.roughness, self.metallic, self.normal) if m is not None)

    @property
    def textured(self) -> bool:
        """Whether it varies over the surface at all."""
        return any(m.shape[:2] != (1, 1) for m in self.maps)

    def flattened(self) -> Surface:
        """The same with every map replaced by its mean, and without bumps."""
        return replace(
            self, normal=None, **{name: mean(getattr(self, name)) for name in ("basecolor", "roughness", "metallic")}
        )

    def tinted(self, colour: Float[np.ndarray, "3"]) -> Surface:
        """The base colour multiplied by a linear colour."""
        return replace(self, basecolor=np.clip(self.basecolor * np.float32(colour), 0.0, 1.0))


@dataclass(frozen=True)
class Piece:
    """Triangles of one surface. Each has its own three corners, with position, normal, texture coordinate and vertex colour.

    Attributes
    ----------
    corners : see `POSITION`, `NORMAL` (zero where the file has none), `UV`, `COLOUR` (linear, 1 where the file has none) and
        `TURN` (the sign of the second tangent, glTF's w; 0 where the file has none).
    has_uv : whether the texture coordinates mean anything.
    """

    corners: Float[np.ndarray, "faces 3 12"]
    surface: Surface
    has_uv: bool = True

    def area(self) -> Float[np.ndarray, "faces"]:
        """Area per triangle."""
        return triangle_areas(self.corners)

    def chosen(self, which: Bool[np.ndarray, "faces"]) -> Piece:
        """Some of the triangles."""
        return self if which.all() else replace(self, corners=self.corners[which])


def triangle_areas(corners: Float[np.ndarray, "faces 3 columns"]) -> Float[np.ndarray, "faces"]:
    """Area of each triangle."""
    return np.linalg.norm(face_vectors(corners), axis=-1) / 2


def face_vectors(corners: Float[np.ndarray, "faces 3 columns"]) -> Float[np.ndarray, "faces 3"]:
    """The normal of each triangle times twice its area; the triangle winds counter-clockwise around it."""
    a, b, c = (corners[:, i, POSITION] for i in range(3))
    return np.cross(b - a, c - a)


def soup(
    positions: np.ndarray,
    faces: np.ndarray,
    normals: np.ndarray | None = None,
    uv: np.ndarray | None = None,
    colours: np.ndarray | None = None,
    turn: np.ndarray | None = None,
) -> Float[np.ndarray, "faces 3 12"]:
    """Indexed arrays as corners. Raises Unusable for indices outside of the arrays and for positions that are not finite."""
    if len(faces) and (faces.min() < 0 or faces.max() >= len(positions)):
        raise Unusable("a triangle refers to a vertex that does not exist")
    table = np.zeros((len(positions), WIDTH))
    table[:, COLOUR] = 1.0
    for columns, values in ((POSITION, positions), (NORMAL, normals), (UV, uv), (COLOUR, colours), (TURN, turn)):
        if values is not None:
            table[:, columns] = values
    corners = table[faces]
    if not np.isfinite(corners[..., POSITION]).all():
        raise Unusable("positions that are not finite")
    corners[..., UV] = np.nan_to_num(corners[..., UV], nan=0.0, posinf=0.0, neginf=0.0)
    return corners


def mean(image: np.ndarray) -> np.ndarray:
    """The mean of a map, as a 1 x 1 map."""
    return image.mean((0, 1), keepdims=True, dtype=np.float64).astype(np.float32)


def constant(*values: float | np.floating) -> np.ndarray:
    """A 1 x 1 map."""
    return np.float32(values).reshape(1, 1, -1)


def unit_normals(vectors: np.ndarray, scale: float = 1.0) -> np.ndarray | None:
    """Tangent-space vectors to unit length, their slopes times ``scale``; None when all of them are straight up."""
    vectors = vectors * np.float32([scale, scale, 1.0])
    vectors[..., 2] = np.maximum(vectors[..., 2], 0.02)  # never flat or below the surface
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    # An 8-bit map cannot show exactly straight up: 127/255 and 128/255 are 0.004 away from it.
    return None if np.abs(vectors[..., :2]).max() < 0.006 else vectors.astype(np.float32)


def material(surface: Surface, size: int) -> Material:
    """The surface as a `Material`: all maps at one common size, at most ``size`` texels along the longer side.

    Where parts are cut out, colours are averaged with alpha as the weight, so that what lies in the holes does not show.
    """
    rows = max(m.shape[0] for m in surface.maps)
    columns = max(m.shape[1] for m in surface.maps)
    scale = min(1.0, size / max(rows, columns))
    shape = max(1, round(rows * scale)), max(1, round(columns * scale))
    basecolor = resize(surface.basecolor, *shape)
    if surface.alpha is not None and surface.basecolor.shape[:2] != (1, 1):
        weight = 0.004 + resize(surface.alpha, *surface.basecolor.shape[:2])
        basecolor = resize(surface.basecolor * weight, *shape) / resize(weight, *shape)
    normal = surface.normal
    if normal is not None:
        normal = resize(normal, *shape)
        normal = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    return Material(
        np.clip(basecolor, 0.0, 1.0),
        np.clip(resize(surface.roughness, *shape), LEAST_ROUGHNESS, 1.0),
        np.clip(resize(surface.metallic, *shape), 0.0, 1.0),
        surface.name,
        normal,
    )


def alpha_surface(surface: Surface, alpha: np.ndarray | None, cutoff: float, longest: int) -> Surface:
    """The surface with an alpha map: opaque when no texel is below the cutoff, invisible when all are."""
    if alpha is None or alpha.min() >= cutoff:
        return surface
    if alpha.max() < cutoff:
        return replace(surface, invisible=True)
    return replace(surface, alpha=limited(alpha, longest), cutoff=cutoff)
