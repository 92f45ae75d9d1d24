"""Whether the recipes' look at few images decides about flips as it does at many.

    python -m benchmarks.flip_probe --flips cifar10:DIR --keeps digits idx:DIR

How many of 20 subsets of each size are flipped, of data sets whose class survives a flip and of such whose
class does not (Fashion-MNIST counts as the probe decides about all of its images); beside it how many were
when images were halved once, without regard to chance.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from smash_search.data import Split, load_dataset
from smash_search.train.recipes import FLIP_SHARE, PROBE_IMAGES, PROBE_SIDE, _ridge, survives_flip

SIZES = (40, 100, 200, 450, 1000, 3000)
SUBSETS = 20


def survived_one_halving(images: np.ndarray, labels: np.ndarray) -> bool:
    """The earlier probe: one half learns, the other one tests.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
    """
    order = np.random.default_rng(0).permutation(len(labels))[:PROBE_IMAGES]
    step = max(1, min(images.shape[1:3]) // PROBE_SIDE)
    small = np.asarray(images[np.sort(order)])[:, ::step, ::step].astype(np.float32) / 255
    truth = labels[np.sort(order)]
    mixed = np.random.default_rng(1).permutation(len(truth))
    learn, test = mixed[::2], mixed[1::2]
    mean = small[learn].mean(0)
    weights = _ridge((small[learn] - mean).reshape(len(learn), -1), truth[learn])

    def right(shown: np.ndarray) -> float:
        answers = (shown - mean).reshape(len(shown), -1) @ weights
        return float((answers.argmax(1) == truth[test]).mean())

    as_is = right(small[test])
    return as_is > 0 and right(small[test][:, :, ::-1]) >= FLIP_SHARE * as_is


def flipped(split: Split, size: int) -> dict[str, Any]:
    """Numbers of subsets of a size that are flipped, now and by one halving; seconds of one look."""
    now, once, seconds = 0, 0, []
    for seed in range(SUBSETS):
        chosen = np.sort(np.random.default_rng((seed, size)).permutation(len(split))[:size])
        images, labels = np.asarray(split.images[chosen]), split.labels[chosen]
        start = time.process_time()
        now += survives_flip(images, labels)
        seconds.append(time.process_time() - start)
        once += survived_one_halving(images, labels)
    return {"images": size, "flipped": now, "by_one_halving": once, "cpu_seconds": float(np.median(seconds))}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flips", nargs="+", default=[], help="data sets whose class survives a flip")
    parser.add_argument("--keeps", nargs="+", default=[], help="those whose class does not")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    goals = []
    for spec in arguments.flips + arguments.keeps:
        data = load_dataset(spec)
        rows = [flipped(data.train, size) for size in SIZES if size <= len(data.train)]
        whole = survives_flip(data.train.images, data.train.labels)
        name = data.name if data.name != "idx" else Path(spec).name
        results[name] = {"all_images": {"images": len(data.train), "flipped": whole}, "subsets": rows}
        flips = spec in arguments.flips
        counts = [row["flipped"] if flips else SUBSETS - row["flipped"] for row in rows]
        goals.append(
            {
                "what": f"{name}: subsets of 20 that are {'' if flips else 'not '}flipped",
                "goal": ">= 17 of each size, 20 from 450 images on" if flips else "20 of each size",
                "value": ", ".join(f"{row['images']:,}: {n}" for row, n in zip(rows, counts, strict=True)),
                "met": whole == flips and _met(rows, counts, flips),
                "note": "by one halving "
                + ", ".join(
                    str(row["by_one_halving"] if flips else SUBSETS - row["by_one_halving"]) for row in rows
                ),
            }
        )
    record("flip_probe", results, goals)


def _met(rows: list[dict[str, Any]], counts: list[int], flips: bool) -> bool:
    """Whether enough subsets of each size are decided right."""
    least = [17 if flips and row["images"] < 450 else SUBSETS for row in rows]
    return all(count >= wanted for count, wanted in zip(counts, least, strict=True))


if __name__ == "__main__":
    main()
