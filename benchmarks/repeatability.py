"""What of a short training tells how another training of the same network goes: its error, or its loss.

    python -m benchmarks.repeatability --runs DIR,..

Each DIR is a folder of ``benchmarks.search_vs_handmade`` with the arm "presets" of several seeds: the same
known networks, trained from other weights and with other batches. For every two seeds, in both directions,
what one training has after its first rung is compared with the error of the other seed, after the first rung
and after the second: Kendall's tau, and how far the network that comes first by it is from the best, in
points. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from smash_base import files
from smash_search.rank.statistics import kendall
from smash_search.rank.trained import Trained

SIGNALS = {"error": lambda entry: entry.error, "loss": lambda entry: entry.validation_loss}
LEAST = 6  # networks that both seeds have trained so far
STEPS = {"first rung": (0, 0), "first rung, better half": (0, 0), "second rung": (0, 1)}


def main() -> None:
    """Compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", required=True, help="folders of comparisons, with commas between")
    arguments = parser.parse_args()
    rows = [row for run in arguments.runs.split(",") for row in compared(arms_of(Path(run)))]
    goals = []
    for step in STEPS:
        mine = [row for row in rows if row["against"] == step]
        taus = {name: np.array([row["tau"][name] for row in mine]) for name in SIGNALS}
        behind = {name: np.mean([row["points_behind"][name] for row in mine]) for name in SIGNALS}
        goals.append(
            {
                "what": f"tau of the validation loss after the first rung with another seed's error: {step}",
                "goal": "above that of the error",
                "value": f"{taus['loss'].mean():.2f}, of the error {taus['error'].mean():.2f}",
                "met": bool(taus["loss"].mean() > taus["error"].mean()),
                "note": f"higher in {(taus['loss'] > taus['error']).sum()} of {len(mine)} pairs of seeds; "
                f"the first by it is {behind['loss']:.1f} points behind the best, by error "
                f"{behind['error']:.1f}",
            }
        )
    record("repeatability", {"pairs": rows}, goals)


def arms_of(run: Path) -> dict[str, dict[str, list[Trained]]]:
    """Trained known networks of a folder, by latency limit and seed."""
    found: dict[str, dict[str, list[Trained]]] = defaultdict(dict)
    for path in sorted(run.glob("presets-*-*/finalists.jsonl")):
        _, limit, seed = path.parent.name.split("-")
        found[limit][seed] = [Trained.from_json(entry) for entry in files.read_jsonl(path)]
    return found


def compared(arms: dict[str, dict[str, list[Trained]]]) -> list[dict[str, Any]]:
    """One row for every ordered pair of seeds of a limit, and for what it is compared with."""
    rows = []
    for limit, seeds in arms.items():
        for (step, rungs), (one, other) in itertools.product(STEPS.items(), itertools.permutations(seeds, 2)):
            first = {entry.key: entry for entry in seeds[one] if entry.rung == rungs[0]}
            errors = {entry.key: entry.error for entry in seeds[other] if entry.rung == rungs[1]}
            keys = sorted(first.keys() & errors.keys())
            if "better half" in step:
                keys = sorted(keys, key=lambda key: (errors[key], key))[: (len(keys) + 1) // 2]
            if len(keys) >= LEAST:
                rows.append(
                    {"limit": limit, "seeds": [one, other], "against": step, "networks": len(keys)}
                    | _agreement([first[key] for key in keys], [errors[key] for key in keys])
                )
    return rows


def _agreement(entries: list[Trained], errors: list[float]) -> dict[str, Any]:
    """Tau with the errors of other trainings, and points by which the first one is behind the best."""
    values = {name: [signal(entry) for entry in entries] for name, signal in SIGNALS.items()}
    return {
        "tau": {name: kendall(each, errors, resamples=1).value for name, each in values.items()},
        "points_behind": {
            name: 100 * (errors[int(np.argmin(each))] - min(errors)) for name, each in values.items()
        },
    }


if __name__ == "__main__":
    main()
