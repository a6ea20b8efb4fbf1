"""Sharp buffers at the input's size: what a network made small and soft, with the frame itself as the guide.

A small decoder rounds off everything that is finer than some pixels, and the working size may be a quarter of the input's. The
frame shows where things end. Buffers are averaged over what looks alike in it at the working size (joint bilateral filter,
Petschnigg et al. 2004, "Digital Photography with Flash and No-Flash Image Pairs"), and enlarged along its edges (Kopf et al.
2007, "Joint Bilateral Upsampling"). Every value is a mean of estimated ones nearby, so what is only drawn on a surface shows in
its shape and roughness no more than those differ there. Reflectance is the frame times a factor that is as smooth as light is
(Land and McCann 1971, "Lightness and Retinex Theory"): the factor is what is filtered, and the frame brings the texture.
docs/buffers.md has what was measured.

It cannot tell the edge of a shadow or of a reflection from one of the material where the estimate does not, and where two
things look alike the edge between them stays soft.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.packing import unpack_image
from diffusion_renderer.core.resize import resize

#: Buffers that are the frame times a smooth factor.
REFLECTANCE = ("basecolor", "diffuse_albedo")
#: Standard deviation of the filter's reach, and the distance between the pixels that it reads; pixels of the working size.
REACH, STRIDE = 8.0, 3
#: Standard deviation of what looks alike, as a distance of sRGB colours: at the working size, and when enlarging. Chosen on
#: seven rendered stills, where little depends on it: normals by 0.3 degrees on a reach of 4 to 8 pixels, base colour by 0.1 dB
#: on 5 to 14, both by less than that on 0.03 to 0.05 here.
ALIKE, ALIKE_ENLARGED = 0.04, 0.05
#: Where no neighbour looks like the pixel, all count by distance alone, as much as one that looks this much alike.
LEAST_ALIKE = 1e-3
#: Standard deviations, pixels of the working size, that frame and estimate are smoothed by before they are divided: the
#: estimate is soft already, and both are to be as soft. 0.2 dB of base colour better than the same blur of 3 for both.
FRAME_BLUR, ESTIMATE_BLUR = 4.0, 2.0
#: Added to frame and estimate (linear) before they are divided: what is black has no colour to multiply.
DARK = 0.01
#: Logarithm of how far the frame times the factor may lie from the estimate: small differences are the frame's, larger ones are
#: held back, for they are reflections and shadows more often than paint. On 40 rendered clips of 128 pixels 0.1 dB above none.
FARTHEST = 0.6
#: Pixels of the input's size that are enlarged at once: frames that are held twice, and strips of them whose temporaries (200
#: bytes per pixel) stay near the processor.
ENLARGED, STRIP = 2**21, 2**16


def guided_buffers(
    images: dict[tuple[str, ...], Float[Tensor, "frames 3 height width"]], frames: Float[Tensor, "frames 3 _height _width"]
) -> dict[str, Tensor]:
    """Buffers in their memory encoding, at the frames' size, from network images in [0, 1] of any size.

    Parameters
    ----------
    images : by image group, as decoded, without padding.
    frames : the clip that they were estimated from, sRGB in [0, 1]; the guide.

    Normals are unit vectors or 0, as `core.encoding.decode_buffer` makes them. Frames do not influence each other.
    """
    groups, size = list(images), next(iter(images.values())).shape[-2:]
    small = resize(frames, (size[1], size[0]))
    values = [_factor(images[group], small) if _is_reflectance(group) else images[group] for group in groups]
    filtered = joint_bilateral(torch.cat(values, dim=1), small, ALIKE)
    made: dict[str, Tensor] = {}
    for frame in range(0, len(frames), step := max(1, ENLARGED // frames[0, 0].numel())):
        some = slice(frame, frame + step)
        large = joint_upsampled(filtered[some], small[some], frames[some], ALIKE_ENLARGED)
        for group, value in zip(groups, large.split([part.shape[1] for part in values], dim=1), strict=True):
            found = {group[0]: _lit(value, frames[some])} if _is_reflectance(group) else unpack_image(group, value)
            for name, buffer in found.items():
                whole = made.setdefault(name, buffer.new_empty(len(frames), *buffer.shape[1:]))
                whole[some] = buffer
    return made


def _is_reflectance(group: tuple[str, ...]) -> bool:
    return len(group) == 1 and group[0] in REFLECTANCE


def _factor(image: Float[Tensor, "frames 3 h w"], guide: Float[Tensor, "frames 3 h w"]) -> Float[Tensor, "frames 6 h w"]:
    """Logarithms of the smooth factor between the linear frame and the reflectance, the inverse of the light there; and of the
    reflectance as it was estimated."""
    estimate, frame = srgb_eotf(image), smoothed(srgb_eotf(guide), FRAME_BLUR)
    factor = torch.log(smoothed(estimate, ESTIMATE_BLUR) + DARK) - torch.log(frame + DARK)
    return torch.cat((factor, torch.log(estimate + DARK)), dim=1)


def _lit(factor: Float[Tensor, "frames 6 h w"], guide: Float[Tensor, "frames 3 h w"]) -> Float[Tensor, "frames 3 h w"]:
    """Linear reflectance of a frame, from the logarithms of `_factor`: the frame times the factor, near the estimate."""
    factor, estimate = factor.chunk(2, dim=1)
    apart = torch.log(srgb_eotf(guide) + DARK) + factor - estimate
    near = estimate + apart * torch.rsqrt(1 + (apart / FARTHEST) ** 2)
    return (near.exp() - DARK).clamp(0.0, 1.0)


def smoothed(images: Float[Tensor, "frames channels h w"], deviation: float) -> Float[Tensor, "frames channels h w"]:
    """Gaussian blur; ``deviation`` in pixels. The edge pixels are repeated outwards."""
    reach, channels = round(3 * deviation), images.shape[1]
    weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=images.dtype) ** 2) / (2 * deviation**2))
    row = (weights / weights.sum()).to(images).expand(channels, 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, row, groups=channels), row.mT, groups=channels)


def joint_bilateral(
    values: Float[Tensor, "frames channels h w"],
    guide: Float[Tensor, "frames 3 h w"],
    alike: float,
    reach: float = REACH,
    stride: int = STRIDE,
) -> Float[Tensor, "frames channels h w"]:
    """Means of values over the pixels nearby that look alike in the guide (Petschnigg et al. 2004, equation 4).

    Parameters
    ----------
    alike : standard deviation of the guide's colours.
    reach : standard deviation in pixels; nothing farther than twice that is read.
    stride : of the pixels nearby only every ``stride``-th is read, in rows and columns: right for values that are smooth over
        so many pixels.
    """
    height, width = values.shape[-2:]
    radius = round(2 * reach / stride) * stride
    padded, colours = (F.pad(tensor, (radius,) * 4, mode="replicate") for tensor in (values, guide))
    total, weights = torch.zeros_like(values), torch.zeros_like(values[:, :1])
    offsets = range(-radius, radius + 1, stride)
    for down, across in ((y, x) for y in offsets for x in offsets if x * x + y * y <= radius * radius):
        rows, columns = slice(radius + down, radius + down + height), slice(radius + across, radius + across + width)
        apart = (colours[..., rows, columns] - guide).square().sum(dim=1, keepdim=True)
        near = (down * down + across * across) / (2 * reach * reach)
        weight = torch.exp(apart * (-0.5 / alike**2) - near)
        total.addcmul_(weight, padded[..., rows, columns])
        weights += weight
    return total / weights


def joint_upsampled(
    values: Float[Tensor, "frames channels h w"],
    small: Float[Tensor, "frames 3 h w"],
    guide: Float[Tensor, "frames 3 height width"],
    alike: float,
) -> Float[Tensor, "frames channels height width"]:
    """Values at the guide's size: means of the nine nearest, of which those that look like the pixel count more (Kopf et al.
    2007, equation 3; by distance they count as in a quadratic B-spline). At the guide's own size the values as they are.

    Four neighbours would be cheaper, but where an edge goes through a small pixel they often have none that lies on one side.

    Parameters
    ----------
    small : the guide at the values' size.
    alike : standard deviation of the guide's colours.

    A guide that is smaller than the values has nothing to add: they are scaled down.
    """
    height, width = guide.shape[-2:]
    if width <= values.shape[-1] or height <= values.shape[-2]:
        return resize(values, (width, height))
    rows, columns = _Blocks.of(values.shape[-2], height, guide), _Blocks.of(values.shape[-1], width, guide)
    colours, around = _neighbours(small), _neighbours(values)
    large = values.new_empty(*values.shape[:2], height, width)
    # Strips whose temporaries fit into a processor's cache: twice as fast as a frame at once.
    step = max(1, STRIP // (rows.most * width * len(values)))
    for start in range(0, values.shape[-2], step):
        strip = slice(start, start + step)
        upsampled = _upsampled_strip(rows[strip], columns, colours[:, strip], around[:, strip], guide, alike)
        large[:, :, rows.span(strip)] = upsampled
    return large


def _upsampled_strip(
    rows: _Blocks,
    columns: _Blocks,
    colours: Float[Tensor, "frames h w 3 9"],
    values: Float[Tensor, "frames h w channels 9"],
    guide: Float[Tensor, "frames 3 height width"],
    alike: float,
) -> Float[Tensor, "frames channels _height width"]:
    """Some rows of `joint_upsampled`. Pixels around one small pixel share its neighbours, so that sums are matrix products."""
    pixels = guide[:, :, rows.pixels][..., columns.pixels]
    pixels = rearrange(pixels, "f c (h y) (w x) -> f h w (y x) c", y=rows.most, x=columns.most)
    apart = pixels.square().sum(dim=-1, keepdim=True) + colours.square().sum(dim=-2, keepdim=True) - 2 * pixels @ colours
    near = einsum(rows.weights, columns.weights, "h y down, w x across -> h w y x down across").flatten(-2).flatten(2, 3)
    weights = ((apart * (-0.5 / alike**2)).exp_() + LEAST_ALIKE).mul_(near)
    means = (weights @ values.mT).div_(weights.sum(dim=-1, keepdim=True))
    grid = rearrange(means, "f h w (y x) c -> f c (h y) (w x)", y=rows.most)
    return grid[:, :, rows.places][..., columns.places]


def _neighbours(images: Float[Tensor, "frames channels h w"]) -> Float[Tensor, "frames h w channels 9"]:
    """Each pixel's values and those of the eight around it, row by row; the edge pixels are repeated outwards."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    parts = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return rearrange(parts, "nine f c h w -> f h w c nine")


