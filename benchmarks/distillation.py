"""What a teacher brings: one that is there already, and others within the same time.

    python -m benchmarks.distillation --data cifar10:DIR --teacher BUNDLE [--images 0] [--epochs 4]
    python -m benchmarks.distillation --data cifar10:DIR [--way first] [--images 10000] [--epochs 80]
        [--larger 4 | --teacher-form pooled] [--teacher-share 0.4] [--teacher-set label_smoothing=0]
        [--cross-fitted]
        all: [--student best.json] [--width 0.5] [--seeds 3] [--first 0] [--set distillation=0.9] [--work DIR]

The student is a ResNet-8 of ``--width`` times its channels, or the network of ``--student``. "alone" trains
for all epochs; "taught" has the same time, by one of these ways:

    given       learns the answers of the bundle, whose training costs nothing any more; with
                ``--count-answers`` has as many epochs fewer as its answers for all images take
    finalists   learns the mean answers of three networks of its form that a search trained anyway, each for
                ``--share`` of the student's epochs: they cost nothing further
    average     learns the answers of the moving average of its own weights, for the images as it sees them;
                a step takes longer, and epochs are fewer
    first       spends ``--teacher-share`` of the time on a ResNet-8 of ``--larger`` times the channels, or on
                a network that learns faster (``--teacher-form pooled``), and the rest on learning from it;
                ``--cross-fitted``: on two of them, each of which answers for the half that it has not seen

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
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.intervals import interval
from benchmarks.networks import Pooled, ResNet8
from benchmarks.record import RESULTS, record
from benchmarks.training_recipes import runs_like, subset
from smash_base import files
from smash_export.cli.compile import read_options
from smash_export.export.teacher import teacher_logits
from smash_search.data import Dataset, Split, load_dataset
from smash_search.rank.finalists import input_spec_of
from smash_search.space.best import read_best
from smash_search.train import network as training
from smash_search.train.compute import Average, Feed, autocast, memory_format, seed_of
from smash_search.train.network import Recipe, accuracy, answers_of, fit, new_network, prepare
from smash_search.train.recipes import recipe_for

FINALISTS = 3
CIFAR10 = "cifar10"  # the data where a result does not name any
DECAY = 0.99  # of the average of its own weights that teaches a network
WARM_UP = 8  # steps before those whose time is measured
ANSWERS = 1 / 3  # of an epoch of the teacher: it answers for the training images once
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
        found: dict[str, Any] = {"seed": seed}
        if self.arguments.part != "alone":
            found |= ways[self.arguments.way](recipe)
        if self.arguments.part != "taught":
            found |= {"alone": self._trained("alone", alone)[1]}
        return found

    def _given(self, recipe: Recipe) -> dict[str, Any]:
        place, begin = self.work / "answers.json", time.process_time()
        soft = teacher_logits(self.arguments.teacher, self.dataset, self.work / "answers")
        if not place.exists():
            files.write_json(place, time.process_time() - begin)
        seconds: float = files.read_json(place, what="seconds")
        facts: dict[str, Any] = {"answers_cpu_seconds": seconds}
        if self.arguments.count_answers:
            epoch = self._costs(recipe, None)[0] * (len(self.dataset.train) // recipe.batch)
            facts["epoch_cpu_seconds"] = epoch
            recipe = replace(recipe, epochs=max(1, int(recipe.epochs - seconds / epoch)))
        return {**facts, "taught": self._trained("taught", recipe, soft)[1]}

    def _trained_first(self, recipe: Recipe) -> dict[str, Any]:
        values = {**recipe.to_json(), **read_options(tuple(self.arguments.teacher_set))}
        first = Recipe.from_json(values)
        cost, share = self._costs(recipe, first), self.arguments.teacher_share
        dearer = cost[1] / cost[0]
        first = replace(first, epochs=max(1, round(share * recipe.epochs / dearer)))
        answers, facts = self._answers(first)
        left = recipe.epochs - first.epochs * dearer - ANSWERS * dearer
        _, with_it = self._trained("taught", replace(recipe, epochs=max(1, int(left))), answers)
        return {"first": facts, "step_seconds": cost, "taught": with_it}

    def _answers(self, first: Recipe) -> tuple[np.ndarray, dict[str, Any]]:
        """Logits for the training images, and facts of the teachers: of one that saw all of them, or of two
        that saw a half each, and together cost as much, each for the half that it has not seen.
        """
        train, told = self.dataset.train, []
        answers = np.zeros((len(train), len(self.dataset.classes)), np.float32)
        half = np.random.default_rng(seed_of(first.seed, 0xF01D)).permutation(len(train)) % 2
        everything = np.arange(len(train))
        pairs = [(everything, everything)]
        if self.arguments.cross_fitted:
            pairs = [(np.flatnonzero(half == part), np.flatnonzero(half != part)) for part in (0, 1)]
        for number, (seen, asked) in enumerate(pairs):
            name = "teacher" if len(pairs) == 1 else f"teacher-{number}"
            teacher, facts = self._trained(name, first, seen=seen)
            answers[asked] = answers_of(teacher, train.take(asked), self.dataset.preprocessing)
            told.append(facts["accuracy"])
        right = float((answers.argmax(1) == train.labels).mean())
        return answers, {"epochs": first.epochs, "accuracy": told, "right_of_train": right}

    def _finalists(self, recipe: Recipe) -> dict[str, Any]:
        """The teacher of a search: mean log-probabilities of networks that had fewer epochs."""
        epochs = max(1, round(self.arguments.share * recipe.epochs))
        plain = replace(recipe_for("standard", self.dataset), epochs=epochs, keep_best=False)
        seeds = [seed_of(recipe.seed, 0xF1A1, number) % 2**31 for number in range(FINALISTS)]
        trained = [self._trained("finalist", replace(plain, seed=seed)) for seed in seeds]

        def together(split: Split) -> np.ndarray:
            told = [answers_of(one, split, self.dataset.preprocessing) for one, _ in trained]
            mean: np.ndarray = torch.from_numpy(np.stack(told)).log_softmax(2).mean(0).numpy()
            return mean

        test = self.dataset.test
        right = float((together(test).argmax(1) == test.labels).mean())
        _, taught = self._trained("taught", recipe, together(self.dataset.train))
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
        self,
        name: str,
        recipe: Recipe,
        teacher: np.ndarray | None = None,
        seen: np.ndarray | None = None,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """A trained network, and what it took; one that was interrupted goes on. ``seen``: rows of the
        training images that it learns, None for all.
        """
        data = self.dataset if seen is None else replace(self.dataset, train=self.dataset.train.take(seen))
        student = self._network(name, recipe.seed)
        how = hashlib.sha256(
            repr(recipe.to_json()).encode() + (b"" if teacher is None else teacher.tobytes())
        )
        place, begin = self.work / f"{name}-{recipe.seed}-{how.hexdigest()[:8]}.pt", time.process_time()
        resumed, told = place.exists(), place.with_suffix(".json")
        fit(
            student,
            data,
            recipe,
            checkpoint=place,
            checkpoint_seconds=20,
            evaluate=False,
            teacher=teacher,
        )
        seconds = time.process_time() - begin
        if told.exists():
            return student, files.read_json(told, what="facts of a training")
        right = accuracy(student, self.dataset.test, self.dataset.preprocessing)
        facts: dict[str, Any] = {
            "epochs": recipe.epochs,
            "accuracy": right,
            "cpu_seconds": None if resumed else seconds,
        }
        if teacher is not None:
            facts |= {"distillation": recipe.distillation, "temperature": recipe.temperature}
        files.write_json(told, facts)
        return student, facts

    def _network(self, name: str, seed: int) -> nn.Module:
        """Initial weights of the teacher that is trained first, or of a student."""
        width = self.arguments.width
        if name.startswith("teacher") and self.arguments.teacher_form == "pooled":
            torch.manual_seed(seed_of(seed, 0x1217))
            return Pooled(3, 10)
        if name.startswith("teacher"):
            return network(self.arguments.larger * width, seed)
        if self.arguments.student is None:
            return network(width, seed)
        spec = input_spec_of(self.dataset)
        return new_network(
            read_best(self.arguments.student).architecture, spec, len(self.dataset.classes), seed
        )

    def _costs(self, recipe: Recipe, first: Recipe | None) -> list[float]:
        """Processor seconds of a step of student and, with a recipe, of the teacher that is trained first;
        measured once, since epochs depend on them.
        """
        place = self.work / f"costs-{recipe.seed}.json"
        if not place.exists():
            measured = []
            networks = [("alone", recipe)] + ([] if first is None else [("teacher", first)])
            for name, whole in networks:
                few = replace(whole, epochs=1, epoch_images=4 * WARM_UP * recipe.batch)
                times: list[float] = []
                fit(
                    self._network(name, recipe.seed),
                    self.dataset,
                    few,
                    evaluate=False,
                    on_step=lambda _, times=times: times.append(time.process_time()),
                )
                measured.append(float(np.median(np.diff(times)[WARM_UP:])))
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
    recipe = training.settled(recipe, student, dataset)
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
    if part == "given" and setting.get("count_answers"):
        what, wanted = "points gained from a teacher that is there, equal total time with its answers", ">= 1"
    elif part == "given":
        met = bounds is not None and bounds[0] > 0
    images = f"{setting['images']:,}" if setting["images"] else "all"
    changed = [*setting["set"], *[f"share {setting[name]}" for name in ("share",) if name in setting]]
    if setting["teacher"]:
        changed.append(f"the teacher {setting['teacher']}")
    if "teacher_form" in setting:
        changed += [f"a teacher of form {setting['teacher_form']}", *setting["teacher_set"]]
        changed += ["cross-fitted"] if setting.get("cross_fitted") else []
    student = setting.get("student")
    form = f"student of {setting['width']} times the channels" if student is None else f"student {student}"
    return {
        "what": f"{what}, {'ResNet-8' if student is None else 'a pick'} on {setting.get('data', CIFAR10)}",
        "goal": wanted,
        "value": f"{found['mean']:+.1f}{within}",
        "met": met,
        "note": f"{form}, {images} training images, "
        f"{setting['epochs']} epochs alone, {len(found['runs'])} seeds" + "".join(f", {x}" for x in changed),
    }


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--way", choices=[way for way in PARTS if way != "given"], default="first")
    parser.add_argument("--share", type=float, default=1.0, help="epochs of finalists over the student's")
    parser.add_argument("--count-answers", action="store_true", help="as time of the student")
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--student", type=Path, help="an architecture in place of a ResNet-8")
    parser.add_argument("--larger", type=float, default=2.0, help="width of the teacher over the student's")
    parser.add_argument("--teacher-form", choices=("resnet", "pooled"), default="resnet")
    parser.add_argument("--teacher-share", type=float, default=0.5, help="of the time, for that teacher")
    parser.add_argument("--teacher-set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument(
        "--cross-fitted", action="store_true", help="two teachers, each for the half it has not seen"
    )
    parser.add_argument("--seeds", type=int, choices=range(1, 6), default=3)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--part", choices=("alone", "taught"), help="train only that, on another core")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    arguments = parser.parse_args()
    arguments.way = "given" if arguments.teacher else arguments.way
    return arguments


def setting_of(arguments: argparse.Namespace, data: str) -> dict[str, Any]:
    """What tells one comparison from another, but for its seed."""
    setting = {"images": arguments.images, "epochs": arguments.epochs, "width": arguments.width}
    setting |= {"teacher": arguments.teacher.name if arguments.teacher else None, "set": arguments.set}
    if data != CIFAR10:
        setting |= {"data": data}
    if arguments.student is not None:
        setting |= {"student": read_best(arguments.student).architecture.key}
    if arguments.count_answers:
        setting |= {"count_answers": True}
    if arguments.way == "first":
        told = ("larger", "teacher_form", "teacher_share", "teacher_set", "cross_fitted")
        setting |= {name: getattr(arguments, name) for name in told}
    if arguments.way not in ("given", "first"):
        setting |= {"way": arguments.way}
    if arguments.way == "finalists":
        setting |= {"share": arguments.share}
    return setting


def main() -> None:
    """Measure and record."""
    arguments = parse()
    torch.set_num_threads(1)
    bench, log = Bench(arguments), arguments.work / "runs.jsonl"
    setting = setting_of(arguments, bench.dataset.name)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        if arguments.part:
            print(bench.compared(seed))
        elif not runs_like(log, {**setting, "seed": seed}):
            files.append_jsonl(log, {**bench.compared(seed), **setting})
    if arguments.part:
        return
    path = RESULTS / "distillation.json"
    held = files.read_json(path, what="result")["results"] if path.exists() else {}
    part = ": ".join([arguments.way, *arguments.set])
    part += f": share {arguments.share}" if arguments.way == "finalists" else ""
    if arguments.teacher:
        part += f": {arguments.teacher.name}"
    if arguments.student or (arguments.way == "first" and arguments.teacher_form == "pooled"):
        form = "" if arguments.teacher else f" {arguments.teacher_form},"
        part += f":{form} {setting.get('student', 'ResNet-8')}, {arguments.epochs} epochs"
    part += ", its answers counted" if arguments.count_answers else ""
    part += ": cross-fitted" if arguments.cross_fitted else ""
    held[part] = summary(runs_like(log, setting), setting)
    record("distillation", held, [goal_of(name, held[name]) for name in held])


if __name__ == "__main__":
    main()
