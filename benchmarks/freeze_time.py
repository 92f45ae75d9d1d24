"""From best.json to verified fp32 and int8 ONNX files, without training: seconds.

    make demo && .venv/bin/python -m benchmarks.freeze_time

The commands that a person would type, each a process of its own. What freezing takes beside training is
measured with generated weights (BatchNorm recomputed, both files verified). int8 is calibrated and held
against labels, which means something for trained weights only: the demo's bundle of the same network.
Freezing and compiling refuse what they cannot verify; a last verify of all files is timed beside them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import record

ROUNDS = 3
GOAL_SECONDS = 30


def main() -> None:
    """Run the commands some times, record the median round."""
    rounds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            frozen, trained = str(Path(folder) / "generated"), str(Path(folder) / "trained")
            shutil.copytree("demo-bundle", trained)
            commands = {
                "freeze": [
                    "freeze",
                    "--arch",
                    "runs/demo/best.json",
                    "--weights",
                    "generated",
                    "--out",
                    frozen,
                ],
                "compile_fp32": ["compile", trained, "--target", "onnxruntime"],
                "compile_int8": ["compile", trained, "--target", "onnxruntime", "--precision", "int8"],
                "verify": ["verify", trained],
            }
            seconds = {name: timed(words) for name, words in commands.items()}
        rounds.append(seconds)
        print(seconds, flush=True)
    needed = ("freeze", "compile_fp32", "compile_int8")  # each of them verifies what it writes
    rounds.sort(key=lambda entry: sum(entry[name] for name in needed))
    middle = rounds[ROUNDS // 2]
    total = round(sum(middle[name] for name in needed), 1)
    record(
        "freeze_time",
        {"rounds": rounds},
        [
            {
                "what": "freeze to verified fp32 and int8 ONNX, small network, without training",
                "goal": f"<= {GOAL_SECONDS} s",
                "value": total,
                "met": total <= GOAL_SECONDS,
                "note": f"median of {ROUNDS} rounds of three processes, which verify what they write; "
                f"to verify all files once more takes {middle['verify']} s",
            }
        ],
    )


def timed(words: list[str]) -> float:
    """Seconds of one command in a process of its own."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "smash_export.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 2)


if __name__ == "__main__":
    main()
