"""The diffusion inverse renderer: a clip to its G-buffers, one image group at a time (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_renderer.core.encoding import decode_buffer, encode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.packing import JOINT_INDEX, embedding_index, unpack_image
from diffusion_renderer.core.resize import Fit
from diffusion_renderer.core.sources import ClipSource
from diffusion_renderer.core.types import BUFFERS, DEFAULT_BUFFERS, GBuffer
from diffusion_renderer.models import Checkpoint
from diffusion_renderer.pipelines.depth import DepthAlignment, apply_lines, surface_weight
from diffusion_renderer.pipelines.diffusion import DiffusionRenderer, Tick, WindowNetwork, checked_start, no_tick, ticker
from diffusion_renderer.pipelines.guided import guided_buffers
from diffusion_renderer.pipelines.held import HeldFrames
from diffusion_renderer.pipelines.noise import frame_noise
from diffusion_renderer.pipelines.protocols import Progress
from diffusion_renderer.pipelines.resuming import Call, Note, ResumePoint
from diffusion_renderer.pipelines.windows import first_window, plan_windows

#: Where the network has no image of its own for it: diffuse albedo = base colour x (1 - metallic).
_ALBEDO_FROM = ("basecolor", "metallic")


class DiffusionInverseRenderer(DiffusionRenderer):
    """Estimates G-buffers with a video diffusion model. See `InverseRenderer` for the call.

    Depth is relative per clip; metric depth and a mask cannot be had from it. In clips longer than the window each window has
    its own idea of near and far; they are put on the scale of the clip's first window (see `pipelines.depth`), as far as
    the windows' surfaces agree.
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

    def __call__(self, clip: ClipSource, **options: Any) -> GBuffer:
        """The G-buffers of a clip, at its size, on the CPU: all of `stream` in memory, up to 36 bytes per pixel and frame.

        Options as for `stream`, but for those of a call that goes on with another.
        """
        return GBuffer.join(self.stream(clip, **options), len(clip))

    def stream(
        self,
        clip: ClipSource,
        *,
        buffers: Sequence[str] = DEFAULT_BUFFERS,
        steps: int | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
        solver: str | None = None,
        batch_groups: int | None = None,
        align_depth: bool = True,
        guided: bool | None = None,
        resume: ResumePoint | None = None,
        note: Note | None = None,
    ) -> Iterator[GBuffer]:
        """The G-buffers of a clip, a few frames at a time, at its size, on the CPU.

        Frames come as soon as no window is to see them any more. The clip is read once, forwards, and no faster than that: with
        n calls of the network latents of about n windows are held, and images of one piece, whatever the clip's length; with
        ``guided`` also the frames of those windows, in half precision, 6 bytes per pixel.

        Parameters
        ----------
        clip : in memory or from a file (`io.open_clip`).
        buffers : which to make, of `buffers`.
        steps : of the solver; None for the model's own.
        seed : of the starting noise; the same seed gives the same result.
        size : (width, height) of a box that the network's images should fill, instead of the model's working area.
        progress : see `Progress`.
        solver : one of `diffusion.SOLVERS`; None for the model's own.
        batch_groups : image groups that the network is given at once; None for one.
        align_depth : whether windows' depths are put on one scale.
        guided : whether the frames sharpen the buffers, see `RendererSettings`; None for the model's own.
        resume, note : ``note`` is called with a `ResumePoint` when the frames before it have been used; given as ``resume``,
            with the same other options, the frames from there on come, and they are the same.

        Raises InputError for a clip without frames or pixels, unknown buffers or solvers, no steps, a point outside the clip.
        """
        wanted, steps, frames = self._wanted(buffers), self.steps(steps), len(clip)
        if frames == 0:
            raise InputError("a clip with at least one frame", f"{clip.name} without frames", "give another clip")
        point = resume or ResumePoint()
        checked_start(point.frame, frames)
        begin, read = self.first_frames(frames, steps, solver, point.frame)
        call = Call(frames, steps, seed, self.fit(clip.size, size), solver, point, begin, read, note, progress)
        decoded = tuple(group for group in self.settings.groups if wanted & set(group))
        guided = self.settings.guided if guided is None else guided
        asked = _Asked(tuple(buffers), self.settings.groups if self.settings.joint else decoded, decoded, align_depth, guided)
        return self._pieces(clip, call, asked, batch_groups)

    def _pieces(self, clip: ClipSource, call: Call, asked: _Asked, batch_groups: int | None) -> Iterator[GBuffer]:
        # The frames are read for the network, before their buffers are made: what these need of them is kept until then.
        guide = HeldFrames(iter(()), call.begin) if asked.guided else None
        condition = HeldFrames(self._encoded(clip, call, guide), call.read)
        network = self._network(condition, asked.groups, batch_groups)
        tick, noise = ticker(call.progress, "buffers"), self._noise(asked.groups, call)
        sampled = self.sample_stream(network, noise, call.frames, call.steps, tick, call.solver, call.begin)
        alignment = self._alignment(asked, call) if asked.align_depth else None

        def latents() -> Iterator[Tensor]:
            for part in sampled:
                condition.forget(part.needed)
                if part.frames.stop > call.begin:
                    if alignment is not None:
                        alignment.add(part)
                    yield part.latents[max(0, call.begin - part.frames.start) :]

        made, windows = HeldFrames(latents(), call.begin), plan_windows(call.frames, self.window, self.overlap)
        for chunk in self.chunks(call.frames, call.begin):
            parts = dict(zip(asked.groups, made[chunk].chunk(len(asked.groups), dim=1), strict=True))
            lines = None if alignment is None else alignment.take(chunk)
            frames = None if guide is None else guide[chunk].float()
            found = self._decoded({group: parts[group] for group in asked.decoded}, call.fit, lines, frames)
            del parts
            made.forget(chunk.stop)
            if guide is not None:
                guide.forget(chunk.stop)
            piece = replace(GBuffer(fps=clip.fps, name=clip.name), **{name: found[name] for name in asked.buffers})
            yield piece[max(0, call.point.frame - chunk.start) :]
            if chunk.stop < call.frames:
                known = (1.0, 0.0) if alignment is None else alignment.window(first_window(windows, chunk.stop))
                call.used(chunk.stop, known)

    def _decoded(
        self,
        latents: dict[tuple[str, ...], Tensor],
        fit: Fit,
        lines: Float[Tensor, "frames 2"] | None,
        guide: Float[Tensor, "frames 3 height width"] | None,
    ) -> dict[str, Tensor]:
        """All buffers of some frames, at the input's size, on the CPU; ``lines`` of depth as `DepthAlignment` gives them.

        ``guide`` is those frames, at the input's size; None to scale the buffers up without.
        """
        images = {group: self.decode(part).to(device="cpu", dtype=torch.float32) for group, part in latents.items()}
        made: dict[str, Tensor] = {}
        # Back to the input's size first, so that normals are unit vectors at that size.
        if guide is not None:
            made = guided_buffers({group: fit.unpad(image) for group, image in images.items()}, guide)
        else:
            for group, image in images.items():
                made.update(unpack_image(group, fit.undo(image)))
        if lines is not None and bool((lines != torch.tensor([1.0, 0.0])).any()):
            made["depth"] = apply_lines(made["depth"], lines)
        made.update(self._calibrated(made))
        if "diffuse_albedo" not in made and set(_ALBEDO_FROM) <= set(made):
            made["diffuse_albedo"] = made["basecolor"] * (1 - made["metallic"])
        return made

    def _alignment(self, asked: _Asked, call: Call) -> DepthAlignment | None:
        """What puts the windows' depths on one scale; None where no depth is made, or there is one window."""
        packed = next((group for group in asked.decoded if "depth" in group), None)
        if packed is None or call.frames <= self.window:
            return None
        place = slice(self.codec.channels * asked.groups.index(packed), self.codec.channels * (asked.groups.index(packed) + 1))

        def decode(latents: Tensor) -> Tensor:
            images = self.decode(latents[:, place]).to(device="cpu", dtype=torch.float32)
            return unpack_image(packed, images)["depth"]

        return DepthAlignment(decode, call.point.depth)

    def _noise(self, groups: tuple[tuple[str, ...], ...], call: Call) -> Callable[[slice], Tensor]:
        """Unit noise of some frames, all image groups concatenated."""
        width, height = (side // self.codec.factor for side in call.fit.padded)
        shape, names = (self.codec.channels, height, width), ["+".join(group) for group in groups]

        def noise(frames: slice) -> Tensor:
            count = frames.stop - frames.start
            return torch.cat([frame_noise(call.seed, name, count, shape, frames.start) for name in names], dim=1)

        return noise

    def _calibrated(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """The buffers that the settings calibrate; the background, where depth calls it that, stays as it is."""
        surface = 1.0 if "depth" not in made else surface_weight(made["depth"])
        found = {}
        for name, (gain, centre) in self.settings.calibration.items():
            if name in made:
                found[name] = decode_buffer(name, calibrated(encode_buffer(name, made[name]), surface, gain, centre))
        return found

    def denoise(
        self,
        condition: Float[Tensor, "frames clip_channels height width"],
        group: tuple[str, ...],
        noise: Float[Tensor, "frames channels height width"],
        steps: int,
        tick: Tick = no_tick,
        solver: str | None = None,
    ) -> Float[Tensor, "frames channels height width"]:
        """Latents (scaled) of one image group, from the clip's latents as `encode` gives them and unit noise.

        The cross-attention reads zeros plus the group's domain embedding. ``group`` is a tuple of names: ``("normal",)``. A
        joint model makes all its groups whatever ``group`` says; ``noise`` holds theirs, concatenated.
        """
        network = self._network(HeldFrames(iter([condition])), self.settings.groups if self.settings.joint else (group,), 1)
        return self.sample(network, noise, steps, tick, solver)

    def _network(self, condition: HeldFrames, groups: tuple[tuple[str, ...], ...], batch: int | None) -> WindowNetwork:
        """v of all image groups, concatenated, from the clip's latents: one by one, as batches, or jointly."""
        unet, joint = self.unet, self.settings.joint
        context = torch.zeros(1, 1, unet.context_embedding.embedding_dim, dtype=unet.dtype, device=unet.device)
        rows = torch.tensor([JOINT_INDEX] if joint else [embedding_index(group) for group in groups], device=unet.device)

        def network(window: slice, x: Tensor, c_noise: Tensor) -> Tensor:
            given = condition[window].to(unet.device, unet.dtype)
            noisy = rearrange(x, "f (g c) h w -> g f c h w", g=len(rows))
            parts = []
            for some in torch.arange(len(rows)).split(self._batch(batch)):
                inputs = torch.cat((noisy[some], given.expand(len(some), *given.shape)), dim=2)
                parts.append(
                    self.predict_batch(unet, inputs, c_noise, context.expand(len(some), -1, -1), context_ids=rows[some])
                )
            return rearrange(torch.cat(parts), "g f c h w -> f (g c) h w")

        return network

    def _batch(self, wanted: int | None) -> int:
        """Image groups that the network is given at once."""
        if wanted is not None:
            return max(1, wanted)
        return 1

    def _wanted(self, buffers: Sequence[str]) -> set[str]:
        """Buffers that must come from the network."""
        for name in buffers:
            check_name("buffer", name, self.buffers)
        derived = "diffuse_albedo" in buffers and "diffuse_albedo" not in self.settings.buffers
        return set(buffers) - {"diffuse_albedo"} | set(_ALBEDO_FROM) if derived else set(buffers)

    def _encoded(
        self, clip: ClipSource, call: Call, guide: HeldFrames | None
    ) -> Iterator[Float[Tensor, "frames channels _h _w"]]:
        """Condition latents of the clip, a piece at a time, from the piece that begins with frame ``call.read`` on.

        ``guide`` is handed the frames from ``call.begin`` on.
        """
        tick, done = ticker(call.progress, "encoding"), 0
        for chunk in clip.chunks(self.codec.chunk):
            done += len(chunk)
            if done > call.read:
                frames = chunk.frames.clamp(0.0, 1.0)
                latents = self.encode(call.fit.apply(frames))
                if guide is not None and done > call.begin:
                    guide.add(frames.half())
                tick(done, call.frames)
                yield latents


def calibrated(
    estimate: Float[Tensor, "*shape"], surface: Float[Tensor, "*#shape"] | float, gain: float, centre: float
) -> Float[Tensor, "*shape"]:
    """An encoded buffer drawn to ``centre`` by 1 - ``gain`` where ``surface`` is 1, as it is where that is 0.

    See `RendererSettings`.
    """
    return (estimate + surface * (1 - gain) * (centre - estimate)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class _Asked:
    """Buffers that were asked for, the image groups whose latents are made, those of them that are decoded, and how."""

    buffers: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    decoded: tuple[tuple[str, ...], ...]
    align_depth: bool
    guided: bool
