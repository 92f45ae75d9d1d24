"""Progress of long work."""

from __future__ import annotations

import pytest

from smash_base.progress import Position, by_step


def test_a_training_that_goes_on_moves_its_bar_by_what_is_done() -> None:
    moved: list[tuple[float, object]] = []
    on_step = by_step(lambda n=1, **fields: moved.append((n, fields["loss"])))
    for step, loss in [(100, 2.0), (101, 1.5), (105, 1.0)]:  # interrupted after the first hundred
        on_step(step, loss)
    assert moved == [(100, 2.0), (1, 1.5), (4, 1.0)]


def test_what_an_earlier_process_did_is_told_once() -> None:
    moved: list[tuple[float, float]] = []
    bar = Position(lambda n=1, *, before=0.0, left=None, **fields: moved.append((n, before)))
    for done in (12.5, 12.75, 13.0):
        bar.move(done, 0.25)
    assert moved == [(12.5, pytest.approx(12.25)), (0.25, 0), (0.25, 0)]
    moved.clear()
    Position(lambda n=1, *, before=0.0, left=None, **fields: moved.append((n, before))).move(0.25, 0.25)
    assert moved == [(0.25, 0)]
