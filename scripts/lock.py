"""Write requirements.lock: the exact version of everything that pyproject.toml asks for, as installed here.

Run it with the virtual environment whose versions are known to work: ``.venv/bin/python scripts/lock.py``. It walks the
requirements (the extras `data` and `dev` included) through the installed distributions, so what happens to be installed but
is not needed stays out. Packages that only other systems need are taken from `ELSEWHERE`.

It cannot choose versions: it records those at hand, and stops when one is missing.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
#: pip uses no resolver with this file (--no-deps), so packages of other systems must be named here.
ELSEWHERE = ("colorama==0.4.6 ; sys_platform == 'win32'",)
#: The GPU builds of torch ask for these; pip takes the right ones when torch itself is installed.
OF_TORCH = ("triton", "nvidia", "cuda")
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
)
HEADER = """\
# The exact versions this project is tested with; `make setup` installs them with --no-deps, after torch (see Makefile).
# Written by scripts/lock.py from a working environment. Valid for Python 3.11 to 3.13.
"""


def wanted(requirement: Requirement, extra: str = "") -> bool:
    """Whether some supported Python on some supported system needs the requirement."""
    if requirement.marker is None:
        return True
    environments = (
        {**system, "python_version": python, "python_full_version": f"{python}.0", "extra": extra}
        for python in PYTHONS
        for system in SYSTEMS
    )
    return any(requirement.marker.evaluate(environment) for environment in environments)


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Canonical name -> installed version of the requirements and all that they need."""
    versions: dict[str, str] = {}
    visited: set[tuple[str, str]] = set()
    queue = [(requirement, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    elsewhere = {canonicalize_name(Requirement(line).name) for line in ELSEWHERE}
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in visited or name in elsewhere or name.startswith(OF_TORCH):
            continue
        visited.add((name, extra))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{name} is needed but not installed here: install it, test, then lock again") from None
        versions[name] = found.version.split("+")[0]  # no local version: +cpu is the choice of the index, not of the lock
        children = [Requirement(line) for line in found.requires or ()]
        queue += [(child, grand) for child in children if wanted(child, extra) for grand in ("", *child.extras)]
    return versions


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        lines += extra
    versions = closure([Requirement(line) for line in lines])
    pinned = sorted([f"{name}=={version}" for name, version in versions.items()] + list(ELSEWHERE))
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(pinned) + "\n")
    print(f"requirements.lock: {len(pinned)} packages")


if __name__ == "__main__":
    main()
