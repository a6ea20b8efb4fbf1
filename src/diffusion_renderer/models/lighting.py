"""How the forward renderer's UNet is told the light: features of the environment encoder, or latents beside its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.models.env_encoder import EnvEncoder
from diffusion_renderer.models.unet import UNetCustomSpatioTemporalConditionModel

LightCondition = Literal["encoder", "concat"]
#: Environment images (ldr, log, direction) whose latents are concatenated to the UNet's input.
CONCATENATED: dict[LightCondition, int] = {"encoder": 0, "concat": 3}


@dataclass(frozen=True)
class LightInput:
    """What the UNet reads of the light. One frame stands for all where the light is at rest.

    Attributes
    ----------
    latents : concatenated to its input, behind the condition latents; no channels where an encoder reads the light.
    features : for its cross-attention, one map per level, finest first; zeros of one cell where the light is concatenated.
    """

    latents: Float[Tensor, "batch frames channels height width"]
    features: list[Float[Tensor, "batch _frames _channels _height _width"]]

    def beside(self, *inputs: Float[Tensor, "batch frames _ height width"]) -> Float[Tensor, "batch frames _c height width"]:
        """``inputs`` and the light's latents, concatenated along the channels."""
        return torch.cat((*inputs, self.latents.expand(-1, inputs[0].shape[1], -1, -1, -1)), dim=2)

    def times(self, keep: Float[Tensor, "batch 1 1 1 1"] | float) -> LightInput:
        """With the light of each clip multiplied by ``keep``: 0 drops it, for classifier-free guidance."""
        return LightInput(self.latents * keep, [level * keep for level in self.features])

    def dropped(self) -> LightInput:
        """Without the light: what `times` zero is, but cheaper."""
        # Attention over zero features is the same over one of them as over all.
        nothing = [level.new_zeros(level.shape[0], 1, level.shape[2], 1, 1) for level in self.features]
        return LightInput(torch.zeros_like(self.latents), nothing)


class LightReader:
    """Turns the latents of the three environment images into what the forward renderer's UNet reads.

    With an environment encoder: its features, for cross-attention, so that every pixel of the frame looks at the whole light
    (paper, section 4.2). Without one, the paper's ablation: the latents, resized to those of the frame, are concatenated to the
    UNet's input, and cross-attention reads zeros. A pixel of the light then lies on a pixel of the frame that it has nothing to
    do with: only self-attention and the UNet's deep levels can bring together what belongs together. The resizing and the zeros
    are our choice; we do not know how the paper's own ablation did either.
    """

    def __init__(self, unet: UNetCustomSpatioTemporalConditionModel, encoder: EnvEncoder | None) -> None:
        self.encoder, self.widths = encoder, unet.context_channels

    def __call__(
        self, latents: Float[Tensor, "batch frames lightchannels _height _width"], size: tuple[int, int]
    ) -> LightInput:
        """The light for a UNet whose input latents are of ``size``, (height, width)."""
        batch = latents.shape[0]
        if self.encoder is not None:
            return LightInput(latents.new_zeros(batch, 1, 0, *size), self.encoder(latents))
        flat = rearrange(latents, "b f c h w -> (b f) c h w")
        # Averaging over what a smaller pixel covers is not written for half precision on a CPU.
        precise = flat.to(torch.promote_types(flat.dtype, torch.float32))
        resized = F.interpolate(precise, size=size, mode="bilinear", antialias=True).to(latents.dtype)
        nothing = [latents.new_zeros(batch, 1, width, 1, 1) for width in self.widths]
        return LightInput(rearrange(resized, "(b f) c h w -> b f c h w", b=batch), nothing)
