"""What a network costs: floating point operations and memory, from the real module, a large one on tensors without contents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from diffusion_renderer.training.options import Precision

#: Networks of up to this many parameters are run.
SMALL = 3 * 10**7
#: A network on tensors without contents, and what to call to make it compute once.
Call = Callable[[nn.Module], Any]
#: Modules that are gathered one at a time when the weights are sharded over processes: the wrapped classes of the FSDP
#: configuration in docs/training.md. Networks without them are gathered whole.
UNITS = (
    "CrossAttnDownBlockSpatioTemporal",
    "DownBlockSpatioTemporal",
    "UNetMidBlockSpatioTemporal",
    "CrossAttnUpBlockSpatioTemporal",
    "UpBlockSpatioTemporal",
)


@dataclass(frozen=True)
class Cost:
    """Of one call of a network.

    Attributes
    ----------
    parameters, largest_unit : number of parameters that are trained, and of those of the largest of `UNITS`.
    forward : floating point operations of the call (a multiplication and an addition are two), without what is done per value.
    total : the same with the backward pass and, under gradient checkpointing, what is computed twice.
    peak : bytes alive at once at most, beside the parameters, their gradients and their copies in another precision.
    """

    parameters: int
    largest_unit: int
    forward: int
    total: int
    peak: int


def measure(
    build: Callable[[], nn.Module],
    call: Call,
    *,
    backward: bool,
    precision: Precision = "fp32",
    checkpointing: bool = False,
) -> Cost:
    """Cost of ``call`` on the network that ``build`` makes, with its backward pass or without any gradients.

    Of networks beyond `SMALL` nothing is computed and no memory is taken: tensors have shapes only. Smaller ones are run, which
    gives the same numbers (keeping books of shapes takes longer than computing them). The tensors are those of a CPU: the
    kernels of attention and of norms on a GPU may keep a little more or less, and a convolution's workspace is not seen at all.
    """
    with torch.device("meta"):
        network = build()
    small = sum(value.numel() for value in network.parameters()) <= SMALL
    with nullcontext() if small else FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        if small:
            network = build()
        else:
            _give_contents(network)
        network.train(backward)
        if checkpointing:
            network.enable_gradient_checkpointing()
        meter = _Meter(network.parameters())
        with meter, torch.set_grad_enabled(backward):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                outputs = call(network)
            forward = meter.operations
            if backward:
                sum(output.float().square().mean() for output in tree_leaves(outputs)).backward()
    units = [module for module in network.modules() if type(module).__name__ in UNITS]
    return Cost(
        parameters=count(network),
        largest_unit=max(map(count, units), default=count(network)),
        forward=forward,
        total=meter.operations,
        peak=meter.peak,
    )


def count(network: nn.Module) -> int:
    """Number of parameters that are trained."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _give_contents(network: nn.Module) -> None:
    """From the meta device, where some operations refuse to meet other tensors, to shapes that stand for a CPU's tensors.

    Made there first because drawing random numbers without contents takes longer than all that follows.
    """
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(value.shape, device="cpu"), value.requires_grad))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(value.shape, dtype=value.dtype, device="cpu"))


class _Meter(TorchDispatchMode):
    """Counts operations, and the bytes of storages from their making until nobody holds them any more.

    Not counted are gradients of parameters once they are complete, and casts of parameters: both are known from the number of
    parameters, and are sharded or not.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.operations, self.peak, self._alive = 0, 0, 0
        self._known: dict[int, tuple[Any, int]] = {}
        self._parameters = set()
        for parameter in parameters:
            self._parameters.add(_key(parameter))
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda owner: self._forget(_key(owner.grad)))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        if not (func._overloadpacket is torch.ops.aten._to_copy and _key(args[0]) in self._parameters):
            for value in tree_leaves(out):
                if isinstance(value, Tensor):
                    self._meet(value)
        return out

    def _meet(self, value: Tensor) -> None:
        storage, key = value.untyped_storage(), _key(value)
        if key in self._known or key in self._parameters:
            return
        self._known[key] = (ref(storage, lambda _: self._forget(key)), storage.nbytes())
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)

    def _forget(self, key: int) -> None:
        self._alive -= self._known.pop(key, (None, 0))[1]


def _key(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _attention(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Two matrix products: of queries and keys, of weights and values."""
    return 4 * query.shape[:-1].numel() * key.shape[-2] * query.shape[-1]


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, *__: Any, **___: Any) -> int:
    """Five matrix products: the weights anew, and the gradients of weights, queries, keys and values."""
    return 10 * query.shape[:-1].numel() * key.shape[-2] * query.shape[-1]


#: Operations that torch's own table does not have.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
