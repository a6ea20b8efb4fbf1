"""The nodes and meshes of a glTF document as `Piece` per primitive, in world space.

Cannot do: morph targets, animation, instancing extensions; lines and points are left out. A skinned mesh stands as its joints
stand in the file. Vertex colours multiply the base colour; their alpha is left out.
Source: Khronos, glTF 2.0 specification, sections 3.5 (scenes, nodes), 3.7 (meshes, skins).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_renderer.datagen.assets.gltf import Document
from diffusion_renderer.datagen.assets.gltf_materials import Lookup, Materials
from diffusion_renderer.datagen.assets.limits import AssetLimits, Unusable
from diffusion_renderer.datagen.assets.surface import Piece, soup

_TRIANGLES, _STRIP, _FAN = 4, 5, 6


def read_gltf(path: Path, limits: AssetLimits) -> list[Piece]:
    """Every primitive made of triangles, once per node that shows it. Raises Unusable, and what `Document` raises."""
    document = Document(path, limits)
    materials = Materials(document, limits.texture_size)
    world = _world_matrices(document.json)
    pieces, faces = [], 0
    for node, matrix in world.items():
        entry = document.json["nodes"][node]
        if "mesh" not in entry:
            continue
        joints = _joint_matrices(document, world, entry.get("skin"))
        for primitive in document.json["meshes"][entry["mesh"]]["primitives"]:
            if primitive.get("mode", _TRIANGLES) not in (_TRIANGLES, _STRIP, _FAN):
                continue
            piece = _piece(document, materials, primitive, matrix, joints)
            faces += len(piece.corners)
            if faces > limits.max_faces:
                raise Unusable(f"more than {limits.max_faces} triangles")
            pieces.append(piece)
    return pieces


def _piece(
    document: Document, materials: Materials, primitive: dict[str, Any], matrix: np.ndarray, joints: np.ndarray | None
) -> Piece:
    document.decompress(primitive)
    arrays = primitive["attributes"]
    positions = document.accessor(arrays["POSITION"]).astype(np.float64)
    normals = document.accessor(arrays["NORMAL"]).astype(np.float64) if "NORMAL" in arrays else None
    faces = _faces(document, primitive, len(positions))
    surface, lookup = materials[primitive.get("material")]
    uv = _uv(document, arrays, lookup)
    colours = document.accessor(arrays["COLOR_0"])[:, :3] if "COLOR_0" in arrays else None
    if colours is not None and np.issubdtype(colours.dtype, np.integer):
        colours = colours / np.iinfo(colours.dtype).max  # some writers forget to say that the integers are normalised
    if joints is not None and "JOINTS_0" in arrays:
        matrices = _blended(document, arrays, joints)
    else:
        matrices = np.broadcast_to(matrix, (len(positions), 4, 4))
    positions, normals, mirrored = _moved(positions, normals, matrices)
    turn = document.accessor(arrays["TANGENT"])[:, 3:] if "TANGENT" in arrays else None
    if mirrored:
        faces = faces[:, [0, 2, 1]]
        turn = None if turn is None else -turn
    return Piece(soup(positions, faces, normals, uv, colours, turn), surface, uv is not None)


def _uv(document: Document, arrays: dict[str, int], lookup: Lookup) -> np.ndarray | None:
    index = arrays.get(f"TEXCOORD_{lookup.channel}")
    return None if index is None else lookup.apply(document.accessor(index).astype(np.float64))


def _faces(document: Document, primitive: dict[str, Any], vertices: int) -> np.ndarray:
    flat = document.accessor(primitive["indices"]).ravel().astype(np.int64) if "indices" in primitive else np.arange(vertices)
    mode = primitive.get("mode", _TRIANGLES)
    if mode == _TRIANGLES:
        return flat[: len(flat) // 3 * 3].reshape(-1, 3)
    count = max(len(flat) - 2, 0)
    step = np.arange(count)
    if mode == _FAN:
        return np.stack((flat[step + 1], flat[step + 2], np.full(count, flat[0] if count else 0)), -1)
    odd = step % 2
    return np.stack((flat[step], flat[step + 1 + odd], flat[step + 2 - odd]), -1)


def _moved(
    positions: np.ndarray, normals: np.ndarray | None, matrices: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Positions, normals and whether the matrices mirror (by majority: a mesh has one winding)."""
    linear = matrices[:, :3, :3]
    positions = np.einsum("nij,nj->ni", linear, positions) + matrices[:, :3, 3]
    # Rows of the cofactor matrix: the inverse transpose times the determinant, also right for flattening matrices.
    a, b, c = linear[:, 0], linear[:, 1], linear[:, 2]
    cofactors = np.stack((np.cross(b, c), np.cross(c, a), np.cross(a, b)), 1)
    sign = np.where(np.einsum("ni,ni->n", a, cofactors[:, 0]) < 0, -1.0, 1.0)
    if normals is not None:
        normals = np.einsum("nij,nj->ni", cofactors, normals) * sign[:, None]
    return positions, normals, bool(sign.sum() < 0)


