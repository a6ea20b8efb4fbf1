"""``--solver`` on the command line."""

from __future__ import annotations

import pytest

from diffusion_renderer.cli import options
from diffusion_renderer.cli.app import parse
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.diffusion import SOLVERS


def test_the_command_line_knows_every_solver() -> None:
    assert options.SOLVERS == tuple(SOLVERS)
    for name in SOLVERS:
        assert parse(["inverse", "in.mp4", "-o", "out", "--solver", name]).solver == name
    assert parse(["relight", "in.mp4", "--light", "a.hdr", "-o", "out"]).solver is None


@pytest.mark.parametrize(("text", "nearest"), [("uni-pc", "unipc"), ("DPMPP_2M", "dpmpp-2m"), ("eular", "euler")])
def test_an_unknown_solver_names_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"--solver.*{text}.*did you mean {nearest}"):
        parse(["inverse", "in.mp4", "-o", "out", "--solver", text])
