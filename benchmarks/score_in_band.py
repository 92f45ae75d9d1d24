"""Whether the score of differently made HyperNets orders networks of one latency that were trained.

    python -m benchmarks.score_in_band --finalists RUN/finalists.jsonl,.. [--data cifar10:PATH] [--steps 750]
        [--images 1000] [--seeds 0] [--ways every [--only WORDS]] [--folder DIR] [--results NAME]
    python -m benchmarks.score_in_band --draws DIR/trained.jsonl ... [--of-them]

``--finalists`` are files of searches: their networks of 5 to 13 million multiply-accumulates, whose error is
that after the first rung, which has to be the same in all files. ``--draws`` is the file that
benchmarks/draws_vs_handmade.py keeps in its folder: networks of one measured latency. Each HyperNet is
trained on draws of the edge space within that band, of multiply-accumulates or of latency, as a model fitted
to the measurements predicts it; with ``--of-them`` on the very networks that it is judged by, whose errors
it does not see. Tau of its score with the error, with all generated filters zeroed, and that of the
multiply-accumulates alone. ``--ways every`` takes all ways of benchmarks/op_contribution.py, or those whose
name holds some words. Figures are kept in ``--folder`` one by one: a repeated command goes on with the first
that is missing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.op_contribution import FULL_RANK, TILES, WAYS, Sandwiched, Way
from benchmarks.record import record
from smash_base import files
from smash_export.device_search.search import load_data
from smash_search.data import Dataset
from smash_search.rank.finalists import input_spec_of
from smash_search.rank.latency_model import fit_latency
from smash_search.rank.scoring import Scorer, ScoringConfig
from smash_search.rank.statistics import Estimate, kendall
from smash_search.rank.trained import Trained
from smash_search.rank.trust import trust
from smash_search.space.architecture import Architecture
from smash_search.space.cost import cost_of
from smash_search.space.space import Space, space_for
from smash_search.train.hypernet import new_supernet, train

BAND = (5e6, 13e6)  # multiply-accumulates
GOAL, WIDEST_ZEROED = 0.5, 0.5  # tau; tau with zeroed filters over it


def main() -> None:
    """Train each HyperNet, score, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--finalists", help="files of searches, with commas between")
    source.add_argument("--draws", type=Path, help="file of networks of one latency")
    parser.add_argument("--of-them", action="store_true", help="train on the networks to be judged alone")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--images", type=int, default=1000, help="of validation, for a score")
    parser.add_argument("--seeds", default="0", help="of the HyperNet, with commas between")
    parser.add_argument(
        "--ways", choices=("pair", "every"), default="pair", help="tiles and full rank, or all"
    )
    parser.add_argument("--only", default="", help="ways whose name holds this")
    parser.add_argument("--folder", type=Path, default=Path("runs/score-in-band"), help="of results")
    parser.add_argument("--results", default="score_in_band", help="name of the file of results")
    arguments = parser.parse_args()
    dataset = load_data(arguments.data)
    if arguments.draws:
        networks, accept, band = of_one_latency(arguments.draws, dataset)
    else:
        networks = trained_before(arguments.finalists.split(","), dataset)
        accept, band = (lambda entry: is_inside(entry, dataset)), {"macs": list(BAND)}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    log = arguments.folder / f"{arguments.results}.jsonl"
    settings = {"steps": arguments.steps, "images": arguments.images, "data": dataset.name, "band": band}
    settings["trained_on_them"] = arguments.of_them
    kept = [entry["row"] for entry in files.read_jsonl(log) if entry["settings"] == settings]
    done = {(row["way"], row["seed"]): row for row in kept}
    asked = [(way, int(seed)) for seed in arguments.seeds.split(",") for way in ways_of(arguments)]
    for way, seed in asked:
        if (way.name, seed) not in done:
            done[way.name, seed] = judged(way, seed, networks, accept, dataset, arguments)
            files.append_jsonl(log, {"settings": settings, "row": done[way.name, seed]})
    rows = [done[way.name, seed] for way, seed in asked]
    errors = [error for _, error in networks]
    macs = kendall([-macs_of(architecture, dataset) for architecture, _ in networks], errors)
    goals = [goal_of(row, macs) for row in rows]
    record(arguments.results, {"settings": settings, "macs": asdict(macs), "rows": rows}, goals)


def ways_of(arguments: argparse.Namespace) -> Sequence[Way]:
    """The ways to train a HyperNet that were asked for."""
    ways = WAYS if arguments.ways == "every" else (TILES, FULL_RANK)
    return [way for way in ways if arguments.only in way.name]


