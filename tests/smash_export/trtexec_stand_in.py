"""A program with trtexec's command line, for the scripts: it takes what a version of trtexec takes (the
option table decides), an "engine" is the ONNX file, and ONNX Runtime computes. What it prints and exports has
the documented form. It shows that the scripts and readers fit together, and nothing about TensorRT.

    STAND_IN_VERSION=10.16 STAND_IN_NUMBER=101600 python trtexec_stand_in.py --loadEngine=model.engine ...
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from smash_targets.tensorrt.trtexec import problems

VERSION, NUMBER = os.environ["STAND_IN_VERSION"], os.environ["STAND_IN_NUMBER"]
SPOIL = os.environ.get("STAND_IN_SPOIL", "")  # "labels" or "nan"


def main(words: list[str]) -> int:
    line = f"TensorRT.trtexec [TensorRT v{NUMBER}] [b1] # trtexec {' '.join(words)}"
    print(f"&&&& RUNNING {line}")
    if words == ["--help"]:
        return 0
    wrong = problems(words, VERSION)
    if wrong:
        log("E", "; ".join(wrong))
        return 1
    given = {name: value for name, _, value in (word.partition("=") for word in words)}
    log("I", f"TensorRT version: {VERSION}.0")
    if "--saveEngine" in given:
        shutil.copyfile(given["--onnx"], given["--saveEngine"])
        log("I", "Engine built in 1.5 sec.")
    else:
        run(given)
    print(f"&&&& PASSED {line}")
    return 0


def run(given: dict[str, str]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(given["--loadEngine"], providers=["CPUExecutionProvider"])
    name, _, path = given["--loadInputs"].partition(":")
    shape = [int(size) for size in re.split("[:x]", given["--shapes"])[1:]]
    images = np.frombuffer(Path(path).read_bytes(), "<f4")
    assert images.size == np.prod(shape), "the file has not the size of the binding"
    started = time.perf_counter()
    (logits,) = session.run(["logits"], {name: images.reshape(shape)})
    spent = 1000 * (time.perf_counter() - started)
    log("I", "Engine deserialized in 0.01 sec.")
    log("I", "=== Performance summary ===")
    log("I", f"Throughput: {1000 / spent:g} qps")
    tail = ", ".join(f"percentile({at}%) = {spent:g} ms" for at in (90, 95, 99))
    for title in ("Latency", "GPU Compute Time"):
        numbers = ", ".join(f"{word} = {spent:g} ms" for word in ("min", "max", "mean", "median"))
        log("I", f"{title}: {numbers}, {tail}")
    row = f'{{ "h2dMs" : 0, "computeMs" : {spent:g}, "d2hMs" : 0, "latencyMs" : {spent:g} }}'
    layer = '{ "name" : "a "b"", "timeMs" : 3, "averageMs" : 1, "medianMs" : 1, "percentage" : 50 }'
    if SPOIL == "labels":
        logits = logits[:, ::-1]
    values = ", ".join("nan" if SPOIL == "nan" else f"{value:.9g}" for value in logits.ravel())
    size = "x".join(map(str, logits.shape))
    texts = {
        "--exportTimes": f"[\n  {row}\n, {row}\n]\n",
        "--exportProfile": f'[\n  {{ "count" : 3 }}\n, {layer}\n]\n',
        "--exportLayerInfo": '{"Layers": ["a", "b"], "Bindings": ["input", "logits"]}\n',
        "--exportOutput": (
            f'[\n  {{ "name" : "logits"\n  , "dimensions" : "{size}"\n  , "values" : [ {values} ]\n  }}\n]\n'
        ),
    }
    for option, text in texts.items():
        if option in given:
            Path(given[option]).write_text(text)


def log(severity: str, text: str) -> None:
    print(f"[11/24/2026-19:00:00] [{severity}] {text}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
