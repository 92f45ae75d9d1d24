"""What a teacher brings: one that is there already, and one that is trained first within the same time.

    python -m benchmarks.distillation --data cifar10:DIR --teacher BUNDLE [--images 0] [--epochs 4]
    python -m benchmarks.distillation --data cifar10:DIR [--images 10000] [--epochs 80]
        both: [--width 0.5] [--seeds 3] [--set distillation=0.9] [--work DIR]

The student is a ResNet-8 of ``--width`` times its channels. "alone" trains for all epochs. With a teacher
"taught" trains for as many and learns the answers of that bundle, whose training costs nothing any more.
Without one it spends half of the time on a network of twice the student's width, about four times its
multiply-accumulates, and the other half on the student: epochs are set from seconds of single
steps, measured here. All have the recipe ``standard`` but for their epochs. Each command writes its own part
of ``benchmarks/results/distillation.json`` and leaves the other; a repeated one goes on where the last one
stopped. Accuracy is on the 10,000 test images.
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
from benchmarks.record import RESULTS, record
from benchmarks.training_recipes import runs_like, subset
from smash_base import files
from smash_export.cli.compile import read_options
from smash_export.export.teacher import teacher_logits
from smash_search.data import Dataset, load_dataset
from smash_search.train.compute import seed_of
from smash_search.train.network import Recipe, accuracy, fit, seconds_per_step
from smash_search.train.recipes import recipe_for

LARGER = 2.0  # width of the teacher that is trained first, where the student has 1
SHARE = 0.5  # of the time, for that teacher
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # two-sided 95 % by degrees of freedom
PARTS = {
    "given": ("points gained from a teacher that is there, ResNet-8 on CIFAR-10", "above 0"),
    "trained first": ("points gained by a teacher trained first, equal total time", ">= 1"),
}


class Bench:
    """One student, alone and taught, for each seed.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.dataset = subset(load_dataset(arguments.data), arguments.images)
        self.work: Path = arguments.work
        self.work.mkdir(parents=True, exist_ok=True)

    def compared(self, seed: int) -> dict[str, Any]:
        """Both ways for one seed."""
        recipe = replace(
            recipe_for("standard", self.dataset, seed), epochs=self.arguments.epochs, keep_best=False
        )
        recipe = Recipe.from_json({**recipe.to_json(), **read_options(tuple(self.arguments.set))})
        taught = recipe
        first: dict[str, Any] = {}
        if self.arguments.teacher:
            soft = teacher_logits(self.arguments.teacher, self.dataset, self.work / "answers")
        else:
            cost = self._costs(recipe)
            share = SHARE * recipe.epochs * cost[0] / cost[1]
            wide, facts = self._trained("teacher", LARGER, replace(recipe, epochs=max(1, round(share))))
            soft, first = answers(wide, self.dataset), {"first": facts, "step_seconds": cost}
            taught = replace(taught, epochs=max(1, round((1 - SHARE) * recipe.epochs)))
        _, with_it = self._trained("taught", 1.0, taught, soft)
        _, without = self._trained("alone", 1.0, recipe)
        return {"seed": seed, **first, "taught": with_it, "alone": without}

    def _trained(
        self, name: str, times: float, recipe: Recipe, teacher: np.ndarray | None = None
    ) -> tuple[ResNet8, dict[str, Any]]:
        """A trained network, and what it took; one that was interrupted goes on."""
        student = network(times * self.arguments.width, recipe.seed)
        place, begin = self.work / f"{name}-{recipe.seed}.pt", time.process_time()
        resumed = place.exists()
        fit(
            student,
            self.dataset,
            recipe,
            checkpoint=place,
            checkpoint_seconds=20,
            evaluate=False,
            teacher=teacher,
        )
        seconds = time.process_time() - begin
        right = accuracy(student, self.dataset.test, self.dataset.preprocessing)
        facts: dict[str, Any] = {
            "epochs": recipe.epochs,
            "accuracy": right,
            "cpu_seconds": None if resumed else seconds,
        }
        if teacher is not None:
            facts |= {"distillation": recipe.distillation, "temperature": recipe.temperature}
        return student, facts

    def _costs(self, recipe: Recipe) -> list[float]:
        """Seconds of a step of student and teacher; measured once, since epochs depend on them."""
        place = self.work / f"costs-{recipe.seed}.json"
        if not place.exists():
            sizes = [times * self.arguments.width for times in (1.0, LARGER)]
            device = torch.device("cpu")
            measured = [
                seconds_per_step(network(size, recipe.seed), self.dataset, recipe, device) for size in sizes
            ]
            files.write_json(place, measured)
        costs: list[float] = files.read_json(place, what="costs")
        return costs


def network(width: float, seed: int) -> ResNet8:
    """Initial weights that depend on the seed alone."""
    torch.manual_seed(seed_of(seed, 0x1217))
    return ResNet8(3, 10, width)


def answers(teacher: ResNet8, dataset: Dataset) -> np.ndarray:
    """Logits for the training images, float32 [N, K]."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(dataset.train), 512):
            images = torch.from_numpy(np.asarray(dataset.train.images[start : start + 512]))
            parts.append(teacher(dataset.preprocessing.normalise(images)).numpy())
    return np.concatenate(parts)


def summary(runs: list[dict[str, Any]], setting: dict[str, Any]) -> dict[str, Any]:
    """Points gained by each seed, their mean, and its interval from two seeds on."""
    gains = [100 * (run["taught"]["accuracy"] - run["alone"]["accuracy"]) for run in runs]
    mean, interval = float(np.mean(gains)), None
    if len(gains) > 1:
        half = STUDENT_T[len(gains) - 1] * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
        interval = [mean - half, mean + half]
    return {"setting": setting, "runs": runs, "gains": gains, "mean": mean, "interval": interval}


def goal_of(part: str, found: dict[str, Any]) -> dict[str, Any]:
    """A line of the overview."""
    what, wanted = PARTS[part]
    setting, interval = found["setting"], found["interval"]
    within = "" if interval is None else f" ({interval[0]:+.1f} to {interval[1]:+.1f})"
    met = found["mean"] >= 1
    if part == "given":
        met = interval is not None and interval[0] > 0
    images = f"{setting['images']:,}" if setting["images"] else "all"
    return {
        "what": what,
        "goal": wanted,
        "value": f"{found['mean']:+.1f}{within}",
        "met": met,
        "note": f"student of {setting['width']} times the channels, {images} training images, "
        f"{setting['epochs']} epochs alone, {len(found['runs'])} seeds",
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, choices=range(1, 6), default=3)
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench, log = Bench(arguments), arguments.work / "runs.jsonl"
    setting = {"images": arguments.images, "epochs": arguments.epochs, "width": arguments.width}
    setting |= {"teacher": arguments.teacher.name if arguments.teacher else None, "set": arguments.set}
    for seed in range(arguments.seeds):
        if not runs_like(log, {**setting, "seed": seed}):
            files.append_jsonl(log, {**bench.compared(seed), **setting})
    path = RESULTS / "distillation.json"
    held = files.read_json(path, what="result")["results"] if path.exists() else {}
    part = "given" if arguments.teacher else "trained first"
    held[part] = summary(runs_like(log, setting), setting)
    record("distillation", held, [goal_of(part, held[part]) for part in PARTS if part in held])


if __name__ == "__main__":
    main()
