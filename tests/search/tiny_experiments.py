"""Sizes of experiments that take seconds on scikit-learn's digits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from smash_search.experiments.config import SIZES, ExperimentConfig
from smash_search.model.hypernet import HyperNetConfig
from smash_search.rank.scoring import ScoringConfig
from smash_search.train.hypernet import TrainingConfig
from smash_search.train.network import Recipe

SMALL_NET = HyperNetConfig(depths=(1,), growth=2)

TINY: ExperimentConfig = replace(
    SIZES["cpu"],
    size="tiny",
    space="tiny",
    changes={"max_ops": 3, "budget": (0.1, 0.3), "per_axis": False, "kernels": (3,)},
    train_images=96,
    validation_images=60,
    test_images=50,
    hypernet=SMALL_NET,
    training=TrainingConfig(steps=6, batch=16, architectures=1, learning_rate=5e-3),
    scoring=ScoringConfig(statistics_images=32, images=(60,), batch=60),
    recipe=Recipe(epochs=2, batch=48),
    networks=5,
    second_seeds=3,
    statistics_networks=2,
    hypernets={"smaller": HyperNetConfig(depths=(0,), growth=1)},
    corrupted=3,
    starts=2,
    steps=1,
    mutants=4,
    batch=2,
    picks=1,
    transfer_to=("digits",),
)


@contextlib.contextmanager
def silent(label: str, total: float | None) -> Iterator[Any]:
    """Progress that nobody sees."""
    yield lambda n=1.0, **fields: None
