"""The original program's search: random draws, perturbations of the best one, then a Markov chain.

SMASH paper, section 4: 500 random architectures; 100 perturbations of the one with the lowest error; 100
further ones in the manner of a Markov chain, each perturbing the present architecture and replacing it when
strictly better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smash_base.errors import UsageError
from smash_search.strategies import Candidate, Context, Scored
from smash_search.strategies.common import MOST, Proposals, as_many, best_of, check, options_of

CHUNK = 32  # candidates per ask, where they do not depend on each other


@dataclass(frozen=True)
class PerturbOptions:
    """Options of ``perturb``.

    Attributes:
        random, perturbations, steps: candidates of each part; left out (0, -1 and -1), the budget is shared
            as 500 : 100 : 100.
        rate: probability with which each choice changes.
    """

    random: int = 0
    perturbations: int = -1
    steps: int = -1
    rate: float = 0.05


class Perturb:
    """Random draws, perturbations of the best, and a chain of strict improvements.

    Args:
        context: options as :class:`PerturbOptions`.
    """

    def __init__(self, context: Context) -> None:
        options = options_of(PerturbOptions, context, "perturb")
        check("random", options.random, 0, MOST)
        check("perturbations", options.perturbations, -1, MOST)
        check("steps", options.steps, -1, MOST)
        check("rate", options.rate, 1e-6, 1)
        budget = context.budget
        around = budget // 7 if options.perturbations < 0 else options.perturbations
        steps = budget // 7 if options.steps < 0 else options.steps
        first = options.random or max(1, budget - around - steps)
        if first + around + steps > budget:
            raise UsageError(
                "the parts of strategy perturb are more than the candidates",
                expected=f"at most {budget}",
                received=f"{first} random, {around} perturbations, {steps} steps",
                hint=f"Pass --candidates {first + around + steps}.",
            )
        self._rate = options.rate
        self._left = {"random": first, "perturbation": around, "chain": steps}
        self._proposals = Proposals(context)
        self._best: Scored | None = None
        self._centre: Scored | None = None

    def ask(self) -> Sequence[Candidate]:
        """Up to 32 candidates; one in the chain, whose next step depends on it."""
        part = next((name for name, count in self._left.items() if count), None)
        if part is None:
            return []
        count = 1 if part == "chain" else min(CHUNK, self._left[part])
        self._left[part] -= count
        if part == "random":
            return self._proposals.random(count)
        assert self._best is not None  # random draws came first
        if part == "chain":
            return [self._proposals.neighbour(self._best.candidate.architecture, self._rate, part)]
        self._centre = self._centre or self._best  # one centre for all perturbations
        centre = self._centre.candidate.architecture
        return as_many(lambda: self._proposals.neighbour(centre, self._rate, part), count)

    def tell(self, results: Sequence[Scored]) -> None:
        """Keep the best so far; equal errors do not move the chain."""
        found = best_of(results)
        if self._best is None or _error(found) < _error(self._best):
            self._best = found


def _error(entry: Scored) -> float:
    return float("inf") if entry.score is None else entry.score.error
