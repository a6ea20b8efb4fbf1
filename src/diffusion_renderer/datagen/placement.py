"""Where things stand: on the ground without sinking in, and nowhere inside one another, through the whole clip."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.objects import SceneObject, placed

#: Meshes of more triangles are tested by their convex hull, which holds them.
_MAX_COLLISION_FACES = 20_000
#: Vertices from which a hull is made; a hull of fewer points is smaller by less than a pixel.
_HULL_POINTS = 4000


def rotation_to_rest(rng: np.random.Generator, item: SceneObject) -> Float[np.ndarray, "3 3"]:
    """A rotation that lays the object on a random face of its convex hull, large ones more often, as a thrown thing lies.

    Faces on which it would tip over (its hull's centroid is not above the face's own corners) are left out when others exist.
    """
    from scipy.spatial import ConvexHull

    points = _thinned(item.positions)
    hull = ConvexHull(points)
    corners = points[hull.simplices]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=-1)
    # qhull's equations hold outward normals; a face and its neighbours in the same plane have equal ones.
    normal = hull.equations[:, :3]
    centre = points[hull.vertices].mean(0)
    reach = np.linalg.norm(
        corners.mean(1) - centre - normal * ((corners.mean(1) - centre) * normal).sum(-1, keepdims=True), axis=-1
    )
    stable = reach < 1.5 * np.sqrt(area)
    weight = np.where(stable, area, 0.0) if (stable & (area > 0)).any() else area
    chosen = int(rng.choice(len(weight), p=weight / weight.sum()))
    return _turn(normal[chosen], np.array([0.0, -1.0, 0.0]))


def _turn(start: Float[np.ndarray, 3], end: Float[np.ndarray, 3]) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation from unit vector ``start`` to ``end``."""
    axis, cosine = np.cross(start, end), float(start @ end)
    if cosine < -1 + 1e-9:
        helper = np.eye(3)[int(np.abs(start).argmin())]
        axis = np.cross(start, helper)
        axis = axis / np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def _thinned(points: Float[np.ndarray, "vertices 3"]) -> Float[np.ndarray, "fewer 3"]:
    """At most `_HULL_POINTS` points, the extreme ones along each axis among them."""
    if len(points) <= _HULL_POINTS:
        return points
    extremes = np.concatenate((points.argmin(0), points.argmax(0)))
    step = -(-len(points) // _HULL_POINTS)
    return np.concatenate((points[::step], points[extremes]))


def onto_ground(item: SceneObject) -> SceneObject:
    """The object moved so that its lowest vertex is at height 0 and its bounding box's middle above the origin."""
    low, high = item.positions.min(0), item.positions.max(0)
    middle = (low + high) / 2
    return placed(item, offset=np.array([-middle[0], -low[1], -middle[2]]))


class Body:
    """An object as the collision test sees it: its triangles (FCL), or the convex hull of a mesh with very many.

    Built once; where it stands is given with every question, as the poses that take the object there.
    """

    def __init__(self, item: SceneObject) -> None:
        self._positions, faces, start = item.positions, [], 0
        for part in item.parts:
            faces.append(part.mesh.faces + start)
            start += len(part.mesh.positions)
        self._faces = np.concatenate(faces)

    @functools.cached_property
    def _model(self) -> Any:
        """FCL's tree of the triangles; most bodies stand so far apart that it is never asked for."""
        import fcl

        positions, faces = self._positions, self._faces
        if len(faces) > _MAX_COLLISION_FACES:
            from scipy.spatial import ConvexHull

            hull = ConvexHull(_thinned(positions))
            positions, faces = hull.points, hull.simplices
        model = fcl.BVHModel()
        model.beginModel(len(positions), len(faces))
        model.addSubModel(np.ascontiguousarray(positions, np.float64), np.ascontiguousarray(faces, np.int64))
        model.endModel()
        return model

    def boxes(self, poses: Float[np.ndarray, "poses 4 4"]) -> Float[np.ndarray, "poses 2 3"]:
        """Bounding boxes (low, high) at ``poses``."""
        offsets = poses[:, None, :3, 3]
        if (poses[:, :3, :3] == np.eye(3)).all():
            return np.stack((self._positions.min(0), self._positions.max(0))) + offsets
        points = np.einsum("pij,vj->pvi", poses[:, :3, :3], self._positions)
        return np.stack((points.min(1), points.max(1)), 1) + offsets

    def touches(self, pose: Float[np.ndarray, "4 4"], other: Body, other_pose: Float[np.ndarray, "4 4"]) -> bool:
        """Whether two bodies' triangles meet."""
        import fcl

        first = fcl.CollisionObject(self._model, fcl.Transform(pose[:3, :3], pose[:3, 3]))
        second = fcl.CollisionObject(other._model, fcl.Transform(other_pose[:3, :3], other_pose[:3, 3]))
        return fcl.collide(first, second, fcl.CollisionRequest(), fcl.CollisionResult()) > 0


@dataclass
class Occupied:
    """The bodies placed so far, each at the poses that it takes during the clip (one pose for one at rest)."""

    margin: float = 0.01
    _taken: list[tuple[Body, np.ndarray, np.ndarray]] = field(default_factory=list)

    def free(self, body: Body, poses: Float[np.ndarray, "poses 4 4"]) -> bool:
        """Whether the body meets none of the others at any time.

        Bounding boxes apart by ``margin`` settle it; else the triangles do. A body whose middle lies in another's bounding box
        is taken to meet it, though its triangles might not: it could be inside.
        """
        boxes = body.boxes(poses)
        return not any(self._meet(body, poses, boxes, *other) for other in self._taken)

    def add(self, body: Body, poses: Float[np.ndarray, "poses 4 4"]) -> None:
        """Keep the body's place."""
        self._taken.append((body, poses, body.boxes(poses)))

    def _meet(
        self, body: Body, poses: np.ndarray, boxes: np.ndarray, other: Body, other_poses: np.ndarray, other_boxes: np.ndarray
    ) -> bool:
        for time in range(max(len(poses), len(other_poses))):
            a, b = min(time, len(poses) - 1), min(time, len(other_poses) - 1)
            (low, high), (other_low, other_high) = boxes[a], other_boxes[b]
            if (low > other_high + self.margin).any() or (other_low > high + self.margin).any():
                continue
            if _within((low + high) / 2, other_low, other_high) or _within((other_low + other_high) / 2, low, high):
                return True
            if body.touches(poses[a], other, other_poses[b]):
                return True
        return False


def _within(point: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    return bool((point > low).all() and (point < high).all())


def at(offset: Float[np.ndarray, 3]) -> Float[np.ndarray, "1 4 4"]:
    """One pose: moved by ``offset``."""
    pose = np.eye(4)[None].copy()
    pose[0, :3, 3] = offset
    return pose
