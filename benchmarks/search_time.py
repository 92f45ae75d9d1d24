"""How long a whole search for one device takes, at the default size.

    python -m benchmarks.search_time [--run DIR] [--data fashion-mnist] [--max-latency 0.3ms]

One command, as a user gives it: HyperNet, candidates measured on ONNX Runtime and scored, finalists and the
random search beside them trained in two processes, the pick measured again, the report. Nothing else should
run meanwhile; the folder must be new.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.record import record
from smash_base import files
from smash_search.space.best import read_best

GOAL_MINUTES = 45


def main() -> None:
    """Search, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/search-time"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--max-latency", default="0.3ms")
    arguments = parser.parse_args()
    run: Path = arguments.run
    words = ["search", "--data", arguments.data, "--run", str(run), "--max-latency", arguments.max_latency]
    words += ["--executor", "process", "--workers", "2"]
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
            "command": ["smash-export", *words],
            "seconds": seconds,
            "stages": stages,
            "config": files.read_json(run / "config.json"),
            "pick": best.search.to_json(),
        },
        [
            {
                "what": f"whole search for one device, {arguments.data}, default size",
                "goal": f"<= {GOAL_MINUTES} minutes on 2 cores",
                "value": f"{seconds / 60:.1f} minutes",
                "met": seconds <= 60 * GOAL_MINUTES,
                "note": f"validation error of the pick {best.search.error:.2%}, "
                f"random search {best.search.random_search_error:.2%}",
            }
        ],
    )


if __name__ == "__main__":
    main()
