"""HyperNet training step, scoring and encoding at three sizes, against the original and a plain version.

The architectures are those of the original program (github.com/ajbrock/SMASH): drawn by its own sampler
with a fixed seed in its last annealing stage, without those that it cannot run, and written as ours into
``training_speed_architectures.json``, with the multiply-accumulates that it does for an image. Where the
two differ:

- It computes channels of a block's input that no bank holds; here they do not exist.
- It generates at most N_max outputs of a 1x1 convolution and uses what there is: ``bottleneck`` here.
- Its transitions convolve before they average; here after it, which is equal. Counted after it for both.
- Its c has other marks. Its HyperNet starts from c and 7 channels more, ours from 40 channels.
- Its stem and convolutions have neither bias nor norm nor gain.

Counted like this, multiply-accumulates agree within 1 %. A step is: draw, encode, generate, forward,
backward, update. A score: generate, classify 500 images in two batches, each normalised by the BatchNorm
statistics that it is found to have (``ScoringConfig.statistics`` "batch", the presets' choice for images of
this size). The original keeps running statistics of all networks instead. A score in two passes, with
statistics of 500 training images before, stands beside.

The plain version is our own method without any of its accelerations: marks of c set one by one, weights
generated for the full height of c, grouped convolutions left to PyTorch, contiguous tensors in float32.
In float32 both give the same loss, which is checked.

The original program is not part of this repository. ``--original COMMAND`` compares with a copy of yours,
ported to the installed PyTorch: ``COMMAND SIZE`` runs the file's architectures of that size in order on
one thread and prints ``{"step_s": [...], "score_s": [...]}``, CPU seconds of each. Ours, plain and original
then alternate, each in a process of its own, for ``--rounds`` rounds.

Times are CPU seconds of one thread: of each architecture the median over rounds, of these the median.
Every architecture is new to its process, as in training: the time that oneDNN takes to prepare
convolutions of new shapes is part of the figure.

Loss is measured by benchmarks.training_loss.

    python -m benchmarks.training_speed --original "python my_port.py time"
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.record import record
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.interpreter import forward
from smash_search.model.supernet import Supernet
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.encoding import BACKGROUND, MARK, Layout
from smash_search.space.space import Space
from smash_search.train.compute import autocast, keep_freed_memory, memory_format, multiplies_bfloat16
from smash_search.train.hypernet import new_supernet

ARCHITECTURES = Path(__file__).with_name("training_speed_architectures.json")
ABSENT = "the original is not here; ported to a current PyTorch it took, elsewhere, on 2 free cores"
ORIGINAL_STEP = {"default": 1.74, "middle": 0.276, "small": 0.107}  # seconds, 2 cores
ORIGINAL_SCORE = {"default": 4.1, "middle": 0.60, "small": 0.27}
SCORE_IMAGES = 500
CLASSES = 10


def original_space(
    name: str, units: int, widths: tuple[int, ...], banks: int, reads: tuple[int, ...]
) -> Space:
    """The smallest of our spaces around the original's configuration with N 8 and N_max 8 ``units``."""
    return Space(
        name=name,
        unit=8,
        widths=tuple((width,) for width in widths),
        bank_units=tuple(range(1, units + 1)),
        max_banks=banks,
        max_ops=32,
        max_units=units,
        max_bottleneck=units,
        reference_reads=reads,
        budget=(0.3, 1.0),
        stem_kernel=7,
        patterns=(("1000", 1.0),),
    )


# depth 12, width 4, N_max 64; depth 4, width 2, N_max 32; depth 4, width 1, N_max 16.
SIZES: dict[str, tuple[Space, InputSpec, int]] = {
    "default": (
        original_space("default", 8, (8, 12, 14), 32, (104, 204, 398)),
        InputSpec(3, (32, 32)),
        50,
    ),
    "middle": (original_space("middle", 4, (4, 6, 6), 16, (20, 38, 70)), InputSpec(3, (28, 28)), 64),
    "small": (original_space("small", 2, (2, 2, 2), 8, (10, 18, 34)), InputSpec(3, (28, 28)), 64),
}


