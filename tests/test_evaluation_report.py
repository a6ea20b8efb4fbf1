"""Reports: the same numbers as Markdown, CSV, LaTeX and one HTML page that needs nothing else."""

import base64
import csv
import io
import math
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import imagecodecs
import numpy as np
import pytest
import torch

from diffusion_renderer.core.color import srgb_eotf
from diffusion_renderer.core.errors import InputError
from diffusion_renderer.evaluation.metrics import ANGLE, PSNR, RMSE, Metric
from diffusion_renderer.evaluation.report import error_map, picture, png, print_table, write_report
from diffusion_renderer.evaluation.report.breakdown import examples_of
from diffusion_renderer.evaluation.report.grid import columns_of
from diffusion_renderer.evaluation.report.pictures import NOT_FINITE, OUTSIDE, colour_map, error_of
from diffusion_renderer.evaluation.report.tables import latex, latex_escape, markdown
from diffusion_renderer.evaluation.results import Figure, Results
from diffusion_renderer.evaluation.statistics import ClipValues

LPIPS = Metric("LPIPS", "", False, lambda *_: math.nan)
SHARE = Metric("< 11.25°", "%", True, lambda *_: math.nan)
SYSTEMS = ("ours_v2", "split & sum", "constant")
CLIPS = tuple(f"clip {i}" for i in range(6))
LIGHTS = ("sunset", "studio")
COLUMNS = (("rgb", PSNR), ("rgb", RMSE), ("rgb", LPIPS), ("normal", ANGLE), ("normal", SHARE))
#: Value of a perfectly ordinary clip, and how much worse each further system is.
LEVELS = {
    "PSNR": (27.0, -0.4, 1.5),
    "RMSE": (0.041, 0.003, 0.004),
    "mean angular error": (12.0, 4.0, 2.0),
    "< 11.25°": (71.0, -9.0, 5.0),
}


def figures():
    """Three systems, six clips, two lights; "constant" fails once and is not asked for normals."""
    generator = np.random.default_rng(0)
    found = []
    for clip in CLIPS:
        for what, metric in COLUMNS:
            if metric is LPIPS:
                continue
            level, step, spread = LEVELS[metric.name]
            for light in LIGHTS:
                shared = spread * generator.normal()
                for i, system in enumerate(SYSTEMS):
                    if system == "constant" and what == "normal":
                        continue
                    value = float(level + i * step + shared + 0.05 * spread * generator.normal())
                    put = partial(Figure, system, clip, light, what, metric.name)
                    failed = system == "constant" and (clip, light) == ("clip 2", "studio")
                    found.append(put(math.nan, failure="frame 3 is <missing> | NaN") if failed else put(value))
                    if clip in CLIPS[:5] and not failed:
                        found.append(put(value - step, part="metal"))
    return found


def pictures():
    generator = torch.Generator().manual_seed(0)
    shown = []
    for clip in CLIPS:
        truth = torch.rand(3, 8, 12, generator=generator)
        shown.append(picture("input", clip, "", "rgb", truth.flip(0)))
        for light in LIGHTS:
            shown.append(picture("truth", clip, light, "rgb", truth))
            for i, system in enumerate(SYSTEMS):
                shown.append(picture(system, clip, light, "rgb", (truth + 0.05 * i).clamp(0, 1), truth))
    return shown


@pytest.fixture(scope="module")
def results():
    return Results(
        task="relight",
        suite="tiny objects",
        protocol="Each clip is shown under <another> light; sRGB & whole pictures.",
        systems=SYSTEMS,
        metrics=COLUMNS,
        figures=figures(),
        unavailable={"LPIPS": "the backbone's weights are not on this machine"},
        pictures=pictures(),
        notes=("made with `evaluate relight`",),
    )


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    paths = write_report(results, tmp_path_factory.mktemp("out") / "new")
    return {path.name.partition(".")[2]: path for path in paths}


