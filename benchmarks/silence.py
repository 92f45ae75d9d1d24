"""The longest time without a word on a terminal, command by command, on a folder of pictures.

    python -m benchmarks.silence --data cifar10:DIR [--images N] [--time 5m] [--folder DIR] [--resume]

Pictures of the data set are written as PNG files, one folder per class. Every command from them to a
measured bundle has a terminal of its own, and at last ``run`` does all of it with a quarter of the pictures.
What stood there before the longest silence is kept beside it: the place to mend.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.image_folder import write_pictures
from benchmarks.record import record
from benchmarks.terminal import in_terminal

SILENCE = 2.0
PICTURES = ("pictures", "pictures-few")


def commands(folder: Path, duration: str) -> dict[str, list[str]]:
    """Words of each command, by name, in an order in which each finds what it needs."""
    data, few = (f"folder:{folder / name}" for name in PICTURES)
    whole, search, bundle = folder / "whole", folder / "search", folder / "bundle"
    train = ["--data", data, "--device", "cpu"]
    run = ["run", "--data", few, "--device", "cpu", "--max-latency", "5ms", "--precision", "int8"]
    run += ["--space", "edge-tiny", "--time", duration]
    small = ["--steps", "60", "--candidates", "8", "--finalists", "2", "--per-round", "1", "--rungs", "1,2"]
    adopted = ["--labels", str(folder / "labels.txt"), "--output", str(folder / "adopted"), "--force"]
    freeze = ["freeze", "--arch", str(search / "best.json"), "--epochs", "2", "--force"]
    return {
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
        "run": [*run, "--out", str(whole)],
        "run again": [*run, "--out", str(whole)],
    }


def main() -> None:
    """Run every command and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--time", default="5m")
    parser.add_argument("--folder", type=Path, default=Path("runs/silence"))
    parser.add_argument("--resume", action="store_true", help="keep what an earlier process measured")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if not arguments.resume:
        shutil.rmtree(folder, ignore_errors=True)
    make_pictures(arguments.data, folder, arguments.images)
    kept = folder / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for name, words in commands(folder, arguments.time).items():
        if name not in {row["command"] for row in rows}:
            rows.append(measured(name, words))
            kept.write_text(json.dumps(rows))
    write(rows, arguments.images)


def make_pictures(data: str, folder: Path, images: int) -> None:
    """Two folders of pictures, and the names of the classes."""
    for name, count in zip(PICTURES, (images, images // 4), strict=True):
        if not (folder / name).exists():
            (folder / name).mkdir(parents=True)
            write_pictures(data, folder / name, count)
    classes = sorted(path.name for path in (folder / PICTURES[0]).iterdir())
    (folder / "labels.txt").write_text("\n".join(classes))


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
