"""glTF materials as `Surface`: metallic-roughness, specular-glossiness, unlit.

Cannot do: emission, occlusion, transmission as refraction (clear glass counts as invisible), clear coats, sheen, wrap modes
other than repetition. A map that uses other texture coordinates than the base colour's is replaced by its mean (a normal map
is left out).
Source: Khronos, glTF 2.0 specification, sections 3.9 (materials), KHR_texture_transform, KHR_materials_pbrSpecularGlossiness
with the conversion of its appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.assets.gltf import Document
from diffusion_renderer.datagen.assets.images import alpha_of, decode, resize, rgb, to_linear, to_unit
from diffusion_renderer.datagen.assets.limits import Unusable
from diffusion_renderer.datagen.assets.surface import UNKNOWN_ROUGHNESS, Surface, alpha_surface, constant, mean, unit_normals

_TRANSFORM, _GLOSSY = "KHR_texture_transform", "KHR_materials_pbrSpecularGlossiness"
_UNLIT, _TRANSMISSION = "KHR_materials_unlit", "KHR_materials_transmission"
#: Reflectance of a dielectric at normal incidence.
_DIELECTRIC = 0.04


@dataclass(frozen=True)
class Lookup:
    """Which texture coordinates a material reads, and the affine map applied to them."""

    channel: int = 0
    matrix: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    def apply(self, uv: Float[np.ndarray, "vertices 2"]) -> Float[np.ndarray, "vertices 2"]:
        """Transformed coordinates."""
        matrix = np.array(self.matrix).reshape(2, 3)
        return uv @ matrix[:, :2].T + matrix[:, 2]


class Materials:
    """The materials of one document, each read once."""

    def __init__(self, document: Document, longest: int) -> None:
        self._document, self._longest = document, longest
        self._images: dict[int, np.ndarray] = {}
        self._read: dict[int | None, tuple[Surface, Lookup]] = {}

    def __getitem__(self, index: int | None) -> tuple[Surface, Lookup]:
        if index not in self._read:
            self._read[index] = _UNSTATED if index is None else self._surface(self._document.json["materials"][index])
        return self._read[index]

    def _surface(self, entry: dict[str, Any]) -> tuple[Surface, Lookup]:
        glossy = entry.get("extensions", {}).get(_GLOSSY)
        pbr = glossy or entry.get("pbrMetallicRoughness", {})
        colour_info = pbr.get("diffuseTexture" if glossy else "baseColorTexture")
        infos = [i for i in (colour_info, pbr.get("metallicRoughnessTexture"), entry.get("normalTexture")) if i is not None]
        lookup = _lookup(infos[0]) if infos else Lookup()
        colour, alpha = self._colour(colour_info, pbr.get("diffuseFactor" if glossy else "baseColorFactor"))
        roughness, metallic = self._reflection(entry, lookup)
        if glossy:
            colour, roughness, metallic = self._converted(glossy, colour, lookup)
        surface = Surface(
            colour,
            np.clip(roughness, 0.0, 1.0),
            np.clip(metallic, 0.0, 1.0),
            self._normal(entry.get("normalTexture"), lookup),
            name=str(entry.get("name") or "material"),
        )
        return self._with_alpha(surface, entry, alpha), lookup

    def _with_alpha(self, surface: Surface, entry: dict[str, Any], alpha: np.ndarray) -> Surface:
        clear = entry.get("extensions", {}).get(_TRANSMISSION, {}).get("transmissionFactor", 0.0)
        mode = entry.get("alphaMode", "OPAQUE")
        if clear > 0.5:
            alpha = constant(1.0 - clear)
        elif mode == "OPAQUE":
            return surface
        cutoff = float(entry.get("alphaCutoff", 0.5)) if mode == "MASK" else 0.5
        return alpha_surface(surface, alpha, cutoff, 2 * self._longest)

    def _colour(self, info: dict[str, Any] | None, factor: list[float] | None) -> tuple[np.ndarray, np.ndarray]:
        tint = np.float32(factor or [1.0, 1.0, 1.0, 1.0])
        if info is None:
            return constant(*np.clip(tint[:3], 0.0, 1.0)), constant(tint[3])
        pixels = self._pixels(info)
        alpha = alpha_of(pixels)
        alpha = constant(1.0) if alpha is None else to_unit(alpha)
        return np.clip(to_linear(rgb(pixels)) * tint[:3], 0.0, 1.0), alpha * tint[3]

    def _reflection(self, entry: dict[str, Any], lookup: Lookup) -> tuple[np.ndarray, np.ndarray]:
        pbr = entry.get("pbrMetallicRoughness")
        if pbr is None or _UNLIT in entry.get("extensions", {}):
            return constant(UNKNOWN_ROUGHNESS), constant(0.0)
        roughness, metallic = constant(pbr.get("roughnessFactor", 1.0)), constant(pbr.get("metallicFactor", 1.0))
        info = pbr.get("metallicRoughnessTexture")
        pixels = self._optional(info)
        if pixels is None:
            # With a map that cannot be read, the factors are mostly 1 and mean nothing by themselves.
            return (roughness, metallic) if info is None else (constant(UNKNOWN_ROUGHNESS), constant(0.0))
        values = to_unit(rgb(pixels))
        if _lookup(info) != lookup:
            values = mean(values)
        return values[..., 1:2] * roughness, values[..., 2:3] * metallic

    def _normal(self, info: dict[str, Any] | None, lookup: Lookup) -> np.ndarray | None:
        pixels = self._optional(info)
        if pixels is None or pixels.shape[-1] < 3 or _lookup(info) != lookup:
            return None
        return unit_normals(2 * to_unit(pixels[..., :3]) - 1, float(info.get("scale", 1.0)))

    def _converted(
        self, glossy: dict[str, Any], diffuse: np.ndarray, lookup: Lookup
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Base colour, roughness and metallic of a specular-glossiness material."""
        specular = constant(*glossy.get("specularFactor", [1.0, 1.0, 1.0]))
        gloss = constant(glossy.get("glossinessFactor", 1.0))
        info = glossy.get("specularGlossinessTexture")
        pixels = self._optional(info)
        if pixels is not None:
            same = _lookup(info) == lookup
            specular = specular * (to_linear(rgb(pixels)) if same else mean(to_linear(rgb(pixels))))
            alpha = alpha_of(pixels)
            gloss = gloss if alpha is None else gloss * (to_unit(alpha) if same else mean(to_unit(alpha)))
        rows, columns = (max(diffuse.shape[k], specular.shape[k]) for k in (0, 1))
        colour, metallic = metallic_roughness(resize(diffuse, rows, columns), resize(specular, rows, columns))
        return colour, 1.0 - gloss, metallic

    def _optional(self, info: dict[str, Any] | None) -> np.ndarray | None:
        if info is None:
            return None
        try:
            return self._pixels(info)
        except (Unusable, OSError):
            return None

    def _pixels(self, info: dict[str, Any]) -> np.ndarray:
        texture = self._document.json["textures"][info["index"]]
        source = texture.get("extensions", {}).get("EXT_texture_webp", {}).get("source", texture.get("source"))
        if source is None:
            raise Unusable("its textures are in a format that is not read (KTX2 or DDS)")
        if source not in self._images:
            entry = self._document.json["images"][source]
            data = (
                self._document.buffer_view(entry["bufferView"])
                if "bufferView" in entry
                else self._document.resource(entry["uri"])
            )
            self._images[source] = decode(data, self._longest)
        return self._images[source]


