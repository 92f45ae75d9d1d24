"""How far the score of one search can be trusted, and what each of its stages added to the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smash_search.rank.finalists import BY_LOT, BY_ROUND, BY_SCORE, KNOWN
from smash_search.rank.statistics import Estimate, kendall, kendall_gain
from smash_search.rank.trained import Trained


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
class Stage:
    """What the networks of one stage of a search added to the race; errors are those of the first rung.

    A training that diverged counts as an error of 1.

    Attributes:
        name: "known networks", "drawn by lot", "chosen by score", "round 1" and so on.
        trained: how many were trained.
        mean, best: their mean and their lowest error.
        best_so_far: lowest error of theirs and of the stages before.
        reached_last: how many went through the last rung.
        best_last: lowest error there, or None.
        best_last_so_far: the same, of theirs and of the stages before.
    """

    name: str
    trained: int
    mean: float
    best: float
    best_so_far: float
    reached_last: int
    best_last: float | None
    best_last_so_far: float | None


LOT, SCORE = "drawn by lot", "chosen by score"
_STAGES = {KNOWN: "known networks", BY_LOT: LOT, BY_SCORE: SCORE}  # by how reasons begin


def stages_of(trained: Sequence[Trained]) -> list[Stage]:
    """One entry per stage: known networks, draws by lot, draws that the score chose, and each round.

    Args:
        trained: every network and rung; each belongs to the stage for whose reason it entered, a known
            network to that of known ones whoever chose it.
    """
    last = max((entry.rung for entry in trained), default=0)
    grouped: dict[str, list[Trained]] = {name: [] for name in _STAGES.values()}
    for entry in trained:
        grouped.setdefault(_stage_of(entry.reason), []).append(entry)
    stages: list[Stage] = []
    first, final = list[float](), list[float]()
    for name, entries in grouped.items():
        own = [entry.error for entry in entries if entry.rung == 0]
        ends = [entry.error for entry in entries if entry.rung == last]
        if not own:
            continue
        first, final = first + own, final + ends
        best, so_far = min(ends, default=None), min(final, default=None)
        mean = float(np.mean(own))
        stages.append(Stage(name, len(own), mean, min(own), min(first), len(ends), best, so_far))
    return stages


def _stage_of(reason: str) -> str:
    if reason.startswith(BY_ROUND):
        return f"round {reason.removeprefix(BY_ROUND).partition(':')[0].strip()}"
    if reason.endswith(KNOWN):
        return _STAGES[KNOWN]
    for beginning, name in _STAGES.items():
        if reason.startswith(beginning):
            return name
    return reason


def contribution_of_score(stages: Sequence[Stage]) -> str | None:
    """What the networks that the score chose added, in words; None where it chose none."""
    by_name = {stage.name: stage for stage in stages}
    chosen, lot = by_name.get(SCORE), by_name.get(LOT)
    if chosen is None:
        return None
    said = (
        f"Trained networks that the HyperNet's score chose: {chosen.trained}, with a mean error of "
        f"{chosen.mean:.2%} after the first rung"
    )
    if lot is not None:
        said += f"; drawn by lot: {lot.trained}, with {lot.mean:.2%}"
    before = [stage.best for stage in stages[: stages.index(chosen)]]
    if not before:
        return f"{said}."
    if chosen.best_so_far < min(before):
        return (
            f"{said}. The score's lowered the best error so far from {min(before):.2%} to {chosen.best:.2%}."
        )
    return f"{said}. None of the score's was better than the best before them, {min(before):.2%}."
