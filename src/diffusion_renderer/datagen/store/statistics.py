"""Numbers that describe a data set: brightness, lights, buffers, motions, assets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.core.types import BUFFERS, EnvironmentMap
from diffusion_renderer.datagen.settings import Sample

#: Columns of every histogram, over the encoded values from 0 to 1 as the networks see them.
BINS = 32
_BARS = "▁▂▃▄▅▆▇█"


class Statistics:
    """Sums over the clips that were given to `add`. Histograms of buffers count surfaces only, those of frames every pixel."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._clips: list[dict[str, Any]] = []
        self._histograms: dict[str, Tensor] = {}
        self._counts: dict[str, Counter[str]] = {
            kind: Counter() for kind in ("sizes", "formats", "families", "motions", "lights", "assets", "licences")
        }

    def add(self, sample: Sample, size: int) -> None:
        """Count a clip whose files are ``size`` bytes."""
        frames, mask, meta = sample.clip.frames, sample.gbuffer.mask, sample.meta
        entry = {
            "frames": len(sample.clip),
            "bytes": size,
            "brightness": float(frames.mean()),
            "clipped": float((frames.amax(1) > 254.5 / 255).float().mean()),
            "black": float((frames.amax(1) < 0.5 / 255).float().mean()),
            "objects": len(meta.get("assets", {}).get("objects", [])),
        }
        if mask is not None:
            entry["surface"] = float(mask.float().mean())
        if (span := sample.gbuffer.depth_range()) is not None:
            entry |= {"near": span[0], "far": span[1]}
        if sample.environment is not None:
            entry |= light_levels(sample.environment)
            self._counts["lights"][kind_of_light(sample.environment.name)] += 1
        self._clips.append(entry)
        self._counts["sizes"]["{}x{}".format(*sample.clip.size)] += 1
        self._counts["formats"][meta.get("format", "png8")] += 1
        self._counts["families"][str(meta.get("family", "unknown"))] += 1
        self._counts["motions"].update(map(str, meta.get("motions", [])))
        for kind, asset, licence in assets_of(meta.get("assets", {})):
            self._counts["assets"][f"{kind}: {asset}"] += 1
            self._counts["licences"][licence] += 1
        self._count_values("rgb", frames)
        for name in BUFFERS:
            value = getattr(sample.gbuffer, name)
            if value is not None:
                image = encode_buffer(name, value)
                self._count_values(name, image if mask is None else image.movedim(1, -1)[mask[:, 0]])

    def _count_values(self, name: str, values: Tensor) -> None:
        counts = torch.histc(values.float(), BINS, 0.0, 1.0).double()
        self._histograms[name] = self._histograms.get(name, torch.zeros(BINS, dtype=torch.float64)) + counts

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; histograms as parts of 1."""
        frames = sum(clip["frames"] for clip in self._clips)
        spread = {}
        for key in ("brightness", "clipped", "black", "surface", "objects", "near", "far", "light_mean", "light_contrast"):
            values = [clip[key] for clip in self._clips if key in clip]
            if values:
                spread[key] = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
        histograms = {name: (counts / counts.sum().clamp_min(1)).tolist() for name, counts in self._histograms.items()}
        size = sum(clip["bytes"] for clip in self._clips)
        result = {"name": self.name, "clips": len(self._clips), "frames": frames, "bytes_per_frame": size / max(frames, 1)}
        counts = {kind: dict(counter.most_common()) for kind, counter in self._counts.items()}
        return {**result, **counts, "spread": spread, "histograms": histograms}

    def to_markdown(self) -> str:
        """The same for people, with a small bar for each column of a histogram."""
        values = self.to_json()
        lines = [f"# {self.name}", ""]
        lines += [f"{values['clips']} clips, {values['frames']} frames, {values['bytes_per_frame'] / 1000:.1f} kB a frame.", ""]
        lines += ["| per clip | mean | least | most |", "|---|---|---|---|"]
        for key, spread in values["spread"].items():
            lines.append(f"| {key} | {spread['mean']:.4g} | {spread['min']:.4g} | {spread['max']:.4g} |")
        lines += ["", "| buffer | values from 0 to 1, encoded |", "|---|---|"]
        lines += [f"| {name} | `{bars(counts)}` |" for name, counts in values["histograms"].items()]
        for kind in self._counts:
            if values[kind]:
                lines += ["", f"## {kind.capitalize()}", "", "| | |", "|---|---|"]
                lines += [f"| {name} | {count} |" for name, count in values[kind].items()]
        return "\n".join(lines) + "\n"


def bars(values: Sequence[float]) -> str:
    """One character of rising height per value, blank for 0."""
    most = max(values, default=0.0)
    return "".join(_BARS[min(7, int(8 * value / most))] if value > 0 else " " for value in values)


def light_levels(environment: EnvironmentMap) -> dict[str, float]:
    """Mean radiance over the sphere, and the largest radiance over it (the contrast)."""
    grey = environment.radiance.mean(0).double()
    rows = (torch.arange(len(grey), dtype=torch.float64) + 0.5) / len(grey)
    weight = torch.sin(torch.pi * rows)[:, None].expand_as(grey)
    mean = float((grey * weight).sum() / weight.sum())
    return {"light_mean": mean, "light_contrast": float(grey.max()) / mean if mean > 0 else 0.0}


def kind_of_light(name: str) -> str:
    """Procedural panoramas by their kind, files by their name."""
    head = name.split("/")[0].split(":")[0]
    return head.rstrip("0123456789-_ ") or head


def assets_of(assets: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(kind, name, licence) of every asset that clip.json's ``assets`` names.

    Entries with a licence count, however deep they lie. Clips from before there were any name only shapes, which were all
    procedural, and their panorama.
    """
    licensed = list(_licensed(assets))
    yield from licensed
    if not licensed:
        for item in assets.get("objects", []):
            yield "procedural", str(item.get("shape", item.get("name", "object"))), "Apache-2.0"
    panorama = assets.get("panorama")
    if isinstance(panorama, str) and panorama not in {name for _, name, _ in licensed}:
        yield "panorama", panorama, "Apache-2.0" if panorama.startswith("procedural") else "unknown"


def _licensed(value: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, dict):
        if "name" in value and "licence" in value:
            yield str(value.get("kind", "asset")), str(value["name"]), str(value["licence"])
        for key, part in value.items():
            if key != "poses":
                yield from _licensed(part)
    elif isinstance(value, list):
        for part in value:
            yield from _licensed(part)
