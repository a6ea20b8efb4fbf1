"""A scene whose ground truth is known exactly: a ball over a floor, a camera that moves, solved by the tests themselves."""

from __future__ import annotations

import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Relit, Sample
from diffusion_renderer.datagen.store.encode import encode_clip

RADIUS, FLOOR = 0.8, -0.8
BASECOLOR = torch.tensor([[0.0, 0, 0], [0.4, 0.5, 0.6], [0.8, 0.3, 0.1]])


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Camera-to-world, +y up."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack((right, np.cross(back, right), back), -1)
    pose[:3, 3] = eye
    return pose


def camera_path(frames: int, degrees: float = 8.0) -> Camera:
    """Around the ball, coming nearer."""
    poses = []
    for frame in range(frames):
        angle, distance = np.radians(20 + degrees * frame), 4.0 - 0.1 * frame
        eye = distance * np.array([np.sin(angle), 0.35, np.cos(angle)])
        poses.append(look_at(eye, np.zeros(3)))
    return Camera(torch.tensor(np.stack(poses), dtype=torch.float32), torch.full((frames,), 50.0))


def trace(pose: np.ndarray, fov: float, height: int, width: int, centre: np.ndarray) -> dict[str, np.ndarray]:
    """Depth, camera-space normal and object (1 floor, 2 ball, 0 none) at the pixels' centres; the floor's radius is 5."""
    focal = width / (2 * np.tan(np.radians(fov) / 2))
    columns, rows = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    local = np.stack((columns / focal, -rows / focal, -np.ones_like(columns)), -1)
    world, eye = local @ pose[:3, :3].T, pose[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = (FLOOR - eye[1]) / world[..., 1]
        there = eye + floor[..., None] * world
        floor = np.where((floor > 0) & (np.hypot(there[..., 0], there[..., 2]) < 5), floor, np.inf)
        a, b = (world**2).sum(-1), world @ (eye - centre)
        root = b * b - a * (((eye - centre) ** 2).sum() - RADIUS**2)
        ball = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    depth = np.minimum(floor, ball)
    ids = np.where(np.isinf(depth), 0, np.where(ball < floor, 2, 1))
    points = eye + np.where(np.isinf(depth), 0, depth)[..., None] * world
    normal = np.where((ids == 2)[..., None], (points - centre) / RADIUS, np.array([0.0, 1.0, 0.0]))
    return {"depth": depth, "normal": normal @ pose[:3, :3] * (ids > 0)[..., None], "ids": ids}


def exact_sample(frames: int = 3, size: tuple[int, int] = (64, 48), moving: bool = False, index: int = 0) -> Sample:
    """The clip with everything that a `Sample` can hold; with ``moving`` the ball flies to the right."""
    width, height = size
    camera = camera_path(frames)
    motion = np.tile(np.eye(4), (frames, 1, 1))
    if moving:
        motion[:, 0, 3] = 0.15 * np.arange(frames)
    seen = [trace(camera.pose[i].double().numpy(), 50.0, height, width, motion[i, :3, 3]) for i in range(frames)]
    depth = torch.tensor(np.stack([s["depth"] for s in seen]), dtype=torch.float32)[:, None]
    normal = torch.tensor(np.stack([s["normal"] for s in seen]), dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
    ids = torch.tensor(np.stack([s["ids"] for s in seen]), dtype=torch.uint8)[:, None]
    mask = ids > 0
    basecolor = BASECOLOR[ids[:, 0].long()].permute(0, 3, 1, 2).contiguous()
    roughness, metallic = 0.4 * mask.float(), 0.9 * (ids == 2).float()
    rgb = (0.25 + 0.7 * basecolor * (0.3 + 0.7 * normal[:, 1:2].clamp_min(0))).clamp(0, 1)
    name = f"{index:08d}"
    ball = {"name": "ball", "sources": [{"name": "ball", "kind": "procedural", "licence": "Apache-2.0", "author": ""}]}
    if moving:
        ball["poses"] = motion.tolist()
    finite = depth[torch.isfinite(depth)]
    meta = {
        "seed": 3,
        "index": index,
        "name": name,
        "fps": 12.0,
        "family": "objects",
        "motions": ["orbit", "object-translation"] if moving else ["orbit"],
        "exposure": 0.7,
        "near": float(finite.min()),
        "far": float(finite.max()),
        "assets": {"panorama": "procedural-sky", "objects": [{"name": "floor", "sources": []}, ball]},
        "renderer": {"frames": frames, "width": width, "height": height, "variant": "exact"},
    }
    generator = torch.Generator().manual_seed(index)
    light = torch.rand(3, 16, 32, generator=generator).half().float() * 4
    turn = torch.eye(3).repeat(frames, 1, 1)
    other = Relit(Clip((0.5 * rgb + 0.2).contiguous(), 12.0, "evening"), EnvironmentMap(light.flip(-1), "evening"), turn)
    gbuffer = GBuffer(basecolor, normal, depth, roughness, metallic, mask=mask, fps=12.0, name=name)
    environment = EnvironmentMap(light, "procedural-sky")
    return Sample(Clip(rgb, 12.0, name), gbuffer, environment, camera, meta, turn.clone(), ids, (other,))


def write_shard(folder: Path, clips: list[dict[str, bytes]], number: int = 0) -> Path:
    """Clips as a shard, with an index.json that lists every shard of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"shard-{number:06d}.tar"
    first = len(clips) * number
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for clip, files in enumerate(clips, first):
            for name, data in files.items():
                entry = tarfile.TarInfo(f"{clip:08d}/{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    write_index(folder)
    return path


def write_index(folder: Path) -> None:
    """index.json as the data engine writes it, for the shards as they are now."""
    shards = []
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            count = sum(name.endswith("/clip.json") for name in tar.getnames())
        data = path.read_bytes()
        shards.append({"name": path.name, "clips": count, "bytes": len(data), "sha256": sha256(data).hexdigest()})
    index = {"seed": 3, "complete": True, "clips": sum(shard["clips"] for shard in shards), "shards": shards}
    (folder / "index.json").write_text(json.dumps(index))


def write_dataset(folder: Path, clips: int = 2, format: str = "png8", moving: bool = True) -> Path:
    """One shard of exact clips, every second one with a moving ball."""
    samples = [exact_sample(index=index, moving=moving and index % 2 == 1) for index in range(clips)]
    write_shard(folder, [encode_clip(sample, format) for sample in samples])
    return folder
