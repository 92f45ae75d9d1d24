"""Test error of known networks by a named recipe, against what was published for them.

    python -m benchmarks.published_accuracy --data cifar10:DIR [--network mlperf-resnet-8]
        [--recipe standard] [--epochs N] [--seeds 3] [--first 0] [--folder DIR]
        [--options "..." --called NAME]
    python -m benchmarks.published_accuracy --arch runs/NAME/best.json ...     the pick of a search

``mlperf-resnet-8`` is MLPerf Tiny's network (78 thousand parameters, norms behind convolutions). The preset
``resnet-8`` has norms before them, a third more parameters and 14.9 instead of 12.5 million MACs.

Each seed is one ``smash-export train`` on one thread into a bundle of its own in ``--folder``; bundles that
are there already are read, so that a repeated command goes on. What it prints goes into a file beside the
bundle, from which the curve of validation accuracy is read. ``--first 2`` takes seeds 0 and 1 from the
committed results and trains from seed 2 on. ``--options`` are further ones of ``train``, such as values of
the recipe; ``--called`` names their bundles and results. Test images are looked at by the bundle's own
evaluation, once, after everything was chosen.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, record
from smash_base import files

NETWORKS = {"mlperf-resnet-8": "benchmarks.networks:ResNet8"}  # others are presets
PUBLISHED = {"mlperf-resnet-8": 0.1281, "resnet-20": 0.0875}  # MLPerf Tiny v0.1; He et al. 2015
GOALS = {
    ("mlperf-resnet-8", "standard"): 0.145,
    ("mlperf-resnet-8", "long"): 0.120,
    ("resnet-20", "long"): 0.080,
    ("pick", "long"): 0.100,  # of a search within the latency of MLPerf Tiny's ResNet-8
}


def trained(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Test error and what else the bundle of a seed says; trains it unless it is there."""
    bundle = arguments.folder / f"{name_of(arguments)}-{arguments.recipe}{arguments.called}-{seed}"
    seconds = arguments.folder / f"{bundle.name}.json"
    if not bundle.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        network = str(arguments.arch or NETWORKS.get(arguments.network, arguments.network))
        command = ["train", network, "--data", arguments.data, "--recipe", arguments.recipe]
        command += ["--seed", str(seed), "--threads", "1", "--out", str(bundle)]
        command += ["--epochs", str(arguments.epochs)] if arguments.epochs else []
        command += shlex.split(arguments.options)
        with (arguments.folder / f"{bundle.name}.log").open("a") as log:
            program = Path(sys.executable).with_name("smash-export")
            subprocess.run([program, *command], stderr=log, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        files.write_json(seconds, {"cpu_seconds": round(spent)})
    made = json.loads((bundle / "manifest.json").read_text())["provenance"]
    return {
        "seed": seed,
        "error": 1 - made["accuracy"]["top1"],
        "images": made["accuracy"]["images"],
        "epochs": made["recipe"]["epochs"],
        "recipe": made["recipe"],
        **made.get("cost", {}),  # of an architecture
        "cpu_seconds": files.read_json(seconds)["cpu_seconds"] if seconds.exists() else None,
        "validation_accuracy": curve(arguments.folder / f"{bundle.name}.log"),
        **told_and_taken(arguments.folder / f"{bundle.name}.log"),
    }


def earlier(results: str, first: int) -> list[dict[str, Any]]:
    """Committed rows of the seeds before ``first``."""
    if first == 0:
        return []
    committed = files.read_json(RESULTS / f"{results}.json")["results"]["runs"]
    return [row for row in committed if row["seed"] < first]


def curve(log: Path) -> list[tuple[float, float]]:
    """Epochs and validation accuracy, of those epochs whose end a line of progress shows."""
    if not log.exists():
        return []
    shown = re.findall(r": ([\d.]+)/\d+ .* accuracy=([\d.]+)", log.read_text())
    return [(float(epochs), float(accuracy)) for epochs, accuracy in shown]


def told_and_taken(log: Path) -> dict[str, str]:
    """How long the training was said to take before it began, and how long it took, in words of the log."""
    text = log.read_text() if log.exists() else ""
    told = re.findall(r"training takes about (.+?) here", text)
    taken = re.findall(r"/\d+ ([\d:]+) elapsed", text)
    return {"training_announced": told[-1], "training_elapsed": taken[-1]} if told and taken else {}


def name_of(arguments: argparse.Namespace) -> str:
    """Name of what is trained."""
    return "pick" if arguments.arch else str(arguments.network)


def main() -> None:
    """Train what is missing, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--network", default="mlperf-resnet-8", choices=[*NETWORKS, "resnet-8", "resnet-20"])
    parser.add_argument("--arch", type=Path, help="architecture file in place of a known network")
    parser.add_argument("--recipe", default="standard")
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="earlier seeds are those of the results")
    parser.add_argument("--folder", type=Path, default=Path("runs/published-accuracy"))
    parser.add_argument("--options", default="", help="further ones of train, in one string")
    parser.add_argument("--called", default="", help="ending of the names of bundles and results")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    name = name_of(arguments)
    results = f"published_accuracy_{name}_{arguments.recipe}{arguments.called}".replace("-", "_")
    rows = earlier(results, arguments.first)
    rows += [trained(arguments, seed) for seed in range(arguments.first, arguments.seeds)]
    mean = float(np.mean([row["error"] for row in rows]))
    known = [row["cpu_seconds"] for row in rows if row["cpu_seconds"] is not None]
    each = ", ".join(f"{row['error']:.2%}" for row in rows)
    goal = GOALS.get((name, arguments.recipe))
    minutes = f"{max(known) / 60:.0f} minutes of one core" if known else "time not measured in this run"
    options = f" with {arguments.options}" if arguments.options else ""
    goals = [
        {
            "what": f"test error of {name} by recipe {arguments.recipe}, {len(rows)} seeds",
            "goal": "none" if goal is None else f"<= {goal:.1%}",
            "value": f"{mean:.2%} ({each})",
            "met": None if goal is None else mean <= goal,
            "note": f"{rows[0]['epochs']} epochs{options}, {minutes}"
            + (f"; published {PUBLISHED[name]:.2%}" if name in PUBLISHED else ""),
        }
    ]
    record(
        results,
        {"network": name, "recipe": arguments.recipe, "options": arguments.options, "runs": rows},
        goals,
    )


if __name__ == "__main__":
    main()
