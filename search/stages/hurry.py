"""Which networks are best after a last training of limited time: one that trains slowly has fewer epochs.

A race compares networks after equal epochs. Within 15 MMACs on CIFAR-10 one of inverted bottlenecks was a
point ahead of a residual one, and took 2.5 times as long for each epoch: in 20 minutes it had five, where the
other had fifteen, and ended a point behind. And a race is shorter than the last training, which favours small
networks: one of 3 MMACs, level with others in the race, ended a point behind them, in more epochs than
theirs. So errors are compared as they will be, by epochs and size: when the pick is chosen, from rung to
rung, and before the race, where scores decide which networks enter it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from smash_base import files
from smash_search.rank.latency_model import fit_latency
from smash_search.train.network import MOST_EPOCHS, new_network, seconds_per_epoch

if TYPE_CHECKING:
    from smash_search.rank.trained import Trained
    from smash_search.space.architecture import Architecture
    from smash_search.stages.config import Run

DECLINE = 0.15
"""An error falls as epochs to the power of -0.15: picks at ResNet-8's latency on CIFAR-10 have 16.1, 11.6 and
9.5 % after 4, 25 and 100 epochs (benchmarks/results: race_length, search_ordered, published_accuracy);
ResNet-8 itself 18.1 and 11.5 % after 6 and 100."""
SIZE = 0.05
"""It falls as parameters to the power of -0.05 as well: of networks with one error after 2 epochs of 12,800
images of CIFAR-10 that of twice the parameters has 0.7 points less after 14, of 19 % (32 networks;
docs/experiments). Seven picks of short races, of 101,000 to 664,000 parameters, ask for 0.07 after 5 to 21
epochs of 45,000."""
TIMES = "training_times.jsonl"  # in the run's folder: a search that goes on picks as it would have
PROBED = 16  # networks whose training is timed before a race; that of others is predicted from theirs


class LastTraining:
    """How far networks come in the time of the last training, measured here by a few steps of each, once.

    Args:
        run: What is searched; ``run.config.last_training`` is the time.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        records = files.read_jsonl(run.folder / TIMES)
        self._seconds: dict[str, float] = {record["key"]: record["seconds"] for record in records}

    @classmethod
    def of(cls, run: Run) -> LastTraining | None:
        """That of a run; None where nothing limits its time."""
        return cls(run) if run.config.last_training else None

    def epochs(self, architecture: Architecture) -> float:
        """Passes over the training images that a network has time for."""
        return self._epochs(self._seconds_of(architecture))

    def handicap(self, architecture: Architecture) -> float:
        """What an error in the race is multiplied by, to compare it with others as after the last training.

        It falls with the epochs that a network has time for, below one as at one, and with its parameters.
        """
        return self._handicap(architecture, self._seconds_of(architecture))

    def by_key(self, architectures: Mapping[str, Architecture]) -> Callable[[Trained], float]:
        """:meth:`handicap` of networks that were trained, whose architectures are known by key."""
        return lambda entry: self.handicap(architectures[entry.key])

    def handicaps(self, architectures: Sequence[Architecture]) -> dict[str, float]:
        """:meth:`handicap` of each, by key.

        Of more than :data:`PROBED` as many are timed, from the one of fewest multiply-accumulates to the one
        of most; a model of their times (:mod:`smash_search.rank.latency_model`) tells those of the others.
        """
        by_size = sorted(architectures, key=lambda entry: (self._run.cost(entry).macs, entry.key))
        places = np.linspace(0, len(by_size) - 1, min(PROBED, len(by_size))).round().astype(int)
        probed = [by_size[place] for place in places]
        seconds = dict[str, float]()
        with self._run.progress("training times", len(probed)) as advance:
            for architecture in probed:
                seconds[architecture.key] = self._seconds_of(architecture)
                advance(1)
        if len(by_size) > len(probed):
            model = fit_latency(probed, list(seconds.values()), self._run.spec, self._run.classes)
            fastest = min(seconds.values())  # a network whose parts have no price would take no time
            seconds = {entry.key: max(fastest, model.predict(entry)) for entry in by_size} | seconds
        return {entry.key: self._handicap(entry, seconds[entry.key]) for entry in architectures}

    def words(self, winner: Architecture, others: Sequence[Architecture]) -> str | None:
        """Why networks that were ahead after equal epochs are not picked; None where none was.

        Args:
            winner: The pick.
            others: those that were ahead, best first.
        """
        if not others:
            return None
        seconds = self._run.config.last_training
        own, other = (self._run.cost(entry).parameters for entry in (winner, others[0]))
        return (
            f"{seconds:.0f} s of training are {self.epochs(winner):.1f} epochs of the pick, of {own:,} "
            f"parameters, and {self.epochs(others[0]):.1f} of {others[0].key}, of {other:,}, which was ahead "
            "after equal epochs."
        )

    def _seconds_of(self, architecture: Architecture) -> float:
        """Seconds of an epoch."""
        key, run = architecture.key, self._run
        if key not in self._seconds:
            network = new_network(architecture, run.spec, run.classes, run.config.seed)
            recipe = replace(run.config.finalists.recipe, epoch_images=0)
            seconds = round(seconds_per_epoch(network, run.dataset, recipe, run.device), 4)
            files.append_jsonl(run.folder / TIMES, {"key": key, "seconds": seconds})
            self._seconds[key] = seconds
        return self._seconds[key]

    def _epochs(self, seconds: float) -> float:
        return min(float(MOST_EPOCHS), self._run.config.last_training / seconds)

    def _handicap(self, architecture: Architecture, seconds: float) -> float:
        parameters = self._run.cost(architecture).parameters
        return float(max(1.0, self._epochs(seconds)) ** -DECLINE * parameters**-SIZE)
