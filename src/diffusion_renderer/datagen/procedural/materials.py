"""Procedural materials: base colour, roughness, metallic and normal textures for the `principled` BSDF.

Every texture repeats seamlessly. A random material is a surface (`surfaces`, `metals`) that wear has been added to
(`decals`, `weathering`); one height field under all of it becomes the normal map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.procedural import metals, surfaces, weathering
from diffusion_renderer.datagen.procedural.decals import decorated
from diffusion_renderer.datagen.procedural.layers import ROUGHNESS, Layers, height_normals
from diffusion_renderer.datagen.procedural.patterns import PATTERNS, pattern_field
from diffusion_renderer.datagen.procedural.prints import printed

#: Texels along each side of every texture.
TEXTURE_SIZE = 128

# Bounds of every random texture's base colour: nothing real is blacker or, metals apart, whiter.
_REFLECTANCE = (0.015, 0.97)

__all__ = [
    "PATTERNS",
    "TEXTURE_SIZE",
    "Material",
    "constant_material",
    "painted_material",
    "printed_material",
    "random_material",
]


@dataclass(frozen=True)
class Material:
    """Textures of one surface, all of one size, float32; row 0 of an image lies at v = 0. They repeat.

    Attributes
    ----------
    basecolor : linear reflectance in [0, 1].
    roughness : perceptual roughness in [0.05, 1].
    metallic : in [0, 1].
    normal : unit vectors in tangent space, x along growing u, y along *falling* v (up in the image, as in glTF and OpenGL
        maps), z out of the surface; None for a surface without bumps.
    """

    basecolor: Float[np.ndarray, "rows columns 3"]
    roughness: Float[np.ndarray, "rows columns 1"]
    metallic: Float[np.ndarray, "rows columns 1"]
    name: str = "procedural"
    normal: Float[np.ndarray, "rows columns 3"] | None = None


def constant_material(basecolor: tuple[float, float, float], roughness: float, metallic: float) -> Material:
    """One colour, one roughness, one metallic value everywhere."""
    shape = (TEXTURE_SIZE, TEXTURE_SIZE, 1)
    return Material(
        np.broadcast_to(np.float32(basecolor), (*shape[:2], 3)).copy(),
        np.full(shape, roughness, np.float32),
        np.full(shape, metallic, np.float32),
        "constant",
    )


#: What a random material is made of, and how often. The last five are metals, bare or covered: 32 % of all.
_SURFACES: dict[str, tuple[float, Callable[[np.random.Generator, int], Layers]]] = {
    "patterned": (0.13, surfaces.patterned),
    "plastic": (0.13, surfaces.plastic),
    "wood": (0.09, surfaces.wood),
    "masonry": (0.07, surfaces.masonry),
    "concrete": (0.05, surfaces.concrete),
    "terrazzo": (0.03, surfaces.terrazzo),
    "cobbles": (0.02, surfaces.cobbles),
    "cloth": (0.05, surfaces.cloth),
    "leather": (0.03, surfaces.leather),
    "marble": (0.04, surfaces.marble),
    "painted wall": (0.04, surfaces.painted_wall),
    "metal": (0.17, metals.plain_metal),
    "brushed metal": (0.06, metals.brushed_metal),
    "hammered metal": (0.03, metals.hammered_metal),
    "rusted metal": (0.03, metals.rusted),
    "painted metal": (0.03, metals.chipped_paint),
}

#: What may have happened to it since, and how often, in this order.
_WEAR: dict[str, tuple[float, Callable[[np.random.Generator, Layers], Layers]]] = {
    "decorated": (0.10, decorated),
    "scratched": (0.14, weathering.scratched),
    "smudged": (0.14, weathering.smudged),
    "dusty": (0.05, weathering.dusty),
    "wet": (0.05, weathering.wet),
}

#: Share of the surfaces with relief that show it; the others are flat paint of the same look, as in a photograph of them.
_RELIEF_SHOWN = 0.72
#: Root mean square slope below which a surface counts as flat.
_FLAT = 0.004


def random_material(rng: np.random.Generator, size: int = TEXTURE_SIZE) -> Material:
    """A new, worn, dirty or decorated surface of a random kind, ``size`` texels a side.

    About 28 % are metals (some partly covered by paint, rust or dust) and half have bumps. Their look depends on ``rng`` and
    ``size`` alone; other sizes give other textures, not the same ones sharper or coarser.
    """
    names = list(_SURFACES)
    weights = np.array([_SURFACES[name][0] for name in names])
    made = _worn(rng, _SURFACES[str(rng.choice(names, p=weights / weights.sum()))][1](rng, size))
    return _finished(made, made.name, relief=rng.random() < _RELIEF_SHOWN)


def printed_material(rng: np.random.Generator, size: int = TEXTURE_SIZE) -> Material:
    """A flat sheet with lines and letters (`prints`), new or worn, ``size`` texels a side. None of them is metal."""
    made = _worn(rng, printed(rng, size))
    return _finished(made, made.name, relief=False)


def _worn(rng: np.random.Generator, made: Layers) -> Layers:
    """What time does to a surface; its name begins with what has happened last."""
    for word, (share, function) in _WEAR.items():
        if rng.random() < share:
            made = replace(function(rng, made), name=f"{word} {made.name}")
    return made


def _finished(made: Layers, name: str, relief: bool) -> Material:
    normal = None
    if relief:
        normal = height_normals(made.height)
        if float(np.sqrt(np.mean(1.0 - normal[..., 2] ** 2))) < _FLAT:
            normal = None
    return Material(
        np.clip(made.basecolor, *_REFLECTANCE).astype(np.float32),
        np.clip(made.roughness, *ROUGHNESS).astype(np.float32)[..., None],
        np.clip(made.metallic, 0.0, 1.0).astype(np.float32)[..., None],
        name,
        normal,
    )


def painted_material(
    rng: np.random.Generator,
    pattern: str,
    colours: list[tuple[float, float, float]],
    roughness: tuple[float, float],
    metallic: tuple[float, float] = (0.0, 0.0),
) -> Material:
    """A chosen material: linear colours, roughness and metallic all run along one pattern of `PATTERNS`."""
    field = pattern_field(rng, pattern, TEXTURE_SIZE)
    stops = np.linspace(0.0, 1.0, len(colours))
    basecolor = np.stack([np.interp(field, stops, [colour[channel] for colour in colours]) for channel in range(3)], axis=-1)
    ramps = [(low + (high - low) * field)[..., None].astype(np.float32) for low, high in (roughness, metallic)]
    return Material(basecolor.astype(np.float32), *ramps, name=f"painted {pattern}")
