"""How architectures are proposed: one ask / tell interface, one file per strategy.

A strategy is asked for candidates, is told their scores, and is asked again until it has no more. It must
be a pure function of its context and of what it was told: a resumed search replays it over the scores that
are on the disk already, so that no strategy stores a state of its own.

``STRATEGIES`` is the registry: a new strategy is one file and one line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_search.rank.scoring import Score
from smash_search.space.architecture import Architecture
from smash_search.space.cost import Cost
from smash_search.space.encoding import Layout
from smash_search.space.space import Space

Refusal = Callable[[Architecture], str | None]
"""Why an architecture may not be used (a limit that it breaks), or None."""

EncodingGradient = Callable[[Architecture, int], "tuple[Layout, np.ndarray]"]
"""Layout of c and dE/dc [channels, H, W] of an architecture over a number of validation images."""


@dataclass(frozen=True)
class Candidate:
    """A proposed architecture.

    Attributes:
        architecture: inside the space and within all limits that cost nothing to check.
        origin: how it came about, for example "random" or "mutation".
        images: validation images that are enough for now; None for the first stage of the race.
    """

    architecture: Architecture
    origin: str
    images: int | None = None


@dataclass(frozen=True)
class Scored:
    """A candidate with everything that is known about it.

    Attributes:
        candidate: as proposed.
        score: on the images that were asked for; None when ``refused``.
        cost: exact.
        measures: by name, for example "latency_ms"; empty unless the search measures.
        refused: Reason why the measures exclude it, or None.
    """

    candidate: Candidate
    score: Score | None
    cost: Cost
    measures: dict[str, float] = field(default_factory=dict)
    refused: str | None = None


def architectures_of(scored: Iterable[Scored]) -> dict[str, Architecture]:
    """Architectures of candidates by key."""
    return {entry.candidate.architecture.key: entry.candidate.architecture for entry in scored}


@dataclass(frozen=True)
class Context:
    """What a strategy may use.

    Attributes:
        space: where architectures come from.
        seed: Random seed of everything that is drawn.
        budget: candidates to propose in all.
        refusal: the limits; candidates for which it gives a reason are not to be proposed.
        cost: exact cost of an architecture for this search's images and classes.
        options: Options of this strategy, checked by it.
        images: validation images of the first stage of the race.
        folder: Folder of the search, for what a strategy shows to people; it must not read it back.
        gradient: dE/dc of the trained HyperNet, once candidates are asked for.
        known: networks that are proposed before any draw, where they keep the limits.
        worthwhile: whether a draw is worth a proposal, for example near enough to the latency limit.
    """

    space: Space
    seed: int
    budget: int
    refusal: Refusal
    cost: Callable[[Architecture], Cost]
    options: JsonObject = field(default_factory=dict)
    images: int = 0
    folder: Path | None = None
    gradient: EncodingGradient | None = None
    known: tuple[Architecture, ...] = ()
    worthwhile: Callable[[Architecture], bool] = lambda architecture: True


class Strategy(Protocol):
    """Proposes candidates; see the head of this module."""

    def ask(self) -> Sequence[Candidate]:
        """The next candidates; empty when there are no more.

        None of them was proposed before, unless on fewer images.

        Raises:
            GateError: the limits leave no more networks; those that were proposed stand.
        """

    def tell(self, results: Sequence[Scored]) -> None:
        """What the candidates of the last :meth:`ask` gave, in their order."""


STRATEGIES: dict[str, str] = {
    "random": "smash_search.strategies.random:Random",
    "smash": "smash_search.strategies.random:Random",  # the paper's: draws alone, and the rest of it set so
    "perturb": "smash_search.strategies.perturb:Perturb",
    "evolution": "smash_search.strategies.evolution:Evolution",
    "bayesian": "smash_search.strategies.bayesian:Bayesian",
    "hyperband": "smash_search.strategies.hyperband:Hyperband",
    "gradient": "smash_search.strategies.gradient:Gradient",
}


def make_strategy(name: str, context: Context) -> Strategy:
    """The registered strategy of that name.

    Raises:
        UsageError: no such strategy.
    """
    if name not in STRATEGIES:
        raise UsageError(f"there is no strategy {name!r}", expected=", ".join(STRATEGIES), received=name)
    module, _, attribute = STRATEGIES[name].partition(":")
    strategy: Strategy = getattr(importlib.import_module(module), attribute)(context)
    return strategy