#: Triangles without a material: middle grey, to be used only beside others that have one.
_UNSTATED = (
    Surface(constant(0.5, 0.5, 0.5), constant(UNKNOWN_ROUGHNESS), constant(0.0), stated=False, name="none"),
    Lookup(),
)


def _lookup(info: dict[str, Any]) -> Lookup:
    transform = info.get("extensions", {}).get(_TRANSFORM)
    channel = info.get("texCoord", 0)
    if transform is None:
        return Lookup(channel)
    (x, y), (scale_x, scale_y) = transform.get("offset", (0.0, 0.0)), transform.get("scale", (1.0, 1.0))
    angle = transform.get("rotation", 0.0)
    # Counter-clockwise where v grows downwards: the extension's text, which viewers follow. Its GLSL sample says the opposite.
    c, s = float(np.cos(angle)), float(np.sin(angle))
    matrix = (c * scale_x, s * scale_y, x, -s * scale_x, c * scale_y, y)
    return Lookup(transform.get("texCoord", channel), tuple(float(value) for value in matrix))


def metallic_roughness(
    diffuse: Float[np.ndarray, "rows columns 3"], specular: Float[np.ndarray, "rows columns 3"]
) -> tuple[Float[np.ndarray, "rows columns 3"], Float[np.ndarray, "rows columns 1"]]:
    """Base colour and metallic with about the same diffuse and specular reflectance (linear).

    Both models agree when ``diffuse (1 - max specular) = base (1 - 0.04) (1 - m)`` and ``specular = 0.04 (1 - m) + base m``;
    eliminating the base colour leaves a quadratic for m, solved for perceived brightness.
    """
    strength = 1.0 - specular.max(-1, keepdims=True)
    bright_d, bright_s = _brightness(diffuse), _brightness(specular)
    b = bright_d * strength / (1 - _DIELECTRIC) + bright_s - 2 * _DIELECTRIC
    root = np.sqrt(np.maximum(b * b - 4 * _DIELECTRIC * (_DIELECTRIC - bright_s), 0.0))
    metallic = np.where(bright_s <= _DIELECTRIC, 0.0, np.clip((root - b) / (2 * _DIELECTRIC), 0.0, 1.0))
    from_diffuse = diffuse * strength / ((1 - _DIELECTRIC) * np.maximum(1 - metallic, 1e-4))
    from_specular = (specular - _DIELECTRIC * (1 - metallic)) / np.maximum(metallic, 1e-4)
    share = metallic**2
    colour = np.clip(from_diffuse * (1 - share) + from_specular * share, 0.0, 1.0)
    return colour.astype(np.float32), metallic.astype(np.float32)


def _brightness(colour: np.ndarray) -> np.ndarray:
    """Perceived brightness (the weights of the HSP colour model)."""
    return np.sqrt(np.einsum("...c,c->...", colour**2, np.array([0.299, 0.587, 0.114])))[..., None]
