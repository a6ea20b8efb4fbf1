"""The temporal decoder's blocks: equal to diffusers', on a CPU and with gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from models_random import LATENTS, random_vae
from torch import nn

from diffusion_renderer.models.temporal_decoder import EnlargingConv, FramesConv, FramesResBlock, use_diffusers_blocks


def pair() -> tuple[nn.Module, nn.Module]:
    """One decoder with our blocks and with diffusers', no weight of which is zero or one."""
    ours = random_vae().decoder
    generator = torch.Generator().manual_seed(5)
    for value in ours.parameters():
        if value.ndim < 2:
            value.data += 0.5 * torch.randn(value.shape, generator=generator)
    theirs = copy.deepcopy(ours)
    use_diffusers_blocks(theirs)
    return ours, theirs


def latents(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(frames, LATENTS, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("clips", "frames", "size"), [(1, 1, (4, 4)), (1, 4, (5, 7)), (2, 3, (4, 6)), (3, 1, (3, 2))])
def test_the_decoder_equals_diffusers(clips: int, frames: int, size: tuple[int, int]) -> None:
    ours, theirs = pair()
    assert not any(isinstance(module, (FramesResBlock, FramesConv, EnlargingConv)) for module in theirs.modules())
    given, still = latents(clips * frames, *size), torch.zeros(clips, frames)
    with torch.no_grad():
        expected, found = (network(given, still, frames) for network in (theirs, ours))
    # Outputs are of size 1.5. Worst measured: 7e-6.
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_the_input_is_kept() -> None:
    """What works in place works on its own values."""
    ours, _ = pair()
    given = latents(3, 4, 4).contiguous(memory_format=torch.channels_last)
    before = given.clone()
    block = ours.up_blocks[0].resnets[0]
    images = torch.randn(3, block.spatial_res_block.in_channels, 4, 4).contiguous(memory_format=torch.channels_last)
    kept = images.clone()
    with torch.no_grad():
        ours(given, torch.zeros(1, 3), 3)
        block(images, None, torch.zeros(1, 3))
    assert torch.equal(given, before) and torch.equal(images, kept)


def test_gradients_equal_those_of_diffusers() -> None:
    found = []
    for network in pair():
        given = latents(3, 4, 5).requires_grad_(True)
        network.requires_grad_(True)(given, torch.zeros(1, 3), 3).square().sum().backward()
        # The middle's attention has no turn in a decoder of one layer per block.
        found.append([given.grad, *(value.grad for value in network.parameters() if value.grad is not None)])
    # Relative to the largest gradient of all, for some are 0 but for rounding: biases before a norm of single channels.
    largest = max(float(theirs.abs().max()) for theirs in found[1])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * largest)


def test_parameters_keep_their_names() -> None:
    ours, theirs = pair()
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_an_enlarging_convolution_is_one_of_repeated_pixels() -> None:
    conv = EnlargingConv(3, 4, 3, padding=1)
    images = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    repeated = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    # Worst measured: 4e-7.
    torch.testing.assert_close(conv(images, enlarge=True), conv(repeated), rtol=0, atol=5e-6)
