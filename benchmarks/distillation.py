"""What a teacher brings: one that is there already, and others within the same time.

    python -m benchmarks.distillation --data cifar10:DIR --teacher BUNDLE [--images 0] [--epochs 4]
    python -m benchmarks.distillation --data cifar10:DIR [--way first] [--images 10000] [--epochs 80]
        all: [--width 0.5] [--seeds 3] [--set distillation=0.9] [--work DIR]

The student is a ResNet-8 of ``--width`` times its channels. "alone" trains for all epochs; "taught" has the
same time, by one of these ways:

    given       learns the answers of the bundle, whose training costs nothing any more
    finalists   learns the mean answers of three networks of its form that a search trained anyway, each for
                ``--share`` of the student's epochs: they cost nothing further
    average     learns the answers of the moving average of its own weights, for the images as it sees them;
                a step takes longer, and epochs are fewer
    first       spends half of the time on a network of twice its width, about four times its
                multiply-accumulates, and the other half on learning from it

Where epochs are fewer, that is set from seconds of single steps, measured here. All have the recipe
``standard`` but for their epochs. Each command writes its own part of
``benchmarks/results/distillation.json`` and leaves the others; a repeated one goes on where the last one
stopped, but for the trainings of "average", which begin anew. Accuracy is on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.intervals import interval
from benchmarks.networks import ResNet8
from benchmarks.record import RESULTS, record
from benchmarks.training_recipes import runs_like, subset
from smash_base import files
from smash_export.cli.compile import read_options
from smash_export.export.teacher import teacher_logits
from smash_search.data import Dataset, Split, load_dataset
from smash_search.train import network as training
from smash_search.train.compute import Average, Feed, autocast, memory_format, seed_of
from smash_search.train.network import Recipe, accuracy, answers_of, fit, prepare, seconds_per_step
from smash_search.train.recipes import recipe_for

LARGER = 2.0  # width of the teacher that is trained first, where the student has 1
SHARE = 0.5  # of the time, for that teacher
FINALISTS = 3
CIFAR10 = "cifar10"  # the data where a result does not name any
DECAY = 0.99  # of the average of its own weights that teaches a network
WARM_UP = 8  # steps before those whose time is measured
PARTS = {
    "given": ("points gained from a teacher that is there", "above 0"),
    "first": ("points gained by a teacher trained first, equal total time", ">= 1"),
    "finalists": ("points gained from three finalists that were trained anyway, equal further time", ">= 1"),
    "average": ("points gained from the average of a network's own weights, equal total time", ">= 1"),
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
        alone = replace(
            recipe_for("standard", self.dataset, seed), epochs=self.arguments.epochs, keep_best=False
        )
        recipe = Recipe.from_json({**alone.to_json(), **read_options(tuple(self.arguments.set))})
        ways: dict[str, Callable[[Recipe], dict[str, Any]]] = {
            "given": self._given,
            "first": self._trained_first,
            "finalists": self._finalists,
            "average": self._average,
        }
        taught = ways[self.arguments.way](recipe)
        return {"seed": seed, **taught, "alone": self._trained("alone", 1.0, alone)[1]}

    def _given(self, recipe: Recipe) -> dict[str, Any]:
        soft = teacher_logits(self.arguments.teacher, self.dataset, self.work / "answers")
        return {"taught": self._trained("taught", 1.0, recipe, soft)[1]}

    def _trained_first(self, recipe: Recipe) -> dict[str, Any]:
        cost = self._costs(recipe)
        share = SHARE * recipe.epochs * cost[0] / cost[1]
        wide, facts = self._trained("teacher", LARGER, replace(recipe, epochs=max(1, round(share))))
        taught = replace(recipe, epochs=max(1, round((1 - SHARE) * recipe.epochs)))
        _, with_it = self._trained(
            "taught", 1.0, taught, answers_of(wide, self.dataset.train, self.dataset.preprocessing)
        )
        return {"first": facts, "step_seconds": cost, "taught": with_it}

    def _finalists(self, recipe: Recipe) -> dict[str, Any]:
        """The teacher of a search: mean log-probabilities of networks that had fewer epochs."""
        epochs = max(1, round(self.arguments.share * recipe.epochs))
        plain = replace(recipe_for("standard", self.dataset), epochs=epochs, keep_best=False)
        seeds = [seed_of(recipe.seed, 0xF1A1, number) % 2**31 for number in range(FINALISTS)]
        trained = [self._trained("finalist", 1.0, replace(plain, seed=seed)) for seed in seeds]

        def together(split: Split) -> np.ndarray:
            told = [answers_of(one, split, self.dataset.preprocessing) for one, _ in trained]
            mean: np.ndarray = torch.from_numpy(np.stack(told)).log_softmax(2).mean(0).numpy()
            return mean

        test = self.dataset.test
        right = float((together(test).argmax(1) == test.labels).mean())
        _, taught = self._trained("taught", 1.0, recipe, together(self.dataset.train))
        facts = [told["accuracy"] for _, told in trained]
        return {"finalists": facts, "ensemble_accuracy": right, "taught": taught}

    def _average(self, recipe: Recipe) -> dict[str, Any]:
        """The average of its own weights is the teacher; as long as the student would train alone."""
        cost = self._costs_of_average(recipe)
        own = replace(recipe, epochs=max(1, round(recipe.epochs * cost[0] / cost[1])))
        student, begin = network(self.arguments.width, recipe.seed), time.process_time()
        prepare(student, self.dataset, own)
        taught_by_itself(student, self.dataset, own)
        seconds = time.process_time() - begin
        right = accuracy(student, self.dataset.test, self.dataset.preprocessing)
        facts = {"epochs": own.epochs, "accuracy": right, "cpu_seconds": seconds, "decay": DECAY}
        return {"step_seconds": cost, "taught": {**facts, "distillation": own.distillation}}

    def _trained(
        self, name: str, times: float, recipe: Recipe, teacher: np.ndarray | None = None
    ) -> tuple[ResNet8, dict[str, Any]]:
        """A trained network, and what it took; one that was interrupted goes on."""
        student = network(times * self.arguments.width, recipe.seed)
        how = hashlib.sha256(repr((recipe.to_json(), teacher is None)).encode()).hexdigest()[:8]
        place, begin = self.work / f"{name}-{recipe.seed}-{how}.pt", time.process_time()
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

    def _costs_of_average(self, recipe: Recipe) -> list[float]:
        """Processor seconds of a step without and with the average's answers; measured once."""
        place = self.work / f"costs-average-{recipe.seed}.json"
        if not place.exists():
            few = replace(recipe, epochs=1, epoch_images=4 * WARM_UP * recipe.batch)
            measured = []
            for taught in (False, True):
                times: list[float] = []
                taught_by_itself(network(self.arguments.width, 0), self.dataset, few, times, taught=taught)
                measured.append(float(np.median(np.diff(times)[WARM_UP:])))
            files.write_json(place, measured)
        costs: list[float] = files.read_json(place, what="costs")
        return costs


class _WithAnswers:
    """Batches of a training with the answers of an average of the network's weights.

    Args:
        batches: by number of the step.
        student: whose weights are averaged.
        average: of them.
    """

    def __init__(self, batches: Any, student: ResNet8, average: Average) -> None:
        self._batches, self._average = batches, average
        self._teacher = ResNet8(3, 10, student.head.in_features / 64).eval()
        self.close = batches.close

    def __getitem__(self, step: int) -> Any:
        batch = self._batches[step]
        with torch.inference_mode(), autocast(batch.images.device, on_cpu=True):
            soft: Tensor = functional_call(self._teacher, self._average.values, batch.images)
        return batch._replace(soft=soft.float().clone())


def taught_by_itself(
    student: ResNet8, dataset: Dataset, recipe: Recipe, times: list[float] | None = None, taught: bool = True
) -> None:
    """:func:`fit` with the average of the network's own weights as the teacher.

    Args:
        times: processor seconds after each step are added to it.
        taught: False leaves the answers out, to compare what steps cost.
    """
    device = torch.device("cpu")
    student.to(memory_format=memory_format(2, device))  # type: ignore[call-overload]
    feed = Feed(dataset.train, dataset.preprocessing, device)
    loop = training._Loop(student, feed, recipe, len(dataset.classes), None)
    loop.measure = lambda: 0.0
    average = Average(student, DECAY)
    if taught:
        loop._ahead = _WithAnswers(loop._ahead, student, average)  # type: ignore[assignment]

    def after(_: Any) -> None:
        if taught:
            average.update(student)
        if times is not None:
            times.append(time.process_time())

    loop.run(checkpoint=None, identity={}, checkpoint_seconds=0, on_step=after)
    loop.close()
    student.eval()


