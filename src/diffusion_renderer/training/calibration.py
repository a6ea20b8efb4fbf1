"""What is fitted after training, on clips kept apart from it: the buffers' calibration and the noise of a residual model.

Networks of least squared error that saw few scenes are surer than they should be, or not sure enough; what they make is drawn
towards a centre, or away from it (`pipelines.RendererSettings.calibration`). A renderer that makes the difference to a
classical picture adds a little noise where there is nothing to add (``residual_noise``). Both are fitted on every other clip
and taken only where they help on the clips between them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.io.atomic import write_bytes
from diffusion_renderer.models import Checkpoint, Kind, check_kind, load_checkpoint
from diffusion_renderer.pipelines import (
    DiffusionForwardRenderer,
    DiffusionInverseRenderer,
    InverseRenderer,
    Progress,
    default_dtype,
    read_settings,
)
from diffusion_renderer.pipelines.change import Drawn
from diffusion_renderer.pipelines.depth import surface_weight
from diffusion_renderer.pipelines.inverse import calibrated
from diffusion_renderer.pipelines.settings import CALIBRATED
from diffusion_renderer.render import Prior
from diffusion_renderer.training.data.held_out import HeldOut
from diffusion_renderer.training.data.samples import complete, defined_pixels

#: Frames of a clip, "frames 3 height width", as they are with a threshold.
Shown = Callable[[float], Tensor]
#: What leaves a buffer as it is.
IDENTITY = (1.0, 0.5)
#: Clips that a fit and its test need at least, together.
LEAST_CLIPS = 8
#: Pixels of surface that are looked at in every clip, evenly spaced.
PIXELS = 4096
#: Thresholds that are tried, in sRGB values.
THRESHOLDS = (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)
#: Gains and centres that are tried first, and the steps around the best of them that are tried then.
_GAINS, _CENTRES = torch.arange(0.1, 2.05, 0.1), torch.arange(0.0, 1.05, 0.1)
_FINE = torch.arange(-0.1, 0.11, 0.02)


@dataclass(frozen=True)
class Fitted:
    """One setting: what it was, what fits best, and what either does on the clips that it was not fitted on.

    Attributes
    ----------
    name : a buffer of `CALIBRATED`, or "residual_noise".
    was, fits : (gain, centre) of a buffer, or a threshold.
    before, after : RMSE of a buffer on surfaces, encoded, or PSNR of the frames in dB, mean over the clips.
    error : standard error over the clips of the difference.
    clips : that it was tested on.
    accepted : ``fits`` is better than ``was`` by more than ``error``.
    """

    name: str
    was: tuple[float, ...]
    fits: tuple[float, ...]
    before: float
    after: float
    error: float
    clips: int
    accepted: bool


@dataclass(frozen=True)
class _Pixels:
    """Some of the surface of one clip: estimate, how much of it the calibration touches, and truth, as encoded images."""

    estimate: Float[Tensor, "pixels"]
    surface: Float[Tensor, "pixels"]
    truth: Float[Tensor, "pixels"]

    def error(self, pair: tuple[float, float]) -> float:
        """RMSE with this gain and centre."""
        return float(((calibrated(self.estimate, self.surface, *pair) - self.truth) ** 2).mean().sqrt())


def calibrate(
    model: Path, data: Sequence[Path], clips: int = 64, device: str | None = None, progress: Progress | None = None
) -> tuple[Fitted, ...]:
    """Fit what can be fitted of the renderers of a model folder, and write it to their renderer.json.

    Parameters
    ----------
    model : folder of one renderer, or of both as `assemble` writes it.
    data : folders of shards with true buffers and, for a forward renderer, light and camera, not used in training.
    clips : at most so many of them, evenly spaced; half to fit on, half to test on.
    device : where the renderers run; None takes a GPU where there is one.

    A renderer.json is replaced as a whole, and only when something was accepted. A forward renderer that makes whole frames, as
    the published ones, has nothing to fit. Raises InputError for what is no model folder, for data as of `HeldOut`, and for
    fewer than `LEAST_CLIPS` clips with what a fit needs.
    """
    folders, held, place = _renderers(model), HeldOut(data, clips), find_device(device)
    found: list[Fitted] = []
    for kind, folder in folders.items():
        checkpoint = load_checkpoint(folder, kind, device=place, dtype=default_dtype(place))
        fitted = _fit(checkpoint, held, progress)
        _write(folder, fitted)
        found += fitted
    return tuple(found)


def fit_buffers(
    inverse: InverseRenderer,
    clips: Iterable[Sample],
    current: Mapping[str, tuple[float, float]] | None = None,
    progress: Progress | None = None,
) -> tuple[Fitted, ...]:
    """(gain, centre) of each of `CALIBRATED` with the least RMSE on surfaces, mean over the clips.

    Parameters
    ----------
    inverse : must not calibrate its buffers itself.
    current : the calibration that the model has; what fits must be better.

    A buffer that the renderer does not make, or that fewer than `LEAST_CLIPS` clips have, is left out.
    """
    made = tuple(name for name in CALIBRATED if name in inverse.settings.buffers)
    asked = made + (("depth",) if "depth" in inverse.settings.buffers else ())
    pixels: dict[str, list[_Pixels]] = {name: [] for name in made}
    for sample in _told(clips, progress, "calibrating buffers") if made else ():
        estimate = inverse(sample.clip, buffers=asked)
        for name in made:
            seen = _pixels(estimate, sample, name)
            if seen is not None:
                pixels[name].append(seen)
    fitted = []
    for name, seen in pixels.items():
        if len(seen) >= LEAST_CLIPS:
            was, pair = (current or {}).get(name, IDENTITY), fit_pair(seen[::2])
            before, after = (torch.tensor([clip.error(each) for clip in seen[1::2]]) for each in (was, pair))
            fitted.append(_judged(name, was, pair, before, after, (before - after)))
    return tuple(fitted)


def fit_pair(clips: Sequence[_Pixels]) -> tuple[float, float]:
    """The gain and centre with the least mean over the clips of the RMSE: the best of a grid, then of finer ones.

    By trial, since values end at 0 and 1, where most metals and dielectrics lie.
    """
    estimate, surface, truth = (torch.cat([getattr(clip, name) for clip in clips]) for name in ("estimate", "surface", "truth"))
    counts = torch.tensor([len(clip.truth) for clip in clips])
    owner = torch.arange(len(clips)).repeat_interleave(counts)

    def error(pair: tuple[float, float]) -> float:
        squared = (calibrated(estimate, surface, *pair) - truth) ** 2
        return float((torch.zeros(len(clips)).index_add_(0, owner, squared) / counts).sqrt().mean())

    def best(gains: Tensor, centres: Tensor) -> tuple[float, float]:
        pairs = [(round(float(gain), 2), round(float(centre), 2)) for gain in gains for centre in centres]
        return min(pairs, key=error)

    found, previous = best(_GAINS, _CENTRES), None
    # Gains and centres that fit alike lie in a narrow valley: it is followed to its lowest point.
    while found != previous:
        previous, (gain, centre) = found, found
        found = best((gain + _FINE).clamp(0.02, 2.0).unique(), (centre + _FINE).clamp(0.0, 1.0).unique())
    return found


def fit_noise(
    shown: Callable[[Sample], Shown], clips: Iterable[Sample], current: float = 0.0, progress: Progress | None = None
) -> tuple[Fitted, ...]:
    """The threshold of `THRESHOLDS` with the highest PSNR, mean over the clips.

    Parameters
    ----------
    shown : renders a clip of its true buffers under its light once, and gives the frames with any threshold.
    current : the threshold that the model has; what fits must be better.

    Nothing where fewer than `LEAST_CLIPS` clips have all that it takes.
    """
    tried = tuple(dict.fromkeys((*THRESHOLDS, current)))
    scores = []
    for clip in _told(clips, progress, "fitting noise"):
        if complete(clip):
            frames = shown(clip)
            scores.append([_psnr(frames(threshold), clip) for threshold in tried])
    if len(scores) < LEAST_CLIPS:
        return ()
    table = torch.tensor(scores)
    best = int(table[::2].mean(dim=0).argmax())
    before, after = table[1::2, tried.index(current)], table[1::2, best]
    return (_judged("residual_noise", (current,), (tried[best],), before, after, after - before),)


def _judged(
    name: str, was: tuple[float, ...], fits: tuple[float, ...], before: Tensor, after: Tensor, better: Float[Tensor, "clips"]
) -> Fitted:
    """``better``: what is gained in each of the clips that were not fitted on."""
    error = float(better.std() / len(better) ** 0.5)
    accepted = float(better.mean()) > error
    return Fitted(name, was, fits, float(before.mean()), float(after.mean()), error, len(better), accepted)


def _fit(checkpoint: Checkpoint, held: HeldOut, progress: Progress | None) -> tuple[Fitted, ...]:
    settings = read_settings(checkpoint.kind, checkpoint.settings, str(checkpoint.folder / "renderer.json"))
    if checkpoint.kind == "inverse":
        plain = DiffusionInverseRenderer(_with(checkpoint, calibration={}))
        return _required(
            fit_buffers(plain, held, settings.calibration, progress), set(CALIBRATED) & set(settings.buffers), held
        )
    if not settings.residual:
        return ()
    forward = _Recorder(checkpoint, Prior)
    return _required(fit_noise(forward.shown, held, settings.residual_noise, progress), {"residual_noise"}, held)


def _renderers(model: Path) -> dict[Kind, Path]:
    """The folders of a model's renderers, or of the one that ``model`` is."""
    kinds: tuple[Kind, ...] = ("inverse", "forward")
    found = {kind: model / kind for kind in kinds if (model / kind / "unet").is_dir()}
    if found:
        return found
    if not (model / "unet").is_dir():
        raise InputError("a model folder with inverse, forward or both", str(model), "make one with `weights assemble`")
    try:
        check_kind(model, "inverse")
    except InputError:
        check_kind(model, "forward")
        return {"forward": model}
    return {"inverse": model}


