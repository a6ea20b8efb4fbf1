"""Contact sheets: rows of labelled images in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io.atomic import atomic_path
from diffusion_renderer.io.images import quantise

BACKGROUND, INK = (24, 26, 30), (225, 228, 232)
GAP = 6
MARGIN = 12


def write_sheet(
    path: str | Path,
    rows: Sequence[tuple[str, Sequence[Float[Tensor, "3 _ _"]]]],
    *,
    columns: Sequence[str] = (),
    cell: int = 192,
) -> Path:
    """Write rows of (label, images) as one PNG, labels on the left, optional column titles above.

    Images are in [0, 1] and are scaled to ``cell`` pixels of width, their aspect ratio kept; rows may differ in length. Raises
    InputError when there is no image at all.
    """
    if not any(images for _, images in rows):
        raise InputError("at least one image for the contact sheet", "none", "check that the run produced images")
    font = ImageFont.load_default(size=14)
    tiles = [(label, [_tile(image, cell) for image in images]) for label, images in rows]
    left = MARGIN + max(round(font.getlength(label)) for label, _ in tiles) + MARGIN
    top = MARGIN + (24 if columns else 0)
    width = left + max(len(images) for _, images in tiles) * (cell + GAP) - GAP + MARGIN
    heights = [max((image.height for image in images), default=20) for _, images in tiles]
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * (len(tiles) - 1) + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, title in enumerate(columns):
        draw.text((left + index * (cell + GAP) + cell // 2, MARGIN + 8), title, INK, font, anchor="mm")
    for (label, images), height in zip(tiles, heights, strict=True):
        draw.text((MARGIN, top + height // 2), label, INK, font, anchor="lm")
        for index, image in enumerate(images):
            sheet.paste(image, (left + index * (cell + GAP), top))
        top += height + GAP
    path = Path(path)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _tile(image: Float[Tensor, "3 height width"], cell: int) -> Image.Image:
    pixels = Image.fromarray(np.ascontiguousarray(quantise(image)))
    height = max(1, min(4 * cell, round(cell * pixels.height / pixels.width)))
    return pixels.resize((cell, height), Image.Resampling.LANCZOS)