@dataclass(frozen=True)
class _Blocks:
    """The pixels along an axis by the small pixel that is nearest, as many for each as the one with the most has.

    Attributes
    ----------
    pixels : the pixels of the blocks, one block behind the other; those that fill up a block belong to the next one.
    places : where in ``pixels`` each pixel is found in its own block.
    most : pixels in a block.
    first : the first pixel of each block, and behind them the number of pixels.
    weights : of the small pixel before, the nearest, the one behind, for the pixels of each block.
    """

    pixels: Int64[Tensor, " places"]
    places: Int64[Tensor, " wanted"]
    most: int
    first: Int64[Tensor, " edges"]
    weights: Float[Tensor, "count most 3"]

    def __getitem__(self, some: slice) -> _Blocks:
        """Some neighbouring blocks."""
        first = self.first[some.start : some.stop + 1]
        pixels = self.pixels[some.start * self.most : some.stop * self.most]
        places = self.places[self.span(some)] - some.start * self.most
        return _Blocks(pixels, places, self.most, first, self.weights[some])

    def span(self, some: slice) -> slice:
        """The pixels of some neighbouring blocks."""
        return slice(int(self.first[some.start]), int(self.first[min(some.stop, len(self.first) - 1)]))

    @classmethod
    def of(cls, count: int, wanted: int, like: Tensor) -> _Blocks:
        """For ``wanted`` pixels, more than ``count``, on the device and in the dtype of ``like``."""
        place = (torch.arange(wanted, device=like.device) + 0.5) * count / wanted - 0.5
        nearest = place.round().long().clamp(0, count - 1)
        sizes = nearest.bincount(minlength=count)
        first, most = F.pad(sizes.cumsum(0), (1, 0)), int(sizes.max())
        pixels = (first[:-1, None] + torch.arange(most, device=like.device)).clamp(max=wanted - 1)
        places = nearest * most + torch.arange(wanted, device=like.device) - first[nearest]
        aside = (place[pixels] - torch.arange(count, device=like.device)[:, None]).clamp(-0.5, 0.5).to(like.dtype)
        weights = torch.stack((0.5 * (0.5 - aside) ** 2, 0.75 - aside**2, 0.5 * (0.5 + aside) ** 2), dim=-1)
        return cls(pixels.flatten(), places, most, first, weights)
