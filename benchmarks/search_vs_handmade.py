"""Picks of a search at latency limits against hand-made networks, and against random search.

    python -m benchmarks.search_vs_handmade --folder DIR [--data fashion-mnist:PATH] [--seeds 0,1,2]
        [--epochs 10] [--size medium|small|tiny] [--networks NAME,..] [--train-images N] [--candidates N]

1. Each hand-made network of benchmarks/networks.py is exported and timed (ONNX Runtime fp32, 1 thread,
   batch 1) through the same session and measurement as candidates: its median is a latency limit.
2. A search per seed with all these limits gives a pick within each.
3. Hand-made networks and picks are trained from scratch with one recipe and judged on the test images.
4. Picks are timed again in a new process.

Everything goes into DIR as it is done; the same command goes on. The same DIR and folder of data give the
same result; nothing else should run meanwhile, because latency is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from benchmarks.networks import NETWORKS
from benchmarks.record import record
from smash_base import files
from smash_export.device_search.latency import DeviceLatency, Setting, measure_architecture, measure_graph
from smash_export.device_search.search import configure, load_data, search
from smash_export.progress import Output
from smash_search.data import Dataset, Split
from smash_search.rank.finalists import input_spec_of
from smash_search.run import SearchResult
from smash_search.space.architecture import read_best
from smash_search.train.compute import seed_of
from smash_search.train.network import Recipe, accuracy, fit, new_network

SETTING = Setting("onnxruntime", "fp32", batch=1, threads=1)
GOAL_LIMITS = 3  # at least so many limits at which the pick must be better


def main() -> None:
    """Measure, search, train, measure again, record."""
    arguments = parse()
    if arguments.measure_again is not None:
        best = read_best(arguments.measure_again)
        latency = measure_architecture(best.architecture, best.input, len(best.classes), SETTING, 1.0)
        print(json.dumps({"p50_ms": latency.p50_ms}))
        return
    folder = Path(arguments.folder)
    with files.exclusive(folder, purpose="benchmark"):
        bench = Bench(arguments, folder)
        limits = bench.limits()
        rows = []
        for seed in bench.seeds:
            result = bench.search(seed, limits)
            rows += bench.compare(seed, limits, result)
        bench.report(limits, rows)


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", default="runs/search-vs-handmade")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", default="medium", choices=["tiny", "small", "medium"])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--finalists", type=int)
    parser.add_argument("--baseline", default="total", choices=["finalists", "total"])
    parser.add_argument("--measure-again", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


class Bench:
    """One comparison: its settings, its data, and what is done already.

    Args:
        arguments: of the command line.
        folder: of results.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.seeds = [int(word) for word in arguments.seeds.split(",")]
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
        """A network whose weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, 0x4A4D))
            return NETWORKS[name](self.spec.channels, self.classes)

    def limits(self) -> dict[str, float]:
        """Measured latency of each hand-made network in milliseconds."""
        names = self.arguments.networks.split(",")
        return {name: self.once(("latency", name), lambda name=name: self.latency(name)) for name in names}

    def latency(self, name: str) -> float:
        """Milliseconds of a hand-made network, the median of three medians, through the target's session."""
        network = self.hand_made(name).eval()
        example = torch.zeros(1, self.spec.channels, *self.spec.size)
        path = self.folder / "hand-made.onnx"
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
        graph = path.read_bytes()
        measured = [measure_graph(graph, self.spec, self.classes, SETTING, 1.0).p50_ms for _ in range(3)]
        return statistics.median(measured)

    def search(self, seed: int, limits: dict[str, float]) -> SearchResult:
        """The search of a seed with every limit at once."""
        arguments = self.arguments
        milliseconds = {f"{value:.4g}ms": value for value in limits.values()}  # one label, one limit
        latency = DeviceLatency(self.spec, self.classes, SETTING, limit_ms=max(milliseconds.values()))
        config = configure(
            self.data,
            space=arguments.size,
            seed=seed,
            candidates=arguments.candidates,
            training={"steps": arguments.steps},
            finalists={"count": arguments.finalists, "baseline": arguments.baseline},
            measured=latency.describe(),
            latency_limits=milliseconds,
        )
        run = self.folder / f"seed-{seed}"
        result = search(self.data, run, config=config, measurement=latency, device="cpu", output=Output())
        assert result is not None  # one process
        return result

    def compare(self, seed: int, limits: dict[str, float], result: SearchResult) -> list[dict[str, Any]]:
        """One row per hand-made network: both errors, both latencies."""
        rows = []
        for name, limit in limits.items():
            label = f"{limit:.4g}ms"
            row: dict[str, Any] = {"network": name, "seed": seed, "limit_ms": limit, "pick": None}
            hand = self.once(
                ("hand-made", name, seed), lambda n=name: self.train(self.hand_made(n, seed), seed)
            )
            row["hand_made_error"] = hand
            pick = result.picks.get(label, result.best if len(result.picks) == 0 else None)
            if pick is not None:
                path = result.folder / (f"best-{label}.json" if label in result.picks else "best.json")
                key = pick.architecture.key
                row |= {"pick": key, "measured_ms": pick.search["measures"]["latency_ms"]}
                row["pick_error"] = self.once(
                    ("pick", key, seed),
                    lambda p=pick: self.train(
                        new_network(p.architecture, self.spec, self.classes, seed), seed
                    ),
                )
                row["again_ms"] = self.once(("again", key), lambda p=path: measure_again(p))
            row["search_error"] = result.pick.error
            row["random_search_error"] = None if result.random is None else result.random.error
            rows.append(row)
        return rows

    def train(self, network: nn.Module, seed: int) -> float:
        """Test error after the one recipe."""
        recipe = Recipe(epochs=self.arguments.epochs, seed=seed)
        fit(network, self.data, recipe)
        return 1 - accuracy(network, self.data.test, self.data.preprocessing)

    def report(self, limits: dict[str, float], rows: list[dict[str, Any]]) -> None:
        """Means over seeds, goals, file."""
        table, better = {}, 0
        for name, limit in limits.items():
            mine = [row for row in rows if row["network"] == name and row["pick"] is not None]
            hand = [row["hand_made_error"] for row in rows if row["network"] == name]
            errors = [row["pick_error"] for row in mine]
            table[name] = {
                "limit_ms": limit,
                "hand_made": spread(hand),
                "pick": spread(errors),
                "picks": len(mine),
            }
            better += bool(len(errors) == len(hand) and np.mean(errors) < np.mean(hand))
        by_seed = {row["seed"]: (row["search_error"], row["random_search_error"]) for row in rows}
        won = [mine < other for mine, other in by_seed.values() if other is not None]
        again = [row["again_ms"] <= row["limit_ms"] for row in rows if row["pick"] is not None]
        enough = len(self.seeds) >= 3
        record(
            "search_vs_handmade",
            {"settings": vars(self.arguments), "networks": table, "rows": rows},
            [
                {
                    "what": "error of the pick at the latency of a hand-made network, same recipe and epochs",
                    "goal": f"lower error than each at >= {GOAL_LIMITS} limits",
                    "value": f"lower at {better} of {len(limits)} limits (mean over seeds)",
                    "met": bool(better == len(limits) >= GOAL_LIMITS) if enough else None,
                    "note": f"{len(self.seeds)} seeds, {self.arguments.epochs} epochs, {self.data.spec}",
                },
                {
                    "what": f"against random search ({self.arguments.baseline}), validation error",
                    "goal": "lower error in every seed",
                    "value": f"lower in {sum(won)} of {len(won)}",
                    "met": all(won) if enough and won else None,
                    "note": "regret: "
                    + ", ".join(f"{a - b:+.4f}" for a, b in by_seed.values() if b is not None),
                },
                {
                    "what": "latency of the pick, measured again in a new process",
                    "goal": "within the limit",
                    "value": f"{sum(again)} of {len(again)}",
                    "met": all(again) if again else None,
                    "note": "medians; limits are the hand-made networks' own latencies",
                },
            ],
        )


def cut(data: Dataset, images: int | None) -> Dataset:
    """The first training images only, for a comparison of minutes."""
    if images is None or images >= len(data.train):
        return data
    train = Split(data.train.images[:images], data.train.labels[:images])
    return replace(data, train=train, fingerprint=f"{data.fingerprint}-{images}")


def spread(values: list[float]) -> dict[str, float] | None:
    """Mean and standard deviation over seeds."""
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "deviation": deviation, "seeds": len(values)}


def measure_again(best: Path) -> float:
    """Median milliseconds of a pick, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.search_vs_handmade", "--measure-again", str(best)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1])["p50_ms"])


if __name__ == "__main__":
    main()
