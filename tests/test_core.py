"""Colour, encodings, geometry, names, errors."""

import math
import pickle

import pytest
import torch
from torch.nn.functional import normalize

from diffusion_renderer.core.color import luminance, srgb_eotf, srgb_oetf
from diffusion_renderer.core.encoding import decode_buffer, encode_buffer, network_image, relative_depth
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import (
    direction_to_equirect,
    equirect_to_direction,
    look_at,
    rotation_x,
    rotation_y,
)
from diffusion_renderer.core.names import check_name, nearest
from diffusion_renderer.core.panorama import average_panorama, row_solid_angle
from diffusion_renderer.core.types import GBuffer

EXACT = 1e-5  # float32: the worst of these round trips is 4e-7


def test_srgb_is_the_standard_curve():
    linear = torch.tensor([0.0, 0.0031308, 0.18, 0.5, 1.0])
    encoded = torch.tensor([0.0, 0.04045, 0.46135, 0.73536, 1.0])  # IEC 61966-2-1
    assert torch.allclose(srgb_oetf(linear), encoded, atol=1e-4)


def test_srgb_round_trip_and_clamp():
    values = torch.linspace(0, 1, 1001)
    assert torch.allclose(srgb_eotf(srgb_oetf(values)), values, atol=EXACT)
    assert torch.allclose(srgb_oetf(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 1.0]), atol=EXACT)


def test_srgb_has_a_finite_gradient_at_black():
    value = torch.zeros(4, requires_grad=True)
    srgb_oetf(value).sum().backward()
    assert torch.isfinite(value.grad).all() and (value.grad > 0).all()


def test_luminance_of_white_is_one():
    assert torch.allclose(luminance(torch.ones(3, 2, 2)), torch.ones(1, 2, 2), atol=EXACT)


@pytest.mark.parametrize("name", ["basecolor", "diffuse_albedo", "roughness", "metallic", "normal"])
def test_encoding_round_trip(name):
    torch.manual_seed(0)
    value = torch.rand(2, 1 if name in ("roughness", "metallic") else 3, 8, 8)
    if name == "normal":
        value = normalize(value - 0.5, dim=1)
        value[0, :, 0, 0] = 0  # background
    image = encode_buffer(name, value)
    assert image.min() >= 0 and image.max() <= 1
    assert torch.allclose(decode_buffer(name, image), value, atol=EXACT)


def test_background_normal_is_grey_and_comes_back_as_zero():
    image = encode_buffer("normal", torch.zeros(1, 3, 1, 1))
    assert image.flatten().tolist() == [0.5, 0.5, 0.5]
    stored = (image * 255).round() / 255  # 8 bits cannot hold 0.5 exactly
    assert torch.equal(decode_buffer("normal", stored), torch.zeros(1, 3, 1, 1))


def test_depth_in_scene_units_is_told_from_relative_depth():
    def relative(*values):
        return GBuffer(depth=torch.tensor(values).reshape(1, 1, 1, -1)).has_relative_depth()

    inf = float("inf")
    # An inverse renderer's nearest pixel may be anywhere; its background is 1.
    assert relative(0.0, 0.5, 1.0) and relative(0.2, 0.9)
    # Far things, an infinite background, nothing at all.
    assert not any(relative(*values) for values in ((0.5, 3.0), (0.4, 0.9, inf), (inf,), (-0.1, 1.0), (0.5, float("nan"))))
    assert not GBuffer(normal=torch.zeros(1, 3, 2, 2)).has_relative_depth()
    assert not GBuffer(depth=torch.zeros(0, 1, 2, 2)).has_relative_depth()


def test_depth_is_relative_to_the_clip_with_background_far():
    depth = torch.tensor([[2.0, 4.0], [6.0, math.inf]])[:, None, None]
    assert relative_depth(depth).flatten().tolist() == [0.0, 0.5, 1.0, 1.0]


def test_depth_without_scale():
    assert relative_depth(torch.full((1, 1, 2, 2), 3.0)).eq(0).all()
    assert relative_depth(torch.full((1, 1, 2, 2), math.inf)).eq(1).all()


