"""Whether the generated filters are used: error with all of them set to zero, minus the error with the
right ones.

    python -m benchmarks.op_contribution [--data cifar10:PATH] [--steps 1500] [--networks 16] [--images 1000]
        [--folder DIR] [--only WORDS] [--results NAME]

One HyperNet per way of training it, all on draws of the edge space within one band of multiply-accumulates,
in which every op has a generated filter; then the errors of the same networks with the right filters, with
zeros, with filters generated from the description of another of them, and from their own with its columns in
another order.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.record import record
from smash_base import files
from smash_export.device_search.search import load_data
from smash_search.data import Dataset
from smash_search.experiments.encoding import described_as
from smash_search.model.hypernet import HyperNetConfig
from smash_search.rank.finalists import input_spec_of
from smash_search.rank.scoring import Scorer, ScoringConfig, corrupted
from smash_search.rank.statistics import paired
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.prior import REGULAR
from smash_search.space.space import Space, space_for
from smash_search.train.compute import seed_of
from smash_search.train.hypernet import ATTEMPTS, TrainingConfig, new_supernet, train

BAND = (5e6, 15e6)  # multiply-accumulates
GENERATED = replace(REGULAR, forms=(("reduced", 0.5), ("projected", 0.45), ("pointwise", 0.05)))
GOAL, SURE = 0.10, 0.01
LOOKED_AT = 64  # for the smallest and the largest; one in four is within the band


@dataclass(frozen=True)
class Way:
    """One way to train a HyperNet."""

    name: str
    hypernet: HyperNetConfig
    learning_rate: float = 0.03
    hypernet_rate: float = 0.07
    optimiser: Literal["adam", "sgd"] = "adam"
    architectures: int = 1  # a step, in so many times fewer steps
    sandwich: bool = False  # one small, one large and the rest as they come

    def to_json(self) -> dict[str, Any]:
        """What it is, for a row of results."""
        values = asdict(self)
        return {"way": values.pop("name"), **values}

    def training(self, steps: int, seed: int = 0) -> TrainingConfig:
        """Its training, in which as many architectures are seen as in so many steps of one each."""
        return TrainingConfig(
            steps // self.architectures,
            64,
            self.architectures,
            optimiser=self.optimiser,
            learning_rate=self.learning_rate,
            hypernet_rate=self.hypernet_rate,
            seed=seed,
        )


SMALL = HyperNetConfig(depths=(4, 5, 2))
OURS = replace(SMALL, norm="sandwich", sharing="position", centred=True)
DEFAULT = replace(SMALL, centred=True, whiten=True)
TILES = Way("whitened stem, norms at the end of blocks, filters by block, centred c (the default)", DEFAULT)
FULL_RANK = Way("the default, c mixes 8 filters of full rank a block", replace(DEFAULT, bases=8))
WAYS = (
    Way("norms inside ops, filters by position, centred c", OURS),
    Way("filters by position, centred c, norms at the end of blocks", replace(OURS, norm="none")),
    Way("norms inside ops, filters by block, centred c", replace(OURS, sharing="block")),
    TILES,
    Way(
        "whitened stem, norms inside ops, filters by block, centred c",
        replace(OURS, sharing="block", whiten=True),
    ),
    Way(
        "whitened stem, norms at the end of blocks, filters by position, centred c",
        replace(OURS, norm="none", whiten=True),
    ),
    Way(
        "whitened stem, norms at the end of blocks, filters by block, centred c; rows of unit norm",
        replace(DEFAULT, gain="rows"),
    ),
    FULL_RANK,
    Way(
        "the default, c mixes 8 filters of full rank a block; rows of unit norm",
        replace(DEFAULT, bases=8, gain="rows"),
    ),
    Way("the default, c mixes 2 filters of full rank an op", replace(DEFAULT, bases=2, sharing="position")),
    Way("the default, 4 architectures a step", DEFAULT, architectures=4),
    Way("the default, 4 architectures a step by the sandwich rule", DEFAULT, architectures=4, sandwich=True),
    Way("as the paper: norms at the end of blocks, filters by block, plain c", SMALL),
    Way("norms inside ops, filters by position, centred c; SGD for what is shared", OURS, 0.1, 0.01, "sgd"),
    Way(
        "norms inside ops, filters by position, centred c; HyperNet at a third of its rate",
        OURS,
        hypernet_rate=0.023,
    ),
    Way(
        "norms inside ops, filters by position, centred c; all at a third of the rate",
        OURS,
        learning_rate=0.01,
    ),
)


def main() -> None:
    """Train, judge, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("runs/op-contribution"), help="of results")
    parser.add_argument("--only", help="ways whose name holds this")
    parser.add_argument("--results", default="op_contribution", help="name of the file of results")
    arguments = parser.parse_args()
    dataset = load_data(arguments.data)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    done = {row["way"]: row for row in files.read_jsonl(arguments.folder / "done.jsonl")}
    for way in WAYS:
        if way.name not in done and (arguments.only is None or arguments.only in way.name):
            done[way.name] = judged(way, dataset, arguments)
            files.append_jsonl(arguments.folder / "done.jsonl", done[way.name])
    rows = list(done.values())
    best = max(rows, key=lambda row: row["op_contribution"])
    surest = min(rows, key=lambda row: row["another_c_p"])
    goals = [
        {
            "what": f"op contribution after {arguments.steps} steps, {dataset.name}",
            "goal": f">= {GOAL:.0%}",
            "value": f"{float(str(best['op_contribution'])):.1%}",
            "met": best["op_contribution"] >= GOAL,
            "note": f"best of {len(rows)} ways: {best['way']}",
        },
        {
            "what": "cost of the description of another architecture, paired test",
            "goal": f"above 0, p < {SURE}",
            "value": f"p = {surest['another_c_p']:.2g} ({100 * surest['another_c']:+.2f} points)",
            "met": surest["another_c"] > 0 and surest["another_c_p"] < SURE,
            "note": f"least p of {len(rows)} ways: {surest['way']}",
        },
    ]
    record(
        arguments.results,
        {
            "settings": {
                "steps": arguments.steps,
                "networks": arguments.networks,
                "images": arguments.images,
                "data": dataset.name,
            },
            "ways": rows,
        },
        goals,
    )


