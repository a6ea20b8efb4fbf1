"""Which pixels of a clip a light is estimated from, and what they show."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Camera, Clip, GBuffer
from diffusion_renderer.light import camera_fixed, world_fixed
from diffusion_renderer.render import surfaces

#: Frames, evenly spaced, that pixels are taken from: neighbours show much the same.
MAX_FRAMES = 24
#: Share of the pixels that may be background. A background is large and says little: each pixel fixes one direction.
BACKGROUND_SHARE = 0.25


@dataclass(frozen=True)
class Pixels:
    """Pixels as equations for a panorama. Directions are the panorama's, unit length.

    Attributes
    ----------
    colour : what the frame shows, sRGB in [0, 1].
    surface : False in the background, where only ``view`` and ``colour`` mean something.
    """

    colour: Float[Tensor, "points 3"]
    normal: Float[Tensor, "points 3"]
    view: Float[Tensor, "points 3"]
    basecolor: Float[Tensor, "points 3"]
    roughness: Float[Tensor, "points 1"]
    metallic: Float[Tensor, "points 1"]
    surface: Bool[Tensor, " points"]

    def __len__(self) -> int:
        return len(self.colour)

    def __getitem__(self, index: Int[Tensor, " chosen"]) -> Pixels:
        return Pixels(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def join(cls, parts: list[Pixels]) -> Pixels:
        """All pixels of ``parts``, in order."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def choose_pixels(
    clip: Clip,
    gbuffer: GBuffer,
    camera: Camera | None,
    rotations: Float[Tensor, "frames 3 3"] | None,
    count: int,
    seed: int,
) -> Pixels:
    """About ``count`` random pixels of at most `MAX_FRAMES` frames, away from outlines, where a pixel shows two things.

    Raises InputError for frames and buffers that do not belong together, missing buffers, and when no pixel shows a surface.
    """
    rotations = _checked(clip, gbuffer, camera, rotations)
    relative = gbuffer.has_relative_depth()
    generator = torch.Generator().manual_seed(seed)
    frames = torch.linspace(0, len(clip) - 1, min(len(clip), MAX_FRAMES)).round().long().unique().tolist()
    parts = []
    for frame in frames:
        here = slice(frame, frame + 1)
        share = -(-count // len(frames))
        of_frame = None if camera is None else camera[here]
        parts.append(_of_frame(clip[here], gbuffer[here], of_frame, rotations[frame], relative, share, generator))
    chosen = Pixels.join(parts)
    if not chosen.surface.any():
        raise InputError(
            "G-buffers with a surface to estimate a light from", f"only background in {clip.name}", "give another clip"
        )
    return chosen


def _checked(
    clip: Clip, gbuffer: GBuffer, camera: Camera | None, rotations: Float[Tensor, "_ 3 3"] | None
) -> Float[Tensor, "frames 3 3"]:
    """The rotation of every frame, or InputError for inputs that differ in frames or size."""
    gbuffer.require(("basecolor", "normal", "depth", "roughness", "metallic"))
    frames = len(clip)
    if frames == 0 or (frames, clip.size) != (len(gbuffer), gbuffer.size):
        shapes = [f"{len(it)} frames of {it.size[0]}x{it.size[1]}" for it in (clip, gbuffer)]
        raise InputError("frames and G-buffers of one size and number", " and ".join(shapes), "give those of one clip")
    if camera is not None and len(camera) != frames:
        raise InputError(f"{frames} camera poses, one per frame", str(len(camera)), "give one for every frame")
    if rotations is None:
        rotations = camera_fixed(frames) if camera is None else world_fixed(camera)
    if len(rotations) != frames:
        raise InputError(f"{frames} rotations of the light, one per frame", str(len(rotations)), "give one for every frame")
    return rotations


def _of_frame(
    clip: Clip,
    gbuffer: GBuffer,
    camera: Camera | None,
    rotation: Float[Tensor, "3 3"],
    relative: bool,
    count: int,
    generator: torch.Generator,
) -> Pixels:
    """Random pixels of one frame: surfaces, and background up to `BACKGROUND_SHARE`."""
    surface = surfaces(gbuffer, camera, relative=relative)
    seen = surface.coverage[0, ..., 0] > 0
    picks = []
    for where, most in ((~seen, round(BACKGROUND_SHARE * count)), (seen, count)):
        inner = _eroded(where)
        places = (inner if inner.any() else where).flatten().nonzero()[:, 0]
        picks.append(places[torch.randperm(len(places), generator=generator)[: most - sum(map(len, picks))]])
    index = torch.cat(picks)
    gather = lambda image: rearrange(image, "1 h w c -> (h w) c")[index]  # noqa: E731
    turned = lambda image: einsum(rotation, gather(image), "i j, p j -> p i")  # noqa: E731
    return Pixels(
        colour=gather(rearrange(clip.frames, "1 c h w -> 1 h w c")),
        normal=turned(surface.normal),
        view=turned(surface.view),
        basecolor=gather(surface.basecolor),
        roughness=gather(surface.roughness),
        metallic=gather(surface.metallic),
        surface=seen.flatten()[index],
    )


def _eroded(mask: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Pixels whose 3 x 3 neighbours, as far as the picture goes, are all in ``mask``."""
    return torch.nn.functional.max_pool2d((~mask).float()[None, None], 3, 1, 1)[0, 0] == 0
