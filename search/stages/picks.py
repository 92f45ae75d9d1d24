"""The best network within each limit, and what best.json says of it."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smash_base import files
from smash_base.errors import GateError
from smash_search.rank.evaluation import CONFIRMED, Evaluator
from smash_search.rank.measurement import LATENCY, faster, undisturbed
from smash_search.rank.pareto import ParetoEntry, pick_that_keeps
from smash_search.rank.ranking import RANKING, Ranking
from smash_search.rank.trained import Trained, expected, pick, sound, through_last_rung
from smash_search.space.architecture import Architecture
from smash_search.space.best import BestFile, SearchRecord
from smash_search.space.cost import Cost, cost_of
from smash_search.stages.config import Run
from smash_search.stages.hurry import LastTraining
from smash_search.stages.race import BASELINE, latencies_of
from smash_search.strategies import Scored, architectures_of
from smash_search.train.compute import DivergedError

MOST_UNUSED = 0.2  # of a latency limit, before the result says why


@dataclass(frozen=True)
class Pick:
    """The best network within a limit.

    Attributes:
        trained: The network after its last rung.
        best: Content of its best.json.
    """

    trained: Trained
    best: BestFile


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        folder: Folder of the run.
        best: content of best.json.
        pick: the finalist that was picked, after its last rung.
        picks: The pick within each limit, by its label, where there are several limits.
        missed: limits that no trained network keeps, though the largest one is kept.
        pareto: Every trained network: content of pareto.json.
        random: the same of the equal-budget random search, or None.
        scored: every candidate with its latest score.
        found: Number of candidates that were found before rounds proposed more.
        trained: every finalist and rung, both groups.
        ranking: content of ranking.json.
        seconds: by stage, over all resumptions.
    """

    folder: Path
    best: BestFile
    pick: Trained
    picks: dict[str, Pick]
    missed: tuple[str, ...]
    pareto: list[ParetoEntry]
    random: Trained | None
    scored: list[Scored]
    found: int
    trained: list[Trained]
    ranking: Ranking
    seconds: dict[str, float]

    @property
    def cost(self) -> Cost:
        """Exact cost of the pick."""
        return cost_of(self.best.architecture, self.best.input, len(self.best.classes))

    @property
    def candidates(self) -> int:
        """Number of networks that the search proposed; those of the random search beside are none of them."""
        return proposed(self.scored)


def proposed(scored: Sequence[Scored]) -> int:
    """Number of networks that the search itself proposed."""
    return sum(entry.candidate.origin != BASELINE for entry in scored)


