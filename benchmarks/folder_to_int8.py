"""From a folder of pictures to a verified int8 file within a time: error on test images, and wall time.

    python -m benchmarks.folder_to_int8 --data cifar10:DIR [--time 30m] [--seed 0 ...]
        [--train-images N] [--test-images N] [--work DIR] [--max-latency TIME]
        [--beside BUNDLE] [--results NAME]

The pictures of a data set are written as PNG files, ``train/CLASS/`` and ``test/CLASS/``, as somebody would
have them. What is measured is one command, ``smash-export run --data folder:PICTURES --precision int8``:
decoding, search, last training, compilation, verification and comparison, in a process of its own. Its int8
file then answers all test images, which nothing has looked at but the reports. A run that is in ``--work``
already is read, not repeated. Wall time: nothing else should run meanwhile. With ``--beside`` a trained
network of the same images is compiled for the same runtime, and both int8 files are timed in turn: processor
time of one thread at batch 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.int8 import interleaved, session_of
from benchmarks.record import record
from smash_base import files
from smash_export.bundle.bundle import Bundle
from smash_export.compiling.compile import compile_bundle
from smash_search.data import Dataset, Split, load_dataset

GOAL_ERROR, GOAL_SECONDS, GOAL_MACS = 0.13, 1800.0, 15_000_000
GOAL_BESIDE, GOAL_BESIDE_SECONDS = 0.105, 7200.0  # within the time of ResNet-8's int8 file
TEST_IMAGES = 10_000  # of CIFAR-10
PROGRAM = Path(sys.executable).with_name("smash-export")


def write_pictures(data: Dataset, folder: Path, train: int, test: int) -> None:
    """PNG files below ``train`` and ``test`` and their classes; 0 images for all of a part.

    Validation images are training images to whoever has a folder.
    """
    for part, splits, count in (
        ("train", (data.train, data.validation), train),
        ("test", (data.test,), test),
    ):
        for name in data.classes:
            (folder / part / name).mkdir(parents=True)
        for number, split in enumerate(splits):
            share = count and -(-count * len(split) // sum(map(len, splits)))
            _write(split, data.classes, folder / part, share, str(number))


def _write(split: Split, classes: tuple[str, ...], folder: Path, count: int, prefix: str) -> None:
    order = np.random.default_rng(0).permutation(len(split))[: count or None]
    for index in order:
        place = folder / classes[split.labels[index]] / f"{prefix}-{index}.png"
        picture = np.asarray(split.images[index])
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(place)


def answered(words: list[str]) -> Any:
    """JSON of a command in a process of its own."""
    done = subprocess.run([PROGRAM, *words, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return files.parse_json(done.stdout, what=f"smash-export {words[0]}")


def measured(arguments: argparse.Namespace, seed: int, data: str, out: Path) -> dict[str, Any]:
    """The command with its wall and processor seconds, and what its int8 file answers."""
    words = ["run", "--data", data, "--precision", "int8", "--time", arguments.time]
    limit = ("--max-latency", arguments.max_latency) if arguments.max_latency else ("--max-macs", GOAL_MACS)
    words += [limit[0], str(limit[1]), "--seed", str(seed), "--out", str(out)]
    begin, before = time.monotonic(), os.times()
    ran = answered(words)
    seconds, after = time.monotonic() - begin, os.times()
    bundle = out / "bundle"
    judged = answered(["evaluate", str(bundle), "--data", data, "--split", "test", "--precision", "int8"])
    made = files.read_json(bundle / "manifest.json", what="bundle")["provenance"]
    return {
        "pictures_of": arguments.data.partition(":")[0],
        "seed": seed,
        "time": arguments.time,
        "limit": " ".join(map(str, limit)),
        "error": 1 - judged["accuracy"],
        "error_fp32": 1 - made["accuracy"]["top1"],
        "test_images": judged["images"],
        "macs": made["cost"]["macs"],
        "parameters": made["cost"]["parameters"],
        "epochs": made["recipe"]["epochs"],
        "wall_seconds": seconds,
        "cpu_seconds": sum(after[2:4]) - sum(before[2:4]),
        "planned_seconds": {stage["stage"]["name"]: _planned(stage["stage"]) for stage in ran["stages"]},
        "stage_seconds": {stage["stage"]["name"]: stage["seconds"] for stage in ran["stages"]},
        "recommendation": ran["recommendation"],
    }


def beside(made: Path, other: Path, data: str) -> dict[str, Any]:
    """Milliseconds of the int8 files of two bundles for ONNX Runtime; the other's is compiled first."""
    with tempfile.TemporaryDirectory() as name:
        rival = Path(name) / "rival"
        shutil.copytree(other, rival, ignore=shutil.ignore_patterns("targets"))
        compiled = compile_bundle(Bundle.open(rival), "onnxruntime", "int8", data=data, threads=1)
        bundle = Bundle.open(made)
        own = bundle.find_compiled("onnxruntime", "int8")
        if own is None:
            raise ValueError(f"{made} has no int8 file for ONNX Runtime")
        times = interleaved([session_of(own, bundle), session_of(compiled, Bundle.open(rival))])
        placement = compiled.notes.get("placement")
        return {"name": other.name, "ms": times[1], "own_ms": times[0], "placement": placement}


