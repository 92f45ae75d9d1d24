"""Random search: known networks, then the draws of the space in order, none twice.

The baseline of every other strategy.
"""

from __future__ import annotations

from collections.abc import Sequence

from smash_base.errors import GateError, UsageError
from smash_search.strategies import Candidate, Context, Scored
from smash_search.train.compute import seed_of

CHUNK = 32  # candidates per ask
TRIES = 2000  # draws per wanted candidate before the limits count as too tight


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
        """Up to 32 further draws.

        Raises:
            GateError: the limits leave (almost) nothing of the space.
        """
        wanted = min(CHUNK, self._context.budget - self._proposed)
        chosen = draws(self._context, wanted, self._seen, self._slot)
        self._slot = chosen[-1][0] + 1 if chosen else self._slot
        self._proposed += len(chosen)
        return [candidate for _, candidate in chosen]

    def tell(self, results: Sequence[Scored]) -> None:
        """Random search learns nothing."""


def draws(context: Context, wanted: int, seen: set[str], first: int = 0) -> list[tuple[int, Candidate]]:
    """The next ``wanted`` new architectures within the limits, with their slots; ``seen`` is added to.

    The first slots are the known networks of the context; the draws of the space follow.

    Raises:
        GateError: not found within 2,000 draws per candidate; the message has the last reason.
    """
    seed = seed_of(context.seed, 0xCA4D)
    chosen: list[tuple[int, Candidate]] = []
    reason = "every draw was proposed before"
    for slot in range(first, first + TRIES * max(1, wanted)):
        if len(chosen) == wanted:
            break
        known = slot < len(context.known)
        if known:
            architecture = context.known[slot]
        else:
            architecture = context.space.draw(seed, slot - len(context.known))
        if architecture.key in seen or not (known or context.worthwhile(architecture)):
            continue
        refusal = context.refusal(architecture)
        if refusal is not None:
            reason = refusal
            continue
        seen.add(architecture.key)
        chosen.append((slot, Candidate(architecture, "known" if known else "random")))
    if len(chosen) < wanted:
        raise GateError(
            f"the limits leave too little of the space {context.space.name}",
            expected=f"{wanted} networks in {TRIES * wanted} draws",
            received=f"{len(chosen)}; for example {reason}",
            hint="See what the space holds: smash-export space.",
        )
    return chosen
