"""Whether `smash-export run` takes as long as it says before it starts, and is never silent meanwhile.

    python -m benchmarks.run_estimate [--data SPEC] [--times 40s,60s,..] [--folder DIR] [--also SPEC=TIME,..]

Each run is one command in a terminal of its own, as a user gives it. Its estimate is the sum of the plan that
it prints; its time is that of all stages; its silence is the longest time without anything on the terminal.
What else the machine does meanwhile stretches both the few steps that are measured and the run: the load
before each run stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.terminal import in_terminal
from smash_export.bundle.bundle import Bundle

TIMES = "65s,70s,75s,80s,85s,90s,95s,100s,110s,120s"
LOW, HIGH, SILENCE = 0.7, 1.4, 2.0


def main() -> None:
    """Run, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--times", default=TIMES)
    parser.add_argument("--also", default="", help="further runs: SPEC=TIME, separated by commas")
    parser.add_argument("--folder", type=Path, default=Path("runs/run-estimate"))
    arguments = parser.parse_args()
    wanted = [(arguments.data, duration) for duration in arguments.times.split(",")]
    wanted += [tuple(pair.rsplit("=", 1)) for pair in arguments.also.split(",") if pair]
    rows = [one_run(data, duration, arguments.folder, index) for index, (data, duration) in enumerate(wanted)]
    write(rows)


def one_run(data: str, duration: str, folder: Path, index: int) -> dict[str, Any]:
    """One command in a terminal; every other one with a limit on latency."""
    out = folder / str(index)
    shutil.rmtree(out, ignore_errors=True)
    words = ["run", "--data", data, "--time", duration, "--out", str(out), "--seed", str(index)]
    if index % 2:
        words += ["--max-latency", "5ms"]
    load = os.getloadavg()[0]
    ended = in_terminal([sys.executable, "-m", "smash_export.cli", *words])
    silence = round(ended.silence.seconds, 2)
    if ended.code:
        print(ended.text, flush=True)
        return {"data": data, "time": duration, "load": load, "exit_code": ended.code, "silence_s": silence}
    state = json.loads((out / "run.json").read_text())
    real = sum(entry["seconds"] for entry in state["done"])
    row = {
        "data": data,
        "time": duration,
        "load": round(load, 2),
        "estimate_s": state["plan"]["seconds"],
        "real_s": round(real, 1),
        "ratio": round(state["plan"]["seconds"] / real, 3),
        "silence_s": silence,
        "verified_files": len(Bundle.open(out / "bundle").compiled),
        "stages": {
            entry["stage"]["name"]: [
                round(sum(part[1] for part in entry["stage"]["parts"]), 1),
                entry["seconds"],
            ]
            for entry in state["done"]
        },
    }
    print(row, flush=True)
    return row


def write(rows: list[dict[str, Any]]) -> None:
    """Record."""
    good = [row for row in rows if "ratio" in row]
    if not good:
        raise SystemExit("no run came to its end")
    ratios, loads = [row["ratio"] for row in good], [row["load"] for row in rows]
    silence = max(row["silence_s"] for row in rows)
    inside = sum(LOW <= ratio <= HIGH for ratio in ratios)
    record(
        "run_estimate",
        {"runs": rows},
        [
            {
                "what": f"estimate before a run over its real time, {len(ratios)} runs of different size",
                "goal": f"{LOW} to {HIGH}x",
                "value": f"{min(ratios):.2f} to {max(ratios):.2f}x, {inside} inside",
                "met": inside == len(rows),
                "note": f"load {min(loads):.1f} to {max(loads):.1f}",
            },
            {
                "what": "longest silence on a terminal during a run",
                "goal": f"<= {SILENCE:g} s",
                "value": f"{silence:.1f} s",
                "met": silence <= SILENCE,
                "note": "",
            },
            {
                "what": "commands from a folder to a verified, benchmarked bundle",
                "goal": "1",
                "value": 1,
                "met": all(row["verified_files"] for row in good) and len(good) == len(rows),
                "note": f"{min(row['verified_files'] for row in good)} files or more in each",
            },
        ],
    )


if __name__ == "__main__":
    main()
