"""How well a latency table predicts networks that it has not seen, and how fast candidates are measured.

    python -m benchmarks.latency_prediction [--table-networks 150] [--networks 50] [--seconds 0.3]
    python -m benchmarks.latency_prediction --setting onnxruntime:int8 --results latency_prediction_int8

Small space, 28x28, one thread, batch 1. Per target a table of random networks, and other networks that are
measured in the same passes and predicted from it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.stats import kendalltau

from benchmarks.record import record
from smash_export.device_search.latency import (
    LatencyTable,
    Setting,
    build_table,
    measure_architecture,
    write_kit,
)
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_targets.base import get_target

SPEC, CLASSES = InputSpec(1, (28, 28)), 10
RATE_NETWORKS = 20
SETTINGS = (Setting("onnxruntime"), Setting("onnxruntime", "int8"), Setting("openvino"), Setting("ncnn"))


def main() -> None:
    """Build tables, predict other networks, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--table-networks", type=int, default=150)
    parser.add_argument("--networks", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--setting", action="append", help="TARGET:PRECISION; the usual four without it")
    parser.add_argument("--results", default="latency_prediction", help="name of the results")
    arguments = parser.parse_args()
    asked = [Setting(*name.split(":")) for name in arguments.setting or ()]
    space = space_for(SPEC, "small")
    results, goals = {}, []
    for setting in asked or SETTINGS:
        if not get_target(setting.target).availability().available:
            continue
        name = f"{setting.target} {setting.precision}"
        draws = [space.draw(1, slot) for slot in range(arguments.table_networks)]
        unseen = [space.draw(2, slot) for slot in range(arguments.networks)]
        with tempfile.TemporaryDirectory() as folder:
            kit = Path(folder) / "kit.zip"
            write_kit(kit, [*draws, *unseen], SPEC, CLASSES, setting)
            whole = build_table(kit, Path(folder) / "table.json", seconds=arguments.seconds)
        table = LatencyTable({**whole.document, "networks": whole.document["networks"][: len(draws)]})
        measured = whole.times[len(draws) :]
        predicted = np.asarray([table.predict(one) for one in unseen])
        begin = time.monotonic()
        for one in unseen[:RATE_NETWORKS]:
            measure_architecture(one, SPEC, CLASSES, setting)
        rate = 60 * RATE_NETWORKS / (time.monotonic() - begin)
        error = np.abs(predicted / measured - 1)
        tau = float(kendalltau(predicted, measured).statistic)
        results[name] = {
            "median_error": float(np.median(error)),
            "p90_error": float(np.percentile(error, 90)),
            "kendall_tau": tau,
            "stated_by_the_table": table.error,
            "measured_per_minute": rate,
            "measured_ms": measured.tolist(),
            "predicted_ms": predicted.tolist(),
        }
        goals += [
            {
                "what": f"predicted against measured latency, {len(unseen)} random networks, {name}",
                "goal": "median error <= 8 %, Kendall tau >= 0.9",
                "value": f"{np.median(error):.1%}, {tau:.3f}",
                "met": bool(np.median(error) <= 0.08 and tau >= 0.9),
                "note": f"table of {arguments.table_networks} other networks",
            },
            {
                "what": f"candidates measured per minute, small space, one core, {name}",
                "goal": ">= 60",
                "value": round(rate, 1),
                "met": rate >= 60,
                "note": "graph, compilation, opening and timing",
            },
        ]
        print(name, results[name]["median_error"], tau, rate, flush=True)
    record(arguments.results, results, goals)


if __name__ == "__main__":
    main()
