"""From a `SceneSpec` to Mitsuba's objects, and how they move.

Dr.Jit compiles a kernel anew when a scene has another number of meshes or other classes of materials. So every scene has one of
few numbers of meshes (`SLOTS`; the rest are fillers out of sight), and every mesh the same class of material: the `principled`
model, its three parameters as textures, under a normal map, on both sides. Sizes of textures and meshes do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera
from diffusion_renderer.datagen.objects import Part
from diffusion_renderer.datagen.procedural.materials import Material
from diffusion_renderer.datagen.procedural.shapes import MAX_UV, Mesh
from diffusion_renderer.datagen.scenes import SceneSpec

#: A scene has as many meshes as the first of these numbers that is enough for it.
SLOTS = (8, 16, 32)
#: Slot k of a scene built with ``separate_uv`` has its texture coordinate u in [k UV_STRIDE, k UV_STRIDE + MAX_UV): as textures
#: repeat, rendering does not change, and the slot can be read from a hit's texture coordinate.
UV_STRIDE = 2 * MAX_UV

FLAT = np.array([[[0.0, 0.0, 1.0]]], np.float32)


@dataclass(frozen=True)
class Slot:
    """A mesh of the scene and the object (index into the scene's objects) that it belongs to; -1 for a filler."""

    part: Part
    owner: int


def slots_of(spec: SceneSpec) -> tuple[Slot, ...]:
    """The parts of all objects, in order, and fillers up to one of `SLOTS`.

    Raises InputError for more parts than the largest of `SLOTS`.
    """
    used = [Slot(part, owner) for owner, item in enumerate(spec.objects) for part in item.parts]
    if len(used) > SLOTS[-1]:
        raise InputError(
            f"a scene of at most {SLOTS[-1]} parts", str(len(used)), "use fewer objects, or ones of fewer materials"
        )
    count = next(number for number in SLOTS if number >= len(used))
    return (*used, *[Slot(_filler(used[-1].part.mesh), -1)] * (count - len(used)))


def _filler(near: Mesh) -> Part:
    """An invisibly small triangle inside another mesh."""
    corners = near.positions.mean(0) + 1e-5 * np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    mesh = Mesh(corners, np.tile([0.0, 0, 1], (3, 1)), np.zeros((3, 2)), np.array([[0, 1, 2]]), "filler")
    grey = np.full((1, 1, 1), 0.5, np.float32)
    return Part(mesh, Material(np.repeat(grey, 3, -1), grey, 0 * grey, "filler"))


class MitsubaScene:
    """A scene in Mitsuba, as it stands in one frame at a time.

    Every frame's object poses and light are put in place by `stand`; frames that differ in the camera alone are one `Stand`
    and can be rendered in one launch.

    Parameters
    ----------
    mi : the `mitsuba` module with the wanted variant active.
    radiance : the panorama, linear; spec's own or another one.
    light_rotation : per frame, world to panorama directions; None at rest.
    separate_uv : see `UV_STRIDE`.
    """

    def __init__(
        self,
        mi: Any,
        spec: SceneSpec,
        radiance: Float[np.ndarray, "3 rows columns"],
        light_rotation: Float[np.ndarray, "frames 3 3"] | None,
        separate_uv: bool = False,
    ) -> None:
        self.mi, self.spec, self.light_rotation = mi, spec, light_rotation
        self.slots = slots_of(spec)
        bitmap = mi.Bitmap(_envmap_rows(rearrange(radiance, "c h w -> h w c")))
        scene: dict[str, Any] = {"type": "scene", "light": {"type": "envmap", "bitmap": bitmap}}
        for index, slot in enumerate(self.slots):
            # A material of its own for every mesh, even if two are equal: the number of materials is in the kernel too.
            bsdf = mi.load_dict(_bsdf(mi, slot.part.material))
            scene[f"slot{index:02d}"] = _mesh(mi, slot.part.mesh, bsdf, index, UV_STRIDE * index if separate_uv else 0.0)
        self.scene = mi.load_dict(scene, parallel=False)
        self._parameters = mi.traverse(self.scene) if self._moves() else None
        self._standing: bytes | None = None

    def _moves(self) -> bool:
        return self.light_rotation is not None or any(item.poses is not None for item in self.spec.objects)

    def _key(self, frame: int) -> bytes:
        """Equal for two frames whose objects and light are in the same place."""
        poses = [item.poses[frame] for item in self.spec.objects if item.poses is not None]
        light = [] if self.light_rotation is None else [self.light_rotation[frame]]
        return b"".join(np.ascontiguousarray(matrix, np.float64).tobytes() for matrix in (*poses, *light))

    def runs(self, longest: int) -> Iterator[slice]:
        """Consecutive frames, at most ``longest``, in which only the camera moves; as equal in length as can be.

        Equal, because each length of a launch is a kernel of its own.
        """
        frames, start = len(self.spec.camera), 0
        while start < frames:
            end = start + 1
            while end < frames and self._key(end) == self._key(start):
                end += 1
            pieces = -(-(end - start) // longest)
            bounds = np.linspace(start, end, pieces + 1).round().astype(int).tolist()
            yield from (slice(a, b) for a, b in pairwise(bounds))
            start = end

    def stand(self, frame: int) -> None:
        """Put objects and light where they are in frame ``frame``."""
        key = self._key(frame)
        if self._parameters is None or key == self._standing:
            return
        self._standing = key
        mi, parameters = self.mi, self._parameters
        for index, slot in enumerate(self.slots):
            poses = self.spec.objects[slot.owner].poses if slot.owner >= 0 else None
            if poses is not None:
                rotation, offset = poses[frame][:3, :3], poses[frame][:3, 3]
                mesh = slot.part.mesh
                parameters[f"slot{index:02d}.vertex_positions"] = _flat(mi, mesh.positions @ rotation.T + offset)
                parameters[f"slot{index:02d}.vertex_normals"] = _flat(mi, mesh.normals @ rotation.T)
        if self.light_rotation is not None:
            # Mitsuba looks a world direction up through the inverse of to_world.
            transform = mi.ScalarTransform4f if mi.variant().startswith("scalar") else mi.Transform4f
            parameters["light.to_world"] = transform(_homogeneous(self.light_rotation[frame].T))
        parameters.update()


def sensor(mi: Any, camera: Camera, width: int, height: int, samples: int, centred: bool = False) -> Any:
    """All frames of ``camera`` side by side on one film, so that they are one launch.

    ``centred``: one ray through each pixel's centre in place of random ones.
    """
    description: dict[str, Any] = {
        "type": "batch",
        "film": _film(width * len(camera), height),
        "sampler": _sampler(samples),
    }
    if centred:
        description["sampler"] = {"type": "stratified", "sample_count": 1, "jitter": False}
    for index in range(len(camera)):
        description[f"frame{index:04d}"] = _perspective(mi, camera, index)
    return mi.load_dict(description)


def single_sensor(mi: Any, camera: Camera, width: int, height: int, samples: int) -> Any:
    """The first frame of ``camera`` on a film of its own; later frames by setting ``to_world``."""
    return mi.load_dict({**_perspective(mi, camera, 0), "film": _film(width, height), "sampler": _sampler(samples)})


def mitsuba_pose(pose: Float[Tensor, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Mitsuba's camera looks along +z with +x to the left; ours along -z with +x to the right."""
    return pose.double().numpy() @ np.diag([-1.0, 1.0, -1.0, 1.0])


def _perspective(mi: Any, camera: Camera, index: int) -> dict[str, Any]:
    return {
        "type": "perspective",
        "fov": float(camera.fov_x[index]),
        "fov_axis": "x",
        "near_clip": 1e-3,
        "far_clip": 1e4,
        "to_world": mi.ScalarTransform4f(mitsuba_pose(camera.pose[index])),
    }


def _film(width: int, height: int) -> dict[str, Any]:
    return {
        "type": "hdrfilm",
        "width": width,
        "height": height,
        "rfilter": {"type": "box"},  # neighbouring pixels stay independent, as the denoiser expects
        "pixel_format": "rgb",
        "component_format": "float32",
    }


def _sampler(samples: int) -> dict[str, Any]:
    return {"type": "independent", "sample_count": samples}


def path_integrator(depth: int) -> dict[str, Any]:
    """Mitsuba's path tracer without Russian roulette, which would only add noise to paths this short."""
    return {"type": "path", "max_depth": depth, "rr_depth": depth + 1}


def _flat(mi: Any, values: Float[np.ndarray, "vertices 3"]) -> Any:
    flat = np.ascontiguousarray(values, np.float32).ravel()
    return flat if mi.variant().startswith("scalar") else mi.Float(flat)


def _envmap_rows(image: Float[np.ndarray, "rows columns 3"]) -> Float[np.ndarray, "more columns 3"]:
    """Rows for Mitsuba's `envmap`, which has its first row at the pole itself and its last at the other pole.

    A panorama's rows have their centres at (j + 0.5) / H; 2 H + 1 rows at k / (2 H) hold these and, between them, their means,
    so that Mitsuba's linear interpolation gives exactly that of the panorama.
    """
    padded = np.concatenate((image[:1], image, image[-1:]))
    rows = np.empty((2 * len(image) + 1, *image.shape[1:]), np.float32)
    rows[1::2] = image
    rows[::2] = 0.5 * (padded[:-1] + padded[1:])
    return rows


def _homogeneous(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4 4"]:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    return matrix


def _bsdf(mi: Any, material: Material) -> dict[str, Any]:
    normal = FLAT if material.normal is None else material.normal
    principled = {
        "type": "principled",
        "base_color": _texture(mi, material.basecolor),
        "roughness": _texture(mi, material.roughness),
        "metallic": _texture(mi, material.metallic),
    }
    bumpy = {"type": "normalmap", "normalmap": _texture(mi, 0.5 * normal + 0.5), "bsdf": principled}
    return {"type": "twosided", "bsdf": bumpy}


def _texture(mi: Any, image: Float[np.ndarray, "rows columns channels"]) -> dict[str, Any]:
    # `raw`: the numbers are what they are, no colour conversion.
    return {"type": "bitmap", "bitmap": mi.Bitmap(np.ascontiguousarray(image, np.float32)), "raw": True, "wrap_mode": "repeat"}


def _mesh(mi: Any, mesh: Mesh, bsdf: Any, index: int, offset: float) -> Any:
    properties = mi.Properties()
    properties["bsdf"] = bsdf
    result = mi.Mesh(
        f"slot{index:02d}",
        len(mesh.positions),
        len(mesh.faces),
        has_vertex_normals=True,
        has_vertex_texcoords=True,
        props=properties,
    )
    parameters = mi.traverse(result)
    parameters["vertex_positions"] = mesh.positions.astype(np.float32).ravel()
    parameters["vertex_normals"] = mesh.normals.astype(np.float32).ravel()
    parameters["vertex_texcoords"] = (mesh.uv + np.array([offset, 0.0])).astype(np.float32).ravel()
    parameters["faces"] = mesh.faces.astype(np.uint32).ravel()
    parameters.update()
    return result
