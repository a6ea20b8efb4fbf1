"""Stage `inverse`: G-buffers from a clip."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffusion_renderer.core.packing import JOINT_INDEX, embedding_index
from diffusion_renderer.core.resize import resize
from diffusion_renderer.core.types import BUFFER_CHANNELS
from diffusion_renderer.models import AutoencoderKLTemporalDecoder
from diffusion_renderer.training.data import FrameStore, Mixture
from diffusion_renderer.training.images import frame_index, group_present
from diffusion_renderer.training.latent import Conditions, LatentStage, Predict
from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.presets import Preset
from diffusion_renderer.training.steps import Part
from diffusion_renderer.training.variation import SEEN_STOPS

#: How much a buffer counts in the error of the patches' mean colour, 1 where it is not named: roughness is learnt last and
#: least.
BUFFER_WEIGHT = {"roughness": 3.0}


class InverseStage(LatentStage):
    """One random image group per item, named by the domain embedding (paper, section 4.1 and equation 4), or all at once.

    All at once, their latents concatenated, is how a ``joint`` preset does it: as many times cheaper to run, and every sample
    trains on all ground truth it has. A group that lacks a buffer in an item is never drawn and never counts; frames that have
    no group at all are left out. Real clips are left out as well: their buffers are the inverse renderer's own estimates.
    """

    name = "inverse"
    kind = "inverse"
    exposure_stops = SEEN_STOPS

    def __init__(self, preset: Preset, vae: AutoencoderKLTemporalDecoder, data: Mixture, options: TrainOptions) -> None:
        super().__init__(preset, vae, data, options)
        self.network: nn.Module = self._started(preset.inverse_unet(), "use another --out")
        shares = torch.tensor([_channel_shares(group) for group in preset.groups])
        self.importance = self._importance(lambda seen: seen.buffers, lambda seen: seen.defined, shares)

    def plan(self, step: int) -> tuple[Part, ...]:
        """Synthetic clips or stills."""
        return (self.draw(step, self.options.batch, estimated=False),)

    def usable(self, store: FrameStore) -> Bool[Tensor, "total"]:
        """Synthetic frames that have at least one whole group of true buffers."""
        every = torch.arange(len(store))
        return group_present(store, every, self.preset.groups).any(dim=-1) & store.measured

    def conditions(self, part: Part, training: bool = True) -> Conditions:
        """The clip, and which group is wanted."""
        seen, chosen = self.frames(part, self.variation(part, training)), self.chosen(part)
        rows = torch.arange(len(chosen))[:, None]
        wanted = rearrange(seen.buffers, "b f g c h w -> b g f c h w")[rows, chosen]
        counted = rearrange(seen.defined, "b f g h w -> b g f h w")[rows, chosen]
        latents = self.encode(torch.cat((seen.video[:, :, None], rearrange(wanted, "b g f c h w -> b f g c h w")), dim=2))
        return Conditions(
            clean=latents[:, :, 1:].flatten(2, 3),
            counted=self.cells(rearrange(counted, "b g f h w -> b f g h w")),
            importance=None if self.importance is None else self.importance[chosen],
            predict=self._predictor(latents[:, :, 0], self._domains(chosen)),
        )

    def chosen(self, part: Part) -> Int[Tensor, "items made"]:
        """The groups that each item asks for: all, or a random one of those that it has ground truth of in some frame."""
        count = len(self.preset.groups)
        if self.preset.joint:
            return torch.arange(count).expand(len(part.items), count)
        present = group_present(part.store, frame_index(part), self.preset.groups).any(dim=1)
        drawn = []
        for item, known in zip(part.items, present, strict=True):
            having = known.nonzero()[:, 0]
            drawn.append(having[torch.randint(len(having), (1,), generator=item.generator("buffer"))])
        return torch.stack(drawn)

    def _domains(self, chosen: Int[Tensor, "items made"]) -> Int[Tensor, "items"]:
        """The rows of the domain embedding."""
        if self.preset.joint:
            return torch.full((len(chosen),), JOINT_INDEX, device=self.device)
        rows = torch.tensor([embedding_index(group) for group in self.preset.groups])
        return rows[chosen[:, 0]].to(self.device)

    def _predictor(self, clip: Float[Tensor, "items frames channels height width"], domains: Int[Tensor, "items"]) -> Predict:
        count = len(clip)
        # The published renderer reads the clip in the autoencoder's own units, as Stable Video Diffusion reads its image.
        given = clip if self.settings["condition_scaled"] else clip / self.scale
        context = clip.new_zeros(count, 1, self.preset.context_channels)

        def predict(network: nn.Module, scaled: Tensor, c_noise: Tensor) -> Tensor:
            return network(torch.cat((scaled, given), dim=2), c_noise, context, self.time_ids(count), domains)

        return predict

    def sheet(self) -> Tensor:
        """Six frames: the video, then ground truth above estimate for every image that they ask for."""
        part = self.sheet_part()
        asked = self.conditions(part, training=False)
        both = (asked.clean, self.sample(self.network, asked, part))
        pairs = zip(*(latents.split(self.preset.latent_channels, dim=2) for latents in both), strict=True)
        index = frame_index(part)[:, 0]
        video = part.store.take(index)[:, 0].to(self.device).float() / 255
        images = [self.decode(latents) for pair in pairs for latents in pair]
        rows = [resize(video, (images[0].shape[-1], images[0].shape[-2])), *images]
        return rearrange(torch.stack(rows), "r n c h w -> c (r h) (n w)")

    def export(self, folder: Path) -> None:
        """Write the inverse renderer's network in diffusers' layout."""
        self._export(self.network, folder, joint=self.preset.joint)


def _channel_shares(group: tuple[str, ...]) -> list[float]:
    """What each channel of a group's image counts: a buffer of three channels as much as one of one."""
    if len(group) == 1:
        return [BUFFER_WEIGHT.get(group[0], 1.0) / 3] * 3
    return [BUFFER_WEIGHT.get(name, 1.0) / BUFFER_CHANNELS[name] for name in group for _ in range(BUFFER_CHANNELS[name])]
