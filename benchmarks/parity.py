"""200 random architectures: frozen against the search's own forward, and every runtime against eager.

    python -m benchmarks.parity [--networks 200] [--targets onnxruntime,torchscript,...]

Weights are those that an untrained supernet generates, with norms recomputed for each architecture; images
are scikit-learn's digits at 8x8 (space "tiny"). The runtimes' own files are made by their own compilers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.record import record
from smash_base.errors import SmashError
from smash_export.export.freeze import input_of, trace
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_search.data import Dataset, load_dataset
from smash_search.model.interpreter import FrozenNetwork
from smash_search.model.supernet import Supernet
from smash_search.space.architecture import Architecture
from smash_search.space.best import BestFile
from smash_search.space.space import space_for
from smash_targets.base import CompileRequest, ModelSignature, SessionOptions, get_target

LABELS = tuple("0123456789")


def main() -> None:
    """Compare every network in every runtime, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--targets", default="torchscript,onnxruntime,openvino,ncnn,mnn")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dataset = load_dataset("digits")
    spec = input_of(dataset)
    torch.manual_seed(0)
    supernet = Supernet(space_for(spec, "tiny"), spec, 10).eval()
    names = [name for name in arguments.targets.split(",") if get_target(name).availability().available]
    frozen_worst, rows = 0.0, {name: {"worst": 0.0, "failed": [], "labels": 0, "same": 0} for name in names}
    versions = {name: get_target(name).availability().version for name in names}
    begin = time.monotonic()
    for slot in range(arguments.networks):
        architecture = supernet.space.draw(2026, slot)
        difference = one(architecture, supernet, dataset, rows)
        frozen_worst = max(frozen_worst, difference)
        if slot % 20 == 19:
            print(
                f"{slot + 1} networks, {time.monotonic() - begin:.0f} s, frozen {frozen_worst:.2g}",
                flush=True,
            )
    goals: list[dict[str, Any]] = [
        {
            "what": f"frozen against the search's own forward, {arguments.networks} random architectures",
            "goal": "max difference <= 1e-5",
            "value": frozen_worst,
            "met": frozen_worst <= 1e-5,
            "note": "largest over all logits of 32 real images each",
        }
    ]
    for name, row in rows.items():
        row["agreement"] = row.pop("same") / max(1, row.pop("labels"))
        goals.append(
            {
                "what": f"{name} {versions[name]} against eager, {arguments.networks} random networks, fp32",
                "goal": "max difference <= 1e-4, top-1 agreement 100 %, no failure",
                "value": f"{row['worst']:.3g}, {row['agreement']:.2%}, {len(row['failed'])} failed",
                "met": row["worst"] <= 1e-4 and row["agreement"] == 1 and not row["failed"],
                "note": "untrained generated weights; batches of 1 and 32 real images",
            }
        )
    results = {"networks": arguments.networks, "frozen_worst": frozen_worst, "targets": rows}
    record("parity", results, goals)


def one(
    architecture: Architecture, supernet: Supernet, dataset: Dataset, rows: dict[str, dict[str, Any]]
) -> float:
    """Difference of the frozen network to the search's forward; runtimes are added to ``rows``."""
    images = dataset.preprocessing.normalise(dataset.test.images[:32])
    tensor = torch.from_numpy(images)
    calibration = torch.from_numpy(dataset.preprocessing.normalise(dataset.train.images[:128]))
    statistics = supernet.statistics(architecture, [calibration])
    weights = supernet.materialise(architecture, statistics)
    network = FrozenNetwork(architecture, weights).eval()
    with torch.no_grad():
        scored = supernet(architecture, tensor, statistics).numpy()
        eager = network(tensor).numpy()
    spec = supernet.input_spec
    signature = ModelSignature("input", "logits", dataset.preprocessing.input_shape, 10, (1, 1, 32))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(onnx_from_architecture(architecture, weights, spec))
        (folder / "model.pt").write_bytes(trace(network, BestFile(architecture, spec, LABELS), dataset))
        for target, row in rows.items():
            out = folder / target
            out.mkdir()
            request = CompileRequest(folder / "model.onnx", folder / "model.pt", signature)
            try:
                result = get_target(target).compile(request, out)
                with get_target(target).open(
                    out / result.main, signature, SessionOptions(threads=1)
                ) as session:
                    logits = session.run(images)
                    single = session.run(images[:1])
            except SmashError as error:
                row["failed"].append({"key": architecture.key, "error": str(error)})
                continue
            worst = max(np.abs(logits - eager).max(), np.abs(single - eager[:1]).max())
            row["worst"] = max(row["worst"], float(worst))
            row["labels"] += len(eager)
            row["same"] += int((logits.argmax(1) == eager.argmax(1)).sum())
    return float(np.abs(scored - eager).max())


if __name__ == "__main__":
    main()
