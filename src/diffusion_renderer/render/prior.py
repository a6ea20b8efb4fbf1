"""The picture of a classical renderer, which a diffusion renderer may be given beside the G-buffers."""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_oetf
from diffusion_renderer.core.encoding import is_relative
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.panorama import average_panorama
from diffusion_renderer.core.resize import resize
from diffusion_renderer.core.types import DEFAULT_BUFFERS, Camera, EnvironmentMap, GBuffer
from diffusion_renderer.light import sample_panorama
from diffusion_renderer.render.splitsum import SplitSum
from diffusion_renderer.render.surface import metric_depth, surfaces

#: The classical renderers whose picture can be given.
PRIORS = ("splitsum",)
#: Rows of the panorama that the picture is made with: filtering it takes most of the time. On eight rendered clips of 128
#: pixels 32 rows were 0.1 dB below 64 on average.
ROWS = 64
#: Bright spots of the panorama that light rough surfaces as lights of their own. On 32 rendered stills of 128 pixels 16 of them
#: were 0.5 dB above none; more pieces of the specular lobe changed nothing.
LIGHTS = 16


class Prior:
    """Pictures of a classical renderer under one light: split-sum shading, reduced to what can be afforded for every frame.

    It has what a network of few steps and small latents finds hard: the light's colour and direction on every normal, sharp
    edges. It lacks shadows, light between surfaces, and the shape of glossy lobes: what is left for the network.

    Parameters
    ----------
    name : one of `PRIORS`.
    light : filtered once, here.
    """

    def __init__(self, name: str, light: EnvironmentMap) -> None:
        check_name("classical renderer for a prior", name, PRIORS)
        coarse = EnvironmentMap(average_panorama(light.radiance.float(), ROWS, 2 * ROWS), light.name)
        with torch.no_grad():
            self._shading = SplitSum(device="cpu", along=1, across=1, lights=LIGHTS).shading(coarse)
        self._light = EnvironmentMap(light.radiance.float().cpu(), light.name)

    @torch.no_grad()
    def __call__(
        self,
        gbuffer: GBuffer,
        camera: Camera | None,
        rotations: Float[Tensor, "frames 3 3"],
        size: tuple[int, int] | None = None,
        depth_range: tuple[float, float] | None = None,
    ) -> Float[Tensor, "frames 3 height width"]:
        """The frames, sRGB in [0, 1], on the CPU, the panorama behind what was hit.

        Parameters
        ----------
        camera : of these frames, for the field of view; None for `surface.DEFAULT_FOV`.
        rotations : R of each frame: camera-space direction d sees the panorama at ``R d``.
        size : (width, height) of the pictures; None for that of the G-buffers. The aspect ratio must be the G-buffers'.
        depth_range : smallest and largest finite depth of the whole clip, which tells relative depth from metric; None for
            that of these frames.

        Raises InputError for missing buffers and for rotations of another number.
        """
        if len(rotations) != len(gbuffer):
            raise InputError(f"{len(gbuffer)} rotations, one per frame", str(len(rotations)), "give one for every frame")
        on_cpu = GBuffer(**{name: tensor.cpu() for name, tensor in gbuffer.tensors()}, fps=gbuffer.fps, name=gbuffer.name)
        relative = is_relative(depth_range or gbuffer.depth_range())
        if size is not None and size != gbuffer.size:
            on_cpu.require(DEFAULT_BUFFERS)
            on_cpu, relative = _smaller(on_cpu, size, relative), False
        seen, turns = surfaces(on_cpu, camera, relative=relative), rotations.float().cpu()
        pictures = self._shading(seen, turns)
        # What lies behind is shown, not filtered, so it is read from the panorama as it is.
        behind = seen.coverage[..., 0] == 0
        directions = einsum(turns, -seen.view, "f i j, f h w j -> f h w i")[behind]
        pictures.movedim(1, -1)[behind] = sample_panorama(self._light, directions)
        return srgb_oetf(pictures.clamp(0.0, 1.0))


def _smaller(gbuffer: GBuffer, size: tuple[int, int], relative: bool) -> GBuffer:
    """G-buffers of another size. Depth becomes 1 on surfaces: shading asks only whether something is there."""
    _, seen = metric_depth(gbuffer, relative)
    coverage = (seen & (gbuffer.normal.norm(dim=1) > 0.1))[:, None].to(gbuffer.basecolor)
    covered = resize(coverage, size)
    # The background's values must not bleed into edges.
    share = covered.clamp_min(1e-3)
    images = {name: resize(getattr(gbuffer, name) * coverage, size) / share for name in DEFAULT_BUFFERS if name != "depth"}
    mask = covered > 0.5
    depth = torch.where(mask, torch.ones_like(covered), torch.full_like(covered, torch.inf))
    return GBuffer(**images, depth=depth, mask=mask, fps=gbuffer.fps, name=gbuffer.name)
