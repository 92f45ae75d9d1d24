"""The paper's experiments as committed results: numbers here, pictures and pages in docs/experiments.

for name in correlation encoding capacity gradient transfer presets; do
    smash-export reproduce $name --data fashion-mnist --out runs/experiments
done
python -m benchmarks.experiments runs/experiments
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, record
from smash_search.experiments import EXPERIMENTS
from smash_search.rank.statistics import Estimate

PAGES = RESULTS.parents[1] / "docs" / "experiments"


def main(folder: Path) -> None:
    """Copy what ``reproduce`` wrote into the repository, record the goals."""
    found: dict[str, dict[str, Any]] = {}
    for name in EXPERIMENTS:
        shutil.copy(folder / f"{name}.json", RESULTS / "experiments")
        for suffix in ("md", "png", "svg"):
            shutil.copy(folder / f"{name}.{suffix}", PAGES)
        found[name] = json.loads((folder / f"{name}.json").read_text())
    correlation, encoding = found["correlation"], found["encoding"]
    signals = {entry["signal"]: entry for entry in correlation["signals"]}
    tau = signals["SMASH score"]["all"]["kendall"]
    half = signals["SMASH score"]["top half"]["kendall"]
    running = signals["running statistics"]["all"]["kendall"]
    ceiling, split = correlation["ceiling"], correlation["split_half"]
    networks = f"{correlation['networks']} networks, {correlation['data']}, {correlation['size']} size"
    costs = {kind["c"]: kind["cost"] for kind in encoding["kinds"]}
    other = costs["another architecture's"]
    record(
        "experiments",
        {"folder": "experiments/", "pages": "../../docs/experiments"},
        [
            {
                "what": "Kendall tau of score and error after training",
                "goal": ">= 0.5, interval above 0.3, >= 60 networks",
                "value": str(Estimate(**tau)),
                "met": tau["value"] >= 0.5 and tau["low"] > 0.3 and correlation["networks"] >= 60,
                "note": f"{networks}; top half {Estimate(**half)}",
            },
            {
                "what": "ceiling: two training seeds of the same networks",
                "goal": ">= 0.8",
                "value": str(Estimate(**ceiling)),
                "met": ceiling["value"] >= 0.8,
                "note": f"{ceiling['count']} networks",
            },
            {
                "what": "split-half reliability of the score",
                "goal": ">= 0.9",
                "value": round(split, 3),
                "met": split >= 0.9,
                "note": "Spearman of the two halves of the images",
            },
            {
                "what": "tau with running BatchNorm statistics, as the original, beside recomputed ones",
                "goal": "reported",
                "value": f"{Estimate(**running)} against {Estimate(**tau)}",
                "met": True,
                "note": "mean score "
                f"{correlation['running_mean']:.1%} against {correlation['score_mean']:.1%}",
            },
            {
                "what": "right c against each corrupted one, paired test",
                "goal": "better, p < 0.01",
                "value": ", ".join(f"{name}: p = {cost['p']:.2g}" for name, cost in costs.items()),
                "met": all(cost["p"] < 0.01 and cost["difference"]["value"] > 0 for cost in costs.values()),
                "note": f"{encoding['architectures']} architectures",
            },
            {
                "what": "cost of another architecture's c",
                "goal": ">= 1 point",
                "value": f"{100 * other['difference']['value']:+.2f} points",
                "met": other["difference"]["value"] >= 0.01,
                "note": "the generated filters have collapsed: docs/experiments",
            },
        ],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
