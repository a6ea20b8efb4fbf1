"""The transformer of the renderers' UNet: spatial attention over a frame, temporal attention over the clip.

It has the parameters of diffusers' `TransformerSpatioTemporalModel`, and differs from it in what it lets the context be: one
context per clip or one per frame (an environment that rotates), of any number of tokens, and none at all in time (the forward
renderer). diffusers would build the temporal context of every pixel, which for environment features does not fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Projections:
    """Keys and values of one context, by attention layer. A sampler's calls that read the same context need them once."""

    def __init__(self) -> None:
        self._by_layer: dict[int, tuple[Tensor, Tensor]] = {}

    def of(
        self, attn: Attention, context: Float[Tensor, "contexts context_tokens context_channels"]
    ) -> tuple[Float[Tensor, "contexts heads context_tokens _c"], Float[Tensor, "contexts heads context_tokens _c"]]:
        """Keys and values of a layer; ``context`` is looked at the first time only."""
        if id(attn) not in self._by_layer:
            self._by_layer[id(attn)] = _projected(attn, context)
        return self._by_layer[id(attn)]


#: Of the context that the call at hand reads; one for every thread and task.
_KEPT: ContextVar[Projections | None] = ContextVar("kept projections", default=None)


@contextmanager
def kept_projections(store: Projections | None) -> Iterator[None]:
    """Within it, cross-attention takes keys and values from ``store``; None computes them anew.

    A store is for one network, one context and inference: whoever calls the network with another context, with gradients or
    after a change of weights takes another store. Compiled networks do not look at it.
    """
    before = _KEPT.set(store)
    try:
        yield
    finally:
        _KEPT.reset(before)


def _projected(attn: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
    key, value = (rearrange(to(context), "b t (h c) -> b h t c", h=attn.heads) for to in (attn.to_k, attn.to_v))
    return key, value


class ContextAttnProcessor:
    """Scaled dot-product attention whose context may have fewer batch entries than the queries.

    Every run of ``len(hidden_states) / len(encoder_hidden_states)`` queries shares one context, whose keys and values are
    computed once. Attention over a single token is that token's value whatever the query, so queries and keys are not
    computed then, and ``to_q`` and ``to_k`` of such a layer get no gradient: it is exactly zero. Cannot take attention masks
    or spatial maps.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "queries tokens channels"],
        encoder_hidden_states: Float[Tensor, "contexts context_tokens context_channels"] | None = None,
        **_: object,
    ) -> Float[Tensor, "queries tokens channels"]:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        shared = hidden_states.shape[0] // context.shape[0]
        if context.shape[1] == 1 and hidden_states.shape[1] >= 1:
            value = attn.to_out[0](attn.to_v(context))
            return value.repeat_interleave(shared, dim=0).expand_as(hidden_states)
        query = rearrange(attn.to_q(hidden_states), "(b s) t (h c) -> b h (s t) c", s=shared, h=attn.heads)
        kept = None if torch.compiler.is_compiling() or encoder_hidden_states is None else _KEPT.get()
        key, value = _projected(attn, context) if kept is None else kept.of(attn, context)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](rearrange(mixed, "b h (s t) c -> (b s) t (h c)", s=shared))


class SpatioTemporalTransformer(TransformerSpatioTemporalModel):
    """Spatial and temporal attention blocks, blended by a learned weight (paper, section 4.1; Blattmann et al. 2023).

    Parameters
    ----------
    cross_attention_dim : channels of the context that the spatial blocks read.
    temporal_cross_attention_dim : channels of the context that the temporal blocks read; None gives them no cross-attention.
    """

    def __init__(
        self,
        num_attention_heads: int,
        attention_head_dim: int,
        in_channels: int,
        num_layers: int,
        cross_attention_dim: int,
        temporal_cross_attention_dim: int | None,
    ) -> None:
        super().__init__(
            num_attention_heads, attention_head_dim, in_channels, num_layers=num_layers, cross_attention_dim=cross_attention_dim
        )
        if temporal_cross_attention_dim != cross_attention_dim:
            inner = num_attention_heads * attention_head_dim
            self.temporal_transformer_blocks = nn.ModuleList(
                TemporalBasicTransformerBlock(
                    inner, inner, num_attention_heads, attention_head_dim, cross_attention_dim=temporal_cross_attention_dim
                )
                for _ in range(num_layers)
            )
        for module in self.modules():
            if isinstance(module, Attention):
                module.set_processor(ContextAttnProcessor())

    def forward(
        self,
        hidden_states: Float[Tensor, "batch_frames channels height width"],
        encoder_hidden_states: Float[Tensor, "contexts tokens context_channels"],
        image_only_indicator: Float[Tensor, "batch frames"],
        return_dict: bool = False,
    ) -> tuple[Float[Tensor, "batch_frames channels height width"]]:
        """``encoder_hidden_states`` holds one context per clip or one per frame; the temporal blocks read the first frame's.

        Always returns a tuple of one, which is what the UNet's blocks ask for.
        """
        batch, frames = image_only_indicator.shape
        height, width = hidden_states.shape[-2:]
        tokens = self.proj_in(rearrange(self.norm(hidden_states), "bf c h w -> bf (h w) c"))
        positions = self.time_proj(torch.arange(frames, device=tokens.device)).to(tokens.dtype)
        positions = self.time_pos_embed(positions).repeat(batch, 1)[:, None]
        clip_context = encoder_hidden_states[:: encoder_hidden_states.shape[0] // batch]

        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(spatial, tokens, None, encoder_hidden_states)
                mixed = self._gradient_checkpointing_func(temporal, tokens + positions, frames, clip_context)
            else:
                tokens = spatial(tokens, encoder_hidden_states=encoder_hidden_states)
                mixed = temporal(tokens + positions, num_frames=frames, encoder_hidden_states=clip_context)
            tokens = self.time_mixer(x_spatial=tokens, x_temporal=mixed, image_only_indicator=image_only_indicator)
        out = rearrange(self.proj_out(tokens), "bf (h w) c -> bf c h w", h=height, w=width)
        return (out + hidden_states,)
