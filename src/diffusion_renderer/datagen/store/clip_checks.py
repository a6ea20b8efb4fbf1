"""What must hold for one stored clip. Each function checks one thing and notes the outcome in a `Findings`."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.types import DEFAULT_BUFFERS, EnvironmentMap
from diffusion_renderer.datagen.settings import Sample
from diffusion_renderer.datagen.store.encode import StoredClip, count_frames
from diffusion_renderer.datagen.store.reprojection import DepthMap, compare_frames, rays

#: How far the length of a stored normal may be from 1. Rounding to 8 bits moves a unit vector by up to sqrt(3) / 255 = 0.0068;
#: to 16 bits or half floats by less than 0.001.
NORMAL_TOLERANCE = {"png8": 0.02, "png16": 0.002, "exr": 0.002}
#: Part of a frame's pixels that may break the rules for normals: a mean over opposite sides of a thin part is no normal.
ODD_PIXELS = 0.001
#: Normals may turn away from the camera by at most this cosine, but for a few pixels. Interpolated normals do so at outlines,
#: and rough ground seen at a grazing angle more: of 48 clips with normal maps, one had 5% of its normals below -0.1, at -0.2
#: in the median. Faces turned inside out are far beyond.
AWAY, AWAY_PIXELS = -0.5, 0.02
#: A frame's mean must lie between these, and at most this part of its pixels may be white in all channels.
DARKEST, BRIGHTEST, MAX_BURNT = 0.01, 0.97, 0.4
#: How far a pose may be from a rigid one: float32 products of a few rotations stay below 1e-5.
RIGID = 1e-4
#: Depth against poses: of the pixels seen twice this part must agree; at most this part may be hidden; with fewer pixels than
#: the last number a pair of frames says nothing.
MIN_AGREEMENT, MAX_HIDDEN, MIN_PIXELS = 0.97, 0.6, 50


@dataclass
class Findings:
    """Outcomes of the checks of one clip.

    Attributes
    ----------
    passed : how often each check held.
    faults : (check, frame or None, expected, found) of those that did not.
    """

    passed: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, int | None, str, str]] = field(default_factory=list)

    def note(self, check: str, holds: bool, expected: str, found: str, frame: int | None = None) -> bool:
        """Count one outcome; ``expected`` and ``found`` matter only when it does not hold."""
        if holds:
            self.passed[check] += 1
        else:
            self.faults.append((check, frame, expected, found))
        return bool(holds)


def required_files(files: dict[str, bytes], meta: dict[str, Any]) -> tuple[int, set[str]]:
    """(frames, names) that a clip must have.

    A clip of this data engine (clip.json has ``renderer``) has everything; of others, a kind of file that one frame has, every
    frame must have. The number of frames is that of clip.json, else of cameras.json, else of the files.
    """
    renderer = meta.get("renderer")
    kinds = {match[1] for name in files if (match := re.fullmatch(r"\d{4,}\.(\w+\.\w+)", name))} | {"rgb.png"}
    names = {"clip.json"}
    if isinstance(renderer, dict):
        buffers = {"gbuffer.exr"} if meta.get("format") == "exr" else {f"{name}.png" for name in DEFAULT_BUFFERS}
        kinds |= buffers | {"mask.png"}
        names |= {"cameras.json", "light.exr"}
    numbers = [int(name.split(".")[0]) for name in files if re.match(r"\d{4,}\.", name)]
    frames = renderer.get("frames") if isinstance(renderer, dict) else None
    if frames is None:
        frames = max(count_frames(files), 1 + max(numbers, default=-1))
    return frames, names | {f"{frame:04d}.{kind}" for frame in range(frames) for kind in kinds}


def check_files(files: dict[str, bytes], meta: dict[str, Any], findings: Findings) -> bool:
    """Every file of every frame is there, and none of a frame beyond the last."""
    frames, wanted = required_files(files, meta)
    complete = findings.note("files", frames > 0, "at least one frame", "none")
    for name in sorted(wanted):
        frame = int(name.split(".")[0]) if name[0].isdigit() else None
        complete &= findings.note("files", name in files, name, "no such file", frame)
    for name in files:
        if re.match(r"\d{4,}\.", name) and int(name.split(".")[0]) >= frames:
            complete &= findings.note("files", False, f"{frames} frames", name, int(name.split(".")[0]))
    return complete


def check_sizes(stored: StoredClip, findings: Findings) -> bool:
    """All images of the clip have the size of the frames."""
    size = stored.images["rgb"].shape[-2:]
    images = stored.images if stored.ids is None else {**stored.images, "ids": stored.ids}
    same = True
    for name, image in images.items():
        found = f"{name} of {image.shape[-1]}x{image.shape[-2]}"
        same &= findings.note("sizes", image.shape[-2:] == size, f"{size[1]}x{size[0]} pixels", found)
    return same


def check_values(stored: StoredClip, findings: Findings) -> None:
    """Numbers are finite and in range. A PNG cannot hold others; an EXR can."""
    for name, image in stored.images.items():
        if name in ("normal", "depth"):
            continue
        for frame, values in enumerate(image):
            finite = bool(torch.isfinite(values).all())
            low, high = float(values.nan_to_num(0.0).min()), float(values.nan_to_num(0.0).max())
            good = finite and low >= -1e-3 and high <= 1 + 1e-3
            found = f"{low:.4g} to {high:.4g}" if finite else "values that are not finite"
            findings.note("range", good, f"{name} in [0, 1]", found, frame)


def check_normals(stored: StoredClip, sample: Sample, findings: Findings) -> None:
    """Unit length on surfaces, nothing elsewhere."""
    if "normal" not in stored.images:
        return
    image, mask = stored.images["normal"], sample.gbuffer.mask
    vectors = image if stored.linear else 2 * image - 1
    lengths = vectors.square().sum(1, keepdim=True).sqrt()
    allowed = NORMAL_TOLERANCE[stored.meta.get("format", "png8")]
    # NaN fails every comparison, so what must hold is what is counted.
    unit = (lengths - 1).abs() <= allowed
    right = unit if mask is None else torch.where(mask, unit, lengths <= 0.02)
    for frame in range(len(image)):
        share = 1 - float(right[frame].float().mean())
        expected = f"normals of length 1 within {allowed:g} on surfaces, 0 elsewhere"
        findings.note("normals", share <= ODD_PIXELS, expected, f"{share:.2%} others", frame)


def check_facing(sample: Sample, findings: Findings) -> None:
    """Surfaces that are seen are turned to the camera. Needs poses that are right."""
    normal = sample.gbuffer.normal
    if normal is None or sample.camera is None:
        return
    for frame, vectors in enumerate(normal.double()):
        known = vectors.square().sum(0) > 0.25
        if not known.any():
            continue
        direction = rays(sample.camera, frame, *vectors.shape[-2:])
        view = -(direction / direction.norm(dim=-1, keepdim=True)).permute(2, 0, 1)
        share = float(((vectors * view).sum(0)[known] < AWAY).double().mean())
        findings.note(
            "facing", share <= AWAY_PIXELS, f"n . view of at least {AWAY} nearly everywhere", f"{share:.1%} below", frame
        )


def check_depth(stored: StoredClip, sample: Sample, findings: Findings) -> None:
    """Positive on surfaces, infinite elsewhere; ``near`` and ``far`` of clip.json are its range."""
    depth, mask = sample.gbuffer.depth, sample.gbuffer.mask
    if depth is None:
        return
    exact = mask is not None and not stored.meta.get("depth_holes")
    for frame, values in enumerate(depth):
        finite = torch.isfinite(values)
        good = not bool(torch.isnan(values).any()) and bool((values[finite] > 0).all())
        findings.note("depth", good, "positive depth", "depth of 0, less, or not a number", frame)
        if exact:
            wrong = int((finite != mask[frame]).sum())
            findings.note("depth", wrong == 0, "depth exactly where the mask is", f"{wrong} pixels against it", frame)
    near, far = stored.meta.get("near"), stored.meta.get("far")
    span = sample.gbuffer.depth_range()
    if span is None:
        return
    good = isinstance(near, float | int) and isinstance(far, float | int) and 0 < near <= far < math.inf
    if findings.note("near_far", good, "0 < near <= far", f"near {near}, far {far}"):
        # 16 bits hold the range in steps; the smallest code is near and the largest far (the last but one with holes).
        slack = 2 * (far - near) / 65535 + 1e-5 * far
        good = abs(span[0] - near) <= slack and abs(span[1] - far) <= slack
        findings.note("near_far", good, f"depth from {near:.6g} to {far:.6g}", f"{span[0]:.6g} to {span[1]:.6g}")


def check_brightness(stored: StoredClip, findings: Findings) -> None:
    """No frame is black or burnt; the exposure of a rendered clip is positive."""
    for name, frames in stored.images.items():
        if not name.startswith("rgb"):
            continue
        for number, frame in enumerate(frames):
            mean, burnt = float(frame.mean()), float((frame.amin(0) > 254.5 / 255).float().mean())
            good = DARKEST <= mean <= BRIGHTEST
            findings.note("brightness", good, f"{name} of mean {DARKEST} to {BRIGHTEST}", f"mean {mean:.4f}", number)
            findings.note("brightness", burnt <= MAX_BURNT, f"at most {MAX_BURNT:.0%} white in {name}", f"{burnt:.0%}", number)
    if "renderer" in stored.meta:
        exposure = stored.meta.get("exposure")
        good = isinstance(exposure, float | int) and 0 < exposure < math.inf
        findings.note("exposure", good, "a positive exposure", repr(exposure))


def check_poses(stored: StoredClip, findings: Findings) -> bool:
    """Poses are rigid, angles of view possible, rotations of lights rotations."""
    good = True
    if stored.camera is not None:
        for frame, (pose, angle) in enumerate(zip(stored.camera.pose, stored.camera.fov_x, strict=True)):
            good &= _rigid(pose, "a rigid camera-to-world pose", frame, findings)
            view = 0 < float(angle) < 180
            good &= findings.note("poses", view, "a field of view between 0 and 180 degrees", f"{float(angle):g}", frame)
    for number, entry in enumerate((stored.lights, *stored.lights.get("relit", []))):
        rotations = entry.get("light_rotation")
        if rotations is None:
            continue
        frames = len(stored.images["rgb"])
        findings.note("poses", len(rotations) == frames, f"{frames} rotations of light {number}", str(len(rotations)))
        for frame, rotation in enumerate(rotations):
            matrix = torch.eye(4)
            matrix[:3, :3] = torch.tensor(rotation)
            _rigid(matrix, f"a rotation of light {number}", frame, findings)
    return good


def _rigid(pose: Float[Tensor, "4 4"], expected: str, frame: int, findings: Findings) -> bool:
    rotation = pose[:3, :3].double()
    error = (rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max()
    error = torch.maximum(error, (pose[3] - torch.tensor([0.0, 0.0, 0.0, 1.0])).abs().max())
    good = bool(torch.isfinite(pose).all()) and float(error) <= RIGID and float(torch.linalg.det(rotation)) > 0
    return findings.note("poses", good, expected, f"a matrix {float(error):.3g} away from one, or mirrored", frame)


def check_lights(stored: StoredClip, findings: Findings) -> None:
    """Panoramas are finite, not negative, not black, and twice as wide as high."""
    for environment in (stored.environment, *stored.panoramas):
        if environment is not None:
            _check_panorama(environment, findings)


def _check_panorama(environment: EnvironmentMap, findings: Findings) -> None:
    radiance = environment.radiance
    unlawful = int((~torch.isfinite(radiance)).sum() + (radiance < 0).sum())
    findings.note("light", unlawful == 0, f"finite radiance of at least 0 in {environment.name}", f"{unlawful} other values")
    findings.note("light", bool((radiance > 0).any()), f"a light in {environment.name}", "black")
    rows, columns = radiance.shape[-2:]
    findings.note("light", columns == 2 * rows, f"{environment.name} twice as wide as high", f"{columns}x{rows}")


def check_ids(stored: StoredClip, sample: Sample, findings: Findings) -> None:
    """Ids name objects of clip.json, and are 0 exactly where nothing was seen."""
    if stored.ids is None:
        return
    count, mask = len(objects(stored.meta)), sample.gbuffer.mask
    for frame, ids in enumerate(stored.ids):
        largest = int(ids.max())
        findings.note("ids", largest <= count, f"ids up to {count}, the number of objects", str(largest), frame)
        if mask is not None:
            wrong = int(((ids > 0) != mask[frame]).sum())
            findings.note("ids", wrong == 0, "an id exactly where the mask is", f"{wrong} pixels against it", frame)


def objects(meta: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of clip.json; id k is the k-th, counted from 1."""
    found = meta.get("assets", {}).get("objects", [])
    return [item for item in found if isinstance(item, dict)]


