"""A search killed with SIGKILL at 20 random moments, resumed each time: does it end like one that was not?

    python -m benchmarks.kill_resume [--kills 20] [--seed 0]

Moments are drawn evenly over the time that an uninterrupted search takes, start of Python included. A run is
killed and resumed up to four times, then resumed to its end and compared byte by byte.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from smash_base import files
from smash_base.errors import InvalidInputError
from tests.search.run_small_search import RESULTS, contents

KILLS_PER_RUN = 4
COMMAND = [sys.executable, "-m", "tests.search.run_small_search"]


def main() -> None:
    """Run, kill, resume, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    random = np.random.default_rng(arguments.seed)
    trials: list[dict[str, Any]] = []
    results = []
    with tempfile.TemporaryDirectory() as name:
        start = time.monotonic()
        subprocess.run([*COMMAND, f"{name}/whole/run"], check=True, env=environment)
        seconds = time.monotonic() - start
        expected = contents(Path(name) / "whole" / "run")
        while len(trials) < arguments.kills:
            folder = Path(name) / str(len(results)) / "run"  # best.json holds the name of the folder
            for _ in range(min(KILLS_PER_RUN, arguments.kills - len(trials))):
                moment = float(random.random() * seconds)
                if not kill_after(moment, folder, environment):
                    break
                reached = sorted(name for name in (*RESULTS, "hypernet.pt") if (folder / name).exists())
                torn = [name for name in reached if name.endswith(".json") and not whole(folder / name)]
                trials.append({"run": len(results), "seconds": moment, "files": reached, "torn": torn})
                print(f"kill {len(trials)} after {moment:.1f} s, reached {reached[-1:]}", flush=True)
            subprocess.run([*COMMAND, str(folder)], check=True, env=environment)
            results.append(contents(folder) == expected)
            print(f"run {len(results)} resumed to its end, equal: {results[-1]}", flush=True)
    torn_files = sum(len(trial["torn"]) for trial in trials)
    record(
        "kill_resume",
        {"uninterrupted_seconds": seconds, "kills": trials, "equal": results},
        [
            {
                "what": f"search killed with SIGKILL at {len(trials)} random moments, resumed each time",
                "goal": "ends equal to an uninterrupted run, byte by byte",
                "value": f"{sum(results)} of {len(results)} runs equal",
                "met": all(results) and len(trials) >= 20,
                "note": f"up to {KILLS_PER_RUN} kills in each run; compared: {', '.join(RESULTS)}",
            },
            {"what": "torn files", "goal": "none", "value": torn_files, "met": torn_files == 0, "note": ""},
        ],
    )


def kill_after(seconds: float, folder: Path, environment: dict[str, str]) -> bool:
    """Start or resume the search and kill it; False when it was done before."""
    process = subprocess.Popen([*COMMAND, str(folder)], env=environment)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def whole(path: Path) -> bool:
    """Whether a JSON file can be read."""
    try:
        files.read_json(path)
    except InvalidInputError:
        return False
    return True


if __name__ == "__main__":
    main()
