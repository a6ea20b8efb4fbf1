"""The moving average of the weights, which is what a stage exports."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Ema:
    """Exponential moving average of the trainable parameters, with the usual short memory at the start.

    After step t the decay is ``min(decay, (1 + t) / (10 + t))``. Where the parameters are sharded over processes, so is the
    average: ``shadow`` has the layout of the parameters. Buffers are not averaged.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the network's parameters as they are after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        named = dict(network.named_parameters())
        shadow = [_local(value) for value in self.shadow.values()]
        torch._foreach_lerp_(shadow, [_local(named[name].detach()) for name in self.shadow], 1 - decay)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Overwrite the network's parameters with their averages."""
        named = dict(network.named_parameters())
        for name, value in self.shadow.items():
            named[name].copy_(value)


def _local(tensor: Tensor) -> Tensor:
    """The shard of this process: averaging is elementwise, so nobody needs the rest."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
