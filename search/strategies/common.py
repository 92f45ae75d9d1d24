"""What several strategies share: options, neighbours that nobody proposed before, an order of results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, get_type_hints

from smash_base.errors import GateError, UsageError
from smash_search.space.architecture import Architecture
from smash_search.strategies import Candidate, Context, Scored
from smash_search.strategies.random import draws
from smash_search.train.compute import seed_of

MOST = 10**7  # of whatever an option counts
TRIES = 200  # neighbours tried for one that is new and within the limits

Options = TypeVar("Options")
Proposed = TypeVar("Proposed")


def options_of(kind: type[Options], context: Context, name: str) -> Options:
    """The options of a strategy as its dataclass; numbers may come as text from a command line.

    Raises:
        UsageError: an unknown name, or a value that is no number or not whole where a count is meant.
    """
    known = get_type_hints(kind)
    unknown = sorted(set(context.options) - set(known))
    if unknown:
        raise UsageError(
            f"strategy {name} has no option {unknown[0]!r}", expected=", ".join(known), received=unknown[0]
        )
    return kind(**{key: _number(key, value, known[key]) for key, value in context.options.items()})


def _number(name: str, value: Any, kind: type) -> int | float:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = int(value) if value.lstrip("-").isdecimal() else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"option {name} of the strategy", expected="a number", received=value)
    if kind is int and not isinstance(value, int):
        raise UsageError(f"option {name} of the strategy", expected="a whole number", received=value)
    return value


def check(name: str, value: float, low: float, high: float) -> None:
    """Raise UsageError unless ``low`` <= value <= ``high``."""
    if not low <= value <= high:
        raise UsageError(
            f"option {name} of the strategy", expected=f"{low:g} to {high:g}", received=f"{value:g}"
        )


class Proposals:
    """Candidates within the limits, none of them twice, and how many of the budget are left.

    Args:
        context: Context of the strategy.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.seen: set[str] = set()
        self._draw_slot = self._move_slot = 0
        self._seed = seed_of(context.seed, 0x307E)

    @property
    def left(self) -> int:
        """Candidates that may still be proposed."""
        return self._context.budget - len(self.seen)

    def random(self, wanted: int) -> list[Candidate]:
        """Further draws of the space; raises GateError when the limits leave too little of it."""
        found = draws(self._context, min(wanted, self.left), self.seen, self._draw_slot)
        self._draw_slot = found[-1][0] + 1 if found else self._draw_slot
        return [candidate for _, candidate in found]

    def slots(self) -> Iterator[tuple[int, int]]:
        """(seed, slot) of moves, none of them twice."""
        while True:
            self._move_slot += 1
            yield self._seed, self._move_slot

    def fits(self, architecture: Architecture) -> bool:
        """Whether it may be proposed: new, and within the limits."""
        return architecture.key not in self.seen and self._context.refusal(architecture) is None

    def add(self, architecture: Architecture, origin: str) -> Candidate:
        """Count it as proposed."""
        self.seen.add(architecture.key)
        return Candidate(architecture, origin)

    def neighbour(self, of: Architecture, rate: float, origin: str) -> Candidate:
        """A mutation that may be proposed; a draw where the limits leave none around ``of``.

        Raises:
            GateError: the limits leave too little of the space.
        """
        for attempt, (seed, slot) in enumerate(self.slots()):
            if attempt == TRIES:
                break
            mutant = self._context.space.mutate(of, seed, slot, min(1.0, rate * (1 + attempt / 20)))
            if self.fits(mutant):
                return self.add(mutant, origin)
        return self.random(1)[0]


def as_many(propose: Callable[[], Proposed], count: int) -> list[Proposed]:
    """So many proposals, or as many as the limits leave; raises GateError where they leave none."""
    found: list[Proposed] = []
    try:
        for _ in range(count):
            found.append(propose())
    except GateError:
        if not found:
            raise
    return found


def error_of(entry: Scored) -> tuple[float, float, str]:
    """Order of results, best first: refused ones last, ties by loss, then by key."""
    key = entry.candidate.architecture.key
    if entry.score is None:
        return (float("inf"), float("inf"), key)
    return (entry.score.error, entry.score.loss, key)


def best_of(entries: Sequence[Scored]) -> Scored:
    """The entry with the lowest error."""
    return min(entries, key=error_of)
