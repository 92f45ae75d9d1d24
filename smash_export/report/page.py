"""One HTML file with its styles, drawings and pictures inside: no script, no font, nothing to load.

Every text that goes in is escaped here and nowhere else: :class:`Html` marks what is markup already.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #14181f; --paper: #fff; --soft: #667; --line: #d5d9e0;
  --good: #14713c; --bad: #b22222; --mark: #eaf6ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --paper: #14181f; --soft: #9aa3b2;
  --line: #333a46; --good: #5fce8b; --bad: #ff8f8f; --mark: #17301f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.lead { font-size: 1.1rem; padding: .8rem 1rem; border-left: 4px solid var(--good); background: var(--mark); }
.scroll { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } td.number { text-align: right; }
table.wide { font-size: .87rem; } table.wide th { white-space: normal; vertical-align: bottom; }
table.wide td, table.wide th { padding: .3rem .4rem; overflow-wrap: normal; }
td.words { min-width: 16rem; } td, th { overflow-wrap: break-word; }
td.number, td.short { white-space: nowrap; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; } a { color: var(--good); }
tr.chosen { background: var(--mark); font-weight: 600; } tr.bad td { color: var(--soft); }
.note { color: var(--soft); } figure { display: inline-block; margin: .4rem; vertical-align: top;
  width: 9rem; font-size: .8rem; overflow-wrap: anywhere; }
figure.small { width: 6rem; } figure img { width: 6rem; image-rendering: pixelated; display: block; }
svg { max-width: 100%; height: auto; } svg.chart { width: 760px; min-width: 34rem; }
svg.drawing { max-width: none; }
@media (max-width: 40rem) { td.words { min-width: 11rem; } }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .axis { stroke: var(--soft); } svg .grid { stroke: var(--line); } svg .front { stroke: var(--good); }
"""


@dataclass(frozen=True)
class Html:
    """Markup, as opposed to text."""

    text: str


Cell = str | int | float | None | Html


def page(title: str, parts: Sequence[Html]) -> str:
    """A whole document."""
    body = "\n".join(part.text for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> Html:
    """A section's title; level 3 for a part of one."""
    return Html(f"<h{level}>{html.escape(text)}</h{level}>")


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph; ``kind`` is "lead", "note" or nothing."""
    return Html(f'<p class="{html.escape(kind)}">{html.escape(text)}</p>')


def scrolled(drawing: Html) -> Html:
    """A drawing in its own size; where the window is narrower, it scrolls and the page does not."""
    return Html(f'<div class="scroll">{drawing.text}</div>')


def counted(count: int, noun: str) -> str:
    """``1 op``, ``2 ops``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], kinds: Sequence[str] = ()) -> Html:
    """A table; ``kinds`` gives each row a class: "chosen", "bad" or nothing."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = []
    for index, row in enumerate(rows):
        kind = kinds[index] if kinds else ""
        lines.append(f'<tr class="{html.escape(kind)}">{"".join(map(_cell, row))}</tr>')
    size = "wide" if len(columns) >= WIDE else ""
    return Html(
        f'<div class="scroll"><table class="{size}"><tr>{head}</tr>\n{chr(10).join(lines)}</table></div>'
    )


def picture(image: Image.Image, caption: Sequence[str], kind: str = "") -> Html:
    """A picture inside the page, with lines under it; ``kind`` is "small" or nothing."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    lines = "<br>".join(html.escape(line) for line in caption)
    return Html(
        f'<figure class="{kind}"><img alt="" src="data:image/png;base64,{data}">'
        f"<figcaption>{lines}</figcaption></figure>"
    )


WIDE = 9  # columns from which on a table is set smaller
SHORT, WORDS = 24, 60  # letters of a cell that is not broken, and of one that wants room


def _cell(value: Cell) -> str:
    if isinstance(value, Html):
        return f"<td>{value.text}</td>"
    if value is None:
        return "<td>-</td>"
    if isinstance(value, int | float):
        return f'<td class="number">{_number(value)}</td>'
    kind = "short" if len(value) <= SHORT else "words" if len(value) >= WORDS else ""
    return f'<td class="{kind}">{html.escape(value)}</td>'


def _number(value: int | float) -> str:
    """Four digits, and no exponent that a person would have to undo."""
    if isinstance(value, int) or 1000 <= abs(value) < 1e15:
        return f"{round(value):,}"
    return f"{value:.4g}"
