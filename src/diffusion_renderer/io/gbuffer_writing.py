"""Writing G-buffers: PNG per buffer, multi-layer EXR, videos."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from torch import Tensor

from diffusion_renderer.core.encoding import encode_buffer
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.names import check_name
from diffusion_renderer.core.types import BUFFERS, GBuffer
from diffusion_renderer.io.exr import LAYER_LETTERS, write_exr
from diffusion_renderer.io.images import in_parallel, write_image
from diffusion_renderer.io.layout import FORMATS, note_rate
from diffusion_renderer.io.video import VideoWriter

#: Bits per channel in PNG: 8 would show steps in depth.
PNG_BITS = {"depth": 16}


class GBufferWriter:
    """Writes G-buffers piece by piece, as `write_gbuffer` does. A context manager: videos appear when it succeeds.

    Parameters
    ----------
    buffers : which to write; None for those of the first piece.
    depth_range : smallest and largest finite depth of the whole clip, which PNG and mp4 scale by. The default is right for
        relative depth, as the inverse renderers make it; for depth in scene units give `GBuffer.depth_range`.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        fps: float,
        formats: Sequence[str] = ("png",),
        buffers: Sequence[str] | None = None,
        depth_range: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        for value in formats:
            check_name("output format", value, FORMATS)
        for value in buffers or ():
            check_name("buffer", value, BUFFERS)
        self.folder, self._fps, self._count = Path(path) / name, fps, 0
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
            encoded = {name: encode_buffer(name, tensor, self._range) for name, tensor in tensors.items()}
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
        for name in self._buffers if "mp4" in self._formats else ():
            if name not in self._videos:
                path = self.folder.parent / f"{self.folder.name}.{name}.mp4"
                self._videos[name] = VideoWriter(path, self._fps)
            for image in encoded[name].expand(-1, 3, -1, -1):
                self._videos[name].write(image)
        self._count += len(gbuffer)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with ExitStack() as stack:
            for video in self._videos.values():
                stack.push(video)
            if error is None and self._formats & {"png", "exr"}:
                note_rate(self.folder, self._fps)
            if error is not None:
                stack.pop_all().__exit__(kind, error, trace)

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
