"""Random search: known networks, then the draws of the space in order, none twice.

The baseline of every other strategy. A limit may leave networks that hardly any draw gives (the smallest one
of "edge" has an eighth of the multiply-accumulates of the smallest of 2,000 draws): what is within it is then
looked for around the smallest networks there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from smash_base.errors import GateError, UsageError
from smash_search.space.regular import smallest
from smash_search.strategies import Candidate, Context, Scored
from smash_search.train.compute import seed_of

CHUNK = 32  # candidates per ask
TRIES = 2000  # draws in a row that may not be proposed, before the limits count as too tight for draws


class Random:
    """Draws until the budget is spent; draws that break a limit are left out.

    Args:
        context: takes no options.
    """

    def __init__(self, context: Context) -> None:
        if context.options:
            raise UsageError("strategy random takes no options", received=", ".join(context.options))
        self._context = context
        self._slot = self._proposed = 0
        self._seen: set[str] = set()

    def ask(self) -> Sequence[Candidate]:
        """Up to 32 further draws."""
        wanted = min(CHUNK, self._context.budget - self._proposed)
        chosen = draws(self._context, wanted, self._seen, self._slot)
        self._slot = chosen[-1][0] + 1 if chosen else self._slot
        self._proposed += len(chosen)
        return [candidate for _, candidate in chosen]

    def tell(self, results: Sequence[Scored]) -> None:
        """Random search learns nothing."""


def draws(context: Context, wanted: int, seen: set[str], first: int = 0) -> list[tuple[int, Candidate]]:
    """The next ``wanted`` new architectures within the limits, with their slots; ``seen`` is added to.

    The first slots are the known networks of the context; the draws of the space follow. Where 2,000 of them
    in a row may not be proposed, mutations of the smallest networks do; fewer than wanted where there are no
    more.

    Raises:
        GateError: none found; the message has the last reason.
    """
    seed = seed_of(context.seed, 0xCA4D)
    chosen: list[tuple[int, Candidate]] = []
    reason, slot, last = "every network was proposed before", first, max(first, len(context.known))
    while len(chosen) < wanted and slot < last + TRIES:
        known = slot < len(context.known)
        architecture = context.known[slot] if known else context.space.draw(seed, slot - len(context.known))
        if architecture.key not in seen and (known or context.worthwhile(architecture)):
            refusal = context.refusal(architecture)
            if refusal is None:
                seen.add(architecture.key)
                chosen.append((slot, Candidate(architecture, "known" if known else "random")))
                last = max(last, slot + 1)
            else:
                reason = refusal
        slot += 1
    if len(chosen) < wanted:
        chosen += _around_the_smallest(context, wanted - len(chosen), seen, slot)
    if wanted and not chosen:
        raise GateError(
            f"the limits leave too little of the space {context.space.name}",
            expected=f"networks within them among {TRIES} draws, or near the smallest network",
            received=f"none; for example {reason}",
            hint="See what the space holds: smash-export space.",
        )
    return chosen


def _around_the_smallest(
    context: Context, wanted: int, seen: set[str], slot: int
) -> list[tuple[int, Candidate]]:
    """The smallest network within the limits, its mutations and those of known networks, and theirs."""
    least = smallest(context.space)
    parents = [entry for entry in (least, *context.known) if context.refusal(entry) is None]
    seed = seed_of(context.seed, 0x5A11)
    chosen: list[tuple[int, Candidate]] = []
    if least in parents and least.key not in seen:
        seen.add(least.key)
        chosen.append((slot, Candidate(least, "smallest")))
    for attempt in range(TRIES if parents else 0):
        if len(chosen) >= wanted:
            break
        mutant = context.space.mutate(parents[attempt % len(parents)], seed, slot + attempt)
        if mutant.key not in seen and context.refusal(mutant) is None:
            seen.add(mutant.key)
            parents.append(mutant)
            chosen.append((slot, Candidate(mutant, "mutation")))
    return chosen
