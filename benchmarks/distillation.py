"""What a teacher brings at equal total time: ResNet-8 alone, against a wider teacher first and then ResNet-8.

    python -m benchmarks.distillation --data cifar10:DIR [--images 10000] [--epochs 40] [--seeds 1]

"alone" trains for all epochs. "taught" spends half of their time on a ResNet-8 of twice the width and the
other half on the student, which learns the teacher's answers and the labels; epochs are set from the seconds
of single steps, measured here. Both have the recipe ``standard`` but for its epochs. A repeated command goes
on where the last one stopped; accuracy is on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.networks import ResNet8
from benchmarks.record import record
from benchmarks.training_recipes import runs_like, subset
from smash_base import files
from smash_search.data import Dataset, load_dataset
from smash_search.train.compute import seed_of
from smash_search.train.network import Recipe, accuracy, fit, seconds_per_step
from smash_search.train.recipes import recipe_for

WIDTH = 2.0  # of the teacher, where the student has 1
SHARE = 0.5  # of the time, for the teacher


def network(width: float, seed: int) -> ResNet8:
    """Initial weights that depend on the seed alone."""
    torch.manual_seed(seed_of(seed, 0x1217))
    return ResNet8(3, 10, width)


def trained(
    dataset: Dataset, width: float, recipe: Recipe, place: Path, teacher: np.ndarray | None = None
) -> tuple[ResNet8, dict[str, Any]]:
    """A trained network, and what it took; one that was interrupted goes on."""
    student = network(width, recipe.seed)
    begin = time.process_time()
    fit(student, dataset, recipe, checkpoint=place, checkpoint_seconds=20, evaluate=False, teacher=teacher)
    seconds = time.process_time() - begin
    right = accuracy(student, dataset.test, dataset.preprocessing)
    return student, {"epochs": recipe.epochs, "accuracy": right, "cpu_seconds": seconds}


def answers(teacher: ResNet8, dataset: Dataset) -> np.ndarray:
    """Logits for the training images, float32 [N, K]."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(dataset.train), 512):
            images = torch.from_numpy(np.asarray(dataset.train.images[start : start + 512]))
            parts.append(teacher(dataset.preprocessing.normalise(images)).numpy())
    return np.concatenate(parts)


def costs(dataset: Dataset, recipe: Recipe, place: Path) -> list[float]:
    """Seconds of a step of student and teacher; measured once, since epochs depend on them."""
    if not place.exists():
        device = torch.device("cpu")
        measured = [
            seconds_per_step(network(width, recipe.seed), dataset, recipe, device) for width in (1.0, WIDTH)
        ]
        files.write_json(place, measured)
    found: list[float] = files.read_json(place, what="costs")
    return found


def compared(dataset: Dataset, epochs: int, seed: int, work: Path) -> dict[str, Any]:
    """Both ways for one seed."""
    recipe = replace(recipe_for("standard", dataset, seed), epochs=epochs, keep_best=False)
    cost = costs(dataset, recipe, work / f"costs-{seed}.json")
    of_teacher = max(1, round(SHARE * epochs * cost[0] / cost[1]))
    of_student = max(1, round((1 - SHARE) * epochs))
    teacher, facts = trained(dataset, WIDTH, replace(recipe, epochs=of_teacher), work / f"teacher-{seed}.pt")
    soft = answers(teacher, dataset)
    _, taught = trained(dataset, 1.0, replace(recipe, epochs=of_student), work / f"taught-{seed}.pt", soft)
    _, alone = trained(dataset, 1.0, recipe, work / f"alone-{seed}.pt")
    return {"seed": seed, "teacher": facts, "taught": taught, "alone": alone, "step_seconds": cost}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = subset(load_dataset(arguments.data), arguments.images)
    arguments.work.mkdir(parents=True, exist_ok=True)
    log = arguments.work / "runs.jsonl"
    asked = {"images": arguments.images, "epochs": arguments.epochs}
    for seed in range(arguments.seeds):
        if not runs_like(log, {**asked, "seed": seed}):
            files.append_jsonl(log, {**compared(dataset, arguments.epochs, seed, arguments.work), **asked})
    runs = runs_like(log, asked)
    gains = [100 * (run["taught"]["accuracy"] - run["alone"]["accuracy"]) for run in runs]
    mean = float(np.mean(gains))
    goal = {
        "what": "points gained by distillation at equal total time, ResNet-8 on CIFAR-10",
        "goal": ">= 1",
        "value": f"{mean:+.1f}",
        "met": mean >= 1,
        "note": f"{arguments.images:,} training images, {arguments.epochs} epochs' time, {len(gains)} seeds; "
        "the machine was shared, so equal time is by steps",
    }
    record("distillation", {"runs": runs, "gains": gains}, [goal])


if __name__ == "__main__":
    main()
