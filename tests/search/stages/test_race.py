"""Which known networks enter, seeds of proposals, and the networks of a baseline of equal effort."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from smash_search.data import Dataset
from smash_search.rank.finalists import KNOWN, FinalistsConfig, choose
from smash_search.rank.pareto import Limit
from smash_search.rank.scoring import Score, ScoringConfig
from smash_search.space.architecture import InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import resnet
from smash_search.stages.config import SearchConfig
from smash_search.stages.race import by_latency, count_of_equal_total, seeds_of_round
from smash_search.strategies import Candidate, Scored
from smash_search.train.compute import seed_of
from smash_search.train.hypernet import TrainingConfig
from tests.search.small_data import small_digits


def test_every_limit_of_a_round_has_a_seed_of_its_own_and_the_last_that_of_a_single_limit() -> None:
    seeds = [seed for number in range(3) for seed in seeds_of_round(7, number, 4)]
    assert len(set(seeds)) == len(seeds) == 12
    assert seeds_of_round(7, 2, 1) == [seed_of(7, 0x920, 2)] == seeds_of_round(7, 2, 4)[-1:]


@pytest.mark.parametrize(("limits", "entered"), [((), [1, 3]), ((Limit("9ms", 9.0),), [4])])
def test_known_networks_enter_by_score_in_bins_of_latency_and_by_size_within_limits(
    limits: tuple[Limit, ...], entered: list[int]
) -> None:
    scored = []
    for layers, error in ((1, 0.3), (2, 0.5), (3, 0.4), (4, 0.6)):
        network = resnet((4, 8), layers)
        score = Score(network.key, 100, error, error, error, error, "")
        cost, measures = cost_of(network, InputSpec(1, (8, 8)), 10), {"latency_ms": float(layers)}
        scored.append(Scored(Candidate(network, "known"), score, cost, measures))
    config = FinalistsConfig(count=4, known=2, random=0)
    chosen = choose(scored, config, *by_latency(scored, limits))
    known = [finalist.architecture for finalist in chosen if finalist.reason == KNOWN]
    assert known == [scored[layers - 1].candidate.architecture for layers in entered]
    assert by_latency([replace(entry, measures={}) for entry in scored], limits) == (None, None)


def several(data: Dataset) -> Dataset:
    """The same digits, as if an image could be of several classes."""
    targets = np.eye(10, dtype=np.uint8)[data.validation.labels]
    return replace(data, validation=replace(data.validation, targets=targets))


@pytest.mark.parametrize(
    ("statistics", "are_several", "rounds", "looked_at"),
    [
        ("batch", False, 0, 40 * 10 + 20 * 15 + 10 * 23),
        ("batch", False, 3, 64 * 10 + 32 * 15 + 16 * 23),
        ("training", False, 0, 40 * (32 + 10) + 20 * (32 + 15) + 10 * (32 + 23)),
        ("batch", True, 0, 40 * 10 + 20 * 25 + 10 * 48),
    ],
)
def test_a_baseline_of_equal_total_counts_every_stage_of_the_scores(
    statistics: str, are_several: bool, rounds: int, looked_at: int
) -> None:
    data = small_digits(train=96, validation=48)
    config = SearchConfig(
        candidates=40,
        training=TrainingConfig(steps=3, batch=32, architectures=2),
        scoring=ScoringConfig(statistics=statistics, statistics_images=32, images=(10, 25, 0)),  # type: ignore[arg-type]
        finalists=FinalistsConfig(
            count=4, rounds=rounds, per_round=8, rungs=(1,), random=1, baseline="total"
        ),
    )
    trained = 4 * 96
    total = trained + 3 * 32 * 2 + looked_at / 3
    assert count_of_equal_total(config, several(data) if are_several else data, 4) == round(
        4 * total / trained
    )
