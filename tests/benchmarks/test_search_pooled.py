"""Pooling of comparisons: what counts once, and what is not judged."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.search_pooled import cells_of, goal


def row(network: str, seed: int, search: float, **arms: float) -> dict[str, Any]:
    found = {"search": search, **arms}
    return {
        "network": network,
        "seed": seed,
        "arms": {arm: {"test_error": error} for arm, error in found.items()},
    }


def test_a_seed_that_was_compared_twice_counts_once() -> None:
    rows = [
        row("a", 0, 0.10, random=0.12),
        row("a", 0, 0.10, random=0.10),
        row("a", 1, 0.10, random=0.15),
        row("b", 0, 0.10, presets=0.11),
    ]
    cells = cells_of("random", rows)
    assert list(cells) == [("a", 0), ("a", 1)]
    assert list(cells.values()) == pytest.approx([0.01, 0.05])


def test_two_limits_are_not_judged_and_three_are() -> None:
    rows = [row(name, seed, 0.10, random=0.12 + seed / 1000) for name in "ab" for seed in (0, 1)]
    assert goal("random", cells_of("random", rows))["met"] is None
    rows.append(row("c", 0, 0.10, random=0.12))
    assert goal("random", cells_of("random", rows))["met"] is True
    rows[-1] = row("c", 0, 0.10, random=0.05)
    assert goal("random", cells_of("random", rows))["met"] is False
