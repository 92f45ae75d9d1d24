"""Test error of known networks by a named recipe, against what was published for them.

    python -m benchmarks.published_accuracy --data cifar10:DIR [--network resnet-8] [--recipe standard]
        [--seeds 3] [--folder DIR]

Each seed is one ``smash-export train`` on one thread into a bundle of its own in ``--folder``; bundles that
are there already are read, so that a repeated command goes on. Test images are looked at by the bundle's own
evaluation, once, after everything was chosen.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from smash_base import files

PUBLISHED = {"resnet-8": 0.1281, "resnet-20": 0.0875}  # MLPerf Tiny v0.1; He et al. 2015
GOALS = {("resnet-8", "standard"): 0.145, ("resnet-8", "long"): 0.120, ("resnet-20", "long"): 0.080}


def trained(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Test error and what else the bundle of a seed says; trains it unless it is there."""
    bundle = arguments.folder / f"{arguments.network}-{arguments.recipe}-{seed}"
    seconds = arguments.folder / f"{bundle.name}.json"
    if not bundle.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["train", arguments.network, "--data", arguments.data, "--recipe", arguments.recipe]
        command += ["--seed", str(seed), "--threads", "1", "--out", str(bundle)]
        subprocess.run([Path(sys.executable).with_name("smash-export"), *command], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        files.write_json(seconds, {"cpu_seconds": round(spent)})
    made = json.loads((bundle / "manifest.json").read_text())["provenance"]
    return {
        "seed": seed,
        "error": 1 - made["accuracy"]["top1"],
        "images": made["accuracy"]["images"],
        "epochs": made["recipe"]["epochs"],
        "parameters": made["cost"]["parameters"],
        "macs": made["cost"]["macs"],
        "cpu_seconds": files.read_json(seconds)["cpu_seconds"] if seconds.exists() else None,
    }


def main() -> None:
    """Train what is missing, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--network", default="resnet-8", choices=list(PUBLISHED))
    parser.add_argument("--recipe", default="standard")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/published-accuracy"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = [trained(arguments, seed) for seed in range(arguments.seeds)]
    mean = float(np.mean([row["error"] for row in rows]))
    known = [row["cpu_seconds"] for row in rows if row["cpu_seconds"] is not None]
    each = ", ".join(f"{row['error']:.2%}" for row in rows)
    goal = GOALS.get((arguments.network, arguments.recipe))
    minutes = f"{max(known) / 60:.0f} minutes of one core" if known else "time not measured in this run"
    goals = [
        {
            "what": f"test error of {arguments.network} by recipe {arguments.recipe}, {len(rows)} seeds",
            "goal": "none" if goal is None else f"<= {goal:.1%}",
            "value": f"{mean:.2%} ({each})",
            "met": None if goal is None else mean <= goal,
            "note": f"{rows[0]['epochs']} epochs, {minutes}; published {PUBLISHED[arguments.network]:.2%}",
        }
    ]
    record(
        f"published_accuracy_{arguments.network}_{arguments.recipe}".replace("-", "_"),
        {"network": arguments.network, "recipe": arguments.recipe, "runs": rows},
        goals,
    )


if __name__ == "__main__":
    main()
