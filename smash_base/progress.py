"""How long work tells how far it is: the types of it. Who shows it decides how."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Advance(Protocol):
    """Moves a progress bar by ``n``; ``fields`` are shown beside it.

    ``before`` is the part of ``n`` that an earlier process did, which took this one no time. ``left`` are the
    seconds to the end, where the work knows them better than the pace of its bar.
    """

    def __call__(
        self, n: float = 1, *, before: float = 0.0, left: float | None = None, **fields: object
    ) -> None: ...


ShowProgress = Callable[[str, float | None], AbstractContextManager[Advance]]
"""(label, total or None where it is not known) -> context manager that gives an :class:`Advance`."""


def by_step(advance: Advance) -> Callable[[int, float], None]:
    """A callback for a training: told how many steps are done, it moves the bar by those that are new.

    A training that goes on where it was interrupted begins at a later step than the first.

    Returns:
        Takes the number of steps that are done, and the loss of the last.
    """
    bar = Position(advance)
    return lambda step, loss: bar.move(step, 1, loss=loss)


class Position:
    """Where a bar stands, for work that knows how much of it is done rather than how much is new."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._done: float | None = None

    def move(self, done: float, newest: float, *, left: float | None = None, **fields: object) -> None:
        """Move the bar to a position.

        Args:
            done: Position on the bar, from 0 to its total.
            newest: part of it that the last step did; at the first call, the rest was done by an earlier
                process.
            left: seconds to the end, where they are known.
            fields: shown beside the bar.
        """
        before = done - newest if self._done is None else 0.0
        self._advance(done - (self._done or 0.0), before=before, left=left, **fields)
        self._done = done
