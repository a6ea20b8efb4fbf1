"""Classical renderers by name, wherever a forward renderer is: the command line, relighting, the Python call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthetic import synthetic_clip

import diffusion_renderer as dr
from diffusion_renderer.cli import main
from diffusion_renderer.core.types import Clip, EnvironmentMap, GBuffer
from diffusion_renderer.editing import FORWARD_NAMES, check_model, load_forward
from diffusion_renderer.pipelines import ForwardRenderer


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    """G-buffers of a ball in a folder, beside a panorama and cameras."""
    sample = synthetic_clip(1, frames=2)
    sample.gbuffer.write(tmp_path / "gbuffers", formats=("exr",))
    EnvironmentMap(torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(0))).write(tmp_path / "sky.exr")
    sample.camera.write(tmp_path / "cameras.json")
    return tmp_path


def rendered(folder: Path) -> Clip:
    return Clip.read(folder / "out" / "sphere1_sky")


@pytest.mark.parametrize("name", ["splitsum", "ssrt"])
def test_forward_with_a_classical_renderer(name: str, shot: Path) -> None:
    command = ["forward", str(shot / "gbuffers"), "--light", str(shot / "sky.exr"), "--model", name, "-o", str(shot / "out")]
    assert main([*command, "--format", "png"]) == 0
    frames = rendered(shot).frames
    ball = GBuffer.read(shot / "gbuffers" / "sphere1").normal.abs().sum(dim=1, keepdim=True) > 0
    assert frames.shape == (2, 3, 32, 32) and frames.std() > 0.02
    # The lit side is where the panorama is; the background shows the panorama itself.
    assert not torch.allclose(frames[ball.expand_as(frames)].mean(), frames[~ball.expand_as(frames)].mean(), atol=1e-3)


def test_the_field_of_view_comes_from_the_cameras(shot: Path) -> None:
    gbuffer = GBuffer.read(shot / "gbuffers" / "sphere1")
    camera = dr.Camera.read(shot / "cameras.json")
    light = EnvironmentMap.read(shot / "sky.exr")
    render = load_forward("splitsum")
    narrow = dr.Camera(camera.pose, torch.full_like(camera.fov_x, 20.0))
    assert not torch.allclose(render(gbuffer, light, camera=narrow).frames, render(gbuffer, light, camera=camera).frames)


def test_the_path_tracer_needs_the_scene(shot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["forward", str(shot / "gbuffers"), "--light", str(shot / "sky.exr"), "--model", "pathtrace"]
    assert main([*command, "-o", str(shot / "out")]) == 2
    assert "--geometry" in capsys.readouterr().err


def test_the_path_tracer_on_the_command_line(shot: Path) -> None:
    pytest.importorskip("mitsuba", reason="needs the extra `data` (mitsuba)")
    (shot / "ball.obj").write_text("v -1 -1 -3\nv 1 -1 -3\nv 0 1 -3\nf 1 2 3\n")
    command = [
        "forward",
        str(shot / "gbuffers"),
        "--light",
        str(shot / "sky.exr"),
        "--model",
        "pathtrace",
        "-o",
        str(shot / "out"),
    ]
    more = ["-o", str(shot / "out"), "--geometry", str(shot / "ball.obj"), "--cameras", str(shot / "cameras.json")]
    assert main([*command, *more, "--format", "png"]) == 0
    assert rendered(shot).frames.shape == (2, 3, 32, 32)


def test_relight_with_a_classical_renderer(shot: Path) -> None:
    Clip(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), name="still").write(shot / "still.png")
    command = ["relight", str(shot / "still.png"), "--light", str(shot / "sky.exr"), "--forward-model", "splitsum"]
    assert main([*command, "-o", str(shot / "out"), "--format", "png"]) == 0
    assert Clip.read(shot / "out" / "still_sky").frames.shape == (1, 3, 32, 32)


def test_eight_bit_normals_leave_no_steps_in_the_picture(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 256).expand(1, 1, 128, 256)
    normal = torch.nn.functional.normalize(torch.cat((0.04 * x, 0 * x, torch.ones_like(x)), dim=1), dim=1)
    one = torch.ones_like(x)
    plane = GBuffer(one.expand(-1, 3, -1, -1), normal, 0.5 * one, 0.1 * one, one, name="plane")
    stripes = (torch.arange(64) % 8 < 4).float().expand(3, 32, 64)
    EnvironmentMap(stripes).write(tmp_path / "sky.exr")
    pictures = {}
    for suffix in ("exr", "png"):
        plane.write(tmp_path / suffix, formats=(suffix,))
        command = ["forward", str(tmp_path / suffix), "--light", str(tmp_path / "sky.exr"), "--model", "splitsum"]
        assert main([*command, "-o", str(tmp_path / "out" / suffix), "--format", "exr"]) == 0
        pictures[suffix] = Clip.read(tmp_path / "out" / suffix / "plane_sky").frames
    as_stored = load_forward("splitsum")(GBuffer.read(tmp_path / "png" / "plane"), EnvironmentMap.read(tmp_path / "sky.exr"))
    stairs, smooth = ((each - pictures["exr"]).square().mean().sqrt() for each in (as_stored.frames, pictures["png"]))
    # Measured: 0.016 as the file has it, 0.003 without steps.
    assert smooth < 0.4 * stairs


def test_names_are_known_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"tiny", "splitsum", "ssrt", "pathtrace"} <= set(FORWARD_NAMES)
    for name, kind, said in (
        ("splitsun", "forward", "did you mean splitsum"),
        ("splitsum", "inverse", "a forward renderer"),
        ("pathtrace", "forward", "geometry"),
    ):
        with pytest.raises(dr.InputError, match=said):
            check_model(name, kind)
    assert isinstance(load_forward("splitsum"), ForwardRenderer) and isinstance(load_forward("ssrt"), ForwardRenderer)
