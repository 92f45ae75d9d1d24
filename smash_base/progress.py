"""How long work tells how far it is: the types of it. Who shows it decides how."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Advance(Protocol):
    """Moves a progress bar by ``n``; ``fields`` are shown beside it."""

    def __call__(self, n: float = 1, **fields: object) -> None: ...


ShowProgress = Callable[[str, float | None], AbstractContextManager[Advance]]
"""(label, total or None where it is not known) -> context manager that gives an :class:`Advance`."""


def by_step(advance: Advance) -> Callable[[int, float], None]:
    """A callback for a training: told how many steps are done, it moves the bar by those that are new.

    A training that goes on where it was interrupted begins at a later step than the first.

    Returns:
        Takes the number of steps that are done, and the loss of the last.
    """
    shown = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal shown
        advance(step - shown, loss=loss)
        shown = step

    return on_step
