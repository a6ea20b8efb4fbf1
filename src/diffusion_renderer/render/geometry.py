"""What the path tracer needs and G-buffers do not hold: triangles, in world space, with materials.

Geometry is a description. It becomes Mitsuba's shapes when a path tracer is built, for the variant that one renders with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from diffusion_renderer.core.errors import InputError

MESH_SUFFIXES = (".ply", ".obj")
SCENE_SUFFIXES = (".xml",)
#: A reflectance of 0.5 in all channels.
GREY = torch.full((3, 1, 1), 0.5)


@dataclass(frozen=True)
class PrincipledMaterial:
    """Mitsuba's `principled` material, seen from both sides, with its default specular (index of refraction 1.5).

    All values in [0, 1] and linear. An image of one pixel is a constant; larger ones need a mesh with texture coordinates, are
    read bilinearly and repeat.
    """

    basecolor: Float[Tensor, "3 rows columns"] = field(default_factory=GREY.clone)
    roughness: Float[Tensor, "1 _rows _columns"] = field(default_factory=lambda: GREY[:1].clone())
    metallic: Float[Tensor, "1 __rows __columns"] = field(default_factory=lambda: torch.zeros(1, 1, 1))

    def __post_init__(self) -> None:
        for name, image in self.images():
            if not bool(((image >= 0) & (image <= 1)).all()):  # also False for NaN
                raise InputError(
                    f"{name} in [0, 1]", _span(image), "reflectance is linear and at most 1; the other two are in [0, 1]"
                )

    @classmethod
    def constant(
        cls, basecolor: tuple[float, float, float] = (0.5, 0.5, 0.5), roughness: float = 0.5, metallic: float = 0.0
    ) -> PrincipledMaterial:
        """The same values everywhere."""
        return cls(*(torch.tensor(value, dtype=torch.float32).view(-1, 1, 1) for value in (basecolor, roughness, metallic)))

    def images(self) -> tuple[tuple[str, Tensor], ...]:
        """(name, values) of the three parameters."""
        return ("basecolor", self.basecolor), ("roughness", self.roughness), ("metallic", self.metallic)

    @property
    def textured(self) -> bool:
        """Whether a parameter is more than a constant."""
        return any(image[0].numel() > 1 for _, image in self.images())

    def bsdf(self, mi: Any) -> dict[str, Any]:
        """Mitsuba's description."""
        principled = {"base_color" if name == "basecolor" else name: _texture(mi, image) for name, image in self.images()}
        return {"type": "twosided", "bsdf": {"type": "principled", **principled}}


@dataclass(frozen=True)
class TriangleMesh:
    """Triangles in world space (+y up), from arrays.

    Attributes
    ----------
    vertices : scene units.
    faces : indices of vertices, counter-clockwise seen from outside.
    uv : texture coordinates, (0, 0) at the first pixel's corner of a texture, v down; needed for a textured material.
    normals : unit normals to shade with, interpolated over a triangle; None shades every triangle flat.

    Raises InputError for no triangles, values that are not finite, indices of vertices that do not exist, lengths that
    disagree, a texture without texture coordinates.
    """

    vertices: Float[Tensor, "vertices 3"]
    faces: Int[Tensor, "faces 3"]
    material: PrincipledMaterial = field(default_factory=PrincipledMaterial)
    uv: Float[Tensor, "_vertices 2"] | None = None
    normals: Float[Tensor, "__vertices 3"] | None = None

    def __post_init__(self) -> None:
        count = len(self.vertices)
        if count == 0 or len(self.faces) == 0:
            raise InputError("a mesh with triangles", f"{count} vertices, {len(self.faces)} faces", "leave the empty mesh out")
        for name in ("vertices", "uv", "normals"):
            values = getattr(self, name)
            if values is not None and not bool(torch.isfinite(values).all()):
                raise InputError(f"finite {name}", "NaN or infinity", "repair the mesh")
            if values is not None and len(values) != count:
                raise InputError(f"{name} of {count} vertices", str(len(values)), "give one for every vertex")
        low, high = int(self.faces.min()), int(self.faces.max())
        if low < 0 or high >= count:
            raise InputError(f"faces of vertices 0 to {count - 1}", f"{low} to {high}", "indices start at 0")
        if self.material.textured and self.uv is None:
            raise InputError("texture coordinates for a textured material", "none", "give uv, or a constant material")

    def shapes(self, mi: Any) -> list[Any]:
        """One mesh."""
        properties = mi.Properties()
        properties["bsdf"] = mi.load_dict(self.material.bsdf(mi))
        # Without normals of the vertices, and only then, Mitsuba takes the triangles' own.
        mesh = mi.Mesh("mesh", len(self.vertices), len(self.faces), properties, self.normals is not None, self.uv is not None)
        parameters = mi.traverse(mesh)
        parameters["vertex_positions"] = _flat(self.vertices, np.float32)
        parameters["faces"] = _flat(self.faces, np.uint32)
        if self.normals is not None:
            parameters["vertex_normals"] = _flat(self.normals, np.float32)
        if self.uv is not None:
            parameters["vertex_texcoords"] = _flat(self.uv, np.float32)
        parameters.update()
        return [mesh]


