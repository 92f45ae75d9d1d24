"""What each value of a recipe brings: ResNet-8 on CIFAR-10, one change at a time, on validation images.

    python -m benchmarks.training_recipes --data cifar10:DIR [--images 10000] [--epochs 8] [--seeds 1]
    python -m benchmarks.training_recipes --data cifar10:DIR --recipe standard --images 0 --epochs 12
        --only CHANGE,CHANGE [--called NAME]

The rows start from BASE, or from a recipe of this name; each changes one thing of it. Every run is kept in
``--work`` as soon as it is done, and a repeated command goes on with the first that is missing. Test images
are not looked at.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.intervals import interval
from benchmarks.networks import ResNet8
from benchmarks.record import record
from smash_base import files
from smash_search.data import Dataset, Split, load_dataset
from smash_search.train.compute import seed_of
from smash_search.train.network import Recipe, fit
from smash_search.train.recipes import NAMES, recipe_for

FLIP_CROP = {"pad_crop": 2, "flip": True}
BASE = Recipe(batch=128, learning_rate=0.1, weight_decay=5e-4, augmentation=FLIP_CROP)
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "whitening first convolution": {"whiten": True},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "average 0.99": {"average": 0.99},
    "identity-like initialisation": {"identity": True},
    "linear after warm-up 0.2": {"schedule": "linear", "warmup": 0.2},
    "progressive resolution": {"first_size": 0.6},
    "decay 1e-3": {"weight_decay": 1e-3},
    "bias rate x8": {"bias_rate": 8.0},
    "rate 0.2": {"learning_rate": 0.2},
    "crops by 4": {"augmentation": {"pad_crop": 4, "flip": True}},
    "alternating flips": {"augmentation": {"pad_crop": 2, "flip": "alternate"}},
    "float32": {"precision": "float32"},
    "no augmentation": {"augmentation": {}},
    "no flips": {"augmentation": {"pad_crop": 2}},
    "no crops": {"augmentation": {"flip": True}},
    "all images in each pass": {"prune": 0.0},
    "TrivialAugment": {"augmentation": {**FLIP_CROP, "trivial": True}},
    "batch 64": {"batch": 64},
    "Muon": {"optimiser": "muon"},
    "cutout 8": {"augmentation": {**FLIP_CROP, "cutout": 8}},
    "cutmix 1.0": {"augmentation": {**FLIP_CROP, "cutmix": 1.0}},
    "mixup 0.2": {"augmentation": {**FLIP_CROP, "mixup": 0.2}},
    "rate 0.05": {"learning_rate": 0.05},
    "batch 256 at rate 0.2": {"batch": 256, "learning_rate": 0.2},
    "decay 2e-4": {"weight_decay": 2e-4},
}


def subset(dataset: Dataset, images: int) -> Dataset:
    """The data set with fewer training images, drawn at random; 0 for all."""
    if not images or images >= len(dataset.train):
        return dataset
    order = np.sort(np.random.default_rng(0).permutation(len(dataset.train))[:images])
    train = Split(np.asarray(dataset.train.images[order]), dataset.train.labels[order])
    return replace(dataset, train=train, fingerprint=f"{dataset.fingerprint[:16]}-{images}")


def runs_like(log: Path, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of a log that were made with these settings."""
    return [run for run in files.read_jsonl(log) if asked.items() <= run.items()]


def one_run(dataset: Dataset, recipe: Recipe, checkpoint: Path) -> dict[str, float | None]:
    """Train once; validation error, and processor seconds, which are not known of what was interrupted."""
    torch.manual_seed(seed_of(recipe.seed, 0x1217))
    network = ResNet8(3, len(dataset.classes))
    resumed, begin = checkpoint.exists(), time.process_time()
    fitted = fit(network, dataset, recipe, checkpoint=checkpoint, checkpoint_seconds=20, evaluate=False)
    seconds = None if resumed else time.process_time() - begin
    return {"error": 1 - fitted.accuracy, "cpu_seconds": seconds}


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, those of earlier calls included, in the order of CHANGES."""
    dataset = subset(load_dataset(arguments.data), arguments.images)
    arguments.work.mkdir(parents=True, exist_ok=True)
    log = arguments.work / "runs.jsonl"
    chosen = arguments.only.split(",") if arguments.only else list(CHANGES)
    for seed in range(arguments.seeds):
        for name in chosen:
            recipe = replace(base_of(arguments.recipe, dataset), seed=seed, **CHANGES[name])
            recipe = replace(recipe, epochs=arguments.epochs)
            wanted = {"change": name, "images": arguments.images, "recipe": recipe.to_json()}
            if runs_like(log, wanted):
                continue
            partial = arguments.work / f"{name.replace(' ', '-')}-{seed}.pt"
            files.append_jsonl(log, {**wanted, **one_run(dataset, recipe, partial)})
            partial.unlink(missing_ok=True)
    return [
        run
        for run in runs_like(log, {"images": arguments.images})
        if run["recipe"]["epochs"] == arguments.epochs
    ]


def base_of(name: str | None, dataset: Dataset) -> Recipe:
    """What the rows start from."""
    return recipe_for(name, dataset, 0) if name else BASE


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per change: mean error, points against the base in the same seeds with their interval, processor
    seconds of the runs that nobody interrupted.
    """
    base = {run["recipe"]["seed"]: run["error"] for run in runs if run["change"] == "base"}
    rows = []
    for name in dict.fromkeys(run["change"] for run in runs):
        mine = [run for run in runs if run["change"] == name and run["recipe"]["seed"] in base]
        gains = [100 * (base[run["recipe"]["seed"]] - run["error"]) for run in mine]
        mean, *bounds = interval(gains)
        seconds = [run["cpu_seconds"] for run in mine if run["cpu_seconds"] is not None]
        rows.append(
            {
                "change": name,
                "seeds": len(mine),
                "error": round(100 * float(np.mean([run["error"] for run in mine])), 2),
                "points_gained": round(mean, 2),
                "each": [round(gain, 2) for gain in gains],
                "interval": [round(bound, 2) for bound in bounds] if len(gains) > 1 else None,
                "cpu_seconds": round(float(np.mean(seconds)), 1) if seconds else None,
            }
        )
    return rows


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--recipe", choices=NAMES, help="that the rows start from, in place of BASE")
    parser.add_argument("--only", help="changes, with commas between")
    parser.add_argument("--work", type=Path, default=Path("runs/training-recipes"))
    parser.add_argument("--called", default="", help="ending of the name of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = measure(arguments)
    rows = summary(runs)
    base = base_of(arguments.recipe, load_dataset(arguments.data))
    results = {
        "network": "resnet8",
        "images": arguments.images or "all",
        "epochs": arguments.epochs,
        "judged_on": "5,000 validation images",
        "base": base.to_json(),
        "rows": rows,
    }
    chosen = arguments.only.split(",") if arguments.only else list(CHANGES)
    name = f"training_recipes_{arguments.recipe or ''}".rstrip("_") + arguments.called
    record(name, results, [goal(rows, chosen)])


def goal(rows: list[dict[str, Any]], chosen: list[str]) -> dict[str, Any]:
    """Whether every planned change was measured."""
    missing = [name for name in chosen if name not in {row["change"] for row in rows}]
    return {
        "what": "what each value of a recipe brings, one change at a time",
        "goal": "every change measured on validation images",
        "value": f"{len(chosen) - len(missing)} of {len(chosen)}",
        "met": not missing,
        "note": f"missing: {', '.join(missing)}" if missing else "table in docs/recipes.md",
    }


if __name__ == "__main__":
    main()
