"""Images of several classes: coloured squares with a table that names them, and digits with what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from smash_search.data import Dataset, Split
from smash_search.data.several import rarest
from tests.search.small_data import small_digits

COLOURS = ("red", "green", "blue")


def squares(folder: Path, count: int, side: int = 8) -> Path:
    """PNG files with a square of each of their colours, and ``table.csv`` with ``red;blue`` for a label."""
    random = np.random.default_rng(0)
    rows = ["image,label"]
    for index in range(count):
        there = random.random(3) < 0.45
        there[index % 3] = True
        pixels = random.integers(0, 60, (side, side, 3), dtype=np.uint8)
        for channel in np.flatnonzero(there):
            top, left = random.integers(0, side - 3, 2)
            pixels[top : top + 4, left : left + 4, channel] = 255
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append(f"{index}.png,{';'.join(COLOURS[channel] for channel in np.flatnonzero(there))}")
    table = folder / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def several_digits(train: int = 96, validation: int = 48) -> Dataset:
    """The digits of :func:`small_digits` as images of "small" (below 5), "odd" and "large" (above 3)."""
    data = small_digits(train, validation)

    def described(split: Split) -> Split:
        digits = split.labels
        targets = np.stack([digits < 5, digits % 2 == 1, digits > 3], 1).astype(np.uint8)
        return replace(split, labels=rarest(targets, targets.sum(0)), targets=targets)

    return replace(
        data,
        classes=("small", "odd", "large"),
        train=described(data.train),
        validation=described(data.validation),
        test=described(data.test),
        fingerprint=f"several-{data.fingerprint}",
    )
