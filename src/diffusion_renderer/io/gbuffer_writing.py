"""Writing G-buffers: PNG per buffer, multi-layer EXR, videos."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import BUFFERS, GBuffer
from diffusion_renderer.io.exr import LAYER_LETTERS, layer, read_exr, to_half, write_exr
from diffusion_renderer.io.images import in_parallel, read_image, to_tensor, write_image
from diffusion_renderer.io.layout import FORMATS, note_rate, require_frame
from diffusion_renderer.io.video import VideoWriter

#: Bits per channel in PNG: 8 would show steps in depth.
PNG_BITS = {"depth": 16}


class GBufferWriter:
    """Writes G-buffers piece by piece, as `write_gbuffer` does. A context manager: videos appear when it succeeds.

    Videos beside frames show what their files hold, so that those continued from them are the same.

    Parameters
    ----------
    buffers : which to write; None for those of the first piece.
    depth_range : smallest and largest finite depth of the whole clip, which PNG and mp4 scale by. The default is right for
        relative depth, as the inverse renderers make it; for depth in scene units give `GBuffer.depth_range`.
    first : number of the first frame that is to come. The files of those before it must be there in every other format: videos
        begin with them. InputError at the first `write` where they are not.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        fps: float,
        formats: Sequence[str] = ("png",),
        buffers: Sequence[str] | None = None,
        depth_range: tuple[float, float] | None = (0.0, 1.0),
        first: int = 0,
    ) -> None:
        for value in formats:
            check_name("output format", value, FORMATS)
        for value in buffers or ():
            check_name("buffer", value, BUFFERS)
        self.folder, self._fps, self._count = Path(path) / name, fps, first
        self._earlier = first
        # The files that videos are continued from.
        self._source = next((suffix for suffix in ("png", "exr") if suffix in formats), None)
        self._buffers = None if buffers is None else tuple(buffers)
        self._formats, self._range = frozenset(formats), depth_range
        self._videos: dict[str, VideoWriter] = {}

    def __enter__(self) -> GBufferWriter:
        return self

    def write(self, gbuffer: GBuffer) -> None:
        """Append frames; the buffers to write must be among theirs."""
        if self._buffers is None:
            self._buffers = gbuffer.present
        gbuffer.require(self._buffers)
        tensors = {name: getattr(gbuffer, name) for name in self._buffers}
        mask = {} if gbuffer.mask is None else {"mask": gbuffer.mask.float()}
        encoded: dict[str, Tensor] = {}
        if self._formats & {"png", "mp4"}:
            encoded = {name: self._encoded(name, tensor) for name, tensor in tensors.items()}
        if "png" in self._formats:
            jobs = (
                (self.folder / f"{self._count + index:04d}.{name}.png", image, PNG_BITS.get(name, 8))
                for name, images in {**encoded, **mask}.items()
                for index, image in enumerate(images)
            )
            in_parallel(lambda job: write_image(*job), jobs)
        if "exr" in self._formats:
            layers = {**tensors, **mask}
            in_parallel(lambda index: self._write_layers(index, layers), range(len(gbuffer)))
        if "mp4" in self._formats:
            self._write_videos(encoded)
        self._count += len(gbuffer)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with ExitStack() as stack:
            for video in self._videos.values():
                stack.push(video)
            if error is None and self._formats & {"png", "exr"}:
                note_rate(self.folder, self._fps)
            if error is not None:
                stack.pop_all().__exit__(kind, error, trace)

    def _write_videos(self, encoded: dict[str, Tensor]) -> None:
        if not self._videos:
            for name in encoded:
                path = self.folder.parent / f"{self.folder.name}.{name}.mp4"
                self._videos[name] = VideoWriter(path, self._fps)
            for number in range(self._earlier):
                for name, image in self._read_frame(number).items():
                    self._videos[name].write(image.expand(3, -1, -1))
        for name, images in encoded.items():
            for image in (self._as_in_png(name, images) if self._source == "png" else images).expand(-1, 3, -1, -1):
                self._videos[name].write(image)

    def _encoded(self, name: str, tensor: Tensor) -> Tensor:
        """Images in [0, 1]; where there is an EXR and no PNG, of what is read back from it."""
        if self._source == "exr":
            tensor = torch.from_numpy(to_half(tensor.detach().cpu().numpy()).astype(np.float32))
        return encode_buffer(name, tensor, self._range)

    def _as_in_png(self, name: str, images: Tensor) -> Tensor:
        """What is read back from PNG of more than the 8 bits that a video has."""
        if name not in PNG_BITS:
            return images
        top = 2 ** PNG_BITS[name] - 1
        return (images.nan_to_num(0.0).clamp(0.0, 1.0) * top).round() / top

    def _read_frame(self, number: int) -> dict[str, Tensor]:
        """The encoded images of a frame that was written before, channels height width."""
        names = self._buffers or ()
        if self._source != "exr":
            return {name: read_image(require_frame(self.folder, number, name, self._source)) for name in names}
        path = require_frame(self.folder, number, "gbuffer", self._source)
        channels, images = read_exr(path), {}
        for name in names:
            pixels = layer(channels, name, LAYER_LETTERS[name][0])
            if pixels is None:
                raise InputError(f"the layer {name} in {path}", "none", "make all frames again")
            images[name] = encode_buffer(name, to_tensor(pixels)[None], self._range)[0]
        return images

    def _write_layers(self, index: int, tensors: dict[str, Tensor]) -> None:
        channels = {}
        for name, tensor in tensors.items():
            for letter, pixels in zip(LAYER_LETTERS[name][0], tensor[index].cpu().numpy(), strict=True):
                channels[f"{name}.{letter}"] = pixels
        write_exr(self.folder / f"{self._count + index:04d}.gbuffer.exr", channels)


def write_gbuffer(
    gbuffer: GBuffer, path: str | Path, *, formats: Sequence[str] = ("png",), buffers: Sequence[str] | None = None
) -> Path:
    """Write G-buffers under the folder ``path``; returns the folder of frames, or ``path`` when there are only videos.

    ``formats`` picks from ``png`` (``<path>/<name>/0000.<buffer>.png``, 8 bits, relative depth 16 bits), ``exr``
    (``<path>/<name>/0000.gbuffer.exr``: half-float layers, linear, depth as it is) and ``mp4``
    (``<path>/<name>.<buffer>.mp4``). The mask, when known, goes with PNG and EXR. ``buffers`` limits what is written. Every
    file is written under a temporary name first.
    """
    for name in buffers or ():
        check_name("buffer", name, BUFFERS)
    gbuffer.require(tuple(buffers or ()))
    names = tuple(buffers or gbuffer.present)
    if not names or not len(gbuffer):
        raise InputError("G-buffers to write", f"none in {gbuffer.name}", "keep at least one buffer and one frame")
    with GBufferWriter(path, gbuffer.name, gbuffer.fps, formats, names, gbuffer.depth_range()) as writer:
        writer.write(gbuffer)
    return writer.folder if {"png", "exr"} & set(formats) else Path(path)
