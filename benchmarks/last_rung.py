"""What a race would have picked after one more rung, and how that network does after a real training.

    python -m benchmarks.last_rung --runs DIR,.. --folder DIR [--rungs 2,6,14,30] [--first 3]
        [--part I/N] [--data cifar10:PATH] [--results NAME]

The runs are those of searches inside folders of benchmarks/search_vs_handmade.py, whose rungs are the
first of ``--rungs``. The first networks of each race go through them again, which gives what the race had,
and through the last one, without scouts. Where the order by the validation loss there puts another network
first, it is trained by ``standard`` as the pick was, with the seed of the search, and both are judged on the
test images. What is done is kept in DIR, and the same command goes on; ``--part 1/2`` does half of the runs
and records nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.intervals import interval
from benchmarks.race_length import row
from benchmarks.record import record
from smash_base import files
from smash_export.device_search.search import configure, load_data
from smash_search.data import Dataset
from smash_search.rank.finalists import FinalistsConfig, input_spec_of
from smash_search.rank.trained import Trained, through_last_rung
from smash_search.space.architecture import Architecture
from smash_search.train.network import accuracy, fit, new_network
from smash_search.train.recipes import recipe_for


def main() -> None:
    """Train what is missing, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", required=True, help="folders of searches, with commas between")
    parser.add_argument("--rungs", default="2,6,14,30", help="epochs at the end of each rung")
    parser.add_argument("--first", type=int, default=3, help="networks that go through the last one")
    parser.add_argument("--part", default="1/1", help="I/N: every Nth run, from the Ith")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--results", default="last_rung", help="name of the file of results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(arguments.data)
    rungs = tuple(map(int, arguments.rungs.split(",")))
    part, parts = map(int, arguments.part.split("/"))
    runs = [Path(run) for run in arguments.runs.split(",")][part - 1 :: parts]
    rows = [raced_on(run, data, rungs, arguments.first, arguments.folder) for run in runs]
    if parts == 1:
        settings = {"rungs": rungs, "first": arguments.first, "data": data.name, "recipe": "standard"}
        record(arguments.results, {"settings": settings, "rows": rows}, goals(rows))


def raced_on(run: Path, data: Dataset, rungs: tuple[int, ...], first: int, folder: Path) -> dict[str, Any]:
    """The first networks of a race after a further rung, and the test errors of both picks."""
    identity = files.read_json(run / "config.json")["identity"]
    held = identity["finalists"]
    if tuple(held["rungs"]) != rungs[:-1]:
        raise SystemExit(f"{run} has rungs of {held['rungs']}, and these are {rungs}")
    lines = files.read_jsonl(run / "finalists.jsonl")
    drawn = {line["key"]: line["architecture"] for line in lines if line["rung"] == 0}
    best = through_last_rung([Trained.from_json(line) for line in lines])[:first]
    config = config_of(identity["seed"], held, data, rungs)
    rows = [
        row(
            {"architecture": drawn[entry.key], "origin": entry.reason, "test_error": None},
            data,
            config,
            folder / str(identity["seed"]),
        )
        for entry in best
    ]
    for entry, again in zip(best, rows, strict=True):
        again["loss_in_the_race"] = entry.validation_loss
    chosen = min(rows, key=lambda entry: entry["losses"][-1])
    known = {
        entry["key"][1]: entry["value"]
        for entry in files.read_jsonl(run.parent / "done.jsonl")
        if entry["key"][0] == "pick" and entry["key"][2] == identity["seed"]
    }
    errors = {
        key: known[key] if key in known else trained(drawn[key], data, identity["seed"], folder)
        for key in dict.fromkeys((best[0].key, chosen["key"]))
    }
    return {
        "limit": run.name.rsplit("-", 1)[0],
        "seed": identity["seed"],
        "networks": rows,
        "before": {"key": best[0].key, "test_error": errors[best[0].key]},
        "after": {"key": chosen["key"], "test_error": errors[chosen["key"]]},
    }


def config_of(seed: int, held: dict[str, Any], data: Dataset, rungs: tuple[int, ...]) -> FinalistsConfig:
    """Rungs of a race and one more, with the same images and the same random seed."""
    finalists = {"rungs": rungs, "epoch_images": held["epoch_images"], "baseline": "none"}
    config = configure(data, space="edge", seed=seed, finalists=finalists).finalists
    if config.seed != held["seed"] or config.recipe.batch != held["recipe"]["batch"]:
        raise SystemExit("the race had another seed or batch than one of today has")
    return config


def trained(architecture: Any, data: Dataset, seed: int, folder: Path) -> float:
    """Test error after ``standard``, once."""
    network = Architecture.from_json(architecture)
    path = folder / "standard.jsonl"
    done = {(line["key"], line["seed"]): line["test_error"] for line in files.read_jsonl(path)}
    if (name := (network.key, seed)) not in done:
        begin = time.process_time()
        made = new_network(network, input_spec_of(data), len(data.classes), seed)
        fit(made, data, recipe_for("standard", data, seed), evaluate=False)
        done[name] = 1 - accuracy(made, data.test, data.preprocessing)
        line = {"key": network.key, "seed": seed, "test_error": done[name]}
        files.append_jsonl(path, {**line, "seconds": time.process_time() - begin})
        print(line, flush=True)
    return done[name]


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What one more rung brings, and what it takes."""
    points = [100 * (entry["before"]["test_error"] - entry["after"]["test_error"]) for entry in rows]
    other = [entry["before"]["key"] != entry["after"]["key"] for entry in rows]
    seconds = [sum(network["seconds"][-1] for network in entry["networks"]) for entry in rows]
    mean, low, high = interval(points)
    return [
        {
            "what": "points of test error that the pick gains by one more rung",
            "goal": "interval above 0",
            "value": f"{mean:.2f} ({low:.2f} to {high:.2f})",
            "met": bool(low > 0) if len(points) > 1 else None,
            "note": f"{sum(other)} of {len(rows)} races pick another network; {np.mean(seconds):.0f} s each",
        }
    ]


if __name__ == "__main__":
    main()