@dataclass(frozen=True)
class MeshFile:
    """A .ply or .obj file, world space, all of it of one material.

    A file without normals is shaded smoothly. Materials that an .obj names (.mtl) and colours of vertices are ignored.
    """

    path: Path
    material: PrincipledMaterial = field(default_factory=PrincipledMaterial)

    def shapes(self, mi: Any) -> list[Any]:
        """One mesh. InputError when Mitsuba cannot read the file or it has no triangles."""
        description = {
            "type": self.path.suffix.lower().removeprefix("."),
            "filename": str(self.path),
            "bsdf": self.material.bsdf(mi),
        }
        try:
            mesh = mi.load_dict(description)
        except RuntimeError as error:
            raise InputError(f"a {description['type']} mesh", f"{self.path} ({error})", "repair or replace it") from error
        if mesh.face_count() == 0:
            raise InputError("a mesh with triangles", f"none in {self.path}", "give another file")
        if self.material.textured and not mesh.has_vertex_texcoords():
            raise InputError("texture coordinates for a textured material", f"none in {self.path}", "give a constant material")
        return [mesh]


@dataclass(frozen=True)
class SceneFile:
    """The shapes and materials of a Mitsuba XML scene, as they are there, with what it includes.

    Everything else is ignored: emitters (a shape that emits is kept, and only reflects), sensors, films, samplers, the
    integrator, media. Materials of any kind are kept, so such a scene need not be one that G-buffers can describe.
    """

    path: Path

    def shapes(self, mi: Any) -> list[Any]:
        """InputError when Mitsuba cannot read the file or a file that it names, or it has no shapes."""
        before = mi.file_resolver()
        resolver = mi.FileResolver(before)
        resolver.prepend(str(self.path.parent))
        mi.set_file_resolver(resolver)
        try:
            shapes = self._load(mi)
        except RuntimeError as error:
            raise InputError("a Mitsuba scene", f"{self.path} ({error})", "repair it, or the file that it names") from error
        finally:
            mi.set_file_resolver(before)
        if not shapes:
            raise InputError("a Mitsuba scene with shapes", f"none in {self.path}", "give another file")
        return shapes

    def _load(self, mi: Any) -> list[Any]:
        parser = mi.parser
        config = parser.ParserConfig(mi.variant())
        config.merge_meshes = False
        state = parser.parse_file(config, str(self.path))
        parser.transform_all(config, state)
        for node in state.nodes:
            for key in list(node.props.keys()):
                value = node.props[key]
                if isinstance(value, mi.Properties.ResolvedReference):
                    kind = state.nodes[value.index()].type
                    of_scene = node.type == mi.ObjectType.Scene and kind != mi.ObjectType.Shape
                    if of_scene or kind in (mi.ObjectType.Emitter, mi.ObjectType.Sensor, mi.ObjectType.Medium):
                        del node.props[key]
        return _children(mi, parser.instantiate(config, state))


@dataclass(frozen=True)
class Geometry:
    """All that stands in the light, at rest in world space.

    Cannot describe motion: a clip whose objects move is one `Geometry` per pose.
    """

    parts: tuple[TriangleMesh | MeshFile | SceneFile, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("geometry with at least one part", "none", "give a mesh")

    @classmethod
    def from_file(cls, path: str | Path, material: PrincipledMaterial | None = None) -> Geometry:
        """A Mitsuba scene (.xml, see `SceneFile`) or a mesh (.ply, .obj, see `MeshFile`) of ``material``, by default grey.

        Raises InputError for a file that is missing or of another kind, and for a material with a scene, which has its own.
        What is in the file is read when a path tracer is built.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SCENE_SUFFIXES + MESH_SUFFIXES:
            raise InputError("geometry as .xml, .ply or .obj", str(path), "convert it, for instance with Blender")
        if not path.is_file():
            raise InputError(f"a {suffix} file", f"nothing at {path}", "check the path")
        if suffix in MESH_SUFFIXES:
            return cls((MeshFile(path, material or PrincipledMaterial()),))
        if material is not None:
            raise InputError("no material with a scene", f"one for {path}", "leave it out: the scene has its own")
        return cls((SceneFile(path),))

    def shapes(self, mi: Any) -> dict[str, Any]:
        """The shapes of all parts, under names as `mitsuba.load_dict` wants them."""
        shapes = [shape for part in self.parts for shape in part.shapes(mi)]
        return {f"shape{index:05d}": shape for index, shape in enumerate(shapes)}


def _children(mi: Any, scene: Any) -> list[Any]:
    """The shapes of a scene with the groups that its instances show, which ``scene.shapes()`` leaves out."""
    found: list[Any] = []

    class Collect(mi.TraversalCallback):
        def put(self, name: str, value: Any, flags: Any, *_: Any) -> None:
            if isinstance(value, mi.Shape):
                found.append(value)

    scene.traverse(Collect())
    return found


def _flat(values: Tensor, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(values.detach().cpu().numpy(), dtype).ravel()


def _texture(mi: Any, image: Float[Tensor, "channels rows columns"]) -> dict[str, Any]:
    rows = rearrange(image, "c h w -> h w c").detach().cpu().numpy()
    # `raw`: the numbers are what they are, no colour conversion.
    return {"type": "bitmap", "bitmap": mi.Bitmap(np.ascontiguousarray(rows, np.float32)), "raw": True}


def _span(image: Tensor) -> str:
    if bool(image.isnan().any()):
        return "NaN"
    return f"{float(image.min()):.3g} to {float(image.max()):.3g}"
