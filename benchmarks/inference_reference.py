"""The published order of work, written out of the networks alone: what the inference benchmark compares the package with.

Every buffer is a job of its own, with its own encoding of the clip; the light is encoded for every frame whether it turns or
not; guidance doubles the batch; keys and values are computed at every step, for every frame and, in time, for every pixel;
everything is eager, in diffusers' own blocks; clips longer than the window are unrelated chunks. The sampler is diffusers'
Euler scheduler.

This is a reconstruction from the paper, the published settings and diffusers' SVD pipeline, not the published program.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.packing import JOINT_INDEX, UNPACKED, embedding_index, pack_image, unpack_image
from diffusion_renderer.core.types import BUFFERS, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.light import environment_images
from diffusion_renderer.models import Kind, load_checkpoint
from diffusion_renderer.models.temporal_decoder import use_diffusers_blocks
from diffusion_renderer.training.presets import SVD

#: What `renderer.json` may leave out.
COMMON = {
    "joint": False,
    "residual": False,
    "prior": None,
    "decode_chunk": 8,
    "initial_noise": True,
    "env_size": 512,
    "env_antialias": False,
    "fps": 7,
    "motion_bucket": 127,
    "noise_augmentation": 0.0,
}
DEFAULTS: dict[Kind, dict[str, Any]] = {
    "inverse": {**COMMON, "groups": [[name] for name in BUFFERS], "condition_scaled": False, "timestep_spacing": None},
    "forward": {**COMMON, "groups": UNPACKED, "condition_scaled": True, "timestep_spacing": "trailing"},
}
#: Unit noise of (what is made, frames, shape of one frame's latents).
Noise = Callable[[str, int, tuple[int, int, int]], Tensor]


class PublishedAttention:
    """Attention as diffusers computes it: queries, keys and values of everything, the context repeated for every query."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        context = context.repeat_interleave(hidden_states.shape[0] // context.shape[0], dim=0)
        heads = "b t (h c) -> b h t c"
        query = rearrange(attn.to_q(hidden_states), heads, h=attn.heads)
        key, value = (rearrange(to(context), heads, h=attn.heads) for to in (attn.to_k, attn.to_v))
        return attn.to_out[0](rearrange(F.scaled_dot_product_attention(query, key, value), "b h t c -> b t (h c)"))


