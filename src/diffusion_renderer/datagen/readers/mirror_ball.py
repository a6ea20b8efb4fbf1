"""The light that a mirror ball shows, as a panorama.

Debevec, "Rendering Synthetic Objects into Real Scenes", SIGGRAPH 1998.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.geometry import equirect_to_direction


def unwrap_mirror_ball(ball: Float[Tensor, "3 size size"], height: int | None = None) -> Float[Tensor, "3 height width"]:
    """A picture of a mirror ball, cropped to touch all four edges, as a panorama in camera space.

    The panorama follows CONVENTIONS with the camera's axes in place of the world's: camera-space direction d shows it at d
    itself. ``height`` is its number of rows, half the ball's size by default: in the middle of the ball one pixel then covers
    about as much as one of the panorama.

    The camera is taken as orthographic and the light as far away: a ball that is small, far and near the optical axis. The ball
    is taken as a perfect mirror: multiply by 1 / reflectance for a real one. What lies behind the ball, around direction -z, is
    seen at the rim only, squeezed into a fraction of a pixel: within 2 acos(1 - 3 / size) of -z (18 degrees for 256 pixels) the
    panorama repeats what is seen just inside the rim. The camera itself is seen in the middle. Lights smaller than a panorama
    pixel are read bilinearly and may lose some energy.
    """
    size = ball.shape[-1]
    if size < 4:
        raise InputError("a picture of a mirror ball of at least 4 x 4 pixels", f"{size}x{size}", "give a larger one")
    height = max(2, size // 2) if height is None else height
    v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(2 * height) + 0.5) / (2 * height), indexing="ij")
    direction = equirect_to_direction(u, v)
    # The ray comes from +z, so the surface that reflects it into `direction` faces half-way between the two.
    half = torch.nn.functional.normalize(direction + torch.tensor([0.0, 0.0, 1.0]), dim=-1, eps=1e-6)
    place = half[..., :2]
    # Stay 1.5 pixels inside the rim: bilinear reading takes pixels up to 1.42 away, and must never take the background.
    radius = place.norm(dim=-1, keepdim=True)
    place = place * ((1 - 3 / size) / radius.clamp_min(1e-6)).clamp_max(1.0)
    grid = torch.stack((place[..., 0], -place[..., 1]), dim=-1)
    value = torch.nn.functional.grid_sample(ball[None].float(), grid[None], padding_mode="border", align_corners=False)
    return value[0].contiguous()
