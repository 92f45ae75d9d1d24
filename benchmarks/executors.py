"""Scoring with one and two worker processes, and with Ray actors: architectures per second.

    python -m benchmarks.executors [--data fashion-mnist:PATH] [--networks 60] [--rounds 3]

An untrained HyperNet scores as fast as a trained one. One thread per worker; workers are set up before the
clock starts. Rounds alternate between executors; the median of each counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.record import record
from smash_export.device_search.search import load_data
from smash_search.executors import ExecutorConfig, Task, make_executor
from smash_search.executors.work import Equipment, Worker
from smash_search.model.hypernet import HyperNetConfig
from smash_search.rank.finalists import FinalistsConfig, input_spec_of
from smash_search.rank.scoring import ScoringConfig
from smash_search.space.space import space_for
from smash_search.train.hypernet import new_supernet


def main() -> None:
    """Score the same networks with each executor, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(arguments.data)
    spec = input_spec_of(data)
    space = space_for(spec)
    supernet = new_supernet(space, spec, len(data.classes), HyperNetConfig(), seed=0)
    scoring = ScoringConfig(images=(250,))
    images = scoring.stages(len(data.validation))[0]
    drawn = [space.draw(0, slot) for slot in range(arguments.networks)]
    tasks = [Task("score", (architecture, images, None), architecture.key) for architecture in drawn]
    settings = {
        "process, 1 worker": ExecutorConfig("process", workers=1, threads=1),
        "process, 2 workers": ExecutorConfig("process", workers=2, threads=1),
    }
    if importlib.util.find_spec("ray") is not None:
        settings["ray, 2 workers"] = ExecutorConfig("ray", workers=2, threads=1)
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        equipment = Equipment(supernet, data, scoring, FinalistsConfig(), None, Path(folder))
        here = Worker(equipment)
        executors: dict[str, Any] = {
            name: stack.enter_context(closing(make_executor(config, equipment, here)))
            for name, config in settings.items()
        }
        for executor in executors.values():
            list(executor.run(tasks[:4]))
        for _ in range(arguments.rounds):
            for name, executor in executors.items():
                begin = time.monotonic()
                list(executor.run(tasks))
                seconds[name].append(time.monotonic() - begin)
                print(name, seconds[name][-1], flush=True)
    rate = {name: arguments.networks / float(np.median(values)) for name, values in seconds.items()}
    speedup = rate["process, 2 workers"] / rate["process, 1 worker"]
    against = rate.get("ray, 2 workers", float("nan")) / rate["process, 2 workers"]
    cores = len(os.sched_getaffinity(0))
    record(
        "executors",
        {"per_second": rate, "seconds": seconds, "networks": arguments.networks, "images": images},
        [
            {
                "what": "two process workers against one, scoring",
                "goal": ">= 1.7x",
                "value": round(speedup, 3),
                "met": speedup >= 1.7 if cores >= 2 else None,
                "note": f"{cores} cores, {arguments.data}, {arguments.networks} networks, {images} images",
            },
            {
                "what": "Ray against process, two workers each",
                "goal": "within 10 %",
                "value": round(against, 3) if "ray, 2 workers" in rate else "no Ray",
                "met": bool(against >= 0.9) if "ray, 2 workers" in rate else None,
                "note": "scores per second, ratio",
            },
        ],
    )


if __name__ == "__main__":
    main()
