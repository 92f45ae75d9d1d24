"""Expected calibration error of bundles on test images that nothing was fitted on.

    python -m benchmarks.calibration --data cifar10:DIR BUNDLE [BUNDLE ...]

The bundles are those that ``smash-export train`` or ``freeze`` made, by the recipe that stands in them; they
are judged through the file that predicts, as ``smash-export evaluate`` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.record import record
from smash_export.bundle.bundle import Bundle
from smash_export.measure.evaluate import evaluate

GOAL = 0.02


def judged(path: Path, data: str) -> dict[str, Any]:
    """Accuracy and calibration of one bundle on the test images."""
    provenance = Bundle.open(path).manifest.provenance
    found = evaluate(path, data)
    return {
        "recipe": provenance["recipe"],
        "calibration": provenance["calibration"],
        "images": found.images,
        "accuracy": found.accuracy,
        "confidence": found.confidence,
        "calibration_error": found.calibration_error,
        "warnings": list(found.warnings),
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("bundles", nargs="+", type=Path)
    arguments = parser.parse_args()
    rows = [judged(path, arguments.data) for path in arguments.bundles]
    worst = max(row["calibration_error"] for row in rows)
    goal = {
        "what": "expected calibration error of a bundle on test images, the worst of all bundles",
        "goal": "<= 2 %",
        "value": f"{worst:.2%}",
        "met": worst <= GOAL,
        "note": f"{len(rows)} bundles, {rows[0]['images']:,} images, 15 bins; "
        + ", ".join(f"{row['calibration_error']:.2%} at accuracy {row['accuracy']:.2%}" for row in rows),
    }
    record("calibration", {"bundles": rows}, [goal])


if __name__ == "__main__":
    main()
