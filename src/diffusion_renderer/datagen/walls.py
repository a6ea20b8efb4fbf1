"""Walls behind the things of a scene: before a wall, in a corner, between three walls of a room that is open to the light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion_renderer.core.types import Camera
from diffusion_renderer.datagen.objects import SceneObject, placed

#: How often there are one, two and three walls.
_COUNTS = (0.5, 0.3, 0.2)
#: Half the side of a wall, scene units; a little of it is below the ground, which may end before it.
HALF_SIZE, _BELOW = 14.0, 0.2
#: Nearest that a camera comes to a wall, scene units.
_FREE = 0.3
#: Share of the walls that end above the things before them, so that the panorama is seen over them.
_LOW = 0.3


@dataclass(frozen=True)
class Wall:
    """An upright plane: all points p with ``p @ normal == offset``, up to the height ``top``.

    ``normal`` is horizontal, of length 1, and points to the side where everything stands. Scene units.
    """

    normal: Float[np.ndarray, 3]
    offset: float
    top: float


def random_walls(rng: np.random.Generator, camera: Camera, points: Float[np.ndarray, "points 3"]) -> tuple[Wall, ...]:
    """One to three walls at right angles: one that the camera looks at, and others beside it.

    All ``points`` (where things are during the clip) and all places of the camera lie before every wall. Empty where the camera
    gets behind the things, so that no wall can stand there.
    """
    eyes = camera.pose[:, :3, 3].double().numpy()
    ahead = points.mean(0) - eyes.mean(0)
    back = _turned(np.array([ahead[0], 0.0, ahead[2]]), np.radians(rng.uniform(-40, 40)))
    reach = (points @ back).max()
    offset = reach + 1.5 * rng.random() ** 2 + 0.02
    if (eyes @ back).max() > offset - _FREE:
        return ()
    top = float(HALF_SIZE if rng.random() >= _LOW else points[:, 1].max() * rng.uniform(1.0, 2.0))
    walls = [Wall(-back, -float(offset), top)]
    sides = rng.permutation([-1.0, 1.0])[: int(rng.choice(3, p=_COUNTS))]
    for side in sides:
        outwards = _turned(back, side * np.pi / 2)
        farthest = max((points @ outwards).max(), (eyes @ outwards).max() + _FREE)
        walls.append(Wall(-outwards, -float(farthest + 2.0 * rng.random() + 0.02), top))
    return tuple(walls)


def with_walls(ground: SceneObject, walls: tuple[Wall, ...], planes: tuple[SceneObject, ...]) -> SceneObject:
    """The ground and its walls as one object. ``planes`` are squares of `HALF_SIZE` at y = 0 facing up, one for each wall."""
    for wall, flat in zip(walls, planes, strict=True):
        along = np.cross([0.0, 1.0, 0.0], wall.normal)
        upright = np.stack((along, wall.normal, np.cross(along, wall.normal)), axis=-1)
        height = min(wall.top, 2 * HALF_SIZE * (1 - _BELOW)) - HALF_SIZE
        item = placed(flat, upright, wall.offset * wall.normal + np.array([0.0, height, 0.0]))
        ground = SceneObject((*ground.parts, *item.parts), ground.name, (*ground.sources, *item.sources), ground.poses)
    return ground


def _turned(direction: Float[np.ndarray, 3], angle: float) -> Float[np.ndarray, 3]:
    """A horizontal direction turned about the vertical axis, of length 1."""
    c, s = np.cos(angle), np.sin(angle)
    turned = np.array([c * direction[0] + s * direction[2], 0.0, c * direction[2] - s * direction[0]])
    return turned / np.linalg.norm(turned)
