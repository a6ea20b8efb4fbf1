"""Group norms of narrow networks."""

from __future__ import annotations

from torch import nn

#: Groups of every group norm in the published networks; diffusers' blocks do not let it be chosen.
PUBLISHED_GROUPS = 32


def set_norm_groups(network: nn.Module, groups: int) -> None:
    """Give every group norm of ``network`` ``groups`` groups; parameters keep their names and shapes.

    With 32 groups a layer of 32 channels normalises each channel by itself, which erases every image's absolute level: such
    an autoencoder cannot reproduce the colour of a plain image (see LOG.md). Widths of a few dozen need fewer groups.
    """
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups
