"""Loss of the HyperNet after equally many steps, against the original program.

    python -m benchmarks.training_loss --original COMMAND [--sizes small,middle] [--steps 300] [--seeds 0,1,2]
        [--rates 0.001,0.003]

The same architectures in the same order, the same batches and the same optimiser (Adam as in the original,
half a cosine), at the sizes of benchmarks.training_speed. Both programs start from their own initial weights.
Ours trains with the learning rates of its presets, which its normalised filters need; the original with its
own of 1e-3 and with others.

The original program is not part of this repository. ``COMMAND SIZE losses STEPS SEED RATE`` draws from its
own sampler with its annealing, trains and prints ``{"losses": [...], "architectures": [...]}``, the
architectures as they stand in a best.json. Batch n of 64 images is
``numpy.random.default_rng((SEED, n)).integers(54000, size=64)`` of Fashion-MNIST's training images without
the validation part of seed 0, (value / 255 - 0.286) / 0.353, repeated for three channels.

What is compared is the mean loss of the last tenth of the steps.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import record
from benchmarks.training_speed import CLASSES, SIZES, run_json
from smash_export.device_search.search import SPACE_DEFAULTS
from smash_search.data import Dataset, load_dataset
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.interpreter import forward
from smash_search.space.architecture import Architecture
from smash_search.train.compute import autocast, memory_format, multiplies_bfloat16
from smash_search.train.hypernet import cosine, new_supernet

BATCH = 64
RATES = {name: SPACE_DEFAULTS["small"]["training"][name] for name in ("learning_rate", "hypernet_rate")}


def main() -> None:
    """Train both, compare, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--original", type=shlex.split, required=True, metavar="COMMAND")
    parser.add_argument("--sizes", default="small")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rates", default="0.001,0.003", help="of the original; the first is its own")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset("fashion-mnist")
    rows, goals = [], []
    for size in arguments.sizes.split(","):
        found = []
        for seed in map(int, arguments.seeds.split(",")):
            words = [*arguments.original, size, "losses", str(arguments.steps), str(seed)]
            original = {rate: run_json([*words, rate]) for rate in arguments.rates.split(",")}
            drawn = [
                Architecture.from_json(entry) for entry in next(iter(original.values()))["architectures"]
            ]
            row = {
                "size": size,
                "seed": seed,
                "steps": arguments.steps,
                "original": {rate: last_tenth(run["losses"]) for rate, run in original.items()},
                "ours": last_tenth(train(size, drawn, dataset, seed, low=multiplies_bfloat16())),
                "ours_float32": last_tenth(train(size, drawn, dataset, seed, low=False)),
            }
            print(row, flush=True)
            found.append(row)
        goals.append(goal(size, found))
        rows += found
    record("training_loss", {"bfloat16": multiplies_bfloat16(), "rates": RATES, "rows": rows}, goals)


def goal(size: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, for the overview."""
    ours, single = (float(np.mean([row[name] for row in rows])) for name in ("ours", "ours_float32"))
    theirs = {rate: float(np.mean([row["original"][rate] for row in rows])) for rate in rows[0]["original"]}
    listed = ", ".join(f"{value:.3f} at {rate}" for rate, value in theirs.items())
    return {
        "what": f"loss after {rows[0]['steps']} HyperNet steps, {size} size, against the original program",
        "goal": "the same or lower, at every learning rate of the original",
        "value": f"{ours:.3f}, original {listed}",
        "met": ours <= min(theirs.values()),
        "note": f"mean of {len(rows)} seeds, ours with the presets' rates; in float32 {single:.3f}",
    }


def train(size: str, drawn: Sequence[Architecture], dataset: Dataset, seed: int, *, low: bool) -> list[float]:
    """Losses of our steps over these architectures; ``low``: bfloat16 as the product on such CPUs."""
    space, spec, _ = SIZES[size]
    supernet = new_supernet(space, spec, CLASSES, HyperNetConfig(compression=2), seed=seed)
    rate = RATES["learning_rate"]
    filters, hypernet = list(supernet.filters.parameters()), list(supernet.hypernet.parameters())
    apart = {id(value) for value in (*filters, *hypernet)}
    groups = [
        {"params": filters, "weight_decay": 1e-4, "share": 1.0},
        {"params": [value for value in supernet.parameters() if id(value) not in apart], "share": 1.0},
        {"params": hypernet, "share": RATES["hypernet_rate"]},
    ]
    optimiser = torch.optim.Adam(groups, lr=rate, betas=(0.5, 0.999), eps=1e-4)
    device, losses = torch.device("cpu"), []
    for number, architecture in enumerate(drawn):
        for group in optimiser.param_groups:
            group["lr"] = rate * group["share"] * cosine(number, len(drawn))
        images, labels = batch(dataset, seed, number)
        with autocast(device, on_cpu=low):
            source = supernet.source(architecture, noise_seed=number)
            loss = F.cross_entropy(forward(architecture, source, images).float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def batch(dataset: Dataset, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Images [64, 3, 28, 28] and labels of a step."""
    chosen = np.random.default_rng((seed, number)).integers(len(dataset.train), size=BATCH)
    pixels = torch.from_numpy(np.asarray(dataset.train.images)[chosen]).permute(0, 3, 1, 2)
    images = ((pixels.float() / 255 - 0.286) / 0.353).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(np.asarray(dataset.train.labels)[chosen]).long()
    return images.contiguous(memory_format=memory_format(2, torch.device("cpu"))), labels


def last_tenth(losses: list[float]) -> float:
    """Mean loss at the end."""
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


if __name__ == "__main__":
    main()
