"""Stages `inverse` and `forward`: the two diffusion models, trained in latent space with the paper's losses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_renderer.core.devices import find_device
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.packing import JOINT_INDEX
from diffusion_renderer.core.types import BUFFER_CHANNELS
from diffusion_renderer.diffusion import VPrediction
from diffusion_renderer.models import AutoencoderKLTemporalDecoder, LightReader
from diffusion_renderer.training.data import GROUPS, IMAGES, FrameStore
from diffusion_renderer.training.environment import encode_lights, load_env_encoder
from diffusion_renderer.training.lights import light_images
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.variation import Variation

#: The network with its conditions filled in: (scaled noisy latents, noise level of each clip) -> v.
Predict = Callable[[Tensor, Tensor], Tensor]

#: Share of the steps that see clips; the others see stills. Clips are of one of these lengths, as far as the data's and the
#: preset's window allow: short ones keep a model that is given few frames from seeing a length that it does not know. Not two:
#: in bfloat16 on a CPU (torch 2.13) the gradient of a temporal convolution over two frames is not a number.
CLIP_SHARE, CLIP_FRAMES = 0.25, (4, 8)
#: Share of the forward samples whose conditions are zeroed, for classifier-free guidance.
DROP_SHARE = 0.05
#: 5 % and 95 % quantile of the mean luminance of the training clips' panoramas, exposure included.
LIGHT_LUMINANCE = (0.1, 1.25)
#: Weight of the patches' mean colour beside the error of the latents, and the frames from which its variance is estimated.
LOCAL_WEIGHT, SAMPLE_FRAMES = 3.0, 256
#: How much a buffer counts in that, 1 where it is not named: roughness is learnt last and least.
BUFFER_WEIGHT = {"roughness": 3.0}
#: fps - 1, motion bucket, strength of noise augmentation: the published constants.
TIME_IDS = (6.0, 127.0, 0.0)


class _LatentStage:
    """What both renderers share: drawing clips, encoding them, noising them, and the loss on the clean latent.

    Frames are encoded anew in every step, because every step varies them; the linear encoder costs 5 % of a step.
    """

    name: str
    learning_rate = 1.5e-3
    #: What to do about weights in the run folder that do not fit.
    advice = "use another --out"

    def __init__(self, preset: Preset, vae: AutoencoderKLTemporalDecoder, store: FrameStore, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.device = find_device(options.device)
        self.preset, self.vae, self.store = preset, vae.to(self.device), store
        self.batch, self.augment = options.batch, options.augment
        self.precondition = VPrediction()
        # Between the error of whitened latents (all channels alike) and that of pixels (as the squared deviation).
        self.weights = vae.encoder.deviation.detach() / vae.encoder.deviation.mean().detach()
        self.stills = torch.arange(len(store))
        self.clips = {
            frames: starts for frames in CLIP_FRAMES if frames <= preset.window and len(starts := store.starts(frames))
        }

    def _started(self, network: nn.Module, run: Path, widen: bool = False) -> nn.Module:
        """The network with the weights that lie in the run folder, if any: those of `export.unpack`, or of an earlier run.

        A checkpoint, which the loop restores, overrides them. InputError when they do not fit the preset.
        """
        path = run / self.name / "unet" / "diffusion_pytorch_model.safetensors"
        if path.exists():
            try:
                weights = load_file(path)
                network.load_state_dict(widened(weights, network) if widen else weights)
            except (RuntimeError, SafetensorError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"weights of preset {self.preset.name} in {path}", reason, self.advice) from error
        return network.to(self.device)

    def _draw(self, generator: torch.Generator) -> Int[Tensor, "batch frames"]:
        """Frame indices of a batch: stills, or consecutive frames of clips. The cost per step is the same."""
        starts, frames = self.stills, 1
        if self.clips and float(torch.rand((), generator=generator)) < CLIP_SHARE:
            frames = list(self.clips)[int(torch.randint(len(self.clips), (), generator=generator))]
            starts = self.clips[frames]
        count = max(1, self.batch // frames)
        chosen = starts[torch.randint(len(starts), (count,), generator=generator)]
        return chosen[:, None] + torch.arange(frames)

    def _vary(self, count: int, generator: torch.Generator) -> Variation:
        return Variation.draw(count, generator) if self.augment else Variation.none(count)

    @torch.no_grad()
    def _images(
        self, index: Int[Tensor, "batch frames"], variation: Variation
    ) -> Float[Tensor, "batch frames images channels height width"]:
        """Scaled latents of the images named by `data.IMAGES`, and of the classical picture if there is one.

        Exact (float32) whatever the step's precision.
        """
        taken = self.store.take(index)
        if self.store.prior:
            taken = torch.cat((taken, self.store.take_prior(index)[:, :, None]), dim=2)
        images = variation.to(self.device).images(taken.to(self.device))
        kinds = images.shape[2]
        images = rearrange(images, "b f k c h w -> (b f k) c h w")
        with torch.autocast(self.device.type, enabled=False):
            latents = self.vae.encode(2 * images - 1).latent_dist.mode() * self.vae.config.scaling_factor
        return rearrange(latents, "(b f k) c h w -> b f k c h w", b=len(index), k=kinds)

    @torch.no_grad()
    def _lights(
        self, index: Int[Tensor, "batch frames"], variation: Variation
    ) -> Float[Tensor, "batch frames channels height width"]:
        """Scaled latents of the environment images that the frames' cameras see."""
        clips, size = self.store.clip[index[:, 0]].tolist(), self.preset.env_size
        radiance = [
            (self.store.light[clip] * exposure).to(self.device)
            for clip, exposure in zip(clips, variation.exposure, strict=True)
        ]
        turns = self.store.rotation[index]
        seen = [light_images(light, turn, size) for light, turn in zip(radiance, turns, strict=True)]
        seen = variation.to(self.device).environment(torch.stack(seen))
        images = rearrange(seen, "b f k c h w -> (b f) k c h w")
        with torch.autocast(self.device.type, enabled=False):
            return encode_lights(self.vae, images).unflatten(0, index.shape)

    def _denoising_loss(
        self, clean: Float[Tensor, "batch frames channels height width"], generator: torch.Generator, predict: Predict
    ) -> Tensor:
        """``|| f(g_tau; conditions) - g_0 ||^2`` (paper, equations 4 and 6), weighted so that v counts alike at every level."""
        sigma = self.preset.draw_sigma(clean.shape[0], generator)[:, None, None, None, None].to(self.device)
        # At the largest level nothing of the sample is left, so the noise tells nothing either: the one-step estimate starts
        # from zero instead (Martin Garcia et al. 2025), and the network need not learn to ignore it.
        informative = (sigma < self.preset.sigma_max).float()
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        noisy = informative * (clean + sigma * noise)
        output = predict(self.precondition.c_in(sigma) * noisy, self.precondition.c_noise(sigma).flatten())
        estimate = self.precondition.c_skip(sigma) * noisy + self.precondition.c_out(sigma) * output.float()
        error = (estimate - clean) / self.precondition.c_out(sigma)
        weights = self.weights.repeat(clean.shape[2] // len(self.weights))
        # The error of the patches' mean colour as a share of its variance: every buffer counts alike. Without it the latents'
        # error is mostly that of patterns in base colour, and roughness was not learnt at all.
        local = (self._local(error) ** 2 * self.importance).mean()
        return (error**2 * weights[:, None, None]).mean() + LOCAL_WEIGHT * local

    def _measure_importance(self, images: slice, shares: Float[Tensor, "images 3"]) -> None:
        """One over the variance of the patches' mean colours, in every channel of the images that the stage makes.

        ``shares`` weighs the channels against each other; only their ratios matter.
        """
        self.local = self.vae.encoder.local_colour.detach() / self.vae.config.scaling_factor
        index = torch.linspace(0, len(self.store) - 1, min(SAMPLE_FRAMES, len(self.store))).long()[:, None]
        truth = self._images(index, Variation.none(len(index)))[:, :, images].flatten(2, 3)
        variance = self._local(truth).var(dim=(0, 1, 4, 5), keepdim=True).clamp_min(1e-4)
        self.importance = (shares / shares.mean()).to(variance)[:, :, None, None] / variance

    def _local(
        self, latents: Float[Tensor, "batch frames channels height width"]
    ) -> Float[Tensor, "batch frames groups 3 height width"]:
        """Mean colour of every patch of every image."""
        groups = latents.unflatten(2, (-1, len(self.local)))
        return einsum(groups.float(), self.local, "b f g c h w, c k -> b f g k h w")

    def _time_ids(self, count: int) -> Float[Tensor, "count 3"]:
        return torch.tensor(TIME_IDS, device=self.device).expand(count, 3)

    @torch.no_grad()
    def _start(self, shape: torch.Size, predict: Predict) -> Tensor:
        """The one-step estimate, from zero at the largest noise level."""
        sigma = torch.full((shape[0], 1, 1, 1, 1), self.preset.sigma_max, device=self.device)
        output = predict(torch.zeros(shape, device=self.device), self.precondition.c_noise(sigma).flatten())
        return self.precondition.c_out(sigma) * output.float()

    def _decode(self, latents: Float[Tensor, "batch frames channels height width"]) -> Float[Tensor, "batch 3 h w"]:
        """The first frame of each clip as an image in [0, 1]."""
        return 0.5 * self.vae.decode(latents[:, 0].float() / self.vae.config.scaling_factor, num_frames=1).sample + 0.5

    def _sheet_frames(self) -> Int[Tensor, "count 1"]:
        return torch.linspace(0, len(self.store) - 1, 6).long()[:, None]

    def _settings(self) -> dict[str, object]:
        return {
            "groups": [list(group) for group in GROUPS],
            "default_steps": 1,
            "condition_scaled": True,
            "working_area": self.preset.size**2,
            "env_size": self.preset.env_size,
            "env_antialias": True,
            "window": self.preset.window,
            "default_guidance": 1.0,
            "initial_noise": False,
            "light_luminance": list(LIGHT_LUMINANCE),
        }

    def _export(self, folder: Path, kind: str, **others: object) -> None:
        """Write ``folder/unet``, its scheduler and `renderer.json`."""
        self.network.save_pretrained(folder / "unet")
        (folder / "scheduler").mkdir(exist_ok=True)
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(self.preset.scheduler_config(), indent=2))
        (folder / "renderer.json").write_text(json.dumps({"kind": kind, **others, **self._settings()}, indent=2))


