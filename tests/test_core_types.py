"""The types that travel, and that their shapes are really checked."""

import jaxtyping
import pytest
import torch

import diffusion_renderer as dr
from diffusion_renderer.core.color import luminance
from diffusion_renderer.core.types import BUFFERS, Clip, GBuffer


def test_a_planted_shape_violation_is_raised():
    with pytest.raises(jaxtyping.TypeCheckError):
        luminance(torch.zeros(4, 8, 8))
    with pytest.raises(jaxtyping.TypeCheckError):
        Clip(torch.zeros(1, 4, 8, 8))
    with pytest.raises(jaxtyping.TypeCheckError):
        GBuffer(normal=torch.zeros(1, 3, 8, 8), mask=torch.zeros(1, 1, 8, 8))  # the mask must be boolean


def test_a_clip_knows_its_length_and_size_and_can_be_cut():
    clip = Clip(torch.rand(5, 3, 4, 6), fps=30, name="shot")
    assert (len(clip), clip.size) == (5, (6, 4))
    part = clip[1:3]
    assert (len(part), part.fps, part.name) == (2, 30, "shot")
    assert torch.equal(part.frames, clip.frames[1:3])


def test_a_gbuffer_lists_what_it_has_and_cuts_all_of_it():
    gbuffer = GBuffer(
        depth=torch.rand(3, 1, 4, 6), basecolor=torch.rand(3, 3, 4, 6), mask=torch.ones(3, 1, 4, 6, dtype=torch.bool)
    )
    assert gbuffer.present == ("basecolor", "depth")
    assert [name for name in BUFFERS if name in gbuffer.present] == list(gbuffer.present)
    assert len(gbuffer[:2]) == 2 and gbuffer[:2].mask.shape[0] == 2
    assert gbuffer.size == (6, 4) and GBuffer().size == (0, 0)


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (3, 1, 4, 7)], ids=["frames", "width"])
def test_buffers_that_do_not_agree_are_refused(shape, unchecked):
    with pytest.raises(dr.InputError, match=r"depth .* frames of"):
        GBuffer(basecolor=torch.rand(3, 3, 4, 6), depth=torch.rand(shape))


def test_a_missing_buffer_is_named():
    with pytest.raises(dr.InputError, match=r"missing: depth, normal"):
        GBuffer(basecolor=torch.rand(1, 3, 4, 4)).require(("basecolor", "depth", "normal"))


def test_a_camera_at_rest():
    camera = dr.Camera.identity(3, fov_x=40)
    assert torch.equal(camera.rotation, torch.eye(3).expand(3, 3, 3))
    assert len(camera[1:]) == 2 and camera.fov_x.tolist() == [40, 40, 40]
