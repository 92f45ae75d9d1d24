"""int8: is it judged rightly, and how fast is it against fp32 in ONNX Runtime.

    python -m benchmarks.int8 [BUNDLE ...]

Gates: 200 made files whose true loss of accuracy is known from a large population, each judged on a sample.
Speed: processor time of one thread at batch 1, files interleaved, so that the ratios bear a shared machine.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.record import record
from smash_export.bundle.bundle import Bundle
from smash_export.measure.gates import GATES, accuracy_loss

FILES = 200
POPULATION = 20_000
SAMPLES = (512, 2000)
ROUNDS = 80


def population(images: int, separation: float, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 10] of a made network whose probabilities are not calibrated, and true labels."""
    labels = draws.integers(0, 10, images)
    logits = draws.normal(0, 1.6, (images, 10))
    logits[np.arange(images), labels] += separation
    return logits * draws.uniform(0.7, 1.8), labels


def judged(images: int) -> dict[str, int]:
    """Right and wrong files over all made cases, and how many of them were judged wrongly.

    Right: the population loses at most half the limit. Wrong: it loses twice the limit or more.
    """
    limit = GATES["int8"].drop
    counts = {"right": 0, "right refused": 0, "wrong": 0, "wrong accepted": 0, "between": 0}
    for case in range(FILES):
        draws = np.random.default_rng([7, case])
        logits, labels = population(POPULATION, draws.uniform(2.5, 5), draws)
        size = logits.std()
        small = case % 2 == 0
        noise = draws.uniform(0.005, 0.05) if small else draws.uniform(0.05, 0.5)
        received = logits + draws.normal(0, noise * size, logits.shape)
        received[:, draws.integers(10)] += 0 if small else size * draws.uniform(0, 0.8)
        lost = 100 * ((logits.argmax(1) == labels).mean() - (received.argmax(1) == labels).mean())
        passed = accuracy_loss(logits[:images], received[:images], labels[:images]).keeps(limit)
        kind = "right" if lost <= limit / 2 else "wrong" if lost >= 2 * limit else "between"
        counts[kind] += 1
        counts["right refused"] += kind == "right" and not passed
        counts["wrong accepted"] += kind == "wrong" and passed
    return counts


def speed(path: Path) -> dict[str, float]:
    """Processor time of int8 over fp32, 20th percentiles of interleaved runs, and both in milliseconds."""
    import onnx
    import onnxruntime

    from smash_export.compiling.precision.int8 import quantise_untrained, scheme_for
    from smash_export.measure.machine import cpu_features

    bundle = Bundle.open(path)
    model = onnx.load_model_from_string(bundle.onnx.read_bytes())
    images = np.asarray(bundle.preprocessing.normalise(bundle.calibration()[:64]), np.float32)
    quantised = quantise_untrained(model, images, scheme_for("onnxruntime", cpu_features()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions = {
        name: onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
        for name, graph in (("fp32", model), ("int8", quantised))
    }
    feed = {bundle.signature.input_name: images[:1]}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            session.run(None, feed)
            begin = time.process_time()
            for _ in range(3):
                session.run(None, feed)
            times[name].append((time.process_time() - begin) / 3 * 1e3)
    fp32, int8 = (float(np.percentile(times[name], 20)) for name in ("fp32", "int8"))
    return {"fp32_ms": round(fp32, 4), "int8_ms": round(int8, 4), "ratio": round(int8 / fp32, 3)}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="*", type=Path)
    arguments = parser.parse_args()
    gates = {str(images): judged(images) for images in SAMPLES}
    speeds = {path.name: speed(path) for path in arguments.bundles}
    goals: list[dict[str, Any]] = []
    for images, counts in gates.items():
        refused = counts["right refused"] / counts["right"]
        where = f"{FILES} made files judged on {images} images"
        goals += [
            _goal(
                f"{where}: right ones refused", "<= 5 %", f"{refused:.1%}", refused <= 0.05, counts["right"]
            ),
            _goal(
                f"{where}: wrong ones accepted",
                "0",
                counts["wrong accepted"],
                not counts["wrong accepted"],
                counts["wrong"],
            ),
        ]
    for name, found in speeds.items():
        ratio = found["ratio"]
        what = f"{name}: int8 over fp32, ONNX Runtime"
        goals.append(_goal(what, "<= 0.5x", ratio, ratio <= 0.5, None))
    record("int8", {"gates": gates, "speed": speeds}, goals)


def _goal(what: str, goal: str, value: float | str, met: bool, files: int | None) -> dict[str, Any]:
    shared = "processor time, interleaved; the machine was shared"
    return {
        "what": what,
        "goal": goal,
        "value": value,
        "met": met,
        "note": f"of {files}" if files else shared,
    }


if __name__ == "__main__":
    main()
