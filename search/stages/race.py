"""The race of finalists: rungs of training, rounds of proposals, and a random search beside."""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from smash_base import files
from smash_base.errors import GateError
from smash_base.progress import Advance
from smash_search.executors import Executor, Task
from smash_search.rank.evaluation import Evaluator
from smash_search.rank.finalists import (
    ENSEMBLE,
    Finalist,
    Propose,
    Rung,
    choose,
    ensemble_answers,
    proposed_finalist,
    run_rungs,
)
from smash_search.rank.measurement import LATENCY, undisturbed
from smash_search.rank.pareto import Limit, class_of
from smash_search.rank.proposals import ErrorModel, Observation, outer_fence, propose
from smash_search.rank.records import settle
from smash_search.rank.trained import Trained, expected, through_last_rung
from smash_search.space.architecture import Architecture
from smash_search.stages.bounds import Bounds
from smash_search.stages.config import Run, SearchConfig
from smash_search.stages.hurry import LastTraining
from smash_search.strategies import Candidate, Context, Scored, architectures_of
from smash_search.strategies.random import draws
from smash_search.train.compute import seed_of
from smash_search.train.network import Epoch

if TYPE_CHECKING:
    from smash_search.data import Dataset

BASELINE = "random search"  # origin of networks that were trained beside the search
BASELINE_ROUNDS = 50  # of draws, to find random networks within the limit of latency
LONG = 10_000_000  # pixels of the last rung of a network: 4 s on one core, where an image takes 0.12 ms
SPARE = 20  # proposals for each that is wanted, where measurement may refuse some


