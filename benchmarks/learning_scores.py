"""What a network of a training run makes of held-out stills, without the pipelines around it: many frames at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.packing import unpack_image
from diffusion_renderer.models import SmallDecoder
from diffusion_renderer.models.small_decoder import FOLDER
from diffusion_renderer.render import Prior
from diffusion_renderer.training.data import FrameStore, Mixture, store_clips
from diffusion_renderer.training.data.held_out import HeldOut
from diffusion_renderer.training.data.samples import complete
from diffusion_renderer.training.forward import ForwardStage
from diffusion_renderer.training.inverse import InverseStage
from diffusion_renderer.training.latent import LatentStage
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.steps import Item, Part
from diffusion_renderer.training.vae import load_vae

#: Frames that go through the networks at once.
AT_ONCE = 16
#: Relative depth from which a pixel is background: 255 of 255.
BACKGROUND = 254.5 / 255
STAGES: dict[str, type[LatentStage]] = {"inverse": InverseStage, "forward": ForwardStage}
#: Names of the scores, whether more is better, and their unit.
SCORES = {
    "basecolor": (True, "PSNR, dB"),
    "normal": (False, "mean angle, degrees"),
    "depth": (False, "RMSE"),
    "roughness": (False, "RMSE"),
    "metallic": (False, "RMSE"),
    "picture": (True, "PSNR, dB"),
}
Buffers = dict[str, Tensor]


@dataclass(frozen=True)
class Stills:
    """The first frames of held-out clips."""

    store: FrameStore

    @classmethod
    def read(cls, folders: Sequence[Path], clips: int, prior: str | None) -> Stills:
        """Up to ``clips`` of them that have everything, with the pictures of a classical renderer where one is named."""
        samples = [replace(sample, relit=()) for sample in HeldOut(folders, clips) if complete(sample)]
        if not samples:
            raise InputError("held-out clips with all buffers and a light", "none", "render some with `dataset`")
        store = store_clips(samples, [str(number) for number in range(len(samples))])
        if prior is None:
            return cls(store)
        drawn = [Prior(prior, each.environment)(each.gbuffer, each.camera, each.lookup) for each in samples]
        pictures = torch.cat(drawn).nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
        return cls(replace(store, prior=(pictures[:, None],)))

    def parts(self) -> Iterator[Part]:
        """A few stills at a time."""
        clip = self.store.clip
        first = [0, *(torch.nonzero(clip[1:] != clip[:-1])[:, 0] + 1).tolist()]
        items = [Item((frame,), seed=frame) for frame in first]
        for start in range(0, len(items), AT_ONCE):
            yield Part(tuple(items[start : start + AT_ONCE]), self.store)


def stage_of(name: str, preset: Preset, run: Path, stills: Stills, device: str | None) -> LatentStage:
    """The stage with the weights that its run has exported, the averaged ones."""
    if not preset.one_step or not preset.joint:
        raise InputError("a preset that makes everything in one step", preset.name, "score it with `evaluate`")
    options = TrainOptions(out=run, device=device, augment=False)
    stage = STAGES[name](preset, load_vae(run), Mixture.of(stills.store), options)
    stage.network.eval()
    return stage


@torch.no_grad()
def score(name: str, preset: Preset, run: Path, stills: Stills, model: Path, device: str | None) -> dict[str, float]:
    """Means over the stills; see `SCORES`. ``model`` may have a small decoder, which then makes the images."""
    stage = stage_of(name, preset, run, stills, device)
    decode = decoder(stage, model)
    found: list[dict[str, float]] = []
    for part in stills.parts():
        asked = stage.conditions(part, training=False)
        made = stage.sample(stage.network, asked, part)
        seen = stage.frames(part, stage.variation(part, training=False))
        if name == "inverse":
            truth = buffers(preset, seen.buffers[:, 0])
            images = [decode(latents) for latents in made[:, 0].split(preset.latent_channels, dim=1)]
            found += inverse_scores(buffers(preset, torch.stack(images, dim=1)), truth)
        else:
            frames = decode(made[:, 0])
            if asked.offset is not None:
                start = asked.offset[:, 0]
                frames = seen.prior[:, 0, 0] + decode(start + made[:, 0]) - decode(start)
            found += [{"picture": psnr(*pair)} for pair in zip(frames.clamp(0, 1), seen.video[:, 0], strict=True)]
    return means(found)


@torch.no_grad()
def baseline(name: str, preset: Preset, run: Path, stills: Stills, device: str | None) -> dict[str, float]:
    """Inverse: the best constants for these stills. Forward: the classical picture, or the mean colour of all stills."""
    stage = stage_of(name, preset, run, stills, device)
    seen = [stage.frames(part, stage.variation(part, training=False)) for part in stills.parts()]
    if name == "forward":
        video = torch.cat([each.video[:, 0] for each in seen])
        given = seen[0].prior is not None
        shown = torch.cat([each.prior[:, 0, 0] for each in seen]) if given else video.mean((0, 2, 3), True).expand_as(video)
        return means([{"picture": psnr(*pair)} for pair in zip(shown, video, strict=True)])
    truth = buffers(preset, torch.cat([each.buffers[:, 0] for each in seen]))
    surface = surfaces(truth)
    constant = {}
    for key, value in truth.items():
        mean = value.movedim(1, -1)[surface].mean(dim=0)
        mean = mean / mean.norm() if key == "normal" else mean
        constant[key] = mean[:, None, None].expand_as(value)
    return means(inverse_scores(constant, truth))


def buffers(preset: Preset, images: Float[Tensor, "frames groups 3 height width"]) -> Buffers:
    """The buffers in network images, base colour as sRGB."""
    found: Buffers = {}
    for group, image in zip(preset.groups, images.clamp(0, 1).unbind(1), strict=True):
        found |= unpack_image(group, image)
    return found | {"basecolor": srgb_oetf(found["basecolor"])}


def surfaces(truth: Buffers) -> Bool[Tensor, "frames height width"]:
    """Where the camera saw a surface."""
    return truth["depth"][:, 0] < BACKGROUND


def inverse_scores(made: Buffers, truth: Buffers) -> list[dict[str, float]]:
    """Of every still that shows a surface."""
    found = []
    for number, surface in enumerate(surfaces(truth)):
        if not surface.any():
            continue
        pairs = {name: (made[name][number][:, surface], truth[name][number][:, surface]) for name in truth}
        cosine = torch.nn.functional.cosine_similarity(*pairs.pop("normal"), dim=0).clamp(-1, 1)
        scores = {"basecolor": psnr(*pairs.pop("basecolor")), "normal": float(cosine.acos().rad2deg().mean())}
        found.append(scores | {name: float(((a - b) ** 2).mean().sqrt()) for name, (a, b) in pairs.items()})
    return found


def psnr(made: Tensor, truth: Tensor) -> float:
    """dB, for values in [0, 1]."""
    return float(-10 * torch.log10(((made - truth) ** 2).mean().clamp_min(1e-10)))


def means(found: list[dict[str, float]]) -> dict[str, float]:
    """Of every score over the stills, to four decimals."""
    return {name: round(sum(each[name] for each in found) / len(found), 4) for name in (found[0] if found else ())}


def decoder(stage: LatentStage, model: Path | None) -> Callable[[Tensor], Tensor]:
    """Images in [0, 1] of scaled latents: by the model's small decoder, where it has one, else by the autoencoder's own."""
    if model is not None and (model / FOLDER).is_dir():
        small = SmallDecoder.from_pretrained(model / FOLDER).to(find_device(stage.options.device)).float().eval()
        return lambda latents: 0.5 * small(latents.float() / stage.scale) + 0.5
    return lambda latents: stage.decode(latents[:, None])
