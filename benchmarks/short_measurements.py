"""Short measurements of candidates alone and in turns with one network, on an idle and on a busy machine.

    python -m benchmarks.short_measurements [--rounds 20] [--networks 6]

Networks of the space for CIFAR's images, known ones from small to large, are measured through ONNX Runtime as
candidates of a search are: each alone, and right after in turns with the middle one of them. First with
nothing beside, then while another process trains in bfloat16, three seconds of every five. A search compares
what a network takes with a limit; here each limit lies 5 % above the median of the network's own times on
the idle machine, so that who is refused is refused for the moment in which it was measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.record import record
from smash_export.device_search.latency import DeviceLatency, Setting
from smash_search.rank.measurement import LATENCY
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks
from smash_search.space.space import space_for

SPEC, CLASSES = InputSpec(3, (32, 32)), 10
SLACK = 1.05  # of the limits
WAYS = ("alone", "in turns")
BUSY, PAUSE = 3.0, 2.0  # seconds of work and of rest


def main() -> None:
    """Measure on the idle machine, then beside another process; record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--networks", type=int, default=6)
    arguments = parser.parse_args()
    networks = chosen(arguments.networks)
    found = {"idle": measured(networks, arguments.rounds)}
    neighbour = multiprocessing.get_context("spawn").Process(target=busy, daemon=True)
    neighbour.start()
    time.sleep(10.0)  # until it computes
    found["busy"] = measured(networks, arguments.rounds)
    neighbour.kill()
    medians = {way: np.median(found["idle"][way], axis=0) for way in WAYS}
    rows = {
        machine: {way: facts(times[way] / medians[way]) for way in WAYS} for machine, times in found.items()
    }
    goals = [
        {
            "what": f"short measurements 5 % beyond what the idle machine takes, {machine}",
            "goal": "fewer in turns than alone",
            "value": f"{row['in turns']['refused']:.1%}, alone {row['alone']['refused']:.1%}",
            "met": row["in turns"]["refused"] <= row["alone"]["refused"],
            "note": f"{arguments.rounds} of each of {len(networks)} networks",
        }
        for machine, row in rows.items()
    ]
    described = [
        {"key": entry.key, "macs": cost_of(entry, SPEC, CLASSES).macs, "ms": round(float(median), 5)}
        for entry, median in zip(networks, medians["alone"], strict=True)
    ]
    record("short_measurements", {"networks": described, "over the idle median": rows}, goals)


def chosen(count: int) -> list[Architecture]:
    """Known networks of the space from small to large, the largest quarter left out."""
    by_size = sorted(
        known_networks(space_for(SPEC, "edge")),
        key=lambda entry: (cost_of(entry, SPEC, CLASSES).macs, entry.key),
    )
    places = np.linspace(0, 3 * len(by_size) // 4, count).round().astype(int)
    return [by_size[place] for place in places]


def measured(networks: list[Architecture], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds alone, and times over those of the middle network, each [rounds, networks]."""
    latency, reference = DeviceLatency(SPEC, CLASSES, Setting()), networks[len(networks) // 2]
    times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        pairs = [
            (latency.measure(entry)[LATENCY], latency.times_over(entry, [reference], briefly=True)[0])
            for entry in networks
        ]
        for way, values in zip(WAYS, zip(*pairs, strict=True), strict=True):
            times[way].append(list(values))
    return {way: np.asarray(values) for way, values in times.items()}


def facts(over: np.ndarray) -> dict[str, Any]:
    """Spread of measurements over what each network takes on the idle machine."""
    low, middle, high = np.percentile(over, (5, 50, 95))
    return {
        "5th percentile": round(float(low), 4),
        "median": round(float(middle), 4),
        "95th percentile": round(float(high), 4),
        "largest": round(float(over.max()), 4),
        "refused": round(float((over > SLACK).mean()), 4),
    }


def busy() -> None:
    """Forward passes in bfloat16 on one core, with pauses, until the process is ended."""
    torch.set_num_threads(1)
    layer, images = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(64, 64, 32, 32)
    while True:
        end = time.monotonic() + BUSY
        while time.monotonic() < end:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                layer(images)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
