"""Stage `forward`: a clip from G-buffers and light."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models import AutoencoderKLTemporalDecoder, LightInput, LightReader
from diffusion_renderer.training.adapters import AdaptedUNet, all_layers, attention_layers, saved_ranks
from diffusion_renderer.training.data import FrameStore, Mixture
from diffusion_renderer.training.env import encode_lights, load_env_encoder
from diffusion_renderer.training.images import Frames, frame_index, group_present
from diffusion_renderer.training.latent import Conditions, LatentStage, Predict
from diffusion_renderer.training.lights import light_images
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.steps import Part
from diffusion_renderer.training.variation import Variation

log = logging.getLogger(__name__)

#: Share of the samples whose conditions are zeroed, for classifier-free guidance.
DROP_SHARE = 0.05
#: Share of the samples that see the classical picture as it is made where depth is relative, where that is another one.
RELATIVE_SHARE = 0.3


class ForwardStage(LatentStage):
    """The video given G-buffers and light; conditions are dropped at times for guidance (paper, section 4.2, equation 6).

    Where the data has clips whose G-buffers are estimates, real ones or those of `estimate`, a step has two terms (paper,
    section 4.3): the others train the network, these an adapter of it (see `adapters`), so that flaws of the estimates stay out
    of the network. With ``lora_rank`` 0, for real clips the paper's ablation, both train the network.
    """

    name = "forward"
    kind = "forward"

    def __init__(self, preset: Preset, vae: AutoencoderKLTemporalDecoder, data: Mixture, options: TrainOptions) -> None:
        super().__init__(preset, vae, data, options)
        if any((preset.prior is not None) != bool(store.prior) for store in data.stores):
            wanted = f"pictures of {preset.prior}" if preset.prior else "no classical pictures"
            raise InputError(f"frames with {wanted}", "others", "load them with load_mixture(..., prior=preset.prior)")
        # Weights that were made without the classical picture go on with it.
        fit = widened if options.light == "encoder" else None
        unet = self._started(
            preset.forward_unet(options.light), "use another --out, or the --light that they were trained with", fit
        )
        encoder = load_env_encoder(options.out).to(self.device) if options.light == "encoder" else None
        self.light_reader = LightReader(unet, encoder)
        self.share = self._estimated_share()
        self.network: nn.Module = unet
        if self.share > 0 and options.lora_rank != 0:
            self.network = self._adapted(unet, options.out / self.name / "lora").to(self.device)
        self.importance = self._importance(
            lambda seen: seen.video[:, :, None], lambda seen: _everywhere(seen)[:, :, None], torch.ones(1, 3)
        )

    def _adapted(self, unet: nn.Module, saved: Path) -> AdaptedUNet:
        """The network with an adapter: that in ``saved``, or a new one where there is none."""
        preset, rank = self.preset, self.options.lora_rank
        ranks = saved_ranks(saved)
        if ranks is None:
            layers = attention_layers(unet) if preset.lora_attention else all_layers(unet)
            return AdaptedUNet(unet, dict.fromkeys(layers, preset.lora_rank if rank is None else rank))
        if rank is not None and set(ranks.values()) != {rank}:
            least, most = min(ranks.values()), max(ranks.values())
            found = str(least) if least == most else f"ranks from {least} to {most}"
            raise InputError(
                f"an adapter of --lora-rank {rank} in {saved}", found, "leave --lora-rank out, or use another --out"
            )
        if missing := ranks.keys() - set(all_layers(unet)):
            wanted = f"an adapter of this network in {saved}"
            raise InputError(wanted, f"one of {min(missing)}", "use another --out, or the model that it came with")
        network = AdaptedUNet(unet, ranks)
        network.load(saved)
        return network

    def _estimated_share(self) -> float:
        """Weight of the clips with estimated buffers in a step: that of the options where there are both kinds."""
        estimated = any(bool((self.usable(store) & ~store.measured).any()) for store in self.data.stores)
        true = any(bool((self.usable(store) & store.measured).any()) for store in self.data.stores)
        if not (estimated or true):
            wanted = "clips with a light and all G-buffers"
            raise InputError(wanted, "none", "render some with `diffusion-renderer dataset OUT`")
        return (self.options.estimated_share if true else 1.0) if estimated else 0.0

    def plan(self, step: int) -> tuple[Part, ...]:
        """One part of clips with true buffers, one of clips with estimated ones, as far as there are some."""
        parts = []
        for estimated, share in ((False, 1 - self.share), (True, self.share)):
            if share > 0:
                images = max(1, round(self.options.batch * share))
                parts.append(self.draw(step, images, estimated, weight=share))
        return tuple(parts)

    def usable(self, store: FrameStore) -> Bool[Tensor, "total"]:
        """Frames with a light and all groups."""
        every = torch.arange(len(store))
        return group_present(store, every, self.preset.groups).all(dim=-1) & store.lit

    def conditions(self, part: Part, training: bool = True) -> Conditions:
        """The G-buffers and the light, dropped together in a few items."""
        variation = self.variation(part, training)
        seen, lights = self.frames(part, variation), self.lights(part, variation)
        prior = () if seen.prior is None else (self._picture(seen.prior, part, training),)
        latents = self.encode(torch.cat((seen.video[:, :, None], seen.buffers, *prior), dim=2))
        offset = latents[:, :, -1] if self.preset.residual else None
        given = latents[:, :, 1:].flatten(2, 3)
        with torch.no_grad():
            light = self.light_reader(lights, given.shape[-2:])
        keep = torch.ones(len(given), 1, 1, 1, 1, device=self.device)
        if training:
            dropped = [float(torch.rand((), generator=item.generator("drop"))) < DROP_SHARE for item in part.items]
            keep[dropped] = 0.0
        adapted = part.estimated
        return Conditions(
            clean=latents[:, :, 0] if offset is None else latents[:, :, 0] - offset,
            counted=self.cells(_everywhere(seen)[:, :, None]),
            importance=None if self.importance is None else self.importance.expand(len(given), -1, -1),
            predict=self._predictor(given * keep, light.times(keep), adapted),
            unconditional=self._predictor(torch.zeros_like(given), light.dropped(), adapted),
            offset=offset,
        )

    def _picture(
        self, pictures: Float[Tensor, "items frames pictures 3 height width"], part: Part, training: bool
    ) -> Float[Tensor, "items frames 1 3 height width"]:
        """One of the classical pictures for each item: the first, or at times, in training, one of the others."""
        chosen = torch.zeros(len(part.items), dtype=torch.long)
        others = pictures.shape[2] - 1
        if training and others:
            for number, item in enumerate(part.items):
                generator = item.generator("prior")
                if float(torch.rand((), generator=generator)) < RELATIVE_SHARE:
                    chosen[number] = 1 + int(torch.randint(others, (), generator=generator))
        return pictures[torch.arange(len(chosen)), :, chosen][:, :, None]

    @torch.no_grad()
    def lights(self, part: Part, variation: Variation) -> Float[Tensor, "items frames channels height width"]:
        """Scaled latents of the environment images that the frames' cameras see."""
        index, store = frame_index(part), part.store
        images = []
        for frames, exposure in zip(index, variation.exposure.tolist(), strict=True):
            radiance = (store.light[store.clip[frames[0]]].float() * exposure).to(self.device)
            images.append(light_images(radiance, store.rotation[frames], self.preset.env_size))
        seen = variation.to(self.device).environment(torch.stack(images))
        flat = rearrange(seen, "b f k c h w -> (b f) k c h w")
        with torch.autocast(self.device.type, enabled=False):
            return encode_lights(self.vae, flat).unflatten(0, index.shape)

    def _predictor(
        self, condition: Float[Tensor, "items frames channels height width"], light: LightInput, adapted: bool
    ) -> Predict:
        # Only a network with an adapter is asked with or without.
        mode = {"adapted": adapted} if isinstance(self.network, AdaptedUNet) else {}

        def predict(network: nn.Module, scaled: Tensor, c_noise: Tensor) -> Tensor:
            ids = self.time_ids(len(condition))
            return network(light.beside(scaled, condition), c_noise, light.features, ids, **mode)

        return predict

    def sheet(self) -> Tensor:
        """Six frames: base colour, normals, the video, and the estimate."""
        part = self.sheet_part()
        asked = self.conditions(part, training=False)
        seen = self.frames(part, self.variation(part, training=False))
        estimate = self.sample(self.network, asked, part)
        shown = [seen.buffers[:, 0, i] for i in range(min(2, seen.buffers.shape[2]))]
        rows = [*shown, seen.video[:, 0], self.decode(estimate if asked.offset is None else estimate + asked.offset)]
        return rearrange(torch.stack(rows), "r n c h w -> c (r h) (n w)")

    def export(self, folder: Path) -> None:
        """Write the forward renderer's network in diffusers' layout, its adapter as ``folder/lora``."""
        unet, adapter, scale = self.network, folder / "lora", {}
        if isinstance(unet, AdaptedUNet):
            unet.save(adapter)
            # Estimated buffers are told by their relative depth.
            scale = {"relative_lora_scale": 1.0}
            plain = self.preset.forward_unet(self.options.light)
            plain.load_state_dict(unet.base_state())
            unet = plain
        elif adapter.exists():
            log.warning("%s was trained with another network and is removed", adapter)
            shutil.rmtree(adapter)
        self._export(unet, folder, light=self.options.light, prior=self.preset.prior, residual=self.preset.residual, **scale)


def widened(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights whose first convolution reads fewer channels than the network's: the others start at zero, as if not there."""
    wanted, found = network.conv_in.weight, weights.get("conv_in.weight")
    if found is None or found.shape[1] >= wanted.shape[1]:
        return weights
    padded = found.new_zeros(wanted.shape)
    padded[:, : found.shape[1]] = found
    return {**weights, "conv_in.weight": padded}


def _everywhere(seen: Frames) -> Float[Tensor, "items frames height width"]:
    """1 where the ground truth of all groups is known: nothing tells the network the rest."""
    return seen.defined.amin(dim=2)
