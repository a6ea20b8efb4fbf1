"""The UNet of both renderers: Stable Video Diffusion's, reading a domain embedding or the light (paper, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusion_renderer.models.attention import SpatioTemporalTransformer
from diffusion_renderer.models.norms import PUBLISHED_GROUPS, set_norm_groups

_ATTENTION_DOWN = ("CrossAttnDownBlockSpatioTemporal",) * 3
_ATTENTION_UP = ("CrossAttnUpBlockSpatioTemporal",) * 3


def _per_level(value: int | Sequence[int] | None, levels: int) -> list[int | None]:
    """One entry per level of a setting given once or per level."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels


class UNetCustomSpatioTemporalConditionModel(UNetSpatioTemporalConditionModel):
    """A video UNet in the published parameter names and config keys. The defaults are the published inverse renderer's.

    Predicts v (see `diffusion.parameterisation`) and knows no noise schedule.

    Parameters
    ----------
    in_channels : noise latent channels plus those of the condition latents concatenated to it.
    cross_attention_dim : context channels, one number or one per level.
    temporal_cross_attention_dim : the same for the temporal blocks; None leaves out their cross-attention.
    context_embedding_type : None, or any name for a learned embedding of ``context_vocab_size`` domains that is added to the
        context (the published inverse renderer calls it "clip", after what the cross-attention read in SVD).
    multi_res_encoder_hidden_states : the context is a list of feature maps, one per level, instead of one token sequence.
    norm_num_groups : groups of every group norm (see `models.norms`).
    num_frames : frames of a training window; inference may use another number.

    Others as in diffusers' `UNetSpatioTemporalConditionModel`. Widths are multiples of 32 (its group norms are fixed).
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 8,
        out_channels: int = 4,
        down_block_types: Sequence[str] = (*_ATTENTION_DOWN, "DownBlockSpatioTemporal"),
        up_block_types: Sequence[str] = ("UpBlockSpatioTemporal", *_ATTENTION_UP),
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int = 768,
        layers_per_block: int | Sequence[int] = 2,
        cross_attention_dim: int | Sequence[int] = 1024,
        temporal_cross_attention_dim: int | Sequence[int] | None = 1024,
        transformer_layers_per_block: int | Sequence[int] = 1,
        num_attention_heads: int | Sequence[int] = (5, 10, 20, 20),
        num_frames: int = 25,
        context_embedding_type: str | None = "clip",
        context_vocab_size: int = 16,
        multi_res_encoder_hidden_states: bool = False,
        norm_num_groups: int = PUBLISHED_GROUPS,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            addition_time_embed_dim=addition_time_embed_dim,
            projection_class_embeddings_input_dim=projection_class_embeddings_input_dim,
            layers_per_block=layers_per_block,
            cross_attention_dim=cross_attention_dim,
            transformer_layers_per_block=transformer_layers_per_block,
            num_attention_heads=num_attention_heads,
            num_frames=num_frames,
        )
        levels = len(block_out_channels)
        spatial, temporal = (_per_level(dim, levels) for dim in (cross_attention_dim, temporal_cross_attention_dim))
        blocks = [*zip(self.down_blocks, range(levels), strict=True), (self.mid_block, levels - 1)]
        blocks += zip(self.up_blocks, reversed(range(levels)), strict=True)
        for block, level in blocks:
            if hasattr(block, "attentions"):
                block.attentions = nn.ModuleList(_replacement(old, spatial[level], temporal[level]) for old in block.attentions)
        self.context_embedding = nn.Embedding(context_vocab_size, spatial[0]) if context_embedding_type is not None else None
        set_norm_groups(self, norm_num_groups)

    @property
    def context_channels(self) -> list[int]:
        """Channels of the context that the spatial cross-attention of each level reads, finest first."""
        return _per_level(self.config.cross_attention_dim, len(self.config.block_out_channels))

    def forward(
        self,
        sample: Float[Tensor, "batch frames in_channels height width"],
        timestep: Float[Tensor, "*batch"] | float,
        encoder_hidden_states: Float[Tensor, "batch tokens context_channels"] | Sequence[Float[Tensor, "batch ..."]],
        added_time_ids: Float[Tensor, "batch ids"],
        context_ids: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch frames out_channels height width"]:
        """Predict v for the noisy latents of ``sample`` (already scaled by c_in, condition latents concatenated).

        Parameters
        ----------
        timestep : c_noise of each clip, or one for all.
        encoder_hidden_states : the context: tokens, or with ``multi_res_encoder_hidden_states`` one feature map per level,
            finest first, each ``batch frames channels height width``; one frame stands for all where the context is constant.
        added_time_ids : fps - 1, motion bucket, strength of noise augmentation.
        context_ids : index of the domain whose embedding is added to the context; needs ``context_embedding_type``.
        """
        batch, frames = sample.shape[:2]
        embedding = self._time_embedding(sample, timestep, added_time_ids).repeat_interleave(frames, dim=0)
        contexts = self._contexts(encoder_hidden_states, context_ids)
        images_only = torch.zeros(batch, frames, dtype=sample.dtype, device=sample.device)
        size = sample.shape[-2:]
        uneven = any(length % 2**self.num_upsamplers for length in size)

        hidden = self.conv_in(rearrange(sample, "b f c h w -> (b f) c h w"))
        skips = [hidden]
        for block, context in zip(self.down_blocks, contexts, strict=True):
            options = {"encoder_hidden_states": context} if hasattr(block, "attentions") else {}
            hidden, outputs = block(hidden_states=hidden, temb=embedding, image_only_indicator=images_only, **options)
            skips.extend(outputs)
        hidden = self.mid_block(
            hidden_states=hidden, temb=embedding, encoder_hidden_states=contexts[-1], image_only_indicator=images_only
        )
        for block, context in zip(self.up_blocks, reversed(contexts), strict=True):
            options = {"encoder_hidden_states": context} if hasattr(block, "attentions") else {}
            count = len(block.resnets)
            taken, skips = tuple(skips[-count:]), skips[:-count]
            hidden = block(
                hidden_states=hidden,
                temb=embedding,
                res_hidden_states_tuple=taken,
                upsample_size=tuple(skips[-1].shape[-2:]) if uneven and skips else None,
                image_only_indicator=images_only,
                **options,
            )
        hidden = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return rearrange(hidden, "(b f) c h w -> b f c h w", b=batch)

    def _time_embedding(
        self, sample: Tensor, timestep: Tensor | float, added_time_ids: Tensor
    ) -> Float[Tensor, "batch channels"]:
        times = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1).expand(sample.shape[0])
        embedding = self.time_embedding(self.time_proj(times).to(sample.dtype))
        added = self.add_time_proj(added_time_ids.flatten()).reshape(sample.shape[0], -1)
        return embedding + self.add_embedding(added.to(embedding.dtype))

    def _contexts(self, context: Tensor | Sequence[Tensor], context_ids: Tensor | None) -> list[Tensor]:
        """The token sequences that each level reads: one per clip or one per frame."""
        levels = len(self.down_blocks)
        if self.config.multi_res_encoder_hidden_states:
            if isinstance(context, Tensor) or len(context) != levels:
                raise ValueError(f"this UNet reads {levels} levels of context features, one feature map each")
            return [rearrange(features, "b f c h w -> (b f) (h w) c") for features in context]
        if context_ids is not None:
            if self.context_embedding is None:
                raise ValueError("context_ids need a UNet with context_embedding_type")
            context = context + self.context_embedding(context_ids)[:, None]
        return [context] * levels


def _replacement(old: nn.Module, spatial_dim: int, temporal_dim: int | None) -> SpatioTemporalTransformer:
    """Our transformer in the sizes of diffusers' one."""
    layers = len(old.transformer_blocks)
    return SpatioTemporalTransformer(
        old.num_attention_heads, old.attention_head_dim, old.in_channels, layers, spatial_dim, temporal_dim
    )
