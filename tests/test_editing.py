"""Editing: how lights are placed, named and scaled; relighting with any pair of renderers."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import look_at, rotation_x, rotation_y
from diffusion_renderer.core.types import Camera, Clip, EnvironmentMap, GBuffer
from diffusion_renderer.editing import (
    STILL_FRAMES,
    LightOptions,
    Shot,
    distinct_names,
    hold_frame,
    light_rotations,
    light_scale,
    relight,
    scaled,
)
from diffusion_renderer.pipelines import RendererSettings


def moving_camera(frames: int) -> Camera:
    eyes = [torch.tensor([math.sin(a), 0.5, math.cos(a)]) for a in torch.linspace(0, 1, frames).tolist()]
    return Camera(torch.stack([look_at(eye, torch.zeros(3)) for eye in eyes]), torch.full((frames,), 50.0))


def buffers(frames: int, name: str = "shot") -> GBuffer:
    levels = torch.linspace(0.1, 0.9, frames).view(-1, 1, 1, 1)
    one, three = levels.expand(-1, 1, 4, 6), levels.expand(-1, 3, 4, 6)
    return GBuffer(three, three, one, one, one, name=name)


class FlatInverse:
    """Every buffer is the frame's own red."""

    settings = RendererSettings()

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, clip, *, buffers=(), steps=None, seed=0, size=None, progress=None):
        self.calls += 1
        one = clip.frames[:, :1]
        return GBuffer(clip.frames, clip.frames, one, one, one, name=clip.name)


class FlatForward:
    """Base colour times the light's mean; remembers what it was called with."""

    settings = RendererSettings(kind="forward")

    def __call__(self, gbuffer, light, *, rotations=None, **options):
        self.rotations, self.options = rotations, options
        frames = srgb_oetf(gbuffer.basecolor * light.radiance.mean())
        return Clip(frames, gbuffer.fps, gbuffer.name)


def test_light_stays_with_the_camera_by_default():
    assert torch.equal(light_rotations(3, LightOptions()), torch.eye(3).expand(3, 3, 3))


def test_light_stays_with_the_world_when_cameras_are_known():
    camera = moving_camera(4)
    assert torch.equal(light_rotations(4, LightOptions(), camera), camera.rotation)
    assert torch.equal(light_rotations(4, LightOptions(frame="camera"), camera), torch.eye(3).expand(4, 3, 3))


def test_rotating_light_turns_once_both_ends_included():
    turned = light_rotations(5, LightOptions(rotate=True))
    for frame in range(5):
        assert torch.allclose(turned[frame], rotation_y(2 * math.pi * frame / 4), atol=1e-6)


def test_turns_act_on_the_world_after_the_camera():
    camera = moving_camera(3)
    options = LightOptions(rotate=True, yaw=30.0, elevation=20.0)
    expected = [
        rotation_y(math.pi * i) @ rotation_y(math.radians(30)) @ rotation_x(math.radians(20)) @ camera.rotation[i]
        for i in range(3)
    ]
    # Products of four float32 rotations: 2e-7 measured.
    assert torch.allclose(light_rotations(3, options, camera), torch.stack(expected), atol=1e-6)


def test_a_light_in_the_world_needs_cameras_for_every_frame():
    with pytest.raises(InputError, match="--cameras"):
        light_rotations(3, LightOptions(frame="world"))
    with pytest.raises(InputError, match="2 in the cameras"):
        light_rotations(3, LightOptions(), moving_camera(2))


def test_held_frame_fills_the_clip():
    held = hold_frame(buffers(5), 3, 7)
    assert len(held) == 7
    assert torch.equal(held.basecolor, buffers(5).basecolor[3:4].expand(7, -1, -1, -1))
    with pytest.raises(InputError, match="frame 5"):
        hold_frame(buffers(5), 5, 7)


@pytest.mark.parametrize(
    ("available", "frames", "length"), [(1, None, STILL_FRAMES), (5, None, 5), (1, 9, 9), (5, 9, 9), (5, 2, 2)]
)
def test_length_of_a_held_shot(available, frames, length):
    assert len(Shot(static_frame=0, frames=frames).rotations(available)) == length


def test_a_held_frame_holds_its_camera():
    camera = moving_camera(5)
    rotations = Shot(camera=camera, static_frame=2, frames=8).rotations(5)
    assert torch.equal(rotations, camera.rotation[2].expand(8, 3, 3))


def test_fewer_frames_take_the_first_cameras():
    camera = moving_camera(5)
    assert torch.equal(Shot(camera=camera, frames=3).rotations(3), camera.rotation[:3])
    with pytest.raises(InputError, match="5 in the cameras"):
        Shot(camera=camera).rotations(3)


def test_names_are_distinct_and_keep_what_is_unique():
    assert distinct_names(["sky", "sun", "sky"]) == ["sky", "sun", "sky-2"]
    names = distinct_names(["sky", "sun", "sky", "Sky", "sky-2"])
    assert names[:2] == ["sky", "sun"]
    assert len({name.casefold() for name in names}) == 5
    assert distinct_names(["a", "b"]) == ["a", "b"]
    assert distinct_names(["a", "a-2", "a"]) == ["a", "a-2", "a-3"]


def test_scale_brings_a_panorama_into_the_known_range_of_brightness():
    panorama = EnvironmentMap(torch.full((3, 8, 16), 4.0))
    known = RendererSettings(kind="forward", light_luminance=(0.25, 0.5))
    assert light_scale(panorama, known) == pytest.approx(0.125, rel=1e-5)
    assert light_scale(EnvironmentMap(torch.full((3, 8, 16), 0.1)), known) == pytest.approx(2.5, rel=1e-5)
    assert light_scale(EnvironmentMap(torch.full((3, 8, 16), 0.3)), known) == pytest.approx(1.0, rel=1e-5)
    assert light_scale(panorama, RendererSettings(kind="forward")) == 1.0
    black = EnvironmentMap(torch.zeros(3, 8, 16))
    assert light_scale(black, known) == 1.0
    assert scaled(panorama, 1.0) is panorama
    assert torch.equal(scaled(panorama, 0.5).radiance, torch.full((3, 8, 16), 2.0))


def test_relight_estimates_buffers_once_for_all_lights():
    inverse, forward = FlatInverse(), FlatForward()
    clip = Clip(torch.rand(4, 3, 6, 8), 12.0, "shot")
    lights = [EnvironmentMap(torch.full((3, 4, 8), value), name="sky") for value in (0.5, 1.0)]
    shot = Shot(LightOptions(rotate=True))
    relit = relight(clip, lights, inverse, forward, shot=shot, forward_options={"guidance": 1.5})
    assert inverse.calls == 1 and forward.options == {"camera": None, "guidance": 1.5}
    assert [item.name for item in relit.clips] == ["shot_sky", "shot_sky-2"]
    assert torch.allclose(relit.clips[0].frames, srgb_oetf(0.5 * clip.frames))
    assert torch.allclose(relit.clips[1].frames, srgb_oetf(clip.frames))
    assert torch.equal(forward.rotations, light_rotations(4, LightOptions(rotate=True)))