def test_network_images_have_three_channels_and_are_read_back_as_their_mean():
    rough = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    image = network_image("roughness", rough)
    assert image.shape == (2, 3, 4, 4)
    assert torch.allclose(decode_buffer("roughness", image), rough, atol=EXACT)


@pytest.mark.parametrize(
    ("u", "v", "direction"),
    [(0.5, 0.5, (0, 0, 1)), (0.75, 0.5, (-1, 0, 0)), (0.25, 0.5, (1, 0, 0)), (0.0, 0.5, (0, 0, -1)), (0.5, 0.0, (0, 1, 0))],
    ids=["centre", "right", "left", "seam", "top"],
)
def test_panorama_directions(u, v, direction):
    found = equirect_to_direction(torch.tensor(u), torch.tensor(v))
    assert torch.allclose(found, torch.tensor(direction, dtype=torch.float32), atol=EXACT)


def test_panorama_mapping_is_its_own_inverse():
    u, v = torch.meshgrid(torch.linspace(0.01, 0.99, 33), torch.linspace(0.05, 0.95, 17), indexing="ij")
    back_u, back_v = direction_to_equirect(equirect_to_direction(u, v))
    assert torch.allclose(back_u, u, atol=EXACT) and torch.allclose(back_v, v, atol=EXACT)


def test_rotation_conventions():
    quarter = math.pi / 2
    x, y, z = torch.eye(3)
    assert torch.allclose(rotation_y(quarter) @ z, x, atol=EXACT)
    assert torch.allclose(rotation_x(quarter) @ y, z, atol=EXACT)
    assert torch.allclose(rotation_y(0.3) @ rotation_y(-0.3), torch.eye(3), atol=EXACT)


def test_look_at_looks_down_minus_z_with_y_up():
    pose = look_at(torch.tensor([3.0, 2.0, 1.0]), torch.zeros(3))
    assert torch.allclose(-pose[:3, 2], normalize(-torch.tensor([3.0, 2.0, 1.0]), dim=0), atol=EXACT)
    assert torch.allclose(pose[:3, :3].T @ pose[:3, :3], torch.eye(3), atol=EXACT)
    assert torch.linalg.det(pose[:3, :3]) > 0 and pose[1, 1] > 0
    assert torch.equal(pose[:, 3], torch.tensor([3.0, 2.0, 1.0, 1.0]))


def test_solid_angles_sum_to_the_sphere():
    assert math.isclose(float(row_solid_angle(17, 34).sum() * 34), 4 * math.pi, rel_tol=EXACT)


@pytest.mark.parametrize("size", [(8, 16), (7, 11), (1, 1)])
def test_averaging_a_panorama_keeps_its_light(size):
    radiance = torch.rand(3, 24, 48, generator=torch.Generator().manual_seed(0))
    radiance[:, 5, 9] = 1e4  # a sun of one pixel
    small = average_panorama(radiance, *size)
    assert small.shape == (3, *size)

    def flux(image):
        return (image * row_solid_angle(*image.shape[-2:])[:, None]).sum(dim=(1, 2))

    # Rows that straddle a target's edge are shared by height, not by solid angle: 0.5% here, exact where rows divide.
    assert torch.allclose(flux(small), flux(radiance), rtol=1e-5 if 24 % size[0] == 0 else 0.01)


def test_averaging_does_not_enlarge():
    radiance = torch.rand(3, 4, 8)
    assert torch.equal(average_panorama(radiance, 16, 32), radiance)


def test_an_error_is_one_line_of_three_parts():
    error = InputError("two\nlines", "a\ttab", "do this")
    assert str(error) == "expected two lines; found a tab; do this"


def test_an_error_travels_between_processes() -> None:
    error = InputError("a folder", "a file", "give a folder")
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.advice) == (str(error), "give a folder")


def test_names_are_suggested():
    valid = ("basecolor", "normal", "roughness")
    assert nearest("base_color", valid) == "basecolor"
    assert nearest("Normals", valid) == "normal"
    assert nearest("xyz", valid) is None
    assert check_name("buffer", "normal", valid) == "normal"
    with pytest.raises(InputError, match=r"did you mean roughness\?"):
        check_name("buffer", "rougness", valid)
