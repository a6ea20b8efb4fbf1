"""Normals read from 8-bit files: no steps where a surface is even, and nothing that the file does not leave open."""

from __future__ import annotations

import torch

from diffusion_renderer import io
from diffusion_renderer.core.types import GBuffer
from diffusion_renderer.io.banding import TOP, without_steps


def bowl(height: int = 192, width: int = 320) -> torch.Tensor:
    """Unit normals that turn slowly and evenly, 3 height width: about 32 columns from one step of 8 bits to the next in x."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.nn.functional.normalize(torch.stack((0.04 * x + 0.01 * y, 0.3 + 0.03 * y, torch.ones_like(x))), dim=0)


def in_8_bits(normal: torch.Tensor) -> torch.Tensor:
    return ((0.5 * normal + 0.5) * TOP).round() / TOP


def test_slow_ramps_lose_their_steps() -> None:
    truth = 0.5 * bowl() + 0.5
    stored = in_8_bits(bowl())
    smooth = without_steps(stored)
    # Evenly rounded values are off by 0.29 steps (root mean square). Measured here: 0.29 before, 0.03 after in x, whose steps
    # are 32 pixels apart; where they are further apart, as in z, less is to be had.
    before, after = ((x[0] - truth[0]).square().mean().sqrt() * TOP for x in (stored, smooth))
    assert before > 0.25 and after < 0.06
    # From pixel to pixel a stair jumps by a whole step, the ramp climbs 0.03; 0.07 measured away from the image's edges.
    inner = slice(32, -32)
    assert (stored[0].diff(dim=1).abs().max() * TOP).round() == 1
    assert smooth[0, inner, inner].diff(dim=1).abs().max() * TOP < 0.15


def test_rounding_gives_the_same_bits_again() -> None:
    noise = torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(0))
    for image in (in_8_bits(bowl()), (noise * TOP).round() / TOP):
        assert ((without_steps(image) - image).abs() * TOP <= 0.5 + 1e-3).all()


def test_edges_texture_and_flat_areas_stay() -> None:
    flat = torch.full((3, 40, 40), 128 / TOP)
    torch.testing.assert_close(without_steps(flat), flat, atol=1e-6, rtol=0)
    edge = flat.clone()
    edge[:, :, 20:] = 200 / TOP
    torch.testing.assert_close(without_steps(edge), edge, atol=1e-6, rtol=0)
    noise = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) * TOP).round() / TOP
    torch.testing.assert_close(without_steps(noise), noise, atol=1e-6, rtol=0)


def test_more_than_8_bits_are_left_alone() -> None:
    image = ((0.5 * bowl() + 0.5) * 65535).round() / 65535
    assert without_steps(image) is image
    assert without_steps(torch.zeros(3, 0, 5)).shape == (3, 0, 5)


def test_read_from_png_but_not_from_exr(tmp_path) -> None:
    normal = bowl()[None]
    gbuffer = GBuffer(normal=normal, name="clip")
    errors = {}
    for suffix in ("png", "exr"):
        io.write_gbuffer(gbuffer, tmp_path / suffix, formats=(suffix,))
        for smooth in (False, True):
            files = io.open_gbuffer(tmp_path / suffix / "clip", smooth_normals=smooth)
            read = files.read(slice(0, 1))["normal"]
            assert torch.allclose(read.norm(dim=1), torch.ones(1, 192, 320), atol=1e-3)
            errors[suffix, smooth] = float((read - normal).square().mean().sqrt())
    # Half floats are off by 1e-4 at most; 8 bits by 2e-3, and by less than half of that without steps.
    assert errors["exr", True] == errors["exr", False] < 2e-4
    assert errors["png", True] < 0.5 * errors["png", False]
