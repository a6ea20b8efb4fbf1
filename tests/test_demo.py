"""`demo`: buffers, three relit clips, the sheet, a self-contained page; errors where there is ground truth."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models_random import save_shared_model
from PIL import Image

import diffusion_renderer as dr
from diffusion_renderer import io
from diffusion_renderer.cli import main, showcase
from diffusion_renderer.core.types import DEFAULT_BUFFERS

LIGHTS = ("evening", "rotating_studio", "sky")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_shared_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    """Assets in the package's layout: a clip with true buffers, three lights, the clip under each."""
    folder = tmp_path / "assets"
    generator = torch.Generator().manual_seed(0)
    clip = dr.Clip(torch.rand(2, 3, 16, 24, generator=generator), 12.0, "clip")
    one = torch.rand(2, 1, 16, 24, generator=generator)
    normal = torch.nn.functional.normalize(torch.randn(2, 3, 16, 24, generator=generator), dim=1)
    io.write_clip(clip, folder)
    io.write_gbuffer(dr.GBuffer(clip.frames**2, normal, one, one, one, mask=one > 0.2, name="clip"), folder)
    for name in LIGHTS:
        dr.EnvironmentMap(torch.rand(3, 8, 16, generator=generator)).write(folder / "lights" / f"{name}.exr")
        io.write_clip(replace(clip, name=name), folder / "relit")
    monkeypatch.setattr(showcase, "ASSETS", folder)
    return folder


def numbers_in(page: str) -> dict[str, float]:
    cells = re.findall(r"<tr><td>([^<]+)</td><td>[^<]*</td><td>([^<]+)</td></tr>", page)
    return {name: float(value) for name, value in cells}


def test_the_packages_clip_is_relit_and_compared(assets, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["demo", "-o", str(out), "--model", str(model)]) == 0
    for name in DEFAULT_BUFFERS:
        assert (out / "demo" / f"0001.{name}.png").is_file() and (out / f"demo.{name}.mp4").is_file()
    for light in LIGHTS:
        assert (out / f"demo_{light}" / "0001.rgb.png").is_file() and (out / f"demo_{light}.rgb.mp4").is_file()
    assert Image.open(out / "sheet.png").width > 400
    page = (out / "index.html").read_text()
    # Input, five buffers and three relit clips, the last two also as ground truth.
    assert page.count("<video ") == 1 + 2 * 5 + 2 * 3
    assert "http://" not in page and "https://" not in page and 'src="data:video/mp4' in page
    numbers = numbers_in(page)
    assert set(numbers) == {"basecolor", "normal", "roughness", "metallic", *(f"relit by {light}" for light in LIGHTS)}
    # A random network knows nothing: its normals are off by about a right angle.
    assert 45 < numbers["normal"] < 135
    shown = capsys.readouterr().out
    assert str(out / "index.html") in shown and str(out / "sheet.png") in shown and "done in" in shown


def test_the_numbers_are_those_of_the_files(assets, model, tmp_path):
    out = tmp_path / "out"
    assert main(["demo", "-o", str(out), "--model", str(model)]) == 0
    estimate, truth = dr.Clip.read(out / "demo_sky").frames, dr.Clip.read(assets / "relit" / "sky").frames
    expected = -10 * torch.log10(((estimate - truth) ** 2).mean()).item()
    # The page rounds to three digits.
    assert numbers_in((out / "index.html").read_text())["relit by sky"] == pytest.approx(expected, rel=5e-3)


def test_the_rotating_light_turns_and_the_others_rest(assets, model, tmp_path, monkeypatch):
    seen = {}
    make = showcase.Session.make_relit

    def spy(self, gbuffer, result, light, lighting, shot):
        seen[light.name] = shot.lighting.rotate
        return make(self, gbuffer, result, light, lighting, shot)

    monkeypatch.setattr(showcase.Session, "make_relit", spy)
    assert main(["demo", "-o", str(tmp_path / "out"), "--model", str(model)]) == 0
    assert seen == {"evening": False, "rotating_studio": True, "sky": False}


def test_the_users_clip_has_no_ground_truth(assets, model, tmp_path):
    dr.Clip(torch.rand(3, 3, 10, 14), 10.0).write(tmp_path / "mine.mp4")
    out = tmp_path / "out"
    assert main(["demo", str(tmp_path / "mine.mp4"), "-o", str(out), "--model", str(model)]) == 0
    page = (out / "index.html").read_text()
    assert page.count("<video ") == 1 + 5 + 3 and "ground truth" not in page
    assert len(dr.Clip.read(out / "mine_rotating_studio")) == 3


def test_a_second_run_keeps_the_pictures(assets, model, tmp_path, capsys):
    line = ["demo", "-o", str(tmp_path / "out"), "--model", str(model)]
    assert main(line) == 0
    capsys.readouterr()
    assert main(line) == 0
    assert capsys.readouterr().err.count("complete already") == 4


def test_assets_that_are_missing_are_one_line(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(showcase, "ASSETS", tmp_path / "nothing")
    assert main(["demo", "-o", str(tmp_path / "out"), "--model", str(model)]) == 2
    assert capsys.readouterr().err.startswith("error: expected the demo's lights")


def test_the_shipped_assets_are_whole(model, tmp_path):
    if not (showcase.ASSETS / "clip").is_dir():
        pytest.skip("needs the demo's assets in the package (scripts/make_demo_assets.py)")
    lights = sorted(path.stem for path in (showcase.ASSETS / "lights").iterdir())
    assert len(lights) == 3 and sum("rotating" in name for name in lights) == 1
    assert {path.name for path in (showcase.ASSETS / "relit").iterdir()} == set(lights)
    assert main(["demo", "-o", str(tmp_path), "--model", str(model), "--frames", "2"]) == 0
    assert len(numbers_in((tmp_path / "index.html").read_text())) == 7
