"""NSGA-II (Deb et al. 2002) over error, what was measured (or MACs), and parameters.

Parents and children compete together: non-dominated fronts first, then the more lonely ones of a front
(crowding distance). Children come from binary tournaments, crossover of whole blocks and mutation, so that
they stay inside the space and every choice can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smash_search.space.architecture import Architecture
from smash_search.strategies import Candidate, Context, Scored
from smash_search.strategies.common import Proposals, as_many, check, options_of
from smash_search.train.compute import seed_of


@dataclass(frozen=True)
class EvolutionOptions:
    """Options of ``evolution``.

    Attributes:
        population: networks that survive a generation; 0 for a fifth of the candidates, 4 to 100.
        rate: probability with which a mutation changes each choice.
        crossover: share of the children that have two parents.
    """

    population: int = 0
    rate: float = 0.05
    crossover: float = 0.5


class Evolution:
    """Generations of an evolving population; the first one is drawn at random.

    Args:
        context: options as :class:`EvolutionOptions`.
    """

    def __init__(self, context: Context) -> None:
        options = options_of(EvolutionOptions, context, "evolution")
        size = options.population or min(100, max(4, context.budget // 5))
        check("population", size, 2, 100_000)
        check("rate", options.rate, 1e-6, 1)
        check("crossover", options.crossover, 0, 1)
        self._context, self._options, self._size = context, options, size
        self._proposals = Proposals(context)
        self._random = np.random.default_rng(seed_of(context.seed, 0xE70))
        self._parents: list[Scored] = []
        self._order: list[tuple[int, float]] = []  # (front, -crowding) of each parent

    def ask(self) -> Sequence[Candidate]:
        """One generation, or what is left of the budget."""
        count = min(self._size, self._proposals.left)
        if not self._parents:
            return self._proposals.random(count)
        return as_many(self._child, count)

    def tell(self, results: Sequence[Scored]) -> None:
        """Let parents and children compete."""
        everyone = [*self._parents, *results]
        order = rank(objectives(everyone))
        keys = [entry.candidate.architecture.key for entry in everyone]
        places = sorted(range(len(everyone)), key=lambda index: (order[index], keys[index]))
        kept = places[: self._size]
        self._parents = [everyone[index] for index in kept]
        self._order = [order[index] for index in kept]

    def _child(self) -> Candidate:
        parent, origin = self._tournament(), "mutation"
        if self._random.random() < self._options.crossover:
            other = self._tournament()
            seed, slot = next(self._proposals.slots())
            child = self._context.space.crossover(parent, other, seed, slot)
            if self._random.random() < 0.5 and self._proposals.fits(child):
                return self._proposals.add(child, "crossover")
            parent, origin = child, "crossover and mutation"
        return self._proposals.neighbour(parent, self._options.rate, origin)

    def _tournament(self) -> Architecture:
        two = self._random.integers(len(self._parents), size=2)
        winner: int = min(two.tolist(), key=lambda index: (self._order[index], index))
        return self._parents[winner].candidate.architecture


def objectives(entries: Sequence[Scored]) -> np.ndarray:
    """What is minimised, float [networks, objectives]: error, measures by name (or MACs), parameters.

    Refused networks have no error; 2 stands for it and sends them behind all others (:func:`rank`).
    """
    names = sorted({name for entry in entries for name in entry.measures})
    rows = []
    for entry in entries:
        error = 2.0 if entry.score is None else entry.score.error
        sizes = [entry.measures.get(name, np.inf) for name in names] or [float(entry.cost.macs)]
        rows.append([error, *sizes, float(entry.cost.parameters)])
    return np.asarray(rows)


def rank(values: np.ndarray) -> list[tuple[int, float]]:
    """(front from 0, minus crowding distance) of each row of values [networks, objectives].

    Rows whose first objective is above 1 (no error there) go to fronts behind all others.
    """
    places: list[tuple[int, float]] = [(0, 0.0)] * len(values)
    number = 0
    for group in (np.flatnonzero(values[:, 0] <= 1), np.flatnonzero(values[:, 0] > 1)):
        left = group
        while len(left):
            inside = values[left]
            no_worse = (inside[:, None] <= inside[None]).all(2)  # [a, b]: a is nowhere worse than b
            better = (inside[:, None] < inside[None]).any(2)
            dominated = (no_worse & better).any(0)
            front = left[~dominated]
            for index, distance in zip(front.tolist(), crowding(values[front]), strict=True):
                places[index] = (number, -distance)
            left, number = left[dominated], number + 1
    return places


def crowding(values: np.ndarray) -> list[float]:
    """Crowding distance of the rows of one front [networks, objectives]; infinite at its ends."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        if not np.isfinite(span) or span <= 0:
            continue
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance.tolist()