class Page(HTMLParser):
    """Collects elements and text, and checks that tags nest."""

    VOID = ("meta", "img", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.rows, self.headings, self.ids = [], [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.found.append((tag, attributes))
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.add(attributes["id"])
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "h2":
            self.headings.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data + " "
        elif self.open and self.open[-1] == "h2":
            self.headings[-1] += data


@pytest.fixture(scope="module")
def html(written):
    return written["html"].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(html):
    return Page(html)


def test_all_forms_are_written_under_one_name(written, results, tmp_path):
    assert sorted(written) == ["csv", "figures.csv", "html", "md", "tex"]
    assert all(path.name.startswith("relight-tiny-objects.") for path in written.values())
    before = {name: path.read_bytes() for name, path in written.items()}
    again = write_report(results, tmp_path)
    assert {path.name.partition(".")[2]: path.read_bytes() for path in again} == before  # deterministic


def test_a_folder_that_cannot_be_made_is_an_input_error(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="writable"):
        write_report(results, tmp_path / "file" / "below")


def test_the_page_needs_no_other_file_and_its_pictures_decode(html, parsed, results):
    links = [value for _, attributes in parsed.found for key, value in attributes.items() if key in ("src", "href")]
    images = [link for link in links if link.startswith("data:image/png;base64,")]
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in links if link not in images)
    assert not re.search(r"https?:|@import|url\(", re.sub(r"data:[^\"]*", "", html))
    shapes = {imagecodecs.png_decode(base64.b64decode(link.partition(",")[2])).shape for link in images}
    assert shapes == {(8, 12, 3)}
    # Per clip the input, the truth, and of three systems the picture and its error; all six clips have pictures.
    assert len(images) == 6 * (1 + 1 + 2 * 3)


def test_the_page_is_light_and_dark_and_fits_a_phone(html):
    assert "prefers-color-scheme: light" in html and "color-scheme: light dark" in html
    assert 'name="viewport" content="width=device-width' in html


def test_the_page_has_every_section_and_leaves_out_empty_ones(parsed, results, tmp_path):
    assert parsed.headings == [
        *("Table", "Failed", "Paired comparisons", "By material", "By light", "Worst clips", "Best clips", "All clips"),
    ]
    plain = [replace(f, light="") for f in results.figures if f.part == "all" and f.light == "sunset"]
    paths = write_report(replace(results, figures=plain, pictures=(), systems=SYSTEMS[:1]), tmp_path)
    assert Page(paths[-1].read_text(encoding="utf-8")).headings == ["Table", "All clips"]


def test_a_table_without_any_figure_can_be_written(results, tmp_path):
    paths = write_report(replace(results, figures=(), pictures=(), unavailable={}, metrics=(), systems=()), tmp_path)
    Page(paths[-1].read_text(encoding="utf-8"))
    paths = write_report(replace(results, figures=(), pictures=()), tmp_path)
    assert "| ours_v2 " in paths[0].read_text(encoding="utf-8")


def test_text_is_escaped(html, written, parsed):
    assert "<another>" not in html and "&lt;another&gt;" in html
    assert "split &amp; sum" in html
    assert any("frame 3 is <missing> | NaN" in cell for row in parsed.rows for cell in row)
    text = written["md"].read_text(encoding="utf-8")
    assert "&lt;another>" in text and "&lt;missing> \\| NaN" in text


def test_the_tables_of_a_page_are_rectangles(html):
    for table in re.findall(r"<table.*?</table>", html, re.S):
        body = Page(re.sub(r".*<tbody>", "<tbody>", table, flags=re.S).removesuffix("</table>")).rows
        head = Page(re.search(r"<thead>.*?</thead>", table, re.S)[0])
        spans = sum(int(a.get("colspan", 1)) for tag, a in head.found[: len(head.found)] if tag == "th")
        below = len(head.rows[1]) if len(head.rows) > 1 else 0
        assert {len(row) for row in body} == {spans - below}


def test_the_page_shows_mean_interval_failures_and_what_is_missing(parsed, results):
    summary = ClipValues(results.figures).summary("ours_v2", "rgb", "PSNR")
    rows = {row[0].strip(): row for row in parsed.rows[:5]}
    assert rows["ours_v2"][1].split() == [f"{summary.mean:.2f}", f"[{summary.low:.2f},", f"{summary.high:.2f}]"]
    assert "1 failed" in rows["constant"][1] and "failed" not in rows["ours_v2"][1]
    assert [row[3].strip() for row in rows.values() if row[0].strip() in SYSTEMS] == ["n/a"] * 3
    assert rows["constant"][4].strip() == "\N{EN DASH}"  # not asked for normals


def test_sortable_cells_hold_the_numbers(html):
    table = re.search(r'<table class="sortable">.*?</table>', html, re.S)[0]
    rows = [re.findall(r'data-value="([^"]*)"', row) for row in re.findall(r"<tr>.*?</tr>", table, re.S)][1:]
    assert len(rows) == 18 and {len(row) for row in rows} == {2 + len(COLUMNS)}
    assert [row[:2] for row in rows if "" == row[2]] == [["clip 2", "constant"]]
    assert {row[4] for row in rows} == {""}  # LPIPS
    assert 20 < float(rows[0][2]) < 33


def markdown_rows(text):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]


