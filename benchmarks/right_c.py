"""Whether filters generated from an architecture's own c are better than those from another one's.

    python -m benchmarks.right_c [--data cifar10:PATH] [--folder DIR] [--networks 480] [--seed 1]

The experiment ``encoding`` of size edge asked it with 24 networks and then with 120, of which p was 0.12 and
0.04. This asks again with as many networks as the difference of those 120 calls for, all of them new: seed 1
trains another HyperNet and draws other networks. Their number was set before the first was scored. With
zeroed filters beside, as in the experiment. The same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import os
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.record import record
from smash_export.progress import Output
from smash_search.data import load_dataset
from smash_search.experiments.config import size_named
from smash_search.experiments.encoding import another, corruptions, generated
from smash_search.experiments.workbench import Workbench
from smash_search.rank.statistics import paired

GOAL = 0.01
ANOTHER = "another architecture's"


def main() -> None:
    """Train, score, record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--folder", type=Path, default=Path("runs/right-c"))
    parser.add_argument("--networks", type=int, default=480)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    config = replace(size_named("edge"), corrupted=arguments.networks, seed=arguments.seed)
    bench = Workbench(config, load_dataset(arguments.data, seed=0), arguments.folder, Output().progress)
    errors = scored(bench)
    costs = {name: asdict(paired(errors["right"], errors[name])) for name in (ANOTHER, "zeroed")}
    p, cost, zeroed = costs[ANOTHER]["p"], costs[ANOTHER]["difference"], costs["zeroed"]["difference"]
    points = {name: 100 * cost[name] for name in ("value", "low", "high")}
    record(
        "right_c",
        {
            "networks": arguments.networks,
            "seed": arguments.seed,
            "steps": config.training.steps,
            "costs": costs,
            "errors": errors,
        },
        [
            {
                "what": f"right c against {ANOTHER}, paired, {arguments.networks} new networks",
                "goal": f"better, p < {GOAL}",
                "value": "{value:+.2f} points ({low:.2f} to {high:.2f})".format(**points) + f", p = {p:.2g}",
                "met": cost["value"] > 0 and p < GOAL,
                "note": f"Wilcoxon; zeroed filters cost {100 * zeroed['value']:.1f} points",
            }
        ],
    )


def scored(bench: Workbench) -> dict[str, list[float]]:
    """Errors of the networks with filters of the right c, of another one's, and of zeros."""
    layout = bench.supernet().hypernet.layout
    corrupt = corruptions(layout, lambda seed: another(bench.space, layout, seed))[ANOTHER]
    errors: dict[str, list[float]] = {"right": [], ANOTHER: [], "zeroed": []}
    with bench.progress("architectures", bench.config.corrupted) as advance:
        for architecture in itertools.islice(generated(bench), bench.config.corrupted):
            errors["right"].append(bench.score(architecture).error)
            errors[ANOTHER].append(bench.score(architecture, ANOTHER, corrupt).error)
            errors["zeroed"].append(bench.score(architecture, "zeroed", zeroed=True).error)
            advance(1)
    return errors


if __name__ == "__main__":
    main()
