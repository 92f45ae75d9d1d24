"""A whole search in one folder: HyperNet, scores, finalists, pick. Resumes wherever it was stopped.

    config.json      what the search is: a resumed one must be the same
    hypernet.pt      checkpoint of the HyperNet, whole at the end
    training.json    its loss, and how often each choice was trained
    scores.jsonl     one line per architecture and stage of the race
    measures.jsonl   measurements on a device, where the search has any
    confirmed.jsonl  longer ones of the networks that may be picked
    ranking.json     how far the scores can be trusted
    finalists.jsonl  one line per network and rung
    pareto.json      every trained network: error, latency, cost, whether it is on the front
    best-LIMIT.json  the pick within each further limit on latency
    best.json        the pick; written last
    timings.json     seconds of each stage: the only file that differs from run to run

Everything but timings and measurements is a function of configuration and data. A search that was killed at
any moment and resumed on a CPU therefore ends with the same bytes as one that was not, and so does one whose
work was spread over several workers (:mod:`smash_search.executors`).
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from smash_base import files
from smash_base.errors import GateError, InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_search.executors import Executor, ExecutorConfig, Task, make_executor
from smash_search.executors.work import Equipment, Worker
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.supernet import Supernet
from smash_search.rank.evaluation import CONFIRMED, MEASURES, SCORES, Judge
from smash_search.rank.finalists import (
    Finalist,
    FinalistsConfig,
    Rung,
    Trained,
    choose,
    input_spec_of,
    pick,
    run_rungs,
)
from smash_search.rank.measurement import Measurement
from smash_search.rank.pareto import LATENCY, Limit, class_of, entries_of, pick_that_keeps
from smash_search.rank.records import close_torn_line, settle
from smash_search.rank.scoring import (
    Score,
    Scorer,
    ScoringConfig,
    corrupted,
    kept_best,
    split_half,
    survivors,
)
from smash_search.space.architecture import Architecture, BestFile, InputSpec, write_best
from smash_search.space.cost import Cost, cost_of
from smash_search.space.encoding import Layout
from smash_search.space.known import known_networks
from smash_search.space.limits import Limits, survey
from smash_search.space.space import Space, space_for
from smash_search.strategies import Candidate, Context, Scored, Strategy, make_strategy
from smash_search.strategies.random import draws
from smash_search.train.compute import check_identity, load_checkpoint, pick_device, seed_of
from smash_search.train.distributed import ALONE, Ranks
from smash_search.train.hypernet import TrainingConfig, new_supernet, train

if TYPE_CHECKING:
    from smash_search.data import Dataset

SCHEMA = 1
BASELINE_ROUNDS = 50  # of draws, to find random networks within the limit of latency
ENCODING_CHECKS = 8  # architectures whose weights are also generated from a corrupted c


class Advance(Protocol):
    """Moves a progress display."""

    def __call__(self, n: float = 1, **fields: object) -> None: ...


Progress = Callable[[str, float | None], AbstractContextManager[Advance]]
"""(label, total) -> context manager that gives an :class:`Advance`."""


@dataclass(frozen=True)
class SearchConfig:
    """What a search does; everything that its results depend on, but the data.

    Attributes:
        space: a name of :data:`smash_search.space.space.SPACES`, or None to choose by the size of the images.
        seed: of everything random.
        strategy: a name of :data:`smash_search.strategies.STRATEGIES`.
        strategy_options: checked by the strategy.
        candidates: architectures to score.
        known: how many of them are known networks (:func:`smash_search.space.known.known_networks`), at
        most half.
        limits: on cost, checked before anything is trained.
        hypernet, training, scoring, finalists: of the stages; their seeds are set from ``seed``.
        measured: how candidates are measured, in the caller's words, or empty; a resumed search must
            measure in the same way.
        latency_limits: on the measure "latency_ms", ascending; there is one pick within each. The largest
            is that of best.json.
        narrowed: fields of the space that are replaced, for a device that cannot do all of it.
    """

    space: str | None = None
    seed: int = 0
    strategy: str = "random"
    strategy_options: dict[str, Any] = field(default_factory=dict)
    candidates: int = 500
    known: int = 0
    limits: Limits = field(default_factory=Limits)
    hypernet: HyperNetConfig = field(default_factory=HyperNetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    finalists: FinalistsConfig = field(default_factory=FinalistsConfig)
    measured: dict[str, Any] = field(default_factory=dict)
    latency_limits: tuple[Limit, ...] = ()
    narrowed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.candidates, bool) or not 1 <= self.candidates <= 10_000_000:
            raise InvalidInputError("candidates", expected="1 to 10000000", received=self.candidates)
        if isinstance(self.known, bool) or not 0 <= self.known <= self.candidates // 2:
            raise InvalidInputError("known", expected=f"0 to {self.candidates // 2}", received=self.known)
        if isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise InvalidInputError("seed", expected="0 and more", received=self.seed)
        for name in ("training", "scoring", "finalists"):
            object.__setattr__(self, name, replace(getattr(self, name), seed=self.seed))

    def to_json(self) -> JsonObject:
        """What config.json holds of it."""
        return {
            "space": self.space,
            "seed": self.seed,
            "strategy": self.strategy,
            "strategy_options": self.strategy_options,
            "candidates": self.candidates,
            "known": self.known,
            "limits": self.limits.to_json(),
            "hypernet": {**asdict(self.hypernet), "depths": list(self.hypernet.depths)},
            "training": self.training.to_json(),
            "scoring": self.scoring.to_json(),
            "finalists": self.finalists.to_json(),
            "measured": self.measured,
            "latency_limits": [asdict(limit) for limit in self.latency_limits],
        }

    def space_for(self, spec: InputSpec) -> Space:
        """The space for these images, narrowed."""
        return replace(space_for(spec, self.space), **self.narrowed)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        folder: of the run.
        best: content of best.json.
        pick: the finalist that was picked, after its last rung.
        picks: content of each best-LIMIT.json, by limit, where there are several limits.
        missed: limits that no trained network keeps, though the largest one is kept.
        front: content of pareto.json.
        random: the same of the equal-budget random search, or None.
        scored: every candidate with its latest score.
        trained: every finalist and rung, both groups.
        ranking: content of ranking.json.
        seconds: by stage, over all resumptions.
    """

    folder: Path
    best: BestFile
    pick: Trained
    picks: dict[str, BestFile]
    missed: tuple[str, ...]
    front: list[dict[str, Any]]
    random: Trained | None
    scored: list[Scored]
    trained: list[Trained]
    ranking: dict[str, Any]
    seconds: dict[str, float]