def test_markdown_has_the_same_table(written, results):
    text = written["md"].read_text(encoding="utf-8")
    rows = markdown_rows(text)
    summary = ClipValues(results.figures).summary("ours_v2", "rgb", "PSNR")
    assert rows[0] == ["rgb", "PSNR (dB) ↑", "RMSE ↓", "LPIPS ↓"]
    assert rows[2][0] == "ours_v2" and rows[2][1] == f"**{summary.mean:.2f}** ±{summary.half_width:.2f}"
    assert rows[2][3] == "not available" and rows[4][1].endswith("(1 failed)")
    assert ["normal", "mean angular error (°) ↓", r"< 11.25° (%) ↑"] in rows
    for part in ("LPIPS could not be computed: the backbone", "made with `evaluate relight`", "## Paired comparisons"):
        assert part in text


def test_the_terminal_gets_the_tables_failures_and_what_is_missing(results):
    text = print_table(results)
    assert markdown_rows(text)[:5] == markdown_rows(markdown(results))[:5]
    widths = {len(line) for line in text.split("\n\n")[1].splitlines()}
    assert len(widths) == 1  # aligned
    assert "LPIPS could not be computed" in text and "frame 3" in text and "Paired" not in text


def test_only_systems_with_the_most_clips_are_marked(results):
    # "constant" becomes best by far, but on fewer clips.
    raised = [replace(f, value=f.value + 50) if f.system == "constant" else f for f in results.figures]
    rows = markdown_rows(print_table(replace(results, figures=raised)))
    assert rows[2][1].startswith("**") and not rows[4][1].startswith("**")
    complete = [f for f in raised if f.clip != "clip 2"]
    rows = markdown_rows(print_table(replace(results, figures=complete)))
    assert rows[4][1].startswith("**") and rows[2][1].startswith("*2") and rows[3][1][0].isdigit()


def test_equal_numbers_share_the_mark(results):
    same = [replace(f, value=25.001 if f.system == "constant" else 25.0, failure="") for f in results.figures]
    rows = markdown_rows(print_table(replace(results, figures=same)))
    assert not any("*" in row[1] for row in rows[2:5])  # all alike: nobody is best
    two = [replace(f, value=20.0) if f.system == "split & sum" else f for f in same]
    rows = markdown_rows(print_table(replace(results, figures=two)))
    assert [row[1][:2] for row in rows[2:5]] == ["**", "*2", "**"]


@pytest.mark.parametrize(("level", "shown"), [(0.04123, "0.0412"), (0.4123, "0.412"), (-0.5, "\N{MINUS SIGN}0.500")])
def test_digits_follow_the_size_of_the_numbers(level, shown, results):
    only = [replace(f, value=level, failure="") for f in results.figures if f.metric == "RMSE"]
    assert f"| {shown} " in print_table(replace(results, figures=only, metrics=COLUMNS[1:2]))


def test_close_pairs_are_compared_and_the_first_system_with_everyone(parsed, results):
    rows = [row for row in parsed.rows if len(row) == 9 and row[2].strip() in SYSTEMS]
    pairs = [tuple(cell.strip() for cell in row) for row in rows]
    psnr = {pair[2:4]: pair for pair in pairs if pair[1].startswith("PSNR")}
    assert ("ours_v2", "split & sum") in psnr and ("ours_v2", "constant") in psnr
    _, _, _, _, difference, span, won, p, close = psnr[("ours_v2", "split & sum")]
    # The systems differ by 0.4 dB on every clip, which the intervals of 1.5 dB hide and the pairs show.
    assert difference.startswith("+0.4") and span.startswith("[+0.") and won == "6 of 6 clips"
    assert close == "yes" and float(p) == pytest.approx(0.031)  # 2 of 64 sign patterns
    assert psnr[("ours_v2", "constant")][6].endswith("of 5 clips")
    assert not any("constant" in pair[2:4] and pair[0] == "normal" for pair in pairs)


