"""How far the score of one search can be trusted, and what each origin of networks added to its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smash_search.rank.finalists import Trained
from smash_search.rank.statistics import Estimate, kendall, kendall_gain


@dataclass(frozen=True)
class Trust:
    """Agreement of the score with short training, over the networks that were trained in a search.

    Attributes:
        networks: how many.
        tau, low, high: Kendall's tau with the error after the first rung, and its 95 % interval.
        tau_zeroed: the same where every generated filter is zero.
        op_contribution: mean error with zeroed filters minus that with the right ones.
        claim: what may be said of the ranking by score, in words.
        gain, gain_low, gain_high: ``tau - tau_zeroed`` and its 95 % interval, the same networks in both; None
            where one of them is undefined, and in runs of early versions.
    """

    networks: int
    tau: float | None
    low: float | None
    high: float | None
    tau_zeroed: float | None
    op_contribution: float
    claim: str
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None

    def words(self) -> str:
        """Both taus, and what may be said."""
        tau = Estimate(self.tau, self.low, self.high, self.networks)
        zeroed = Estimate(self.tau_zeroed, None, None, self.networks)
        return (
            f"{tau} over {self.networks} networks; with every generated filter zero: {zeroed}. {self.claim}"
        )


def trust(right: Sequence[float], zeroed: Sequence[float], errors: Sequence[float]) -> Trust:
    """Compare scores with errors after training.

    Args:
        right: scores, one per network.
        zeroed: scores of the same networks with all generated filters set to zero.
        errors: after the same short training of each.
    """
    with_filters, without = kendall(right, errors), kendall(zeroed, errors)
    gain = kendall_gain(right, zeroed, errors)
    contribution = float(np.mean(zeroed) - np.mean(right))
    return Trust(
        len(errors),
        with_filters.value,
        with_filters.low,
        with_filters.high,
        without.value,
        contribution,
        claim(with_filters, without, gain),
        gain.value,
        gain.low,
        gain.high,
    )


def claim(score: Estimate, zeroed: Estimate, gain: Estimate) -> str:
    """What may be said of a score.

    Args:
        score: its tau with the error after training.
        zeroed: the same where every generated filter is zero.
        gain: the first minus the second.
    """
    if score.value is None or score.low is None or score.low <= 0:
        return "No ranking is claimed: among the trained networks the score agrees with training by chance."
    if zeroed.value is not None and zeroed.value >= score.value:
        return (
            "No ranking is claimed: the score agrees with training as well when every generated filter is "
            "zero, so it sees widths and depths, which need no HyperNet."
        )
    if gain.value is not None and (gain.low is None or gain.low <= 0):
        return (
            "No ranking is claimed: the score orders the trained networks better than chance, but not surely "
            f"better than it does when every generated filter is zero: its tau is higher by {gain}."
        )
    return "The score orders the trained networks better than chance, and worse without its filters."


@dataclass(frozen=True)
class Origin:
    """What the networks of one origin added.

    Attributes:
        origin: "known", "random", "smallest", "mutation", "crossover", "random search".
        trained: how many were trained.
        best_first: lowest error after the first rung.
        reached_last: how many went through the last rung.
        best_last: lowest error there, or None.
    """

    origin: str
    trained: int
    best_first: float
    reached_last: int
    best_last: float | None


def origins_of(trained: Sequence[Trained], origins: Mapping[str, str]) -> list[Origin]:
    """One entry per origin, in the order in which they came into the race.

    Args:
        trained: every network and rung.
        origins: by key.
    """
    last = max((entry.rung for entry in trained), default=0)
    grouped: dict[str, list[Trained]] = {}
    for entry in trained:
        grouped.setdefault(origins.get(entry.key, entry.group), []).append(entry)
    found = []
    for origin, entries in grouped.items():
        first = [entry.error for entry in entries if entry.rung == 0]
        final = [entry.error for entry in entries if entry.rung == last]
        found.append(Origin(origin, len(first), min(first), len(final), min(final, default=None)))
    return found
