"""Axes whose numbers differ, labels that cover neither points nor each other."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smash_export.report.chart import HEIGHT, LETTER, LINE, WIDTH, Axis, Point, scatter


def ticks(markup: str) -> list[str]:
    return re.findall(r'<text class="tick"[^>]*>([^<]+)</text>', markup)


@pytest.mark.parametrize(
    ("values", "axis"),
    [
        ([0.9861, 0.9861, 0.9861], Axis("accuracy", percent=True)),
        ([0.98608, 0.98610, 0.98612], Axis("accuracy", percent=True)),
        ([0.99, 1.0, 1.0], Axis("accuracy", percent=True)),
        ([5.0, 5.0], Axis("ms", "log")),
        ([0.080, 0.0812, 0.0809], Axis("ms", "log")),
        ([1e4, 3e6, 8e7], Axis("MACs", "log")),
        ([0.0, 0.0], Axis("error", percent=True)),
        ([0.001, 900.0], Axis("ms", "log")),
    ],
)
def test_numbers_of_an_axis_differ_where_their_values_do(values: list[float], axis: Axis) -> None:
    points = [Point(1 + index, value, "") for index, value in enumerate(values)]
    texts = ticks(scatter(points, Axis("x", ticks=(1.0, 2.0)), axis).text)[2:]
    assert 2 <= len(texts) <= 12
    assert len(set(texts)) == len(texts)
    if axis.percent:
        assert all(0 <= float(text.rstrip("%")) <= 100 for text in texts)


@given(
    st.floats(1e-3, 1e7), st.floats(1.0, 1e5), st.lists(st.floats(0, 1), max_size=4).map(lambda x: [0, 1, *x])
)
def test_ticks_of_a_logarithmic_axis_are_far_enough_apart_to_be_read(
    low: float, factor: float, places: list[float]
) -> None:
    values = [low * factor**place for place in places]
    markup = scatter([Point(value, 1, "") for value in values], Axis("ms", "log"), Axis("y")).text
    across = [
        float(x) for x in re.findall(r'<text class="tick" x="([^"]+)" y="[^"]+" text-anchor="m', markup)
    ]
    assert 2 <= len(across) <= 9
    assert min(np.diff(across)) >= WIDTH / 12, "a text of eight letters"


def test_labels_cover_neither_points_nor_each_other_nor_the_edge() -> None:
    random = np.random.default_rng(0)
    points = [
        Point(float(x), float(y), f"network {index}")
        for index, (x, y) in enumerate(
            zip(random.normal(1, 0.1, 14), random.normal(0.5, 0.05, 14), strict=True)
        )
    ]
    markup = scatter(points, Axis("x"), Axis("y")).text
    circles = [
        tuple(map(float, found))
        for found in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', markup)
    ]
    labels = re.findall(r'<text class="label" x="([\d.]+)" y="([\d.]+)">([^<]+)<', markup)
    assert len(circles) == 14
    assert len(labels) >= 12, "nearly all find a place"
    boxes = []
    for x, y, text in labels:
        left, bottom = float(x), float(y) + 4
        boxes.append((left, bottom - LINE, left + LETTER * len(text), bottom))
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert right <= WIDTH
        assert top >= 0
        assert bottom <= HEIGHT
        for x, y, radius in circles:
            assert not (left < x + radius and x - radius < right and top < y + radius and y - radius < bottom)
        for other in boxes[index + 1 :]:
            assert not (left < other[2] and other[0] < right and top < other[3] and other[1] < bottom)


def test_what_has_no_points_says_so() -> None:
    assert "Nothing to draw" in scatter([], Axis("x"), Axis("y")).text