@dataclass(frozen=True)
class Picks:
    """Picks among all networks that a run trained.

    Attributes:
        run: What was searched.
        scored: Every candidate.
        trained: Every network and rung, those of the random search included.
        baseline: Those of the random search.
    """

    run: Run
    scored: list[Scored]
    trained: list[Trained]
    baseline: list[Trained]

    @property
    def random(self) -> Trained | None:
        """The best of the random search; None where there was none, or all of its trainings diverged."""
        try:
            return pick(self.baseline) if self.baseline else None
        except DivergedError:
            return None

    @cached_property
    def hurry(self) -> LastTraining | None:
        """How far the networks come in the last training; None where nothing limits its time."""
        return LastTraining.of(self.run)

    @cached_property
    def _architectures(self) -> dict[str, Architecture]:
        """By key."""
        return architectures_of(self.scored)

    def within_limits(self, evaluator: Evaluator) -> tuple[Trained, dict[str, Pick]]:
        """The pick of best.json, and that of every limit where there are several.

        Raises:
            GateError: no trained network keeps the largest limit when it is measured again.
            DivergedError: networks keep it, and the training of each diverged.
        """
        limits = sorted(self.run.config.latency_limits, key=lambda limit: limit.milliseconds)
        handicap = None if self.hurry is None else self.hurry.by_key(self._architectures)
        if not limits:
            return pick(self.trained, handicap), {}
        latencies = latencies_of(self.scored)

        def measured(key: str, most: float) -> float:
            return evaluator.confirm_at_last(self._architectures[key], most)[LATENCY]

        winners: dict[str, Trained] = {}
        for limit in limits:
            try:
                held_to = partial(measured, most=limit.milliseconds)
                winners[limit.label] = pick_that_keeps(limit, self.trained, latencies, held_to, handicap)
            except (GateError, DivergedError):
                if limit is limits[-1]:
                    # The machine may have been busy just then. Who goes on measures again, and may train
                    # and rank others.
                    (self.run.folder / RANKING).unlink(missing_ok=True)
                    evaluator.forget_confirmed()
                    raise
        best = {
            label: Pick(winner, self.best_file(winner, limit=label))
            for label, winner in winners.items()
            if len(limits) > 1
        }
        return winners[limits[-1].label], best

    def best_file(self, winner: Trained, limit: str | None = None) -> BestFile:
        """Content of best.json, or of that of a further limit."""
        run, dataset = self.run, self.run.dataset
        by_key = {entry.candidate.architecture.key: entry for entry in self.scored}
        entry = by_key[winner.key]
        ranked = sorted(
            (other.score for other in self.scored if other.score is not None),
            key=lambda score: (-score.images, score.error, score.loss, score.key),
        )
        search = SearchRecord(
            candidates=proposed(self.scored),
            origin=entry.candidate.origin,
            reason=winner.reason,
            error=winner.error,
            epochs=winner.epochs,
            recipe=run.config.finalists.recipe.to_json(),
            cost=entry.cost,
            strategy=run.config.strategy,
            space=run.space.name,
            seed=run.config.seed,
            run=run.folder.name,
            data=dataset.spec,
            data_seed=dataset.seed,
            fingerprint=dataset.fingerprint,
            images_sha256=dataset.images_sha256,
            versions=versions(),
            limit=limit,
            random_search_error=None if self.random is None else self.random.error,
        )
        if entry.score is not None:  # networks of the baseline have none
            rank = [score.key for score in ranked].index(winner.key) + 1
            search = replace(search, score=entry.score.error, score_images=entry.score.images, rank=rank)
        if self.hurry is not None:
            ahead = [self._architectures[other.key] for other in self._ahead(winner, limit)]
            search = replace(search, hurried=self.hurry.words(entry.candidate.architecture, ahead))
        if entry.measures:
            records = files.read_jsonl(run.folder / CONFIRMED)
            confirmed = [record["measures"] for record in records if record["key"] == winner.key]
            search = replace(search, measures={**entry.measures, **(faster(confirmed) if confirmed else {})})
            search = self._with_use_of_limit(search, winner, lasting_of(records))
        return BestFile(entry.candidate.architecture, run.spec, tuple(dataset.classes), search)

    def _limit_of(self, label: str | None) -> float:
        """Milliseconds of a limit; of the largest without a label, infinity without limits."""
        limits = {limit.label: limit.milliseconds for limit in self.run.config.latency_limits}
        return limits[label] if label is not None else max(limits.values(), default=math.inf)

    def _ahead(self, winner: Trained, label: str | None) -> list[Trained]:
        """Networks that stood before the pick after equal epochs, and keep its limit as far as is known."""
        most, latencies = self._limit_of(label), latencies_of(self.scored)
        kept = [entry for entry in sound(self.trained) if latencies.get(entry.key, 0.0) <= most]
        ranked = through_last_rung(kept)
        keys = [entry.key for entry in ranked]
        return ranked[: keys.index(winner.key)] if winner.key in keys else []

    def _with_use_of_limit(
        self,
        search: SearchRecord,
        winner: Trained,
        lasting: Mapping[str, float],
    ) -> SearchRecord:
        """Which share of the limit the pick uses, and why not more where that is little.

        Args:
            search, winner: Record of the pick so far, and the pick.
            lasting: Milliseconds of the networks that were measured longer, by key.
        """
        if not self.run.config.latency_limits:
            return search
        limit = self._limit_of(search.limit)
        share = search.measures[LATENCY] / limit
        search = replace(search, limit_ms=limit, limit_used=share)
        if share >= 1 - MOST_UNUSED:
            return search
        latencies = latencies_of(self.scored)
        more = [
            other
            for other in sound(self.trained)
            if other.key != winner.key
            and (1 - MOST_UNUSED) * limit <= latencies.get(other.key, math.inf) <= limit
        ]
        near = [other for other in more if lasting.get(other.key, 0.0) <= limit]
        lucky = len({other.key for other in more} - {other.key for other in near})
        judged = expected(self.trained)
        best = min(near, key=lambda other: (-other.rung, judged(other)), default=None)
        if best is None and lucky:
            why = f"no other trained network that uses {1 - MOST_UNUSED:.0%} of it or more keeps it"
        elif best is None:
            why = f"no network that was trained uses {1 - MOST_UNUSED:.0%} of it or more"
        else:
            why = (
                f"the best of the trained networks that use more ({len({other.key for other in near})}) had "
                f"an error of {_judged_words(best)} after {_epochs(best)}, the pick "
                f"{_judged_words(winner)} after {winner.epochs}"
            )
        if lucky:
            why += f"; {lucky} more seemed to keep it and took longer when measured again"
        used = f"{share:.0%}" if share >= 0.01 else "under 1%"
        return replace(search, unused=f"The pick uses {used} of the limit: {why}.")


def lasting_of(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Milliseconds, by key, that networks of confirmed.jsonl were held to: as picks, where measured twice."""
    confirmed: dict[str, list[dict[str, float]]] = {}
    for record in records:
        confirmed.setdefault(record["key"], []).append(record["measures"])
    return {
        key: undisturbed(first) if not again else faster([first, *again])[LATENCY]
        for key, (first, *again) in confirmed.items()
    }


def _judged_words(entry: Trained) -> str:
    """Error and, where there is one, loss on validation images."""
    loss = "" if entry.validation_loss is None else f" (loss {entry.validation_loss:.4f})"
    return f"{entry.error:.2%}{loss}"


def _epochs(entry: Trained) -> str:
    """How long a network was trained."""
    return f"{entry.epochs} epoch{'' if entry.epochs == 1 else 's'}"


def versions() -> dict[str, str]:
    """What results may depend on beside configuration and data."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