def run_search(
    config: SearchConfig,
    dataset: Dataset,
    folder: Path | str,
    *,
    device: str = "auto",
    resume: bool = True,
    progress: Progress | None = None,
    measurement: Measurement | None = None,
    executor: ExecutorConfig | None = None,
    ranks: Ranks = ALONE,
) -> SearchResult:
    """Search a network for a data set; see the head of this module for what the folder gets.

    Args:
        config: what to do.
        dataset: training and validation images; test images are not looked at.
        folder: of the run; made if need be, held exclusively.
        device: where to compute; not part of what the search is.
        resume: go on with a search of the same configuration and data in that folder.
        progress: shows what is being done.
        measurement: of candidates on a device, and the limits on it.
        executor: where candidates are scored and finalists trained; in this process unless given.
        ranks: processes that train the HyperNet together. Rank 0 calls this function, the others
            :func:`join_training`.

    Raises:
        UsageError: the folder is in use, or holds another search, or one and ``resume`` is false.
        GateError: no network of the space keeps the limits; before anything is trained.
        DivergedError, OutOfMemoryError: see :mod:`smash_search.train.hypernet`.
    """
    folder = Path(folder)
    chosen = pick_device(device)
    with files.exclusive(folder, purpose="search"):
        search = _Search(config, dataset, folder, chosen, progress or _silent, measurement)
        search.claim(resume)
        return search.run(executor or ExecutorConfig(), ranks)


def join_training(config: SearchConfig, dataset: Dataset, *, device: str, ranks: Ranks) -> None:
    """The part of every rank but the first in a search: training the HyperNet. Writes nothing."""
    spec = input_spec_of(dataset)
    space = config.space_for(spec)
    supernet = new_supernet(space, spec, len(dataset.classes), config.hypernet, seed=config.seed)
    train(supernet, dataset, config.training, device=pick_device(device), ranks=ranks)
    ranks.leave()


