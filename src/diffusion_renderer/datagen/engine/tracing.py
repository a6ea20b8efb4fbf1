"""Radiance and G-buffers of a frame in one kernel, from the same camera samples. For the JIT variants of Mitsuba.

An integrator around Mitsuba's own path tracer: every camera ray's first hit is looked up in the materials, and Mitsuba's film
averages what was found over the samples of a pixel, together with the radiance. `first_hits` is the same for `scalar_rgb`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.datagen.engine.material_table import material_table
from diffusion_renderer.datagen.engine.mitsuba_scene import MitsubaScene, mitsuba_pose, path_integrator, sensor, single_sensor
from diffusion_renderer.datagen.settings import DatasetSettings

#: Paths in one launch; each takes a few hundred bytes while it is traced. Longer clips are rendered in groups of frames.
MAX_PATHS = 2**22
#: Objects of a scene that are told apart in the ids.
MAX_OBJECTS = 8
#: Sums over a pixel's hits: hit, base colour (3), roughness, metallic, world normal (3), world position (3), hits per object.
HIT_CHANNELS = 12 + MAX_OBJECTS


class Launcher:
    """Renders runs of frames of one scene with one integrator.

    Where every frame is a launch of its own because the light moves, the launch is recorded once and replayed
    (`drjit.freeze`): what Mitsuba does in Python before a kernel starts takes longer than a small frame's kernel itself. Not so
    where an object moves: the replayed kernel then sees the old geometry in some frames (Dr.Jit 1.4, Mitsuba 3.9).
    """

    def __init__(self, built: MitsubaScene, integrator: Any, settings: DatasetSettings, replay: bool = True) -> None:
        self.built, self.integrator, self.settings = built, integrator, settings
        self.runs = list(built.runs(max(1, MAX_PATHS // (settings.width * settings.height * settings.samples))))
        self._eye = None
        moving = any(item.poses is not None for item in built.spec.objects)
        if replay and len(self.runs) > 2 and not moving and not built.mi.variant().startswith("scalar"):
            self._record()

    def _record(self) -> None:
        import drjit as dr

        mi, samples = self.built.mi, self.settings.samples
        self._eye = single_sensor(mi, self.built.spec.camera, self.settings.width, self.settings.height, samples)
        self._eye_parameters = mi.traverse(self._eye)

        @dr.freeze
        def render(scene: Any, eye: Any, integrator: Any, seed: Any) -> Any:
            return mi.render(scene, sensor=eye, integrator=integrator, spp=samples, seed=seed)

        self._render = render

    def launch(self, frames: slice, seed: int) -> Float[Tensor, "frames channels height width"]:
        """The film of a run; one launch. The same with and without replaying."""
        mi, settings, camera = self.built.mi, self.settings, self.built.spec.camera[frames]
        self.built.stand(frames.start)
        if self._eye is not None and len(camera) == 1:
            self._eye_parameters["to_world"] = mi.Transform4f(mitsuba_pose(camera.pose[0]))
            self._eye_parameters.update()
            film = self._render(self.built.scene, self._eye, self.integrator, mi.UInt32(seed))
        else:
            eyes = sensor(mi, camera, settings.width, settings.height, settings.samples)
            film = mi.render(self.built.scene, sensor=eyes, integrator=self.integrator, spp=settings.samples, seed=seed)
        image = torch.from_numpy(rearrange(np.array(film), "h (f w) c -> f c h w", f=len(camera)).copy())
        return torch.nan_to_num(image, nan=0.0, posinf=65504.0, neginf=0.0)

    def all(self, seed: int) -> Float[Tensor, "frames channels height width"]:
        """All frames."""
        return torch.cat([self.launch(frames, seed + number) for number, frames in enumerate(self.runs)])


def trace_frames(
    built: MitsubaScene, settings: DatasetSettings, seed: int
) -> tuple[Float[Tensor, "frames 3 height width"], Float[Tensor, "frames sums height width"]]:
    """Radiance and the means over each pixel's samples of `HIT_CHANNELS`, 0 for samples without a hit."""
    integrator = built.mi.load_dict({"type": "first_hits_and_path", "max_depth": settings.depth})
    integrator.bind(built)
    film = Launcher(built, integrator, settings).all(seed)
    return film[:, :3], film[:, 3:]


def trace_radiance(built: MitsubaScene, settings: DatasetSettings, seed: int) -> Float[Tensor, "frames 3 height width"]:
    """Radiance alone, by Mitsuba's path tracer, in any variant."""
    return Launcher(built, built.mi.load_dict(path_integrator(settings.depth)), settings).all(seed)


