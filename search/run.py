"""A whole search in one folder: HyperNet, scores, finalists, pick. Resumes wherever it was stopped.

    config.json      what the search is: a resumed one must be the same
    hypernet.pt      checkpoint of the HyperNet, whole at the end
    training.json    its loss, and how often each choice was trained
    scores.jsonl     one line per architecture and stage of the race
    measures.jsonl   measurements on a device, where the search has any
    reference.jsonl  longer ones of the network that all others are measured in turns with
    confirmed.jsonl  longer ones of the networks that may be picked
    ranking.json     how far the scores can be trusted
    finalists.jsonl  one line per network and rung
    pareto.json      every trained network: error, latency, cost, whether it is on the front
    best-LIMIT.json  the pick within each further limit on latency
    ensemble-..npy   answers of the best finalists for the images, where they were to be kept
    best.json        the pick; written last
    timings.json     seconds of each stage: the only file that differs from run to run

Everything but timings and measurements is a function of configuration and data. A search that was killed at
any moment and resumed on a CPU therefore ends with the same bytes as one that was not, and so does one whose
work was spread over several workers (:mod:`smash_search.executors`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_base.progress import ShowProgress, by_step
from smash_search.executors import Executor, ExecutorConfig, check_executor, make_executor
from smash_search.executors.work import Equipment, Worker
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.supernet import Supernet
from smash_search.rank.evaluation import CONFIRMED, MEASURES, REFERENCE, SCORES, Evaluator
from smash_search.rank.finalists import input_spec_of
from smash_search.rank.measurement import Measurement
from smash_search.rank.pareto import pareto_entries
from smash_search.rank.ranking import Ranking
from smash_search.rank.records import close_torn_line
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import write_best
from smash_search.space.encoding import Layout
from smash_search.space.limits import CostLimits, costs_beyond_draws, survey
from smash_search.space.space import Space
from smash_search.stages.aims import Aims
from smash_search.stages.bounds import Bounds, accepted_draws
from smash_search.stages.config import Run, SearchConfig, silent
from smash_search.stages.picks import Picks, SearchResult, proposed, versions
from smash_search.stages.race import Race
from smash_search.stages.scores import completed, race_of_scores, score_all
from smash_search.strategies import Context, make_strategy
from smash_search.train.answers import read_answers
from smash_search.train.compute import check_identity, load_checkpoint, pick_device
from smash_search.train.distributed import ALONE, Ranks
from smash_search.train.hypernet import new_supernet, train

if TYPE_CHECKING:
    from smash_search.data import Dataset

SCHEMA = 1
OPEN_UNTIL = {
    "hypernet": ("hypernet.pt", SCORES),
    "training": ("hypernet.pt", SCORES),
    "finalists": ("finalists.jsonl",),
}
"""Parts of a configuration that may change until there is one of these files: a smaller batch, where memory
ended. Scores outlive a checkpoint that was left out of a copy."""
OF_A_BUNDLE = "manifest.json"


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
        search = _Search(Run(config, dataset, folder, chosen, progress or silent, measurement))
        search.claim(resume)
        return search.run(executor, ranks)


def check_search(config: SearchConfig, dataset: Dataset, *, measurement: Measurement | None = None) -> None:
    """What a search finds wrong before it trains anything, without a folder.

    Args:
        config, dataset, measurement: Arguments of :func:`run_search`.

    Raises:
        UsageError, GateError: as :func:`run_search` raises them before anything is trained.
    """
    nowhere = Path()  # nothing is written
    _Search(Run(config, dataset, nowhere, pick_device("cpu"), measurement=measurement)).check(ALONE)


def join_training(config: SearchConfig, dataset: Dataset, *, device: str, ranks: Ranks) -> None:
    """The part of every rank but the first in a search: training the HyperNet. Writes nothing."""
    spec = input_spec_of(dataset)
    space = config.space_for(spec)
    supernet = new_supernet(space, spec, len(dataset.classes), config.hypernet, seed=config.seed)
    aims: Aims | None = ranks.from_first(None)
    accept = accepted_draws(config, spec, len(dataset.classes), aims)
    train(supernet, dataset, config.training, device=pick_device(device), ranks=ranks, accept=accept)
    ranks.leave()


class _Search:
    """The stages in their order; each does what is missing of it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._bounds = Bounds(run)
        self._here: Worker | None = None  # from the end of training on

    def claim(self, resume: bool) -> None:
        """Write config.json, or check that the one there is of this very search."""
        path = self._run.folder / "config.json"
        identity = {
            **self._run.config.to_json(),
            "space limits": self._run.space.to_json(),
            "data fingerprint": self._run.dataset.fingerprint,
        }
        document = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        if path.exists():
            held = files.read_json(path, what="search configuration")
            if not isinstance(held, dict) or held.get("schema") != SCHEMA:
                raise InvalidInputError(f"{path} is not the configuration of a search of this version")
            if not resume:
                raise UsageError(
                    f"{self._run.folder} holds a search already",
                    hint="Choose another folder, or pass --resume.",
                )
            self._go_on_from(held, document)
            for name in (SCORES, MEASURES, REFERENCE, CONFIRMED, "finalists.jsonl"):
                close_torn_line(self._run.folder / name)
            return
        if (self._run.folder / OF_A_BUNDLE).exists():
            raise UsageError(
                f"{self._run.folder} holds a bundle",
                expected="a new folder, or that of an earlier search",
                hint="Choose another folder.",
            )
        if (self._run.folder / "scores.jsonl").exists() or (self._run.folder / "best.json").exists():
            raise UsageError(
                f"{self._run.folder} holds results but no config.json", hint="Choose another folder."
            )
        files.write_json(
            path,
            {
                "schema": SCHEMA,
                "data": self._run.dataset.spec,
                "input": self._run.spec.to_json(),
                "classes": list(self._run.dataset.classes),
                "splits": {
                    "train": len(self._run.dataset.train.labels),
                    "validation": len(self._run.dataset.validation.labels),
                    "test": len(self._run.dataset.test.labels),
                    "seed": self._run.dataset.seed,
                },
                "identity": document,
                "versions": versions(),
            },
        )

    def _go_on_from(self, held: dict[str, Any], identity: JsonObject) -> None:
        """Check that a search is the one that was begun, but for parts that nothing was made by yet."""
        folder, before = self._run.folder, dict(held["identity"])
        changed = [
            part
            for part, made in OPEN_UNTIL.items()
            if before.get(part) != identity[part] and not any((folder / name).exists() for name in made)
        ]
        before |= {part: identity[part] for part in changed}
        check_identity(folder, before, identity)
        if changed:
            shutil.rmtree(folder / "finalists", ignore_errors=True)  # parts of a training that never ended
            files.write_json(folder / "config.json", {**held, "identity": identity})

    def run(self, executor: ExecutorConfig, ranks: Ranks) -> SearchResult:
        """All stages, from the training of the HyperNet to best.json."""
        run, bounds = self._run, self._bounds
        self.check(ranks)
        supernet = new_supernet(run.space, run.spec, run.classes, run.config.hypernet, seed=run.config.seed)
        device = run.device.type if ranks.world > 1 else str(run.device)  # all GPUs, not this rank's own
        config = run.config
        equipment = Equipment(
            supernet, run.dataset, config.scoring, config.finalists, run.measurement, run.folder, device
        )
        if bounds.limits_latency:
            with self._timed("device"):
                bounds.survey(Worker(equipment))
        ranks.from_first(bounds.aims)
        with self._timed("hypernet"):
            self._train(supernet, ranks)
        self._here = here = Worker(equipment)
        with contextlib.closing(make_executor(executor, equipment, here)) as workers:
            result = self._ranked(workers, here)
        shutil.rmtree(run.folder / "finalists", ignore_errors=True)
        return result

    def check(self, ranks: Ranks) -> None:
        """Whatever is wrong with the settings is said before anything is trained."""
        run = self._run
        if run.config.latency_limits and run.measurement is None:
            raise UsageError(
                "there are limits on latency, and nothing measures it",
                expected="a measurement",
                hint="Pass measurement, such as smash_export.device_search.search.device_latency(dataset).",
            )
        ranks.check(run.config.training.architectures)
        self._check_teacher()
        if run.config.limits != CostLimits():
            costs = survey(run.space, run.spec, run.classes, seed=run.config.seed)
            costs += costs_beyond_draws(run.space, run.spec, run.classes)
            run.config.limits.check_possible(costs, run.space.name)
        make_strategy(run.config.strategy, replace(self._context(), folder=None))

    def _check_teacher(self) -> None:
        """Raise InvalidInputError unless the teacher's answers are there and are those for these images."""
        name = self._run.config.finalists.teacher
        if name:
            read_answers(self._run.folder / name, self._run.dataset)

    def _context(self) -> Context:
        run = self._run
        return Context(
            run.space,
            run.config.seed,
            run.config.candidates,
            self._bounds.refusal,
            run.cost,
            run.config.strategy_options,
            run.images,
            run.folder,
            self._encoding_gradient,
            self._bounds.known(),
            self._bounds.worthwhile,
        )

    def _encoding_gradient(self, architecture: Architecture, images: int) -> tuple[Layout, np.ndarray]:
        assert self._here is not None  # candidates are asked for after training
        return self._here.scorer.encoding_gradient(architecture, images)

    def _train(self, supernet: Supernet, ranks: Ranks) -> None:
        config = self._run.config
        with self._run.progress("HyperNet", config.training.steps) as advance:
            result = train(
                supernet,
                self._run.dataset,
                config.training,
                device=self._run.device,
                checkpoint=self._run.folder / "hypernet.pt",
                checkpoint_seconds=10.0,
                on_step=by_step(advance),
                ranks=ranks,
                accept=accepted_draws(config, self._run.spec, self._run.classes, self._bounds.aims),
            )
        ranks.leave()
        files.write_json(self._run.folder / "training.json", result.to_json())

    def _ranked(self, workers: Executor, here: Worker) -> SearchResult:
        """Scores, race and picks, with a HyperNet that is trained."""
        run, bounds = self._run, self._bounds
        evaluator = Evaluator(run.folder, run.images, run.cost, run.measurement, workers)
        bounds.measure_by(evaluator)
        context = self._context()  # known networks within the limits, now that latency can be predicted
        race = Race(run, bounds, workers, evaluator)
        with self._timed("scoring"):
            scored = score_all(run, make_strategy(run.config.strategy, context), evaluator)
            scored, ranking = race_of_scores(run, scored, here.scorer, evaluator)
            found = proposed(scored)
        with self._timed("finalists"):
            trained = race.finalists(scored)
        with self._timed("random search"):
            drawn, baseline = race.baseline(context, scored)
        refused = evaluator.refused(bounds.probes) if run.measurement else None
        ranking = completed(run, ranking, scored, trained, here.scorer, refused)
        evaluator.settle()
        race.settle(trained + baseline)
        scored += drawn
        if run.config.finalists.ensemble:
            race.keep_ensemble(trained, scored)
        return self._picked(Picks(run, scored, trained + baseline, baseline), found, ranking, evaluator)

    def _picked(self, picks: Picks, found: int, ranking: Ranking, evaluator: Evaluator) -> SearchResult:
        """Picks among what was trained, in files; best.json is the last of them."""
        run = self._run
        pareto = pareto_entries(picks.trained, picks.scored)
        networks = [entry.to_json() for entry in pareto]
        files.write_json(run.folder / "pareto.json", {"schema": SCHEMA, "networks": networks})
        winner, by_limit = picks.within_limits(evaluator)
        for label, within in by_limit.items():
            write_best(run.folder / f"best-{label}.json", within.best)
        best = picks.best_file(winner)
        write_best(run.folder / "best.json", best)
        limits = [limit.label for limit in run.config.latency_limits]
        return SearchResult(
            run.folder,
            best,
            winner,
            by_limit,
            tuple(label for label in limits if by_limit and label not in by_limit),
            pareto,
            picks.random,
            picks.scored,
            found,
            picks.trained,
            ranking,
            self._seconds(),
        )

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = self._seconds()
            spent = seconds.get(stage, 0.0) + time.monotonic() - start
            files.write_json(self._run.folder / "timings.json", {**seconds, stage: round(spent, 3)})

    def _seconds(self) -> dict[str, float]:
        path = self._run.folder / "timings.json"
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