def check_reprojection(sample: Sample, findings: Findings) -> None:
    """Depth and poses of neighbouring frames agree, in both directions; see `reprojection`."""
    depth, camera = sample.gbuffer.depth, sample.camera
    if depth is None or camera is None or len(camera) != len(depth):
        return
    if sample.meta.get("real"):
        return  # an autolabelled video: its depth is relative and its poses are not known
    motions = {
        number: torch.tensor(item["poses"], dtype=torch.float64)
        for number, item in enumerate(objects(sample.meta), 1)
        if item.get("poses") is not None
    }
    if motions and sample.ids is None:
        return  # which pixels move is not known
    span = sample.gbuffer.depth_range()
    step = 0.0 if span is None or sample.meta.get("format") == "exr" else (span[1] - span[0]) / 65535
    maps = [DepthMap.of(values[0]) for values in depth]
    for first in range(len(depth) - 1):
        for source, target in ((first, first + 1), (first + 1, first)):
            pair = compare_frames(maps, camera, source, target, step, sample.ids, motions, sample.gbuffer.normal)
            if pair.visible + pair.hidden < MIN_PIXELS:
                continue
            good = pair.hidden_share <= MAX_HIDDEN and (pair.visible < MIN_PIXELS or pair.share >= MIN_AGREEMENT)
            found = f"{pair.share:.1%} of {pair.visible} pixels agree, {pair.hidden_share:.0%} hidden, to frame {target}"
            findings.note("reprojection", good, f"at least {MIN_AGREEMENT:.0%} agreement of depth and poses", found, source)