def judged(way: Way, dataset: Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Errors of networks that no training saw, under one HyperNet."""
    spec, classes = input_spec_of(dataset), len(dataset.classes)
    space = space_for(spec, "edge", GENERATED)

    def accept(architecture: Architecture) -> bool:
        return BAND[0] <= cost_of(architecture, spec, classes).macs <= BAND[1]

    supernet = new_supernet(space, spec, classes, way.hypernet, seed=0)
    if way.sandwich:
        supernet.space = cast(Space, Sandwiched(space, spec, classes, accept))
    begin = time.process_time()
    result = train(supernet, dataset, way.training(arguments.steps), accept=accept)
    seconds = time.process_time() - begin
    scorer = Scorer(supernet, dataset, ScoringConfig(statistics="batch", images=(arguments.images,)))
    networks = drawn(space.draw, accept, arguments.networks)

    def error(network: Architecture, **options: Any) -> float:
        return scorer.score(network, arguments.images, **options).error

    errors = {
        "right": [error(network) for network in networks],
        "zeroed": [error(network, zeroed=True) for network in networks],
        "another": [
            error(network, corrupt=described_as(other, supernet.hypernet.layout))
            for network, other in zip(networks, [*networks[1:], networks[0]], strict=True)
        ],
        "shuffled": [error(network, corrupt=corrupted) for network in networks],
    }
    costs = {name: np.subtract(values, errors["right"]) for name, values in errors.items()}
    zeroed = costs["zeroed"]
    row = {
        **way.to_json(),
        "loss": result.history[-1].loss,
        "error": float(np.mean(errors["right"])),
        "op_contribution": float(zeroed.mean()),
        "op_contribution_se": float(zeroed.std(ddof=1) / np.sqrt(len(zeroed))),
        "another_c": float(costs["another"].mean()),
        "another_c_p": paired(errors["right"], errors["another"]).p,
        "shuffled_c": float(costs["shuffled"].mean()),
        "shuffled_c_p": paired(errors["right"], errors["shuffled"]).p,
        "cpu_seconds": seconds,
    }
    print(row, flush=True)
    return row


@dataclass(frozen=True)
class Sandwiched:
    """A space whose draws for a step of four are a small network, a large one and two as they come (the
    sandwich rule; Yu and Huang 2019).
    """

    space: Space
    spec: InputSpec
    classes: int
    accept: Callable[[Architecture], bool]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.space, name)

    def draw(self, seed: int, slot: int, progress: float = 1.0) -> Architecture:
        """What the space draws, or the smallest or largest of many such that are accepted."""
        first = self.space.draw(seed, slot, progress)
        place = slot // ATTEMPTS % 4
        if place > 1:
            return first
        many = [self.space.draw(seed_of(seed, 0x5A4D, other), slot, progress) for other in range(LOOKED_AT)]
        inside = [entry for entry in many if self.accept(entry)]
        return (min, max)[place](
            inside, key=lambda entry: cost_of(entry, self.spec, self.classes).macs, default=first
        )


def drawn(
    draw: Callable[[int, int], Architecture], accept: Callable[[Architecture], bool], count: int
) -> list[Architecture]:
    """The first acceptable draws of a seed that no training uses."""
    found: list[Architecture] = []
    slot = 0
    while len(found) < count:
        architecture = draw(99, slot)
        slot += 1
        if accept(architecture):
            found.append(architecture)
    return found


if __name__ == "__main__":
    main()
