"""What the bundle of ``make demo`` answers on the demo's own pictures, and how sure it is of it.

    make demo && .venv/bin/python -m benchmarks.demo_answers [FOLDER]

The first picture is a 5 that looks like a 9. Networks without calibration answered 9 with 99.8 %. A wrong
answer is no fault here; a wrong answer without doubt is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.record import record
from smash_export.bundle.bundle import Bundle
from smash_export.prediction.classifier import load

FIRST = "test-0-is-5.png"


def answers_of(folder: Path) -> list[dict[str, Any]]:
    """Each picture of ``folder/demo-images`` with its class, the answer, its probability, and the doubt."""
    pictures = sorted((folder / "demo-images").glob("*.png"))
    with load(folder / "demo-bundle") as classifier:
        answers = classifier.predict([str(path) for path in pictures])
    return [
        {
            "picture": path.name,
            "class": path.stem.rpartition("-")[2],
            "label": answer.label,
            "probability": round(answer.probability, 4),
            "doubtful": answer.doubtful,
        }
        for path, answer in zip(pictures, answers, strict=True)
    ]


def goal_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """No answer is wrong without doubt; the note tells of the first picture."""
    wrong = [row for row in rows if row["label"] != row["class"]]
    sure = sum(not row["doubtful"] for row in wrong)
    first = next(row for row in rows if row["picture"] == FIRST)
    said = f"{first['label']} with {first['probability']:.1%}"
    doubt = "perhaps none of the classes" if first["doubtful"] else "without doubt"
    return {
        "what": "pictures of the demo with a wrong answer that is not called doubtful",
        "goal": "0",
        "value": f"{sure} of {len(rows)}",
        "met": sure == 0,
        "note": f"{len(wrong)} wrong; the first picture, a 5, is answered {said}, {doubt}",
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=Path(), type=Path, help="where the demo ran")
    folder = parser.parse_args().folder
    rows = answers_of(folder)
    calibration = Bundle.open(folder / "demo-bundle").manifest.provenance["calibration"]
    record("demo_answers", {"pictures": rows, "calibration": calibration}, [goal_of(rows)])


if __name__ == "__main__":
    main()
