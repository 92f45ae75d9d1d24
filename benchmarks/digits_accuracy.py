"""Test accuracy of a search's winner on digits, retrained with three seeds and frozen each time.

    python -m benchmarks.digits_accuracy [--arch runs/demo/best.json] [--seeds 0,1,2]

Without --arch a search with the default settings runs first. Every network is trained by the defaults of
``smash-export freeze --weights retrain`` and measured on the 359 test images that nothing else has seen.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from benchmarks.record import record
from smash_export.device_search.search import search
from smash_export.export.freeze import default_recipe, freeze
from smash_search.data import load_dataset
from smash_search.space.best import read_best


def main() -> None:
    """Search unless told, freeze with each seed, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.arch is None:
            search("digits", Path(folder) / "run")
        best = read_best(arguments.arch or Path(folder) / "run" / "best.json")
        dataset = load_dataset("digits")
        rows = []
        for seed in (int(word) for word in arguments.seeds.split(",")):
            begin = time.monotonic()
            recipe = default_recipe(dataset, seed=seed)
            report = freeze(best, dataset, Path(folder) / f"bundle{seed}", recipe=recipe)
            rows.append(
                {
                    "seed": seed,
                    "test_accuracy": report.test_accuracy,
                    "seconds": round(time.monotonic() - begin, 1),
                    "parity": {name: value.max_difference for name, value in report.parity.items()},
                }
            )
            print(rows[-1], flush=True)
    mean = float(np.mean([row["test_accuracy"] for row in rows]))
    largest = max(value for row in rows for value in row["parity"].values())
    record(
        "digits_accuracy",
        {"architecture": best.to_json(), "recipe": recipe.to_json(), "runs": rows},
        [
            {
                "what": "digits test accuracy, retrained winner, mean of 3 seeds",
                "goal": ">= 98.5 %",
                "value": f"{mean:.2%}",
                "met": mean >= 0.985,
                "note": ", ".join(f"{row['test_accuracy']:.2%}" for row in rows) + f" of {len(dataset.test)}",
            },
            {
                "what": "TorchScript and ONNX Runtime against eager, real images",
                "goal": "max difference <= 1e-4, top-1 agreement 100 %",
                "value": f"{largest:.2g}, 100 %",
                "met": largest <= 1e-4,
                "note": "freeze refuses to write a bundle whose files change any label",
            },
        ],
    )


if __name__ == "__main__":
    main()
