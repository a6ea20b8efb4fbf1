"""The diffusion inverse renderer: a clip to its G-buffers, one image group at a time (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.packing import JOINT_INDEX, embedding_index, unpack_image
from diffusion_renderer.core.resize import Fit
from diffusion_renderer.core.sources import ClipSource
from diffusion_renderer.core.types import BUFFERS, DEFAULT_BUFFERS, GBuffer
from diffusion_renderer.models import Checkpoint
from diffusion_renderer.pipelines.diffusion import DiffusionRenderer, ticker
from diffusion_renderer.pipelines.noise import frame_noise
from diffusion_renderer.pipelines.protocols import Progress

#: Where the network has no image of its own for it: diffuse albedo = base colour x (1 - metallic).
_ALBEDO_FROM = ("basecolor", "metallic")


#: Relative depths within this of 1 are background more or less; calibration fades out over them.
BACKGROUND_FADE = 0.05


class DiffusionInverseRenderer(DiffusionRenderer):
    """Estimates G-buffers with a video diffusion model. See `InverseRenderer` for the call.

    Depth is relative per clip; metric depth and a mask cannot be had from it. In clips longer than the window each window has
    its own idea of near and far, evened out only where windows overlap.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        if self.unet.context_embedding is None:
            raise InputError(f"a UNet with a domain embedding in {checkpoint.folder}", "one without", "use another checkpoint")
        known, rows = self.settings.groups, self.unet.context_embedding.num_embeddings
        if max(map(embedding_index, known)) >= rows or (self.settings.joint and rows <= JOINT_INDEX):
            raise InputError(
                f"a domain embedding for {known} in {checkpoint.folder}", f"{rows} rows", "correct groups in renderer.json"
            )

        made, wanted = self.unet.config.out_channels // self.codec.channels, len(known) if self.settings.joint else 1
        if made != wanted:
            raise InputError(
                f"a UNet that makes {wanted} images at once in {checkpoint.folder}", f"one for {made}", "correct renderer.json"
            )

    @property
    def buffers(self) -> tuple[str, ...]:
        """The buffers that this model can make."""
        made = self.settings.buffers
        derived = ("diffuse_albedo",) if set(_ALBEDO_FROM) <= set(made) else ()
        return tuple(name for name in BUFFERS if name in (*made, *derived))

    def __call__(
        self,
        clip: ClipSource,
        *,
        buffers: Sequence[str] = DEFAULT_BUFFERS,
        steps: int | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
    ) -> GBuffer:
        """The G-buffers of a clip, at its size, on the CPU: all of `stream` in memory, up to 36 bytes per pixel and frame."""
        parts = self.stream(clip, buffers=buffers, steps=steps, seed=seed, size=size, progress=progress)
        return GBuffer.join(parts, len(clip))

    def stream(
        self,
        clip: ClipSource,
        *,
        buffers: Sequence[str] = DEFAULT_BUFFERS,
        steps: int | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[GBuffer]:
        """The G-buffers of a clip, a few frames at a time, at its size, on the CPU.

        Only latents are held for the whole clip, so that its length and size hardly matter for memory. The first piece comes
        when the network is done.

        Parameters
        ----------
        clip : in memory or from a file (`io.open_clip`).
        buffers : which to make, of `buffers`.
        steps : calls of the network per image group and window; None for the model's own.
        seed : of the starting noise; the same seed gives the same result.
        size : (width, height) of a box that the network's images should fill, instead of the model's working area.
        progress : see `Progress`.

        Raises InputError for a clip without frames or pixels, unknown buffers, no steps.
        """
        wanted, steps = self._wanted(buffers), self.steps(steps)
        if len(clip) == 0:
            raise InputError("a clip with at least one frame", f"{clip.name} without frames", "give another clip")
        return self._pieces(clip, tuple(buffers), wanted, steps, seed, self.fit(clip.size, size), progress)

    def _pieces(
        self,
        clip: ClipSource,
        buffers: tuple[str, ...],
        wanted: set[str],
        steps: int,
        seed: int,
        fit: Fit,
        progress: Progress | None,
    ) -> Iterator[GBuffer]:
        condition = self._encode_clip(clip, fit, progress)
        latents = self._latents(condition, [g for g in self.settings.groups if wanted & set(g)], steps, seed, progress)
        for chunk in self.chunks(len(condition)):
            made: dict[str, Tensor] = {}
            for group, part in latents.items():
                images = self.decode(part[chunk]).to(device="cpu", dtype=torch.float32)
                # Back to the input's size first, so that normals are unit vectors at that size.
                made.update(unpack_image(group, fit.undo(images)))
            made.update(self._calibrated(made))
            if "diffuse_albedo" in buffers and "diffuse_albedo" not in made:
                made["diffuse_albedo"] = made["basecolor"] * (1 - made["metallic"])
            yield replace(GBuffer(fps=clip.fps, name=clip.name), **{name: made[name] for name in buffers})

    def _calibrated(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """The buffers that the settings calibrate; the background, where depth calls it that, stays as it is."""
        surface = 1.0 if "depth" not in made else ((1 - made["depth"]) / BACKGROUND_FADE).clamp(0.0, 1.0)
        found = {}
        for name, (gain, centre) in self.settings.calibration.items():
            if name in made:
                found[name] = (made[name] + surface * (1 - gain) * (centre - made[name])).clamp(0.0, 1.0)
        return found

    def _latents(
        self, condition: Tensor, groups: list[tuple[str, ...]], steps: int, seed: int, progress: Progress | None
    ) -> dict[tuple[str, ...], Tensor]:
        """Scaled latents of every image group of the whole clip."""
        frames, shape = len(condition), (self.codec.channels, *condition.shape[-2:])
        made: dict[tuple[str, ...], Tensor] = {}
        for together in [self.settings.groups] if self.settings.joint else [(group,) for group in groups]:
            noise = torch.cat([frame_noise(seed, "+".join(group), frames, shape) for group in together], dim=1)
            what = "buffers" if self.settings.joint else "+".join(together[0])
            latents = self.denoise(condition, together[0], noise, steps, ticker(progress, what))
            made.update(zip(together, latents.chunk(len(together), dim=1), strict=True))
        return {group: made[group] for group in groups}

    @torch.no_grad()
    def denoise(
        self,
        condition: Float[Tensor, "frames clip_channels height width"],
        group: tuple[str, ...],
        noise: Float[Tensor, "frames channels height width"],
        steps: int,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float[Tensor, "frames channels height width"]:
        """Latents (scaled) of one image group, from the clip's latents as `encode` gives them and unit noise.

        The cross-attention reads zeros plus the group's domain embedding. ``group`` is a tuple of names: ``("normal",)``. A
        joint model makes all its groups whatever ``group`` says; ``noise`` holds theirs, concatenated.
        """
        width = self.unet.context_embedding.embedding_dim
        context = torch.zeros(1, 1, width, dtype=self.unet.dtype, device=self.unet.device)
        row = JOINT_INDEX if self.settings.joint else embedding_index(group)
        ids = torch.tensor([row], device=self.unet.device)
        condition = condition.to(self.unet.device, self.unet.dtype)

        def network(window: slice, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.predict(self.unet, torch.cat((x, condition[window]), dim=1), c_noise, context, context_ids=ids)

        return self.sample(network, noise, steps, tick)

    def _wanted(self, buffers: Sequence[str]) -> set[str]:
        """Buffers that must come from the network."""
        for name in buffers:
            check_name("buffer", name, self.buffers)
        derived = "diffuse_albedo" in buffers and "diffuse_albedo" not in self.settings.buffers
        return set(buffers) - {"diffuse_albedo"} | set(_ALBEDO_FROM) if derived else set(buffers)

    def _encode_clip(self, clip: ClipSource, fit: Fit, progress: Progress | None) -> Float[Tensor, "frames channels _h _w"]:
        tick, parts, done = ticker(progress, "encoding"), [], 0
        for chunk in clip.chunks(self.codec.chunk):
            parts.append(self.encode(fit.apply(chunk.frames.clamp(0.0, 1.0))))
            done += len(chunk)
            tick(done, len(clip))
        return torch.cat(parts)