def test_csv_has_the_means_by_part_and_light(written, results):
    rows = list(csv.DictReader(io.StringIO(written["csv"].read_text(encoding="utf-8"))))
    values = ClipValues(results.figures)

    def one(**wanted):
        found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
        assert len(found) == 1
        return found[0]

    here = {"system": "split & sum", "what": "rgb", "metric": "PSNR"}
    assert float(one(**here, part="all", light="")["mean"]) == values.summary("split & sum", "rgb", "PSNR").mean
    metal = one(**here, part="metal", light="")
    assert float(metal["mean"]) == values.summary("split & sum", "rgb", "PSNR", "metal").mean and metal["clips"] == "5"
    lit = one(**here, part="all", light="studio")
    assert float(lit["mean"]) == values.summary("split & sum", "rgb", "PSNR", light="studio").mean
    failed = one(system="constant", what="rgb", metric="PSNR", part="all", light="studio")
    assert (failed["clips"], failed["failed"]) == ("5", "1")
    absent = one(system="constant", metric="LPIPS")
    assert absent["mean"] == "" and "weights" in absent["unavailable"]
    assert not [row for row in rows if row["system"] == "constant" and row["what"] == "normal"]


def test_figures_come_back_from_their_csv(written, results):
    rows = list(csv.DictReader(io.StringIO(written["figures.csv"].read_text(encoding="utf-8"))))
    back = [
        Figure(
            **{key: row[key] for key in ("system", "clip", "light", "what", "metric", "part", "failure")},
            value=float(row["value"] or "nan"),
        )
        for row in rows
    ]
    assert [repr(figure) for figure in back] == [repr(figure) for figure in results.figures]


def test_latex_is_a_table_with_marks_and_escapes(written, results):
    text = written["tex"].read_text(encoding="utf-8")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body[1:]} == {4}  # LPIPS is left out
    assert re.search(r"ours\\_v2 & \$\\mathbf\{2\d\.\d\d\}\$ \{\\scriptsize\$\\pm\d\.\d\d\$\}", text)
    assert r"split \& sum" in text and r"\textless{}another\textgreater{}" in text and "(1 failed)" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){2-3}", r"\cmidrule(lr){4-5}"):
        assert rule in text
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}") and text.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)[_#]", text) and text.isascii()
    complete = latex(replace(results, figures=[f for f in results.figures if f.clip != "clip 2"]))
    assert r"\underline{$" in complete


def test_latex_escapes_every_special_character():
    assert latex_escape("a_b & 5 % {x} ~^\\$#") == (
        r"a\_b \& 5 \% \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}\$\#"
    )


def test_worst_and_best_clips_of_the_first_system(results):
    values = ClipValues(results.figures)
    columns = columns_of(results, values)
    column, worst, best = examples_of(results, values, columns)
    ranked = sorted(values.of("ours_v2", "rgb", "PSNR").items(), key=lambda item: item[1])
    assert [(e.clip, e.value) for e in worst] == ranked[:3] and [(e.clip, e.value) for e in best] == ranked[:2:-1]
    assert column.metric is PSNR
    for examples, choose in ((worst, min), (best, max)):
        for example in examples:
            ((what, light, row),) = example.rows
            by_light = {name: values.of("ours_v2", "rgb", "PSNR", light=name)[example.clip] for name in LIGHTS}
            assert what == "rgb" and light == choose(by_light, key=by_light.get)
            assert [p.system for p in row] == ["input", "truth", *SYSTEMS] and {p.light for p in row} == {"", light}
    reverse = replace(results, metrics=(("rgb", RMSE),))
    _, worst, _ = examples_of(reverse, values, columns_of(reverse, values))
    assert worst[0].value == max(values.of("ours_v2", "rgb", "RMSE").values())
    few = replace(results, pictures=[p for p in results.pictures if p.clip == "clip 1"])
    _, worst, best = examples_of(few, values, columns)
    assert [e.clip for e in worst] == ["clip 1"] and best == []


