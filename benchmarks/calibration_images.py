"""What int8 loses on test images where it is calibrated on training images, and on validation images.

    python -m benchmarks.calibration_images --data cifar10:DIR BUNDLE ...

Every bundle is of a network that was trained on these images with their usual split. Ranges, corrected biases
and the nodes that stay in fp32 are chosen from 1,024 images of one kind or the other; the graph then answers
all test images, which had no part in it. Weights of 8 bits, and of 7 as processors without VNNI have them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.record import record
from smash_base.sampling import spread
from smash_export.bundle.bundle import Bundle
from smash_export.compiling.precision.int8 import Scheme, quantise
from smash_export.export.onnx_graphs import logits_of
from smash_export.measure.labelled import CALIBRATION_IMAGES
from smash_search.data import Dataset, load_dataset


def measured(bundle: Bundle, dataset: Dataset, bits: int) -> dict[str, Any]:
    """Points that a network loses on the test images, and those that its calibration images told."""
    model = onnx.load_model_from_string(bundle.onnx.read_bytes())
    labels = dataset.test.labels

    def shown(images: np.ndarray) -> np.ndarray:
        return np.asarray(bundle.preprocessing.normalise(np.asarray(images)), np.float32)

    test = shown(dataset.test.images)
    exact = logits_of(model, test).argmax(1)
    scheme = Scheme("u8", reduce_range=bits == 7, clips=True)
    name = bundle.architecture.key if bundle.architecture else bundle.path.name
    found: dict[str, Any] = {"network": name, "bits": bits}
    found["error_fp32"] = float((exact != labels).mean())
    for kind, split in (("training", dataset.train), ("validation", dataset.validation)):
        images = split.images[spread(len(split), CALIBRATION_IMAGES)]
        graph, notes = quantise(model, shown(images), scheme)
        answers = logits_of(graph, test).argmax(1)
        lost = 100 * float((exact == labels).mean() - (answers == labels).mean())
        changed = 100 * float((exact != answers).mean())
        kept = notes["kept_fp32"]
        found[kind] = {
            "points_lost": round(lost, 3),
            "points_told": notes["expected_points_lost"],
            "labels_changed": round(changed, 3),
            "nodes_in_fp32": len(kept) if isinstance(kept, list) else 0,
        }
    return found


def goal(rows: list[dict[str, Any]], bits: int) -> dict[str, Any]:
    """A line of the overview: the mean loss by either kind of images."""
    mine = [row for row in rows if row["bits"] == bits]
    means = {
        kind: float(np.mean([row[kind]["points_lost"] for row in mine]))
        for kind in ("training", "validation")
    }
    told = [
        f"{row['validation']['points_told']:.2f} for {row['validation']['points_lost']:.2f}" for row in mine
    ]
    return {
        "what": f"points that int8 loses by weights of {bits} bits, calibrated on validation images",
        "goal": "no more than on training images",
        "value": f"{means['validation']:.2f} for {means['training']:.2f}",
        "met": means["validation"] <= means["training"],
        "note": f"mean of {len(mine)} networks, all test images; told for lost: {', '.join(told)}",
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("bundles", type=Path, nargs="+")
    arguments = parser.parse_args()
    rows = []
    for path in arguments.bundles:
        bundle = Bundle.open(path)
        held: Any = bundle.manifest.provenance["data"]
        dataset = load_dataset(arguments.data, seed=held["seed"])
        if dataset.fingerprint != held["fingerprint"]:
            parser.error(f"{path} was trained on another split: {held['spec']}, seed {held['seed']}")
        rows += [measured(bundle, dataset, bits) for bits in (7, 8)]
    record("calibration_images", {"rows": rows}, [goal(rows, bits) for bits in (7, 8)])


if __name__ == "__main__":
    main()
