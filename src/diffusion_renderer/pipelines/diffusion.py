"""What the two diffusion renderers share: a UNet run as a denoiser over windows, images to latents and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_renderer.core.devices import has_fast_bfloat16
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.resize import Fit, fit_size
from diffusion_renderer.core.store import BoundedStore, content_key, tensor_bytes
from diffusion_renderer.diffusion import NoiseSchedule, VPrediction, find_solver, network_calls
from diffusion_renderer.models import Checkpoint, LatentCodec, check_decoder
from diffusion_renderer.pipelines.protocols import Progress
from diffusion_renderer.pipelines.settings import read_settings
from diffusion_renderer.pipelines.windows import Sampled, first_window, plan_windows, sample_windows

#: v of one window: (its frames, network input "frames channels h w", c_noise) to "frames channels h w".
WindowNetwork = Callable[[slice, Tensor, Tensor], Tensor]
#: Called as ``tick(done, total)``.
Tick = Callable[[int, int], None]
#: Latents of images that were encoded lately are kept, up to these bytes of main memory: about 800 frames of five published
#: buffers, which another light or another set of buffers needs again.
KEPT_LATENTS = 128 * 2**20


def no_tick(done: int, total: int) -> None:
    """For calls that report to nobody."""


class DiffusionRenderer:
    """The networks of one checkpoint and the constants of running them. Threads may share one object: it holds nothing of a
    call but latents by the images' content, which are the same for every call.

    Attributes
    ----------
    settings, schedule, codec : how it is run, its noise levels, its pixel-latent contract.
    half : whether the networks run in bfloat16, see `RendererSettings`.
    multiple : both sides of the images that the networks see are multiples of this.
    kept_latents : latents of images encoded lately; see `KEPT_LATENTS`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.unet = checkpoint.unet
        self.settings = read_settings(checkpoint.kind, checkpoint.settings, str(checkpoint.folder / "renderer.json"))
        self.half = self.settings.half and self.unet.dtype == torch.float32 and has_fast_bfloat16(self.unet.device)
        small = checkpoint.decoder_small if self.settings.decoder == "small" else None
        if small is None:
            check_decoder(checkpoint.folder, self.settings.decoder)
        self.codec = LatentCodec(checkpoint.vae, self.settings.decode_chunk, self.half, small)
        spacing = self.settings.timestep_spacing
        if checkpoint.scheduler:
            self.schedule = NoiseSchedule.from_config(checkpoint.scheduler, spacing)
        else:
            self.schedule = NoiseSchedule(spacing=spacing or "leading")
        self.multiple = self.codec.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.window = self.settings.window or self.unet.config.num_frames
        overlap = self.window // 4 if self.settings.overlap is None else self.settings.overlap
        self.overlap = min(overlap, self.window - 1)
        self._parameterisation = VPrediction()
        self.kept_latents: BoundedStore[Tensor] = BoundedStore(KEPT_LATENTS, tensor_bytes)

    def fit(self, source: tuple[int, int], size: tuple[int, int] | None = None) -> Fit:
        """How images of ``source`` (width, height) go to the networks; ``size`` overrides the model's working area."""
        return fit_size(source, self.multiple, self.settings.working_area, size)

    def encode(self, images: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames channels _h _w"]:
        """Condition latents of network images in [0, 1], scaled as the model expects them."""
        return self.encode_once(images, self.settings.condition_scaled)

    def encode_once(
        self, images: Float[Tensor, "frames 3 height width"], scaled: bool
    ) -> Float[Tensor, "frames channels _h _w"]:
        """Latents of images; not computed when images of the same content were encoded lately."""
        vae = self.codec.vae
        key = content_key(images, scaled, vae.dtype, str(vae.device))
        return self.kept_latents.get(key, lambda: self.codec.encode(images, scaled=scaled).cpu()).to(vae.device)

    def decode(self, latents: Float[Tensor, "frames channels _h _w"]) -> Float[Tensor, "frames 3 height width"]:
        """Images in [0, 1] of latents as `sample` returns them."""
        return self.codec.decode(latents)

    def sample(
        self,
        network: WindowNetwork,
        noise: Float[Tensor, "frames channels height width"],
        steps: int,
        tick: Tick,
        solver: str | None = None,
    ) -> Float[Tensor, "frames channels height width"]:
        """Latents (scaled) of a whole clip; see `sample_stream`."""
        parts = self.sample_stream(network, lambda frames: noise[frames], len(noise), steps, tick, solver)
        return torch.cat([part.latents for part in parts])

    @torch.no_grad()
    def sample_stream(
        self,
        network: WindowNetwork,
        noise: Callable[[slice], Tensor],
        frames: int,
        steps: int,
        tick: Tick,
        solver: str | None = None,
        first: int = 0,
    ) -> Iterator[Sampled]:
        """Sample latents (scaled) from unit noise, which is scaled to the first noise level here; frames as they are done.

        ``tick(done, total)`` is called after every window of every call of the network. ``solver`` is one of
        `diffusion.SOLVERS`; None for the model's own. Frames before ``first`` are left out as far as others do not depend on
        them. Arithmetic is in float32, or in float64 where the UNet is: at the largest noise levels half precision could not
        hold the signal beside the noise.
        """
        name = self.settings.solver if solver is None else solver
        precise = torch.float64 if self.unet.dtype == torch.float64 else torch.float32
        sigmas = self.schedule.sigmas(steps).to(self.unet.device, precise)
        windows, calls, solve = plan_windows(frames, self.window, self.overlap), network_calls(name, sigmas), find_solver(name)
        begin = first_window(windows, first, calls)
        scaling, done, total = self._parameterisation, 0, calls * (len(windows) - begin)

        def start(part: slice) -> Tensor:
            x = noise(part).to(self.unet.device, precise)
            return x * self.schedule.initial_scale(steps) if self.settings.initial_noise else torch.zeros_like(x)

        def denoise(window: slice, part: Tensor, sigma: Tensor) -> Tensor:
            nonlocal done
            v = network(window, (scaling.c_in(sigma) * part).to(self.unet.dtype), scaling.c_noise(sigma))
            done += 1
            tick(done, total)
            return scaling.denoised(v.to(precise), part, sigma)

        yield from sample_windows(lambda ask, x: solve(ask, x, sigmas), denoise, start, windows, self.overlap, first=begin)

    def first_frames(self, frames: int, steps: int, solver: str | None, wanted: int) -> tuple[int, int]:
        """For a call that is to begin with frame ``wanted``: the first frame to be decoded and the first to be read.

        Pieces of `chunks` begin with both: the decoder is temporal, so a piece is decoded as a whole or not as it would be.
        """
        calls = network_calls(self.settings.solver if solver is None else solver, self.schedule.sigmas(steps))
        windows, chunk = plan_windows(frames, self.window, self.overlap), self.codec.chunk
        begin = wanted // chunk * chunk
        return begin, min(windows[first_window(windows, begin, calls)].start, begin) // chunk * chunk

    def predict(self, unet: nn.Module, inputs: Tensor, c_noise: Tensor, context: object, **options: Tensor) -> Tensor:
        """v of one clip, "frames channels height width": the UNet with a batch axis added and taken away."""
        return self.predict_batch(unet, rearrange(inputs, "f c h w -> 1 f c h w"), c_noise, context, **options)[0]

    def predict_batch(
        self, unet: nn.Module, inputs: Float[Tensor, "batch frames _ h w"], c_noise: Tensor, context: object, **options: Tensor
    ) -> Float[Tensor, "batch frames _c h w"]:
        """v of several clips of one length."""
        ids = torch.tensor([self.settings.time_ids] * len(inputs), dtype=inputs.dtype, device=inputs.device)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.half):
            return unet(inputs, c_noise, context, ids, **options).to(inputs.dtype)

    def chunks(self, frames: int, first: int = 0) -> Iterator[slice]:
        """The clip's frames in pieces small enough for image-sized temporaries, from the piece that has ``first`` on."""
        for start in range(first // self.codec.chunk * self.codec.chunk, frames, self.codec.chunk):
            yield slice(start, min(start + self.codec.chunk, frames))

    def steps(self, steps: int | None) -> int:
        """The number of steps of a call; InputError when it is below 1."""
        if steps is not None and steps < 1:
            raise InputError("at least 1 step", str(steps), "give a larger number of steps")
        return steps or self.settings.default_steps


def ticker(progress: Progress | None, what: str) -> Tick:
    """A callable that reports one stage to ``progress``, and nothing when there is none."""
    return no_tick if progress is None else (lambda done, total: progress(done, total, what))


def checked_start(start: int, frames: int) -> None:
    """InputError unless a clip of so many frames can be begun with frame ``start``."""
    if not 0 <= start < frames:
        raise InputError(f"a first frame from 0 to {frames - 1}", str(start), "give one within the clip")


def checked_latents(images: int, groups: Sequence[object], source: str) -> None:
    """InputError unless a UNet that reads ``images`` latents reads as many image groups."""
    if images != len(groups):
        raise InputError(
            f"a UNet for {len(groups)} condition images in {source}", f"one for {images}", "correct groups in renderer.json"
        )
