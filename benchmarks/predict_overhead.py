"""What predicting costs beyond the runtime: one image to its label, and a folder of many files.

    .venv/bin/python -m benchmarks.predict_overhead [--quick] [--files N]

The networks are drawn from the spaces for 3 x 32 x 32 images, with random weights: only time is
measured. Reading and decoding a PNG of that size costs about as much processor time as 10 million
multiply-adds; with every core busy in the runtime, a network of N microseconds per image and core can
keep at most N / (N + decoding) of its throughput, so the share depends on the network.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.record import record
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Samples, write_bundle
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_export.prediction.classifier import Classifier, load
from smash_search.model.interpreter import FrozenNetwork, Network, fold
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.space import space_for
from smash_targets.base import ModelSignature

SPEC = InputSpec(3, (32, 32))
PREPROCESSING = Preprocessing(32, 32, 3, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
CLASSES = tuple(f"class{index}" for index in range(10))
NETWORKS = (("small", "small", 12e6), ("medium", "tiny", 40e6), ("large", "paper", 150e6))
FILES = 1000  # different files; the folder has each of them many times, as hard links
STREAMED = 100_000


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 files; another name for the result")
    parser.add_argument("--files", type=int, default=STREAMED, help="of the folder, in thousands")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    networks = {name: draw(space, macs) for name, space, macs in NETWORKS}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = make_folder(root / "images", 2000 if quick else arguments.files)
        for name, architecture in networks.items():
            bundle = make_bundle(root / name, architecture)
            with load(bundle, "onnxruntime", threads=1) as classifier:
                single = measure_single(classifier, next((folder / "00").iterdir()))
            with load(bundle, "onnxruntime", threads=2) as classifier:
                whole = name == "medium" and not quick
                stream = measure_stream(classifier, folder if whole else folder / "00", whole)
            cost = cost_of(architecture, SPEC, len(CLASSES))
            results[name] = {"macs": cost.macs, "one_image": single, "stream_2_threads": stream}
            print(name, results[name], flush=True)
    medium = results["medium"]["stream_2_threads"]
    single = results["small"]["one_image"]
    record(
        "predict_overhead" + ("_quick" if quick else ""),
        results,
        [
            {
                "what": "image to label in Python, 32x32, over ONNX Runtime's own time, 1 thread",
                "goal": "<= 0.3 ms",
                "value": round(single["over_the_runtime_ms"], 3),
                "met": single["over_the_runtime_ms"] <= 0.3,
                "note": "a PNG file, read and decoded; from an array: "
                f"{single['array_ms'] - single['runtime_ms']:.3f} ms",
            },
            {
                "what": f"streaming {medium['images']} files, share of the runtime's throughput, 2 threads",
                "goal": ">= 90 %",
                "value": round(100 * medium["share"], 1),
                "met": medium["share"] >= 0.9,
                "note": f"network of {results['medium']['macs'] / 1e6:.0f} million multiply-adds; "
                + ", ".join(
                    f"{name}: {100 * results[name]['stream_2_threads']['share']:.0f} %" for name in networks
                ),
            },
            {
                "what": "streaming: growth of resident memory after the first 1000 images",
                "goal": "bounded",
                "value": f"{medium['memory_growth_mb']:.1f} MB",
                "met": medium["memory_growth_mb"] < 20,
                "note": f"{medium['images']} files",
            },
        ],
    )


def draw(space_name: str, macs: float) -> Architecture:
    """The first architecture of a space within 10 % of a number of multiply-adds."""
    space = space_for(SPEC, space_name)
    drawn = (space.draw(0, slot) for slot in range(2000))
    return next(a for a in drawn if abs(cost_of(a, SPEC, len(CLASSES)).macs / macs - 1) < 0.1)


def make_bundle(path: Path, architecture: Architecture) -> Path:
    """A bundle with random weights."""
    torch.manual_seed(0)
    weights = fold(Network(architecture, SPEC, len(CLASSES)).eval())
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        tensor = torch.from_numpy(PREPROCESSING.normalise(images))
        logits = FrozenNetwork(architecture, weights).eval()(tensor).numpy()
    return write_bundle(
        path,
        onnx=onnx_from_architecture(architecture, weights, SPEC),
        torchscript=None,
        architecture=architecture,
        weights=weights,
        labels=CLASSES,
        preprocessing=PREPROCESSING,
        signature=ModelSignature("input", "logits", (3, 32, 32), len(CLASSES)),
        samples=Samples(images, np.zeros(64, np.int64), logits),
        calibration=None,
        provenance={},
    ).path


def make_folder(root: Path, count: int) -> Path:
    """PNG files in folders of 1000; smooth pictures, which compress as photographs do."""
    random = np.random.default_rng(0)
    originals = []
    (root / "00").mkdir(parents=True)
    for index in range(FILES):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = root / "00" / f"{index:04}.png"
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(path)
        originals.append(path)
    for part in range(1, count // FILES):
        (root / f"{part:02}").mkdir()
        for path in originals:
            os.link(path, root / f"{part:02}" / path.name)
    return root


def measure_single(classifier: Classifier, path: Path) -> dict[str, Any]:
    """p50 of the runtime, and of predict with an array, with PNG bytes, and with a path, interleaved."""
    data = path.read_bytes()
    array = classifier.preprocessing.decode(data)
    tensor = classifier.preprocessing.normalise(array[np.newaxis])
    calls: dict[str, Callable[[], Any]] = {
        "runtime": lambda: classifier.logits(tensor),
        "array": lambda: classifier.predict(array),
        "png_bytes": lambda: classifier.predict(data),
        "path": lambda: classifier.predict(path),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(600):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= 100:
                times[name].append(1e3 * (time.perf_counter() - started))
    p50 = {f"{name}_ms": round(float(np.median(values)), 4) for name, values in times.items()}
    return {**p50, "over_the_runtime_ms": round(p50["path_ms"] - p50["runtime_ms"], 4)}


def measure_stream(classifier: Classifier, folder: Path, whole: bool) -> dict[str, Any]:
    """Images per second from files, beside the runtime's own with the same batch, before and after."""
    before = runtime_rate(classifier)
    repeats = 1 if whole else 5
    count, memory = 0, []
    started = time.perf_counter()
    for _ in range(repeats):
        for _ in classifier.stream(folder):
            count += 1
            if count % 1000 == 0:
                memory.append(resident_mb())
    rate = count / (time.perf_counter() - started)
    after = runtime_rate(classifier)
    runtime = (before + after) / 2
    return {
        "images": count,
        "images_per_second": round(rate, 1),
        "runtime_images_per_second": [round(before, 1), round(after, 1)],
        "share": round(rate / runtime, 4),
        "memory_growth_mb": round(max(memory) - memory[0], 2),
    }


def runtime_rate(classifier: Classifier, seconds: float = 8.0) -> float:
    """Images per second of the runtime alone at the batch that streaming uses."""
    batch = np.zeros((32, *classifier.preprocessing.input_shape), np.float32)
    for _ in range(5):
        classifier.logits(batch)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        classifier.logits(batch)
        count += len(batch)
    return count / (time.perf_counter() - started)


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
