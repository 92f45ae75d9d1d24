"""A search of seconds, for tests that kill it: python -m tests.search.run_small_search FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from smash_search.model.hypernet import HyperNetConfig
from smash_search.rank.finalists import FinalistsConfig
from smash_search.rank.scoring import ScoringConfig
from smash_search.run import run_search
from smash_search.space.limits import CostLimits
from smash_search.stages.config import SearchConfig
from smash_search.stages.picks import SearchResult
from smash_search.train.hypernet import TrainingConfig
from smash_search.train.recipes import Recipe
from tests.search.small_data import small_digits

RESULTS = ("config.json", "training.json", "scores.jsonl", "ranking.json", "finalists.jsonl", "best.json")


def config(**changes: object) -> SearchConfig:
    """Small networks only; every stage of a search once."""
    values: dict = {
        "candidates": 6,
        "limits": CostLimits(parameters=30_000),
        "hypernet": HyperNetConfig(depths=(2, 2)),
        "training": TrainingConfig(steps=4, batch=32, architectures=2, learning_rate=0.01),
        "scoring": ScoringConfig(statistics_images=32, images=(24, 0), batch=32),
        "finalists": FinalistsConfig(count=2, rungs=(1, 2), random=1, recipe=Recipe(batch=32)),
        **changes,
    }
    return SearchConfig(**values)


def search(folder: Path, **changes: object) -> SearchResult:
    """Run or resume it."""
    return run_search(config(**changes), small_digits(train=64, validation=48), folder, device="cpu")


def contents(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions."""
    return {name: (folder / name).read_bytes() for name in RESULTS}


if __name__ == "__main__":
    search(Path(sys.argv[1]))
