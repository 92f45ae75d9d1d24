"""Images per second of a training step over a plain PyTorch loop of the same network, one thread.

    python -m benchmarks.training_step --data cifar10:DIR [--rounds 5] [--results NAME]

Both train ResNet-8 by the same recipe, with flips and crops, on the same images; the plain loop is what a
tutorial writes: float32, contiguous, one image after another through the augmentation of a batch, SGD. Rounds
alternate, and processor time counts, which a busy machine disturbs least. The same of ``torch.compile``, over
our own step without it, for several hand-made networks: its price is the first pass, compilers that it starts
included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.networks import NETWORKS, ResNet8
from benchmarks.record import record
from smash_search.data import Dataset, Split, load_dataset
from smash_search.train.compute import multiplies_bfloat16
from smash_search.train.network import Recipe, fit

BATCH, STEPS, PAD = 128, 10, 2
COMPILED = ("resnet8", "resnet20", "mobilenetv2-0.35", "efficientnet-0.35")
RECIPE = Recipe(1, BATCH, augmentation={"pad_crop": PAD, "flip": True})


def plain_epoch(dataset: Dataset) -> float:
    """Images per processor second of the plain loop."""
    torch.manual_seed(0)
    network = ResNet8(3, 10)
    optimiser = torch.optim.SGD(network.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    order = np.random.default_rng(0).permutation(len(dataset.train))
    begin = time.process_time()
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        images = torch.from_numpy(dataset.preprocessing.normalise(dataset.train.images[chosen]))
        padded = F.pad(images, (PAD,) * 4)
        for index in range(len(images)):
            top, left = np.random.randint(0, 2 * PAD + 1, 2)
            image = padded[index, :, top : top + 32, left : left + 32]
            images[index] = image.flip(-1) if np.random.rand() < 0.5 else image
        loss = F.cross_entropy(network(images), torch.from_numpy(dataset.train.labels[chosen]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return len(order) / (time.process_time() - begin)


def our_epoch(dataset: Dataset) -> float:
    """The same of :func:`fit`; one validation image is judged at its end."""
    torch.manual_seed(0)
    begin = time.process_time()
    fit(ResNet8(3, 10), dataset, RECIPE, evaluate=False)
    return len(dataset.train) / (time.process_time() - begin)


class Steps:
    """Our steps of one network, pass after pass.

    Args:
        network: to train.
        dataset: training images of a pass.
        compiled: let PyTorch compile the network with its first step.
    """

    def __init__(self, network: nn.Module, dataset: Dataset, compiled: bool) -> None:
        self._network, self._dataset = network, dataset
        if compiled:
            self._network.compile()
        begin = _spent()
        self.rate()
        self.first = _spent() - begin
        """Processor seconds of the first pass."""

    def rate(self) -> float:
        """Images per processor second of the steps of a pass, the first two left out."""
        times: list[float] = []
        fit(
            self._network,
            self._dataset,
            RECIPE,
            evaluate=False,
            on_step=lambda _: times.append(time.process_time()),
        )
        return BATCH * (len(times) - 2) / (times[-1] - times[1])


def _spent() -> float:
    """Processor seconds of this process and of those that it started and that have ended."""
    told = os.times()
    return told.user + told.system + told.children_user + told.children_system


def compiled_or_not(network: str, dataset: Dataset, rounds: int) -> dict[str, Any]:
    """What compiling costs once, and the rates with and without it in turn."""
    torch.manual_seed(0)
    without, with_it = (Steps(NETWORKS[network](3, 10), dataset, compiled) for compiled in (False, True))
    found = [{"without": without.rate(), "compiled": with_it.rate()} for _ in range(rounds)]
    ratios = [round_["compiled"] / round_["without"] for round_ in found]
    return {
        "network": network,
        "seconds": with_it.first - without.first,
        "images_per_second": found,
        "ratios": ratios,
    }


def goal_of_compiling(found: dict[str, Any]) -> dict[str, Any]:
    """A line of the overview: whether compiling pays within a training of five minutes."""
    ratio = statistics.median(found["ratios"])
    pays = found["seconds"] < 300 * (1 - 1 / ratio)
    return {
        "what": "torch.compile: images per second of a training step over our own without it, "
        f"{found['network']}",
        "goal": "saves its price within five minutes",
        "value": f"{ratio:.2f}x, {found['seconds']:.0f} s to compile",
        "met": pays,
        "note": f"one thread; median of {len(found['ratios'])} rounds in turn, "
        f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}",
    }


def main() -> None:
    """Measure in turns and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", default="training_step", help="of another kind of processor")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    whole = load_dataset(arguments.data)
    count = BATCH * STEPS

    def first(split: Split, images: int) -> Split:
        return Split(np.asarray(split.images[:images]), split.labels[:images])

    dataset = replace(whole, train=first(whole.train, count), validation=first(whole.validation, 1))
    plain_epoch(dataset), our_epoch(dataset)  # first calls compile kernels
    rounds = [(plain_epoch(dataset), our_epoch(dataset)) for _ in range(arguments.rounds)]
    ratios = [ours / plain for plain, ours in rounds]
    ratio = statistics.median(ratios)
    goal = {
        "what": "images per second of a training step over a plain PyTorch loop, ResNet-8, one thread",
        "goal": ">= 1.5x",
        "value": f"{ratio:.2f}x",
        "met": ratio >= 1.5,
        "note": f"median of {len(ratios)} rounds in turn, {min(ratios):.2f} to {max(ratios):.2f}; "
        f"bfloat16 in the processor: {'yes' if multiplies_bfloat16() else 'no'}",
    }
    compiled = [compiled_or_not(network, dataset, arguments.rounds) for network in COMPILED]
    results = {
        "images_per_second": [{"plain": plain, "ours": ours} for plain, ours in rounds],
        "torch_compile": compiled,
    }
    record(arguments.results, results, [goal, *map(goal_of_compiling, compiled)])


if __name__ == "__main__":
    main()
