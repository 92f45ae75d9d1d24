"""A piece of work, as it travels to whoever does it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Task(NamedTuple):
    """One piece of work.

    Attributes:
        method: Name of a method of :class:`smash_search.executors.work.Worker`.
        arguments: Arguments of the method.
        label: what it is, for messages: usually an architecture's key.
    """

    method: str
    arguments: tuple[Any, ...]
    label: str
