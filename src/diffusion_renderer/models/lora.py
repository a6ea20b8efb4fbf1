"""LoRA adapters with a scale per call, without shared state: every scale has a view of the network of its own."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
#: Networks of other scales kept for reuse: views, which hold module objects only, no weights, and copies.
KEPT_VIEWS, KEPT_COPIES = 8, 2
#: A network on a CPU of at most so many bytes is copied and the adapter's change added to the copy's weights: two convolutions
#: more in every layer took as long as the network itself (`tiny`: 0.39 s in place of 0.21 s for 8 frames, one core).
FUSED_BYTES = 2**27
_KEY = re.compile(r"^(?:unet\.)?(?P<module>.+?)\.(?:lora\.(?P<old>down|up)|lora_(?P<new>[AB]))\.weight$")
_ALPHA = re.compile(r"^(?:unet\.)?(?P<module>.+?)\.(?:lora\.)?alpha$")


def view(network: nn.Module) -> nn.Module:
    """A copy of a network's module tree that shares every parameter and buffer with it."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


class LoraNetwork:
    """A network and one adapter: `at_scale` gives the network with ``scale`` times the adapter's change added.

    Small networks on a CPU are copied for that (`FUSED_BYTES`), others share their weights. The network given is not changed.
    Threads may ask for different scales at the same time: a network whose scale is set never changes again.

    Attributes
    ----------
    network, adapted : without the adapter, and with it at scale 1.
    prepare : called once with every network of another scale than 0 before it is handed out, such as to compile it.
    """

    def __init__(self, network: nn.Module, adapter: Path) -> None:
        """Read the adapter; InputError when the file is broken or belongs to another network."""
        self.network = network
        self.adapted = _inject(view(network), *_read_adapter(adapter), source=adapter)
        self.prepare: Callable[[nn.Module], None] | None = None
        self._views: dict[float, nn.Module] = {}
        self._lock = Lock()

    def at_scale(self, scale: float) -> nn.Module:
        """The network at this scale; the plain network at 0."""
        if scale == 0:
            return self.network
        with self._lock:
            if scale not in self._views:
                fused = _is_small(self.adapted)
                scaled = copy.deepcopy(self.adapted) if fused else view(self.adapted)
                for layer in [module for module in scaled.modules() if isinstance(module, LoraLayer)]:
                    layer.scaling = {name: scale * value for name, value in layer.scaling.items()}
                    if fused:
                        layer.merge()
                if self.prepare is not None:
                    self.prepare(scaled)
                while len(self._views) >= (KEPT_COPIES if fused else KEPT_VIEWS):
                    self._views.pop(next(iter(self._views)))
                self._views[scale] = scaled
            return self._views[scale]


def _is_small(network: nn.Module) -> bool:
    """Whether there is memory to copy it."""
    weights = list(network.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return size <= FUSED_BYTES and all(weight.device.type == "cpu" for weight in weights)


def _read_adapter(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """(down and up matrices, alpha) of each adapted module, from diffusers' old or peft's key names."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"a readable LoRA file {path}", f"{error}", "download or copy it again") from error
    matrices: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        if match := _KEY.match(key):
            part = "A" if match["old"] == "down" or match["new"] == "A" else "B"
            matrices.setdefault(match["module"], {})[part] = tensor
        elif match := _ALPHA.match(key):
            alphas[match["module"]] = float(tensor)
        else:
            raise InputError(
                f"LoRA keys like 'unet.<module>.lora.down.weight' in {path}", key, "save the adapter with diffusers"
            )
    return matrices, alphas


def _inject(network: nn.Module, matrices: dict[str, dict[str, Tensor]], alphas: dict[str, float], source: Path) -> nn.Module:
    """Put the adapter's matrices into the network's layers, at scale 1."""
    modules = dict(network.named_modules())
    unfit = [name for name, pair in matrices.items() if not _fits(modules.get(name), pair)]
    if unfit or not matrices:
        found = f"{unfit[0]} (and {len(unfit) - 1} more)" if unfit else "no adapter"
        raise InputError(f"an adapter for this network in {source}", found, "use the LoRA that came with the checkpoint")
    ranks = {name: pair["A"].shape[0] for name, pair in matrices.items()}
    config = LoraConfig(
        r=1,
        target_modules=list(matrices),
        # Anchored: peft matches these as suffix patterns.
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items()},
        alpha_pattern={f"^{re.escape(name)}": alphas.get(name, rank) for name, rank in ranks.items()},
    )
    training = network.training
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    inject_adapter_in_model(config, network)
    for name, flag in flags.items():
        # peft freezes what it adapts; the base parameters are shared with the caller's network, whose flags are not ours.
        owner, _, leaf = name.rpartition(".")
        holder = network.get_submodule(owner)
        getattr(holder.base_layer if isinstance(holder, LoraLayer) else holder, leaf).requires_grad_(flag)
    with torch.no_grad():
        for name, pair in matrices.items():
            layer = network.get_submodule(name)
            layer.lora_A["default"].weight.copy_(pair["A"])
            layer.lora_B["default"].weight.copy_(pair["B"])
            for half in (layer.lora_A, layer.lora_B):
                half.to(device=layer.base_layer.weight.device, dtype=layer.base_layer.weight.dtype).requires_grad_(False)
    return network.train(training)


def _fits(module: nn.Module | None, pair: dict[str, Tensor]) -> bool:
    """Linear layers, and convolutions: down with the layer's own kernel, up with one of a single pixel."""
    if not isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) or set(pair) != {"A", "B"}:
        return False
    down, up = pair["A"].shape, pair["B"].shape
    rank, wanted = down[0], module.weight.shape
    return down[1:] == wanted[1:] and up == (wanted[0], rank, *(1,) * (len(wanted) - 2))
