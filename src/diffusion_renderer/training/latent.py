"""What both renderers' training shares: clips to latents, noise, and the loss on the clean latent."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_renderer.core.color import luminance
from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.diffusion import NoiseSchedule, VPrediction, sample_euler
from diffusion_renderer.light import mean_radiance
from diffusion_renderer.models import AutoencoderKLTemporalDecoder, Kind
from diffusion_renderer.training.data import FrameStore, Mixture, draw_part
from diffusion_renderer.training.images import Frames, evenly, frame_index, read_frames, variation_of
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.steps import Item, Part, derived_seed
from diffusion_renderer.training.variation import EXPOSURE_STOPS, Variation

log = logging.getLogger(__name__)

#: v of a network with a part's conditions filled in: (network, scaled noisy latents, c_noise of each clip).
Predict = Callable[[nn.Module, Tensor, Tensor], Tensor]

#: Weight of the patches' mean colour beside the error of the latents, and the frames from which its variance is estimated.
LOCAL_WEIGHT, SAMPLE_FRAMES = 3.0, 256
#: Pixels that go through the autoencoder at once: more would cost memory and bring no speed.
ENCODED_PIXELS = 2**21
#: Steps of the sampler for sample sheets, where the preset's renderers take more than one.
SHEET_STEPS = 8
#: fps - 1, motion bucket, strength of noise augmentation: the published constants.
TIME_IDS = (6.0, 127.0, 0.0)


@dataclass(frozen=True)
class Conditions:
    """What a network is asked for in a part, and what it is given.

    Attributes
    ----------
    clean : scaled latents that it should make; where it makes several images they are concatenated.
    counted : for every image, 1 in the cells whose whole patch is ground truth, 0 in the others.
    importance : what the squared error of the patches' mean colour counts, per image and channel; None: nothing.
    predict : the network with the conditions filled in.
    unconditional : the same without them, for guidance; None for a network that is never asked without.
    offset : latents that are added to an estimate to make it the wanted images; None for none.
    """

    clean: Float[Tensor, "items frames made height width"]
    counted: Float[Tensor, "items frames images height width"]
    importance: Float[Tensor, "items images 3"] | None
    predict: Predict
    unconditional: Predict | None = None
    offset: Float[Tensor, "items frames made height width"] | None = None


class LatentStage:
    """The part of a stage that both renderers and their students share.

    A stage adds `conditions`, `usable`, `network` and `sheet`. Frames are encoded anew in every step, because every step varies
    them; a linear encoder costs 5 % of a step.
    """

    name: str
    kind: Kind
    network: nn.Module
    #: Range in which `variation` draws the light's strength.
    exposure_stops: tuple[float, float] = EXPOSURE_STOPS

    def __init__(self, preset: Preset, vae: AutoencoderKLTemporalDecoder, data: Mixture, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.device = find_device(options.device)
        self.preset, self.vae, self.data, self.options = preset, vae.to(self.device), data, options
        self.learning_rate = preset.learning_rate(self.name)
        self.precondition = VPrediction()
        self.scale = float(vae.config.scaling_factor)
        self.settings = preset.renderer_settings(self.kind)
        self.weights = torch.ones(preset.latent_channels, device=self.device)
        self.local: Float[Tensor, "channels 3"] | None = None
        if preset.patch_encoder:
            # Between the error of whitened latents (all channels alike) and that of pixels (as the squared deviation).
            deviation = vae.encoder.deviation.detach()
            self.weights = deviation / deviation.mean()
            self.local = vae.encoder.local_colour.detach() / self.scale

    def conditions(self, part: Part, training: bool = True) -> Conditions:
        """What the network is asked for and given; everything random comes from the items' seeds.

        Without ``training`` nothing is varied and no condition is dropped.
        """
        raise NotImplementedError

    def usable(self, store: FrameStore) -> Bool[Tensor, "total"]:
        """Which frames have what the stage needs."""
        raise NotImplementedError

    def draw(self, step: int, images: int, estimated: bool, weight: float = 1.0) -> Part:
        """A part of about ``images`` images, of the preset's size or scaled to one size (see `Preset.counted_area`)."""
        return draw_part(
            self.data,
            step,
            self.options.seed,
            images,
            self.preset.lengths,
            estimated=estimated,
            accept=self.usable,
            weight=weight,
            area=self.preset.counted_area(self.kind),
        )

    def losses(self, network: nn.Module, part: Part) -> tuple[Float[Tensor, "items"], dict[str, float]]:
        """``|| f(g_tau; conditions) - g_0 ||^2`` of every item (paper, equations 4 and 6)."""
        asked = self.conditions(part)
        noisy, sigma = self.noised(asked.clean, part)
        return self.errors(self.denoised(network, asked, noisy, sigma), asked, sigma), {}

    def noised(
        self, clean: Float[Tensor, "items frames made height width"], part: Part
    ) -> tuple[Float[Tensor, "items frames made height width"], Float[Tensor, "items 1 1 1 1"]]:
        """Each item's latents at a random noise level, and that level."""
        sigma = torch.cat([self.preset.draw_sigma(1, item.generator("sigma")) for item in part.items])
        sigma = sigma.to(self.device)[:, None, None, None, None]
        noisy = clean + sigma * self.noise(clean.shape[1:], part)
        if self.preset.one_step:
            # At the largest level nothing of the sample is left, so the noise tells nothing either: the one-step estimate
            # starts from zero instead (Martin Garcia et al. 2025), and the network need not learn to ignore it.
            noisy = noisy * (sigma < self.preset.sigma_max)
        return noisy, sigma

    def noise(self, shape: torch.Size | tuple[int, ...], part: Part) -> Float[Tensor, "items ..."]:
        """Unit noise of a shape for every item."""
        return torch.stack([torch.randn(shape, generator=item.generator("noise")) for item in part.items]).to(self.device)

    def denoised(self, network: nn.Module, asked: Conditions, noisy: Tensor, sigma: Tensor, guidance: float = 1.0) -> Tensor:
        """The network's estimate of the clean latents from those at noise level ``sigma`` (one per item, or one for all)."""
        level = sigma.expand(len(noisy), 1, 1, 1, 1) if sigma.ndim < 5 else sigma
        scaled, c_noise = self.precondition.c_in(level) * noisy, self.precondition.c_noise(level).flatten()
        v = asked.predict(network, scaled, c_noise).float()
        if guidance > 1 and asked.unconditional is not None:
            free = asked.unconditional(network, scaled, c_noise).float()
            v = free + guidance * (v - free)
        return self.precondition.c_skip(level) * noisy + self.precondition.c_out(level) * v

    def errors(self, estimate: Tensor, asked: Conditions, sigma: Float[Tensor, "items 1 1 1 1"]) -> Float[Tensor, "items"]:
        """The loss of every item, weighted so that v counts alike at every noise level. Undefined cells do not count."""
        error = (estimate - asked.clean) / self.precondition.c_out(sigma)
        error = error.unflatten(2, (-1, self.preset.latent_channels))
        losses = _mean(error**2 * self.weights[:, None, None], asked.counted)
        if self.local is None or asked.importance is None:
            return losses
        # The error of the patches' mean colour as a share of its variance: every buffer counts alike. Without it the latents'
        # error is mostly that of patterns in base colour, and roughness was not learnt at all.
        importance = asked.importance[:, None, :, :, None, None]
        return losses + LOCAL_WEIGHT * _mean(self._local(error) ** 2 * importance, asked.counted)

    @torch.no_grad()
    def sample(self, network: nn.Module, asked: Conditions, part: Part) -> Tensor:
        """What the exported renderer makes of a part: one step from zero, or a few from noise."""
        if self.preset.one_step:
            start = torch.zeros_like(asked.clean)
            return self.denoised(network, asked, start, torch.tensor(self.preset.sigma_max, device=self.device))
        schedule = NoiseSchedule.from_config(self.preset.scheduler_config(), self.settings.get("timestep_spacing"))
        start = self.noise(asked.clean.shape[1:], part) * schedule.initial_scale(SHEET_STEPS)
        sigmas = schedule.sigmas(SHEET_STEPS).to(start)
        return sample_euler(lambda x, sigma: self.denoised(network, asked, x, sigma), start, sigmas)

    def frames(self, part: Part, variation: Variation) -> Frames:
        """The part's network images, varied."""
        return self._read(part.store, frame_index(part), variation)

    def _read(self, store: FrameStore, index: Int[Tensor, "items frames"], variation: Variation) -> Frames:
        size = self.preset.image_size(self.kind, store.size)
        return read_frames(store, index, self.preset.groups, variation, self.device, size)

    def variation(self, part: Part, training: bool = True) -> Variation:
        """How the part's items are varied."""
        return variation_of(part, training and self.options.augment, self.exposure_stops)

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "items frames kinds 3 height width"]
    ) -> Float[Tensor, "items frames kinds channels _height _width"]:
        """Scaled latents of images in [0, 1]. Exact (float32) whatever the step's precision."""
        flat = rearrange(images, "b f k c h w -> (b f k) c h w")
        size = max(1, ENCODED_PIXELS // (flat.shape[-1] * flat.shape[-2]))
        with torch.autocast(self.device.type, enabled=False):
            parts = [self.vae.encode(2 * piece - 1).latent_dist.mode() for piece in flat.split(size)]
        return (torch.cat(parts) * self.scale).reshape(*images.shape[:3], -1, *parts[0].shape[-2:])

    def cells(self, defined: Float[Tensor, "items frames groups height width"]) -> Float[Tensor, "items frames groups _h _w"]:
        """1 for the latent cells whose whole patch is defined."""
        return -F.max_pool2d(-defined.flatten(0, 1), self.preset.factor).unflatten(0, defined.shape[:2])

    def time_ids(self, count: int) -> Float[Tensor, "{count} 3"]:
        """The constants of the added time embedding, for every clip."""
        return torch.tensor(TIME_IDS, device=self.device).expand(count, 3)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "items frames channels height width"]) -> Float[Tensor, "items 3 _h _w"]:
        """The first frame of each clip as an image in [0, 1]."""
        return 0.5 * self.vae.decode(latents[:, 0].float() / self.scale, num_frames=1).sample + 0.5

    def sheet_part(self) -> Part:
        """Six frames, evenly spaced over those of the largest store that have what the stage needs; not varied."""
        store, index = max(evenly(self.data, 6, self.usable), key=lambda found: len(found[1]))
        items = tuple(Item((frame,), derived_seed(self.options.seed, "sheet", frame)) for frame in index[:6].tolist())
        return Part(items, store)

    def _local(self, error: Float[Tensor, "items frames images channels h w"]) -> Float[Tensor, "items frames images 3 h w"]:
        """Mean colour of every patch of every image."""
        return einsum(error.float(), self.local, "b f g c h w, c k -> b f g k h w")

    def _importance(
        self, images: Callable[[Frames], Tensor], counted: Callable[[Frames], Tensor], shares: Float[Tensor, "images 3"]
    ) -> Float[Tensor, "images 3"] | None:
        """One over the variance of the patches' mean colours, in every channel of the images that the stage makes.

        ``images`` and ``counted`` take them, and where they are defined, from the frames. ``shares`` weighs the channels
        against each other; only their ratios matter. None without a linear encoder: other latents have no such colour.
        """
        if self.local is None:
            return None
        colours, cells = [], []
        for store, index in evenly(self.data, SAMPLE_FRAMES, self.usable):
            for some in index.split(64):
                seen = self._read(store, some[:, None], Variation.none(len(some)))
                colours.append(rearrange(self._local(self.encode(images(seen))), "b f g k h w -> g k (b f h w)"))
                cells.append(rearrange(self.cells(counted(seen)), "b f g h w -> g 1 (b f h w)"))
        if not colours:
            return (shares / shares.mean()).to(self.device)
        value, weight = torch.cat(colours, dim=-1), torch.cat(cells, dim=-1)
        count = weight.sum(dim=-1, keepdim=True).clamp_min(2)
        mean = (value * weight).sum(dim=-1, keepdim=True) / count
        variance = ((value - mean) ** 2 * weight).sum(dim=-1) / (count[..., 0] - 1)
        return (shares / shares.mean()).to(variance) / variance.clamp_min(1e-4)

    def _started(self, network: nn.Module, advice: str, fit: Callable[..., dict[str, Tensor]] | None = None) -> nn.Module:
        """The network with the weights that lie in the run folder, if any: those of `export.unpack`, or of an earlier run.

        A checkpoint, which the loop restores, overrides them. InputError, which gives ``advice``, when they do not fit.
        ``fit`` adapts the weights to the network.
        """
        folder = self.options.out / self.name / "unet"
        files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
        if files:
            try:
                weights = {name: value for path in files for name, value in load_file(path).items()}
                network.load_state_dict(fit(weights, network) if fit else weights)
            except (RuntimeError, SafetensorError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"weights of preset {self.preset.name} in {folder}", reason, advice) from error
        return network.to(self.device)

    def _export(self, unet: nn.Module, folder: Path, **others: object) -> None:
        """Write ``folder/unet``, its scheduler and `renderer.json`."""
        unet.save_pretrained(folder / "unet")
        (folder / "scheduler").mkdir(parents=True, exist_ok=True)
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(self.preset.scheduler_config(), indent=2))
        found = {"kind": self.kind, **others, **self.settings}
        lights = light_range(self.data)
        if lights is not None:
            found["light_luminance"] = list(lights)
        (folder / "renderer.json").write_text(json.dumps(found, indent=2))


def _mean(values: Float[Tensor, "items frames images _c h w"], counted: Float[Tensor, "items frames images h w"]) -> Tensor:
    """Mean of every item's values over the cells that count; 0 where none does."""
    weight = counted[:, :, :, None].expand_as(values)
    return (values * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1).clamp_min(1)


def light_range(data: Mixture) -> tuple[float, float] | None:
    """5 % and 95 % quantile of the mean luminance of the clips' panoramas, exposure included; None when none has a light."""
    found = [light for store in data.stores for light in store.light[store.has_light]]
    if not found:
        return None
    means = torch.stack([luminance(mean_radiance(EnvironmentMap(light.float()))[:, None, None])[0, 0, 0] for light in found])
    low, high = means.clamp_min(1e-6).quantile(torch.tensor([0.05, 0.95]).to(means)).tolist()
    return low, high
