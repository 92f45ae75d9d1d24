"""Hyperband (Li et al. 2018) through Optuna's pruner: few validation images first, more for who is good.

The resource is the number of validation images. Several brackets differ in how many images decide first;
within each, an architecture goes on to ``factor`` times as many images while it is among the better
1 / ``factor`` of those that came as far. Architectures come from the same sampler as in ``bayesian``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from smash_base.errors import UsageError
from smash_search.strategies import Candidate, Context, Scored
from smash_search.strategies.common import MOST, as_many, check, options_of
from smash_search.strategies.study import Study, StudyOptions, require_optuna


@dataclass(frozen=True)
class HyperbandOptions(StudyOptions):
    """Options of ``hyperband``, beside those of its study.

    Attributes:
        smallest: validation images of the first look; 0 for a ninth of the first stage of the race.
        factor: Growth of images from look to look, and of architectures that stop.
    """

    smallest: int = 0
    factor: int = 3

    def check(self) -> None:
        """Raise UsageError where a value makes no sense."""
        check("smallest", self.smallest, 0, MOST)
        check("factor", self.factor, 2, 100)
        super().check()


class Hyperband:
    """Looks at more images of an architecture as long as it is worth it.

    Args:
        context: options as :class:`HyperbandOptions`.

    Raises:
        MissingRuntimeError: Optuna is not installed.
    """

    def __init__(self, context: Context) -> None:
        options = options_of(HyperbandOptions, context, "hyperband")
        options.check()
        optuna = require_optuna()
        full = context.images
        smallest = options.smallest or max(8, full // options.factor**2)
        if smallest >= full:
            raise UsageError(
                "strategy hyperband looks at growing numbers of validation images",
                expected=f"smallest below the {full} images of the first stage",
                received=smallest,
                hint="Pass more --images, or another --strategy.",
            )
        self.looks = [smallest]
        while self.looks[-1] * options.factor < full:
            self.looks.append(self.looks[-1] * options.factor)
        self.looks.append(full)
        self._batch = options.batch
        pruner = optuna.pruners.HyperbandPruner(
            min_resource=smallest, max_resource=full, reduction_factor=options.factor
        )
        self._study = Study(context, options, pruner)
        self._asked: list[tuple[Candidate, Any]] = []
        self._going_on: list[tuple[Candidate, Any]] = []

    def ask(self) -> Sequence[Candidate]:
        """The architectures of the batch that go on to more images; a new batch when there are none."""
        self._asked, self._going_on = self._going_on, []
        if not self._asked:
            count = min(self._batch, self._study.left)
            pairs = as_many(lambda: self._study.propose("hyperband"), count)
            self._asked = [(replace(candidate, images=self.looks[0]), trial) for candidate, trial in pairs]
        return [candidate for candidate, _ in self._asked]

    def tell(self, results: Sequence[Scored]) -> None:
        """Report to the pruner, in the order of asking."""
        for (candidate, trial), entry in zip(self._asked, results, strict=True):
            error = 1.0 if entry.score is None else entry.score.error
            images = candidate.images or self.looks[-1]
            trial.report(error, images)
            if entry.score is None or images == self.looks[-1]:
                self._study.finish(trial, candidate.architecture, error)
            elif trial.should_prune():
                self._study.finish(trial, candidate.architecture, None)
            else:
                further = self.looks[self.looks.index(images) + 1]
                self._going_on.append((replace(candidate, images=further), trial))
