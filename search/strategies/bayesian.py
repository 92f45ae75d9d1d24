"""Bayesian search: Optuna's multivariate tree-structured Parzen estimator over features of architectures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smash_search.strategies import Candidate, Context, Scored
from smash_search.strategies.common import MOST, as_many, check, options_of
from smash_search.strategies.study import Study


@dataclass(frozen=True)
class BayesianOptions:
    """Options of ``bayesian``.

    Attributes:
        startup: random architectures before the model is used; 0 for a fifth of the candidates.
        batch: architectures asked for at a time, before their errors are known.
        pool: architectures among which the nearest to a wanted point is taken.
        rate: Rate of mutations in the pool.
    """

    startup: int = 0
    batch: int = 8
    pool: int = 32
    rate: float = 0.1


class Bayesian:
    """Asks where the estimator expects low errors, and takes the nearest architecture.

    Args:
        context: options as :class:`BayesianOptions`.

    Raises:
        MissingRuntimeError: Optuna is not installed.
    """

    def __init__(self, context: Context) -> None:
        options = options_of(BayesianOptions, context, "bayesian")
        check("startup", options.startup, 0, MOST)
        check("batch", options.batch, 1, 4096)
        check("pool", options.pool, 2, 100_000)
        check("rate", options.rate, 1e-6, 1)
        startup = options.startup or max(2, context.budget // 5)
        self._batch = options.batch
        self._study = Study(context, startup, options.pool, options.rate)
        self._trials: list[Any] = []

    def ask(self) -> Sequence[Candidate]:
        """A batch, or what is left of the budget."""
        pairs = as_many(lambda: self._study.propose("bayesian"), min(self._batch, self._study.left))
        self._trials = [trial for _, trial in pairs]
        return [candidate for candidate, _ in pairs]

    def tell(self, results: Sequence[Scored]) -> None:
        """Tell the study; a refused network counts as wrong on every image."""
        for trial, entry in zip(self._trials, results, strict=True):
            error = 1.0 if entry.score is None else entry.score.error
            self._study.finish(trial, entry.candidate.architecture, error)
