"""A page's parts: elements whose text is escaped, and the document around them."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

from diffusion_renderer.io.page_template import STYLE

VOID = ("img", "input", "br", "meta")


class Markup(str):
    """Text that is HTML already; every other string is escaped when it becomes part of an element."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | int | bool | None) -> Markup:
    """One element. Attributes that are None or False are left out; ``class_`` is class, and ``data_x`` is data-x."""
    shown = ""
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            shown += f" {name}"
        elif value is not None and value is not False:
            shown += f' {name}="{html.escape(str(value))}"'
    return Markup(f"<{tag}{shown}>" if tag in VOID else f"<{tag}{shown}>{joined(children)}</{tag}>")


def joined(children: Iterable[str], between: str = "") -> Markup:
    """Children one after another, those that are no `Markup` escaped."""
    return Markup(between.join(child if isinstance(child, Markup) else html.escape(child) for child in children))


def prose(text: str) -> Markup:
    """A sentence in which `` `...` `` becomes code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one without its partner
        return joined((text,))
    return joined(element("code", part) if i % 2 else part for i, part in enumerate(parts))


def image(png: bytes, label: str) -> Markup:
    """A PNG inside the page."""
    return element("img", src=f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}", alt=label, loading="lazy")


def document(title: str, *body: str) -> str:
    """The whole page: one file without scripts or styles from elsewhere, light or dark as the reader's system is."""
    head = joined(
        (
            Markup('<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", title),
            Markup(f"<style>\n{STYLE}{REPORT_STYLE}</style>"),
        ),
        "\n",
    )
    script = Markup(f"<script>{SCRIPT}</script>")
    content = joined((*body, script), "\n")
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{content}\n</body>\n</html>\n'


#: What the report adds to the shared style: light colours, tables with a first column that stays, rows of pictures.
REPORT_STYLE = """:root { color-scheme: light dark; --bad: #ff9b8f; --mark: #2a3a4d; }
@media (prefers-color-scheme: light) {
  :root { --ink: #1c2127; --dim: #5c6670; --line: #d9dee4; --back: #ffffff; --card: #f5f7f9; --accent: #0b62c4;
    --bad: #b3261e; --mark: #e3effc; }
}
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
h4 { font-size: .85rem; font-weight: 500; color: var(--dim); margin: .8rem 0 .3rem; }
a { color: var(--accent); }
.contents { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; color: var(--dim); max-width: 100ch; font-size: .9rem; }
li { margin: .25rem 0; overflow-wrap: anywhere; }
table { border-collapse: separate; border-spacing: 0; }
th { font-weight: 600; vertical-align: bottom; }
td { vertical-align: top; white-space: nowrap; }
td.wrap { white-space: normal; min-width: 14rem; }
td small { display: block; color: var(--dim); font-size: .72rem; }
td .bad, .bad { color: var(--bad); }
td.best { background: var(--mark); }
th.group { text-align: center; border-left: 1px solid var(--line); }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--back); z-index: 1; }
td.text, th.text { text-align: left; }
.table { max-height: 85vh; overflow: auto; }
thead { position: sticky; top: 0; z-index: 2; }
thead th { background: var(--back); }
tr.below th:first-child { position: static; text-align: right; }
tr.start td { border-top: 2px solid var(--line); }
table.plain th, table.plain td { text-align: left; }
th button { all: unset; cursor: pointer; white-space: nowrap; }
th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: " \\2195"; color: var(--dim); }
th[aria-sort=ascending] button::after { content: " \\25B2"; color: var(--accent); }
th[aria-sort=descending] button::after { content: " \\25BC"; color: var(--accent); }
input[type=search] { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .3rem .7rem; width: min(100%, 24rem); }
summary { cursor: pointer; color: var(--accent); padding: .4rem 0; }
.strip { display: flex; align-items: flex-start; gap: .6rem; overflow-x: auto; padding-bottom: .4rem; }
.strip figure { flex: 0 0 clamp(120px, 30vw, 200px); }
.strip img + img { border-top: 1px solid var(--line); }
figcaption { overflow-wrap: anywhere; }
.legend { display: flex; align-items: center; gap: .6rem; font-size: .85rem; color: var(--dim); flex-wrap: wrap; }
.legend i { width: 12rem; max-width: 40vw; height: .8rem; border: 1px solid var(--line); }
.legend i.key { width: .8rem; }
@media (max-width: 600px) { th, td { padding: .3rem .5rem; } body { padding-top: 1rem; } }
"""

#: Sorting and filtering; without it the tables stay readable in their first order.
SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      // Cells without a value stay at the end in both directions.
      if (x === "" || y === "") return (x === "") - (y === "");
      const [p, q] = [Number(x), Number(y)];
      const order = isNaN(p) || isNaN(q) ? x.localeCompare(y, "en", { numeric: true }) : p - q;
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
for (const field of document.querySelectorAll("input[type=search]"))
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\\s+/);
    for (const row of field.parentElement.querySelectorAll("tbody tr"))
      row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
"""