def _with(checkpoint: Checkpoint, **settings: Any) -> Checkpoint:
    """The same networks with other settings."""
    return replace(checkpoint, settings={**checkpoint.settings, **settings})


def _required(fitted: tuple[Fitted, ...], wanted: set[str], held: HeldOut) -> tuple[Fitted, ...]:
    """InputError when what is to be fitted could not be, for want of clips."""
    missing = wanted - {each.name for each in fitted}
    if missing:
        expected = f"at least {LEAST_CLIPS} clips with what it takes to fit {', '.join(sorted(missing))}"
        raise InputError(
            expected, f"fewer among {len(held)}", "render more with `diffusion-renderer dataset`, with another seed"
        )
    return fitted


class _Recorder(DiffusionForwardRenderer):
    """Keeps what it adds to what, so that one render serves every threshold."""

    def shown(self, clip: Sample) -> Shown:
        """The frames of a clip from its true buffers, with any threshold."""
        kept: list[tuple[Tensor, Drawn, Drawn, bool]] = []
        self._kept = kept
        self(clip.gbuffer, clip.environment, camera=clip.camera, rotations=clip.lookup)
        changed = super().changed
        return lambda threshold: torch.cat([changed(change, *pair, threshold, sharp) for change, *pair, sharp in kept])

    def changed(self, change: Tensor, small: Drawn, large: Drawn, noise: float, sharp: bool = True) -> Tensor:
        self._kept.append((change, small, large, sharp))
        return super().changed(change, small, large, noise, sharp)


