"""The whole path on real images: ``make demo``.

Prints each command before running it, exactly as a person would type it, and ends with one table of
what came out. Images: scikit-learn's digits, 1,797 real handwritten digits of 8x8 pixels.

Writes runs/demo, demo-bundle and demo-images; a second run starts afresh.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import smash_export
from smash_export.bundle.bundle import Bundle
from smash_export.bundle.inspection import inspect
from smash_export.progress import Output
from smash_search.data import load_dataset

RUN, BUNDLE, IMAGES = Path("runs/demo"), Path("demo-bundle"), Path("demo-images")
TARGETS = ("torchscript", "onnxruntime")
PICTURES = 8


def main() -> None:
    """Run the commands, then show what came out."""
    start = time.monotonic()
    for folder in (RUN, BUNDLE, IMAGES):
        shutil.rmtree(folder, ignore_errors=True)

    command("search", "--data", "digits", "--run", RUN)
    command("inspect", RUN / "best.json")
    command("freeze", "--arch", RUN / "best.json", "--weights", "retrain", "--out", BUNDLE)
    for target in TARGETS:
        command("compile", BUNDLE, "--target", target)
    command("verify", BUNDLE)
    command("bench", BUNDLE)
    paths = write_pictures()
    command("predict", BUNDLE, IMAGES)
    show(paths, time.monotonic() - start)


def command(*words: str | Path) -> None:
    """Print and run one command; a failing one ends the demo with its exit code."""
    line = shlex.join(["smash-export", *map(str, words)])
    print(f"\n$ {line}", flush=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = subprocess.run(["smash-export", *map(str, words)], env={**os.environ, "PATH": path}).returncode
    if code:
        sys.exit(code)


def write_pictures() -> list[Path]:
    """One test image of each of the first digits, as PNG files named after index and true label."""
    test = load_dataset("digits").test
    IMAGES.mkdir()
    chosen = [int(np.flatnonzero(test.labels == digit)[0]) for digit in range(PICTURES)]
    paths = []
    for index in chosen:
        path = IMAGES / f"test-{index}-is-{test.labels[index]}.png"
        Image.fromarray(test.images[index, :, :, 0]).save(path)
        paths.append(path)
    print(f"\n# wrote {len(paths)} test images into {IMAGES}/", flush=True)
    return paths


def show(paths: list[Path], seconds: float) -> None:
    """One table of everything that the commands found, read back from their files."""
    best = json.loads((RUN / "best.json").read_text())
    bundle = Bundle.open(BUNDLE)
    manifest = bundle.manifest.model_dump(mode="json")
    cost = inspect(RUN / "best.json")
    rows: list[list[Any]] = [
        ["SMASH score (validation error with generated weights)", percent(best["search"]["score"])],
        ["test error after training", percent(1 - manifest["provenance"]["accuracy"]["top1"])],
        ["parameters", f"{cost['parameters']:,}"],
        ["MACs", f"{cost['macs']:,}"],
    ]
    for file in bundle.compiled:
        parity = file.evidence["parity"]
        name = f"{file.target} {file.precision}"
        rows.append([f"{name}: file", f"{file.size:,} bytes"])
        agreement = f"same label {percent(parity['agreement'])}"
        difference = f"largest difference {parity['max_difference']:.1e}"
        rows.append([f"{name}: parity on {parity['images']} test images", f"{difference}, {agreement}"])
        rows.append([f"{name}: latency p50, batch 1, 1 thread", f"{latency(manifest, file.target):.3f} ms"])
    with smash_export.load(BUNDLE) as classifier:
        answers = list(classifier.predict([str(path) for path in paths], top_k=1))
    truth = [path.stem.rpartition("-")[2] for path in paths]
    right = sum(answer.label == label for answer, label in zip(answers, truth, strict=True))
    rows.append([f"predictions ({classifier.choice.target})", " ".join(answer.label for answer in answers)])
    rows.append(["true labels", f"{' '.join(truth)}  ({right} of {len(truth)} right)"])
    print()
    Output().table(f"make demo: {seconds:.0f} s", ["what", "result"], rows)
    print(f"\nThe search's report: {RUN / 'report.html'}   the model card: {BUNDLE / 'README.md'}")


def latency(manifest: dict[str, Any], target: str) -> float:
    """Median milliseconds of one image, as ``bench`` wrote it into the manifest."""
    rows = manifest["records"]["bench"]["files"]
    return float(next(row for row in rows if row["target"] == target)["latency"]["1"]["p50_ms"])


def percent(share: float) -> str:
    """0.0123 -> "1.23 %"."""
    return f"{100 * share:.2f} %"


if __name__ == "__main__":
    main()
