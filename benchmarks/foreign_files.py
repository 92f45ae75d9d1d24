"""Foreign networks against their bundles, and bundles against flipped bits.

    python -m benchmarks.foreign_files [--graphs 500] [--flips 600]

Graphs are random image classifiers of every operator family at every opset from 7 to the newest
(tests/smash_export/export/random_graphs.py). File and bundle are run in ONNX Runtime on images that adopt has
not seen. Flips: single bits of every file of a bundle with compiled files, each followed by an open.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx

from benchmarks.record import record
from smash_base.errors import InvalidInputError, SmashError
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Bundle
from smash_export.compiling.compile import compile_bundle
from smash_export.export.adopt import Images, adopt
from smash_export.export.onnx_graphs import session_of
from tests.conftest import make_digits_bundle
from tests.smash_export.export.random_graphs import CHANNELS, CLASSES, NEWEST, SIDE, random_classifier

OLDEST = 7
LABELS = tuple("abcde")[:CLASSES]
PREPROCESSING = Preprocessing(SIDE, SIDE, CHANNELS, (0.5,) * CHANNELS, (0.25,) * CHANNELS)
SAME = 1e-4  # of the largest answer


def main() -> None:
    """Run both, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--graphs", type=int, default=500)
    parser.add_argument("--flips", type=int, default=600)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    graphs = compare_graphs(arguments.graphs)
    flips = flip_bits(arguments.flips)
    adopted, silent = graphs["outcomes"]["the same"], graphs["outcomes"]["silent difference"]
    found = {name: f"{row['found']} of {row['flips']}" for name, row in flips.items()}
    missed = sum(row["flips"] - row["found"] for row in flips.values())
    goals: list[dict[str, Any]] = [
        {
            "what": f"adopt, {arguments.graphs} random graphs, opset {OLDEST} to {NEWEST}: silent difference",
            "goal": "0",
            "value": silent,
            "met": silent == 0,
            "note": f"largest: {graphs['worst']:.2g} of the largest answer; images that adopt did not see",
        },
        {
            "what": "the same graphs: adopted, not refused",
            "goal": "all",
            "value": f"{adopted} of {arguments.graphs}",
            "met": adopted == arguments.graphs,
            "note": f"of opset 7 to 12: {graphs['converted']} made newer, {graphs['kept']} kept as they are",
        },
        {
            "what": f"flipped bits found, {arguments.flips} for each of {len(flips)} files of a bundle",
            "goal": "100 %",
            "value": f"{missed} missed",
            "met": missed == 0,
            "note": f"manifest.json: {found['manifest.json']}",
        },
    ]
    record("foreign_files", {"graphs": graphs, "flips": flips}, goals)


def compare_graphs(count: int) -> dict[str, Any]:
    """Outcome of each graph: the same, a silent difference, or refused with its reason."""
    outcomes: Counter[str] = Counter({"the same": 0, "silent difference": 0, "refused": 0})
    operators: Counter[str] = Counter()
    result: dict[str, Any] = {"worst": 0.0, "converted": 0, "kept": 0, "different": [], "refused": []}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        for seed in range(count):
            opset = OLDEST + seed % (NEWEST - OLDEST + 1)
            model = random_classifier(seed, opset)
            operators.update({node.op_type for node in model.graph.node})
            try:
                difference, stored = one(model, Path(name), seed)
            except SmashError as error:
                outcomes["refused"] += 1
                result["refused"].append({"seed": seed, "opset": opset, "error": str(error)})
                continue
            outcomes["the same" if difference <= SAME else "silent difference"] += 1
            if difference > SAME:
                result["different"].append({"seed": seed, "opset": opset, "difference": difference})
            result["worst"] = max(result["worst"], difference)
            if opset < 13:
                result["kept" if stored == opset else "converted"] += 1
    return {
        **result,
        "outcomes": dict(outcomes),
        "operators": dict(sorted(operators.items())),
        "seconds": round(time.monotonic() - begin, 1),
    }


def one(model: onnx.ModelProto, folder: Path, seed: int) -> tuple[float, int]:
    """Largest difference between file and bundle, as a share of the largest answer; the bundle's opset."""
    numbers = np.random.default_rng((seed, 1))
    images = numbers.integers(0, 256, (8, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    tensors = numbers.normal(size=(8, CHANNELS, SIDE, SIDE)).astype(np.float32) * 2
    path = folder / "foreign.onnx"
    path.write_bytes(model.SerializeToString())
    labels = np.zeros(8, np.int64)
    found = adopt(
        path,
        folder / "bundle",
        labels=LABELS,
        preprocessing=PREPROCESSING,
        images=Images(images, labels, None, {}),
        force=True,
    )
    expected, received = answers(path, tensors), answers(found.bundle.onnx, tensors)
    stored = int(onnx.load(found.bundle.onnx).opset_import[0].version)
    return float(np.abs(expected - received).max() / np.abs(expected).max()), stored


def answers(path: Path, tensors: np.ndarray) -> np.ndarray:
    """What a file answers in the batch that it declares."""
    declared = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value
    size = declared if declared > 0 else len(tensors)
    session = session_of(path.read_bytes())
    name = session.get_inputs()[0].name
    return np.concatenate(
        [session.run(None, {name: tensors[i : i + size]})[0] for i in range(0, len(tensors), size)]
    )


def flip_bits(count: int) -> dict[str, dict[str, int]]:
    """How many of ``count`` flipped bits an open finds, for each file of a bundle."""
    result = {}
    numbers = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        bundle = make_digits_bundle(Path(name) / "bundle")
        for precision in ("fp32", "int8"):
            compile_bundle(bundle, "onnxruntime", precision, isolated=False)
        Bundle.open(bundle).record(
            "bench", {"p50_ms": 1.25e-05, "share": 0.9766666666666667, "note": "a\x1fé"}
        )
        listed = [path for path in sorted(bundle.rglob("*")) if path.is_file() and path.name != ".lock"]
        for path in listed:
            result[str(path.relative_to(bundle))] = flips_of(path, bundle, count, numbers)
    return result


def flips_of(path: Path, bundle: Path, count: int, numbers: random.Random) -> dict[str, int]:
    """Flip bits of one file one after the other."""
    whole, found = path.read_bytes(), 0
    places = [numbers.randrange(8 * len(whole)) for _ in range(count)]
    for place in places:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(data))
        try:
            Bundle.open(bundle)
        except InvalidInputError:
            found += 1
    path.write_bytes(whole)
    Bundle.open(bundle)
    return {"bytes": len(whole), "flips": count, "found": found}


if __name__ == "__main__":
    main()
