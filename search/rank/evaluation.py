"""Candidates measured and scored by workers; every result in the run's files before the next task is done.

    scores.jsonl     one line per architecture and number of images; the first has the architecture
    measures.jsonl   measurements on a device
    reference.jsonl  longer ones of the network that others are measured in turns with, two of them
    confirmed.jsonl  longer ones of those that may be picked; a second line for one that is to be picked and
                     was measured on both sides of a limit

What is in the files is not done again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from smash_base import files
from smash_base.json_values import JsonObject
from smash_search.executors import Executor, Task
from smash_search.rank.measurement import LATENCY, LOWEST, NOW, Measurement, faster, undisturbed
from smash_search.rank.records import settle
from smash_search.rank.scoring import Score
from smash_search.space.architecture import Architecture
from smash_search.space.cost import Cost
from smash_search.strategies import Candidate, Scored

SCORES, MEASURES, REFERENCE, CONFIRMED = (
    "scores.jsonl",
    "measures.jsonl",
    "reference.jsonl",
    "confirmed.jsonl",
)
ANCHORS = 8  # networks that say how fast the machine is now
NOISE = 1.04  # a longer measurement over what a network took before, beyond which the machine may be slower


class Evaluator:
    """Gives candidates their measures and scores.

    Args:
        folder: Folder of the run.
        images: validation images of a candidate that asks for no other number.
        cost: exact cost of an architecture.
        measurement: on a device, or None.
        workers: do the work.

    Attributes:
        scores: by key and number of images.
        measures: by key.
        measured: Networks that were measured, by key, in their order.
    """

    def __init__(
        self,
        folder: Path,
        images: int,
        cost: Callable[[Architecture], Cost],
        measurement: Measurement | None,
        workers: Executor,
    ) -> None:
        self._folder, self._images, self._cost = folder, images, cost
        self._measurement, self._workers = measurement, workers
        records = files.read_jsonl(folder / SCORES)
        self.scores = {(record["key"], record["images"]): Score.from_json(record) for record in records}
        self.measures = _measures(folder / MEASURES)
        self._confirmed, self._confirmed_again = _first_and_again(folder / CONFIRMED)
        self.measured: dict[str, Architecture] = {}
        self._reference: tuple[Architecture, float] | None = None  # and its milliseconds
        self._most: dict[str, int] = {}  # images that an architecture was scored on
        for key, count in self.scores:
            self._most[key] = max(count, self._most.get(key, 0))
        self._scored: list[tuple[Hashable, ...]] = []  # keys and images, in their order

    def evaluate(
        self, candidates: Sequence[Candidate], on_score: Callable[[Score], None] = lambda _: None
    ) -> list[Scored]:
        """Measure and score a batch; one entry per candidate, in their order.

        Args:
            candidates: within the limits on cost.
            on_score: called with every new score.
        """
        self.measure([candidate.architecture for candidate in candidates])
        refused = {c.architecture.key: self.refusal(c.architecture) for c in candidates}
        kept = [candidate for candidate in candidates if refused[candidate.architecture.key] is None]
        self.score([(candidate, candidate.images or self._images) for candidate in kept], on_score)
        entries = []
        for candidate in candidates:
            key, cost = candidate.architecture.key, self._cost(candidate.architecture)
            reason = refused[key]
            score = self.scores[key, candidate.images or self._images] if reason is None else None
            entries.append(Scored(candidate, score, cost, self.measures.get(key, {}), reason))
        return entries

    def refusal(self, architecture: Architecture) -> str | None:
        """Why the measures of a measured architecture exclude it, or None."""
        if self._measurement is None:
            return None
        return self._measurement.refusal(self.measures[architecture.key])

    def refused(self, besides: Sequence[Architecture]) -> int:
        """Number of networks that were measured and are beyond the limits, those ``besides`` left out."""
        keys = self.measured.keys() - {architecture.key for architecture in besides}
        return sum(self.refusal(self.measured[key]) is not None for key in keys)

    def measure(self, architectures: Sequence[Architecture]) -> None:
        """Measure what is not measured yet: one after the other, so that nothing disturbs."""
        if self._measurement is None:
            return
        self.measured |= {architecture.key: architecture for architecture in architectures}
        missing = [entry for entry in architectures if entry.key not in self.measures]
        for index, measures in self._measured_briefly(missing):
            key = missing[index].key
            self.measures[key] = measures
            files.append_jsonl(self._folder / MEASURES, {"key": key, "measures": measures})

    def refer_to(self, reference: Architecture) -> None:
        """Measure what comes in turns with this network, which is measured longer now.

        What others take is how many times as long they take. A machine that becomes warm or busy makes both
        slower, and no network is refused for when it was measured. Where measurements are not taken here,
        nothing changes.
        """
        if self._measurement is None or not self._asked("times_over", reference, (reference,), True):
            return
        self._reference = reference, self._as_reference(reference, 0)

    def refer_again(self) -> bool:
        """Measure that network once more, some time after :meth:`refer_to`, and take the faster of the two.

        Whether the machine was slower then: what was measured since is faster by as much, in this process.
        """
        if self._reference is None:
            return False
        reference, before = self._reference
        now = self._as_reference(reference, 1)
        if before <= NOISE * now:
            return False
        self._reference = reference, now
        for key in self.measured:
            self.measures[key] = {**self.measures[key], LATENCY: self.measures[key][LATENCY] * now / before}
        return True

    def _as_reference(self, reference: Architecture, number: int) -> float:
        """Milliseconds of its longer measurement of that number, from 0, which is taken now where it was not.

        As a finalist it is measured like all others: what it took then is no reason to refuse it now.
        """
        path, key = self._folder / REFERENCE, reference.key
        taken = [record["measures"] for record in files.read_jsonl(path) if record["key"] == key]
        if len(taken) == number:
            taken.append(dict(self._asked("confirm", reference)))
            files.append_jsonl(path, {"key": key, "measures": taken[number]})
        return undisturbed(taken[number])

    def _measured_briefly(
        self, architectures: Sequence[Architecture]
    ) -> Iterator[tuple[int, dict[str, float]]]:
        if self._reference is None:
            tasks = [Task("measure", (entry,), entry.key) for entry in architectures]
            yield from self._workers.run(tasks, alone=True)
            return
        reference, milliseconds = self._reference
        tasks = [Task("times_over", (entry, (reference,), True), entry.key) for entry in architectures]
        for index, (ratio,) in self._workers.run(tasks, alone=True):
            yield index, {LATENCY: ratio * milliseconds}

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        """Longer measurements of one architecture; as they were before, with :data:`NOW` beside them, where
        it is the machine that has become slower since the short ones.
        """
        key = architecture.key
        if key not in self._confirmed:
            measures = self._measured_longer(architecture)
            self._confirmed[key] = measures
            files.append_jsonl(self._folder / CONFIRMED, {"key": key, "measures": measures})
        return self._confirmed[key]

    def confirm_at_last(self, architecture: Architecture, limit: float) -> dict[str, float]:
        """What a pick is held to: :meth:`confirm`, and once more if some of its times keep the limit and
        others do not. Of two the faster one counts: what else the machine does makes a network slower,
        never faster.

        Args:
            architecture: what is to be picked.
            limit: Milliseconds.
        """
        key, measures = architecture.key, self.confirm(architecture)
        is_open = undisturbed(measures) <= limit < measures[LATENCY]
        if key not in self._confirmed_again and is_open:
            self._confirmed_again[key] = again = self._measured_longer(architecture)
            files.append_jsonl(self._folder / CONFIRMED, {"key": key, "measures": again})
        return faster([measures, self._confirmed_again.get(key, measures)])

    def _measured_longer(self, architecture: Architecture) -> dict[str, float]:
        measures: dict[str, float] = dict(self._asked("confirm", architecture))
        now = measures[LATENCY]
        if (told := self._as_before(architecture, now)) is not None and now > NOISE * told[1]:
            measures |= {LATENCY: told[1], LOWEST: min(told[0], measures.get(LOWEST, now)), NOW: now}
        return measures

    def _as_before(self, architecture: Architecture, now: float) -> tuple[float, float] | None:
        """Milliseconds on the machine as it was for the short measurements, the median and the upper quartile
        of what others tell; None where a longer one gives no reason to ask.

        Others of about the same latency are measured in turns with it. On a slower machine all of them are
        slower, and what it takes over what they take stays; where only its short measurement was a lucky one,
        that does not. Short measurements of the others were lucky or not, too: they were seen to lie a tenth
        apart, and a limit is held to the upper quartile.
        """
        key = architecture.key
        own = self.measures.get(key, {}).get(LATENCY, 0.0)
        if not own or now <= NOISE * own:
            return None
        others = {other: self.measures[other].get(LATENCY, 0.0) for other in self.measured if other != key}
        others = {other: latency for other, latency in others.items() if latency > 0}
        anchors = sorted(others, key=lambda other: (abs(math.log(others[other] / own)), other))[:ANCHORS]
        networks = tuple(self.measured[other] for other in anchors)
        ratios: list[float] = self._asked("times_over", architecture, networks)
        if not ratios:
            return None
        told = [over * others[other] for over, other in zip(ratios, anchors, strict=True)]
        middle, upper = np.percentile(told, (50, 75))
        return float(middle), float(upper)

    def _asked(self, kind: str, *arguments: Any) -> Any:
        """One measurement, while nothing else runs."""
        ((_, found),) = self._workers.run([Task(kind, arguments, arguments[0].key)], alone=True)
        return found

    def forget_confirmed(self) -> None:
        """Longer measurements that left nothing to pick: who goes on with the search measures again."""
        self._confirmed.clear()
        self._confirmed_again.clear()
        (self._folder / CONFIRMED).unlink(missing_ok=True)

    def score(
        self,
        wanted: Sequence[tuple[Candidate, int]],
        on_score: Callable[[Score], None] = lambda _: None,
    ) -> None:
        """Score (candidate, images) pairs that have no score yet; images seen before are not seen again."""
        names = [(candidate.architecture.key, images) for candidate, images in wanted]
        self._scored += names
        missing = [pair for pair, name in zip(wanted, names, strict=True) if name not in self.scores]
        tasks = []
        for candidate, images in missing:
            architecture = candidate.architecture
            before = self._most.get(architecture.key, 0)
            known = self.scores[architecture.key, before] if 0 < before < images else None
            tasks.append(Task("score", (architecture, images, known), architecture.key))
        for index, score in self._workers.run(tasks):
            candidate, images = missing[index]
            self.scores[score.key, images] = score
            first = score.key not in self._most
            self._most[score.key] = max(images, self._most.get(score.key, 0))
            files.append_jsonl(self._folder / SCORES, self._record(score, candidate, first))
            on_score(score)

    def settle(self) -> None:
        """Put the lines of the files into the order in which one worker alone would have written them."""
        settle(self._folder / MEASURES, ("key",), [(key,) for key in self.measured])
        settle(self._folder / SCORES, ("key", "images"), self._scored)

    def _record(self, score: Score, candidate: Candidate, first: bool) -> JsonObject:
        record = score.to_json()
        if first:
            record |= {
                "origin": candidate.origin,
                "cost": asdict(self._cost(candidate.architecture)),
                "architecture": candidate.architecture.to_json(),
            }
        return record


def _measures(path: Path) -> dict[str, dict[str, float]]:
    return {record["key"]: record["measures"] for record in files.read_jsonl(path)}


def _first_and_again(path: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The first measures of each network, and the second ones of those that have them."""
    first: dict[str, dict[str, float]] = {}
    again: dict[str, dict[str, float]] = {}
    for record in files.read_jsonl(path):
        (again if record["key"] in first else first)[record["key"]] = record["measures"]
    return first, again