def architectures(size: str) -> list[Architecture]:
    """The original's draws of one size, checked to cost what they cost there."""
    _, spec, _ = SIZES[size]
    chosen = []
    for entry in json.loads(ARCHITECTURES.read_text())[size]:
        architecture = Architecture.from_json(entry["architecture"])
        macs = cost_of(architecture, spec, CLASSES).macs
        if abs(macs / entry["macs"] - 1) > 0.01:
            raise ValueError(
                f"{size}: {macs} multiply-accumulates, the original's network has {entry['macs']}"
            )
        chosen.append(architecture)
    return chosen


def plain_encoding(layout: Layout, architecture: Architecture, noise_seed: int) -> np.ndarray:
    """c, one mark after the other."""
    pairs = layout._tiles(architecture)
    last = pairs[-1][0]
    height = max(tile.rows for tile, _ in pairs)
    c = np.full((layout.channels, height, last.left + last.columns), BACKGROUND, np.float32)
    for tile, place in pairs:
        block, op = place.block, place.op
        places = np.linspace(-1, 1, tile.columns)
        for column in range(tile.columns):
            at = tile.left + column
            source = op.reads[column * layout.space.unit * layout.compression // block.bank_channels]
            for row in range(height):
                for mark in layout._marks(architecture, place):
                    c[mark, row, at] = MARK
                c[layout.sections["source"].start + source, row, at] = MARK
                c[layout.sections["row"].start + row, row, at] = MARK
                c[layout.sections["place"].start, row, at] = 2 * (place.number + 1) / len(block.ops) - 1
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


def measure(size: str, plain: bool) -> dict[str, Any]:
    """CPU seconds of a step, a score and an encoding of every architecture in this process."""
    torch.set_num_threads(1)
    space, spec, batch = SIZES[size]
    supernet = new_supernet(space, spec, CLASSES, HyperNetConfig(compression=2), seed=0)
    optimiser = torch.optim.Adam(
        supernet.parameters(), lr=1e-3, betas=(0.5, 0.999), eps=1e-4, fused=not plain
    )
    layout, device = supernet.hypernet.layout, torch.device("cpu")
    random = torch.Generator().manual_seed(0)
    shape = torch.contiguous_format if plain else memory_format(2, device)
    images = torch.randn(SCORE_IMAGES, *(spec.channels, *spec.size), generator=random)
    images = images.contiguous(memory_format=shape)
    labels = torch.randint(CLASSES, (SCORE_IMAGES,), generator=random)
    choice = contextlib.ExitStack()
    if not plain:
        keep_freed_memory()
    else:
        rule = "smash_search.model.interpreter.groups_that_run"
        choice.enter_context(mock.patch(rule, lambda x, groups, outputs: groups))

    def loss_of(architecture: Architecture, slot: int) -> torch.Tensor:
        c = plain_c(supernet, architecture, slot) if plain else None
        source = supernet.source(architecture, c=c, noise_seed=slot)
        return F.cross_entropy(forward(architecture, source, images[:batch]).float(), labels[:batch])

    def step(architecture: Architecture, slot: int) -> None:
        space.draw(7, slot)  # belongs to a step, though another one is run
        with contextlib.nullcontext() if plain else autocast(device, on_cpu=True):
            loss = loss_of(architecture, slot)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    @torch.no_grad()
    def score(architecture: Architecture, slot: int, passes: int) -> None:
        with contextlib.nullcontext() if plain else autocast(device, on_cpu=True):
            c = plain_c(supernet, architecture, slot) if plain else None
            source = supernet.source(architecture, c=c, noise_seed=slot)
            parts = images.split(250)
            if passes == 2:
                source.fixed = supernet.statistics(architecture, parts, source)
            for part in parts:
                forward(architecture, source, part)

    chosen = architectures(size)
    steps, scores, twice, encodings = [], [], [], []
    with choice:
        with torch.no_grad():
            first = float(loss_of(chosen[-1], 0))
        step(chosen[-1], 0)  # also starts PyTorch's pools
        for slot, architecture in enumerate(chosen):
            steps.append(_timed(lambda a=architecture, n=slot: step(a, n)))
            scores.append(_timed(lambda a=architecture, n=slot: score(a, n, 1)))
            if not plain:
                twice.append(_timed(lambda a=architecture, n=slot: score(a, n, 2)))
            encode = (lambda a=architecture: plain_encoding(layout, a, 1)) if plain else None
            encodings.append(_shortest(encode or (lambda a=architecture: layout.encode(a, 1))))
    return {
        "step_s": steps,
        "score_s": scores,
        "score_in_two_passes_s": twice,
        "encoding_s": encodings,
        "first_loss": first,
    }


def _timed(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _shortest(function: Callable[[], Any]) -> float:
    """Of a few: an encoding is short enough to be interrupted never or wholly."""
    return min(_timed(function) for _ in range(5))


def run_json(words: list[str]) -> dict[str, Any]:
    """What a command prints as JSON; ends the program where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compare(size: str, rounds: int, original: list[str]) -> dict[str, Any]:
    """All ways at one size in alternating processes; figures over the rounds."""
    own = [sys.executable, "-m", "benchmarks.training_speed", "--size", size]
    ways = {"ours": own, "plain": [*own, "--plain"]}
    if original:
        ways["original"] = [*original, size]
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, words in ways.items():
            runs[way].append(run_json(words))
    result: dict[str, Any] = {"architectures": len(architectures(size)), "rounds": rounds}
    for way, measured in runs.items():
        result[way] = {
            name: np.median([run[name] for run in measured], 0).tolist()
            for name in ("step_s", "score_s", "score_in_two_passes_s", "encoding_s")
            if measured[0].get(name)
        }
        result[way] |= {
            f"median_{name}": statistics.median(values) for name, values in list(result[way].items())
        }
    result["same_loss"] = abs(runs["ours"][0]["first_loss"] - runs["plain"][0]["first_loss"]) < 1e-3
    for name in ("step", "score"):
        for way in ("plain", "original"):
            if way in ways:
                ours, theirs = (result[kind][f"median_{name}_s"] for kind in ("ours", way))
                result[f"{name}_to_{way}"] = ours / theirs
                pairs = zip(*(result[kind][f"{name}_s"] for kind in ("ours", way)), strict=True)
                result[f"{name}_to_{way}_of_each"] = [mine / other for mine, other in pairs]
    return result


def main() -> None:
    """Measure every size in processes of their own and record the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), help="print one run of this size and record nothing")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default=",".join(SIZES), help="which to compare and record")
    parser.add_argument("--original", type=shlex.split, default=[], metavar="COMMAND")
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measure(options.size, options.plain)))
        return
    results: dict[str, Any] = {"bfloat16": multiplies_bfloat16()}
    goals = []
    sizes = options.sizes.split(",")
    for size in sizes:
        result = results[size] = compare(size, options.rounds, options.original)
        for name, what, limit, text, elsewhere in (
            ("step", "training step", 0.4, "<= 0.4x", ORIGINAL_STEP[size]),
            (
                "score",
                f"score on {SCORE_IMAGES} images",
                0.35,
                "<= 0.35x, statistics included",
                ORIGINAL_SCORE[size],
            ),
        ):
            ratio = result.get(f"{name}_to_original")
            ours = f"{result['ours'][f'median_{name}_s']:.3f} s"
            to_plain = f"{result[f'{name}_to_plain']:.2f}x our plain version"
            if ratio is None:
                value, note = f"{ours}; {to_plain}", f"{ABSENT}: {elsewhere} s"
            else:
                each = result[f"{name}_to_original_of_each"]
                value = f"{ratio:.2f}x ({min(each):.2f} to {max(each):.2f} by architecture)"
                original = f"original {result['original'][f'median_{name}_s']:.3f} s"
                note = f"{ours}, {original}, {result['rounds']} round(s); {to_plain}"
                if name == "score":
                    two = result["ours"]["median_score_in_two_passes_s"]
                    note += f"; in two passes {two / result['original']['median_score_s']:.2f}x"
            met = None if ratio is None else ratio <= limit
            what = f"{what}, {size} size, against the original program"
            goals.append({"what": what, "goal": text, "value": value, "met": met, "note": note})
    encoding = 1000 * results[sizes[0]]["ours"]["median_encoding_s"]
    by_one = 1000 * results[sizes[0]]["plain"]["median_encoding_s"]
    goals.append(
        {
            "what": f"encoding one architecture, {sizes[0]} size",
            "goal": "<= 1 ms",
            "value": round(encoding, 3),
            "met": encoding <= 1,
            "note": f"{by_one:.0f} ms with marks set one by one",
        }
    )
    record("training_speed", results, goals)


if __name__ == "__main__":
    main()
