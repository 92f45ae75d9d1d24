"""Networks after rungs of training, and which of them is the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from smash_base.json_values import JsonObject
from smash_base.records import read_record
from smash_search.train.compute import DivergedError


@dataclass(frozen=True)
class Trained:
    """A finalist after a rung: one line of finalists.jsonl.

    Attributes:
        group, key, reason, score: Fields of the finalist.
        rung, epochs: number of the rung from 0, epochs trained so far.
        error: on all validation images; 1 - mean recall where the recipe balances classes, and 1 - mean
            average precision where an image may be of several.
        loss: mean training loss of the last epoch.
        diverged: Reason why training stopped early, or None.
        validation_loss: cross-entropy on validation images (:class:`smash_search.train.judging.Judge`), or
            None.
        pattern: how its ops are wired (:func:`smash_search.rank.patterns.pattern_of`); empty in lines of
            earlier versions.
    """

    group: str
    key: str
    reason: str
    score: float | None
    macs: int
    rung: int
    epochs: int
    error: float
    loss: float
    diverged: str | None = None
    validation_loss: float | None = None
    pattern: str = ""

    def to_json(self) -> JsonObject:
        """A line of finalists.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: object) -> Trained:
        """Read a line back; other fields of the record are ignored."""
        return read_record(cls, record, "a line of finalists.jsonl")


def standing(entries: Sequence[Trained]) -> Callable[[Trained], float]:
    """What orders networks that were trained equally, the lowest first: loss of validation images, or error.

    On CIFAR-10 the loss of one training told more of the error of another of the same network than its error
    did; see docs/experiments. Error orders where one of them has no loss.
    """
    if any(entry.validation_loss is None and entry.diverged is None for entry in entries):
        return lambda entry: entry.error
    return lambda entry: math.inf if entry.validation_loss is None else entry.validation_loss


def expected(
    results: Sequence[Trained], handicap: Callable[[Trained], float] | None = None
) -> Callable[[Trained], float]:
    """What orders networks of a race, the lowest first: where each would stand one rung behind the last.

    That is its :func:`standing`, less the mean of what networks of its pattern gained from its rung on; as
    one more rung they are thought to gain what the last one gave. Where none of its pattern went so far, the
    mean is that of all. Patterns learn at different times: on CIFAR-10, of networks at one latency, one of
    inverted bottlenecks was 0.065 behind the best loss after the first rung, level with it after the last,
    and 1.7 points of error ahead after three times as many images.

    Args:
        results: every network and rung so far.
        handicap: factor of the error that each will have, for networks that are not trained equally in the
            end. A network is set back by that share of its standing by which its factor is above the lowest
            of its rung; what is expected may be negative, where little is left to gain.
    """
    judged = standing(results)
    by_name = {(entry.group, entry.key, entry.rung): entry for entry in results if entry.diverged is None}
    gains: dict[tuple[int, str | None], list[float]] = {}
    for (group, key, rung), entry in by_name.items():
        if (later := by_name.get((group, key, rung + 1))) is not None:
            for pattern in (entry.pattern, None):
                gains.setdefault((rung, pattern), []).append(judged(entry) - judged(later))
    last = max((rung for rung, _ in gains), default=-1)

    def gained(rung: int, pattern: str) -> float:
        found = gains.get((rung, pattern)) or gains.get((rung, None))
        return float(np.mean(found)) if found else 0.0

    def left(entry: Trained) -> float:
        coming = sum(gained(rung, entry.pattern) for rung in range(entry.rung, last + 1))
        return coming + gained(last, entry.pattern)

    if handicap is None:
        return lambda entry: judged(entry) - left(entry)
    factors, least = {entry.key: handicap(entry) for entry in results}, dict[int, float]()
    for entry in results:
        least[entry.rung] = min(factors[entry.key], least.get(entry.rung, math.inf))
    return lambda entry: judged(entry) * factors[entry.key] / least[entry.rung] - left(entry)


def through_last_rung(
    results: Sequence[Trained], handicap: Callable[[Trained], float] | None = None
) -> list[Trained]:
    """Networks of the last rung, best first: by :func:`expected`, then by MACs.

    Args:
        results: every network and rung.
        handicap: as for :func:`expected`.
    """
    last = max(entry.rung for entry in results)
    judged = expected(results, handicap)
    entries = [entry for entry in results if entry.rung == last]
    return sorted(entries, key=lambda entry: (judged(entry), entry.macs, entry.key))


def sound(results: Sequence[Trained]) -> list[Trained]:
    """Those of networks no training of which diverged."""
    diverged = {entry.key for entry in results if entry.diverged}
    return [entry for entry in results if entry.key not in diverged]


def pick(results: Sequence[Trained], handicap: Callable[[Trained], float] | None = None) -> Trained:
    """The best of the last rung by :func:`expected`, then the one of fewest MACs.

    Of those that came as far as any whose training did not diverge.

    Args:
        results, handicap: as for :func:`expected`.

    Raises:
        DivergedError: no network could be trained.
    """
    able = sound(results)
    if not able:
        last = [entry.diverged for entry in results if entry.diverged][-1].removesuffix(".")
        raise DivergedError(
            f"no finalist could be trained; the last of them: {last}",
            hint="Lower the learning rate of the finalists: --set learning_rate=NUMBER in another folder.",
        )
    return through_last_rung(able, handicap)[0]
