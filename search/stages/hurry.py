"""Which network is best after a last training of limited time: one that trains slowly has fewer epochs.

A race compares networks after equal epochs. Within 15 MMACs on CIFAR-10 one of inverted bottlenecks was a
point ahead of a residual one, and took 2.5 times as long for each epoch: in 20 minutes it had five, where the
other had fifteen, and ended a point behind. So errors are compared as they will be, by a curve of error over
epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from smash_base import files
from smash_search.rank.trained import Trained
from smash_search.train.network import MOST_EPOCHS, new_network, seconds_per_epoch

if TYPE_CHECKING:
    from smash_search.space.architecture import Architecture
    from smash_search.stages.config import Run

DECLINE = 0.15
"""An error falls as epochs to the power of -0.15: picks at ResNet-8's latency on CIFAR-10 have 16.1, 11.6 and
9.5 % after 4, 25 and 100 epochs (benchmarks/results: race_length, search_ordered, published_accuracy);
ResNet-8 itself 18.1 and 11.5 % after 6 and 100."""
TIMES = "training_times.jsonl"  # in the run's folder: a search that goes on picks as it would have


class LastTraining:
    """How far networks come in the time of the last training, measured here by a few steps of each, once.

    Args:
        run: What is searched; ``run.config.last_training`` is the time.
        architectures: Networks that were trained, by key.
    """

    def __init__(self, run: Run, architectures: Mapping[str, Architecture]) -> None:
        self._run, self._architectures = run, architectures
        records = files.read_jsonl(run.folder / TIMES)
        self._seconds: dict[str, float] = {record["key"]: record["seconds"] for record in records}

    def epochs(self, key: str) -> float:
        """Passes over the training images that the network of a key has time for."""
        if key not in self._seconds:
            run = self._run
            network = new_network(self._architectures[key], run.spec, run.classes, run.config.seed)
            recipe = replace(run.config.finalists.recipe, epoch_images=0)
            seconds = round(seconds_per_epoch(network, run.dataset, recipe, run.device), 4)
            files.append_jsonl(run.folder / TIMES, {"key": key, "seconds": seconds})
            self._seconds[key] = seconds
        return min(float(MOST_EPOCHS), self._run.config.last_training / self._seconds[key])

    def handicap(self, entry: Trained) -> float:
        """Error after the last training over that after one epoch; below one epoch as after one."""
        return float(max(1.0, self.epochs(entry.key)) ** -DECLINE)

    def words(self, winner: Trained, others: Sequence[Trained]) -> str | None:
        """Why networks that were ahead after equal epochs are not picked; None where none was.

        Args:
            winner: The pick.
            others: those that were ahead, best first.
        """
        if not others:
            return None
        seconds = self._run.config.last_training
        return (
            f"{seconds:.0f} s of training are {self.epochs(winner.key):.1f} epochs of the pick, and "
            f"{self.epochs(others[0].key):.1f} of {others[0].key}, which was ahead after equal epochs."
        )
