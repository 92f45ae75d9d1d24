"""Picks of short searches and hand-made networks after a longer training.

    python -m benchmarks.picks_trained --network resnet20 --searches error=DIR,loss=DIR2 [--seeds 0,1]
        [--hand-made 0] [--recipe standard] [--data cifar10:PATH] --folder DIR [--results NAME]

The folders are those of benchmarks/search_vs_handmade.py; ``--network`` is the limit as it is called there
("resnet20", "half of resnet8"), and the hand-made network of that name is trained with the seeds of
``--hand-made``. Everything is trained from scratch by one recipe and judged on the test images once. What is
done is kept in DIR, and the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from benchmarks.record import record
from benchmarks.search_vs_handmade import HAND_MADE, hand_made
from smash_base import files
from smash_export.device_search.search import load_data
from smash_search.data import Dataset
from smash_search.rank.finalists import input_spec_of
from smash_search.space.architecture import Architecture
from smash_search.space.cost import cost_of
from smash_search.train.network import accuracy, fit, new_network
from smash_search.train.recipes import NAMES, recipe_for


def main() -> None:
    """Train what is missing, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", required=True, help="whose latency is the limit")
    parser.add_argument("--searches", required=True, help="name=folder, with commas between")
    parser.add_argument("--seeds", default="0", help="of the searches, with commas between")
    parser.add_argument("--hand-made", default="0", help="seeds of the hand-made network; none if empty")
    parser.add_argument("--recipe", default="standard", choices=NAMES)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--results", default="picks_trained", help="name of the file of results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(arguments.data)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = [*hand_made_rows(data, arguments), *pick_rows(data, arguments)]
    settings = {"network": arguments.network, "recipe": arguments.recipe, "data": data.name}
    record(arguments.results, {"settings": settings, "rows": rows}, goals(rows, arguments))


def hand_made_rows(data: Dataset, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The hand-made network by each of its seeds, with the initial weights that it has in the comparison."""
    for seed in map(int, filter(None, arguments.hand_made.split(","))):
        network = hand_made(arguments.network, input_spec_of(data), len(data.classes), seed)
        made = trained(network, arguments.network, data, seed, arguments)
        yield {"what": HAND_MADE, "seed": seed, **made}


def pick_rows(data: Dataset, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The picks of all searches, seed by seed."""
    spec, classes = input_spec_of(data), len(data.classes)
    searches = dict(word.split("=", 1) for word in arguments.searches.split(","))
    for seed, (name, folder) in itertools.product(map(int, arguments.seeds.split(",")), searches.items()):
        entries = files.read_jsonl(Path(folder) / "done.jsonl")
        done = {tuple(entry["key"]): entry["value"] for entry in entries}
        pick = done["search", seed, arguments.network]
        architecture = Architecture.from_json(pick["architecture"])
        cost = cost_of(architecture, spec, classes)
        network = new_network(architecture, spec, classes, seed)
        yield {
            "what": f"pick by {name}",
            "seed": seed,
            "key": architecture.key,
            "origin": pick["origin"],
            "latency_ms": pick["latency_ms"],
            "limit_ms": latency_limit(done, arguments.network),
            "macs": cost.macs,
            "parameters": cost.parameters,
            "after_the_search": done.get(("pick", pick["key"], seed)),
            **trained(network, architecture.key, data, seed, arguments),
        }


def latency_limit(done: dict[tuple[Any, ...], Any], name: str) -> float:
    """Milliseconds of the limit that has this name."""
    whose = name.removeprefix("half of ")
    return float(done["latency", whose]) / (1 if whose == name else 2)


def trained(
    network: nn.Module, name: str, data: Dataset, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Test error by the recipe and its processor seconds; trains unless it is done already."""
    file = arguments.folder / f"{name}-{arguments.recipe}-{seed}.json"
    if not file.exists():
        recipe = recipe_for(arguments.recipe, data, seed)
        begin = time.process_time()
        fit(network, data, recipe, evaluate=False)
        seconds = time.process_time() - begin
        error = 1 - accuracy(network, data.test, data.preprocessing)
        files.write_json(file, {"test_error": error, "epochs": recipe.epochs, "cpu_seconds": round(seconds)})
        print(name, seed, file.read_text(), flush=True)
    return dict(files.read_json(file))


def goals(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One line for each search, against the hand-made network."""
    errors: dict[str, list[float]] = {}
    for row in rows:
        errors.setdefault(row["what"], []).append(row["test_error"])
    by_hand = errors.pop(HAND_MADE, [])
    each = ", ".join(f"{value:.2%}" for value in by_hand)
    return [
        {
            "what": f"test error, {name} at the latency of {arguments.network}, recipe {arguments.recipe}",
            "goal": f"lower than the hand-made network's ({each})" if by_hand else "none",
            "value": f"{np.mean(values):.2%} ({', '.join(f'{value:.2%}' for value in values)})",
            "met": max(values) < min(by_hand) if by_hand else None,
            "note": f"{len(values)} searches, {rows[0]['epochs']} epochs",
        }
        for name, values in errors.items()
    ]


if __name__ == "__main__":
    main()
