"""What commands that train say before and while they train, and which values they train with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch import nn

from smash_base.progress import Advance
from smash_export.cli.console import Output
from smash_export.cli.training import measured_on_folds, shown_by
from smash_search.train.loop import TrainingProgress
from smash_search.train.recipes import Recipe
from tests.search.small_data import small_digits


@dataclass(frozen=True)
class Moves(Output):
    """Where bars were moved to: what is done, how much of that by an earlier process, seconds left."""

    to: list[tuple[float, float, float | None]] = field(default_factory=list)

    @contextlib.contextmanager
    def progress(self, label: str, total: float | None) -> Iterator[Advance]:
        done = 0.0

        def advance(
            n: float = 1, *, before: float = 0.0, left: float | None = None, **fields: object
        ) -> None:
            nonlocal done
            done += n
            self.to.append((done, before, left))

        yield advance


def test_the_bar_of_a_training_that_goes_on_begins_where_it_was() -> None:
    moves = Moves()
    with moves.progress("training", 25) as advance:
        _, on_step = shown_by(advance, 25)
        on_step(TrainingProgress(101, 200, 0.5, 90.0))
        on_step(TrainingProgress(102, 200, 0.5, 80.0))
    assert moves.to == [
        (pytest.approx(12.625), pytest.approx(12.5), 90.0),
        (pytest.approx(12.75), 0, 80.0),
    ]


def test_the_bar_of_folds_begins_after_those_that_are_done(tmp_path: Path) -> None:
    data, recipe = small_digits(train=60, validation=30), Recipe(epochs=2, batch=16, precision="float32")

    def measured() -> list[tuple[float, float, float | None]]:
        moves = Moves(json=True)
        measured_on_folds(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            data,
            recipe,
            tmp_path / "bundle",
            {"folds": 3, "device": "cpu"},
            moves,
        )
        return moves.to

    assert measured()[-1] == (pytest.approx(6), 0, None)
    (tmp_path / ".bundle.work" / "fold-1-of-3.pt").unlink()
    first, *_, last = measured()
    assert first == (pytest.approx(2 + 2 / 6), pytest.approx(2), None), "of six steps"
    assert last[0] == pytest.approx(4)