@dataclass(frozen=True)
class Race:
    """Trains the networks of a run, the search's own and those of a random search of equal effort.

    Attributes:
        run, bounds: What is searched, and within what.
        workers: Train networks.
        evaluator: Measures and scores what rounds propose.
    """

    run: Run
    bounds: Bounds
    workers: Executor
    evaluator: Evaluator

    @cached_property
    def _hurry(self) -> LastTraining | None:
        """How far networks come in the last training; None where nothing limits its time."""
        return LastTraining.of(self.run)

    def finalists(self, scored: list[Scored]) -> list[Trained]:
        """The race of the search's own networks; what a round proposes is added to ``scored``."""
        config = self.run.config.finalists
        handicaps = None if self._hurry is None else self._hurry.handicaps
        finalists = choose(
            scored, config, *by_latency(scored, self.run.config.latency_limits), handicaps=handicaps
        )

        def propose(number: int, entered: Sequence[Finalist], results: Sequence[Trained]) -> list[Finalist]:
            entering = self._propose(number, entered, results, scored)
            known = {entry.candidate.architecture.key for entry in scored}
            scored.extend(entry for entry in entering if entry.candidate.architecture.key not in known)
            return [proposed_finalist(entry, number + 1) for entry in entering]

        entering = len(finalists) + config.rounds * config.per_round
        return self._rungs(finalists, "finalists", propose, entering)

    def _propose(
        self,
        number: int,
        entered: Sequence[Finalist],
        results: Sequence[Trained],
        scored: Sequence[Scored],
    ) -> list[Scored]:
        """Networks within the limits for the next round of the first rung, measured and scored.

        New ones, and those of ``scored`` that no round has trained.
        """
        seen = {entry.candidate.architecture.key for entry in scored}
        trained = {finalist.architecture.key for finalist in entered}
        worst = outer_fence([finalist.error for finalist in entered if finalist.error is not None])
        waiting = {
            entry.candidate.architecture.key: entry
            for entry in scored
            if _is_sound(entry, worst) and entry.candidate.architecture.key not in trained
        }
        architectures = {finalist.architecture.key: finalist.architecture for finalist in entered}
        handicap = None if self._hurry is None else self._hurry.by_key(architectures)
        judged = expected(results, handicap)
        first = {entry.key: entry for entry in results if entry.rung == 0}
        observations = [
            Observation(
                finalist.architecture,
                self.run.cost(finalist.architecture),
                judged(first[finalist.architecture.key]),
            )
            for finalist in entered
            if first[finalist.architecture.key].diverged is None
        ]
        wanted = self.run.config.finalists.per_round
        if len(observations) < 2 or not wanted:
            return []
        self.bounds.learn()
        model = ErrorModel.of(observations)
        limits = sorted(limit.milliseconds for limit in self.run.config.latency_limits) or [math.inf]
        seeds = seeds_of_round(self.run.config.seed, number, len(limits))
        kept: dict[str, Scored] = {}
        for place, (limit, seed) in enumerate(zip(limits, seeds, strict=True)):  # each has a share
            entering = wanted * (place + 1) // len(limits) - len(kept)
            left = {key: entry for key, entry in waiting.items() if key not in kept}
            proposed = self._proposed(
                entering, limit, worst, model, observations, left, seen | set(kept), seed
            )
            kept |= {entry.candidate.architecture.key: entry for entry in proposed}
        return list(kept.values())

    def _proposed(
        self,
        wanted: int,
        limit: float,
        worst: float,
        model: ErrorModel,
        observations: Sequence[Observation],
        waiting: Mapping[str, Scored],
        taken: set[str],
        seed: int,
    ) -> list[Scored]:
        """Up to ``wanted`` networks within one limit on latency, the most promising first.

        Args:
            wanted: how many.
            limit: Milliseconds; infinite where nothing is limited.
            worst: score beyond which nothing is worth a training.
            model: Model of the errors of the observations.
            observations: what was trained so far.
            waiting: Candidates that were scored and not trained, by key.
            taken: Keys of networks that may not be proposed anew.
            seed: Random seed of the proposals.
        """
        measures = self.evaluator.measures

        def within(architecture: Architecture) -> bool:
            return measures.get(architecture.key, {}).get(LATENCY, 0.0) <= limit

        def fits(architecture: Architecture) -> bool:
            return (
                architecture.key not in taken
                and self.bounds.within_cost(architecture)
                and self.bounds.predicted_refusal(architecture, slack=0.0, limit=limit) is None
            )

        def keeps(architecture: Architecture) -> bool:  # the model predicts latency; measurement decides
            is_measured = architecture.key in waiting
            return (is_measured or self.bounds.refusal(architecture) is None) and within(architecture)

        candidates = propose(
            model,
            SPARE * wanted,
            parents=[entry for entry in observations if within(entry.architecture)] or observations,
            space=self.run.space,
            seed=seed,
            fits=fits,
            cost=self.run.cost,
            waiting=[entry.candidate for entry in waiting.values() if within(entry.candidate.architecture)],
        )
        rest = (candidate for candidate in candidates if keeps(candidate.architecture))
        kept: list[Scored] = []
        while batch := list(itertools.islice(rest, wanted - len(kept))):
            new = [candidate for candidate in batch if candidate.architecture.key not in waiting]
            judged = {entry.candidate.architecture.key: entry for entry in self.evaluator.evaluate(new)}
            entries = [{**waiting, **judged}[candidate.architecture.key] for candidate in batch]
            kept += [entry for entry in entries if _is_sound(entry, worst)]
        return kept

    def baseline(self, context: Context, scored: Sequence[Scored]) -> tuple[list[Scored], list[Trained]]:
        """The random search beside: its networks as candidates without a score, and their rungs."""
        drawn = self._drawn(context, {entry.candidate.architecture.key for entry in scored})
        trained = self._rungs(drawn, "random search")
        return [self._unscored(finalist) for finalist in drawn], trained

    def _drawn(self, context: Context, seen: set[str]) -> list[Finalist]:
        """Networks of the baseline: drawn like candidates, from a seed of their own, never scored.

        They keep the same limits: where candidates are measured, so are these. None of ``seen``, the
        search's own, is among them.
        """
        count = networks_of_baseline(self.run.config, self.run.dataset)
        if not count:
            return []
        own = replace(context, seed=seed_of(context.seed, 0xBA5E), options={}, known=())
        slot, chosen = 0, list[Candidate]()
        for _ in range(BASELINE_ROUNDS):
            try:
                pairs = draws(own, count - len(chosen), seen, slot)
            except GateError:  # the limits leave no further network
                break
            slot = pairs[-1][0] + 1
            drawn = [candidate for _, candidate in pairs]
            self.evaluator.measure([candidate.architecture for candidate in drawn])
            chosen += [
                candidate for candidate in drawn if self.evaluator.refusal(candidate.architecture) is None
            ]
            if len(chosen) == count:
                break
        return [
            Finalist(
                candidate.architecture,
                "random",
                "random search",
                None,
                self.run.cost(candidate.architecture).macs,
            )
            for candidate in chosen
        ]

    def _unscored(self, finalist: Finalist) -> Scored:
        """A network of the baseline among the candidates: trained, and so it may be picked."""
        architecture = finalist.architecture
        return Scored(
            Candidate(architecture, BASELINE),
            None,
            self.run.cost(architecture),
            self.evaluator.measures.get(architecture.key, {}),
        )

    def _rungs(
        self,
        finalists: list[Finalist],
        label: str,
        propose: Propose | None = None,
        entering: int | None = None,
    ) -> list[Trained]:
        """Train finalists in rungs, several at a time where there are workers."""
        if not finalists:
            return []
        run, config, limits = self.run, self.run.config.finalists, self.run.config.latency_limits
        classify, confirmed = class_of(limits), dict[str, float]()

        def keep(entry: Trained) -> int:
            if not self.bounds.limits_latency:
                return 0
            return classify(confirmed.get(entry.key, self.evaluator.measures[entry.key][LATENCY]))

        def holds(finalist: Finalist) -> bool:
            key = finalist.architecture.key
            confirmed[key] = undisturbed(self.evaluator.confirm(finalist.architecture))
            return classify(confirmed[key]) < len(limits)

        path = run.folder / "finalists.jsonl"
        with run.progress(label, config.epochs(entering or len(finalists))) as advance:
            if done := config.epochs_done(path, finalists[0].group):
                advance(done)
            return run_rungs(
                finalists,
                config,
                records=path,
                work=partial(self._train, advance=advance),
                keep=keep,
                holds=holds if self._measures_before_the_last_rung else None,
                propose=propose,
                handicap=None if self._hurry is None else self._hurry.handicap,
            )

    def _train(self, rungs: Sequence[Rung], advance: Advance) -> Iterable[tuple[int, Trained]]:
        """Number and result of each pair, as they come; epochs are shown as they end."""
        rungs_at, seen = self.run.config.finalists.rungs, Counter[int]()

        def on_epoch(index: int, entry: Epoch) -> None:
            seen[index] += 1
            advance(1, loss=entry.loss)

        tasks = [Task("train", rung, rung[0].architecture.key) for rung in rungs]
        for index, trained in self.workers.run(tasks, on_epoch=on_epoch):
            yield index, trained
            before = rungs_at[trained.rung - 1] if trained.rung else 0
            advance(trained.epochs - before - seen[index], error=f"{trained.error:.2%}")

    @property
    def _measures_before_the_last_rung(self) -> bool:
        """Whether a longer measurement, of two seconds, takes less than the training that it may save."""
        config, images = self.run.config.finalists, len(self.run.dataset.train)
        images = min(config.epoch_images or images, images)
        epochs = config.rungs[-1] - (config.rungs[-2] if len(config.rungs) > 1 else 0)
        is_long = epochs * images * math.prod(self.run.spec.size) >= LONG
        return self.bounds.limits_latency and is_long and not self.run.config.measured.get("predicted")

    def settle(self, trained: Sequence[Trained]) -> None:
        """Put finalists.jsonl into the order in which one worker alone would have written it."""
        settle(
            self.run.folder / "finalists.jsonl",
            ("group", "key", "rung"),
            [(entry.group, entry.key, entry.rung) for entry in trained],
        )

    def keep_ensemble(self, trained: Sequence[Trained], scored: Sequence[Scored]) -> None:
        """Answers of the best finalists, for who trains the pick at length; once, while weights are there."""
        architectures = architectures_of(scored)
        run = self.run
        path = run.folder / ensemble_file(run.dataset.fingerprint)
        through = [entry for entry in through_last_rung(trained) if not entry.diverged]
        if path.exists() or not through or run.config.finalists.start != "scratch":
            return
        best = [
            Finalist(architectures[entry.key], "search", entry.reason, entry.score, entry.macs)
            for entry in through[:ENSEMBLE]
        ]
        answers = ensemble_answers(
            best, through[0].rung, run.dataset, weights=run.folder / "finalists", device=run.device
        )
        if answers is not None:
            stream = io.BytesIO()
            np.save(stream, answers, allow_pickle=False)
            files.write_bytes(path, stream.getvalue())


