"""Picks of a search at latency limits against presets, random search and hand-made networks, at equal
total time.

    python -m benchmarks.search_vs_handmade --folder DIR [--data cifar10:PATH] [--seeds 0,1,2]
        [--recipe standard] [--epochs N] [--arms search,presets,random,macs,race,hand-made]
        [--size edge] [--networks NAME,..] [--half NAME] [--train-images N] [--candidates N] [--steps N]
        [--results NAME]

1. Each hand-made network of benchmarks/networks.py is exported and timed (ONNX Runtime fp32, 1 thread,
   batch 1) through the same session and measurement as candidates: its median time, the least of three, is a
   latency limit. So is half of that of ``--half``.
2. Per seed and limit, five arms with the same prior, the same rungs and the same validation images:
   "search" (the default search), "presets" (known networks alone), "random" (draws and presets), "macs"
   (the draws with most multiply-accumulates within the limit, and presets) and "race" (the search without a
   trained HyperNet, whose seconds go into further proposals). Random draws are near the limit, as those of
   the search are. "presets", "random" and "macs" look for as many networks within the limit, and train them,
   as fit into the processor seconds of the search, the training of its HyperNet included. Each arm picks as
   the search does: the best that keeps the limit when it is measured longer, before the last rung.
3. Hand-made networks and the picks of all arms are trained from scratch with one recipe
   (:mod:`smash_search.train.recipes`) and judged on the test images, which nothing else looks at.
4. Picks are timed again in a new process, in turns with the hand-made network whose latency is the limit.

Everything goes into DIR as it is done; the same command goes on. A search or an arm that was interrupted
begins anew: its processor seconds are what the others are given. The same DIR and folder of data give the
same result; nothing else should run meanwhile, because latency is measured.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from benchmarks.intervals import interval
from benchmarks.networks import NETWORKS
from benchmarks.record import record
from smash_base import files
from smash_export.device_search.latency import DeviceLatency, Setting, candidate_graph, measure_graph
from smash_export.device_search.search import SPACE_DEFAULTS, configure, load_data, search
from smash_export.measure.timing import interleaved, ratio
from smash_export.progress import Output
from smash_search.data import Dataset, Split
from smash_search.executors import ExecutorConfig
from smash_search.executors.serial import Serial
from smash_search.rank.evaluation import REFERENCE, Evaluator
from smash_search.rank.finalists import Finalist, FinalistsConfig, Rung, input_spec_of, run_rungs, train_rung
from smash_search.rank.measurement import LATENCY, undisturbed
from smash_search.rank.pareto import Limit, pick_that_keeps
from smash_search.rank.trained import Trained
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import read_best
from smash_search.space.cost import Cost, cost_of
from smash_search.space.known import known_networks
from smash_search.space.space import Space
from smash_search.stages.aims import aims_for, busiest_within
from smash_search.stages.config import SearchConfig
from smash_search.stages.survey import Survey
from smash_search.train.compute import seed_of
from smash_search.train.network import accuracy, fit, new_network
from smash_search.train.recipes import NAMES, recipe_for
from smash_targets.base import ModelSignature, get_target
from smash_targets.common import open_graph

SETTING = Setting("onnxruntime", "fp32", batch=1, threads=1)
HAND_MADE = "hand-made"  # the network whose latency is the limit, among the arms
HALF = "half of "
GOAL_LIMITS = 3  # of four, at which the pick has to be better
GOAL_MEAN = 0.01  # of the difference from the best preset
GOAL_USED = 0.85  # of the limit, by each pick
GOAL = f"above 0 at {GOAL_LIMITS} of 4 limits in every seed, interval above 0"
GOALS = {
    "presets": f"{GOAL}, mean >= {100 * GOAL_MEAN:.0f} point",
    "random": f"above 0 at {GOAL_LIMITS} of 4 limits, pooled interval above 0",
}
ARMS = ("search", "presets", "random", "macs", "race", HAND_MADE)
GLANCE = 32  # validation images for a score that says nothing
MOST_ENTRANTS = 400
MACS_DRAWS = 2000  # looked at for those with most multiply-accumulates


def main() -> None:
    """Measure, search, train, measure again, record."""
    arguments = parse()
    if arguments.measure_again is not None:
        print(json.dumps(time_over(arguments.measure_again, arguments.networks)))
        return
    folder = Path(arguments.folder)
    with files.exclusive(folder, purpose="benchmark"):
        bench = Bench(arguments, folder)
        limits = bench.limits()
        rows = [bench.compared(seed, name, limit) for seed in bench.seeds for name, limit in limits.items()]
        bench.report(limits, rows)


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", default="runs/search-vs-handmade")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipe", default="standard", choices=NAMES, help="of the last training")
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--arms", default=",".join(ARMS), help="which to compare; the search comes first")
    parser.add_argument("--size", default="edge", choices=list(SPACE_DEFAULTS))
    parser.add_argument("--networks", default="resnet8,mobilenetv2-0.35,resnet20")
    parser.add_argument("--half", default="resnet8", help="a network half of whose latency is a limit, too")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--finalists", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rungs", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--epoch-images", type=int)
    parser.add_argument("--results", default="search_vs_handmade", help="name of the file of results")
    parser.add_argument("--measure-again", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.arms.split(",")) - set(ARMS):
        parser.error(f"--arms: expected some of {', '.join(ARMS)}; received {', '.join(sorted(unknown))}")
    return arguments


class Bench:
    """One comparison: its settings, its data, and what is done already.

    Args:
        arguments: of the command line.
        folder: of results.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.seeds = [int(word) for word in arguments.seeds.split(",")]
        asked = arguments.arms.split(",")
        self.arms, self.by_hand = [arm for arm in ARMS[1:-1] if arm in asked], HAND_MADE in asked
        self.data = cut(load_data(arguments.data), arguments.train_images)
        self.spec, self.classes = input_spec_of(self.data), len(self.data.classes)
        self.done = {tuple(entry["key"]): entry["value"] for entry in files.read_jsonl(folder / "done.jsonl")}

    def once(self, key: tuple[Any, ...], make: Any) -> Any:
        """What was made under this key, or make and keep it."""
        if key not in self.done:
            self.done[key] = make()
            files.append_jsonl(self.folder / "done.jsonl", {"key": list(key), "value": self.done[key]})
            print(key, self.done[key], flush=True)
        return self.done[key]

    def hand_made(self, name: str, seed: int = 0) -> nn.Module:
        """See :func:`hand_made`."""
        return hand_made(name, self.spec, self.classes, seed)

    def limits(self) -> dict[str, float]:
        """Measured latency of each hand-made network in milliseconds, and half of one of them."""
        names, half = [name for name in self.arguments.networks.split(",") if name], self.arguments.half

        def measured(name: str) -> float:
            return float(self.once(("latency", name), lambda: self.latency(name)))

        found = {name: measured(name) for name in names}
        return {**found, HALF + half: measured(half) / 2} if half else found

    def latency(self, name: str) -> float:
        """Milliseconds of a hand-made network, the least median of three measurements, through the target's
        session.
        """
        graph = onnx_of(self.hand_made(name).eval(), self.spec)
        return min(measure_graph(graph, self.spec, self.classes, SETTING, 1.0).p50_ms for _ in range(3))

    def compared(self, seed: int, name: str, limit: float) -> dict[str, Any]:
        """One row: the picks of all arms within one limit, and the hand-made network whose latency it is."""
        label = f"{limit:.4g}ms"
        found = self.once(("search", seed, name), lambda: self.search(seed, label, limit))
        row: dict[str, Any] = {"network": name, "seed": seed, "limit_ms": limit, "arms": {"search": found}}
        for arm in self.arms:
            row["arms"][arm] = self.once(
                (arm, seed, name),
                lambda arm=arm: (
                    self.race(seed, label, limit, found)
                    if arm == "race"
                    else self.arm(arm, seed, label, limit, found["seconds"])
                ),
            )
        for arm in row["arms"].values():
            architecture = Architecture.from_json(arm["architecture"])
            arm["test_error"] = self.once(
                ("pick", architecture.key, seed),
                lambda a=architecture: self.train(new_network(a, self.spec, self.classes, seed), seed),
            )
        run = self.folder / f"{label}-{seed}"
        counted = files.read_json(run / "config.json")["identity"]["candidates"]
        row["candidates"] = {"counted": counted, "refused": files.read_json(run / "ranking.json")["refused"]}
        hand_made, share = (name, 1.0) if name in NETWORKS else (name.removeprefix(HALF), 0.5)
        again = self.once(("time over", name, found["key"]), lambda: measure_again(run, hand_made) / share)
        if self.by_hand and name in NETWORKS:  # half of a latency is nobody's
            row["hand_made_error"] = self.once(
                ("hand-made", name, seed), lambda: self.train(self.hand_made(name, seed), seed)
            )
        return {**row, "time_over_limit": again}

    def _config(self, seed: int, label: str, limit: float, latency: DeviceLatency) -> SearchConfig:
        arguments = self.arguments
        return configure(
            self.data,
            space=arguments.size,
            seed=seed,
            candidates=arguments.candidates,
            training={"steps": arguments.steps},
            finalists={
                "count": arguments.finalists,
                "rounds": arguments.rounds,
                "rungs": arguments.rungs,
                "epoch_images": arguments.epoch_images,
                "baseline": "none",
            },
            measured=latency.describe(),
            latency_limits={label: limit},
        )

    def search(self, seed: int, label: str, limit: float) -> dict[str, Any]:
        """The search of a seed within one limit, and the processor seconds that it took."""
        latency = DeviceLatency(self.spec, self.classes, SETTING, limit_ms=limit)
        config = self._config(seed, label, limit, latency)
        return self._searched(config, latency, self.folder / f"{label}-{seed}")

    def race(self, seed: int, label: str, limit: float, found: dict[str, Any]) -> dict[str, Any]:
        """The search with a HyperNet of one step and as many more proposals as fit into its seconds.

        Args:
            seed, label, limit: as for the search.
            found: what the search of the same seed and limit gave.
        """
        latency = DeviceLatency(self.spec, self.classes, SETTING, limit_ms=limit)
        config = self._config(seed, label, limit, latency)
        stages, finalists = found["stages"], config.finalists
        price = stages["finalists"] / finalists.epochs(finalists.entering)
        spared = (stages["hypernet"] + stages["scoring"]) / price
        config = replace(
            config,
            training=replace(config.training, steps=1),
            scoring=replace(config.scoring, images=(GLANCE,)),
            finalists=with_epochs(finalists, finalists.epochs(finalists.entering) + spared),
        )
        return self._searched(config, latency, self.folder / f"race-{label}-{seed}")

    def _searched(self, config: SearchConfig, latency: DeviceLatency, run: Path) -> dict[str, Any]:
        shutil.rmtree(run, ignore_errors=True)
        begin = time.process_time()
        result = search(self.data, run, config=config, measurement=latency, device="cpu", output=Output())
        assert result is not None  # one process
        seconds = time.process_time() - begin
        best = result.best.search
        return {
            "key": result.pick.key,
            "architecture": result.best.architecture.to_json(),
            "origin": best.origin,
            "validation_error": result.pick.error,
            "latency_ms": best.measures["latency_ms"],
            "limit_used": best.limit_used,
            "trained": len({entry.key for entry in result.trained}),
            "encoding": result.ranking.encoding and asdict(result.ranking.encoding),
            "trust": result.ranking.trust and asdict(result.ranking.trust),
            "seconds": seconds,
            "stages": result.seconds,
        }

    def arm(self, arm: str, seed: int, label: str, limit: float, seconds: float) -> dict[str, Any]:
        """A baseline that trains as many networks as fit into so many processor seconds."""
        latency = DeviceLatency(self.spec, self.classes, SETTING, limit_ms=limit)
        config = self._config(seed, label, limit, latency)
        races = replace(config.finalists, rounds=0, per_round=0, seed=seed)
        weights = self.folder / f"{arm}-{label}-{seed}"
        shutil.rmtree(weights, ignore_errors=True)
        records = weights / "finalists.jsonl"
        survey = survey_for(config.space_for(self.spec), seed, limit, self.spec, self.classes)
        assert survey.reference is not None
        evaluator = self.evaluator(weights, latency, survey.reference, self.folder / f"{label}-{seed}")
        entrants = self.entrants(arm, survey, evaluator, limit)
        begin = time.process_time()

        def work(rungs: Sequence[Rung]) -> Iterator[tuple[int, Trained]]:
            for number, (finalist, rung) in enumerate(rungs):
                yield number, train_rung(finalist, rung, self.data, races, weights=weights)

        # The first rung of those that are there tells the price of an epoch, so that the rest fits into what
        # is left. Looking for networks within the limit is paid for, as it is in the search.
        networks: list[Finalist] = []
        first_rung = replace(races, rungs=races.rungs[:1])
        training = price = 0.0
        for entrant in itertools.islice(entrants, MOST_ENTRANTS):
            looked = time.process_time() - begin - training
            if networks and looked + races.epochs(len(networks) + 1) * price > seconds:
                break
            networks.append(entrant)
            start = time.process_time()
            run_rungs(networks, first_rung, records=records, work=work)
            training += time.process_time() - start
            price = training / first_rung.epochs(len(networks))
        trained = run_rungs(
            networks,
            races,
            records=records,
            work=work,
            holds=lambda entry: undisturbed(evaluator.confirm(entry.architecture)) <= limit,
        )
        by_key = {entry.architecture.key: entry for entry in networks}
        latencies = dict.fromkeys(by_key, 0.0)  # all were within the limit in a short measurement
        winner = pick_that_keeps(
            Limit(label, limit),
            trained,
            latencies,
            lambda key: evaluator.confirm_at_last(by_key[key].architecture, limit)[LATENCY],
        )
        chosen = by_key[winner.key]
        return {
            "key": winner.key,
            "architecture": chosen.architecture.to_json(),
            "origin": chosen.reason,
            "validation_error": winner.error,
            "latency_ms": latencies[winner.key],
            "trained": len(networks),
            "seconds": time.process_time() - begin,
            "looked_seconds": looked,
            "price_of_an_epoch": price,
        }

    def evaluator(
        self, folder: Path, latency: DeviceLatency, reference: Architecture, searched: Path
    ) -> Evaluator:
        """Measures as a search did, and scores nothing: its worker is the device alone.

        Args:
            folder: where measurements are kept.
            latency: measures.
            reference: what all others are measured in turns with, as in the search. It takes what it took
                then, so that a limit is the same one though the machine has changed its speed.
            searched: Folder of the search.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for line in files.read_jsonl(searched / REFERENCE):
            files.append_jsonl(folder / REFERENCE, line)
        here = Serial(ExecutorConfig(), None, latency)  # type: ignore[arg-type]

        def cost(architecture: Architecture) -> Cost:
            return cost_of(architecture, self.spec, self.classes)

        evaluator = Evaluator(folder, GLANCE, cost, latency, here)
        evaluator.refer_to(reference)
        evaluator.refer_again()
        return evaluator

    def entrants(self, arm: str, survey: Survey, evaluator: Evaluator, limit: float) -> Iterator[Finalist]:
        """Networks within the limit, measured: presets first, then what the arm is about, in turns."""
        space, seed = survey.space, survey.seed
        draws: Iterator[Architecture] = (space.draw(seed_of(seed, 0xA43), slot) for slot in itertools.count())
        if arm == "macs":
            some = [next(draws) for _ in range(MACS_DRAWS)]
            draws = iter(sorted(some, key=lambda entry: -self.macs(entry)))

        def measured(entry: Architecture) -> float:
            evaluator.measure([entry])
            return evaluator.measures[entry.key][LATENCY]

        _, model = survey.measured(measured, self.spec, self.classes)
        assert model is not None  # the space has more than eight networks
        aims = aims_for(model, [Limit(arm, limit)], space, seed)

        def is_within(entry: Architecture) -> bool:
            return model.predict(entry) <= limit * (1 + 2 * model.error) and measured(entry) <= limit

        def is_wanted(entry: Architecture) -> bool:
            return (arm != "random" or aims.near(entry)) and is_within(entry)

        sources = [("preset", busiest_within(aims, known_networks(space), is_within))]
        if arm != "presets":
            sources.append((arm, filter(is_wanted, draws)))
        while sources:
            for origin, source in list(sources):
                network = next(source, None)
                if network is None:
                    sources.remove((origin, source))
                    continue
                yield Finalist(network, "random", origin, None, self.macs(network))

    def macs(self, architecture: Architecture) -> int:
        """Multiply-accumulates of one image."""
        return cost_of(architecture, self.spec, self.classes).macs

    def train(self, network: nn.Module, seed: int) -> float:
        """Test error after the one recipe."""
        recipe = recipe_for(self.arguments.recipe, self.data, seed)
        if self.arguments.epochs:
            recipe = replace(recipe, epochs=self.arguments.epochs)
        fit(network, self.data, recipe, evaluate=False)
        return 1 - accuracy(network, self.data.test, self.data.preprocessing)

    def report(self, limits: dict[str, float], rows: list[dict[str, Any]]) -> None:
        """Goals and file."""
        enough = len(self.seeds) >= 3 and len(limits) >= GOAL_LIMITS
        differences = {arm: differences_from(arm, rows) for arm in (*self.arms, HAND_MADE)}
        goals: list[dict[str, Any]] = [
            {
                "what": f"test error of {arm} minus that of the search's pick, {self.data.name}",
                "goal": GOALS.get(arm, GOAL),
                "value": difference_words(values),
                "met": won(arm, rows) if enough else None,
                "note": f"{len(self.seeds)} seeds, recipe {self.arguments.recipe}"
                + (f", {self.arguments.epochs} epochs" if self.arguments.epochs else ""),
            }
            for arm, values in differences.items()
            if values
        ]
        searched = [row["arms"]["search"] for row in rows]
        used = [row["arms"]["search"]["latency_ms"] / row["limit_ms"] for row in rows]
        found = [entry["origin"] != "known" for entry in searched]
        candidates, over = [row["candidates"] for row in rows], [row["time_over_limit"] for row in rows]
        goals += [
            {
                "what": "pick is not a preset",
                "goal": f"at {GOAL_LIMITS} of 4 limits in every seed",
                "value": f"{sum(found)} of {len(found)}",
                "met": in_every_seed(rows, found) if enough else None,
                "note": ", ".join(entry["origin"] for entry in searched),
            },
            {
                "what": "share of the limit that the pick uses",
                "goal": f">= {GOAL_USED}",
                "value": f"{np.mean(used):.2f}",
                "met": min(used) >= GOAL_USED,
                "note": f"latency of the search over the limit; of the fastest pick {min(used):.2f}",
            },
            {
                "what": "candidates within the limit, of those counted",
                "goal": "100 %",
                "value": f"{sum(entry['counted'] - entry['refused'] for entry in candidates)} of "
                f"{sum(entry['counted'] for entry in candidates)}",
                "met": not any(entry["refused"] for entry in candidates),
                "note": "measured before they are scored",
            },
            {
                "what": "latency of the pick over that of the hand-made network, or half of it",
                "goal": "<= 1.0",
                "value": f"{max(over):.2f}",
                "met": max(over) <= 1.0,
                "note": f"the slowest of {len(rows)}; medians in turns, in a new process",
            },
        ]
        settings = {**vars(self.arguments), "folder": None, "data": self.data.name}
        record(self.arguments.results, {"settings": settings, "limits": limits, "rows": rows}, goals)


def hand_made(name: str, spec: InputSpec, classes: int, seed: int) -> nn.Module:
    """A hand-made network whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 0x4A4D))
        return NETWORKS[name](spec.channels, classes)