def _planned(stage: dict[str, Any]) -> float:
    return sum(seconds for _, seconds in stage["parts"])


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--time", default="30m")
    parser.add_argument(
        "--max-latency", help=f"limit of the search; {GOAL_MACS:,} multiply-accumulates if none"
    )
    parser.add_argument(
        "--beside", type=Path, metavar="BUNDLE", help="another network, 3x32x32, to time in turn"
    )
    parser.add_argument("--results", default="folder_to_int8", help="name of the file of results")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one run after the other")
    parser.add_argument("--train-images", type=int, default=0)
    parser.add_argument("--test-images", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/folder-to-int8"))
    arguments = parser.parse_args()
    pictures = arguments.work / "pictures"
    if not pictures.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        with files.new_folder(pictures) as whole:
            write_pictures(load_dataset(arguments.data), whole, arguments.train_images, arguments.test_images)
    for seed in arguments.seed:
        if (place := arguments.work / f"run-{seed}").exists() and not place.with_suffix(".json").exists():
            parser.error(
                f"{place} was interrupted, and its time is not known: delete it, or choose another --work"
            )
    runs = [_run(arguments, seed, pictures) for seed in arguments.seed]
    goals = [goal for run in runs for goal in _goals(run)]
    if len(runs) > 1:
        errors = [run["error"] for run in runs]
        for what in dict.fromkeys(goal["what"] for goal in goals):
            met = [goal["met"] for goal in goals if goal["what"] == what]
            goals.append(
                {
                    "what": f"{what}: each of {len(met)} seeds",
                    "goal": next(goal["goal"] for goal in goals if goal["what"] == what),
                    "value": f"mean error {np.mean(errors):.2%}, {min(errors):.2%} to {max(errors):.2%}",
                    "met": None if None in met else all(met),
                    "note": f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads",
                }
            )
    record(arguments.results, {"runs": runs} if len(runs) > 1 else runs[0], goals)


def _run(arguments: argparse.Namespace, seed: int, pictures: Path) -> dict[str, Any]:
    """One seed, measured or read."""
    out, result = arguments.work / f"run-{seed}", arguments.work / f"run-{seed}.json"
    if not result.exists():
        files.write_json(result, measured(arguments, seed, f"folder:{pictures}", out))
    run: dict[str, Any] = files.read_json(result, what="result")
    if arguments.beside and "beside" not in run:
        run["beside"] = beside(out / "bundle", arguments.beside, arguments.data)
        files.write_json(result, run)
    return run


def _goals(run: dict[str, Any]) -> list[dict[str, Any]]:
    whole = run["pictures_of"] == "cifar10" and run["test_images"] == TEST_IMAGES  # else no goal is known
    minutes = f"{run['wall_seconds'] / 60:.1f} minutes"
    note = (
        f"{run['test_images']:,} test images of {run['pictures_of']}, fp32 {run['error_fp32']:.2%}, "
        f"{run['epochs']} epochs of the last training, --time {run['time']}, seed {run['seed']}"
    )
    goals = []
    if run["limit"].startswith("--max-macs"):
        goals.append(
            {
                "what": "error of the int8 file from a folder of CIFAR-10, <= 15 MMACs, <= 30 minutes",
                "goal": f"<= {GOAL_ERROR:.0%}",
                "value": f"{run['error']:.2%}, {run['macs'] / 1e6:.1f} MMACs, {minutes}",
                "met": run["error"] <= GOAL_ERROR
                and run["wall_seconds"] <= GOAL_SECONDS
                and run["macs"] <= GOAL_MACS,
                "note": note,
            }
        )
    if other := run.get("beside"):
        share = other["own_ms"] / other["ms"]
        goals.append(
            {
                "what": f"error of the int8 file in at most the time of that of {other['name']}, "
                "same runtime, search included, <= 2 hours",
                "goal": f"<= {GOAL_BESIDE:.1%}, <= 1.0x",
                "value": f"{run['error']:.2%}, {share:.2f}x, {minutes}",
                "met": run["error"] <= GOAL_BESIDE
                and share <= 1
                and run["wall_seconds"] <= GOAL_BESIDE_SECONDS,
                "note": note,
            }
        )
    return goals if whole else [{**goal, "met": None} for goal in goals]


if __name__ == "__main__":
    main()