def seeds_of_round(seed: int, number: int, limits: int) -> list[int]:
    """Random seeds of the proposals of a round for each limit; the last is that of a single limit.

    Places count from 1: a seed of numbers that end in 0 is that of the numbers before it.
    """
    places = [(place,) for place in range(1, limits)]
    return [seed_of(seed, 0x920, number, *place) for place in [*places, ()]]


def by_latency(
    scored: Sequence[Scored], limits: Sequence[Limit]
) -> tuple[Callable[[Scored], float] | None, Callable[[Scored], Hashable] | None]:
    """What finalists are spread over, and classes that each need one, where there are any; see
    :func:`choose`.
    """
    if not latencies_of(scored):
        return None, None
    of_latency = class_of(limits)
    return (
        lambda entry: math.log(max(1e-6, entry.measures[LATENCY])),
        (lambda entry: of_latency(entry.measures[LATENCY])) if limits else None,
    )


def _is_sound(entry: Scored, worst: float) -> bool:
    """Whether a network keeps the limits and its score is no worse than that."""
    return not entry.refused and entry.score is not None and entry.score.error <= worst


def latencies_of(scored: Sequence[Scored]) -> dict[str, float]:
    """Measured latency by key; empty where nothing was measured."""
    return {
        entry.candidate.architecture.key: entry.measures[LATENCY]
        for entry in scored
        if LATENCY in entry.measures
    }