def _told(clips: Iterable[Sample], progress: Progress | None, what: str) -> Iterable[Sample]:
    """The clips, with word of how many are done where their number is known."""
    for done, clip in enumerate(clips, 1):
        yield clip
        if progress is not None and hasattr(clips, "__len__"):
            progress(done, len(clips), what)


def _pixels(estimate: GBuffer, sample: Sample, name: str) -> _Pixels | None:
    """Up to `PIXELS` of what is surface in truth; None where there is none, or no truth."""
    truth = getattr(sample.gbuffer, name)
    if truth is None:
        return None
    shown = torch.ones_like(truth[:, :1], dtype=torch.bool)
    if sample.gbuffer.depth is not None:
        shown &= torch.isfinite(sample.gbuffer.depth)
    if sample.gbuffer.mask is not None:
        shown &= sample.gbuffer.mask
    known = defined_pixels(sample)
    if known is not None:
        shown &= known[:, None]
    value, truth = encode_buffer(name, getattr(estimate, name)), encode_buffer(name, truth)
    surface = torch.ones_like(value) if estimate.depth is None else surface_weight(estimate.depth).expand_as(value)
    shown = shown.expand_as(value)
    found = shown.flatten().nonzero()[:, 0]
    if not len(found):
        return None
    some = found[torch.linspace(0, len(found) - 1, min(PIXELS, len(found))).round().long()]
    return _Pixels(*(each.flatten()[some].float() for each in (value, surface, truth)))


def _psnr(frames: Float[Tensor, "frames 3 height width"], clip: Sample) -> float:
    """Peak signal-to-noise ratio, dB; 100 for equal frames."""
    return float(-10 * torch.log10(((frames.clamp(0.0, 1.0) - clip.clip.frames) ** 2).mean().clamp_min(1e-10)))


def _values(folder: Path) -> dict[str, Any]:
    path = folder / "renderer.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"readable settings in {path}", str(error), "copy or export the model again") from error


def _write(folder: Path, fitted: Sequence[Fitted]) -> None:
    """Replace in renderer.json what was accepted; a gain of 1 or a threshold of 0 is taken out."""
    taken = [each for each in fitted if each.accepted]
    if not taken:
        return
    values = _values(folder)
    pairs = dict(values.get("calibration", {}))
    for each in taken:
        if each.name == "residual_noise":
            values["residual_noise"] = each.fits[0]
        elif each.fits[0] == IDENTITY[0]:
            pairs.pop(each.name, None)
        else:
            pairs[each.name] = list(each.fits)
    if any(each.name in CALIBRATED for each in taken):
        values["calibration"] = pairs
    write_bytes(folder / "renderer.json", (json.dumps(values, indent=2) + "\n").encode())


def table(fitted: Sequence[Fitted]) -> str:
    """For people: what each setting was and would be, and what that does on the clips that it was not fitted on.

    "" for nothing.
    """
    if not fitted:
        return ""
    lines = [f"{'':<16}{'was':<14}{'fits best':<14}{'before':<12}{'after':<12}{'difference':<20}taken"]
    for each in fitted:
        was, fits = (" ".join(f"{value:g}" for value in values) for values in (each.was, each.fits))
        decibels = each.name == "residual_noise"
        before, after = (f"{value:.3f} dB" if decibels else f"{value:.4f}" for value in (each.before, each.after))
        change = f"{each.after - each.before:+.3g} ±{each.error:.2g}"
        lines.append(f"{each.name:<16}{was:<14}{fits:<14}{before:<12}{after:<12}{change:<20}{'yes' if each.accepted else 'no'}")
    lines.append(
        f"on {fitted[0].clips} clips that nothing was fitted on: buffers' RMSE on surfaces, frames' PSNR, and the difference"
        " ± its standard error"
    )
    return "\n".join(lines)