def goal_of(row: dict[str, Any], macs: Estimate) -> dict[str, Any]:
    """The line of a HyperNet in the overview."""
    tau = Estimate(row["tau"], row["low"], row["high"], row["networks"])
    zeroed = row["tau_zeroed"]
    return {
        "what": f"tau of the score over {row['networks']} trained networks of one band: {row['way']}",
        "goal": f">= {GOAL}, lowest 0.2; zeroed at most half",
        "value": f"{tau}, zeroed {zeroed:.2f}",
        "met": row["tau"] >= GOAL and row["low"] >= 0.2 and zeroed <= WIDEST_ZEROED * row["tau"],
        "note": f"seed {row['seed']}; MACs {macs}; op contribution {row['op_contribution']:.1%}",
    }


@dataclass(frozen=True)
class Given:
    """A space whose draws are the given networks, one after the other, in a new order each time."""

    space: Space
    networks: tuple[Architecture, ...]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.space, name)

    def draw(self, seed: int, slot: int, progress: float = 1.0) -> Architecture:
        """The network of a step."""
        turn, place = divmod(slot, len(self.networks))
        order = np.random.default_rng((seed, turn)).permutation(len(self.networks))
        return self.networks[int(order[place])]


def trained_before(paths: list[str], dataset: Dataset) -> list[tuple[Architecture, float]]:
    """Networks within the band and their error after the first rung, each once."""
    found: dict[str, tuple[Architecture, float]] = {}
    for entry in (document for path in paths for document in files.read_jsonl(Path(path))):
        trained = Trained.from_json(entry)
        if trained.rung == 0 and trained.diverged is None:
            found.setdefault(trained.key, (Architecture.from_json(entry["architecture"]), trained.error))
    return [pair for pair in found.values() if is_inside(pair[0], dataset)]


def of_one_latency(
    path: Path, dataset: Dataset
) -> tuple[list[tuple[Architecture, float]], Callable[[Architecture], bool], dict[str, Any]]:
    """Drawn networks with their error, whether a model of their latencies sees another among them, and the
    band in milliseconds.
    """
    drawn = [entry for entry in files.read_jsonl(path) if "architecture" in entry]
    networks = [(Architecture.from_json(entry["architecture"]), float(entry["error"])) for entry in drawn]
    latencies = [float(entry["milliseconds"]) for entry in drawn]
    low, high = min(latencies), max(latencies)
    known = [architecture for architecture, _ in networks]
    model = fit_latency(known, latencies, input_spec_of(dataset), len(dataset.classes))
    return networks, lambda entry: low <= model.predict(entry) <= high, {"milliseconds": [low, high]}


def macs_of(architecture: Architecture, dataset: Dataset) -> int:
    """Multiply-accumulates of one image."""
    return cost_of(architecture, input_spec_of(dataset), len(dataset.classes)).macs


def is_inside(architecture: Architecture, dataset: Dataset) -> bool:
    """Whether a network is within the band."""
    return BAND[0] <= macs_of(architecture, dataset) <= BAND[1]


def judged(
    way: Way,
    seed: int,
    networks: Sequence[tuple[Architecture, float]],
    accept: Callable[[Architecture], bool],
    dataset: Dataset,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Agreement of one HyperNet's score with the errors."""
    spec, classes = input_spec_of(dataset), len(dataset.classes)
    space = space_for(spec, "edge")
    supernet = new_supernet(space, spec, classes, way.hypernet, seed=seed)
    if arguments.of_them:
        supernet.space = cast(Space, Given(space, tuple(network for network, _ in networks)))
    elif way.sandwich:
        supernet.space = cast(Space, Sandwiched(space, spec, classes, accept))
    begin = time.process_time()
    training = way.training(arguments.steps, seed)
    result = train(supernet, dataset, training, accept=None if arguments.of_them else accept)
    seconds = time.process_time() - begin
    scorer = Scorer(supernet, dataset, ScoringConfig(statistics="batch", images=(arguments.images,)))
    right = [scorer.score(network, arguments.images).error for network, _ in networks]
    zeroed = [scorer.score(network, arguments.images, zeroed=True).error for network, _ in networks]
    row = {
        **way.to_json(),
        "seed": seed,
        "loss": result.history[-1].loss,
        "error": float(np.mean(right)),
        "cpu_seconds": seconds,
        **asdict(trust(right, zeroed, [error for _, error in networks])),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
