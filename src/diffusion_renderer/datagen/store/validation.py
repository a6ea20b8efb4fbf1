"""Is a data set whole and right? Every shard is read, every clip is checked against what its own files promise."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from diffusion_renderer.core.errors import InputError, one_line
from diffusion_renderer.datagen.settings import FORMATS
from diffusion_renderer.datagen.store import clip_checks
from diffusion_renderer.datagen.store.clip_checks import Findings
from diffusion_renderer.datagen.store.encode import StoredClip, read_stored, to_sample

#: Faults that a report keeps; all are counted.
MAX_FAULTS = 200
#: The checks in the order of the report.
CHECKS = (
    *("index", "checksum", "archive", "order", "files", "decoding", "sizes", "range", "normals", "facing", "depth", "near_far"),
    *("exposure", "brightness", "poses", "light", "ids", "reprojection"),
)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Fault:
    """Something that is wrong, and where. ``clip`` is empty and ``frame`` None where the fault belongs to no single one."""

    shard: str
    check: str
    expected: str
    found: str
    clip: str = ""
    frame: int | None = None

    def __str__(self) -> str:
        frame = "" if self.frame is None else f" frame {self.frame}"
        clip = f" clip {self.clip}" if self.clip else ""
        return f"{self.shard}{clip}{frame}: {self.check}: expected {self.expected}; found {self.found}"


@dataclass
class Report:
    """What `validate` found.

    Attributes
    ----------
    clips, frames, shards : how many were looked at.
    passed, failed : outcomes of each check.
    faults : the first `MAX_FAULTS` of them.
    """

    folder: str
    clips: int = 0
    frames: int = 0
    shards: int = 0
    passed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No fault at all."""
        return not self.failed

    def note(self, shard: str, check: str, holds: bool, expected: str, found: str, clip: str = "") -> bool:
        """Count one outcome that belongs to a shard."""
        if holds:
            self.passed[check] += 1
        else:
            self._add(Fault(shard, check, expected, found, clip))
        return holds

    def take(self, shard: str, clip: str, findings: Findings) -> None:
        """Add the outcomes of a clip's checks."""
        self.passed += findings.passed
        for check, frame, expected, found in findings.faults:
            self._add(Fault(shard, check, expected, found, clip, frame))

    def _add(self, fault: Fault) -> None:
        self.failed[fault.check] += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)

    def to_text(self) -> str:
        """A line per check and a line per fault kept."""
        names = {name: 0 for name in CHECKS} | dict(self.passed) | dict(self.failed)
        lines = [f"{self.folder}: {self.shards} shards, {self.clips} clips, {self.frames} frames", ""]
        lines += [f"{'check':<14}{'passed':>10}{'failed':>8}"]
        lines += [f"{name:<14}{self.passed[name]:>10}{self.failed[name]:>8}" for name in names]
        lines += ["", *map(str, self.faults)]
        total = sum(self.failed.values())
        if total > len(self.faults):
            lines.append(f"... and {total - len(self.faults)} more")
        lines.append("no faults" if self.ok else f"{total} faults")
        return "\n".join(lines)


def validate(folder: str | Path, progress: Progress | None = None) -> Report:
    """Check a data set: index.json, every shard, every clip in it.

    Needs neither Mitsuba nor the sources of the assets. What a clip does not have (a public data set may lack light, ids,
    poses) is not checked and not counted. Cannot tell whether the frames show what the buffers say, nor judge their look.
    Raises InputError when the folder holds no shard at all.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("shard-*.tar"))
    if not paths and not (folder / "index.json").is_file():
        raise InputError("a folder with shard-*.tar files", f"none in {folder}", "make them with `diffusion-renderer dataset`")
    report = Report(folder.name)
    listed = _check_index(folder, paths, report)
    previous: list[tuple[Any, Any]] = []
    for number, path in enumerate(paths):
        if progress is not None:
            progress(number, len(paths), "shards")
        _check_shard(path, listed.get(path.name), previous, report)
    clips = sum(entry.get("clips", 0) for entry in listed.values())
    if listed:
        report.note("index.json", "index", clips == report.clips, f"{clips} clips in all", str(report.clips))
    if progress is not None:
        progress(len(paths), len(paths), "shards")
    return report


def _check_index(folder: Path, paths: list[Path], report: Report) -> dict[str, dict[str, Any]]:
    """The entries of index.json by shard name; the shards listed and those in the folder are the same."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        listed = {entry["name"]: entry for entry in index["shards"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        report.note(
            "index.json", "index", False, "index.json with a list of shards", f"{type(error).__name__}: {one_line(error)}"
        )
        return {}
    report.note("index.json", "index", bool(index.get("complete", True)), "a complete data set", "one whose run was not ended")
    here = {path.name for path in paths}
    for name in sorted(here | set(listed)):
        missing = "no such file" if name not in here else "a shard that index.json does not name"
        report.note(name, "index", name in here and name in listed, "a shard in the folder and in index.json", missing)
    return listed


