"""What the two diffusion renderers share: a UNet run as a denoiser over windows, images to latents and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.resize import Fit, fit_size
from diffusion_renderer.diffusion import NoiseSchedule, VPrediction, sample_euler
from diffusion_renderer.models import Checkpoint, LatentCodec
from diffusion_renderer.pipelines.protocols import Progress
from diffusion_renderer.pipelines.settings import read_settings
from diffusion_renderer.pipelines.windows import denoise_windows, plan_windows

#: v of one window: (its frames, network input "frames channels h w", c_noise) to "frames channels h w".
WindowNetwork = Callable[[slice, Tensor, Tensor], Tensor]


class DiffusionRenderer:
    """The networks of one checkpoint and the constants of running them. Holds nothing of a call: threads may share one object.

    Attributes
    ----------
    settings, schedule, codec : how it is run, its noise levels, its pixel-latent contract.
    multiple : both sides of the images that the networks see are multiples of this.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.unet = checkpoint.unet
        self.settings = read_settings(checkpoint.kind, checkpoint.settings, str(checkpoint.folder / "renderer.json"))
        self.codec = LatentCodec(checkpoint.vae, self.settings.decode_chunk)
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

    def fit(self, source: tuple[int, int], size: tuple[int, int] | None = None) -> Fit:
        """How images of ``source`` (width, height) go to the networks; ``size`` overrides the model's working area."""
        return fit_size(source, self.multiple, self.settings.working_area, size)

    def encode(self, images: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames channels _h _w"]:
        """Condition latents of network images in [0, 1], scaled as the model expects them."""
        return self.codec.encode(images, scaled=self.settings.condition_scaled)

    def decode(self, latents: Float[Tensor, "frames channels _h _w"]) -> Float[Tensor, "frames 3 height width"]:
        """Images in [0, 1] of latents as `sample` returns them."""
        return self.codec.decode(latents)

    @torch.no_grad()
    def sample(
        self,
        network: WindowNetwork,
        noise: Float[Tensor, "frames channels height width"],
        steps: int,
        tick: Callable[[int, int], None],
    ) -> Float[Tensor, "frames channels height width"]:
        """Sample latents (scaled) from unit noise, which is scaled to the first noise level here.

        ``tick(done, total)`` is called after every window of every step. Arithmetic is in float32, or in float64 where the UNet
        is: at the largest noise levels half precision could not hold the signal beside the noise.
        """
        windows = plan_windows(len(noise), self.window, self.overlap)
        sigmas = self.schedule.sigmas(steps)
        precise = torch.float64 if self.unet.dtype == torch.float64 else torch.float32
        x = noise.to(self.unet.device, precise) * self.schedule.initial_scale(steps)
        if not self.settings.initial_noise:
            x = torch.zeros_like(x)
        scaling, done = self._parameterisation, 0

        def denoise(window: slice, part: Tensor, sigma: Tensor) -> Tensor:
            nonlocal done
            v = network(window, (scaling.c_in(sigma) * part).to(self.unet.dtype), scaling.c_noise(sigma))
            done += 1
            tick(done, steps * len(windows))
            return scaling.denoised(v.to(precise), part, sigma)

        return sample_euler(denoise_windows(denoise, windows, self.overlap), x, sigmas.to(x))

    def predict(self, unet: nn.Module, inputs: Tensor, c_noise: Tensor, context: object, **options: Tensor) -> Tensor:
        """v of one clip: the UNet with a batch axis added and taken away."""
        ids = torch.tensor([self.settings.time_ids], dtype=inputs.dtype, device=inputs.device)
        return unet(rearrange(inputs, "f c h w -> 1 f c h w"), c_noise, context, ids, **options)[0]

    def chunks(self, frames: int) -> Iterator[slice]:
        """The clip's frames in pieces small enough for image-sized temporaries."""
        for start in range(0, frames, self.codec.chunk):
            yield slice(start, min(start + self.codec.chunk, frames))

    def steps(self, steps: int | None) -> int:
        """The number of steps of a call; InputError when it is below 1."""
        if steps is not None and steps < 1:
            raise InputError("at least 1 step", str(steps), "give a larger number of steps")
        return steps or self.settings.default_steps


def ticker(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    """A callable that reports one stage to ``progress``, and nothing when there is none."""
    return (lambda done, total: None) if progress is None else (lambda done, total: progress(done, total, what))


def checked_latents(images: int, groups: Sequence[object], source: str) -> None:
    """InputError unless a UNet that reads ``images`` latents reads as many image groups."""
    if images != len(groups):
        raise InputError(
            f"a UNet for {len(groups)} condition images in {source}", f"one for {images}", "correct groups in renderer.json"
        )
