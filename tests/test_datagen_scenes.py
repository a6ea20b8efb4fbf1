"""What scenes are made of, before any renderer: meshes, materials, panoramas, exposure, settings. None of it needs Mitsuba."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import direction_to_equirect
from diffusion_renderer.datagen import DatasetSettings
from diffusion_renderer.datagen.engine import variant
from diffusion_renderer.datagen.generate import MAX_CLIPPED_SURFACE, choose_exposure
from diffusion_renderer.datagen.procedural import shapes
from diffusion_renderer.datagen.procedural.materials import PATTERNS, TEXTURE_SIZE, painted_material, random_material
from diffusion_renderer.datagen.procedural.noise import cells, fractal
from diffusion_renderer.datagen.procedural.panoramas import directions, panorama_of_kind

SHAPES: dict[str, Callable[[np.random.Generator], shapes.Mesh]] = {
    "sphere": lambda rng: shapes.sphere(),
    "cuboid": lambda rng: shapes.cuboid(),
    "rounded box": shapes.rounded_box,
    "cylinder": shapes.cylinder,
    "cone": shapes.cone,
    "torus": shapes.torus,
    "capsule": shapes.capsule,
    "superquadric": shapes.superquadric,
    "blob": shapes.blob,
    "vase": shapes.vase,
    "random": lambda rng: shapes.random_shape(rng, "primitives"),
}


def volume(mesh: shapes.Mesh) -> float:
    """Signed volume by the divergence theorem: positive when the triangles wind counter-clockwise seen from outside."""
    a, b, c = (mesh.positions[mesh.faces[:, i]] for i in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_meshes_are_closed_and_face_outwards(name: str, seed: int) -> None:
    mesh = SHAPES[name](np.random.default_rng(seed))
    assert np.isfinite(mesh.positions).all() and len(mesh.faces) > 3
    assert np.allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-6)
    assert mesh.uv.min() >= 0 and mesh.uv.max() < shapes.MAX_UV
    assert volume(mesh) > 0
    # A closed surface's area vectors cancel; an open one's do not. Rounded boxes' patches meet exactly, so float64 round-off.
    a, b, c = (mesh.positions[mesh.faces[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)
    assert np.abs(area.sum(0)).max() < 1e-6 * np.abs(area).sum()
    # Shading normals lie on the same side as the triangles that they shade.
    assert ((area * mesh.normals[mesh.faces].sum(1)).sum(-1) >= 0).all()


def test_exact_volumes_and_bounds() -> None:
    assert volume(shapes.cuboid()) == pytest.approx(8)
    # 64 x 32 facets inscribed in the ball: 0.7 % less seen.
    assert volume(shapes.sphere()) == pytest.approx(4 / 3 * math.pi, rel=0.01)
    for seed in range(8):
        mesh = shapes.random_shape(np.random.default_rng(seed), "primitives")
        assert np.linalg.norm(mesh.positions, axis=-1).max() == pytest.approx(1)


def test_flat_shading_and_transforms_keep_the_shape() -> None:
    mesh = shapes.sphere(12, 6)
    flat = shapes.flat_shaded(mesh)
    assert volume(flat) == pytest.approx(volume(mesh))
    assert np.allclose(flat.normals[0], flat.normals[1]) and len(flat.positions) == 3 * len(mesh.faces)
    stretched = shapes.transformed(shapes.sphere(), np.diag([2.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    # The normal of an ellipsoid is the gradient of x^2 / 4 + y^2 + z^2.
    gradient = (stretched.positions - [1, 0, 0]) / [4, 1, 1]
    assert np.allclose(stretched.normals, gradient / np.linalg.norm(gradient, axis=-1, keepdims=True), atol=1e-6)


def test_materials_are_in_range_and_varied() -> None:
    materials = [random_material(np.random.default_rng(seed)) for seed in range(150)]
    for material in materials:
        assert material.basecolor.shape == (TEXTURE_SIZE, TEXTURE_SIZE, 3)
        assert 0 <= material.basecolor.min() and material.basecolor.max() <= 1
        assert 0.05 - 1e-6 <= material.roughness.min() and material.roughness.max() <= 1
        assert 0 <= material.metallic.min() and material.metallic.max() <= 1
    metallic = np.array([material.metallic.mean() for material in materials])
    assert 0.5 < (metallic == 0).mean() < 0.85 and (metallic == 1).mean() > 0.1 and ((metallic > 0) & (metallic < 1)).any()
    roughness = np.array([material.roughness.mean() for material in materials])
    assert roughness.min() < 0.2 and roughness.max() > 0.85


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_paints(pattern: str) -> None:
    material = painted_material(np.random.default_rng(1), pattern, [(0.1, 0.1, 0.1), (0.9, 0.5, 0.1)], (0.2, 0.8))
    again = painted_material(np.random.default_rng(1), pattern, [(0.1, 0.1, 0.1), (0.9, 0.5, 0.1)], (0.2, 0.8))
    assert np.array_equal(material.basecolor, again.basecolor)
    assert 0.2 - 1e-6 <= material.roughness.min() and material.roughness.max() <= 0.8 + 1e-6
    # All channels run along the same pattern.
    assert np.allclose((material.basecolor[..., 0] - 0.1) / 0.8, (material.roughness[..., 0] - 0.2) / 0.6, atol=1e-5)
    assert (np.ptp(material.roughness) > 0.1) == (pattern != "solid")


def test_noise_repeats_without_a_seam() -> None:
    rng = np.random.default_rng(0)
    for field in (fractal(rng, 64, 64, 0.2), cells(rng, 64, 12)[0]):
        inner = np.abs(np.diff(field, axis=1)).max()
        assert np.abs(field[:, 0] - field[:, -1]).max() <= 1.5 * inner
        assert field.min() == 0 and field.max() == 1


@pytest.mark.parametrize("kind", ("sky", "studio", "room", "gradients"))
def test_panoramas_are_high_dynamic_range_and_finite(kind: str) -> None:
    brightest = []
    for seed in range(6):
        image = panorama_of_kind(np.random.default_rng(seed), kind, 64)
        assert image.shape == (64, 128, 3) and image.dtype == np.float32
        assert np.isfinite(image).all() and image.min() >= 0 and image.mean() == pytest.approx(1, rel=0.05)
        brightest.append(image.max())
    assert max(brightest) > (100 if kind == "sky" else 3)


def test_panorama_directions_are_those_of_the_conventions() -> None:
    d = directions(8)
    assert d.shape == (8, 16, 3)
    assert d[0, :, 1].min() > 0.9 and d[-1, :, 1].max() < -0.9
    assert d[4, 8, 2] > 0.9 and d[4, 12, 0] < -0.9  # centre +z, right half -x
    u, v = direction_to_equirect(torch.from_numpy(d[2, 5]))
    assert float(u) == pytest.approx(5.5 / 16) and float(v) == pytest.approx(2.5 / 8)


def test_the_exposure_reaches_the_brightness_but_does_not_burn() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = 7 * torch.rand(2, 3, 48, 48, generator=generator) ** 2
    mask = torch.ones(2, 1, 48, 48, dtype=torch.bool)
    exposure = choose_exposure(linear, mask, 0.4)
    # The mean of all pixels against that of every ninth: 0.0037 seen.
    from diffusion_renderer.core.color import srgb_oetf

    assert float(srgb_oetf(exposure * linear).mean()) == pytest.approx(0.4, abs=0.01)
    assert choose_exposure(3 * linear, mask, 0.4) == pytest.approx(exposure / 3, rel=1e-3)
    burning = choose_exposure(linear, mask, 0.99)
    clipped = float((burning * linear.amax(1) > 1).float().mean())
    assert 0.2 * MAX_CLIPPED_SURFACE < clipped < 2 * MAX_CLIPPED_SURFACE
    # A bright background does not turn the surface black.
    window = linear.clone()
    window[..., :3] = 1000
    mask[..., :3] = False
    assert choose_exposure(window, mask, 0.4) > 0.5 * exposure
    assert choose_exposure(torch.zeros_like(linear), mask, 0.4) == 1.0


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/usr/lib/x86_64-linux-gnu/libLLVM-19.so", 19),
        ("/usr/lib/x86_64-linux-gnu/libLLVM.so.19.1", 19),
        ("/usr/lib/x86_64-linux-gnu/libLLVM-15.so.1", 15),
        ("/usr/lib/llvm-18/lib/libLLVM.so", 18),
        ("/opt/homebrew/opt/llvm@17/lib/libLLVM.dylib", 17),
        ("/usr/lib/libLLVM.so", None),
    ],
)
def test_llvm_versions_are_read_from_paths(path: str, version: int | None) -> None:
    assert variant._llvm_version(path) == version


def test_old_llvm_is_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    names = {"a/libLLVM-14.so", "a/libLLVM-15.so", "a/libLLVM-17.so", "a/libLLVM.so.20.1"}
    monkeypatch.delenv("DRJIT_LIBLLVM_PATH", raising=False)
    monkeypatch.setattr(variant.glob, "glob", lambda pattern: sorted(names))
    assert variant.find_llvm() == "a/libLLVM.so.20.1"
    names.remove("a/libLLVM.so.20.1")
    assert variant.find_llvm() == "a/libLLVM-17.so"
    names.remove("a/libLLVM-17.so")
    assert variant.find_llvm() is None
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", "mine.so")
    assert variant.find_llvm() == "mine.so"


@pytest.mark.parametrize(
    "mistake",
    [{"frames": 0}, {"width": 4}, {"panorama_probability": 1.5}, {"panorama_height": 4}, {"variant": "vulkan"}, {"samples": 0}],
)
def test_impossible_settings_are_refused(mistake: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(mistake)) if "variant" not in mistake else "variant"):
        DatasetSettings(**mistake)