def networks_of_baseline(config: SearchConfig, dataset: Dataset) -> int:
    """How many networks the random search beside trains; 0 where there is none."""
    finalists = config.finalists
    if finalists.baseline == "none":
        return 0
    count = min(finalists.entering, config.candidates)
    return count_of_equal_total(config, dataset, count) if finalists.baseline == "total" else count


def count_of_equal_total(config: SearchConfig, dataset: Dataset, count: int) -> int:
    """Random networks whose rungs go through as many images as the whole search does.

    A scored image counts a third of a trained one: it has no backward pass. So does one that statistics are
    computed from, in every stage of the race of scores. What the rounds propose is scored like a candidate.
    """
    train, validation = len(dataset.train.labels), len(dataset.validation.labels)
    images = min(config.finalists.epoch_images or train, train)
    finalists = config.finalists.epochs(count) * images
    proposed = config.finalists.rounds * config.finalists.per_round
    training = config.training
    hypernet = training.steps * training.batch * training.architectures
    scored = config.scoring
    statistics = min(scored.statistics_images, train) if scored.statistics == "training" else 0
    raced, looked_at, before = config.candidates + proposed, 0, 0
    for shown in scored.stages(validation):
        looked_at += raced * (statistics + shown - before)
        raced = math.ceil(scored.keep * raced)
        before = shown if dataset.validation.targets is None else 0  # of several classes all are seen again
    return max(count, round(count * (finalists + hypernet + looked_at / 3) / finalists))


def ensemble_file(fingerprint: str) -> str:
    """Name of the file in a run that holds the answers of its best finalists."""
    return f"ensemble-{fingerprint[:16]}.npy"