def test_pictures_stand_beside_their_own_figures(html, results):
    values = ClipValues(results.figures)
    section = html[html.index('id="worst-clips"') : html.index('id="best-clips"')]
    captions = re.findall(r"<figcaption>([^<]*)(?:<small>([^<]*)</small>)?", section)
    assert [name for name, _ in captions] == ["input", "truth", "ours_v2", "split &amp; sum", "constant"] * 3
    worst = min(values.of("ours_v2", "rgb", "PSNR").items(), key=lambda item: item[1])[0]
    lit = min(values.of("ours_v2", "rgb", "PSNR", light=light)[worst] for light in LIGHTS)
    assert captions[:3] == [("input", ""), ("truth", ""), ("ours_v2", f"{lit:.2f} dB")]


def test_the_error_colours_rise_evenly_in_lightness():
    colours = srgb_eotf(colour_map(torch.linspace(0, 1, 256)[None]))[:, 0]
    luminance = (colours * torch.tensor([0.2126, 0.7152, 0.0722])[:, None]).sum(0)
    lightness = torch.where(luminance > 0.008856, 116 * luminance ** (1 / 3) - 16, 903.3 * luminance)
    steps = lightness.diff()
    assert lightness[0] < 2 and lightness[-1] > 95
    # Measured: 0.03 at the dark end (the linear part of L*), 0.48 at most; even would be 0.38.
    assert steps.min() > 0 and steps.max() < 0.6 and steps[32:].min() > 0.25


def test_an_error_map_shows_errors_masks_and_broken_pixels():
    truth = torch.full((3, 2, 4), 0.5)
    estimate = truth.clone()
    estimate[:, 0, 1] += 0.125
    estimate[:, 0, 2] += 0.4
    estimate[0, 0, 3] = math.nan
    estimate[:, 1, 3] = math.inf
    mask = torch.ones(1, 2, 4, dtype=torch.bool)
    mask[:, 1, :2] = False
    shown = error_map("rgb", estimate, truth, mask)
    scale = colour_map(torch.tensor([[0.0, 0.5, 1.0]]))
    assert torch.equal(shown[:, 0, :3], scale[:, 0])
    assert shown[:, 0, 3].tolist() == pytest.approx(NOT_FINITE) and shown[:, 1, 3].tolist() == pytest.approx(NOT_FINITE)
    assert shown[:, 1, 0].tolist() == list(OUTSIDE)


def test_a_small_error_map_averages_over_the_pixels_that_count():
    truth = torch.zeros(1, 4, 4)
    estimate = torch.zeros(1, 4, 4)
    estimate[0, :2, 0] = 0.25
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, :2, 1] = False
    shown = error_map("roughness", estimate, truth, mask, width=2)
    assert shown.shape == (3, 2, 2)
    assert torch.equal(shown[:, 0, 0], colour_map(torch.ones(1, 1))[:, 0, 0])  # what does not count dilutes nothing
    assert torch.equal(shown[:, 1, 1], colour_map(torch.zeros(1, 1))[:, 0, 0])


def test_errors_of_normals_are_angles():
    up = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1).repeat(1, 1, 3)
    turned = torch.stack([torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.zeros(1, 3)])
    assert error_of("normal", turned, up)[0, 0].tolist() == pytest.approx([45.0, 0.0, 90.0], abs=0.05)
    assert error_of("normal", torch.zeros(3, 1, 1), torch.zeros(3, 1, 1)).item() == 0


def test_pictures_are_encoded_and_small():
    wide = imagecodecs.png_decode(png(torch.rand(3, 100, 400)))
    assert wide.shape == (64, 256, 3)
    assert imagecodecs.png_decode(png(torch.rand(1, 5, 7))).shape == (5, 7)
    up = picture("a", "c", "", "normal", torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1).repeat(1, 2, 2))
    assert imagecodecs.png_decode(up.image)[0, 0].tolist() == [128, 255, 128] and up.error is None
    base = picture("a", "c", "", "basecolor", torch.full((3, 2, 2), 0.5))
    assert imagecodecs.png_decode(base.image)[0, 0].tolist() == [188, 188, 188]
    depth = picture("a", "c", "", "depth", torch.full((1, 2, 2), 0.4), torch.full((1, 2, 2), 0.4))
    assert imagecodecs.png_decode(depth.image)[0, 0] == 102 and imagecodecs.png_decode(depth.error).max() <= 2
