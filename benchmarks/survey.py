"""How well a search predicts latency near its limits, from what it measured before it began.

    python -m benchmarks.survey [--seeds 0,1] [--tests 40] [--shares 0.5,1,2]

Images of CIFAR's size, the space "edge", ONNX Runtime, one thread. The limits are shares of ResNet-8's
latency. For each seed and limit a device is surveyed as :mod:`smash_search.stages.survey` does; then draws
and known networks that were not measured, a quarter below the limit to a tenth above it by prediction, are
measured in turns with one network of the survey, as candidates are.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.stats import kendalltau

from benchmarks.record import record
from benchmarks.search_vs_handmade import SETTING, hand_made, onnx_of, survey_for
from smash_export.device_search.latency import DeviceLatency, measure_graph
from smash_search.rank.latency_model import LatencyModel
from smash_search.rank.measurement import undisturbed
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.known import known_networks
from smash_search.space.space import space_for

SPEC, CLASSES = InputSpec(3, (32, 32)), 10
SPACE = space_for(SPEC, "edge")
BELOW, ABOVE = 0.75, 1.1  # of a limit, by prediction
TRIES = 4000  # draws among which those near a limit are looked for
GOAL = 0.08


def main() -> None:
    """Survey, predict, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--tests", type=int, default=40, help="networks of each kind at each limit")
    parser.add_argument("--shares", default="0.5,1,2", help="limits, of ResNet-8's latency")
    arguments = parser.parse_args()
    graph = onnx_of(hand_made("resnet8", SPEC, CLASSES, 0).eval(), SPEC)
    resnet8 = min(measure_graph(graph, SPEC, CLASSES, SETTING, 1.0).p50_ms for _ in range(3))
    rows = [
        surveyed(int(seed), float(share), float(share) * resnet8, arguments.tests)
        for share, seed in itertools.product(arguments.shares.split(","), arguments.seeds.split(","))
    ]
    goals = [
        {
            "what": f"latency of {kind} near a limit, predicted by the survey of a search, against measured",
            "goal": f"median error <= {GOAL:.0%} at every limit",
            "value": ", ".join(f"{row[kind]['median_error']:.1%}" for row in rows),
            "met": max(row[kind]["median_error"] for row in rows) <= GOAL,
            "note": "limits of " + ", ".join(f"{row['share']:g} (seed {row['seed']})" for row in rows),
        }
        for kind in ("draws", "known networks")
    ]
    record("survey", {"resnet8_ms": resnet8, "rows": rows}, goals)


def surveyed(seed: int, share: float, limit: float, tests: int) -> dict[str, Any]:
    """What one survey tells of networks near its limit."""
    latency, known = DeviceLatency(SPEC, CLASSES, SETTING), known_networks(SPACE)
    survey = survey_for(SPACE, seed, limit, SPEC, CLASSES)
    reference = survey.reference
    assert reference is not None
    milliseconds = undisturbed(latency.confirm(reference))

    def measure(architecture: Architecture) -> float:
        return latency.times_over(architecture, [reference], briefly=True)[0] * milliseconds

    probes, model = survey.measured(measure, SPEC, CLASSES)
    assert model is not None

    def judged(networks: Iterator[Architecture]) -> dict[str, float]:
        chosen = list(itertools.islice(networks, tests))
        predicted = np.asarray([model.predict(entry) for entry in chosen])
        measured = np.asarray([measure(entry) for entry in chosen])
        error = np.abs(predicted / measured - 1)
        promised = predicted <= limit
        return {
            "networks": len(chosen),
            "median_error": float(np.median(error)),
            "p90_error": float(np.percentile(error, 90)),
            "median_ratio": float(np.median(predicted / measured)),
            "within_of_promised": float((measured[promised] <= limit).mean()),
            "kendall_tau": float(kendalltau(predicted, measured).statistic),
        }

    draws = (SPACE.draw(seed + 1000, slot) for slot in range(TRIES))
    shuffled = (known[place] for place in np.random.default_rng(seed).permutation(len(known)))
    measured_before = {entry.key for entry in probes}
    row = {
        "seed": seed,
        "share": share,
        "limit_ms": limit,
        "vector": model.vector,
        "stated_error": model.error,
        "draws": judged(near(model, limit, draws, measured_before)),
        "known networks": judged(near(model, limit, shuffled, measured_before)),
    }
    print(row, flush=True)
    return row


def near(
    model: LatencyModel, limit: float, networks: Iterable[Architecture], measured: set[str]
) -> Iterator[Architecture]:
    """Those near the limit by prediction that were not measured."""
    for entry in networks:
        if entry.key not in measured and BELOW <= model.predict(entry) / limit <= ABOVE:
            yield entry


if __name__ == "__main__":
    main()