def with_epochs(finalists: FinalistsConfig, epochs: float) -> FinalistsConfig:
    """As many networks as the epochs of all rungs allow: in each round, or at the start without rounds."""
    grows, larger = "per_round" if finalists.rounds else "count", finalists
    while larger.epochs(larger.entering) <= epochs:
        finalists, larger = larger, replace(larger, **{grows: getattr(larger, grows) + 1})
    return finalists


def rows_with(arm: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that have an arm; half of a latency is that of no hand-made network."""
    return [row for row in rows if ("hand_made_error" in row if arm == HAND_MADE else arm in row["arms"])]


def differences_from(arm: str, rows: list[dict[str, Any]]) -> list[float]:
    """Test error of an arm minus that of the search, of each row that has both."""
    return [
        (row["hand_made_error"] if arm == HAND_MADE else row["arms"][arm]["test_error"])
        - row["arms"]["search"]["test_error"]
        for row in rows_with(arm, rows)
    ]


def difference_words(values: list[float]) -> str:
    """Mean difference, its interval and how often it is above 0."""
    above = sum(value > 0 for value in values)
    bounds = paired_interval(values) or "(no interval)"
    return f"{np.mean(values):+.2%} {bounds}, above 0 in {above} of {len(values)}"


def won(arm: str, rows: list[dict[str, Any]]) -> bool:
    """Whether the search's picks beat an arm's as :data:`GOALS` says.

    Args:
        arm: of the comparison, or the hand-made networks.
        rows: of all seeds and limits.
    """
    rows, values = rows_with(arm, rows), differences_from(arm, rows)
    bounds = paired_interval(values)
    if bounds is None or bounds[0] <= 0:
        return False
    if arm == "random":
        by_limit: dict[str, list[float]] = {}
        for row, value in zip(rows, values, strict=True):
            by_limit.setdefault(row["network"], []).append(value)
        return sum(float(np.mean(own)) > 0 for own in by_limit.values()) >= GOAL_LIMITS
    beaten = in_every_seed(rows, [value > 0 for value in values])
    return beaten and (arm != "presets" or float(np.mean(values)) >= GOAL_MEAN)


def in_every_seed(rows: list[dict[str, Any]], held: Sequence[bool]) -> bool:
    """Whether something held at enough limits in every seed, of one truth for each row."""
    by_seed: dict[int, int] = {}
    for row, value in zip(rows, held, strict=True):
        by_seed[row["seed"]] = by_seed.get(row["seed"], 0) + value
    return min(by_seed.values()) >= GOAL_LIMITS


def paired_interval(values: list[float]) -> tuple[float, float] | None:
    """95 % interval of a mean difference (Student's t); none of a single one.

    Percentiles of resampled means are too narrow for a dozen rows: of one they are a point.
    """
    if len(values) < 2:
        return None
    _, low, high = interval(values)
    return round(low, 4), round(high, 4)


def cut(data: Dataset, images: int | None) -> Dataset:
    """The first training images only, for a comparison of minutes."""
    if images is None or images >= len(data.train):
        return data
    train = Split(data.train.images[:images], data.train.labels[:images])
    return replace(data, train=train, fingerprint=f"{data.fingerprint}-{images}")


def survey_for(space: Space, seed: int, limit: float, spec: InputSpec, classes: int) -> Survey:
    """The survey of a search with that limit and no other."""

    def cost(architecture: Architecture) -> Cost:
        return cost_of(architecture, spec, classes)

    return Survey(space, seed, [limit], cost, known_networks(space), lambda entry: True)


def onnx_of(network: nn.Module, spec: InputSpec) -> bytes:
    """The ONNX file of a plain network, with any batch."""
    stream = io.BytesIO()
    torch.onnx.export(
        network,
        (torch.zeros(1, spec.channels, *spec.size),),
        stream,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    return stream.getvalue()


def time_over(best_file: Path, name: str) -> float:
    """Median time of a search's pick over that of a hand-made network, measured in turns."""
    best = read_best(best_file)
    spec, classes, target = best.input, len(best.classes), get_target(SETTING.target)
    graphs = {
        "pick": candidate_graph(best.architecture, spec, classes),
        HAND_MADE: onnx_of(hand_made(name, spec, classes, 0).eval(), spec),
    }
    signature = ModelSignature("input", "logits", (spec.channels, *spec.size), classes, (1, 1, 1))
    image = np.random.default_rng(0).standard_normal((1, *signature.input_shape)).astype(np.float32)
    with ExitStack() as opened:
        folder = opened.enter_context(files.temporary_folder())
        sessions = {
            key: opened.enter_context(
                open_graph(target, graph, signature, "fp32", SETTING.options(), folder / key)
            )
            for key, graph in graphs.items()
        }
        times = interleaved({key: (session, image) for key, session in sessions.items()}, seconds=3.0)
    return ratio(times["pick"], times[HAND_MADE])


def measure_again(run: Path, name: str) -> float:
    """:func:`time_over` of a run's pick, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.search_vs_handmade", "--networks", name]
    command += ["--measure-again", str(run / "best.json")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1])


if __name__ == "__main__":
    main()
