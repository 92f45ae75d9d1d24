"""How long the program takes from nothing: the whole demo, ``--help``, and one image from a bundle.

    .venv/bin/python -m benchmarks.startup [--stage demo|rest]

Runs ``make demo`` first and then uses its bundle; the stages may be run one after the other. Each run is a
fresh process; the page cache is warm, as on a device that runs the command twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.record import record
from smash_export.bundle.bundle import Bundle

RUNS = 15
TOOK = Path("runs/demo/seconds")  # that the demo took
DEMO_SECONDS = 150
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "rich", "numpy", "pydantic")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stage", choices=["demo", "rest"])
    stage = parser.parse_args().stage
    if stage != "rest":
        start = time.perf_counter()
        subprocess.run(["make", "demo"], check=True)
        TOOK.write_text(str(round(time.perf_counter() - start, 1)))
    if stage != "demo":
        measure(float(TOOK.read_text()))


def measure(demo: float) -> None:
    """Everything but the demo, and the record of all.

    Args:
        demo: Seconds that it took.
    """
    path = "demo-bundle"
    origin = json.loads(Path("runs/demo/best.json").read_text())["search"]["origin"]
    bundle = Bundle.open(path)
    program = [sys.executable, "-m", "smash_export.cli"]
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        sample = bundle.samples().images[0]
        Image.fromarray(sample[..., 0] if sample.shape[-1] == 1 else sample).save(image)
        script = (
            "import sys, smash_export\n"
            f"with smash_export.load({path!r}, 'onnxruntime', threads=1) as classifier:\n"
            f"    print(list(classifier.predict([{str(image)!r}]))[0].label, 'torch' in sys.modules)\n"
        )
        python_api = [sys.executable, "-c", script]
        torch_imported = subprocess.check_output(python_api, text=True).split()[-1] == "True"
        figures = {
            "help_s": timed([*program, "--help"]),
            "predict_cold_s": timed(python_api),
            "predict_command_cold_s": timed(
                [*program, "predict", path, str(image), "--target", "onnxruntime"]
            ),
            "interpreter_alone_s": timed([sys.executable, "-c", "pass"]),
        }
    listing = "import sys; from smash_export.cli import run; run(['--help']); print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", listing], text=True).split()
    heavy = [name for name in HEAVY if name in loaded]
    record(
        "startup",
        {
            "demo_s": demo,
            "demo_origin": origin,
            **figures,
            "runs": RUNS,
            "help_imports": heavy,
            "predict_imports_torch": torch_imported,
        },
        [
            {
                "what": "make demo after installation",
                "goal": f"<= {DEMO_SECONDS} s",
                "value": demo,
                "met": demo <= DEMO_SECONDS,
                "note": "one run",
            },
            {
                "what": "origin of the demo's network",
                "goal": "a network that the search found",
                "value": origin,
                "met": origin != "known",
                "note": "known networks need no search; here, as anywhere, they are candidates too",
            },
            goal("smash-export --help", "< 0.3 s", figures["help_s"]["p50"], 0.3),
            {
                "what": "smash-export --help imports",
                "goal": "neither torch nor onnx",
                "value": ", ".join(heavy) or "nothing heavy",
                "met": "torch" not in heavy and "onnx" not in heavy,
                "note": f"checked: {', '.join(HEAVY)}",
            },
            goal(
                "load a bundle and predict one image, cold", "< 0.7 s", figures["predict_cold_s"]["p50"], 0.7
            ),
            {
                "what": "predicting imports torch",
                "goal": "no",
                "value": "yes" if torch_imported else "no",
                "met": not torch_imported,
                "note": "",
            },
        ],
    )


def timed(words: list[str]) -> dict[str, float]:
    """Seconds of a whole process: smallest, median and largest of RUNS runs."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    low, middle, high = np.percentile(seconds, (0, 50, 100))
    return {"min": round(low, 4), "p50": round(middle, 4), "max": round(high, 4)}


def goal(what: str, limit: str, value: float, most: float) -> dict[str, Any]:
    """One goal on a median in seconds."""
    return {
        "what": what,
        "goal": limit,
        "value": value,
        "met": value < most,
        "note": f"median of {RUNS} processes",
    }


if __name__ == "__main__":
    main()
