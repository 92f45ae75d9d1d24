"""A folder of PNG files read the first time and again: processor seconds, with the same images both times.

    python -m benchmarks.image_folder --data cifar10:DIR [--images 20000]

The pictures are written into a temporary folder, one folder per class. Each reading is a process of its own,
as search, freeze and evaluate are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.record import record
from smash_base import files
from smash_search.data import load_dataset

READ = """
import json, sys, time
from smash_search.data import load_dataset
begin = time.process_time()
data = load_dataset(sys.argv[1])
print(json.dumps({"seconds": time.process_time() - begin, "fingerprint": data.fingerprint}))
"""


def write_pictures(spec: str, folder: Path, count: int) -> None:
    """Training images as PNG files below their classes."""
    data = load_dataset(spec)
    for name in data.classes:
        (folder / name).mkdir()
    chosen = np.random.default_rng(0).permutation(len(data.train))[:count]
    for index in chosen:
        name = data.classes[data.train.labels[index]]
        Image.fromarray(np.asarray(data.train.images[index])).save(folder / name / f"{index}.png")


def reading(folder: Path) -> tuple[float, str]:
    """Processor seconds of one reading, and the fingerprint of what was read."""
    words = [sys.executable, "-c", READ, f"folder:{folder}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = files.parse_json(done.stdout, what="a reading")
    return float(found["seconds"]), str(found["fingerprint"])


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pictures(arguments.data, folder, arguments.images)
        readings = [reading(folder) for _ in range(4)]
    first, again = readings[0][0], float(np.median([seconds for seconds, _ in readings[1:]]))
    same = len({fingerprint for _, fingerprint in readings}) == 1
    goal = {
        "what": "a folder of PNG files read again, over the first time, processor seconds",
        "goal": "<= 0.25, the same images",
        "value": f"{again / first:.2f}",
        "met": same and again <= 0.25 * first,
        "note": f"{arguments.images:,} files: {first:.1f} s, then {again:.1f} s; the machine was shared",
    }
    record("image_folder", {"first": first, "again": again, "images": arguments.images}, [goal])


if __name__ == "__main__":
    main()
