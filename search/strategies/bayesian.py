"""Bayesian search: Optuna's multivariate tree-structured Parzen estimator over features of architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smash_search.strategies import Candidate, Context, Scored
from smash_search.strategies.common import as_many, options_of
from smash_search.strategies.study import Study, StudyOptions


class Bayesian:
    """Asks where the estimator expects low errors, and takes the nearest architecture.

    Args:
        context: options as :class:`smash_search.strategies.study.StudyOptions`.

    Raises:
        MissingRuntimeError: Optuna is not installed.
    """

    def __init__(self, context: Context) -> None:
        options = options_of(StudyOptions, context, "bayesian")
        options.check()
        self._batch = options.batch
        self._study = Study(context, options)
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
