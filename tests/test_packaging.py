"""The wheel installs, its entry point starts, weights and demo are inside; the lock file pins what pyproject.toml asks for."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "diffusion_renderer"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy, so that the tree stays clean."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = source / path.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_code_the_weights_and_the_demo(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    expected = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    for folder, suffixes in (("weights", (".json", ".safetensors")), ("demo", ("",))):
        for path in (PACKAGE / folder).rglob("*"):
            if path.is_file() and path.name.endswith(suffixes):
                expected.add(path.relative_to(PACKAGE.parent).as_posix())
    data = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.html")}
    assert expected | data <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_the_installed_command_starts(wheel, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = next(path for path in (target / "bin").iterdir() if path.stem == "diffusion-renderer")
    script = subprocess.run([str(command), "--help"], env=environment, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "relight" in script.stdout
    code = "import diffusion_renderer; print(diffusion_renderer.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert Path(where.stdout.strip()).is_relative_to(target)


def test_weights_fit_the_promised_size():
    weights = PACKAGE / "weights"
    if not weights.is_dir():
        pytest.skip("needs the trained weights in the package")
    assert sum(path.stat().st_size for path in weights.rglob("*.safetensors")) < 60e6
    assert not [path for path in weights.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def locked() -> dict[str, str]:
    lines = [
        Requirement(line) for line in (REPOSITORY / "requirements.lock").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    return {canonicalize_name(line.name): str(line.specifier) for line in lines}


def test_the_lock_pins_exact_versions_without_a_build():
    pins = locked()
    assert pins["torch"] == "==2.13.0"
    assert all(re.fullmatch(r"==[0-9][0-9a-z.]*", version) for version in pins.values()), pins
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_lock_covers_pyproject_with_all_extras():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    lines = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        lines += extra
    pins = locked()
    for line in map(Requirement, lines):
        name = canonicalize_name(line.name)
        assert name in pins, f"{name} is not locked: make lock"
        assert line.specifier.contains(pins[name].removeprefix("==")), f"{name} {pins[name]} does not satisfy {line}"


def test_ci_runs_the_tests():
    script = REPOSITORY / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "make test" in script.read_text()


def test_make_targets_are_there():
    """`make -n` resolves every promised target without running it."""
    for target in ("setup", "test", "demo", "lint", "clean"):
        result = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    shown = subprocess.run(["make", "-n", "demo", "INPUT=a b.mp4"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert 'demo "a b.mp4"' in shown.stdout
