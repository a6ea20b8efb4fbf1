"""What a renderer must beat: constants, the input itself, base colour under the mean light."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf, srgb_oetf
from diffusion_renderer.core.encoding import relative_depth
from diffusion_renderer.core.resize import resize
from diffusion_renderer.core.types import EnvironmentMap, GBuffer
from diffusion_renderer.datagen import Sample
from diffusion_renderer.evaluation.views import compared, surface_mask, views
from diffusion_renderer.light import mean_radiance

#: Values of a buffer that a clip gives to the search for the best constant: evenly spread over its surface pixels.
VALUES = 4096


@dataclass(frozen=True)
class Constants:
    """The best constants for the very clips that are scored, which no renderer can know.

    Attributes
    ----------
    values : of each buffer as it is compared: base colour sRGB-encoded, depth relative, a unit vector for normals.
    mean_image : the mean of all true frames under all lights; clips of another size are resized to the first one's.
    """

    values: dict[str, Float[Tensor, " channels"]]
    mean_image: Float[Tensor, "3 height width"]

    @classmethod
    def measure(cls, samples: Iterable[Sample]) -> Constants:
        """One pass over the clips; a clip at a time is held. Every clip counts alike, however many frames it has."""
        gathered: dict[str, list[Tensor]] = {}
        total, count = torch.zeros(3, 1, 1), 0
        for sample in samples:
            mask = surface_mask(sample.gbuffer, sample.clip)
            for name in sample.gbuffer.present:
                # The truth is in scene units, however small the scene: `compared` could take it for relative depth.
                truth = relative_depth(sample.gbuffer.depth) if name == "depth" else compared(sample.gbuffer, name)
                values = rearrange(truth, "f c h w -> f h w c")[mask[:, 0]]
                values = values[values.isfinite().all(dim=1)]
                if len(values):
                    # In double precision: float32 does not hold the number of a large clip's last pixel.
                    places = torch.linspace(0, len(values) - 1, VALUES, dtype=torch.float64).long()
                    gathered.setdefault(name, []).append(values[places])
            for view in views(sample):
                image = view.clip.frames.mean(dim=0)
                if count and image.shape != total.shape:
                    image = resize(image[None], (total.shape[-1], total.shape[-2]))[0]
                total, count = total + image, count + 1
        values = {
            name: best_constant_normal(torch.cat(parts)) if name == "normal" else best_constant(torch.cat(parts))
            for name, parts in gathered.items()
        }
        return cls(values, total / max(count, 1))

    def image(self, size: tuple[int, int]) -> Float[Tensor, "1 3 height width"]:
        """The mean image at (width, height)."""
        same = (self.mean_image.shape[-1], self.mean_image.shape[-2]) == size
        return self.mean_image[None] if same else resize(self.mean_image[None], size)

    def buffers(self, sample: Sample) -> GBuffer:
        """G-buffers that are constant everywhere, of the buffers that have a truth; depth is relative."""
        count, (width, height) = len(sample.clip), sample.clip.size
        made = {}
        for name, compared_as in self.values.items():
            value = srgb_eotf(compared_as) if name in ("basecolor", "diffuse_albedo") else compared_as
            made[name] = value[None, :, None, None].expand(count, -1, height, width)
        return GBuffer(**made, fps=sample.clip.fps, name=sample.clip.name)

    def digest(self) -> str:
        """Tells these constants from others."""
        parts = [self.mean_image.numpy().tobytes()]
        parts += [name.encode() + value.numpy().tobytes() for name, value in sorted(self.values.items())]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def best_constant(values: Float[Tensor, "count channels"]) -> Float[Tensor, "channels"]:
    """The constant of least RMSE over all samples: their mean."""
    return values.mean(dim=0)


def best_constant_normal(normals: Float[Tensor, "count 3"], iterations: int = 200) -> Float[Tensor, "3"]:
    """The constant direction of least mean angular error over all samples: their geodesic median.

    Weiszfeld's iteration on the sphere: step along the mean of the unit tangents towards the samples, each weighted by the
    inverse of its angle. Started from the mean direction; samples at an angle of 0 or pi have no tangent and are left out.
    """
    centre = torch.nn.functional.normalize(normals.mean(dim=0), dim=0)
    for _ in range(iterations):
        cosine = (normals @ centre).clamp(-1 + 1e-6, 1 - 1e-6)
        angle = torch.acos(cosine)[:, None]
        tangent = (normals - cosine[:, None] * centre) / torch.sin(angle)
        step = tangent.sum(dim=0) / (1 / angle).sum()
        length = step.norm()
        if length < 1e-6:
            break
        centre = torch.nn.functional.normalize(centre * torch.cos(length) + step / length * torch.sin(length), dim=0)
    return centre


def base_color_times_light(
    basecolor: Float[Tensor, "frames 3 height width"], environment: EnvironmentMap
) -> Float[Tensor, "frames 3 height width"]:
    """Base colour lit evenly by the panorama's mean radiance, as sRGB; metallic and geometry are ignored."""
    return srgb_oetf(basecolor * mean_radiance(environment)[:, None, None])
