"""How well the model that proposes networks orders those of finished searches, and what further features of
a network would add.

    python -m benchmarks.error_model RUN..

RUN: folders of searches within a limit on latency. Each network that was trained in the first rung is
predicted from the others of its search; Kendall's tau of that prediction and of what orders the race
(:func:`smash_search.rank.trained.expected`).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from smash_base import files
from smash_search.rank.proposals import ErrorModel
from smash_search.rank.trained import Trained, expected
from smash_search.space.architecture import Architecture
from smash_search.space.best import read_best
from smash_search.space.cost import cost_of
from smash_search.strategies.features import features

LEAST = 16  # networks of a search that say something
FURTHER = {
    "nothing further": (),
    "latency": ("latency",),
    "MACs per millisecond": ("macs per ms",),
    "score": ("score",),
    "MACs per millisecond and score": ("macs per ms", "score"),
}
ALONE = {"MACs": "macs", "MACs per millisecond": "macs per ms", "score": "score"}


@dataclass(frozen=True)
class Search:
    """Networks of one search after the first rung.

    Attributes:
        rows: Features of each network by name, those that are measured among them.
        judged: What orders them in the race, [N].
    """

    rows: list[dict[str, float]]
    judged: np.ndarray


def main() -> None:
    """Read, predict, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    searches = [search for run in parser.parse_args().runs if len((search := read(run)).judged) >= LEAST]
    if not searches:
        parser.error(f"no search trained {LEAST} networks")
    taus = [taus_of(search) for search in searches]
    table = {name: summary([row[name] for row in taus]) for name in taus[0]}
    plain = [row["model: nothing further"] for row in taus]
    gains = {
        name: summary([row[f"model: {name}"] - own for row, own in zip(taus, plain, strict=True)])
        for name in FURTHER
        if FURTHER[name]
    }
    best = max(gains, key=lambda name: gains[name]["mean"])
    gain = gains[best]
    goals = [
        {
            "what": f"tau of the model that proposes networks, {len(taus)} searches",
            "goal": "above MACs",
            "value": f"{table['model: nothing further']['mean']:.2f}",
            "met": table["model: nothing further"]["mean"] > table["alone: MACs"]["mean"],
            "note": f"MACs {table['alone: MACs']['mean']:.2f}, score {table['alone: score']['mean']:.2f}",
        },
        {
            "what": "what a further feature adds to it",
            "goal": "reported: a feature is added where it gains more than two standard errors",
            "value": f"{gain['mean']:+.3f} (standard error {gain['se']:.3f})",
            "met": None,
            "note": f"the best of {len(gains)}: {best}",
        },
    ]
    networks = [len(search.judged) for search in searches]
    record("error_model", {"networks": networks, "tau": table, "gain": gains, "searches": taus}, goals)


def read(run: Path) -> Search:
    """What a search trained in its first rung and did not diverge."""
    best = read_best(run / "best.json")
    measured = {
        line["key"]: line["measures"]["latency_ms"]
        for line in files.read_jsonl(run / "measures.jsonl")
        if "latency_ms" in line["measures"]
    }
    lines = files.read_jsonl(run / "finalists.jsonl")
    judge = expected([Trained.from_json(line) for line in lines])
    rows, judged = [], []
    for line in lines:
        entry = Trained.from_json(line)
        if entry.rung or entry.diverged is not None or entry.score is None or entry.key not in measured:
            continue
        architecture = Architecture.from_json(line["architecture"])
        row = features(architecture, cost_of(architecture, best.input, len(best.classes)))
        latency = math.log2(measured[entry.key])
        rows.append({**row, "latency": latency, "macs per ms": row["macs"] - latency, "score": entry.score})
        judged.append(judge(entry))
    return Search(rows, np.asarray(judged))


def taus_of(search: Search) -> dict[str, float]:
    """Kendall's tau of each model and of each number alone."""
    from scipy.stats import kendalltau

    measured = {name for names in FURTHER.values() for name in names}
    found: dict[str, Any] = {}
    for name, further in FURTHER.items():
        rows = [
            {key: value for key, value in row.items() if key not in measured or key in further}
            for row in search.rows
        ]
        found[f"model: {name}"] = kendalltau(predicted(rows, search.judged), search.judged).statistic
    for name, key in ALONE.items():
        sign = 1 if key == "score" else -1
        found[f"alone: {name}"] = kendalltau(
            [sign * row[key] for row in search.rows], search.judged
        ).statistic
    return {name: round(float(value), 4) for name, value in found.items()}


def predicted(rows: list[dict[str, float]], judged: np.ndarray) -> np.ndarray:
    """What the model says of each network when it knows the others, [N]."""
    places = range(len(rows))
    found = []
    for place in places:
        others = [other for other in places if other != place]
        model = ErrorModel([rows[other] for other in others], judged[others].tolist())
        found.append(model.predict([rows[place]])[0][0])
    return np.asarray(found)


def summary(values: list[float]) -> dict[str, float]:
    """Mean over searches and its standard error."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": round(float(np.mean(values)), 4),
        "se": round(deviation / math.sqrt(len(values)), 4),
    }


if __name__ == "__main__":
    main()
