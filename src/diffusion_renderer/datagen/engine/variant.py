"""Which variant of Mitsuba works on this machine.

A variant that does not work may not raise but abort the process (LLVM 15: "Cannot select fminimum"), so each is tried in a
child process first. The LLVM variants need a shared library of LLVM 16 or newer; it is looked for in the usual places.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import re
import subprocess
import sys
import warnings
from typing import Any

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.settings import VARIANTS

_LLVM_PATTERNS = (
    "/usr/lib/*/libLLVM*.so*",
    "/usr/lib/llvm-*/lib/libLLVM*.so*",
    "/usr/lib64/libLLVM*.so*",
    "/usr/lib64/llvm*/lib/libLLVM*.so*",
    "/usr/local/lib/libLLVM*.so*",
    "/opt/homebrew/opt/llvm*/lib/libLLVM*.dylib",
    "/usr/local/opt/llvm*/lib/libLLVM*.dylib",
)
#: LLVM versions in the order of trust: 19 was run for days, the others are expected to work, older ones abort.
_LLVM_TRUSTED, _LLVM_OLDEST = 19, 16

# Everything a clip uses: a mesh, the material with its textures, an environment map, a batch of cameras, path tracing.
_PROBE = """
import sys
import mitsuba as mi
mi.set_variant(sys.argv[1])
import numpy as np
texture = {"type": "bitmap", "bitmap": mi.Bitmap(np.full((2, 2, 3), 0.5, dtype=np.float32)), "raw": True}
grey = {"type": "bitmap", "bitmap": mi.Bitmap(np.full((2, 2, 1), 0.5, dtype=np.float32)), "raw": True}
scene = mi.load_dict({
    "type": "scene",
    "integrator": {"type": "path", "max_depth": 3},
    "light": {"type": "envmap", "bitmap": mi.Bitmap(np.ones((4, 8, 3), dtype=np.float32))},
    "shape": {"type": "cube", "bsdf": {"type": "principled", "base_color": texture, "roughness": grey, "metallic": grey}},
    "sensor": {"type": "batch", "a": {"type": "perspective", "to_world": mi.ScalarTransform4f().translate([0, 0, -4])},
               "film": {"type": "hdrfilm", "width": 8, "height": 8, "rfilter": {"type": "box"}}},
})
image = np.array(mi.render(scene, spp=2))
sys.exit(0 if np.isfinite(image).all() and image.max() > 0 else 1)
"""


def find_llvm() -> str | None:
    """Path of an LLVM shared library that Dr.Jit can use, or None. An explicit DRJIT_LIBLLVM_PATH wins."""
    explicit = os.environ.get("DRJIT_LIBLLVM_PATH")
    if explicit:
        return explicit
    found: dict[int, str] = {}
    for pattern in _LLVM_PATTERNS:
        for path in sorted(glob.glob(pattern)):
            version = _llvm_version(path)
            if version is not None and version >= _LLVM_OLDEST:
                found.setdefault(version, path)
    if not found:
        return None
    return found[min(found, key=lambda version: (abs(version - _LLVM_TRUSTED), version))]


def _llvm_version(path: str) -> int | None:
    """Major version in a library's name or folder: libLLVM-19.so, libLLVM.so.19.1, llvm-19/lib/libLLVM.so."""
    name = re.search(r"libLLVM[-.](?:so\.)?(\d+)", path) or re.search(r"llvm[-@]?(\d+)/lib", path)
    return int(name.group(1)) if name else None


@functools.cache
def works(variant: str) -> bool:
    """Whether ``variant`` renders a small scene in a child process. The answer is kept for this process."""
    if variant.startswith("cuda") and not _has_cuda():
        return False
    if variant.startswith("llvm") and not prepare_llvm():
        return False
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE, variant], capture_output=True, timeout=180)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def prepare_llvm() -> bool:
    """Point Dr.Jit to a good LLVM through the environment, which child processes inherit. False when there is none."""
    library = find_llvm()
    if library is None:
        return False
    os.environ["DRJIT_LIBLLVM_PATH"] = library
    return True


def _has_cuda() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


#: Variants that another process has already tried.
_known: set[str] = set()


def trust(variant: str) -> None:
    """Skip the probe of ``variant``: the process that started this one has made it."""
    _known.add(variant)


def choose_variant(wanted: str | None = None) -> str:
    """The variant to render with: ``wanted`` when given, else the first of `VARIANTS` that works.

    Raises InputError when the wanted one, or none at all, works (Mitsuba is not installed, for instance).
    """
    for variant in (wanted,) if wanted else VARIANTS:
        if variant in _known or works(variant):
            return variant
    raise InputError(
        f"a working Mitsuba variant ({wanted or ', '.join(VARIANTS)})",
        "none that renders a test scene",
        "install the data engine with `pip install 'diffusion-renderer[data]'`; llvm_ad_rgb also needs LLVM 16 or newer "
        "(Debian, Ubuntu: libllvm19)",
    )


@functools.cache
def load_mitsuba(variant: str) -> Any:
    """The `mitsuba` module with ``variant`` active. Kept per process, since switching back and forth is not free."""
    if variant.startswith("llvm"):
        prepare_llvm()
    import mitsuba

    mitsuba.set_variant(variant)
    mitsuba.set_log_level(mitsuba.LogLevel.Error)
    return mitsuba


def activate(variant: str) -> Any:
    """`load_mitsuba`, and make ``variant`` the active one even if another has been activated since."""
    mitsuba = load_mitsuba(variant)
    if mitsuba.variant() != variant:
        mitsuba.set_variant(variant)
    return mitsuba


@functools.cache
def load_denoiser() -> Any | None:
    """The `pyoidn` module, or None (with one warning) where it cannot be loaded; frames then stay noisy."""
    # Pinned threads of two worker processes would share one core.
    os.environ.setdefault("OIDN_SET_AFFINITY", "0")
    try:
        import pyoidn
    except Exception as error:
        warnings.warn(f"Open Image Denoise cannot be loaded ({error}); frames stay noisy", stacklevel=2)
        return None
    return pyoidn