# --- nodes ------------------------------------------------------------------------------------------------------------


def _world_matrices(tree: dict[str, Any]) -> dict[int, np.ndarray]:
    """World matrix of every node of the scene shown, by node."""
    nodes = tree.get("nodes", [])
    scenes = tree.get("scenes")
    if scenes:
        roots = scenes[tree.get("scene", 0)].get("nodes", [])
    else:
        children = {child for node in nodes for child in node.get("children", ())}
        roots = [index for index in range(len(nodes)) if index not in children]
    world: dict[int, np.ndarray] = {}
    waiting = [(root, np.eye(4)) for root in reversed(roots)]
    while waiting:
        index, parent = waiting.pop()
        if index in world:  # a valid file has a tree; this keeps a circle from running for ever
            continue
        world[index] = parent @ _local_matrix(nodes[index])
        waiting.extend((child, world[index]) for child in reversed(nodes[index].get("children", ())))
    return world


def _local_matrix(node: dict[str, Any]) -> Float[np.ndarray, "4 4"]:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = np.array(node.get("rotation", (0.0, 0.0, 0.0, 1.0)), np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= np.array(node.get("scale", (1.0, 1.0, 1.0)), np.float64)
    matrix[:3, 3] = node.get("translation", (0.0, 0.0, 0.0))
    return matrix


def _joint_matrices(document: Document, world: dict[int, np.ndarray], skin: int | None) -> np.ndarray | None:
    """From mesh space to world space per joint; None without a skin. The node's own matrix does not count, by the standard."""
    if skin is None:
        return None
    entry = document.json["skins"][skin]
    joints = entry["joints"]
    if any(joint not in world for joint in joints):
        return None
    bind = np.tile(np.eye(4), (len(joints), 1, 1))
    if "inverseBindMatrices" in entry:
        stored = document.accessor(entry["inverseBindMatrices"]).astype(np.float64)
        bind = stored.reshape(-1, 4, 4).transpose(0, 2, 1)[: len(joints)]
    return np.stack([world[joint] for joint in joints]) @ bind


def _blended(document: Document, arrays: dict[str, int], joints: np.ndarray) -> np.ndarray:
    """One matrix per vertex: the joints' matrices weighted."""
    indices = document.accessor(arrays["JOINTS_0"]).astype(np.int64)
    weights = document.accessor(arrays["WEIGHTS_0"]).astype(np.float64)
    total = weights.sum(-1, keepdims=True)
    weights = np.where(total > 0, weights / np.maximum(total, 1e-12), 0.25)
    matrices = np.zeros((len(indices), 4, 4))
    for column in range(indices.shape[1]):
        matrices += weights[:, column, None, None] * joints[indices[:, column]]
    return matrices