def _check_shard(path: Path, entry: dict[str, Any] | None, previous: list[tuple[Any, Any]], report: Report) -> None:
    report.shards += 1
    if entry is not None:
        size = path.stat().st_size
        report.note(path.name, "checksum", size == entry.get("bytes"), f"{entry.get('bytes')} bytes", str(size))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        report.note(path.name, "checksum", digest == entry.get("sha256"), f"sha256 {entry.get('sha256')}", digest)
    before = report.clips
    seen: set[str] = set()
    try:
        for clip, files, twice in _read_clips(path):
            fresh = clip not in seen and not twice
            found = f"{', '.join(twice) or 'the clip'} twice"
            report.note(path.name, "archive", fresh, "every file once, the files of a clip together", found, clip)
            seen.add(clip)
            _check_clip(path.name, clip, files, previous, report)
        report.note(path.name, "archive", _ends_well(path), "the two empty blocks that end an archive", "none: it is cut short")
    except (tarfile.TarError, OSError, EOFError) as error:
        report.note(path.name, "archive", False, "a whole tar archive", one_line(error))
    if entry is not None:
        count = report.clips - before
        report.note(path.name, "index", count == entry.get("clips"), f"{entry.get('clips')} clips", str(count))


def _read_clips(path: Path) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """(clip, its files, names that came twice), in the order of the archive."""
    with tarfile.open(path) as tar:
        members = (member for member in tar if member.isfile())
        for clip, group in groupby(members, key=lambda member: member.name.split("/")[0]):
            files: dict[str, bytes] = {}
            twice = []
            for member in group:
                name = member.name.removeprefix(f"{clip}/")
                twice += [name] if name in files else []
                data = tar.extractfile(member).read()
                if len(data) != member.size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                files[name] = data
            yield clip, files, twice


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))
        return file.read() == bytes(1024)


def _check_clip(shard: str, clip: str, files: dict[str, bytes], previous: list[tuple[Any, Any]], report: Report) -> None:
    report.clips += 1
    findings = Findings()
    try:
        meta = json.loads(files["clip.json"])
        if not isinstance(meta, dict):
            raise ValueError("no table of names and values")
    except (KeyError, ValueError) as error:
        findings.note(
            "files", False, "a readable clip.json", "no such file" if isinstance(error, KeyError) else one_line(error)
        )
    else:
        _check_order(meta, previous, findings)
        if clip_checks.check_files(files, meta, findings):
            report.frames += check_clip(files, findings)
    report.take(shard, clip, findings)


def _check_order(meta: dict[str, Any], previous: list[tuple[Any, Any]], findings: Findings) -> None:
    """Clips of one seed, numbered without gaps; a public data set has no seeds."""
    if "seed" not in meta or "index" not in meta:
        return
    seed, index = meta["seed"], meta["index"]
    if not findings.note("order", isinstance(index, int), "a whole number as index", repr(index)):
        return
    expected = (previous[-1][0], previous[-1][1] + 1) if previous else (seed, 0)
    found = f"seed {seed}, clip {index}"
    findings.note("order", (seed, index) == expected, f"seed {expected[0]}, clip {expected[1]}", found)
    previous[:] = [(seed, index)]


def check_clip(files: dict[str, bytes], findings: Findings) -> int:
    """Check the contents of a clip's files, which are all there; returns the number of frames."""
    try:
        stored = read_stored(files)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        findings.note("decoding", False, "files that can be decoded", f"{type(error).__name__}: {one_line(error)}")
        return 0
    findings.passed["decoding"] += 1
    known = stored.meta.get("format", "png8")
    if not findings.note("decoding", known in FORMATS, f"a format among {', '.join(FORMATS)}", repr(known)):
        return 0
    try:
        _check_contents(stored, findings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # clip.json or lights.json is not what it should be
        reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        findings.note("decoding", False, "JSON files with all that the clip needs", reason)
    return len(stored.images["rgb"])


def _check_contents(stored: StoredClip, findings: Findings) -> None:
    clip_checks.check_lights(stored, findings)
    poses = clip_checks.check_poses(stored, findings)
    clip_checks.check_values(stored, findings)
    clip_checks.check_brightness(stored, findings)
    if not clip_checks.check_sizes(stored, findings):
        return
    sample = to_sample(stored)
    clip_checks.check_normals(stored, sample, findings)
    clip_checks.check_depth(stored, sample, findings)
    clip_checks.check_ids(stored, sample, findings)
    if poses:
        clip_checks.check_facing(sample, findings)
        clip_checks.check_reprojection(sample, findings)
