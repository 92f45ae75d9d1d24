"""Drawings of points and lines over two axes, as SVG: round ticks that differ, labels that cover nothing."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smash_export.report.page import Html

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 16, 56
LETTER, LINE = 7.6, 16.0  # width and height of a letter at 12 px, generously
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """A point of a chart.

    Attributes:
        good: drawn full; else hollow.
        chosen: drawn larger.
        label: beside it; nothing for none.
        title: shown by a pointer over it; the label and the numbers without.
    """

    x: float
    y: float
    label: str
    good: bool = True
    chosen: bool = False
    title: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: what it shows, and its unit.
        scale: "log" for positive values over several powers of ten.
        percent: values are shares and shown as percents, never beyond 0 and 100.
        ticks: where they are, or none to choose round ones.
    """

    title: str
    scale: Literal["linear", "log"] = "linear"
    percent: bool = False
    ticks: tuple[float, ...] = ()


class _Scale:
    """An axis with its range: places values between 0 and 1 and writes them."""

    def __init__(self, axis: Axis, values: Sequence[float]) -> None:
        self._axis = axis
        values = [self._moved(value) for value in [*values, *axis.ticks]]
        low, high = min(values), max(values)
        least = 0.15 if axis.scale == "log" else (0.005 if axis.percent else 0.02 * max(1e-3, abs(high)))
        margin = max(0.07 * (high - low), (least - (high - low)) / 2 if high - low < least else 0.0)
        self.low, self.high = low - margin, high + margin
        if axis.percent and axis.scale == "linear":
            self.low, self.high = max(self.low, -0.002), min(self.high, 1.002)

    def _moved(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self._axis.scale == "log" else value

    def place(self, value: float) -> float:
        """0 to 1 along the axis."""
        return (self._moved(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the range, three to seven of them where possible."""
        if self._axis.ticks:
            return list(self._axis.ticks)
        if self._axis.scale == "log":
            return _log_ticks(self.low, self.high)
        ticks = _ticks(self.low, self.high)
        return [tick for tick in ticks if 0 <= tick <= 1] if self._axis.percent else ticks

    def words(self) -> list[str]:
        """The ticks as text, with as many digits as they need to differ."""
        ticks = self.ticks()
        factor, unit = (100.0, "%") if self._axis.percent else (1.0, "")
        for digits in range(10):
            texts = [_written(factor * tick, digits) + unit for tick in ticks]
            exact = all(
                abs(float(text.rstrip("%").replace(",", "")) - factor * tick)
                <= 1e-6 * max(1e-9, abs(factor * tick))
                for text, tick in zip(texts, ticks, strict=True)
            )
            if exact and len(set(texts)) == len(texts):
                break
        return texts


def _written(value: float, digits: int) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:.{digits}f}e6" if digits else f"{value:.0e}".replace("e+0", "e")
    return f"{value:,.{digits}f}"


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(x / 10 for x in range(10, 100))):
        found = [
            float(f"{factor * 10.0**power:.12g}")
            for power, factor in itertools.product(powers, factors)
            if low <= math.log10(factor * 10.0**power) <= high
        ]
        if len(found) >= 3:
            return _apart(found, (high - low) / 8)
    return found or [10 ** ((low + high) / 2)]


def _apart(ascending: list[float], distance: float) -> list[float]:
    """The first value and each that is so many powers of ten and more above the last one that was kept."""
    kept = ascending[:1]
    for value in ascending[1:]:
        if math.log10(value / kept[-1]) >= distance:
            kept.append(value)
    return kept


class Chart:
    """A drawing under construction.

    Args:
        xs, ys: all values that will be drawn.
        x, y: the axes.
    """

    def __init__(self, xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis) -> None:
        self._x, self._y, self._axes = _Scale(x, xs), _Scale(y, ys), (x, y)
        self._marks: list[str] = []
        self._labels: list[tuple[float, float, float, str]] = []  # x, y, radius, text
        self._taken: list[Box] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a value."""
        across = LEFT + self._x.place(x) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - self._y.place(y) * (HEIGHT - TOP - BOTTOM)

    def point(self, point: Point, radius: float = 4.5) -> None:
        """A point; its label finds a free place once all are drawn."""
        x, y = self.place(point.x, point.y)
        radius = 7.0 if point.chosen else radius
        colour = "var(--good)" if point.good else "var(--bad)"
        title = point.title or f"{point.label}: {point.x:.4g}, {point.y:.4g}"
        self._marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour if point.good else "none"}" '
            f'stroke="{colour}"><title>{html.escape(title)}</title></circle>'
        )
        self._taken.append((x - radius, y - radius, x + radius, y + radius))
        if point.label:
            self._labels.append((x, y, radius, point.label))

    def line(self, places: Sequence[tuple[float, float]], *, colour: str, dashed: bool = False) -> None:
        """A line through values."""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*place) for place in places))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._marks.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>'
        )

    def done(self) -> Html:
        """The drawing."""
        labels = [self._label(*label) for label in self._labels]
        name = html.escape(f"{self._axes[1].title} over {self._axes[0].title}")
        parts = [
            f'<div class="scroll"><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{name}">',
            *self._grid(),
            *self._marks,
            *labels,
            "</svg></div>",
        ]
        return Html("\n".join(parts))

    def _grid(self) -> list[str]:
        drawn = []
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for value, text in zip(self._x.ticks(), self._x.words(), strict=True):
            x = LEFT + self._x.place(value) * (WIDTH - LEFT - RIGHT)
            drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
            drawn.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>'
            )
        for value, text in zip(self._y.ticks(), self._y.words(), strict=True):
            y = bottom - self._y.place(value) * (HEIGHT - TOP - BOTTOM)
            drawn.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            drawn.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        middle, height = (LEFT + right) / 2, (TOP + bottom) / 2
        x_title, y_title = (html.escape(axis.title) for axis in self._axes)
        drawn.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{x_title}</text>')
        turned = f'transform="rotate(-90 14 {height})"'
        drawn.append(f'<text x="14" y="{height}" text-anchor="middle" {turned}>{y_title}</text>')
        return drawn

    def _label(self, x: float, y: float, radius: float, text: str) -> str:
        """The first free place around a point; a line leads there where it is far."""
        width, gap = LETTER * len(text), radius + 4
        for distance in (0.0, LINE, 2 * LINE, 3 * LINE, 4 * LINE):
            for left, middle in (
                (x + gap, y - distance),
                (x - gap - width, y - distance),
                (x + gap, y + distance),
                (x - gap - width, y + distance),
                (x - width / 2, y - gap - LINE / 2 - distance),
                (x - width / 2, y + gap + LINE / 2 + distance),
            ):
                box = (left, middle - LINE / 2, left + width, middle + LINE / 2)
                if self._is_free(box):
                    self._taken.append(box)
                    return _text(box, text, (x, y) if distance > LINE else None)
        return ""  # the pointer still shows it

    def _is_free(self, box: Box) -> bool:
        inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= TOP / 2 and box[3] <= HEIGHT - BOTTOM
        return inside and not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in self._taken
        )


def _text(box: Box, text: str, origin: tuple[float, float] | None) -> str:
    lead = ""
    if origin is not None:
        near = box[0] if abs(box[0] - origin[0]) < abs(box[2] - origin[0]) else box[2]
        lead = (
            f'<line class="axis" x1="{origin[0]:.1f}" y1="{origin[1]:.1f}" x2="{near:.1f}" '
            f'y2="{(box[1] + box[3]) / 2:.1f}" opacity="0.5"/>'
        )
    return f'{lead}<text class="label" x="{box[0]:.1f}" y="{box[3] - 4:.1f}">{html.escape(text)}</text>'


def scatter(points: Sequence[Point], x: Axis, y: Axis, *, draw_pareto: bool = True) -> Html:
    """Points, with the front of those that no other beats in both: smaller x and larger y are better."""
    if not points:
        return Html('<p class="note">Nothing to draw.</p>')
    chart = Chart([point.x for point in points], [point.y for point in points], x, y)
    if draw_pareto:
        chart.line([(point.x, point.y) for point in pareto(points)], colour="var(--good)", dashed=True)
    for point in sorted(points, key=lambda item: (not item.chosen, item.x)):
        chart.point(point)
    return chart.done()


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both, from small to large x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda item: (item.x, -item.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front
