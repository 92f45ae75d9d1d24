"""Pictures of coloured squares, some of several colours, with a table that names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

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
