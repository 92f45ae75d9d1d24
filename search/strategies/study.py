"""Optuna's side of ``bayesian`` and ``hyperband``: a study whose trials are architectures' features.

Finished trials are written to ``optuna.journal`` in the folder of the search, where ``optuna-dashboard`` can
show them. A restarted search replays its strategy over the scores on the disk; it therefore starts the
journal anew and writes the same trials again.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smash_base.errors import MissingRuntimeError
from smash_search.space.architecture import Architecture
from smash_search.strategies import Candidate, Context
from smash_search.strategies.common import MOST, Proposals, check
from smash_search.strategies.features import features, nearest, ranges
from smash_search.train.compute import seed_of

SURVEY = 100  # draws that decide the ranges of the features
JOURNAL = "optuna.journal"


def require_optuna() -> Any:
    """The module; raises MissingRuntimeError with the command that installs it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingRuntimeError(
            "strategies bayesian and hyperband need Optuna",
            received=error,
            hint="Install it: pip install 'smash-export[optuna]'",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class StudyOptions:
    """Options of a strategy that asks a study.

    Attributes:
        startup: random architectures before the sampler is asked; 0 for a fifth of the candidates.
        batch: architectures asked for at a time, before their errors are known.
        pool: architectures among which the nearest to a wanted point is taken.
        rate: Rate of the mutations of good architectures that join the pool.
    """

    startup: int = 0
    batch: int = 8
    pool: int = 32
    rate: float = 0.1

    def check(self) -> None:
        """Raise UsageError where a value makes no sense."""
        check("startup", self.startup, 0, MOST)
        check("batch", self.batch, 1, 4096)
        check("pool", self.pool, 2, 100_000)
        check("rate", self.rate, 1e-6, 1)


class Study:
    """Proposes architectures near the points that a TPE sampler wants, and is told what they are.

    Args:
        context: Context of the strategy.
        options: Options of the strategy.
        pruner: Optuna's pruner, or None.
    """

    def __init__(self, context: Context, options: StudyOptions, pruner: Any = None) -> None:
        self._optuna = require_optuna()
        self._context, self._pool, self._rate = context, options.pool, options.rate
        self._startup = options.startup or max(2, context.budget // 5)
        self._proposals = Proposals(context)
        self._seed = seed_of(context.seed, 0x0B7)
        drawn = [context.space.draw(self._seed, slot) for slot in range(SURVEY)]
        self._ranges = ranges([self._features(architecture) for architecture in drawn])
        uniform = self._optuna.distributions.FloatDistribution
        self._distributions = {name: uniform(low, high) for name, (low, high) in self._ranges.items()}
        with _quiet():
            sampler = self._optuna.samplers.TPESampler(
                seed=self._seed % 2**32,
                n_startup_trials=1,
                multivariate=True,  # features depend on each other
                constant_liar=True,  # trials of one batch keep their distance
            )
        self.study = self._optuna.create_study(
            study_name="search",
            sampler=sampler,
            pruner=pruner or self._optuna.pruners.NopPruner(),
        )
        self._journal = None if context.folder is None else self._new_journal(context.folder)
        self._good: list[tuple[float, str, Architecture]] = []

    @property
    def left(self) -> int:
        """Architectures that may still be proposed."""
        return self._proposals.left

    def propose(self, origin: str) -> tuple[Candidate, Any]:
        """A new architecture and its running trial, whose parameters are the architecture's features."""
        if len(self._proposals.seen) < self._startup:
            candidate = self._proposals.random(1)[0]
        else:
            candidate = self._near(self._wanted(), origin)
        values = self._inside(self._features(candidate.architecture))
        self.study.enqueue_trial(values, user_attrs={"architecture": candidate.architecture.key})
        with _quiet():
            trial = self.study.ask(self._distributions)
        return candidate, trial

    def finish(self, trial: Any, architecture: Architecture, error: float | None) -> None:
        """End a trial with its error, or as pruned; neighbours of the best ones are in every pool."""
        if error is None:
            finished = self.study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
        else:
            finished = self.study.tell(trial, error)
            good = [*self._good, (error, architecture.key, architecture)]
            self._good = sorted(good, key=lambda entry: entry[:2])[:8]
        if self._journal is not None:
            self._journal.add_trial(finished)

    def _wanted(self) -> dict[str, float]:
        """A point from the sampler; the trial that holds it gives way to one with real features."""
        with _quiet():
            probe = self.study.ask(self._distributions)
        self.study.tell(probe, state=self._optuna.trial.TrialState.FAIL)
        return dict(probe.params)

    def _near(self, wanted: dict[str, float], origin: str) -> Candidate:
        found: list[Architecture] = []
        for tries, (seed, slot) in enumerate(self._proposals.slots()):
            if len(found) == self._pool or tries == 20 * self._pool:
                break
            if self._good and slot % 2:
                centre = self._good[slot // 2 % len(self._good)][2]
                architecture = self._context.space.mutate(centre, seed, slot, self._rate)
            else:
                architecture = self._context.space.draw(seed, slot)
            if self._proposals.fits(architecture):
                found.append(architecture)
        if not found:
            return self._proposals.random(1)[0]  # or says that the limits are too tight
        index = nearest(wanted, [self._features(architecture) for architecture in found], self._ranges)
        return self._proposals.add(found[index], origin)

    def _features(self, architecture: Architecture) -> dict[str, float]:
        return features(architecture, self._context.cost(architecture))

    def _inside(self, values: dict[str, float]) -> dict[str, float]:
        return {name: min(high, max(low, values[name])) for name, (low, high) in self._ranges.items()}

    def _new_journal(self, folder: Path) -> Any:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        for path in folder.glob(f"{JOURNAL}*"):  # and locks that a killed process left
            path.unlink()
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        return self._optuna.create_study(study_name="search", storage=storage)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Multivariate sampling and enqueueing are marked experimental: nothing for a user to act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
