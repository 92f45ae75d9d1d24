"""The paper's experiments as committed results: numbers here, pictures and pages in docs/experiments.

for name in correlation encoding capacity gradient transfer presets; do
    smash-export reproduce $name --data fashion-mnist --out runs/experiments
done
python -m benchmarks.experiments runs/experiments

for name in correlation transfer; do
    smash-export reproduce $name --size edge --data cifar100 --out runs/cifar100 \\
        --transfer-to cifar10 --transfer-to fashion-mnist
done
python -m benchmarks.experiments runs/cifar100 --name cifar100

for name in correlation encoding capacity gradient presets; do
    smash-export reproduce $name --size edge --data cifar10 --out runs/cifar10
done
python -m benchmarks.experiments runs/cifar10 --name cifar10

With a name, everything goes into folders of that name; experiments that are not in the folder are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, record
from smash_search.experiments import EXPERIMENTS
from smash_search.rank.statistics import Estimate

PAGES = RESULTS.parents[1] / "docs" / "experiments"
ZEROED = "filters zeroed"
WANTED = {"cpu": 60, "edge": 40}  # networks in a correlation, by the size of the experiment


def main() -> None:
    """Copy what ``reproduce`` wrote into the repository, record the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="", help="of the folders of results and pages")
    arguments = parser.parse_args()
    numbers, pages = RESULTS / "experiments" / arguments.name, PAGES / arguments.name
    found = [name for name in EXPERIMENTS if (arguments.folder / f"{name}.json").exists()]
    if not found:
        parser.error(f"{arguments.folder} holds no result of smash-export reproduce")
    goals: list[dict[str, Any]] = []
    for name in found:
        for place, suffixes in ((numbers, ["json"]), (pages, ["md", "png", "svg"])):
            place.mkdir(exist_ok=True)
            for suffix in suffixes:
                shutil.copy(arguments.folder / f"{name}.{suffix}", place)
        if name in GOALS:
            goals += GOALS[name](json.loads((numbers / f"{name}.json").read_text()))
    title = f"experiments_{arguments.name}".rstrip("_")
    folder = f"experiments/{arguments.name}"
    record(title, {"folder": folder, "pages": f"../../docs/{folder}"}, goals)


def _correlation(found: dict[str, Any]) -> list[dict[str, Any]]:
    signals = {entry["signal"]: entry for entry in found["signals"]}
    tau = signals["SMASH score"]["all"]["kendall"]
    half = signals["SMASH score"]["top half"]["kendall"]
    running = signals["running statistics"]["all"]["kendall"]
    ceiling, split, wanted = found["ceiling"], found["split_half"], WANTED[found["size"]]
    networks = f"{found['networks']} networks, {found['data']}, {found['size']} size"
    goals = [
        {
            "what": "Kendall tau of score and error after training",
            "goal": f">= 0.5, interval above 0.3, >= {wanted} networks",
            "value": str(Estimate(**tau)),
            "met": tau["value"] >= 0.5 and tau["low"] > 0.3 and found["networks"] >= wanted,
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
            "met": math.isfinite(running["value"]) and math.isfinite(tau["value"]),
            "note": f"mean score {found['running_mean']:.1%} against {found['score_mean']:.1%}",
        },
    ]
    if zeroed := signals.get(ZEROED):
        without = zeroed["all"]["kendall"]
        goals.append(
            {
                "what": "the same tau with all generated filters zero",
                "goal": "at most half",
                "value": str(Estimate(**without)),
                "met": without["value"] <= tau["value"] / 2,
                "note": f"op contribution {100 * found['op_contribution']:+.1f} points",
            }
        )
    return goals


def _encoding(found: dict[str, Any]) -> list[dict[str, Any]]:
    costs = {kind["c"]: kind["cost"] for kind in found["kinds"]}
    other = costs["another architecture's"]
    without = next(kind["mean"] for kind in found["kinds"] if kind["c"] == "none")
    return [
        {
            "what": "right c against each corrupted one, paired test",
            "goal": "better, p < 0.01",
            "value": ", ".join(f"{name}: p = {cost['p']:.2g}" for name, cost in costs.items()),
            "met": all(cost["p"] < 0.01 and cost["difference"]["value"] > 0 for cost in costs.values()),
            "note": f"{found['architectures']} architectures",
        },
        {
            "what": "cost of another architecture's c",
            "goal": ">= 1 point",
            "value": f"{100 * other['difference']['value']:+.2f} points",
            "met": other["difference"]["value"] >= 0.01,
            "note": f"mean error with the right c {found['right_mean']:.1%}, with none {without:.1%}",
        },
    ]


GOALS = {"correlation": _correlation, "encoding": _encoding}


if __name__ == "__main__":
    main()
