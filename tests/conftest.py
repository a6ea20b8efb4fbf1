"""Shared by all tests: shapes and types are checked at run time, and the folder of shared material is found."""

from __future__ import annotations

import os
from pathlib import Path

import jaxtyping
import pytest

# Before torch loads: tensors of tests are tiny, and threads that wait for each other take many times longer on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports the package: modules imported earlier would go unchecked (tests/test_core_types.py notices).
jaxtyping.install_import_hook("diffusion_renderer", "typechecker.checked")


def shared_folder() -> Path:
    """The folder beside the repository with assets and conformance numbers; SHARED_DIR overrides it."""
    return Path(os.environ.get("SHARED_DIR") or Path(__file__).resolve().parents[2] / "shared")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as users run it, without the run-time checks, which would come before our own errors."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder; the test is skipped where there is none."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder at {folder} (or SHARED_DIR)")
    return folder


@pytest.fixture(scope="session")
def published_environment() -> Path:
    """The folder ``env`` of published environment images: in CONFORMANCE_DIR when set, else in the shared folder."""
    root = os.environ.get("CONFORMANCE_DIR")
    folder = (Path(root) if root else shared_folder() / "conformance") / "env"
    if not (folder / "published.safetensors").is_file():
        pytest.skip(f"needs published.safetensors and its panoramas in {folder}; set CONFORMANCE_DIR")
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Beartype's opinion about ``typing.Callable`` is not ours to test."""
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")
