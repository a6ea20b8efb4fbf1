"""The import contracts of pyproject.toml hold, and would be noticed if they did not; importing the package is cheap."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LINT = "from importlinter.cli import lint_imports_command as lint; lint()"


def lint(folder: Path) -> subprocess.CompletedProcess:
    # The folder's own sources come first, ahead of an installed package.
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    command = [sys.executable, "-c", LINT, "--no-cache", "--config", str(folder / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_imports_point_downwards():
    pytest.importorskip("importlinter", reason="needs import-linter (extra `dev`)")
    result = lint(REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_planted_upward_import_is_caught(tmp_path):
    pytest.importorskip("importlinter", reason="needs import-linter (extra `dev`)")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(
        REPOSITORY / "src" / "diffusion_renderer",
        tmp_path / "src" / "diffusion_renderer",
        ignore=lambda folder, names: [name for name in names if Path(folder, name).is_file() and not name.endswith(".py")],
    )
    (tmp_path / "src" / "diffusion_renderer" / "core" / "planted.py").write_text("import diffusion_renderer.io\n")
    result = lint(tmp_path)
    assert result.returncode != 0
    assert "core.planted" in result.stdout


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "numpy", "mitsuba", "diffusers", "transformers", "av", "OpenEXR", "PIL", "tyro")
    code = f"import sys, diffusion_renderer; print(*[name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
