"""The longest time without a word on a terminal, command by command, on a folder of pictures.

    python -m benchmarks.silence --data cifar10:DIR [--images N] [--time 5m] [--folder DIR] [--only NAME;..]

Pictures of the data set are written as PNG files, one folder per class. Then ``run`` goes from them to a
measured bundle, and its stages follow as commands of their own, each in a terminal of its own. What stood
there before the longest silence is kept beside it: the place to mend.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.image_folder import write_pictures
from benchmarks.record import record
from benchmarks.terminal import in_terminal

SILENCE = 2.0


def commands(data: str, folder: Path, duration: str) -> dict[str, list[str]]:
    """Words of each command, by name, in an order in which each finds what it needs."""
    whole, search, bundle = folder / "whole", folder / "search", folder / "bundle"
    train = ["--data", data, "--device", "cpu"]
    run = ["run", *train, "--max-latency", "5ms", "--precision", "int8", "--space", "edge-tiny"]
    run += ["--time", duration]
    small = ["--steps", "60", "--candidates", "8", "--finalists", "2", "--per-round", "1", "--rungs", "1,2"]
    adopted = ["--labels", str(folder / "labels.txt"), "--output", str(folder / "adopted"), "--force"]
    freeze = ["freeze", "--arch", str(search / "best.json"), "--weights", "retrain", "--epochs", "2"]
    return {
        "run": [*run, "--out", str(whole)],
        "run again": [*run, "--out", str(whole)],
        "run, dry": [*run, "--out", str(folder / "dry"), "--dry-run"],
        "search": ["search", *train, "--run", str(search), "--max-latency", "5ms", *small],
        "freeze": [*freeze, *train, "--out", str(bundle)],
        "compile fp32": ["compile", str(bundle), "--target", "onnxruntime"],
        "compile int8": ["compile", str(bundle), "--target", "onnxruntime", "--precision", "int8"],
        "compile openvino": ["compile", str(bundle), "--target", "openvino", "--precision", "int8"],
        "verify": ["verify", str(bundle)],
        "bench": ["bench", str(bundle)],
        "compare": ["compare", str(bundle)],
        "evaluate": ["evaluate", str(bundle), "--data", data],
        "adopt": ["adopt", str(bundle / "model.onnx"), "--data", data, *adopted],
        "bake": ["bake", str(bundle)],
        "check": ["check", str(bundle), "--target", "tensorrt"],
        "inspect": ["inspect", str(bundle)],
        "datasets": ["datasets", data],
        "space": ["space", "--data", data],
    }


def main() -> None:
    """Run every command and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--time", default="5m")
    parser.add_argument("--folder", type=Path, default=Path("runs/silence"))
    parser.add_argument("--only", default="", help="names of commands; nothing is recorded")
    arguments = parser.parse_args()
    only = [name for name in arguments.only.split(";") if name]
    folder: Path = arguments.folder
    pictures = folder / "pictures"
    if not only:
        shutil.rmtree(folder, ignore_errors=True)
    if not pictures.exists():
        pictures.mkdir(parents=True)
        write_pictures(arguments.data, pictures, arguments.images)
        (folder / "labels.txt").write_text("\n".join(sorted(path.name for path in pictures.iterdir())))
    rows = []
    for name, words in commands(f"folder:{pictures}", folder, arguments.time).items():
        if not only or name in only:
            rows.append(measured(name, words))
    if not only:
        write(rows, arguments.images)


def measured(name: str, words: list[str]) -> dict[str, Any]:
    """One command to its end."""
    ended = in_terminal([sys.executable, "-m", "smash_export.cli", *words])
    row = {"command": name, **ended.to_json()}
    print(row, flush=True)
    if ended.code:
        raise SystemExit(f"{name}: exit code {ended.code}\n{ended.text}")
    return row


def write(rows: list[dict[str, Any]], images: int) -> None:
    """Record."""
    worst = max(rows, key=lambda row: row["silence"]["seconds"])
    seconds = worst["silence"]["seconds"]
    goal = {
        "what": f"longest silence on a terminal, {len(rows)} commands on a folder of {images:,} pictures",
        "goal": f"<= {SILENCE:g} s",
        "value": f"{seconds:.1f} s",
        "met": seconds <= SILENCE,
        "note": f"in {worst['command']}",
    }
    record("silence", {"images": images, "commands": rows}, [goal])


if __name__ == "__main__":
    main()
