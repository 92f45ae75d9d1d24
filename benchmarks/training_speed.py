"""HyperNet training step, scoring and encoding, at three sizes, against a plain version of the same step.

The plain version is our own method written without any of its accelerations: marks of c set one by one,
weights generated for the full height of c, grouped convolutions left to PyTorch, contiguous tensors. Both
run the same architectures on the same images and give the same loss, which is checked. The original
program is not part of this repository: its times, ported to a current PyTorch on 2 free cores, were 1.74 s,
276 ms and 107 ms a step, and 4.1 s, 0.60 s and 0.27 s a score of 500 images.

Times are CPU seconds of one thread, medians over architectures, each of a process of its own, so that a busy
machine disturbs them less than wall-clock times. Every architecture is new to the process, as in
training: the time that oneDNN takes to prepare convolutions of new shapes is part of the figure.

    python -m benchmarks.training_speed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.record import record
from search.architecture import Architecture, InputSpec
from search.compute import memory_format
from search.encoding import BACKGROUND, MARK, Layout
from search.network import forward
from search.space import SPACES, Space
from search.supernet import Supernet
from search.training import new_supernet

ORIGINAL_STEP = {"default": 1.74, "middle": 0.276, "small": 0.107}  # seconds, 2 cores
ORIGINAL_SCORE = {"default": 4.1, "middle": 0.60, "small": 0.27}
ABSENT = "the original is not here; ported to a current PyTorch it took, elsewhere, on 2 free cores"
SCORE_IMAGES = 500
CLASSES = 10

# The original's configurations in our terms: N 8; depth, width and N_max decide reads, widths and units.
SIZES: dict[str, tuple[Space, InputSpec, int]] = {
    "default": (SPACES["paper"], InputSpec(3, (32, 32)), 50),
    "middle": (
        replace(
            SPACES["paper"],
            name="middle",
            widths=((2, 3, 4), (4, 6, 8), (8, 12, 16)),
            bank_units=(1, 2, 4),
            max_banks=24,
            max_ops=8,
            max_units=4,
            max_bottleneck=8,
            reference_reads=(20, 40, 80),
        ),
        InputSpec(3, (28, 28)),
        64,
    ),
    "small": (
        replace(
            SPACES["paper"],
            name="small",
            widths=((1, 2), (2, 3, 4), (4, 6, 8)),
            bank_units=(1, 2),
            max_banks=16,
            max_ops=8,
            max_units=2,
            max_bottleneck=4,
            reference_reads=(10, 20, 40),
        ),
        InputSpec(3, (28, 28)),
        64,
    ),
}


def plain_encoding(layout: Layout, architecture: Architecture, noise_seed: int) -> np.ndarray:
    """c, one mark after the other."""
    tiles = layout.tiles(architecture)
    height = max(tile.rows for tile in tiles)
    c = np.full((layout.channels, height, tiles[-1].left + tiles[-1].columns), BACKGROUND, np.float32)
    position = 0
    for i, block in enumerate(architecture.blocks):
        for j, op in enumerate(block.ops):
            tile = tiles[position]
            position += 1
            for column in range(tile.columns):
                at = tile.left + column
                source = op.reads[column * layout.space.unit * layout.compression // block.bank_channels]
                places = np.linspace(-1, 1, tile.columns)
                for row in range(height):
                    for mark in layout._marks(i, block, op):
                        c[mark, row, at] = MARK
                    c[layout.sections["source"].start + source, row, at] = MARK
                    c[layout.sections["row"].start + row, row, at] = MARK
                    c[layout.sections["place"].start, row, at] = 2 * (j + 1) / len(block.ops) - 1
                    c[layout.sections["place"].start + 1, row, at] = places[column]
                    if row < tile.rows:
                        c[layout.sections["inside"].start, row, at] = MARK
    c[layout.sections["noise"].start] = layout.encode(architecture, noise_seed)[layout.sections["noise"]][0]
    return c


def plain_c(supernet: Supernet, architecture: Architecture, seed: int) -> torch.Tensor:
    """c at full height: the HyperNet generates more than the architecture asks for."""
    c = plain_encoding(supernet.hypernet.layout, architecture, seed)
    missing = supernet.space.max_bottleneck - c.shape[1]
    return torch.from_numpy(np.pad(c, ((0, 0), (0, missing), (0, 0)), constant_values=BACKGROUND))


def measure(size: str, plain: bool, count: int) -> dict[str, Any]:
    """Median CPU seconds of a step, a score and an encoding in this process."""
    torch.set_num_threads(1)
    space, spec, batch = SIZES[size]
    supernet = new_supernet(space, spec, CLASSES, seed=0)
    optimiser = torch.optim.Adam(supernet.parameters(), lr=1e-3, betas=(0.5, 0.999), eps=1e-4)
    layout = supernet.hypernet.layout
    random = torch.Generator().manual_seed(0)
    shape = memory_format(2, torch.device("cpu"))
    if plain:
        shape = torch.contiguous_format
    images = torch.randn(SCORE_IMAGES, *(spec.channels, *spec.size), generator=random)
    images = images.contiguous(memory_format=shape)
    labels = torch.randint(CLASSES, (SCORE_IMAGES,), generator=random)
    choice = mock.patch("search.network._dense_is_faster", return_value=False)
    steps, scores, encodings, losses = [], [], [], []
    with choice if plain else contextlib.nullcontext():
        for slot in range(count + 1):
            architecture = space.draw(7, slot)

            def step(architecture: Architecture = architecture, slot: int = slot) -> float:
                c = plain_c(supernet, architecture, slot) if plain else None
                source = supernet.source(architecture, c=c, noise_seed=slot)
                loss = F.cross_entropy(forward(architecture, source, images[:batch]), labels[:batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                return float(loss.detach())

            @torch.no_grad()
            def score(architecture: Architecture = architecture, slot: int = slot) -> None:
                c = plain_c(supernet, architecture, slot) if plain else None
                source = supernet.source(architecture, c=c, noise_seed=slot)
                parts = images.split(250)
                source.fixed = supernet.statistics(architecture, parts, source)
                for part in parts:
                    forward(architecture, source, part)

            seconds, loss = _timed(step)
            scoring, _ = _timed(score)
            encode = (lambda a=architecture: plain_encoding(layout, a, 1)) if plain else None
            encoding = _repeated(encode or (lambda a=architecture: layout.encode(a, 1)))
            if slot:  # the first step also starts PyTorch's pools
                steps.append(seconds)
                scores.append(scoring)
                encodings.append(encoding)
            losses.append(loss)
    return {
        "step_s": statistics.median(steps),
        "score_s": statistics.median(scores),
        "encoding_ms": 1000 * statistics.median(encodings),
        "first_loss": losses[0],
        "architectures": count,
    }


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def _repeated(function: Callable[[], Any]) -> float:
    """Shortest of a few: an encoding is short enough to be interrupted never or wholly."""
    return min(_timed(function)[0] for _ in range(5))


def _in_process(size: str, plain: bool, count: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.training_speed", "--size", size, "--count", str(count)]
    done = subprocess.run(
        [*words, *(["--plain"] if plain else [])], capture_output=True, check=True, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure every size in processes of their own and record the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES))
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--count", type=int, default=0, help="architectures of each size; 0: 3 to 8")
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measure(options.size, options.plain, options.count)))
        return
    results, goals = {}, []
    for size in SIZES:
        count = options.count or (3 if size == "default" else 8)
        ours, plain = (_in_process(size, way, count) for way in (False, True))
        ratio, scoring = ours["step_s"] / plain["step_s"], ours["score_s"] / plain["score_s"]
        same = abs(ours["first_loss"] - plain["first_loss"]) < 1e-3
        results[size] = {
            "ours": ours,
            "plain": plain,
            "step_ratio": ratio,
            "score_ratio": scoring,
            "same_first_loss": same,
            "original_step_s": ORIGINAL_STEP[size],
            "original_score_s": ORIGINAL_SCORE[size],
        }
        goals += [
            {
                "what": f"training step, {size} size, against the original program",
                "goal": "<= 0.4x",
                "value": f"{ours['step_s']:.3f} s; {ratio:.2f}x our plain version",
                "met": None,
                "note": f"{ABSENT}: {ORIGINAL_STEP[size]} s",
            },
            {
                "what": f"score on {SCORE_IMAGES} images, {size} size, against the original program",
                "goal": "<= 0.35x, statistics included",
                "value": f"{ours['score_s']:.3f} s; {scoring:.2f}x our plain version",
                "met": None,
                "note": f"{ABSENT}: {ORIGINAL_SCORE[size]} s",
            },
        ]
    encoding = results["default"]["ours"]["encoding_ms"]
    goals.append(
        {
            "what": "encoding one architecture, default size",
            "goal": "<= 1 ms",
            "value": round(encoding, 3),
            "met": encoding <= 1,
            "note": f"{results['default']['plain']['encoding_ms']:.0f} ms with marks set one by one",
        }
    )
    record("training_speed", results, goals)


if __name__ == "__main__":
    main()
