"""All committed comparisons of searches that ended in one recipe, pooled: what a search gains over each arm.

    python -m benchmarks.search_pooled [--of NAME,..] [--recipe standard] [--results NAME]

Reads files of benchmarks/results that benchmarks/search_vs_handmade.py wrote and trains nothing. One seed at
one limit counts once: where it was compared several times, its differences are averaged. A difference is the
test error of the other arm's pick minus that of the search's, trained by the same recipe with the same seed.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.intervals import interval
from benchmarks.record import RESULTS, record
from benchmarks.search_vs_handmade import GOAL_LIMITS, GOAL_MEAN, HAND_MADE, differences_from, rows_with
from smash_base import files

OF = (
    "search_arms_half_resnet8_seed_1",
    "search_arms_mobilenetv2",
    "search_arms_mobilenetv2_seed_1",
    "search_arms_resnet8",
    "search_default_half_resnet8",
    "search_default_mobilenetv2",
    "search_default_resnet8",
    "search_half_resnet8_seed_1",
    "search_ordered_half_resnet8",
    "search_ordered_resnet8",
    "search_ordered_resnet8_seed_2",
    "search_repaired_resnet8_seed_2",
)
ARMS = ("presets", "random", HAND_MADE)

Cells = dict[tuple[str, int], float]
"""Mean difference by limit and seed."""


def main() -> None:
    """Pool, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--of", default=",".join(OF), help="files of results, with commas between")
    parser.add_argument("--recipe", default="standard", help="comparisons by another one are left out")
    parser.add_argument("--results", default="search_pooled", help="name of the file of results")
    arguments = parser.parse_args()
    names = arguments.of.split(",")
    rows = [row for name in names for row in rows_of(name, arguments.recipe)]
    pooled = {arm: cells for arm in ARMS if (cells := cells_of(arm, rows))}
    results = {arm: summary(cells) for arm, cells in pooled.items()}
    settings = {"of": names, "recipe": arguments.recipe}
    record(
        arguments.results,
        {"settings": settings, **results},
        [goal(arm, cells) for arm, cells in pooled.items()],
    )


def rows_of(name: str, recipe: str) -> list[dict[str, Any]]:
    """Rows of one file of results; none of another recipe, or where its epochs were cut."""
    results = files.read_json(RESULTS / f"{name}.json")["results"]
    settings = results["settings"]
    return list(results["rows"]) if settings["recipe"] == recipe and not settings["epochs"] else []


def cells_of(arm: str, rows: list[dict[str, Any]]) -> Cells:
    """Differences to one arm, of the rows that have it."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in rows_with(arm, rows):
        found[row["network"], row["seed"]] += differences_from(arm, [row])
    return {cell: float(np.mean(values)) for cell, values in sorted(found.items())}


def summary(cells: Cells) -> dict[str, Any]:
    """Means with intervals, over all limits and at each."""
    limits: dict[str, list[float]] = defaultdict(list)
    for (network, _), value in cells.items():
        limits[network].append(value)
    return {
        "cells": [
            {"network": network, "seed": seed, "gain": gain} for (network, seed), gain in cells.items()
        ],
        "limits": {network: estimate(values) for network, values in limits.items()},
        "all": estimate(list(cells.values())),
    }


def estimate(gains: list[float]) -> dict[str, Any]:
    """Mean gain, with its 95 % interval where there is more than one."""
    mean, low, high = interval(gains)
    return {"count": len(gains), "mean": mean, "interval": [low, high] if len(gains) > 1 else None}


def goal(arm: str, cells: Cells) -> dict[str, Any]:
    """Whether the search is ahead as the goal of the comparison asks: at three limits, beyond chance."""
    told = summary(cells)
    ahead = [network for network, own in told["limits"].items() if own["mean"] > 0]
    mean, bounds = told["all"]["mean"], told["all"]["interval"] or [-np.inf, np.inf]  # of a single one
    least = GOAL_MEAN if arm == "presets" else 0.0
    won = len(ahead) >= GOAL_LIMITS and bounds[0] > 0 and mean >= least
    above = sum(value > 0 for value in cells.values())
    return {
        "what": f"test error of {arm} minus that of the search's pick, all seeds and limits",
        "goal": f"above 0 at {GOAL_LIMITS} of 4 limits, interval above 0"
        + (", mean at least a point" if least else ""),
        "value": f"{mean:+.2%} ({bounds[0]:.2%} to {bounds[1]:.2%}), above 0 in {above} of {len(cells)}",
        "met": bool(won) if len(told["limits"]) >= GOAL_LIMITS else None,
        "note": ", ".join(
            f"{network} {own['mean']:+.2%} of {own['count']}" for network, own in told["limits"].items()
        ),
    }


if __name__ == "__main__":
    main()