@functools.cache
def register(mi: Any, variant: str) -> None:
    """Make `first_hits_and_path` known to Mitsuba; once per variant, which must be active."""
    import drjit as dr

    class FirstHitsAndPath(mi.SamplingIntegrator):
        """Mitsuba's path tracer, with the first hit's buffers as further channels."""

        def __init__(self, properties: Any) -> None:
            super().__init__(properties)
            self.path = mi.load_dict(path_integrator(int(properties.get("max_depth", 5))))

        def bind(self, built: MitsubaScene) -> None:
            """Which materials and objects the scene's meshes have."""
            table = material_table([slot.part.material for slot in built.slots])
            self.texels = mi.Float(table.texels.ravel())
            self.offset, self.columns, self.rows = (mi.UInt32(v) for v in (table.offset, table.columns, table.rows))
            self.owner = mi.UInt32([max(slot.owner, 0) for slot in built.slots])
            # Mitsuba numbers the meshes of all scenes alive; `slot` leads from that number back to ours.
            numbers = np.array(dr.reinterpret_array(mi.UInt32, built.scene.shapes_dr()))
            names = [shape.id() for shape in built.scene.shapes()]
            slot = np.zeros(int(numbers.max()) + 1, np.uint32)
            slot[numbers] = [int(name.removeprefix("slot")) for name in names]
            self.slot = mi.UInt32(slot)

        def aov_names(self) -> list[str]:
            return [f"hit{index:02d}" for index in range(HIT_CHANNELS)]

        def sample(self, scene: Any, sampler: Any, ray: Any, medium: Any = None, active: Any = True) -> Any:
            nearest = scene.ray_intersect_preliminary(ray, coherent=True, active=active)
            si = nearest.compute_surface_interaction(ray, mi.RayFlags.All, active)
            hit = active & si.is_valid()
            slot = dr.gather(mi.UInt32, self.slot, dr.reinterpret_array(mi.UInt32, si.shape), hit)
            first, second = self._look_up(slot, si.uv, hit)
            normal = self._bumped(si, mi.Vector3f(second.y, second.z, second.w))
            owner = dr.gather(mi.UInt32, self.owner, slot, hit)
            found = [mi.Float(1), *first, second.x, *normal, *si.p]
            found += [dr.select(owner == index, mi.Float(1), mi.Float(0)) for index in range(MAX_OBJECTS)]
            radiance, valid, _ = self.path.sample(scene, sampler, ray, medium, active)
            return radiance, valid, [dr.select(hit, value, 0.0) for value in found]

        def _look_up(self, slot: Any, uv: Any, hit: Any) -> tuple[Any, Any]:
            """`material_table.look_up` as part of the kernel."""
            offset, columns, rows = (dr.gather(mi.UInt32, v, slot, hit) for v in (self.offset, self.columns, self.rows))
            x, y = uv.x * mi.Float(columns) - 0.5, uv.y * mi.Float(rows) - 0.5
            low_x, low_y = dr.floor(x), dr.floor(y)
            right, lower = x - low_x, y - low_y
            first, second = mi.Vector4f(0), mi.Vector4f(0)
            for dy in (0, 1):
                for dx in (0, 1):
                    column = mi.UInt32(_wrapped(mi.Int32(low_x) + dx, mi.Int32(columns)))
                    row = mi.UInt32(_wrapped(mi.Int32(low_y) + dy, mi.Int32(rows)))
                    weight = (right if dx else 1 - right) * (lower if dy else 1 - lower)
                    texel = 2 * (offset + row * columns + column)
                    first += weight * dr.gather(mi.Vector4f, self.texels, texel, hit)
                    second += weight * dr.gather(mi.Vector4f, self.texels, texel + 1, hit)
            return first, second

        def _bumped(self, si: Any, local: Any) -> Any:
            """The shading normal that `twosided(normalmap(...))` shades with: facing the ray, see `first_hits.bumped`."""
            local = dr.normalize(local)
            facing = dr.select(mi.Frame3f.cos_theta(si.wi) < 0, mi.Float(-1), mi.Float(1))
            return si.to_world(mi.Vector3f(local.x, local.y, local.z * facing))

    def _wrapped(value: Any, size: Any) -> Any:
        return value - size * mi.Int32(dr.floor(mi.Float(value) / mi.Float(size)))

    mi.register_integrator("first_hits_and_path", FirstHitsAndPath)
