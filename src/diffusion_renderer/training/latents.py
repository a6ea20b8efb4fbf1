"""Frames encoded once: the two diffusion stages train on latents and never run the autoencoder again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_renderer.training.data import IMAGES, FrameStore
from diffusion_renderer.training.environment import encode_lights
from diffusion_renderer.training.lights import light_images
from diffusion_renderer.training.presets import Preset

#: Frames encoded at once.
CHUNK = 16


@dataclass(frozen=True)
class LatentStore:
    """Scaled latents of every frame and of its varied twin (see `varied`), float16.

    Attributes
    ----------
    images : latents of the images named by `data.IMAGES`.
    light : concatenated latents of the frame's environment images.
    clip : clip index; a clip's frames are consecutive.
    """

    images: Float[Tensor, "total images channels height width"]
    light: Float[Tensor, "total lightchannels lightheight lightwidth"]
    clip: Int[Tensor, "total"]

    def __len__(self) -> int:
        return self.images.shape[0]

    def starts(self, frames: int) -> Int[Tensor, "choices"]:
        """Indices from which ``frames`` consecutive frames belong to one clip."""
        index = torch.arange(len(self) - frames + 1)
        return index[self.clip[index] == self.clip[index + frames - 1]]


def varied(
    images: UInt8[Tensor, "total images 3 height width"],
    lights: Float[Tensor, "total 3 3 size size"],
    orders: Int[Tensor, "total 3"],
) -> tuple[Tensor, Tensor]:
    """The same frames in a mirror and in other colours: an augmentation that keeps the physics.

    Left and right are exchanged in every image, in the normals' x and in the light; red, green and blue are permuted by
    ``orders`` alike in video, base colour and light. Depth, roughness and metallic keep their values.
    """
    images = images.flip(-1)
    normal, rgb, base = (IMAGES.index(name) for name in ("normal", "rgb", "basecolor"))
    images[:, normal, 0] = 255 - images[:, normal, 0]
    index = orders[:, :, None, None].expand(-1, -1, *images.shape[-2:])
    for kind in (rgb, base):
        images[:, kind] = images[:, kind].gather(1, index)
    mirrored = lights.clone()
    mirrored[:, :2] = lights[:, :2].flip(-1)
    order = orders[:, None, :, None, None].expand(-1, 2, -1, *lights.shape[-2:])
    mirrored[:, :2] = mirrored[:, :2].gather(2, order)
    return images, mirrored


@torch.no_grad()
def encode_frames(
    store: FrameStore, vae: nn.Module, preset: Preset, cache: Path, *, augment: bool = True, seed: int = 0
) -> LatentStore:
    """Latents of every frame and, with ``augment``, of its varied twin.

    They are kept in ``cache`` under a name made of the weights and the data they come from.
    """
    digest = hashlib.sha256(f"{len(store)} {preset} {seed} {augment} {store.images[::97].long().sum()}".encode())
    for value in (*vae.encoder.state_dict().values(), *vae.quant_conv.state_dict().values()):  # the decoder has no say
        digest.update(value.float().contiguous().numpy().tobytes())
    kept = cache / f"latents-{digest.hexdigest()[:16]}.safetensors"
    if kept.exists():
        return LatentStore(**load_file(kept))
    generator = torch.Generator().manual_seed(seed)
    twins = int(store.clip.max()) + 1
    orders = torch.stack([torch.randperm(3, generator=generator) for _ in range(twins)])
    images, lights, clip = [], [], []
    for first in tqdm(range(0, len(store), CHUNK), desc="latents"):
        part = _slice(store, first, first + CHUNK)
        turns = zip(part.clip, part.rotation, strict=True)
        plain = torch.cat([light_images(part.light[c].float(), r[None], preset.env_size) for c, r in turns])
        pairs = [(part.images, plain)]
        if augment:
            pairs.append(varied(part.images, plain, orders[part.clip]))
        images.append([_encode_images(vae, image) for image, _ in pairs])
        lights.append([encode_lights(vae, light).half() for _, light in pairs])
        clip.append(part.clip)
    owners = torch.cat(clip)
    result = LatentStore(
        images=torch.cat([torch.cat(column) for column in zip(*images, strict=True)]),
        light=torch.cat([torch.cat(column) for column in zip(*lights, strict=True)]),
        clip=torch.cat([owners + twins * copy for copy in range(1 + augment)]),
    )
    part_file = kept.with_suffix(".part")
    save_file({f.name: getattr(result, f.name).contiguous() for f in fields(result)}, part_file)
    part_file.replace(kept)
    return result


def _slice(store: FrameStore, first: int, last: int) -> FrameStore:
    return FrameStore(store.images[first:last], store.clip[first:last], store.rotation[first:last], store.light)


def _encode_images(vae: nn.Module, images: Tensor) -> Float[Tensor, "total images channels height width"]:
    flat = rearrange(images.float() / 255, "n k c h w -> (n k) c h w")
    latents = vae.encode(2 * flat - 1).latent_dist.mode()
    return rearrange(latents * vae.config.scaling_factor, "(n k) c h w -> n k c h w", k=images.shape[1]).half()
