"""A whole search in one folder: HyperNet, scores, finalists, pick. Resumes wherever it was stopped.

    config.json      what the search is: a resumed one must be the same
    hypernet.pt      checkpoint of the HyperNet, whole at the end
    training.json    its loss, and how often each choice was trained
    scores.jsonl     one line per architecture and stage of the race
    measures.jsonl   measurements on a device, where the search has any
    ranking.json     how far the scores can be trusted
    finalists.jsonl  one line per network and rung
    best.json        the pick; written last
    timings.json     seconds of each stage: the only file that differs from run to run

Everything but timings and measurements is a function of configuration and data. A search that was killed at
any moment and resumed on a CPU therefore ends with the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from search.architecture import Architecture, BestFile, InputSpec, write_best
from search.compute import check_identity, load_checkpoint, pick_device, seed_of
from search.cost import Cost, cost_of
from search.finalists import (
    Finalist,
    FinalistsConfig,
    Trained,
    choose,
    input_spec_of,
    pick,
    run_rungs,
)
from search.hypernet import HyperNetConfig
from search.limits import Limits, survey
from search.network import Network
from search.scoring import (
    Score,
    Scorer,
    ScoringConfig,
    corrupted,
    kept_best,
    split_half,
    survivors,
)
from search.space import Space, space_for
from search.strategies import Candidate, Context, Scored, make_strategy
from search.strategies.random import draws
from search.supernet import Supernet
from search.training import TrainingConfig, new_supernet, train
from smash_base import files
from smash_base.errors import InvalidInputError, UsageError

if TYPE_CHECKING:
    from search.data import Dataset

SCHEMA = 1
ENCODING_CHECKS = 8  # architectures whose weights are also generated from a corrupted c


class Advance(Protocol):
    """Moves a progress display."""

    def __call__(self, n: float = 1, **fields: object) -> None: ...


Progress = Callable[[str, float | None], AbstractContextManager[Advance]]
"""(label, total) -> context manager that gives an :class:`Advance`."""


class Measurement(Protocol):
    """Measures networks on a device; what it is belongs to the caller. The search knows no runtime."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        """Values by name, for example ``{"latency_ms": 1.8}``."""

    def refusal(self, measures: dict[str, float]) -> str | None:
        """Why a network with these values may not be picked, or None."""


@dataclass(frozen=True)
class SearchConfig:
    """What a search does; everything that its results depend on, but the data.

    Attributes:
        space: a name of :data:`search.space.SPACES`, or None to choose by the size of the images.
        seed: of everything random.
        strategy: a name of :data:`search.strategies.STRATEGIES`.
        strategy_options: checked by the strategy.
        candidates: architectures to score.
        limits: on cost, checked before anything is trained.
        hypernet, training, scoring, finalists: of the stages; their seeds are set from ``seed``.
        measured: how candidates are measured, in the caller's words, or empty; a resumed search must
            measure in the same way.
    """

    space: str | None = None
    seed: int = 0
    strategy: str = "random"
    strategy_options: dict[str, Any] = field(default_factory=dict)
    candidates: int = 500
    limits: Limits = field(default_factory=Limits)
    hypernet: HyperNetConfig = field(default_factory=HyperNetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    finalists: FinalistsConfig = field(default_factory=FinalistsConfig)
    measured: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.candidates, bool) or not 1 <= self.candidates <= 10_000_000:
            raise InvalidInputError("candidates", expected="1 to 10000000", received=self.candidates)
        if isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise InvalidInputError("seed", expected="0 and more", received=self.seed)
        for name in ("training", "scoring", "finalists"):
            object.__setattr__(self, name, replace(getattr(self, name), seed=self.seed))

    def to_json(self) -> dict[str, Any]:
        """What config.json holds of it."""
        return {
            "space": self.space,
            "seed": self.seed,
            "strategy": self.strategy,
            "strategy_options": self.strategy_options,
            "candidates": self.candidates,
            "limits": self.limits.to_json(),
            "hypernet": {**asdict(self.hypernet), "depths": list(self.hypernet.depths)},
            "training": self.training.to_json(),
            "scoring": self.scoring.to_json(),
            "finalists": self.finalists.to_json(),
            "measured": self.measured,
        }


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        folder: of the run.
        best: content of best.json.
        pick: the finalist that was picked, after its last rung.
        random: the same of the equal-budget random search, or None.
        scored: every candidate with its latest score.
        trained: every finalist and rung, both groups.
        ranking: content of ranking.json.
        seconds: by stage, over all resumptions.
    """

    folder: Path
    best: BestFile
    pick: Trained
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

    Raises:
        UsageError: the folder is in use, or holds another search, or one and ``resume`` is false.
        GateError: no network of the space keeps the limits; before anything is trained.
        DivergedError, OutOfMemoryError: see :mod:`search.training`.
    """
    folder = Path(folder)
    chosen = pick_device(device)
    with files.exclusive(folder, purpose="search"):
        search = _Search(config, dataset, folder, chosen, progress or _silent, measurement)
        search.claim(resume)
        return search.run()


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
        self.space: Space = space_for(self.spec, config.space)
        self.classes = len(dataset.classes)

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
            for name in ("scores.jsonl", "measures.jsonl", "finalists.jsonl"):
                _close_torn_line(self.folder / name)
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

    def run(self) -> SearchResult:
        context = Context(
            self.space,
            self.config.seed,
            self.config.candidates,
            self._refusal,
            self._cost,
            self.config.strategy_options,
        )
        self.config.limits.check_possible(
            survey(self.space, self.spec, self.classes, seed=self.config.seed), self.space.name
        )
        strategy = make_strategy(self.config.strategy, context)  # a wrong name must not cost a training
        with self._timed("hypernet"):
            supernet = self._train()
        with self._timed("scoring"):
            scorer = Scorer(supernet, self.dataset, self.config.scoring, self.device)
            scored = self._score_all(strategy, scorer)
            scored, ranking = self._race(scored, scorer)
        with self._timed("finalists"):
            finalists = choose(scored, self.config.finalists)
            trained = self._rungs(finalists, "finalists", scorer)
        with self._timed("random search"):
            baseline = self._rungs(self._random_finalists(context), "random search", None)
        winner = pick(trained)
        best = self._best_file(winner, scored, baseline)
        write_best(self.folder / "best.json", best)
        shutil.rmtree(self.folder / "finalists", ignore_errors=True)
        return SearchResult(
            self.folder,
            best,
            winner,
            pick(baseline) if baseline else None,
            scored,
            trained + baseline,
            ranking,
            self._seconds(),
        )

    # ------------------------------------------------------------------------------------- stages

    def _train(self) -> Supernet:
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
            )
        record = {"history": result.history, "skipped": result.skipped, "counts": result.counts}
        files.write_json(self.folder / "training.json", record)
        return supernet

    def _score_all(self, strategy: Any, scorer: Scorer) -> list[Scored]:
        """Every candidate on the images of the first stage."""
        known = self._known_scores()
        measured = {
            record["key"]: record["measures"] for record in files.read_jsonl(self.folder / "measures.jsonl")
        }
        images, results = scorer.stages[0], []
        best = math.inf
        with self.progress("candidates", self.config.candidates) as advance:
            while candidates := strategy.ask():
                batch: list[Scored] = []
                for candidate in candidates:
                    entry = self._score_one(candidate, scorer, images, known, measured)
                    best = min(best, entry.score.error if entry.score else math.inf)
                    batch.append(entry)
                    advance(1, best=f"{best:.2%}")
                strategy.tell(batch)
                results.extend(batch)
        return results

    def _score_one(
        self,
        candidate: Candidate,
        scorer: Scorer,
        images: int,
        known: dict[tuple[str, int], Score],
        measured: dict[str, dict[str, float]],
    ) -> Scored:
        architecture = candidate.architecture
        key, cost = architecture.key, self._cost(architecture)
        measures: dict[str, float] = {}
        refused = None
        if self.measurement is not None:
            if key not in measured:
                measured[key] = self.measurement.measure(architecture)
                record = {"key": key, "measures": measured[key]}
                files.append_jsonl(self.folder / "measures.jsonl", record)
            measures = measured[key]
            refused = self.measurement.refusal(measures)
        if refused is not None:
            return Scored(candidate, None, cost, measures, refused)
        if (key, images) not in known:
            known[key, images] = scorer.score(architecture, images)
            self._append_score(known[key, images], candidate, cost, first=True)
        return Scored(candidate, known[key, images], cost, measures)

    def _race(self, scored: list[Scored], scorer: Scorer) -> tuple[list[Scored], dict[str, Any]]:
        """Further stages for the better part; and how far the scores can be trusted."""
        known = self._known_scores()
        latest = {entry.score.key: entry for entry in scored if entry.score is not None}
        if not latest:
            raise InvalidInputError(
                "no candidate is within the measured limits",
                expected="at least one",
                received="; ".join(sorted({entry.refused or "" for entry in scored})[:3]),
            )
        entered = list(latest)
        stages: list[dict[str, Any]] = []
        keep = self.config.scoring.keep
        for number, images in enumerate(scorer.stages):
            if number:
                with self.progress(f"race, {images} images", len(entered)) as advance:
                    for key in entered:
                        entry = latest[key]
                        if (key, images) not in known:
                            known[key, images] = scorer.score(
                                entry.candidate.architecture, images, entry.score
                            )
                            self._append_score(known[key, images], entry.candidate, entry.cost)
                        latest[key] = replace(entry, score=known[key, images])
                        advance(1)
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

    def _rungs(self, finalists: list[Finalist], label: str, scorer: Scorer | None) -> list[Trained]:
        if not finalists:
            return []
        config = self.config.finalists
        start = None
        if scorer is not None and config.start == "generated":
            start = self._generated_start(scorer)
        with self.progress(label, config.epochs(len(finalists))) as advance:
            return run_rungs(
                finalists,
                self.dataset,
                config,
                records=self.folder / "finalists.jsonl",
                weights=self.folder / "finalists",
                device=self.device,
                start=start,
                on_epoch=lambda _, entry: advance(1, loss=entry["loss"]),
            )

    def _generated_start(self, scorer: Scorer) -> Callable[[Architecture], Network]:
        def start(architecture: Architecture) -> Network:
            network = Network(architecture, self.spec, self.classes, "none")
            scorer.supernet.copy_to(network, scorer.statistics(architecture))
            return network

        return start

    def _random_finalists(self, context: Context) -> list[Finalist]:
        """Networks of the baseline: drawn like candidates, from a seed of their own, never scored."""
        config = self.config.finalists
        if config.baseline == "none":
            return []
        count = min(config.count, self.config.candidates)
        if config.baseline == "total":
            count = self._count_of_equal_total(count)
        own = replace(context, seed=seed_of(context.seed, 0xBA5E), options={})
        return [
            Finalist(candidate.architecture, "random", "random search", None, self._macs(candidate))
            for _, candidate in draws(own, count, set())
        ]

    def _count_of_equal_total(self, count: int) -> int:
        """Random networks whose rungs go through as many images as the whole search does.

        A scored image counts a third of a trained one: it has no backward pass.
        """
        config = self.config
        images = len(self.dataset.train.labels)
        finalists = config.finalists.epochs(count) * images
        training = config.training
        hypernet = training.steps * training.batch * training.architectures
        have = len(self.dataset.validation.labels)
        per_score = config.scoring.statistics_images + min(config.scoring.images[0] or have, have)
        scoring = config.candidates * per_score / 3
        return max(count, round(count * (finalists + hypernet + scoring) / finalists))

    def _best_file(self, winner: Trained, scored: list[Scored], baseline: list[Trained]) -> BestFile:
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

    def _known_scores(self) -> dict[tuple[str, int], Score]:
        records = files.read_jsonl(self.folder / "scores.jsonl")
        return {(record["key"], record["images"]): Score.from_json(record) for record in records}

    def _append_score(self, score: Score, candidate: Candidate, cost: Cost, *, first: bool = False) -> None:
        record: dict[str, Any] = {**score.to_json()}
        if first:
            record |= {
                "origin": candidate.origin,
                "cost": asdict(cost),
                "architecture": candidate.architecture.to_json(),
            }
        files.append_jsonl(self.folder / "scores.jsonl", record)

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


def _close_torn_line(path: Path) -> None:
    """Remove what a kill left of a line at the end of a JSON-lines file."""
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            files.write_bytes(path, whole)


@contextlib.contextmanager
def _silent(label: str, total: float | None) -> Iterator[Advance]:
    yield lambda n=1, **fields: None
