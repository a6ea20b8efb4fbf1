"""Random scenes after the paper's recipe (section 4.1): what stands where, what it is made of, what lights it, what moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera, EnvironmentMap
from diffusion_renderer.datagen.motion import camera_path, light_turns, random_motions, random_view, sliding, turning
from diffusion_renderer.datagen.objects import SceneObject, Source, placed, solid
from diffusion_renderer.datagen.placement import Body, Occupied, at, onto_ground, rotation_to_rest
from diffusion_renderer.datagen.procedural.materials import Material, printed_material, random_material
from diffusion_renderer.datagen.procedural.panoramas import file_panorama, procedural_panorama
from diffusion_renderer.datagen.procedural.shapes import MAX_UV, plane, random_shape
from diffusion_renderer.datagen.settings import DatasetSettings
from diffusion_renderer.datagen.walls import HALF_SIZE, Wall, random_walls, with_walls

if TYPE_CHECKING:
    from diffusion_renderer.datagen.assets import AssetLibrary

#: Assets and primitives on a ground; with the ground itself no more than the ids can tell apart (`tracing.MAX_OBJECTS`).
MAX_ASSETS, MAX_PRIMITIVES = 3, 4
#: How often a thing is made from a file where there are files: models, a primitive's or ground's material.
_FROM_FILE = 0.7
#: How often a thing of one material has a print where the ground has one.
_PRINTED_TOO = 0.2
_PLACES = 12


@dataclass(frozen=True)
class Light:
    """A panorama and how it turns: per frame from world directions to its own, None at rest."""

    environment: EnvironmentMap
    rotation: Float[Tensor, "frames 3 3"] | None = None
    source: Source | None = None


@dataclass(frozen=True)
class SceneSpec:
    """A scene without any renderer's objects in it.

    Attributes
    ----------
    family : "scene" (objects on a ground) or "objects" (one object before the bare panorama).
    objects : the first is the ground in a scene, with its walls.
    camera : one pose per frame.
    environment : linear radiance, before any exposure.
    brightness : the mean that the display-referred frames should have; the exposure is set from it.
    light_rotation : per frame, from world directions to directions of the panorama; None for a light at rest in the world.
    motions : names of `settings.MOTIONS`.
    relights : more lights that the clip is rendered under.
    light_source : the panorama's origin.
    """

    family: str
    objects: tuple[SceneObject, ...]
    camera: Camera
    environment: EnvironmentMap
    brightness: float
    light_rotation: Float[Tensor, "frames 3 3"] | None = None
    motions: tuple[str, ...] = ("orbit",)
    relights: tuple[Light, ...] = ()
    light_source: Source | None = None


def random_scene(rng: np.random.Generator, settings: DatasetSettings, library: AssetLibrary | None = None) -> SceneSpec:
    """Draw a scene; it depends on ``rng``, ``settings`` and the files of ``library`` alone."""
    share = {"mixed": settings.objects_share, "objects": 1.0, "scenes": 0.0}[settings.family]
    family = "objects" if rng.random() < share else "scene"
    motions = random_motions(rng, settings.motions, ground=family == "scene") if settings.frames > 1 else ("static",)
    maker = _Maker(rng, settings, library)
    objects, motions = maker.single(motions) if family == "objects" else maker.ground_scene(motions)
    standing = objects if family == "objects" else objects[1:]
    points = np.concatenate([_swept(item) for item in standing])
    middle = (points.min(0) + points.max(0)) / 2
    extent = float(np.linalg.norm(points - middle, axis=-1).max())
    view = random_view(rng, middle, extent, settings.height / settings.width, -10.0 if family == "objects" else 6.0)
    camera = camera_path(rng, view, motions, settings.frames)
    lights = [maker.light(motions) for _ in range(settings.lights)]
    brightness = float(rng.uniform(0.3, 0.58))
    if family == "scene" and settings.prints > 0 and rng.random() < settings.prints:
        objects = maker.printed(objects)
    if family == "scene" and settings.walls > 0 and rng.random() < settings.walls:
        objects = (maker.room(objects[0], random_walls(rng, camera, points)), *objects[1:])
    first = lights[0]
    return SceneSpec(
        family, objects, camera, first.environment, brightness, first.rotation, motions, tuple(lights[1:]), first.source
    )


def _swept(item: SceneObject) -> Float[np.ndarray, "points 3"]:
    """Corners of the object's bounding box wherever it is during the clip."""
    positions = item.positions
    low, high = positions.min(0), positions.max(0)
    if item.poses is None:
        # The vertices themselves: a round thing is smaller than its box.
        return positions[:: max(1, len(positions) // 2000)]
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
    return np.concatenate([corners @ pose[:3, :3].T + pose[:3, 3] for pose in item.poses])


class _Maker:
    """Draws the things of one scene, from files where there are any."""

    def __init__(self, rng: np.random.Generator, settings: DatasetSettings, library: AssetLibrary | None) -> None:
        self.rng, self.settings, self.library = rng, settings, library

    def _file(self, names: tuple[str, ...], load: Callable):
        """What ``load`` makes of a random one of ``names``; of another one when that is skipped; None when all are."""
        from diffusion_renderer.datagen.assets import SkippedAsset

        for name in self.rng.permutation(len(names)).tolist():
            try:
                return load(names[name])
            except SkippedAsset:  # the library has noted why
                continue
        return None

    def _chosen(self, names: tuple[str, ...] | None) -> bool:
        return bool(names) and self.rng.random() < _FROM_FILE

    def material(self) -> tuple[Material, Source | None]:
        """From a file or procedural."""
        if self.library is not None and self._chosen(self.library.material_names):
            found = self._file(self.library.material_names, self.library.material)
            if found is not None:
                return found
        return random_material(self.rng, self.settings.texture_size), None

    def asset(self) -> SceneObject:
        """A model from a file, else a procedural shape; within the unit sphere."""
        if self.library is not None and self._chosen(self.library.model_names):
            found = self._file(self.library.model_names, self.library.model)
            if found is not None:
                return SceneObject(found.parts, found.name, (found.source,))
        return self.shape("rich")

    def shape(self, kinds: str) -> SceneObject:
        """A procedural shape with one material."""
        mesh = random_shape(self.rng, self.settings.shapes if self.settings.shapes != "all" else kinds)
        return solid(mesh, *self.material())

    def light(self, motions: tuple[str, ...]) -> Light:
        """A panorama, from a file or procedural, that turns if the light is to move."""
        rotation = light_turns(self.rng, self.settings.frames) if "light" in motions else None
        if self.library is not None and self.library.panorama_names and self.rng.random() < self.settings.panorama_probability:
            found = self._file(self.library.panorama_names, self._panorama)
            if found is not None:
                return replace(found, rotation=rotation)
        kind, image = procedural_panorama(self.rng, self.settings.panorama_height)
        environment = EnvironmentMap(torch.from_numpy(image).permute(2, 0, 1).contiguous(), f"procedural {kind}")
        return Light(environment, rotation, Source(environment.name))

    def _panorama(self, name: str) -> Light:
        from diffusion_renderer.datagen.assets import SkippedAsset

        try:
            image = file_panorama(self.rng, self.library.panorama_path(name), self.settings.panorama_height)
        except InputError as error:
            self.library.skipped[f"panorama {name}"] = error.found
            raise SkippedAsset(name, error.found) from error
        environment = EnvironmentMap(torch.from_numpy(image).permute(2, 0, 1).contiguous(), name)
        return Light(environment, None, self.library.source("panorama", name))

    def single(self, motions: tuple[str, ...]) -> tuple[tuple[SceneObject, ...], tuple[str, ...]]:
        """The family "objects": one object, no ground."""
        item = self.asset() if self.rng.random() < 0.75 else self.shape("primitives")
        rotation = _yaw(self.rng.uniform(0, 2 * np.pi))
        if self.rng.random() < 0.3:
            rotation = _random_rotation(self.rng)
        item = placed(item, rotation)
        if "object-rotation" in motions:
            low, high = item.positions.min(0), item.positions.max(0)
            item = replace(item, poses=turning(self.rng, (low + high) / 2, self.settings.frames))
        return (item,), motions

    def ground_scene(self, motions: tuple[str, ...]) -> tuple[tuple[SceneObject, ...], tuple[str, ...]]:
        """The family "scenes": a ground, up to three assets and up to four primitives, one of which may move."""
        assets, primitives = int(self.rng.integers(0, MAX_ASSETS + 1)), int(self.rng.integers(0, MAX_PRIMITIVES + 1))
        if assets + primitives == 0:
            primitives = 1
        occupied, objects = Occupied(), [self._ground()]
        wanted = [name for name in motions if name.startswith("object-")]
        moved = False
        for index in range(assets + primitives):
            item = self.asset() if index < assets else self.shape("primitives")
            scale = self.rng.uniform(0.45, 1.0) if index < assets else self.rng.uniform(0.25, 0.75)
            item = placed(placed(item, scale * np.eye(3)), self._attitude(item, upright=index < assets))
            item = onto_ground(item)
            body = Body(item)
            # The first object that finds a free way is the one that moves.
            for motion in [*([] if moved else wanted), None]:
                found = self._place(item, body, motion, occupied)
                if found is not None:
                    objects.append(found)
                    moved = moved or motion is not None
                    break
        if wanted and not moved:
            motions = tuple(name for name in motions if name not in wanted) or ("orbit",)
        return tuple(objects), motions

    def _attitude(self, item: SceneObject, upright: bool) -> Float[np.ndarray, "3 3"]:
        yaw = _yaw(self.rng.uniform(0, 2 * np.pi))
        if self.rng.random() < (0.9 if upright else 0.6):
            return yaw
        return yaw @ rotation_to_rest(self.rng, item)

    def _place(self, item: SceneObject, body: Body, motion: str | None, occupied: Occupied) -> SceneObject | None:
        """The object on a free place near the middle, with its motion; None after too many tries."""
        for attempt in range(_PLACES):
            x, z = self.rng.uniform(-1, 1, 2) * (0.5 + 0.15 * attempt)
            offset = np.array([x, 0.0, z])
            poses = None
            if motion == "object-rotation":
                poses = turning(self.rng, offset, self.settings.frames)
            elif motion == "object-translation":
                poses = sliding(self.rng, 1.5, self.settings.frames)
            ways = at(offset) if poses is None else poses @ at(offset)
            if occupied.free(body, ways):
                occupied.add(body, ways)
                return replace(placed(item, offset=offset), poses=poses)
        return None

    def _ground(self) -> SceneObject:
        half_size = float(np.exp(self.rng.uniform(np.log(4.0), np.log(16.0))))
        repeats = min(2 * half_size / self.rng.uniform(0.8, 4.0), MAX_UV - 1)
        ground = solid(plane(half_size, repeats), *self.material())
        return placed(ground, _yaw(self.rng.uniform(0, 2 * np.pi)))

    def printed(self, objects: tuple[SceneObject, ...]) -> tuple[SceneObject, ...]:
        """The same things with a printed ground; now and then one of them carries a print, too."""
        changed = []
        for index, item in enumerate(objects):
            if index > 0 and (len(item.parts) > 1 or self.rng.random() >= _PRINTED_TOO):
                changed.append(item)
                continue
            made = solid(item.parts[0].mesh, printed_material(self.rng, self.settings.texture_size))
            changed.append(replace(made, poses=item.poses))
        return tuple(changed)

    def room(self, ground: SceneObject, walls: tuple[Wall, ...]) -> SceneObject:
        """The ground with walls, most often all of one material."""
        planes: list[SceneObject] = []
        for _ in walls:
            if planes and self.rng.random() < 0.6:
                planes.append(planes[0])
            else:
                repeats = min(2 * HALF_SIZE / self.rng.uniform(0.8, 4.0), MAX_UV - 1)
                planes.append(solid(plane(HALF_SIZE, repeats), *self.material()))
        return with_walls(ground, walls, tuple(planes))


def _random_rotation(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def _yaw(angle: float) -> Float[np.ndarray, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
