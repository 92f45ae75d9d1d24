"""A few labelled images of each class: the default recipe against the default that it replaced.

    python -m benchmarks.few_images --data cifar10:DIR [--seeds 3]
    python -m benchmarks.few_images --data cifar10:DIR --per-class 5 --seeds 8
    python -m benchmarks.few_images --data cifar100:DIR [--seeds 1] [--width 0.5]

The same ResNet-8, each seed with images of its own, one in ten of them for validation where a recipe asks for
it; accuracy on the 10,000 test images. The earlier default of ten classes: 30 epochs, batch 32, learning rate
0.1, no augmentation, validation images trained on as well; of a hundred: the same recipe, but 30 epochs, as
images were counted in all and not of a class; of fewer than 50 images a class: the same, but batches of 32.
"""

from __future__ import annotations

import argparse
import time
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
from smash_search.train.network import Recipe, accuracy, fit
from smash_search.train.recipes import AUTO, recipe_for

NAMES = {10: "few_images", 100: "few_of_a_class"}  # of the results, by number of classes
HANDFUL = "handful_of_images"  # fewer than the usual number of a class
PER_CLASS = 50
VALIDATION_SHARE = 10  # one in so many of them


def earlier_default(seed: int) -> Recipe:
    """What ``freeze`` did with 500 images before recipes."""
    return Recipe(30, 32, include_validation=True, precision="float32", seed=seed)


def recipes_of(dataset: Dataset, seed: int, per_class: int) -> dict[str, Recipe]:
    """What is compared."""
    default = recipe_for(AUTO, dataset, seed)
    if per_class < PER_CLASS:
        return {"earlier": replace(default, batch=32), "default": default}
    earlier = earlier_default(seed) if len(dataset.classes) == 10 else replace(default, epochs=30)
    return {"earlier": earlier, "default": default}


def few(dataset: Dataset, seed: int, per_class: int = PER_CLASS) -> Dataset:
    """A data set with so many images of each class, one in ten of them for validation."""
    random = np.random.default_rng((seed, 0xFE3))
    chosen = [
        random.permutation(np.flatnonzero(dataset.train.labels == label))[:per_class]
        for label in range(len(dataset.classes))
    ]

    def split(parts: list[np.ndarray]) -> Split:
        indices = np.sort(np.concatenate(parts))
        return Split(np.asarray(dataset.train.images[indices]), dataset.train.labels[indices])

    held_out = max(1, per_class // VALIDATION_SHARE)
    return replace(
        dataset,
        train=split([part[held_out:] for part in chosen]),
        validation=split([part[:held_out] for part in chosen]),
        fingerprint=f"{dataset.fingerprint[:16]}-few-{seed}",
    )


def one_run(dataset: Dataset, recipe: Recipe, width: float, checkpoint: Path) -> dict[str, float | None]:
    """Test accuracy of one training, whether its first convolution whitened, and processor seconds, which
    are not known of one that was interrupted.
    """
    torch.manual_seed(seed_of(recipe.seed, 0x1217))
    network = ResNet8(3, len(dataset.classes), width)
    resumed, begin = checkpoint.exists(), time.process_time()
    fitted = fit(network, dataset, recipe, checkpoint=checkpoint, checkpoint_seconds=20, evaluate=False)
    seconds = None if resumed else time.process_time() - begin
    checkpoint.unlink()
    right = accuracy(network, dataset.test, dataset.preprocessing)
    return {"accuracy": right, "whitened": bool(fitted.recipe.whiten), "cpu_seconds": seconds}


def main() -> None:
    """Measure and record; runs that are in --work already are not repeated, and interrupted ones go on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=PER_CLASS)
    parser.add_argument("--width", type=float, default=1.0, help="of the network, times ResNet-8's channels")
    parser.add_argument("--work", type=Path, help="one for each --data and --per-class")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    whole = load_dataset(arguments.data)
    work = arguments.work or Path(f"runs/few-images-{len(whole.classes)}-{arguments.per_class}")
    work.mkdir(parents=True, exist_ok=True)
    log = work / "runs.jsonl"
    for seed in range(arguments.seeds):
        dataset = few(whole, seed, arguments.per_class)
        for name, recipe in recipes_of(dataset, seed, arguments.per_class).items():
            wanted: dict[str, Any] = {"default": name, "recipe": recipe.to_json()}
            if not any(all(run[key] == wanted[key] for key in wanted) for run in files.read_jsonl(log)):
                place = work / f"{name}-{seed}.pt"
                files.append_jsonl(log, {**wanted, **one_run(dataset, recipe, arguments.width, place)})
    runs = files.read_jsonl(log)
    accuracies = {
        name: [run["accuracy"] for run in runs if run["default"] == name] for name in ("earlier", "default")
    }
    gains = [100 * (b - a) for a, b in zip(accuracies["earlier"], accuracies["default"], strict=True)]
    mean, low, high = interval(gains)
    name = NAMES[len(whole.classes)] if arguments.per_class >= PER_CLASS else HANDFUL
    images = f"{arguments.per_class * len(whole.classes):,} labelled images"
    least = 5 if name == "few_images" else 1
    goal = {
        "what": f"{images} of {whole.name}, ResNet-8: accuracy of the default over the earlier default",
        "goal": f">= +{least} points" + ", interval above 0" * (name != "few_of_a_class"),
        "value": f"{mean:+.1f} points" + (f" ({low:.1f} to {high:.1f})" if len(gains) > 1 else ""),
        "met": bool(mean >= least and (low > 0 or name == "few_of_a_class")),
        "note": f"{len(gains)} seeds, each with images of its own; {len(whole.test):,} test images; "
        f"{arguments.width} times the channels",
    }
    record(name, {"accuracies": accuracies, "gains": gains, "runs": runs}, [goal])


if __name__ == "__main__":
    main()
