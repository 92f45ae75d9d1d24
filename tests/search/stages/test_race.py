"""Seeds of proposals, and how many random networks a baseline of equal effort has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from smash_search.data import Dataset
from smash_search.rank.finalists import FinalistsConfig
from smash_search.rank.scoring import ScoringConfig
from smash_search.stages.config import SearchConfig
from smash_search.stages.race import count_of_equal_total, seeds_of_round
from smash_search.train.compute import seed_of
from smash_search.train.hypernet import TrainingConfig
from tests.search.small_data import small_digits


def test_every_limit_of_a_round_has_a_seed_of_its_own_and_the_last_that_of_a_single_limit() -> None:
    seeds = [seed for number in range(3) for seed in seeds_of_round(7, number, 4)]
    assert len(set(seeds)) == len(seeds) == 12
    assert seeds_of_round(7, 2, 1) == [seed_of(7, 0x920, 2)] == seeds_of_round(7, 2, 4)[-1:]


def several(data: Dataset) -> Dataset:
    """The same digits, as if an image could be of several classes."""
    targets = np.eye(10, dtype=np.uint8)[data.validation.labels]
    return replace(data, validation=replace(data.validation, targets=targets))


@pytest.mark.parametrize(
    ("statistics", "are_several", "looked_at"),
    [
        ("batch", False, 40 * 10 + 20 * 15 + 10 * 23),
        ("training", False, 40 * (32 + 10) + 20 * (32 + 15) + 10 * (32 + 23)),
        ("batch", True, 40 * 10 + 20 * 25 + 10 * 48),
    ],
)
def test_a_baseline_of_equal_total_counts_every_stage_of_the_scores(
    statistics: str, are_several: bool, looked_at: int
) -> None:
    data = small_digits(train=96, validation=48)
    config = SearchConfig(
        candidates=40,
        training=TrainingConfig(steps=3, batch=32, architectures=2),
        scoring=ScoringConfig(statistics=statistics, statistics_images=32, images=(10, 25, 0)),  # type: ignore[arg-type]
        finalists=FinalistsConfig(count=4, rungs=(1,), random=1, baseline="total"),
    )
    trained = 4 * 96
    total = trained + 3 * 32 * 2 + looked_at / 3
    assert count_of_equal_total(config, several(data) if are_several else data, 4) == round(
        4 * total / trained
    )
