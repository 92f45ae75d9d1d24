"""How long a whole search for one device takes, at the default size.

    python -m benchmarks.search_time [--run DIR] [--data cifar10:PATH] [--max-latency 0.12ms] [--workers 2]

One command, as a user gives it: HyperNet, candidates measured on ONNX Runtime and scored, finalists trained
in as many processes, the pick measured again, the report. Nothing else should run meanwhile; the folder must
be new. 0.12 ms is the latency of MLPerf Tiny's ResNet-8 on the machine of the committed results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.record import record
from smash_base import files
from smash_base.json_values import JsonValue
from smash_search.space.best import read_best

GOAL_MINUTES = 30


def main() -> None:
    """Search, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/search-time"))
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--max-latency", default="0.12ms")
    parser.add_argument("--workers", type=int, default=2, choices=(1, 2))
    arguments = parser.parse_args()
    run: Path = arguments.run
    data = arguments.data.partition(":")[0]
    words = ["search", "--data", arguments.data, "--run", str(run), "--max-latency", arguments.max_latency]
    words += ["--executor", "process", "--workers", "2"] if arguments.workers == 2 else []
    if run.exists():
        raise SystemExit(f"{run} exists; a part of a search says nothing about a whole one")
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "smash_export.cli", *words], check=True)
    seconds = time.monotonic() - start
    best = read_best(run / "best.json")
    stages = files.read_json(run / "timings.json")
    record(
        "search_time",
        {
            "command": ["smash-export", *words[:2], data, *words[5:]],
            "seconds": seconds,
            "stages": stages,
            "config": without_path(files.read_json(run / "config.json"), arguments.data),
            "ranking": files.read_json(run / "ranking.json"),
            "pick": without_path(best.search.to_json(), arguments.data),
        },
        [
            {
                "what": f"whole search for one device, {data}, default size",
                "goal": f"<= {GOAL_MINUTES} minutes on {arguments.workers} of two cores",
                "value": f"{seconds / 60:.1f} minutes",
                "met": seconds <= 60 * GOAL_MINUTES,
                "note": f"validation error of the pick {best.search.error:.2%}, {best.search.origin}, "
                f"{best.search.limit_used:.0%} of the limit",
            }
        ],
    )


def without_path(document: JsonValue, data: str) -> JsonValue:
    """The document with the name of the images alone, since a committed result names no folder."""
    name = json.dumps(data.partition(":")[0])
    found: JsonValue = json.loads(json.dumps(document).replace(json.dumps(data), name))
    return found


if __name__ == "__main__":
    main()