class _Search:
    def __init__(
        self,
        config: SearchConfig,
        dataset: Dataset,
        folder: Path,
        device: torch.device,
        progress: Progress,
        measurement: Measurement | None,
    ) -> None:
        self.config, self.dataset, self.folder, self.device = config, dataset, folder, device
        self.progress, self.measurement = progress, measurement
        self.spec: InputSpec = input_spec_of(dataset)
        self.space: Space = config.space_for(self.spec)
        self.classes = len(dataset.classes)
        self._here: Worker | None = None  # from the end of training on

    def claim(self, resume: bool) -> None:
        """Write config.json, or check that the one there is of this very search."""
        path = self.folder / "config.json"
        identity = {
            **self.config.to_json(),
            "space limits": self.space.to_json(),
            "data fingerprint": self.dataset.fingerprint,
        }
        document = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        if path.exists():
            held = files.read_json(path, what="search configuration")
            if not isinstance(held, dict) or held.get("schema") != SCHEMA:
                raise InvalidInputError(f"{path} is not the configuration of a search of this version")
            if not resume:
                raise UsageError(
                    f"{self.folder} holds a search already", hint="Choose another folder, or pass --resume."
                )
            check_identity(self.folder, held["identity"], document)
            for name in (SCORES, MEASURES, CONFIRMED, "finalists.jsonl"):
                close_torn_line(self.folder / name)
            return
        if (self.folder / "scores.jsonl").exists() or (self.folder / "best.json").exists():
            raise UsageError(f"{self.folder} holds results but no config.json", hint="Choose another folder.")
        files.write_json(
            path,
            {
                "schema": SCHEMA,
                "data": self.dataset.spec,
                "input": self.spec.to_json(),
                "classes": list(self.dataset.classes),
                "splits": {
                    "train": len(self.dataset.train.labels),
                    "validation": len(self.dataset.validation.labels),
                    "test": len(self.dataset.test.labels),
                    "seed": self.dataset.seed,
                },
                "identity": document,
                "versions": versions(),
            },
        )

    def run(self, executor: ExecutorConfig, ranks: Ranks) -> SearchResult:
        """All stages; each does what is missing of it."""
        ranks.check(self.config.training.architectures)
        context = self._context()
        self.config.limits.check_possible(
            survey(self.space, self.spec, self.classes, seed=self.config.seed), self.space.name
        )
        strategy = make_strategy(self.config.strategy, context)  # a wrong name must not cost a training
        with self._timed("hypernet"):
            supernet = self._train(ranks)
        equipment = Equipment(
            supernet,
            self.dataset,
            self.config.scoring,
            self.config.finalists,
            self.measurement,
            self.folder,
            self.device.type if ranks.world > 1 else str(self.device),  # all GPUs, not this rank's own
        )
        self._here = here = Worker(equipment)
        with contextlib.closing(make_executor(executor, equipment, here)) as workers:
            judge = Judge(self.folder, context.images, self._cost, self.measurement, workers)
            with self._timed("scoring"):
                scored, ranking = self._race(self._score_all(strategy, judge), here.scorer, judge)
            with self._timed("finalists"):
                finalists = choose(scored, self.config.finalists, *self._by_latency(scored))
                trained = self._rungs(finalists, "finalists", workers, self._latencies(scored))
            with self._timed("random search"):
                baseline = self._rungs(self._random_finalists(context, judge), "random search", workers)
            judge.settle()
            self._settle_finalists(trained + baseline)
            front = entries_of(trained, scored)
            files.write_json(self.folder / "pareto.json", {"schema": SCHEMA, "networks": front})
            winner, picks = self._picks(trained, scored, baseline, judge)
        for label, pick_within_limit in picks.items():
            write_best(self.folder / f"best-{label}.json", pick_within_limit)
        best = self._best_file(winner, scored, baseline)
        write_best(self.folder / "best.json", best)
        shutil.rmtree(self.folder / "finalists", ignore_errors=True)
        return SearchResult(
            self.folder,
            best,
            winner,
            picks,
            tuple(limit.label for limit in self.config.latency_limits if picks and limit.label not in picks),
            front,
            pick(baseline) if baseline else None,
            scored,
            trained + baseline,
            ranking,
            self._seconds(),
        )

    def _context(self) -> Context:
        return Context(
            self.space,
            self.config.seed,
            self.config.candidates,
            self._refusal,
            self._cost,
            self.config.strategy_options,
            self.config.scoring.stages(len(self.dataset.validation.labels))[0],
            self.folder,
            self._encoding_gradient,
            known_networks(self.space)[: self.config.known],
        )

    def _encoding_gradient(self, architecture: Architecture, images: int) -> tuple[Layout, np.ndarray]:
        assert self._here is not None  # candidates are asked for after training
        return self._here.scorer.encoding_gradient(architecture, images)

    # ------------------------------------------------------------------------------------- stages

    def _train(self, ranks: Ranks) -> Supernet:
        config = self.config
        supernet = new_supernet(self.space, self.spec, self.classes, config.hypernet, seed=config.seed)
        with self.progress("HyperNet", config.training.steps) as advance:
            shown = 0

            def on_step(step: int, loss: float) -> None:
                nonlocal shown
                advance(step - shown, loss=loss)
                shown = step

            result = train(
                supernet,
                self.dataset,
                config.training,
                device=self.device,
                checkpoint=self.folder / "hypernet.pt",
                checkpoint_seconds=10.0,
                on_step=on_step,
                ranks=ranks,
            )
        ranks.leave()
        record = {"history": result.history, "skipped": result.skipped, "counts": result.counts}
        files.write_json(self.folder / "training.json", record)
        return supernet

    def _score_all(self, strategy: Strategy, judge: Judge) -> list[Scored]:
        """Every candidate on as many images as the strategy asks for; one entry per architecture."""
        results: dict[str, Scored] = {}
        shown: set[str] = set()
        best = math.inf
        with self.progress("candidates", self.config.candidates) as advance:

            def on_score(score: Score) -> None:
                nonlocal best
                best = min(best, score.error)
                advance(int(score.key not in shown), best=f"{best:.2%}")
                shown.add(score.key)

            while candidates := strategy.ask():
                batch = judge.judge(candidates, on_score)
                strategy.tell(batch)
                results |= {entry.candidate.architecture.key: entry for entry in batch}
                advance(len(results.keys() - shown))  # refused, or read back
                shown |= results.keys()
        return list(results.values())

    def _race(
        self, scored: list[Scored], scorer: Scorer, judge: Judge
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Further stages for the better part; and how far the scores can be trusted."""
        latest = {entry.score.key: entry for entry in scored if entry.score is not None}
        if not latest:
            raise InvalidInputError(
                "no candidate is within the measured limits",
                expected="at least one",
                received="; ".join(sorted({entry.refused or "" for entry in scored})[:3]),
            )
        entered = [
            key
            for key, entry in latest.items()
            if entry.score is not None and entry.score.images == scorer.stages[0]
        ]
        stages: list[dict[str, Any]] = []
        keep = self.config.scoring.keep
        for number, images in enumerate(scorer.stages):
            if number:
                with self.progress(f"race, {images} images", len(entered)) as advance:
                    wanted = [(latest[key].candidate, images) for key in entered]
                    judge.score(wanted, lambda _: advance(1))
                latest |= {key: replace(latest[key], score=judge.scores[key, images]) for key in entered}
            scores = [score for key in entered if (score := latest[key].score) is not None]
            stage: dict[str, Any] = {"images": images, "entered": len(entered)}
            stage["split_half"] = split_half(scores)
            if number + 1 < len(scorer.stages):
                stage["kept_best"] = kept_best(scores, keep, self.config.seed)
                entered = [score.key for score in survivors(scores, keep)]
                stage["kept"] = len(entered)
            stages.append(stage)
        ranking = {"stages": stages, "encoding": self._encoding_check(latest, scorer)}
        files.write_json(self.folder / "ranking.json", ranking)
        ordered = [latest[entry.score.key] if entry.score is not None else entry for entry in scored]
        return ordered, ranking

    def _encoding_check(self, latest: dict[str, Scored], scorer: Scorer) -> dict[str, Any] | None:
        """Mean error with the right c and with a corrupted one: whether the HyperNet reads c at all."""
        path = self.folder / "ranking.json"
        if path.exists():
            held: dict[str, Any] | None = files.read_json(path)["encoding"]
            return held
        chosen = sorted(latest)[:ENCODING_CHECKS]
        right, wrong = [], []
        images = scorer.stages[0]
        for key in chosen:
            architecture = latest[key].candidate.architecture
            right.append(scorer.score(architecture, images).error)
            wrong.append(scorer.score(architecture, images, corrupt=corrupted).error)
        return {
            "architectures": len(chosen),
            "error": float(np.mean(right)),
            "error_corrupted": float(np.mean(wrong)),
        }

    def _rungs(
        self,
        finalists: list[Finalist],
        label: str,
        workers: Executor,
        latencies: dict[str, float] | None = None,
    ) -> list[Trained]:
        """Train finalists in rungs, several at a time where there are workers."""
        if not finalists:
            return []
        config = self.config.finalists
        of_latency = class_of(self.config.latency_limits)

        def keep(entry: Trained) -> int:
            return of_latency(latencies[entry.key]) if latencies else 0

        with self.progress(label, config.epochs(len(finalists))) as advance:
            seen = 0  # epochs of the present network, when this process trains it

            def on_epoch(entry: dict[str, Any]) -> None:
                nonlocal seen
                seen += 1
                advance(1, loss=entry["loss"])

            def work(rungs: Sequence[Rung]) -> Iterable[tuple[int, Trained]]:
                tasks = [Task("train", rung, rung[0].architecture.key) for rung in rungs]
                nonlocal seen
                for index, trained in workers.run(tasks):
                    yield index, trained
                    before = config.rungs[trained.rung - 1] if trained.rung else 0
                    advance(trained.epochs - before - seen, error=f"{trained.error:.2%}")
                    seen = 0

            assert self._here is not None  # set up after training
            self._here.on_epoch = on_epoch

            path = self.folder / "finalists.jsonl"
            return run_rungs(finalists, config, records=path, work=work, keep=keep)

    def _settle_finalists(self, trained: list[Trained]) -> None:
        settle(
            self.folder / "finalists.jsonl",
            lambda record: (record["group"], record["key"], record["rung"]),
            [(entry.group, entry.key, entry.rung) for entry in trained],
        )

    def _random_finalists(self, context: Context, judge: Judge) -> list[Finalist]:
        """Networks of the baseline: drawn like candidates, from a seed of their own, never scored.

        They keep the same limits: where candidates are measured, so are these.
        """
        config = self.config.finalists
        if config.baseline == "none":
            return []
        count = min(config.count, self.config.candidates)
        if config.baseline == "total":
            count = self._count_of_equal_total(count)
        own = replace(context, seed=seed_of(context.seed, 0xBA5E), options={}, known=())
        seen, chosen, slot = set[str](), list[Candidate](), 0
        for _ in range(BASELINE_ROUNDS):
            pairs = draws(own, count - len(chosen), seen, slot)
            slot = pairs[-1][0] + 1
            drawn = [candidate for _, candidate in pairs]
            judge.measure([candidate.architecture for candidate in drawn])
            chosen += [candidate for candidate in drawn if judge.refusal(candidate.architecture) is None]
            if len(chosen) == count:
                break
        return [
            Finalist(candidate.architecture, "random", "random search", None, self._macs(candidate))
            for candidate in chosen
        ]

    def _latencies(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Measured latency by key; empty where nothing was measured."""
        return {
            entry.candidate.architecture.key: entry.measures[LATENCY]
            for entry in scored
            if LATENCY in entry.measures
        }

    def _by_latency(
        self, scored: Sequence[Scored]
    ) -> tuple[Callable[[Scored], float] | None, Callable[[Scored], Hashable] | None]:
        """What finalists are spread over, and classes that each need one; see :func:`choose`."""
        if not self._latencies(scored):
            return None, None
        of_latency = class_of(self.config.latency_limits)
        return (
            lambda entry: math.log(max(1e-6, entry.measures[LATENCY])),
            lambda entry: of_latency(entry.measures[LATENCY]),
        )

    def _picks(
        self, trained: list[Trained], scored: list[Scored], baseline: list[Trained], judge: Judge
    ) -> tuple[Trained, dict[str, BestFile]]:
        """The pick of best.json, and the files of all limits where there are several.

        Raises:
            GateError: no trained network keeps the largest limit when it is measured again.
        """
        limits = sorted(self.config.latency_limits, key=lambda limit: limit.milliseconds)
        if not limits:
            return pick(trained), {}
        latencies = self._latencies(scored)
        architectures = {entry.candidate.architecture.key: entry.candidate.architecture for entry in scored}
        winners: dict[str, Trained] = {}
        for limit in limits:
            try:
                winners[limit.label] = pick_that_keeps(
                    limit, trained, latencies, lambda key: judge.confirm(architectures[key])[LATENCY]
                )
            except GateError:
                if limit is limits[-1]:
                    raise
        best = {
            label: self._best_file(winner, scored, baseline, limit=label)
            for label, winner in winners.items()
            if len(limits) > 1
        }
        return winners[limits[-1].label], best

    def _count_of_equal_total(self, count: int) -> int:
        """Random networks whose rungs go through as many images as the whole search does.

        A scored image counts a third of a trained one: it has no backward pass.
        """
        config = self.config
        train, validation = len(self.dataset.train.labels), len(self.dataset.validation.labels)
        images = min(config.finalists.epoch_images or train, train)
        finalists = config.finalists.epochs(count) * images
        training = config.training
        hypernet = training.steps * training.batch * training.architectures
        scored = config.scoring
        per_score = min(scored.images[0] or validation, validation)
        per_score += scored.statistics_images if scored.statistics == "training" else 0
        scoring = config.candidates * per_score / 3
        return max(count, round(count * (finalists + hypernet + scoring) / finalists))

    def _best_file(
        self,
        winner: Trained,
        scored: list[Scored],
        baseline: list[Trained],
        limit: str | None = None,
    ) -> BestFile:
        by_key = {entry.candidate.architecture.key: entry for entry in scored}
        entry = by_key[winner.key]
        ranked = sorted(
            (other.score for other in scored if other.score is not None),
            key=lambda score: (-score.images, score.error, score.loss, score.key),
        )
        assert entry.score is not None  # finalists are scored
        search: dict[str, Any] = {
            "score": entry.score.error,
            "score_images": entry.score.images,
            "rank": [score.key for score in ranked].index(winner.key) + 1,
            "candidates": len(scored),
            "origin": entry.candidate.origin,
            "error": winner.error,
            "epochs": winner.epochs,
            "cost": asdict(entry.cost),
            "strategy": self.config.strategy,
            "space": self.space.name,
            "seed": self.config.seed,
            "run": self.folder.name,
            "data": self.dataset.spec,
            "data_seed": self.dataset.seed,
            "fingerprint": self.dataset.fingerprint,
            "versions": versions(),
        }
        if entry.measures:
            confirmed = files.read_jsonl(self.folder / "confirmed.jsonl")
            again: dict[str, float] = next(
                (record["measures"] for record in confirmed if record["key"] == winner.key), {}
            )
            search["measures"] = {**entry.measures, **again}
        if limit is not None:
            search["limit"] = limit
        if baseline:
            search["random_search_error"] = pick(baseline).error
        return BestFile(entry.candidate.architecture, self.spec, tuple(self.dataset.classes), search)

    # -------------------------------------------------------------------------------------- helpers

    def _cost(self, architecture: Architecture) -> Cost:
        return cost_of(architecture, self.spec, self.classes)

    def _macs(self, candidate: Candidate) -> int:
        return self._cost(candidate.architecture).macs

    def _refusal(self, architecture: Architecture) -> str | None:
        return self.config.limits.refusal(self._cost(architecture))

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = self._seconds()
            spent = seconds.get(stage, 0.0) + time.monotonic() - start
            files.write_json(self.folder / "timings.json", {**seconds, stage: round(spent, 3)})

    def _seconds(self) -> dict[str, float]:
        path = self.folder / "timings.json"
        return dict(files.read_json(path)) if path.exists() else {}


def load_supernet(folder: Path | str) -> Supernet:
    """The trained HyperNet of a run, for freezing with generated weights.

    Raises:
        InvalidInputError: not the folder of a search, or a damaged file.
        UsageError: its HyperNet is not trained to the end.
    """
    folder = Path(folder)
    document = files.read_json(folder / "config.json", what="search configuration")
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InvalidInputError(f"{folder} is not the folder of a search of this version")
    held = document["identity"]
    hypernet = {**held["hypernet"], "depths": tuple(held["hypernet"]["depths"])}
    supernet = Supernet(
        Space.from_json(held["space limits"]),
        InputSpec.from_json(document["input"]),
        len(document["classes"]),
        HyperNetConfig(**hypernet),
    )
    content = load_checkpoint(folder / "hypernet.pt", None)
    if content is None or content["state"]["counters"][0] < held["training"]["steps"]:
        raise UsageError(
            f"the HyperNet of {folder} is not trained to the end",
            hint="Go on with the search: the same command with --resume.",
        )
    state = content["state"]
    average = state["average"]
    supernet.load_state_dict(state["supernet"] if average is None else average["values"])
    return supernet.eval()


def versions() -> dict[str, str]:
    """What results may depend on beside configuration and data."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


@contextlib.contextmanager
def _silent(label: str, total: float | None) -> Iterator[Advance]:
    yield lambda n=1, **fields: None
