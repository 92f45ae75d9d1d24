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
