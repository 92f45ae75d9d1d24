"""Draws of the default space at the latency of MLPerf Tiny's ResNet-8 against ResNet-8 itself, each trained
equally short: what the space and its prior are worth before any search.

    python -m benchmarks.draws_vs_handmade --data cifar10:DIR [--networks 10] [--seeds 3] [--draws 0]
        [--folder DIR] [--results NAME]

ResNet-8 is the plain PyTorch one of benchmarks/networks.py. The limit is its measured latency (ONNX Runtime
fp32, 1 thread, batch 1). A draw counts when a search within that limit would propose it, and when it uses 85
to 100 % of the limit by the same measurement. Every network
is trained by the recipe of the data, shortened, and judged on validation images; test images are not looked
at. Results are kept in ``--folder`` as they come, and a repeated command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import ttest_ind
from torch import nn

from benchmarks.networks import NETWORKS
from benchmarks.record import record
from benchmarks.search_vs_handmade import onnx_of, survey_for
from benchmarks.training_recipes import subset
from smash_base import files
from smash_export.device_search.latency import DeviceLatency, Setting, measure_graph
from smash_search.data import Dataset, load_dataset
from smash_search.rank.finalists import input_spec_of
from smash_search.rank.pareto import Limit
from smash_search.space.architecture import Architecture
from smash_search.space.cost import cost_of
from smash_search.space.space import space_for
from smash_search.stages.aims import aims_for
from smash_search.train.compute import seed_of
from smash_search.train.network import fit, new_network
from smash_search.train.recipes import recipe_for

SETTING = Setting("onnxruntime", "fp32", batch=1, threads=1)
LEAST_SHARE = 0.85  # of the limit
GOAL = -0.015


class Bench:
    """One comparison and what is done of it."""

    def __init__(self, data: Dataset, folder: Path, epochs: int, draws: int) -> None:
        self.data, self.epochs, self.seed = data, epochs, draws
        self.spec, self.classes = input_spec_of(data), len(data.classes)
        self.space = space_for(self.spec)
        self.latency = DeviceLatency(self.spec, self.classes, SETTING)
        self.path = folder / "trained.jsonl"
        self.done = {(entry["key"], entry["seed"]): entry for entry in files.read_jsonl(self.path)}

    def milliseconds(self, architecture: Architecture) -> float:
        """Median time of one image."""
        return self.latency.measure(architecture)["latency_ms"]

    def draws(self, limit: float) -> Iterator[Architecture]:
        """Networks that a search would draw, which use most of the limit and keep it, without end."""
        survey = survey_for(self.space, 0, limit, self.spec, self.classes)
        _, model = survey.measured(self.milliseconds, self.spec, self.classes)
        assert model is not None  # the space has more than eight networks
        aims = aims_for(model, [Limit("resnet8", limit)], self.space, self.seed)
        for slot in itertools.count():
            drawn = self.space.draw(seed_of(self.seed, 0xD4A), slot)
            if aims.near(drawn) and LEAST_SHARE * limit <= self.milliseconds(drawn) <= limit:
                yield drawn

    def known(self) -> nn.Module:
        """ResNet-8 with random weights."""
        return NETWORKS["resnet8"](self.spec.channels, self.classes)

    def known_milliseconds(self) -> float:
        """Median time of one image in ResNet-8."""
        graph = onnx_of(self.known().eval(), self.spec)
        return min(measure_graph(graph, self.spec, self.classes, SETTING, 0.2).p50_ms for _ in range(3))

    def trained_known(self, seed: int) -> dict[str, Any]:
        """ResNet-8 after the short recipe."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, 0xD4A))
            return self.trained(self.known(), "resnet8", seed, {})

    def trained_draw(self, architecture: Architecture) -> dict[str, Any]:
        """A draw after the short recipe."""
        facts = {
            "milliseconds": self.milliseconds(architecture),
            "macs": cost_of(architecture, self.spec, self.classes).macs,
            "architecture": architecture.to_json(),
        }
        network = new_network(architecture, self.spec, self.classes, seed_of(0, 0xD4A))
        return self.trained(network, architecture.key, 0, facts)

    def trained(self, network: nn.Module, key: str, seed: int, facts: dict[str, Any]) -> dict[str, Any]:
        """Validation error after the short recipe, with facts of the network."""
        if (key, seed) not in self.done:
            begin = time.process_time()
            recipe = replace(recipe_for("quick", self.data, seed), epochs=self.epochs)
            entry = {
                "key": key,
                "seed": seed,
                "error": 1 - fit(network, self.data, recipe, evaluate=False).accuracy,
                "cpu_seconds": round(time.process_time() - begin, 1),
                **facts,
            }
            files.append_jsonl(self.path, entry)
            self.done[key, seed] = entry
            print({name: value for name, value in entry.items() if name != "architecture"}, flush=True)
        return self.done[key, seed]


def main() -> None:
    """Measure, draw, train, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of ResNet-8")
    parser.add_argument("--draws", type=int, default=0, help="seed of the draws")
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=Path("runs/draws-vs-handmade"))
    parser.add_argument("--results", default="draws_vs_handmade", help="name of the file of results")
    arguments = parser.parse_args()
    with files.exclusive(arguments.folder, purpose="benchmark"):
        data = subset(load_dataset(arguments.data), arguments.images)
        bench = Bench(data, arguments.folder, arguments.epochs, arguments.draws)
        limit = bench.known_milliseconds()
        base = [bench.trained_known(seed) for seed in range(arguments.seeds)]
        drawn = [
            bench.trained_draw(architecture)
            for architecture in itertools.islice(bench.draws(limit), arguments.networks)
        ]
    errors, known_errors = ([entry["error"] for entry in entries] for entries in (drawn, base))
    difference = float(np.mean(errors) - np.mean(known_errors))
    interval = ttest_ind(errors, known_errors, equal_var=False).confidence_interval()
    settings = {
        "images": arguments.images,
        "epochs": arguments.epochs,
        "data": data.name,
        "draws": arguments.draws,
    }
    goal = {
        "what": "error of default draws at ResNet-8's latency minus that of ResNet-8, equal short training",
        "goal": f"<= {100 * GOAL:g} points",
        "value": f"{100 * difference:+.2f} points ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})",
        "met": difference <= GOAL,
        "note": f"{len(errors)} draws {100 * np.mean(errors):.1f} % ({100 * min(errors):.1f} to "
        f"{100 * max(errors):.1f}), ResNet-8 {100 * np.mean(known_errors):.1f} % over {len(base)} seeds; "
        f"{arguments.epochs} epochs of {arguments.images} images of {data.name}, validation images",
    }
    record(
        arguments.results,
        {"settings": settings, "limit_ms": limit, "draws": drawn, "resnet8": base},
        [goal],
    )


if __name__ == "__main__":
    main()
