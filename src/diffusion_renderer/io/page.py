"""One self-contained ``index.html``: videos and images side by side, played in step, with tables of numbers."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.io.atomic import write_bytes
from diffusion_renderer.io.images import require_file
from diffusion_renderer.io.page_template import PAGE

#: Above this the media stay in their files beside the page: browsers choke on larger documents.
EMBED_LIMIT = 60 * 2**20
MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".mov": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}


@dataclass(frozen=True)
class Figure:
    """A video or an image with its label; ``caption`` is a line of small print."""

    label: str
    media: Path
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Numbers as text: ``rows`` are as long as ``header``; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a line of text, figures side by side, then a table."""

    title: str
    figures: Sequence[Figure] = ()
    text: str = ""
    table: Table | None = None


def write_page(path: str | Path, title: str, sections: Sequence[Section], *, text: str = "") -> Path:
    """Write ``path`` (``index.html``, or a folder that gets one).

    The page needs no network and no other file: media are embedded as ``data:`` URIs, up to 60 MB in all; beyond that all are
    linked by relative path, and the page says so. All videos play, pause and scrub together. Browsers show H.264 and VP9, PNG,
    JPEG, WebP and GIF; other media raise InputError.
    """
    path = Path(path)
    path = path / "index.html" if path.suffix.lower() not in (".html", ".htm") else path
    media = [Path(figure.media) for section in sections for figure in section.figures]
    for file in media:
        require_file(file)
        if file.suffix.lower() not in MEDIA_TYPES:
            raise InputError(f"media that browsers show, {' '.join(MEDIA_TYPES)}", str(file), "write it as PNG or MP4")
    # Base 64 makes four bytes of three.
    embed = sum(file.stat().st_size for file in media) * 4 / 3 <= EMBED_LIMIT
    note = "" if embed else '<p class="note">The media exceed 60 MB and are linked: keep this page beside its folders.</p>'
    body = "\n".join(_section(section, path.parent, embed) for section in sections)
    parts = {"TITLE": html.escape(title), "TEXT": html.escape(text), "NOTE": note, "BODY": body}
    document = re.sub(r"<!--([A-Z]+)-->", lambda match: parts[match[1]], PAGE)
    return write_bytes(path, document.encode("utf-8"))


def _section(section: Section, folder: Path, embed: bool) -> str:
    figures = "\n".join(_figure(figure, folder, embed) for figure in section.figures)
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if figures:
        parts.append(f'<div class="figures">\n{figures}\n</div>')
    if section.table:
        parts.append(_table(section.table))
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _figure(figure: Figure, folder: Path, embed: bool) -> str:
    source, label = _source(Path(figure.media), folder, embed), html.escape(figure.label)
    if MEDIA_TYPES[Path(figure.media).suffix.lower()].startswith("video"):
        shown = f'<video src="{source}" aria-label="{label}" muted loop playsinline preload="auto"></video>'
    else:
        shown = f'<img src="{source}" alt="{label}">'
    small = f"<small>{html.escape(figure.caption)}</small>" if figure.caption else ""
    return f"<figure>{shown}<figcaption>{label}{small}</figcaption></figure>"


def _source(media: Path, folder: Path, embed: bool) -> str:
    if not embed:
        return quote(Path(os.path.relpath(media.resolve(), folder.resolve())).as_posix())
    encoded = base64.b64encode(media.read_bytes()).decode("ascii")
    return f"data:{MEDIA_TYPES[media.suffix.lower()]};base64,{encoded}"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
