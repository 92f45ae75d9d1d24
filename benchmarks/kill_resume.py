"""A search killed with SIGKILL at 20 random moments, resumed each time: does it end like one that was not?

    python -m benchmarks.kill_resume [--kills 20] [--seed 0]

Moments are drawn evenly over the time that an uninterrupted search takes, start of Python included. A run is
killed and resumed up to four times, then resumed to its end and compared byte by byte.

Two searches: one that only counts costs, and one that measures its candidates on a runtime. Latencies differ
from run to run, so that the second is compared with an uninterrupted search that is given what the killed one
measured; besides, nothing may have been measured twice.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.record import record
from smash_base import files
from smash_base.errors import InvalidInputError
from tests.search import run_small_search
from tests.smash_export import run_search_for_device

KILLS_PER_RUN = 4
SEARCHES: dict[str, tuple[ModuleType, Mapping[str, int]]] = {  # and what they measure
    "search": (run_small_search, {}),
    "search that measures": (run_search_for_device, run_search_for_device.MEASURED),
}


def main() -> None:
    """Run, kill, resume, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results, goals = {}, []
    for name, (module, measured) in SEARCHES.items():
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(module, measured, Path(folder))
            found = results[name] = bench.run(arguments.kills, np.random.default_rng(arguments.seed))
        kills, equal, torn = len(found["kills"]), found["equal"], found["torn"]
        twice = ", nothing measured twice" if measured else ""
        goals += [
            {
                "what": f"{name} killed with SIGKILL at {kills} random moments, resumed each time",
                "goal": f"ends equal to an uninterrupted run, byte by byte{twice}",
                "value": f"{sum(equal)} of {len(equal)} runs equal",
                "met": all(equal) and kills >= 20,
                "note": f"up to {KILLS_PER_RUN} kills in each run; compared: {', '.join(found['compared'])}",
            },
            {"what": f"{name}: torn files", "goal": "none", "value": torn, "met": torn == 0, "note": ""},
        ]
    record("kill_resume", results, goals)


class Bench:
    """Kills of one search.

    Args:
        module: runs it into a folder.
        measured: files of measurements, which a search it is compared with is given, and how often each
            measures one network at most.
        folder: for all runs.
    """

    def __init__(self, module: ModuleType, measured: Mapping[str, int], folder: Path) -> None:
        self._module, self._measured, self._folder = module, measured, folder
        self._command = [sys.executable, "-m", module.__name__]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(self, kills: int, random: np.random.Generator) -> dict[str, Any]:
        """So many kills, spread over runs."""
        start = time.monotonic()
        self._finish(self._folder / "whole" / "run")
        seconds = time.monotonic() - start
        trials: list[dict[str, Any]] = []
        equal: list[bool] = []
        names: list[str] = []
        while len(trials) < kills:
            run = self._folder / str(len(equal)) / "run"  # best.json holds the name of the folder
            for _ in range(min(KILLS_PER_RUN, kills - len(trials))):
                moment = float(random.random() * seconds)
                if not self._kill_after(moment, run):
                    break
                reached = sorted(path.name for path in run.glob("*") if path.suffix in (".json", ".jsonl"))
                torn = [name for name in reached if name.endswith(".json") and not whole(run / name)]
                trials.append({"run": len(equal), "seconds": moment, "files": reached, "torn": torn})
                print(f"kill {len(trials)} after {moment:.1f} s, reached {reached[-1:]}", flush=True)
            self._finish(run)
            found = self._module.contents(run)
            names = list(found)
            equal.append(found == self._expected(run) and not self.measured_too_often(run))
            print(f"run {len(equal)} resumed to its end, equal: {equal[-1]}", flush=True)
        torn_files = sum(len(trial["torn"]) for trial in trials)
        return {
            "uninterrupted_seconds": seconds,
            "kills": trials,
            "equal": equal,
            "compared": names,
            "torn": torn_files,
        }

    def _expected(self, run: Path) -> dict[str, bytes]:
        """What an uninterrupted search that measured the same ends with."""
        if not self._measured:
            return self._module.contents(self._folder / "whole" / "run")
        reference = run.parent / "reference" / "run"
        reference.mkdir(parents=True)
        for name in self._measured:
            shutil.copy(run / name, reference / name)
        self._finish(reference)
        return self._module.contents(reference)

    def measured_too_often(self, run: Path) -> bool:
        """Whether a network was measured once more than it is without a kill."""
        return any(
            count > most
            for name, most in self._measured.items()
            for count in Counter(record["key"] for record in files.read_jsonl(run / name)).values()
        )

    def _finish(self, run: Path) -> None:
        subprocess.run([*self._command, str(run)], check=True, env=self._environment)

    def _kill_after(self, seconds: float, run: Path) -> bool:
        """Start or resume the search and kill it; False when it was done before."""
        process = subprocess.Popen([*self._command, str(run)], env=self._environment)
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
