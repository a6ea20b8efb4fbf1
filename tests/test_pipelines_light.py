"""The forward renderer without an environment encoder, the light as plain concatenation, on a tiny random model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from models_random import GROUPS, save_model
from test_pipelines import LIGHT, gbuffer_of, random

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import rotation_y
from diffusion_renderer.core.types import EnvironmentMap
from diffusion_renderer.models import LightInput
from diffusion_renderer.pipelines import DiffusionForwardRenderer, load_forward


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> DiffusionForwardRenderer:
    """As published: an environment encoder."""
    return load_forward(save_model(tmp_path_factory.mktemp("encoder"), "forward"), device="cpu")


@pytest.fixture(scope="module")
def concat(tmp_path_factory: pytest.TempPathFactory) -> DiffusionForwardRenderer:
    folder = save_model(tmp_path_factory.mktemp("concat"), "forward", groups=GROUPS, conditions=len(GROUPS) + 3, light="concat")
    shutil.rmtree(folder / "env_encoder")
    return load_forward(folder, device="cpu")


def test_light_and_its_rotation_matter(concat: DiffusionForwardRenderer) -> None:
    gbuffer = gbuffer_of(3, 16, 16)
    still = concat(gbuffer, LIGHT).frames
    assert torch.equal(still, concat(gbuffer, LIGHT, rotations=torch.eye(3).repeat(3, 1, 1)).frames)
    turned = concat(gbuffer, LIGHT, rotations=rotation_y(1.0).repeat(3, 1, 1)).frames
    darker = concat(gbuffer, EnvironmentMap(LIGHT.radiance * 0.1)).frames
    assert not torch.equal(still, turned) and not torch.equal(still, darker)


def test_guidance_of_a_concatenated_light(concat: DiffusionForwardRenderer) -> None:
    """In one step the result is linear in the guidance; its other end has neither conditions nor light."""
    condition, light = random(2, 24, 4, 4), random(1, 24, 3, 5, seed=1)
    noise = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    one, strong = (concat.denoise(condition, light, noise, 1, guidance=g) for g in (1.0, 1.5))
    free = concat.denoise(torch.zeros_like(condition), torch.zeros_like(light), noise, 1)
    assert (one - free).abs().max() > 1e-2
    # Worst measured: 2.4e-7, of latents up to 1.4.
    torch.testing.assert_close(strong, free + 1.5 * (one - free), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["forward", "concat"])
def test_a_light_dropped_in_training_is_dropped_in_inference(name: str, request: pytest.FixtureRequest) -> None:
    """Training multiplies the light by 0, inference replaces it by something cheaper: the network sees no difference."""
    model = request.getfixturevalue(name)
    given = model.light_reader(random(1, 2, 24, 4, 4), (8, 6))
    rest = random(1, 2, model.unet.config.in_channels - given.latents.shape[2], 8, 6, seed=1)

    def v(light: LightInput) -> torch.Tensor:
        with torch.no_grad():
            return model.predict(model.unet, light.beside(rest)[0], torch.tensor(0.5), light.features)

    gone = v(given.times(torch.zeros(1, 1, 1, 1, 1)))
    assert (v(given) - gone).abs().max() > 1e-4
    # Measured: 0 for both, of outputs up to 1.3; other processors may sum attention in another order.
    torch.testing.assert_close(v(given.dropped()), gone, rtol=0, atol=1e-5)


def test_a_concatenated_light_lies_on_the_frame_as_a_whole(concat: DiffusionForwardRenderer) -> None:
    """Shrunk, every pixel is averaged in (a sun cannot fall between samples); the images' order and place are kept."""
    sun = torch.zeros(1, 1, 24, 16, 16)
    sun[0, 0, 9, 9, 6] = 16.0
    small = concat.light_reader(sun, (8, 8)).latents
    # A quarter of the pixels. The filter reaches over two pixels; nearer to the border than that it is not exact.
    assert small.sum().item() == pytest.approx(16.0 / 4, rel=1e-5)
    assert small.flatten().argmax().item() == (9 * 8 + 4) * 8 + 3
    assert small[0, 0, [*range(9), *range(10, 24)]].abs().max() == 0
    large = concat.light_reader(torch.full((1, 1, 24, 8, 8), 0.7), (16, 24)).latents
    torch.testing.assert_close(large, torch.full((1, 1, 24, 16, 24), 0.7))


@pytest.mark.parametrize("frames", [1, 6])
def test_a_concatenated_light_over_any_number_of_frames(concat: DiffusionForwardRenderer, frames: int) -> None:
    """One frame, and more than the window of 4, under a light that turns."""
    rotations = torch.stack([rotation_y(0.5 * frame) for frame in range(frames)])
    gbuffer = gbuffer_of(frames, 20, 16)
    whole = concat(gbuffer, LIGHT, rotations=rotations, steps=2, guidance=1.5)
    assert whole.size == (20, 16) and len(whole) == frames and whole.frames.isfinite().all()
    pieces = [piece.frames for piece in concat.stream(gbuffer, LIGHT, rotations=rotations, steps=2, guidance=1.5)]
    assert torch.equal(torch.cat(pieces), whole.frames)


def test_every_window_sees_the_light_of_its_own_frames(concat: DiffusionForwardRenderer) -> None:
    """In one step, a light that changes in frames 4 to 6 leaves those before the second window (3 to 6) as they were."""
    condition, noise = random(7, 24, 4, 4), torch.randn(7, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    light = random(7, 24, 4, 4, seed=1)
    other = torch.cat((light[:4], light[:3]))
    a, b = (concat.denoise(condition, seen, noise, 1) for seen in (light, other))
    assert torch.equal(a[:3], b[:3])
    assert ((a - b)[4:].abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_a_concatenated_light_needs_its_channels(tmp_path: Path) -> None:
    save_model(tmp_path, "forward", groups=GROUPS, conditions=5, light="concat")
    with pytest.raises(InputError, match=r"6 condition images.* 3 of them the light's.* found one for 5") as caught:
        load_forward(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)
