"""What is too much, and the one exception that says why an asset is not used."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from diffusion_renderer.core.errors import InputError


class SkippedAsset(Exception):
    """One asset cannot be used. Callers take another asset; users see the reason in a report, never a traceback."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Unusable(ValueError):
    """Raised by the readers of this package, who do not know the asset's name; `AssetLibrary` turns it to `SkippedAsset`."""


@dataclass(frozen=True)
class AssetLimits:
    """What an asset may cost. Raises InputError for values that no asset could meet.

    Attributes
    ----------
    max_faces : triangles of one model, before and after transparency is cut out.
    max_file_bytes : of a model's file, and of each file that it refers to.
    max_parts : parts (one material each) of one model; more are merged into one.
    texture_size : texels along the longer side of every texture; larger ones are averaged down.
    """

    max_faces: int = 200_000
    max_file_bytes: int = 200_000_000
    max_parts: int = 7
    texture_size: int = 512

    def __post_init__(self) -> None:
        for name, least in (("max_faces", 1), ("max_file_bytes", 1), ("max_parts", 1), ("texture_size", 16)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name}: a whole number of at least {least}", str(value), "give a larger number")

    def to_json(self) -> dict[str, int]:
        """As plain values."""
        return asdict(self)
