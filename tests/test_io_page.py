"""Contact sheets and result pages."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_renderer.core.errors import InputError
from diffusion_renderer.core.types import Clip
from diffusion_renderer.io import Figure, Section, Table, write_image, write_page, write_sheet


def test_a_sheet_shows_every_image_at_its_place(tmp_path):
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 32, 64)
    green = torch.tensor([0, 1.0, 0]).view(3, 1, 1).expand(3, 64, 64)
    path = write_sheet(
        tmp_path / "sheet.png", [("input", [red, green]), ("a long label", [green])], columns=("one", "two"), cell=40
    )
    sheet = np.asarray(Image.open(path))
    reds = (sheet == (255, 0, 0)).all(axis=-1)
    greens = (sheet == (0, 255, 0)).all(axis=-1)
    assert reds.sum() == 40 * 20 and greens.sum() == 2 * 40 * 40  # aspect ratios are kept
    assert reds.any(axis=0).argmax() == greens[60:].any(axis=0).argmax()  # first column of both rows


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (500, 1)])
def test_a_sheet_of_extreme_sizes(tmp_path, size):
    write_sheet(tmp_path / "sheet.png", [("x", [torch.rand(3, *size)]), ("none", [])])
    with pytest.raises(InputError):
        write_sheet(tmp_path / "empty.png", [("x", [])])


class Tags(HTMLParser):
    """Collects tags, and checks that they nest."""

    VOID = ("meta", "img", "input", "link", "br")

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def sections(tmp_path):
    video = Clip(torch.rand(3, 3, 16, 16), name="shot").write(tmp_path / "out" / "shot.mp4")
    image = write_image(tmp_path / "out" / "a b.png", torch.rand(3, 8, 8))
    table = Table(("buffer", "error"), (("normal", "12.3°"), ("<b>", "1")), "means over the clip")
    return video, [Section("Input & <buffers>", (Figure("shot", video, "as read"), Figure("still", image)), "text", table)]


def test_a_page_is_one_file_that_needs_nothing_else(tmp_path):
    video, parts = sections(tmp_path)
    path = write_page(tmp_path / "out", "Relit <shot>", parts, text="made in 3 s")
    assert path == tmp_path / "out" / "index.html"
    page = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    sources = [value for _, attrs in tags.found for key, value in attrs.items() if key in ("src", "href")]
    assert len(sources) == 2 and all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"data:[^\"]*", "", page))
    embedded = next(source for source in sources if source.startswith("data:video/mp4;base64,"))
    assert base64.b64decode(embedded.partition(",")[2]) == video.read_bytes()
    for text in ("Relit &lt;shot&gt;", "Input &amp; &lt;buffers&gt;", "<td>12.3°</td>", "&lt;b&gt;", "made in 3 s", "as read"):
        assert text in page
    assert "<!--" not in page and "60 MB" not in page


def test_large_media_are_linked_and_the_page_says_so(tmp_path, monkeypatch):
    import diffusion_renderer.io.page as module

    _, parts = sections(tmp_path)
    monkeypatch.setattr(module, "EMBED_LIMIT", 100)
    page = write_page(tmp_path / "out" / "page.html", "Relit", parts).read_text()
    assert "60 MB" in page
    assert 'src="shot.mp4"' in page and 'src="a%20b.png"' in page


def test_media_that_browsers_do_not_show_are_refused(tmp_path):
    exr = write_image(tmp_path / "a.exr", torch.rand(3, 8, 8))
    with pytest.raises(InputError, match="media that browsers show"):
        write_page(tmp_path, "x", [Section("s", [Figure("a", exr)])])
    with pytest.raises(InputError, match="nothing there"):
        write_page(tmp_path, "x", [Section("s", [Figure("a", tmp_path / "none.png")])])
    assert not (tmp_path / "index.html").exists()
