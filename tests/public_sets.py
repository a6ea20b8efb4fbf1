"""Small folders in the layouts of public data sets, with content whose answer is known. Used by the tests of their readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from diffusion_renderer.core.geometry import equirect_to_direction, look_at
from diffusion_renderer.io.exr import write_exr
from diffusion_renderer.io.images import write_image

#: Height and width of every picture.
H, W = 12, 16
#: Half floats in EXR files: 11 bits of precision.
HALF = 2.0**-11


def save_exr(path: Path, pixels: np.ndarray, letters: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_exr(path, {letter: np.float32(pixels[..., index]) for index, letter in enumerate(letters)})


def save_png(path: Path, image: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, image)


def flat(*values: float) -> np.ndarray:
    """An image of one colour."""
    return np.broadcast_to(np.float32(values), (H, W, len(values))).copy()


def write_interiorverse(folder: Path) -> Path:
    """Two scenes of one still, a plane 2.5 m away; three pixels are unknown, each by another file."""

    def scene(root: str, name: str, normal: np.ndarray) -> None:
        depth, mask, material = flat(2500.0), flat(1.0), flat(0.4, 0.25, 0.0)
        depth[0, 0], mask[1, 1], material[2, 2] = np.inf, 0.0, 0.0
        layers = {"im": flat(4.0, 4.0, 4.0), "albedo": flat(0.5, 0.25, 0.125), "normal": normal, "material": material}
        for layer, pixels in layers.items():
            save_exr(folder / root / name / f"000_{layer}.exr", pixels)
        save_exr(folder / root / name / "000_depth.exr", np.repeat(depth, 3, -1))
        save_exr(folder / root / name / "000_mask.exr", mask, "Y")

    scene("scenes_85", "a", flat(0.0, 0.6, 0.8))
    scene("scenes_85", "b", flat(0.5, 0.8, 0.9))  # the same normal as 0.5 n + 0.5
    (folder / "scenes_85" / "train.txt").write_text("b\nnot_downloaded\n")
    return folder


def save_transforms(path: Path, names: list[str], poses: list[torch.Tensor], **intrinsics: float | str) -> None:
    """The cameras as NeRF's tools write them."""
    frames = [{"file_path": name, "transform_matrix": pose.tolist()} for name, pose in zip(names, poses, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**intrinsics, "frames": frames}))


def write_dl3dv(folder: Path) -> Path:
    """Five images, listed in the wrong order; frame i is grey i / 10, its camera at (i, 0, 2), upright in a z-up world."""
    upright = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 2], [0, 0, 0, 1]])
    names, poses = [], []
    for index in (3, 1, 5, 2, 4):
        save_png(folder / "1K" / "abc" / "images_4" / f"frame_{index:05d}.png", torch.full((3, H, W), index / 10))
        pose = upright.clone()
        pose[0, 3] = index
        names.append(f"images/frame_{index:05d}.png")
        poses.append(pose)
    save_transforms(folder / "1K" / "abc" / "transforms.json", names, poses, fl_x=1920.0, w=3840, camera_model="OPENCV", k1=0.1)
    return folder


def smooth_radiance(direction: torch.Tensor) -> torch.Tensor:
    """A light without symmetry, positive, with every axis in it."""
    x, y, z = direction.unbind(-1)
    return torch.stack((1.5 + x, 1.5 + 0.8 * y + 0.3 * x * z, 1.5 + z), dim=-1)


def directions(height: int) -> torch.Tensor:
    """World directions of a panorama's pixels, ``height width 3``."""
    v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(2 * height) + 0.5) / (2 * height), indexing="ij")
    return equirect_to_direction(u, v)


def mirror_ball(size: int, radiance: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The ball as an orthographic camera sees it; magenta outside, so that reading the background shows."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-line, line, indexing="ij")
    inside = x**2 + y**2 < 1
    normal = torch.stack((x, y, (1 - x**2 - y**2).clamp_min(0).sqrt()), dim=-1)
    view = torch.tensor([0.0, 0.0, 1.0])
    reflected = 2 * normal[..., 2:] * normal - view
    return torch.where(inside[..., None], radiance(reflected), torch.tensor([9.0, 0.0, 9.0])).permute(2, 0, 1)


def save_illumination(scene: Path, lights: range, probes: bool) -> None:
    """A scene whose light ``n`` is ``n + 1`` times as bright, with or without its mirror balls."""
    ball = mirror_ball(32, smooth_radiance).permute(1, 2, 0).numpy()
    for light in lights:
        save_exr(scene / f"dir_{light}_mip2.exr", flat(*[0.5 * (light + 1)] * 3))
        if probes:
            save_exr(scene / "probes" / f"dir_{light}_chrome256.exr", ball * (light + 1))


def write_stanford_orb(folder: Path) -> Path:
    """One object: a training picture, two test pictures with ground truth; 48 pixels show the object."""
    scene, truth = folder / "blender_HDR" / "teapot_scene001", folder / "ground_truth" / "teapot_scene001"
    mask = torch.zeros(1, H, W)
    mask[:, 3:9, 4:12] = 1
    for part, stem in (("train", "0001"), ("test", "0002"), ("test", "0003")):
        save_exr(scene / part / f"{stem}.exr", flat(0.25, 0.25, 0.25))
        save_png(scene / f"{part}_mask" / f"{stem}.png", mask)
        if part == "test":
            for kind, value in (("surface_normal", flat(0.0, 0.6, 0.8)), ("z_depth", flat(2.0)[..., 0] * mask[0].numpy())):
                (truth / kind).mkdir(parents=True, exist_ok=True)
                np.save(truth / kind / f"{stem}.npy", value)
            save_png(truth / "pseudo_gt_albedo" / f"{stem}.png", torch.full((3, H, W), 0.5))
            # skylibs' panorama: centre -z, right half +x.
            stored = smooth_radiance(directions(16) * torch.tensor([-1.0, 1.0, -1.0]))
            save_exr(truth / "env_map" / f"{stem}.exr", stored.numpy())
    pose = look_at(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
    save_transforms(scene / "transforms_train.json", ["./train/0001"], [pose], camera_angle_x=0.5)
    save_transforms(scene / "transforms_test.json", ["./test/0003", "./test/0002"], [pose, torch.eye(4)], camera_angle_x=0.5)
    return folder
