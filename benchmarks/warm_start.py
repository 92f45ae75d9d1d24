"""Finalists that begin with generated weights against the same ones from scratch, after equal training.

    python -m benchmarks.warm_start --run FOLDER --data cifar10:DIR [--networks 8] [--folder DIR]

FOLDER is a finished search (``smash-export search --run FOLDER``): its HyperNet generates the weights, and
the first networks of its race, which were drawn or known before anything was trained, are trained through the
first rung twice. Errors are on validation images. Results are kept in ``--folder``; a repeated command goes
on.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.record import record
from smash_base import files
from smash_search.data import load_dataset
from smash_search.executors.work import Equipment, Worker
from smash_search.rank.finalists import Finalist, FinalistsConfig
from smash_search.rank.scoring import ScoringConfig
from smash_search.rank.statistics import paired
from smash_search.run import load_supernet
from smash_search.space.architecture import Architecture
from smash_search.train.recipes import AUTO, recipe_for

Start = Literal["scratch", "generated"]


def main() -> None:
    """Train each network both ways, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--epoch-images", type=int, default=12_800)
    parser.add_argument("--folder", type=Path, default=Path("runs/warm-start"))
    arguments = parser.parse_args()
    data = load_dataset(arguments.data)
    supernet = load_supernet(arguments.run)
    entered = [
        Architecture.from_json(entry["architecture"])
        for entry in files.read_jsonl(arguments.run / "finalists.jsonl")
        if entry["rung"] == 0
    ]
    config = FinalistsConfig(
        count=arguments.networks,
        random=0,
        rungs=(arguments.epochs,),
        epoch_images=arguments.epoch_images,
        recipe=recipe_for(AUTO, data, 0),
    )
    path = arguments.folder / "trained.jsonl"
    errors: dict[Start, list[float]] = {start: [] for start in get_args(Start)}
    with files.exclusive(arguments.folder, purpose="benchmark"):
        done = {(entry["key"], entry["start"]): entry["error"] for entry in files.read_jsonl(path)}
        for architecture in entered[: arguments.networks]:
            for start, found in errors.items():
                key = (architecture.key, start)
                if key not in done:
                    folder = arguments.folder / start
                    folder.mkdir(exist_ok=True)
                    own = replace(config, start=start)
                    worker = Worker(Equipment(supernet, data, ScoringConfig(), own, None, folder, "cpu"))
                    done[key] = worker.train(Finalist(architecture, "search", "", None, 0), 0).error
                    entry = {"key": architecture.key, "start": start, "error": done[key]}
                    files.append_jsonl(path, entry)
                    print(entry, flush=True)
                found.append(done[key])
    gain = paired(errors["generated"], errors["scratch"])
    goal = {
        "what": "points gained by generated weights over scratch, equal training",
        "goal": "the better start is the default",
        "value": f"{100 * float(np.mean(errors['scratch']) - np.mean(errors['generated'])):+.1f} points, "
        f"p {gain.p:.3f}",
        "met": bool(np.mean(errors["generated"]) < np.mean(errors["scratch"]))
        == (FinalistsConfig().start == "generated"),
        "note": f"{len(errors['scratch'])} networks, {arguments.epochs} epochs of {arguments.epoch_images} "
        f"images of {data.name}, validation images; the default is {FinalistsConfig().start}",
    }
    record("warm_start", {"errors": errors, "epochs": arguments.epochs}, [goal])


if __name__ == "__main__":
    main()