def widened(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights whose first convolution reads fewer channels than the network's: the others start at zero, as if not there."""
    wanted, found = network.conv_in.weight, weights.get("conv_in.weight")
    if found is None or found.shape[1] >= wanted.shape[1]:
        return weights
    padded = found.new_zeros(wanted.shape)
    padded[:, : found.shape[1]] = found
    return {**weights, "conv_in.weight": padded}


class InverseStage(_LatentStage):
    """All image groups of a clip at once, their latents concatenated (paper, section 4.1, which makes one buffer per pass).

    One pass instead of one per buffer is as many times cheaper to run, and every sample trains on all ground truth it has.
    """

    name = "inverse"

    def __init__(self, preset: Preset, vae: AutoencoderKLTemporalDecoder, store: FrameStore, options: TrainOptions) -> None:
        super().__init__(preset, vae, store, options)
        self.network: nn.Module = self._started(preset.inverse_unet(), options.out)
        # A buffer of three channels counts as much as one of one.
        shares = {name: BUFFER_WEIGHT.get(name, 1.0) / BUFFER_CHANNELS[name] for group in GROUPS for name in group}
        channels = [[shares[name] for name in group for _ in range(BUFFER_CHANNELS[name])] for group in GROUPS]
        self._measure_importance(slice(1, None), torch.tensor(channels))

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The denoising loss of one batch."""
        index = self._draw(generator)
        images = self._images(index, self._vary(len(index), generator))
        return self._denoising_loss(images[:, :, 1:].flatten(2, 3), generator, self._predictor(images[:, :, 0])), {}

    def _predictor(self, clip: Float[Tensor, "batch frames channels height width"]) -> Predict:
        count = len(clip)
        context = clip.new_zeros(count, 1, self.preset.context_channels)
        ids = torch.full((count,), JOINT_INDEX, device=self.device)

        def predict(scaled: Tensor, noise_level: Tensor) -> Tensor:
            return self.network(torch.cat((scaled, clip), dim=2), noise_level, context, self._time_ids(count), ids)

        return predict

    def sheet(self) -> Tensor:
        """Six frames: the video, then ground truth above estimate for every image group."""
        index = self._sheet_frames()
        images = self._images(index, Variation.none(len(index)))
        estimate = self._start(images[:, :, 1:].flatten(2, 3).shape, self._predictor(images[:, :, 0]))
        pairs = zip(images[:, :, 1:].unbind(2), estimate.chunk(len(GROUPS), dim=2), strict=True)
        rows = [self._decode(images[:, :, 0]), *(self._decode(x) for pair in pairs for x in pair)]
        return rearrange(torch.stack(rows), "r n c h w -> c (r h) (n w)")

    def export(self, folder: Path) -> None:
        """Write the inverse renderer's network in diffusers' layout."""
        self._export(folder, "inverse", joint=True)


class ForwardStage(_LatentStage):
    """The video given G-buffers and light; conditions are dropped at times for guidance (paper, section 4.2)."""

    name = "forward"
    advice = "use another --out, or the --light that they were trained with"

    def __init__(self, preset: Preset, vae: AutoencoderKLTemporalDecoder, store: FrameStore, options: TrainOptions) -> None:
        super().__init__(preset, vae, store, options)
        if (preset.prior is not None) != bool(store.prior):
            wanted = f"pictures of {preset.prior}" if preset.prior else "no classical pictures"
            raise InputError(f"frames with {wanted}", "others", "load them with load_frames(..., prior=preset.prior)")
        network, self.light = preset.forward_unet(options.light), options.light
        # Weights that were made without the classical picture go on with it.
        self.network: nn.Module = self._started(network, options.out, widen=options.light == "encoder")
        encoder = load_env_encoder(options.out).to(self.device) if options.light == "encoder" else None
        self.light_reader = LightReader(network, encoder)
        self._measure_importance(slice(0, 1), torch.ones(1, 3))

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The denoising loss of one batch."""
        index = self._draw(generator)
        variation = self._vary(len(index), generator)
        images, lights = self._images(index, variation), self._lights(index, variation)
        keep = (torch.rand(len(index), 1, 1, 1, 1, generator=generator) >= DROP_SHARE).float().to(self.device)
        clean = images[:, :, 0] - self._start_from(images)
        return self._denoising_loss(clean, generator, self._predictor(images[:, :, 1:], lights, keep)), {}

    def _start_from(self, images: Float[Tensor, "batch frames images channels height width"]) -> Tensor | float:
        """What the network's latents are added to: those of the classical picture, or nothing."""
        return images[:, :, -1] if self.preset.residual else 0.0

    def _predictor(
        self,
        buffers: Float[Tensor, "batch frames groups channels height width"],
        lights: Float[Tensor, "batch frames lightchannels lightheight lightwidth"],
        keep: Float[Tensor, "batch 1 1 1 1"] | float = 1.0,
    ) -> Predict:
        condition = buffers.flatten(2, 3) * keep
        with torch.no_grad():
            seen = self.light_reader(lights, condition.shape[-2:]).times(keep)

        def predict(scaled: Tensor, noise_level: Tensor) -> Tensor:
            return self.network(seen.beside(scaled, condition), noise_level, seen.features, self._time_ids(len(buffers)))

        return predict

    def sheet(self) -> Tensor:
        """Six frames: base colour, normals, the video, and the estimate."""
        index = self._sheet_frames()
        variation = Variation.none(len(index))
        images, lights = self._images(index, variation), self._lights(index, variation)
        estimate = self._start(images[:, :, 0].shape, self._predictor(images[:, :, 1:], lights)) + self._start_from(images)
        rows = [self._decode(images[:, :, IMAGES.index(name)]) for name in ("basecolor", "normal", "rgb")]
        return rearrange(torch.stack([*rows, self._decode(estimate)]), "r n c h w -> c (r h) (n w)")

    def export(self, folder: Path) -> None:
        """Write the forward renderer's network in diffusers' layout."""
        self._export(folder, "forward", light=self.light, prior=self.preset.prior, residual=self.preset.residual)
