"""One HTML file with its styles, drawings and pictures inside: no script, no font, nothing to load.

Every text that goes in is escaped here and nowhere else: :class:`Html` marks what is markup already.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #14181f; --paper: #fff; --soft: #667; --line: #d5d9e0;
  --good: #14713c; --bad: #b22222; --mark: #eaf6ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --paper: #14181f; --soft: #9aa3b2;
  --line: #333a46; --good: #5fce8b; --bad: #ff8f8f; --mark: #17301f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.lead { font-size: 1.1rem; padding: .8rem 1rem; border-left: 4px solid var(--good); background: var(--mark); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } td.number { text-align: right; }
tr.chosen { background: var(--mark); font-weight: 600; } tr.bad td { color: var(--soft); }
.note { color: var(--soft); } figure { display: inline-block; margin: .4rem; vertical-align: top;
  width: 9rem; font-size: .8rem; } figure img { width: 6rem; image-rendering: pixelated; display: block; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .axis { stroke: var(--soft); } svg .grid { stroke: var(--line); } svg .front { stroke: var(--good); }
"""


@dataclass(frozen=True)
class Html:
    """Markup, as opposed to text."""

    text: str


Cell = str | int | float | None | Html


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot.

    Attributes:
        good: drawn full; else hollow.
        chosen: drawn larger.
    """

    x: float
    y: float
    label: str
    good: bool = True
    chosen: bool = False


def page(title: str, parts: Sequence[Html]) -> str:
    """A whole document."""
    body = "\n".join(part.text for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str) -> Html:
    """A section's title."""
    return Html(f"<h2>{html.escape(text)}</h2>")


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph; ``kind`` is "lead", "note" or nothing."""
    return Html(f'<p class="{html.escape(kind)}">{html.escape(text)}</p>')


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], kinds: Sequence[str] = ()) -> Html:
    """A table; ``kinds`` gives each row a class: "chosen", "bad" or nothing."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = []
    for index, row in enumerate(rows):
        kind = kinds[index] if kinds else ""
        lines.append(f'<tr class="{html.escape(kind)}">{"".join(map(_cell, row))}</tr>')
    return Html(f'<div class="scroll"><table><tr>{head}</tr>\n{chr(10).join(lines)}</table></div>')


def picture(image: Image.Image, caption: Sequence[str]) -> Html:
    """A picture inside the page, with lines under it."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    lines = "<br>".join(html.escape(line) for line in caption)
    return Html(
        f'<figure><img alt="" src="data:image/png;base64,{data}"><figcaption>{lines}</figcaption></figure>'
    )


def scatter(points: Sequence[Point], x_title: str, y_title: str, size: tuple[int, int] = (760, 400)) -> Html:
    """Points over a logarithmic x axis, with the front of those that no other beats in both.

    Smaller x and larger y are better.
    """
    if not points:
        return paragraph("Nothing to draw.", "note")
    width, height = size
    left, right, top, bottom = 70, 150, 20, 50
    logs = [math.log10(max(point.x, 1e-9)) for point in points]
    low_x, high_x = _padded(min(logs), max(logs), 0.1)
    low_y, high_y = _padded(min(point.y for point in points), max(point.y for point in points), 0.002)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(max(x, 1e-9)) - low_x) / (high_x - low_x)
        up = (y - low_y) / (high_y - low_y)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    drawn = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(y_title)}">']
    for tick in _ticks(low_x, high_x):
        x, _ = place(tick, low_y)
        drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
        drawn.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for step in range(5):
        value = low_y + (high_y - low_y) * step / 4
        _, y = place(points[0].x, value)
        drawn.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(p.x, p.y) for p in pareto(points)))
    drawn.append(f'<polyline class="front" points="{line}" fill="none" stroke-dasharray="5 4"/>')
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda item: item.x):
        x, y = place(point.x, point.y)
        colour = "var(--good)" if point.good else "var(--bad)"
        fill = colour if point.good else "none"
        radius = 7 if point.chosen else 4.5
        drawn.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="{colour}">'
            f"<title>{html.escape(f'{point.label}: {point.x:.4g}, {point.y:.4g}')}</title></circle>"
        )
        shown = y + 4
        while any(abs(shown - other_y) < 13 and abs(x - other_x) < 150 for other_x, other_y in taken):
            shown += 13
        taken.append((x, shown))
        drawn.append(f'<text x="{x + 11:.1f}" y="{shown:.1f}">{html.escape(point.label)}</text>')
    middle = (left + width - right) / 2
    drawn.append(f'<text x="{middle}" y="{height - 10}" text-anchor="middle">{html.escape(x_title)}</text>')
    drawn.append(
        f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">'
        f"{html.escape(y_title)}</text></svg>"
    )
    return Html("\n".join(drawn))


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both, from small to large x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda item: (item.x, -item.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def _padded(low: float, high: float, least: float) -> tuple[float, float]:
    margin = max((high - low) * 0.1, least)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10^low and 10^high: 1, 2 and 5 times powers of ten."""
    found = [
        factor * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in (1, 2, 5)
        if low <= math.log10(factor * 10.0**power) <= high
    ]
    return found or [round(10 ** ((low + high) / 2), 6)]


def _cell(value: Cell) -> str:
    if isinstance(value, Html):
        return f"<td>{value.text}</td>"
    if value is None:
        return "<td>-</td>"
    if isinstance(value, int | float):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f'<td class="number">{shown}</td>'
    return f"<td>{html.escape(value)}</td>"
