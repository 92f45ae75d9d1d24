"""The lowered graph against the traced one: 20 networks of the small space, 28x28, one thread, batch 1.

    python -m benchmarks.lowering [--networks 20] [--seconds 1.5]

Both files hold the same weights; the traced one is what PyTorch's exporter makes of the interpreter.
Times of the two are taken in turns, as ratios of medians.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import torch

from benchmarks.record import record
from smash_export.device_search.latency import random_weights
from smash_export.export.onnx_writer import onnx_from_architecture, onnx_from_trace
from smash_export.measure.timing import interleaved, ratio
from smash_search.model.interpreter import FrozenNetwork
from smash_search.space.architecture import InputSpec
from smash_search.space.space import space_for
from smash_targets.base import CompileRequest, ModelSignature, Session, SessionOptions, get_target

SPEC, CLASSES = InputSpec(1, (28, 28)), 10
TARGETS = ("onnxruntime", "openvino")


def main() -> None:
    """Time both graphs of every network, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    space = space_for(SPEC, "small")
    image = np.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(np.float32)
    rows: list[dict[str, Any]] = []
    for slot in range(arguments.networks):
        architecture = space.draw(7, slot)
        weights = random_weights(architecture, SPEC, CLASSES)
        files = {
            "lowered": onnx_from_architecture(architecture, weights, SPEC),
            "traced": onnx_from_trace(FrozenNetwork(architecture, weights).eval(), SPEC),
        }
        row: dict[str, Any] = {"key": architecture.key, "ops": architecture.op_count}
        for name, model in files.items():
            row[f"nodes_{name}"] = len(onnx.load_from_string(model).graph.node)
        for target in TARGETS:
            with tempfile.TemporaryDirectory() as folder:
                sessions = {name: open_(target, model, Path(folder) / name) for name, model in files.items()}
                runs = {name: (session, image) for name, session in sessions.items()}
                times = interleaved(runs, seconds=arguments.seconds, rounds=10)
                for session in sessions.values():
                    session.close()
            row[target] = {
                "lowered_ms": times["lowered"].p50_ms,
                "traced_ms": times["traced"].p50_ms,
                "ratio": round(ratio(times["lowered"], times["traced"]), 4),
                "ratio_of_minima": round(times["lowered"].min_ms / times["traced"].min_ms, 4),
            }
        print(row, flush=True)
        rows.append(row)
    goals = [
        {
            "what": f"lowered against traced graph, {target} fp32, median over {len(rows)} searched networks",
            "goal": "<= 0.8x",
            "value": round(float(np.median([row[target]["ratio"] for row in rows])), 3),
            "met": float(np.median([row[target]["ratio"] for row in rows])) <= 0.8,
            "note": "ratio of medians, interleaved; of minima: "
            f"{np.median([row[target]['ratio_of_minima'] for row in rows]):.3f}",
        }
        for target in TARGETS
    ]
    record("lowering", {"networks": rows}, goals)


def open_(target: str, model: bytes, folder: Path) -> Session:
    """Compile an ONNX file into ``folder`` and open it."""
    folder.mkdir(parents=True)
    source = folder / "source.onnx"
    source.write_bytes(model)
    out = folder / "out"
    out.mkdir()
    signature = ModelSignature("input", "logits", (1, 28, 28), CLASSES, (1, 1, 1))
    result = get_target(target).compile(CompileRequest(source, None, signature), out)
    return get_target(target).open(out / result.main, signature, SessionOptions(threads=1))


if __name__ == "__main__":
    main()