def network(width: float, seed: int) -> ResNet8:
    """Initial weights that depend on the seed alone."""
    torch.manual_seed(seed_of(seed, 0x1217))
    return ResNet8(3, 10, width)


def summary(runs: list[dict[str, Any]], setting: dict[str, Any]) -> dict[str, Any]:
    """Points gained by each seed, their mean, and its interval from two seeds on."""
    gains = [100 * (run["taught"]["accuracy"] - run["alone"]["accuracy"]) for run in runs]
    mean, low, high = interval(gains)
    bounds = [low, high] if len(gains) > 1 else None
    return {"setting": setting, "runs": runs, "gains": gains, "mean": mean, "interval": bounds}


def goal_of(part: str, found: dict[str, Any]) -> dict[str, Any]:
    """A line of the overview."""
    part = part.partition(":")[0]
    what, wanted = PARTS[part]
    setting, bounds = found["setting"], found["interval"]
    within = "" if bounds is None else f" ({bounds[0]:+.1f} to {bounds[1]:+.1f})"
    met = found["mean"] >= 1
    if part == "given":
        met = bounds is not None and bounds[0] > 0
    images = f"{setting['images']:,}" if setting["images"] else "all"
    changed = [*setting["set"], *[f"share {setting[name]}" for name in ("share",) if name in setting]]
    return {
        "what": f"{what}, ResNet-8 on {setting.get('data', CIFAR10)}",
        "goal": wanted,
        "value": f"{found['mean']:+.1f}{within}",
        "met": met,
        "note": f"student of {setting['width']} times the channels, {images} training images, "
        f"{setting['epochs']} epochs alone, {len(found['runs'])} seeds" + "".join(f", {x}" for x in changed),
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--way", choices=[way for way in PARTS if way != "given"], default="first")
    parser.add_argument("--share", type=float, default=1.0, help="epochs of finalists over the student's")
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, choices=range(1, 6), default=3)
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    arguments = parser.parse_args()
    arguments.way = "given" if arguments.teacher else arguments.way
    torch.set_num_threads(1)
    bench, log = Bench(arguments), arguments.work / "runs.jsonl"
    setting = {"images": arguments.images, "epochs": arguments.epochs, "width": arguments.width}
    setting |= {"teacher": arguments.teacher.name if arguments.teacher else None, "set": arguments.set}
    if bench.dataset.name != CIFAR10:
        setting |= {"data": bench.dataset.name}
    if arguments.way not in ("given", "first"):
        setting |= {"way": arguments.way}
    if arguments.way == "finalists":
        setting |= {"share": arguments.share}
    for seed in range(arguments.seeds):
        if not runs_like(log, {**setting, "seed": seed}):
            files.append_jsonl(log, {**bench.compared(seed), **setting})
    path = RESULTS / "distillation.json"
    held = files.read_json(path, what="result")["results"] if path.exists() else {}
    part = ": ".join([arguments.way, *arguments.set])
    part += f": share {arguments.share}" if arguments.way == "finalists" else ""
    held[part] = summary(runs_like(log, setting), setting)
    record("distillation", held, [goal_of(name, held[name]) for name in held])


if __name__ == "__main__":
    main()
