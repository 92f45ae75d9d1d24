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
    ensemble-..npy   answers of the best finalists for the training images, where they were to be kept
    best.json        the pick; written last
    timings.json     seconds of each stage: the only file that differs from run to run

Everything but timings and measurements is a function of configuration and data. A search that was killed at
any moment and resumed on a CPU therefore ends with the same bytes as one that was not, and so does one whose
work was spread over several workers (:mod:`smash_search.executors`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from smash_base import files
from smash_base.errors import GateError, InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_base.progress import Advance, ShowProgress, by_step
from smash_search.executors import Executor, ExecutorConfig, Task, check_executor, make_executor
from smash_search.executors.work import Equipment, Worker
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.supernet import Supernet
from smash_search.rank.evaluation import CONFIRMED, MEASURES, SCORES, Evaluator
from smash_search.rank.finalists import (
    ENSEMBLE,
    Finalist,
    FinalistsConfig,
    Propose,
    Rung,
    Trained,
    choose,
    ensemble_answers,
    input_spec_of,
    pick,
    proposed_finalist,
    run_rungs,
    through_last_rung,
)
from smash_search.rank.latency_model import LEAST, LatencyModel, fit_latency
from smash_search.rank.measurement import Measurement
from smash_search.rank.pareto import (
    LATENCY,
    Limit,
    ParetoEntry,
    class_of,
    pareto_entries,
    pick_that_keeps,
)
from smash_search.rank.proposals import Observation, propose
from smash_search.rank.ranking import EncodingCheck, RaceStage, Ranking, read_ranking
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
from smash_search.rank.trust import origins_of, trust
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import BestFile, SearchRecord, write_best
from smash_search.space.cost import Cost, cost_of
from smash_search.space.encoding import Layout
from smash_search.space.known import known_networks
from smash_search.space.limits import CostLimits, survey
from smash_search.space.space import Space, space_for
from smash_search.strategies import Candidate, Context, Scored, Strategy, make_strategy
from smash_search.strategies.random import draws
from smash_search.train.compute import check_identity, load_checkpoint, pick_device, seed_of
from smash_search.train.distributed import ALONE, Ranks
from smash_search.train.hypernet import TrainingConfig, new_supernet, train
from smash_search.train.network import Epoch

if TYPE_CHECKING:
    from smash_search.data import Dataset

SCHEMA = 1
BASELINE_ROUNDS = 50  # of draws, to find random networks within the limit of latency
PROBES = 64  # networks measured before a search, to predict the latency of others
LEAST_SHARE = 0.65  # of a latency limit that a draw has to use, by prediction
SPARE = 20  # proposals for each that is wanted, where measurement may refuse some
BASELINE = "random search"  # origin of networks that were trained beside the search
MOST_UNUSED = 0.2  # of a latency limit, before the result says why
LEAST_TRUSTED = 8  # trained networks that say something of the score
ENCODING_CHECKS = 12  # architectures whose weights are also generated from a corrupted c


@dataclass(frozen=True)
class SearchConfig:
    """What a search does; everything that its results depend on, but the data.

    Attributes:
        space: a name of :data:`smash_search.space.space.SPACES`, or None to choose by the size of the images.
        seed: Random seed of everything that is drawn.
        strategy: a name of :data:`smash_search.strategies.STRATEGIES`.
        strategy_options: checked by the strategy.
        candidates: architectures to score.
        known: how many of them are known networks (:func:`smash_search.space.known.known_networks`), at
        most half.
        limits: on cost, checked before anything is trained.
        hypernet, training, scoring, finalists: Settings of the stages; their seeds are set from ``seed``.
        measured: how candidates are measured, in the caller's words, or empty; a resumed search must
            measure in the same way.
        latency_limits: on the measure "latency_ms", ascending; there is one pick within each. The largest
            is that of best.json.
        exact_space: The space itself where it is not just that of the name: with another prior, or without
            what a device cannot do.
    """

    space: str | None = None
    seed: int = 0
    strategy: str = "random"
    strategy_options: JsonObject = field(default_factory=dict)
    candidates: int = 500
    known: int = 0
    limits: CostLimits = field(default_factory=CostLimits)
    hypernet: HyperNetConfig = field(default_factory=HyperNetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    finalists: FinalistsConfig = field(default_factory=FinalistsConfig)
    measured: JsonObject = field(default_factory=dict)
    latency_limits: tuple[Limit, ...] = ()
    exact_space: Space | None = None

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
        """The space for these images."""
        return self.exact_space or space_for(spec, self.space)


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


def run_search(
    config: SearchConfig,
    dataset: Dataset,
    folder: Path | str,
    *,
    device: str = "auto",
    resume: bool = True,
    progress: ShowProgress | None = None,
    measurement: Measurement | None = None,
    executor: ExecutorConfig | None = None,
    ranks: Ranks = ALONE,
) -> SearchResult:
    """Search a network for a data set; see the head of this module for what the folder gets.

    Args:
        config: what to do.
        dataset: training and validation images; test images are not looked at.
        folder: Folder of the run; made if need be, held exclusively.
        device: where to compute; not part of what the search is.
        resume: go on with a search of the same configuration and data in that folder.
        progress: shows what is being done.
        measurement: Measurement of candidates on a device, and the limits on it.
        executor: where candidates are scored and finalists trained; in this process unless given.
        ranks: processes that train the HyperNet together. Rank 0 calls this function, the others
            :func:`join_training`.

    Raises:
        UsageError: the folder is in use, or holds another search, or one and ``resume`` is false.
        GateError: no network of the space keeps the limits; before anything is trained.
        MissingRuntimeError: the executor can have no workers; before the folder is made.
        DivergedError, OutOfMemoryError: see :mod:`smash_search.train.hypernet`.
    """
    folder = Path(folder)
    chosen = pick_device(device)
    executor = executor or ExecutorConfig()
    check_executor(executor)
    with files.exclusive(folder, purpose="search"):
        search = _Search(config, dataset, folder, chosen, progress or _silent, measurement)
        search.claim(resume)
        return search.run(executor, ranks)


def join_training(config: SearchConfig, dataset: Dataset, *, device: str, ranks: Ranks) -> None:
    """The part of every rank but the first in a search: training the HyperNet. Writes nothing."""
    spec = input_spec_of(dataset)
    space = config.space_for(spec)
    supernet = new_supernet(space, spec, len(dataset.classes), config.hypernet, seed=config.seed)
    latency: LatencyModel | None = ranks.from_first(None)
    accept = None if latency is None else functools.partial(near_a_limit, latency, config.latency_limits)
    train(supernet, dataset, config.training, device=pick_device(device), ranks=ranks, accept=accept)
    ranks.leave()


def near_a_limit(latency: LatencyModel, limits: Sequence[Limit], architecture: Architecture) -> bool:
    """Whether a network uses most of a latency limit by prediction: what leaves much unused is rarely best.

    Where a limit is looser than most networks of the space need, the largest quarter of them counts.
    """
    predicted = latency.predict(architecture)
    return any(
        min(LEAST_SHARE * limit.milliseconds, latency.usual)
        <= predicted * (1 + latency.error)
        <= limit.milliseconds * (1 + latency.error) ** 2
        for limit in limits
    )


class _Search:
    def __init__(
        self,
        config: SearchConfig,
        dataset: Dataset,
        folder: Path,
        device: torch.device,
        progress: ShowProgress,
        measurement: Measurement | None,
    ) -> None:
        self.config, self.dataset, self.folder, self.device = config, dataset, folder, device
        self.progress, self.measurement = progress, measurement
        self.spec: InputSpec = input_spec_of(dataset)
        self.space: Space = config.space_for(self.spec)
        self.classes = len(dataset.classes)
        self._here: Worker | None = None  # from the end of training on
        self._evaluator: Evaluator | None = None  # likewise
        self._latency: LatencyModel | None = None  # where there are limits on it
        self._probes: list[Architecture] = []

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
        self._check_teacher()
        context = self._context()
        self.config.limits.check_possible(
            survey(self.space, self.spec, self.classes, seed=self.config.seed), self.space.name
        )
        make_strategy(self.config.strategy, context)  # a wrong name must not cost a training
        supernet = new_supernet(
            self.space, self.spec, self.classes, self.config.hypernet, seed=self.config.seed
        )
        equipment = Equipment(
            supernet,
            self.dataset,
            self.config.scoring,
            self.config.finalists,
            self.measurement,
            self.folder,
            self.device.type if ranks.world > 1 else str(self.device),  # all GPUs, not this rank's own
        )
        if self._limits_latency:
            with self._timed("device"):
                self._survey_device(context, Worker(equipment))
            context = self._context()  # known networks within the limits, now that latency can be predicted
        ranks.from_first(self._latency)
        with self._timed("hypernet"):
            self._train(supernet, ranks)
        self._here = here = Worker(equipment)
        with contextlib.closing(make_executor(executor, equipment, here)) as workers:
            evaluator = Evaluator(self.folder, context.images, self._cost, self.measurement, workers)
            evaluator.measure(self._probes if self._limits_latency else [])  # read back, first in their file
            self._evaluator = evaluator
            strategy = make_strategy(self.config.strategy, context)
            with self._timed("scoring"):
                scored, ranking = self._race(self._score_all(strategy, evaluator), here.scorer, evaluator)
            with self._timed("finalists"):
                trained = self._train_finalists(scored, workers, evaluator)
            with self._timed("random search"):
                drawn = self._random_finalists(context, evaluator)
                baseline = self._rungs(drawn, "random search", workers)
            ranking = self._add_trained(ranking, scored, trained, here.scorer)
            evaluator.settle()
            self._settle_finalists(trained + baseline)
            scored += [self._unscored(finalist, evaluator) for finalist in drawn]
            pareto = pareto_entries(trained + baseline, scored)
            networks = [entry.to_json() for entry in pareto]
            files.write_json(self.folder / "pareto.json", {"schema": SCHEMA, "networks": networks})
            winner, picks = self._picks(trained + baseline, scored, baseline, evaluator)
            if self.config.finalists.ensemble:
                self._keep_ensemble(trained, scored)
        for label, pick_within_limit in picks.items():
            write_best(self.folder / f"best-{label}.json", pick_within_limit.best)
        best = self._best_file(winner, scored, trained + baseline, baseline)
        write_best(self.folder / "best.json", best)
        shutil.rmtree(self.folder / "finalists", ignore_errors=True)
        return SearchResult(
            self.folder,
            best,
            winner,
            picks,
            tuple(limit.label for limit in self.config.latency_limits if picks and limit.label not in picks),
            pareto,
            pick(baseline) if baseline else None,
            scored,
            trained + baseline,
            ranking,
            self._seconds(),
        )

    def _check_teacher(self) -> None:
        """Raise InvalidInputError unless the teacher's answers are there and are those for these images."""
        name = self.config.finalists.teacher
        if not name:
            return
        wanted, received = (len(self.dataset.train), self.classes), object()
        try:
            received = np.load(self.folder / name, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError) as error:
            received = error
        if received != wanted:
            raise InvalidInputError(
                f"answers of a teacher in {self.folder / name}", expected=wanted, received=received
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
            self._known(),
            self._worthwhile,
        )

    def _known(self) -> tuple[Architecture, ...]:
        """The first known networks within the limits on cost, and on latency by prediction."""
        inside = (
            entry
            for entry in known_networks(self.space)
            if self._within_cost(entry) and self._predicted_refusal(entry) is None
        )
        return tuple(itertools.islice(inside, self.config.known))

    def _encoding_gradient(self, architecture: Architecture, images: int) -> tuple[Layout, np.ndarray]:
        assert self._here is not None  # candidates are asked for after training
        return self._here.scorer.encoding_gradient(architecture, images)

    # ------------------------------------------------------------------------------------- stages

    def _survey_device(self, context: Context, here: Worker) -> None:
        """Measure some networks of the space, from small to large, to predict the latency of all others."""
        drawn = [context.space.draw(seed_of(context.seed, 0x9806), slot) for slot in range(4 * PROBES)]
        drawn = [entry for entry in drawn if self._within_cost(entry)]
        by_size = sorted(drawn, key=lambda entry: (self._cost(entry).macs, entry.key))
        usual = by_size[: max(PROBES, 3 * len(by_size) // 4)]  # the largest take long and keep no limit
        places = np.unique(np.linspace(0, len(usual) - 1, min(PROBES, len(usual))).round().astype(int))
        self._probes = [usual[place] for place in places]
        workers = make_executor(ExecutorConfig(), here.equipment, here)
        evaluator = Evaluator(self.folder, context.images, self._cost, self.measurement, workers)
        with self.progress("device", len(self._probes)) as advance:
            for probe in self._probes:
                evaluator.measure([probe])
                advance(1)
        measured = [evaluator.measures[probe.key][LATENCY] for probe in self._probes]
        if len(measured) >= LEAST:
            self._latency = fit_latency(self._probes, measured, self.spec, self.classes)

    def _train(self, supernet: Supernet, ranks: Ranks) -> None:
        config = self.config
        with self.progress("HyperNet", config.training.steps) as advance:
            result = train(
                supernet,
                self.dataset,
                config.training,
                device=self.device,
                checkpoint=self.folder / "hypernet.pt",
                checkpoint_seconds=10.0,
                on_step=by_step(advance),
                ranks=ranks,
                accept=self._worthwhile if self._latency else None,
            )
        ranks.leave()
        files.write_json(self.folder / "training.json", result.to_json())

    def _score_all(self, strategy: Strategy, evaluator: Evaluator) -> list[Scored]:
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
                batch = evaluator.evaluate(candidates, on_score)
                strategy.tell(batch)
                results |= {entry.candidate.architecture.key: entry for entry in batch}
                advance(len(results.keys() - shown))  # refused, or read back
                shown |= results.keys()
        return list(results.values())

    def _race(
        self, scored: list[Scored], scorer: Scorer, evaluator: Evaluator
    ) -> tuple[list[Scored], Ranking]:
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
        stages: list[RaceStage] = []
        keep = self.config.scoring.keep
        for number, images in enumerate(scorer.stages):
            if number:
                with self.progress(f"race, {images} images", len(entered)) as advance:
                    wanted = [(latest[key].candidate, images) for key in entered]
                    evaluator.score(wanted, lambda _: advance(1))
                latest |= {key: replace(latest[key], score=evaluator.scores[key, images]) for key in entered}
            scores = [score for key in entered if (score := latest[key].score) is not None]
            stage = RaceStage(images, len(entered), split_half(scores))
            if number + 1 < len(scorer.stages):
                entered = [score.key for score in survivors(scores, keep)]
                sure = kept_best(scores, keep, self.config.seed)
                stage = replace(stage, kept_best=sure, kept=len(entered))
            stages.append(stage)
        ranking = Ranking(tuple(stages), self._encoding_check(latest, scorer))
        ordered = [latest[entry.score.key] if entry.score is not None else entry for entry in scored]
        return ordered, ranking

    def _encoding_check(self, latest: dict[str, Scored], scorer: Scorer) -> EncodingCheck | None:
        """Mean error with the right c, with a corrupted one, and with all generated filters set to zero.

        The second one says whether the HyperNet reads c; the third one is *op contribution*: whether what it
        generates is used at all.
        """
        path = self.folder / "ranking.json"
        if path.exists():
            return read_ranking(path).encoding
        chosen = [latest[key].candidate.architecture for key in sorted(latest)]
        chosen = [entry for entry in chosen if scorer.supernet.hypernet.layout.tiles(entry)]
        images = scorer.stages[0]
        rows = []
        for architecture in chosen[:ENCODING_CHECKS]:
            right = scorer.score(architecture, images).error
            shuffled = scorer.score(architecture, images, corrupt=corrupted).error
            rows.append((right, shuffled, scorer.score(architecture, images, zeroed=True).error))
        if not rows:
            return None
        errors = np.asarray(rows)
        right, shuffled, zeroed = (float(value) for value in errors.mean(0))
        deviation = float((errors[:, 2] - errors[:, 0]).std(ddof=1)) if len(rows) > 1 else 0.0
        return EncodingCheck(
            len(rows), right, shuffled, zeroed, zeroed - right, deviation / math.sqrt(len(rows))
        )

    def _add_trained(
        self, ranking: Ranking, scored: list[Scored], trained: list[Trained], scorer: Scorer
    ) -> Ranking:
        """Complete ranking.json by what the trained networks say of the score, and of each other's origin."""
        path = self.folder / "ranking.json"
        if path.exists():
            return read_ranking(path)
        by_key = {entry.candidate.architecture.key: entry for entry in scored}
        first = [entry for entry in trained if entry.rung == 0 and entry.diverged is None]
        images = scorer.stages[0]
        right, zeroed = [], []
        for entry in first:
            architecture = by_key[entry.key].candidate.architecture
            right.append(scorer.score(architecture, images).error)
            zeroed.append(scorer.score(architecture, images, zeroed=True).error)
        errors = [entry.error for entry in first]
        origins = {key: entry.candidate.origin for key, entry in by_key.items()}
        ranking = replace(
            ranking,
            trust=trust(right, zeroed, errors) if len(first) >= LEAST_TRUSTED else None,
            origins=tuple(origins_of(trained, origins)),
            refused=sum(entry.refused is not None for entry in scored) if self.measurement else None,
        )
        files.write_json(path, ranking.to_json())
        return ranking

    def _train_finalists(
        self, scored: list[Scored], workers: Executor, evaluator: Evaluator
    ) -> list[Trained]:
        """The race of the search's own networks; what a round proposes is added to ``scored``."""
        config = self.config.finalists
        latencies = self._latencies(scored)
        finalists = choose(scored, config, *self._by_latency(scored))

        def propose(number: int, results: Sequence[tuple[Finalist, Trained]]) -> list[Finalist]:
            entering = self._propose(number, results, scored, evaluator)
            known = {entry.candidate.architecture.key for entry in scored}
            scored.extend(entry for entry in entering if entry.candidate.architecture.key not in known)
            latencies.update(self._latencies(entering))
            return [proposed_finalist(entry, number + 1) for entry in entering]

        entering = len(finalists) + config.rounds * config.per_round
        return self._rungs(finalists, "finalists", workers, latencies, propose, entering)

    def _propose(
        self,
        number: int,
        results: Sequence[tuple[Finalist, Trained]],
        scored: Sequence[Scored],
        evaluator: Evaluator,
    ) -> list[Scored]:
        """Networks within the limits for the next round of the first rung, measured and scored.

        New ones, and those of ``scored`` that no round has trained.
        """
        seen = {entry.candidate.architecture.key for entry in scored}
        trained = {finalist.architecture.key for finalist, _ in results}
        waiting = {
            entry.candidate.architecture.key: entry
            for entry in scored
            if entry.score and not entry.refused and entry.candidate.architecture.key not in trained
        }
        observations = [
            Observation(finalist.architecture, self._cost(finalist.architecture), trained.error)
            for finalist, trained in results
            if trained.diverged is None
        ]
        wanted = self.config.finalists.per_round
        if len(observations) < 2 or not wanted:
            return []

        self._learn_latency(scored, evaluator)

        def fits(architecture: Architecture) -> bool:
            return (
                architecture.key not in seen
                and self._within_cost(architecture)
                and self._predicted_refusal(architecture, slack=0.0) is None
            )

        candidates = propose(
            observations,
            SPARE * wanted if self._limits_latency else wanted,
            space=self.space,
            seed=seed_of(self.config.seed, 0x920, number),
            fits=fits,
            cost=self._cost,
            waiting=[entry.candidate for entry in waiting.values()],
        )
        kept: list[Candidate] = []
        for candidate in candidates:  # the model predicts latency; measurement decides
            is_measured = candidate.architecture.key in waiting
            if len(kept) < wanted and (is_measured or self._refusal(candidate.architecture) is None):
                kept.append(candidate)
        new = [candidate for candidate in kept if candidate.architecture.key not in waiting]
        judged = waiting | {entry.candidate.architecture.key: entry for entry in evaluator.evaluate(new)}
        entering = [judged[candidate.architecture.key] for candidate in kept]
        return [entry for entry in entering if entry.refused is None]

    def _learn_latency(self, scored: Sequence[Scored], evaluator: Evaluator) -> None:
        """Predict latency from all that was measured so far.

        The best of many predictions are those that promise too much: what a model of the first measurements
        proposed at the limit was nearly all slower than it.
        """
        if self._latency is None:
            return
        architectures = {entry.key: entry for entry in self._probes}
        architectures |= {entry.candidate.architecture.key: entry.candidate.architecture for entry in scored}
        measured = {
            key: evaluator.measures[key][LATENCY] for key in architectures if key in evaluator.measures
        }
        self._latency = fit_latency(
            [architectures[key] for key in measured], list(measured.values()), self.spec, self.classes
        )

    def _unscored(self, finalist: Finalist, evaluator: Evaluator) -> Scored:
        """A network of the baseline among the candidates: trained, and so it may be picked."""
        architecture = finalist.architecture
        return Scored(
            Candidate(architecture, BASELINE),
            None,
            self._cost(architecture),
            evaluator.measures.get(architecture.key, {}),
        )

    def _rungs(
        self,
        finalists: list[Finalist],
        label: str,
        workers: Executor,
        latencies: dict[str, float] | None = None,
        propose: Propose | None = None,
        entering: int | None = None,
    ) -> list[Trained]:
        """Train finalists in rungs, several at a time where there are workers."""
        if not finalists:
            return []
        config = self.config.finalists
        of_latency = class_of(self.config.latency_limits)

        def keep(entry: Trained) -> int:
            return of_latency(latencies[entry.key]) if latencies else 0

        path = self.folder / "finalists.jsonl"
        with self.progress(label, config.epochs(entering or len(finalists))) as advance:
            if done := config.epochs_done(path, finalists[0].group):
                advance(done)
            seen = 0  # epochs of the present network, when this process trains it

            def on_epoch(entry: Epoch) -> None:
                nonlocal seen
                seen += 1
                advance(1, loss=entry.loss)

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

            return run_rungs(finalists, config, records=path, work=work, keep=keep, propose=propose)

    def _keep_ensemble(self, trained: Sequence[Trained], scored: Sequence[Scored]) -> None:
        """Answers of the best finalists, for who trains the pick at length; once, while weights are there."""
        architectures = {entry.candidate.architecture.key: entry.candidate.architecture for entry in scored}
        path = self.folder / ensemble_file(self.dataset.fingerprint)
        through = [entry for entry in through_last_rung(trained) if not entry.diverged]
        if path.exists() or not through or self.config.finalists.start != "scratch":
            return
        best = [
            Finalist(architectures[entry.key], "search", entry.reason, entry.score, entry.macs)
            for entry in through[:ENSEMBLE]
        ]
        answers = ensemble_answers(
            best, through[0].rung, self.dataset, weights=self.folder / "finalists", device=self.device
        )
        if answers is not None:
            stream = io.BytesIO()
            np.save(stream, answers, allow_pickle=False)
            files.write_bytes(path, stream.getvalue())

    def _settle_finalists(self, trained: list[Trained]) -> None:
        settle(
            self.folder / "finalists.jsonl",
            ("group", "key", "rung"),
            [(entry.group, entry.key, entry.rung) for entry in trained],
        )

    def _random_finalists(self, context: Context, evaluator: Evaluator) -> list[Finalist]:
        """Networks of the baseline: drawn like candidates, from a seed of their own, never scored.

        They keep the same limits: where candidates are measured, so are these.
        """
        config = self.config.finalists
        if config.baseline == "none":
            return []
        count = min(config.entering, self.config.candidates)
        if config.baseline == "total":
            count = self._count_of_equal_total(count)
        own = replace(context, seed=seed_of(context.seed, 0xBA5E), options={}, known=())
        seen, chosen, slot = set[str](), list[Candidate](), 0
        for _ in range(BASELINE_ROUNDS):
            pairs = draws(own, count - len(chosen), seen, slot)
            slot = pairs[-1][0] + 1
            drawn = [candidate for _, candidate in pairs]
            evaluator.measure([candidate.architecture for candidate in drawn])
            chosen += [candidate for candidate in drawn if evaluator.refusal(candidate.architecture) is None]
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
        self, trained: list[Trained], scored: list[Scored], baseline: list[Trained], evaluator: Evaluator
    ) -> tuple[Trained, dict[str, Pick]]:
        """The pick of best.json, and that of every limit where there are several.

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
                    limit, trained, latencies, lambda key: evaluator.confirm(architectures[key])[LATENCY]
                )
            except GateError:
                if limit is limits[-1]:
                    raise
        best = {
            label: Pick(winner, self._best_file(winner, scored, trained, baseline, limit=label))
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
        trained: list[Trained],
        baseline: list[Trained],
        limit: str | None = None,
    ) -> BestFile:
        by_key = {entry.candidate.architecture.key: entry for entry in scored}
        entry = by_key[winner.key]
        ranked = sorted(
            (other.score for other in scored if other.score is not None),
            key=lambda score: (-score.images, score.error, score.loss, score.key),
        )
        search = SearchRecord(
            candidates=proposed(scored),
            origin=entry.candidate.origin,
            reason=winner.reason,
            error=winner.error,
            epochs=winner.epochs,
            recipe=self.config.finalists.recipe.to_json(),
            cost=entry.cost,
            strategy=self.config.strategy,
            space=self.space.name,
            seed=self.config.seed,
            run=self.folder.name,
            data=self.dataset.spec,
            data_seed=self.dataset.seed,
            fingerprint=self.dataset.fingerprint,
            images_sha256=self.dataset.images_sha256,
            versions=versions(),
            limit=limit,
            random_search_error=pick(baseline).error if baseline else None,
        )
        if entry.score is not None:  # networks of the baseline have none
            rank = [score.key for score in ranked].index(winner.key) + 1
            search = replace(search, score=entry.score.error, score_images=entry.score.images, rank=rank)
        if entry.measures:
            confirmed = files.read_jsonl(self.folder / "confirmed.jsonl")
            again: dict[str, float] = next(
                (record["measures"] for record in confirmed if record["key"] == winner.key), {}
            )
            search = replace(search, measures={**entry.measures, **again})
            search = self._with_use_of_limit(search, winner, scored, trained)
        return BestFile(entry.candidate.architecture, self.spec, tuple(self.dataset.classes), search)

    def _with_use_of_limit(
        self,
        search: SearchRecord,
        winner: Trained,
        scored: Sequence[Scored],
        trained: Sequence[Trained],
    ) -> SearchRecord:
        """Which share of the limit the pick uses, and why not more where that is little."""
        limits = {limit.label: limit.milliseconds for limit in self.config.latency_limits}
        if not limits:
            return search
        limit = limits[search.limit] if search.limit is not None else max(limits.values())
        share = search.measures[LATENCY] / limit
        search = replace(search, limit_ms=limit, limit_used=share)
        if share >= 1 - MOST_UNUSED:
            return search
        latencies = {other.candidate.architecture.key: other.measures.get(LATENCY) for other in scored}
        near = [
            other
            for other in trained
            if (latency := latencies.get(other.key)) and (1 - MOST_UNUSED) * limit <= latency <= limit
        ]
        best = min(near, key=lambda other: (-other.rung, other.error), default=None)
        if best is None:
            why = f"no network that was trained uses {1 - MOST_UNUSED:.0%} of it or more"
        else:
            why = (
                f"the best of {len({other.key for other in near})} trained networks that use more had "
                f"an error of {best.error:.2%} after {best.epochs} epochs, the pick {winner.error:.2%} after "
                f"{winner.epochs}"
            )
        used = f"{share:.0%}" if share >= 0.01 else "under 1%"
        return replace(search, unused=f"The pick uses {used} of the limit: {why}.")

    # -------------------------------------------------------------------------------------- helpers

    def _cost(self, architecture: Architecture) -> Cost:
        return cost_of(architecture, self.spec, self.classes)

    def _macs(self, candidate: Candidate) -> int:
        return self._cost(candidate.architecture).macs

    def _within_cost(self, architecture: Architecture) -> bool:
        return self.config.limits.refusal(self._cost(architecture)) is None

    @property
    def _limits_latency(self) -> bool:
        return bool(self.config.latency_limits) and self.measurement is not None

    def _refusal(self, architecture: Architecture) -> str | None:
        """Why a network may not be proposed, or None. What is near a latency limit is measured to know it.

        So candidates count within the limits, whatever the strategy.
        """
        reason = self.config.limits.refusal(self._cost(architecture))
        if reason is None:
            reason = self._predicted_refusal(architecture)
        if reason is None and self._limits_latency and self._evaluator is not None:
            self._evaluator.measure([architecture])
            reason = self._evaluator.refusal(architecture)
        return reason

    def _predicted_refusal(self, architecture: Architecture, slack: float = 2.0) -> str | None:
        """Why a network is slower than the limits by prediction; ``slack`` in errors of the prediction."""
        if self._latency is None:
            return None
        limit = max(limit.milliseconds for limit in self.config.latency_limits)
        predicted = self._latency.predict(architecture)
        if predicted <= limit * (1 + slack * self._latency.error):
            return None
        return f"about {predicted:.3g} ms by prediction, where at most {limit:g} ms are allowed"

    def _worthwhile(self, architecture: Architecture) -> bool:
        """Whether a draw is worth a proposal: near a latency limit, where there is one."""
        return self._latency is None or near_a_limit(self._latency, self.config.latency_limits, architecture)

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


def proposed(scored: Sequence[Scored]) -> int:
    """Number of networks that the search itself proposed."""
    return sum(entry.candidate.origin != BASELINE for entry in scored)


def ensemble_file(fingerprint: str) -> str:
    """Name of the file in a run that holds the answers of its best finalists for the training images."""
    return f"ensemble-{fingerprint[:16]}.npy"


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
