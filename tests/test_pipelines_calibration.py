"""An inverse renderer's calibration: estimates drawn towards a centre, the background left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models_random import GROUPS, save_model

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip
from diffusion_renderer.pipelines import load_inverse

CLIP = Clip(torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0)))


def test_roughness_is_drawn_towards_its_centre_on_surfaces(tmp_path: Path) -> None:
    plain = load_inverse(save_model(tmp_path / "a", "inverse", groups=GROUPS), device="cpu")(CLIP)
    settings = {"groups": GROUPS, "calibration": {"roughness": [0.5, 0.4]}}
    drawn = load_inverse(save_model(tmp_path / "b", "inverse", **settings), device="cpu")(CLIP)
    surface = plain.depth < 0.9
    assert surface.any()
    assert torch.allclose(drawn.roughness[surface], (0.4 + 0.5 * (plain.roughness - 0.4))[surface], atol=1e-6)
    background = plain.depth >= 1
    assert torch.equal(drawn.roughness[background], plain.roughness[background])
    assert all(torch.equal(getattr(drawn, name), getattr(plain, name)) for name in ("basecolor", "normal", "depth", "metallic"))


def test_base_colour_is_drawn_as_it_is_encoded(tmp_path: Path) -> None:
    plain = load_inverse(save_model(tmp_path / "a", "inverse", groups=GROUPS), device="cpu")(CLIP)
    settings = {"groups": GROUPS, "calibration": {"basecolor": [0.9, 0.8]}}
    drawn = load_inverse(save_model(tmp_path / "b", "inverse", **settings), device="cpu")(CLIP)
    surface = (plain.depth < 0.9).expand_as(plain.basecolor)
    expected = 0.8 + 0.9 * (srgb_oetf(plain.basecolor) - 0.8)
    assert torch.allclose(srgb_oetf(drawn.basecolor)[surface], expected[surface], atol=1e-5)
    background = (plain.depth >= 1).expand_as(plain.basecolor)
    # There and back through the encoding.
    assert torch.allclose(drawn.basecolor[background], plain.basecolor[background], atol=1e-6)


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"normal": [0.5, 0.5]}, "none of basecolor, roughness, metallic"),
        ({"roughness": [0.0, 0.5]}, "not a gain"),
        ({"roughness": [1.0, 1.5]}, "not a gain"),
        ({"roughness": 1.0}, "usable settings"),
    ],
)
def test_what_cannot_be_a_calibration(calibration: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        load_inverse(save_model(tmp_path, "inverse", groups=GROUPS, calibration=calibration), device="cpu")