def as_published(network: nn.Module) -> nn.Module:
    """``network``, its attention now computed as published."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(PublishedAttention())
    return network


class Reference:
    """The networks of one checkpoint and how they are run. ``noise`` is what the package starts from, for equal outputs."""

    def __init__(self, folder: Path, kind: Kind, device: torch.device, dtype: torch.dtype, noise: Noise) -> None:
        checkpoint = load_checkpoint(folder, kind, device=device, dtype=dtype)
        self.unet, self.vae, self.env_encoder = checkpoint.unet, checkpoint.vae, checkpoint.env_encoder
        as_published(self.unet)
        use_diffusers_blocks(self.vae)
        self.settings = DEFAULTS[kind] | checkpoint.settings
        if kind == "forward" and self.env_encoder is None:
            raise InputError("a forward renderer with an environment encoder", f"none in {folder}", "give another model")
        self.groups = [tuple(group) for group in self.settings["groups"]]
        config = {**SVD.scheduler_config(), **checkpoint.scheduler}
        if self.settings["timestep_spacing"]:
            config["timestep_spacing"] = self.settings["timestep_spacing"]
        self.scheduler_config, self.noise = config, noise

    @property
    def ids(self) -> Tensor:
        """What the added time embedding reads, of one clip."""
        values = self.settings["fps"] - 1, self.settings["motion_bucket"], self.settings["noise_augmentation"]
        return torch.tensor([values], dtype=self.unet.dtype, device=self.unet.device)

    def encode(self, images: Tensor, scaled: bool) -> Tensor:
        """Latents of images in [0, 1], a few frames at a time."""
        parts = []
        for part in images.split(self.settings["decode_chunk"]):
            moments = self.vae.encode(2 * part.to(self.vae.device, self.vae.dtype) - 1)
            parts.append(moments.latent_dist.mode())
        return torch.cat(parts) * (self.vae.config.scaling_factor if scaled else 1.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1] of scaled latents, on the CPU."""
        parts = []
        for part in latents.split(self.settings["decode_chunk"]):
            part = part.to(self.vae.dtype) / self.vae.config.scaling_factor
            parts.append(self.vae.decode(part, num_frames=len(part)).sample.cpu().float())
        return (0.5 * torch.cat(parts) + 0.5).clamp(0.0, 1.0)

    def sample(self, network: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
        """Follow ``network(x, c_noise) -> v`` from noise to latents, in float32: half precision cannot hold the first noise."""
        scheduler = EulerDiscreteScheduler.from_config(self.scheduler_config)
        scheduler.set_timesteps(steps, device=self.unet.device)
        x = noise.to(self.unet.device, torch.float32) * scheduler.init_noise_sigma
        x = x if self.settings["initial_noise"] else torch.zeros_like(x)
        for time in scheduler.timesteps:
            v = network(scheduler.scale_model_input(x, time).to(self.unet.dtype), time)
            x = scheduler.step(v.float(), time, x).prev_sample
        return x

    @torch.no_grad()
    def buffer(self, clip: Clip, name: str, steps: int) -> Tensor:
        """One buffer of a clip: encode, denoise, decode. A network that makes all its groups at once makes them all."""
        wanted, latents = self._groups(clip, name, steps)
        return unpack_image(wanted, self.decode(latents[wanted]))[name]

    @torch.no_grad()
    def buffers(self, clip: Clip, steps: int) -> dict[str, Tensor]:
        """All buffers of a network that makes all its groups at once, in one pass, each group decoded once."""
        made: dict[str, Tensor] = {}
        for group, latents in self._groups(clip, self.groups[0][0], steps)[1].items():
            made.update(unpack_image(group, self.decode(latents)))
        return made

    def _groups(self, clip: Clip, name: str, steps: int) -> tuple[tuple[str, ...], dict[tuple[str, ...], Tensor]]:
        """The group of ``name``, and the latents of all groups that one run of the network makes."""
        wanted = next(group for group in self.groups if name in group)
        together, joint = (self.groups, True) if self.settings["joint"] else ([wanted], False)
        condition = self.encode(clip.frames, self.settings["condition_scaled"]).to(self.unet.dtype)
        noise = torch.cat([self._noise("+".join(group), condition) for group in together], dim=1)
        context = condition.new_zeros(1, 1, self.unet.context_embedding.embedding_dim)
        row = torch.tensor([JOINT_INDEX if joint else embedding_index(wanted)], device=self.unet.device)

        def network(x: Tensor, time: Tensor) -> Tensor:
            return self.unet(torch.cat((x, condition), dim=1)[None], time, context, self.ids, context_ids=row)[0]

        latents = self.sample(network, noise, steps).chunk(len(together), dim=1)
        return wanted, dict(zip(together, latents, strict=True))

    @torch.no_grad()
    def relight(
        self, gbuffer: GBuffer, light: EnvironmentMap, rotations: Tensor, steps: int, guidance: float, prior: Any = None
    ) -> Tensor:
        """A clip from its G-buffers under a light: encode every buffer and every frame's light, denoise, decode."""
        settings, depth_range = self.settings, gbuffer.depth_range()
        images = [pack_image(gbuffer, group, depth_range) for group in self.groups]
        if settings["prior"]:
            images.append(prior(settings["prior"], light)(gbuffer, None, rotations, gbuffer.size, gbuffer.has_relative_depth()))
        parts = [self.encode(image, settings["condition_scaled"]) for image in images]
        maps = environment_images(light, rotations, settings["env_size"], antialias=settings["env_antialias"])
        seen = torch.cat([self.encode(image, True) for image in (maps.ldr, maps.log, maps.direction)], dim=1)
        features = self.env_encoder(seen.to(self.unet.dtype)[None])
        condition = torch.cat(parts, dim=1).to(self.unet.dtype)
        noise = self._noise("forward", condition)
        latents = self.sample(self._guided(condition, features, guidance), noise, steps)
        if not settings["residual"]:
            return self.decode(latents)
        start = parts[-1].to(latents)
        return (images[-1] + self.decode(start + latents) - self.decode(start)).clamp(0.0, 1.0)

    def _guided(self, condition: Tensor, features: list[Tensor], guidance: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Both branches as one batch where guidance is on: without conditions and light, and with them."""

        def plain(x: Tensor, time: Tensor) -> Tensor:
            return self.unet(torch.cat((x, condition), dim=1)[None], time, features, self.ids)[0]

        both = [torch.cat((torch.zeros_like(level), level)) for level in features] if guidance > 1 else []

        def doubled(x: Tensor, time: Tensor) -> Tensor:
            inputs = [torch.cat((x, part), dim=1) for part in (torch.zeros_like(condition), condition)]
            free, lit = self.unet(torch.stack(inputs), time, both, self.ids.expand(2, -1))
            return free + guidance * (lit - free)

        return doubled if guidance > 1 else plain

    def _noise(self, purpose: str, condition: Tensor) -> Tensor:
        frames, _, height, width = condition.shape
        return self.noise(purpose, frames, (self.vae.config.latent_channels, height, width))
