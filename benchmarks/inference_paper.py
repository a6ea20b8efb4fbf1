"""Work on paper: what one call of every network costs, and a whole job in both orders of work. Nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from inference_counting import Work, count_on_paper
from inference_reference import as_published
from torch import nn

from diffusion_renderer.models import AutoencoderKLTemporalDecoder, LightReader
from diffusion_renderer.training.presets import Preset

#: TFLOP of one call at 24 frames of 512 x 512 that the goals of the published sizes were reckoned with.
EXPECTED = {"inverse step": 30.4, "forward step": 33.3, "encode": 26.8, "decode": 73.0, "light encoder": 7.0}


@dataclass(frozen=True)
class Line:
    """One call of a network: as published, and as the package calls it."""

    name: str
    parameters: int
    published: Work
    package: Work


def lines(preset: Preset, frames: int, size: int) -> list[Line]:
    """Every network's call on a clip of ``frames`` frames of ``size`` pixels, a light at rest.

    ``published`` encodes the light of every frame and computes every query of the cross-attention; ``package`` reads one frame
    of it. The forward step without light is what guidance costs beside the forward step.
    """
    with torch.device("meta"):
        vae, encoder, small = preset.vae(), preset.env_encoder(), preset.small_decoder()
        inverse, forward = preset.inverse_unet(), preset.forward_unet()
    for network in (vae, small, encoder, inverse, forward):
        network.to("meta").eval()
    return list(_lines(preset, vae, small, encoder, inverse, forward, frames, size))


def _lines(
    preset: Preset,
    vae: AutoencoderKLTemporalDecoder,
    small: nn.Module,
    encoder: nn.Module,
    inverse: nn.Module,
    forward: nn.Module,
    frames: int,
    size: int,
) -> Iterator[Line]:
    side, light_side, channels = size // preset.factor, preset.env_size // preset.factor, preset.latent_channels
    chunk = min(frames, 8)

    def light(count: int) -> torch.Tensor:
        return torch.empty(1, count, encoder.config.in_channels, light_side, light_side)

    def inverse_step() -> None:
        context = torch.empty(1, 1, preset.context_channels)
        row = torch.zeros(1, dtype=torch.long)
        inverse(torch.empty(1, frames, inverse.config.in_channels, side, side), torch.empty(()), context, IDS, context_ids=row)

    def forward_step(count: int | None) -> None:
        given = LightReader(forward, encoder)(light(count or 1), (side, side))
        features.append(given.dropped().features if count is None else given.features)
        forward(torch.empty(1, frames, forward.config.in_channels, side, side), torch.empty(()), features[-1], IDS)

    def decode() -> None:
        for start in range(0, frames, chunk):
            count = min(chunk, frames - start)
            vae.decode(torch.empty(count, channels, side, side), num_frames=count)

    def without_encoder(work: Work, light_work: Work) -> Work:
        return Work(work.flops - light_work.flops, work.bytes - light_work.bytes, work.launches - light_work.launches)

    with torch.device("meta"):
        IDS = torch.empty(1, 3)
    features: list[list[torch.Tensor]] = []
    encode = count_on_paper(lambda: vae.encode(torch.empty(frames, 3, size, size)))
    maps, one_map = (count_on_paper(lambda count=count: encoder(light(count))) for count in (frames, 1))
    decoding = count_on_paper(decode)
    lightly = count_on_paper(lambda: small(torch.empty(frames, channels, side, side)))
    steps = [count_on_paper(inverse_step), *(count_on_paper(lambda c=c: forward_step(c)) for c in (1, None))]
    as_published(inverse), as_published(forward)
    old = [count_on_paper(inverse_step), count_on_paper(lambda: forward_step(frames))]
    full = without_encoder(old[1], maps)
    yield Line("inverse step", _count(inverse), old[0], steps[0])
    yield Line("forward step", _count(forward), full, without_encoder(steps[1], one_map))
    yield Line("forward step without light", _count(forward), full, without_encoder(steps[2], one_map))
    yield Line("encode", _count(vae.encoder), encode, encode)
    yield Line("decode", _count(vae.decoder), decoding, decoding)
    yield Line("decode, small decoder", _count(small), decoding, lightly)
    yield Line("light encoder", _count(encoder), maps, one_map)


def _count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def totals(found: list[Line], preset: Preset, frames: int, steps: int, guidance: float) -> tuple[float, float]:
    """TFLOP of five buffers and one relit clip under a light at rest: in the published order, and in the package's."""
    old = {line.name: line.published.flops for line in found}
    new = {line.name: line.package.flops for line in found}
    light_images = (preset.env_size / preset.size) ** 2
    images = len(preset.groups) + (preset.prior is not None)
    decodes = 2 if preset.residual else 1
    guided = guidance > 1
    published = 5 * (old["encode"] + steps * old["inverse step"] + old["decode"])
    published += (images + 3 * light_images) * old["encode"] + old["light encoder"]
    published += steps * (2 if guided else 1) * old["forward step"] + decodes * old["decode"]
    passes = 1 if preset.joint else len(preset.groups)
    package = new["encode"] + passes * steps * new["inverse step"] + len(preset.groups) * new["decode"]
    package += (images + 3 * light_images / frames) * new["encode"] + new["light encoder"]
    package += steps * (new["forward step"] + guided * new["forward step without light"]) + decodes * new["decode"]
    return published / 1e12, package / 1e12


def report(preset: Preset, frames: int, size: int, steps: int, guidance: float) -> tuple[str, list[dict[str, object]]]:
    """The table in Markdown, and its rows for a file."""
    found = lines(preset, frames, size)
    known = preset.name == "svd" and (frames, size) == (24, 512)
    rows = ["| one call | M parameters | TFLOP published | expected | TFLOP package | GB moved | operations |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|")
    kept = []
    for line in found:
        expected = EXPECTED.get(line.name) if known else None
        # In half precision, two bytes for each value, where the paper run has four.
        moved, shown = line.package.bytes / 2e9, "-" if expected is None else f"{expected:.1f}"
        tera = [work.flops / 1e12 for work in (line.published, line.package)]
        rows.append(
            f"| {line.name} | {line.parameters / 1e6:.0f} | {tera[0]:.4g} | {shown} | {tera[1]:.4g} | {moved:.3g} "
            f"| {line.package.launches} |"
        )
        kept.append({"name": line.name, "parameters": line.parameters, "expected_tflop": expected})
        kept[-1] |= {"published": vars(line.published), "package": vars(line.package)}
    old, new = totals(found, preset, frames, steps, guidance)
    rows.append("")
    rows.append(
        f"Five buffers and one relit clip, {frames} frames of {size} x {size}, {steps} steps, guidance {guidance:g}, a light "
        f"at rest: {old:.4g} TFLOP in the published order, {new:.4g} in the package's ({old / new:.2f} times less)."
    )
    return "\n".join(rows), kept
