"""The adapter that clips with estimated buffers train: low-rank changes of layers (Hu et al. 2021; paper, section 4.3)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.models.lora import WEIGHTS_NAME

#: The name that peft gives the one adapter of a network.
NAME = "default"


class AdaptedUNet(nn.Module):
    """A UNet with an adapter that is either off, and only the UNet learns, or on, and only the adapter learns.

    Off, its output is the UNet's to the bit. The layers' change starts at zero. Its scale is 1 where it is on: the strength at
    inference is up to the caller of the renderer.

    What does not learn is left out of the graph, not frozen: processes that share the parameters (FSDP) settle which of them
    need gradients when they are first gathered, for good. So it works with DDP and FSDP alike.
    """

    def __init__(self, unet: nn.Module, ranks: Mapping[str, int]) -> None:
        """With a change of each named layer, linear or a convolution, of its rank."""
        super().__init__()
        # As expressions of whole names: peft takes plain ones for endings.
        exact = {f"^{re.escape(name)}$": rank for name, rank in ranks.items()}
        flags = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
        self._adapted, self._hidden = False, {}
        config = LoraConfig(target_modules="|".join(map(re.escape, ranks)), rank_pattern=exact, alpha_pattern=exact)
        self.unet = inject_adapter_in_model(config, unet, adapter_name=NAME)
        # The loop asks every module to keep fewer activations: the UNet is asked through here only.
        self.unet._supports_gradient_checkpointing = False
        self.layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, LoraLayer)}
        # peft freezes what it adapts; here both learn, in turns.
        for name, parameter in base_parameters(unet).items():
            parameter.requires_grad_(flags[name])
        own = set(map(id, base_parameters(unet).values()))
        for module in unet.modules():
            if any(id(parameter) in own for parameter in module.parameters(recurse=False)):
                module.register_forward_pre_hook(self._hide)
                module.register_forward_hook(self._show, always_call=True)

    def forward(self, *inputs: object, adapted: bool = False) -> Tensor:
        """The UNet's output, with the adapter or without."""
        with self._learning(adapted):
            return self.unet(*inputs)

    def enable_gradient_checkpointing(self) -> None:
        """Keep fewer activations; what is computed twice is computed alike both times."""

        def twice(module: nn.Module, *inputs: object) -> object:
            adapted = self._adapted  # of this call: it is computed again when another may be on
            contexts = lambda: (nullcontext(), self._learning(adapted))  # noqa: E731
            return checkpoint(module.__call__, *inputs, use_reentrant=False, context_fn=contexts)

        self.unet._supports_gradient_checkpointing = True
        self.unet.enable_gradient_checkpointing(twice)
        self.unet._supports_gradient_checkpointing = False

    @contextmanager
    def _learning(self, adapted: bool) -> Iterator[None]:
        """Only the adapter, or only the UNet, is part of the graph that is recorded meanwhile."""
        before, self._adapted = self._adapted, adapted
        # The flag itself, for peft's own switch freezes and thaws the layers as well.
        for layer in self.layers.values():
            layer._disable_adapters = not adapted
        try:
            yield
        finally:
            self._adapted = before
            for layer in self.layers.values():
                layer._disable_adapters = False

    def _hide(self, module: nn.Module, inputs: object) -> None:
        """While the adapter learns, a module of the UNet computes with copies of its parameters that no gradient reaches."""
        if self._adapted:
            self._hidden[module] = dict(module._parameters)
            for name, parameter in self._hidden[module].items():
                module._parameters[name] = None if parameter is None else parameter.detach()

    def _show(self, module: nn.Module, inputs: object, output: object) -> None:
        """Put the parameters back."""
        module._parameters.update(self._hidden.pop(module, {}))

    def base_state(self) -> dict[str, Tensor]:
        """The UNet's own parameters under its own names, as if there were no adapter."""
        state = self.unet.state_dict()
        return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}

    def save(self, folder: Path) -> None:
        """Write the adapter as diffusers does: ``pytorch_lora_weights.safetensors``, keys ``unet.<layer>.lora_A.weight``."""
        tensors = {}
        for name, layer in self.layers.items():
            for half in ("lora_A", "lora_B"):
                tensors[f"unet.{name}.{half}.weight"] = getattr(layer, half)[NAME].weight.detach().cpu().contiguous()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        """Go on from the adapter in ``folder``, one that `save` wrote. InputError when it does not fit."""
        path = folder / WEIGHTS_NAME
        advice = "use another --out, or the --lora-rank that it was trained with"
        try:
            tensors = load_file(path)
            with torch.no_grad():
                for name, layer in self.layers.items():
                    for half in ("lora_A", "lora_B"):
                        weight = getattr(layer, half)[NAME].weight
                        found = tensors.pop(f"unet.{name}.{half}.weight")
                        if found.shape != weight.shape:
                            raise ValueError(f"{name} of shape {tuple(found.shape)}, not {tuple(weight.shape)}")
                        weight.copy_(found)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise InputError(f"an adapter of this network in {path}", str(error), advice) from error
        if tensors:
            raise InputError(f"an adapter of this network in {path}", f"one of {next(iter(tensors))}", advice)


def saved_ranks(folder: Path) -> dict[str, int] | None:
    """The layers that the adapter in ``folder`` changes, and their ranks; None where there is none."""
    path = folder / WEIGHTS_NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            halves = {key: file.get_slice(key).get_shape()[0] for key in file.keys() if ".lora_A." in key}
    except (SafetensorError, OSError) as error:
        raise InputError(f"an adapter in {path}", str(error), "copy it again, or use another --out") from error
    if not halves:
        raise InputError(
            f"keys like unet.<layer>.lora_A.weight in {path}", "none", "save the adapter as peft does, or remove it"
        )
    return {key.removeprefix("unet.").removesuffix(".lora_A.weight"): rank for key, rank in halves.items()}


def all_layers(unet: nn.Module) -> list[str]:
    """Names of all linear layers and convolutions."""
    return [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)]


def attention_layers(unet: nn.Module) -> list[str]:
    """Names of the linear layers of all attention: queries, keys, values, outputs."""
    found = []
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            found += [f"{name}.{inner}" for inner, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return found


def base_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not an adapter's, under the names that they had without one."""
    named = unet.named_parameters()
    return {name.replace(".base_layer.", "."): parameter for name, parameter in named if ".lora_" not in name}
