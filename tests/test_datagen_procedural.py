"""What procedural scenes are made of: rich shapes, layered materials with normal maps, kinds of light."""

from __future__ import annotations

import time

import numpy as np
import pytest

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.datagen.procedural import layers, materials, noise, profiles, shapes, weathering
from diffusion_renderer.datagen.procedural.compositions import bevelled_box, composition
from diffusion_renderer.datagen.procedural.meshes import solid
from diffusion_renderer.datagen.procedural.panoramas import PANORAMA_KINDS, panorama_of_kind, procedural_panorama
from diffusion_renderer.datagen.procedural.solids import displaced

RICH = {
    "displaced": lambda rng: displaced(rng, shapes.rounded_box(rng)),
    "displaced seam": lambda rng: displaced(rng, shapes.superquadric(rng)),
    "vessel": profiles.vessel,
    "turned piece": profiles.turned_piece,
    "sweep": profiles.sweep,
    "extrusion": profiles.extrusion,
    "composition": composition,
    "bevelled box": lambda rng: bevelled_box((0.3, 1.0, 0.6), 0.1),
}


def area_vectors(mesh: shapes.Mesh) -> np.ndarray:
    a, b, c = (mesh.positions[mesh.faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a) / 2


def volume(mesh: shapes.Mesh) -> float:
    a, b, c = (mesh.positions[mesh.faces[:, i]] for i in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def check(mesh: shapes.Mesh) -> None:
    area = area_vectors(mesh)
    assert np.isfinite(mesh.positions).all() and 3 < len(mesh.faces) <= 25_000
    assert mesh.uv.min() >= 0 and mesh.uv.max() < shapes.MAX_UV
    assert np.allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-6)
    assert volume(mesh) > 0
    # A closed surface's area vectors cancel; coincident vertices are equal but for round-off, so to about 1e-12 of the area.
    assert np.abs(area.sum(0)).max() < 1e-8 * np.abs(area).sum()
    assert ((area * mesh.normals[mesh.faces].sum(1)).sum(-1) >= 0).all()


@pytest.mark.parametrize("name", RICH)
@pytest.mark.parametrize("seed", range(6))
def test_rich_shapes_are_closed_and_face_outwards(name: str, seed: int) -> None:
    check(RICH[name](np.random.default_rng(seed)))


@pytest.mark.parametrize("seed", range(12))
def test_boolean_solids_are_closed_and_face_outwards(seed: int) -> None:
    pytest.importorskip("manifold3d", reason="boolean solids need manifold3d, of the extra data")
    from diffusion_renderer.datagen.procedural.solids import boolean

    mesh = boolean(np.random.default_rng(seed))
    check(mesh)
    assert np.array_equal(mesh.positions, boolean(np.random.default_rng(seed)).positions)


def test_random_shapes_by_kind() -> None:
    pytest.importorskip("manifold3d", reason="boolean solids need manifold3d, of the extra data")
    names = {}
    for kind in shapes.SHAPE_KINDS:
        meshes = [shapes.random_shape(np.random.default_rng([seed, 4]), kind) for seed in range(30)]
        for mesh in meshes:
            check(mesh)
            assert np.linalg.norm(mesh.positions, axis=-1).max() == pytest.approx(1)
            assert np.allclose(mesh.positions.min(0), -mesh.positions.max(0))
        names[kind] = {mesh.name for mesh in meshes}
    assert names["primitives"] == {"cuboid", "sphere", "cylinder"}
    assert not names["rich"] & names["primitives"] and len(names["rich"]) > 8
    assert names["all"] & names["primitives"] and names["all"] & names["rich"]
    with pytest.raises(InputError, match="primitives"):
        shapes.random_shape(np.random.default_rng(0), "teapots")


def test_shading_is_sharp_at_edges_and_smooth_on_curves() -> None:
    cube = shapes.cuboid()
    sharp = solid(cube.positions, cube.faces)
    # Eight corners, three normals each, every one along an axis.
    assert len(sharp.positions) == 24 and np.allclose(np.sort(np.abs(sharp.normals), -1), [0, 0, 1])
    ball = shapes.sphere()
    smooth = solid(ball.positions, ball.faces)
    # Area-weighted normals of a 64 x 32 ball against the exact ones: at most 0.05 off seen, next to the poles.
    assert np.abs(smooth.normals - smooth.positions).max() < 0.1
    inside_out = solid(ball.positions, ball.faces[:, ::-1])
    assert volume(inside_out) == pytest.approx(volume(smooth))


def test_projected_textures_are_upright_and_not_mirrored() -> None:
    mesh = solid(shapes.cuboid().positions, shapes.cuboid().faces)
    p, uv = mesh.positions[mesh.faces], mesh.uv[mesh.faces]
    edges, steps = p[:, 1:] - p[:, :1], uv[:, 1:] - uv[:, :1]
    tangents = np.linalg.solve(steps, edges)  # rows: d position / du, d position / dv
    outwards = np.cross(tangents[:, 0], -tangents[:, 1])
    assert (outwards * mesh.normals[mesh.faces[:, 0]]).sum(-1).min() > 0
    sides = np.abs(mesh.normals[mesh.faces[:, 0], 1]) < 0.5
    assert np.allclose(tangents[sides, 1], [0, -2, 0])


def test_a_sweep_is_as_thick_as_its_profile() -> None:
    path = np.stack((np.zeros(40), np.linspace(0, 5, 40), np.zeros(40)), -1)
    tube = profiles.swept(path, 0.2 * profiles.circle(64), closed=False)
    # 64 facets: 0.16 % less than the cylinder.
    assert volume(tube) == pytest.approx(np.pi * 0.2**2 * 5, rel=3e-3)
    angle = 2 * np.pi * np.arange(120) / 120
    ring = profiles.swept(np.stack((np.cos(angle), 0 * angle, np.sin(angle)), -1), 0.2 * profiles.circle(64), closed=True)
    assert volume(ring) == pytest.approx(2 * np.pi**2 * 0.2**2, rel=5e-3)


# --- materials --------------------------------------------------------------------------------------------------------


def seam(image: np.ndarray) -> float:
    """How much larger the steps across the image's border are than those inside it; near 1 for a texture that repeats."""
    image = image.reshape(*image.shape[:2], -1).astype(np.float64)
    ratios = []
    for axis in (0, 1):
        inner = np.abs(np.diff(image, axis=axis)).mean(-1).mean(1 - axis)
        across = np.abs(image.take(0, axis) - image.take(-1, axis)).mean()
        ratios.append(across / max(inner.max(), 1e-6))
    return max(ratios)


@pytest.mark.parametrize("name", materials._SURFACES)
def test_every_surface_is_in_range_seamless_and_deterministic(name: str) -> None:
    for seed in range(3):
        rough = materials._SURFACES[name][1](np.random.default_rng(seed), 64)
        made = materials._finished(rough, name, relief=True)
        again = materials._finished(materials._SURFACES[name][1](np.random.default_rng(seed), 64), name, relief=True)
        assert np.array_equal(made.basecolor, again.basecolor) and np.array_equal(made.roughness, again.roughness)
        assert made.basecolor.shape == (64, 64, 3) and made.roughness.shape == made.metallic.shape == (64, 64, 1)
        for image, low, high in ((made.basecolor, 0.01, 0.98), (made.roughness, 0.05, 1), (made.metallic, 0, 1)):
            assert image.dtype == np.float32 and low - 1e-6 <= image.min() and image.max() <= high + 1e-6
            # The step across the border is no larger than the largest mean step inside; 1.0 to 1.3 seen.
            assert seam(image) < 1.6
        if made.normal is not None:
            assert np.allclose(np.linalg.norm(made.normal, axis=-1), 1, atol=1e-5) and made.normal[..., 2].min() > 0


@pytest.mark.parametrize("name", materials._WEAR)
def test_wear_changes_the_surface_and_stays_seamless(name: str) -> None:
    base = layers.layers(64, np.array([0.5, 0.4, 0.3]), 0.5)
    for seed in range(4):
        worn = materials._WEAR[name][1](np.random.default_rng(seed), base)
        assert not np.array_equal(worn.roughness, base.roughness) or not np.array_equal(worn.basecolor, base.basecolor)
        made = materials._finished(worn, name, relief=True)
        assert np.isfinite(made.basecolor).all() and np.isfinite(made.roughness).all()
        assert seam(made.roughness) < 1.6 and seam(made.basecolor) < 1.6


def test_normals_of_a_height_field_point_away_from_the_slope() -> None:
    size = 64
    axis = 2 * np.pi * (np.arange(size) + 0.5) / size
    height = 0.02 * np.sin(axis)[None, :] + 0.03 * np.cos(axis)[:, None]
    normal = layers.height_normals(height.astype(np.float32))
    du = 0.02 * 2 * np.pi * np.cos(axis)[None, :] * np.ones((size, 1))
    dv = -0.03 * 2 * np.pi * np.sin(axis)[:, None] * np.ones((1, size))
    exact = np.stack((-du, dv, np.ones_like(du)), -1)  # y runs along falling v
    exact /= np.linalg.norm(exact, axis=-1, keepdims=True)
    # Central differences over 1/64: relative error (2 pi / 64)^2 / 6 = 0.0016 of slopes up to 0.19.
    assert np.abs(normal - exact).max() < 1e-3


def test_the_mix_of_random_materials() -> None:
    drawn = [materials.random_material(np.random.default_rng([seed, 5]), 32) for seed in range(300)]
    metallic = np.array([material.metallic.mean() for material in drawn])
    roughness = np.array([material.roughness.mean() for material in drawn])
    # Seeds are fixed. 1000 materials of 128 texels have 27 % metals, bumps on half, and 30 to 140 of them in each tenth.
    assert 0.2 < (metallic > 0.5).mean() < 0.34
    assert 0.4 < np.mean([material.normal is not None for material in drawn]) < 0.65
    assert (np.histogram(roughness, bins=5, range=(0.0, 1.0))[0] > 25).all()
    assert len({material.name for material in drawn}) > 40


def test_rust_is_rough_and_no_metal_where_bare_metal_is() -> None:
    for seed in range(5):
        made = materials._SURFACES["rusted metal"][1](np.random.default_rng(seed), 64)
        bare, rust = made.metallic > 0.9, made.metallic < 0.1
        if bare.any() and rust.any():
            assert made.roughness[rust].mean() > made.roughness[bare].mean() + 0.1


def test_water_is_smooth_and_level() -> None:
    rng = np.random.default_rng(0)
    bumps = noise.with_slope(noise.gaussian(rng, 64, 0.7), 0.2)
    base = layers.layers(64, np.array([0.5, 0.4, 0.3]), 0.9, height=bumps)
    wet = weathering.wet(rng, base)
    film = wet.roughness < 0.15
    assert 0.05 < film.mean() < 0.95
    steep = noise.slopes(wet.height)[0][film].std(), noise.slopes(base.height)[0][film].std()
    assert steep[0] < 0.7 * steep[1]
    # Fully wet: 0.55 x 0.9 of the colour is lost.
    assert wet.basecolor[film].mean() < 0.65 * base.basecolor[film].mean()


def test_noise_has_its_statistics() -> None:
    rng = np.random.default_rng(3)
    field = noise.gaussian(rng, (64, 128), 0.6)
    assert field.shape == (64, 128) and field.mean() == pytest.approx(0, abs=1e-4) and field.std() == pytest.approx(1, rel=1e-4)
    # The share of one draw with few features: 0.26 to 0.34 seen.
    assert noise.covering(noise.gaussian(rng, 64, 0.8), 0.3, 0.01).mean() == pytest.approx(0.3, abs=0.08)
    long = noise.gaussian(rng, 64, 0.9, 8.0, (1.0, 16.0))
    assert np.abs(np.diff(long, axis=1)).mean() < 0.5 * np.abs(np.diff(long, axis=0)).mean()
    sloped = noise.slopes(noise.with_slope(long, 0.25))
    assert np.sqrt((sloped[0] ** 2 + sloped[1] ** 2).mean()) == pytest.approx(0.25, rel=1e-3)
    assert not noise.with_slope(np.ones((8, 8), np.float32), 0.25).any()


def test_materials_are_cheap() -> None:
    materials.random_material(np.random.default_rng(0))
    start = time.process_time()
    for seed in range(30):
        materials.random_material(np.random.default_rng(seed))
    # 2 to 3 ms each on one core of a busy machine, a little more with types checked at run time.
    assert (time.process_time() - start) / 30 < 0.03


# --- light ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PANORAMA_KINDS)
def test_panoramas_of_every_kind(kind: str) -> None:
    for seed in range(4):
        image = panorama_of_kind(np.random.default_rng(seed), kind, 48)
        assert image.shape == (48, 96, 3) and image.dtype == np.float32
        # Not 1 exactly: what is brighter than 3000 times the mean is cut.
        assert np.isfinite(image).all() and image.min() >= 0 and 0.3 < image.mean() < 1.001
        assert np.array_equal(image, panorama_of_kind(np.random.default_rng(seed), kind, 48))


def test_kinds_of_light_span_soft_to_hard() -> None:
    def peak_share(kind: str) -> float:
        """Share of the light that comes from the brightest 1 % of the sphere; median of six."""
        shares = []
        for seed in range(6):
            image = panorama_of_kind(np.random.default_rng(seed), kind, 48).mean(-1)
            power = np.sort((image * np.sin(np.pi * (np.arange(48) + 0.5) / 48)[:, None]).ravel())[::-1]
            shares.append(power[: len(power) // 100].sum() / power.sum())
        return float(np.median(shares))

    assert peak_share("overcast") < 0.1 < peak_share("softboxes")
    assert peak_share("spotlights") > 0.75 and peak_share("street night") > 0.4


def test_procedural_panoramas_draw_every_kind() -> None:
    kinds = {procedural_panorama(np.random.default_rng(seed), 16)[0] for seed in range(200)}
    assert kinds == set(PANORAMA_KINDS)
