"""Pictures that go with results: worst images, contact sheets, the confusion matrix. Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smash_base import files

INK, PAPER, GOOD, BAD = (20, 24, 32), (255, 255, 255), (24, 120, 60), (178, 34, 34)
LARGEST_SIDE = 1024  # pixels of a picture that is shown
MOST_CELLS = 2000  # of a confusion matrix along each side
_LINE = 16  # height of a line of text in pixels


def to_picture(sample: np.ndarray, smallest_side: int = 0) -> Image.Image:
    """One uint8 sample [H, W, C] or [D, H, W, C] as an RGB picture.

    Volumes are shown by their brightest plane along depth, channels beyond RGB by their mean.
    See :func:`enlarged` for ``smallest_side``.
    """
    if sample.ndim == 4:
        sample = sample.max(axis=0)
    if sample.shape[2] not in (1, 3):
        sample = sample.mean(axis=2, keepdims=True).astype(np.uint8)
    picture = Image.fromarray(np.repeat(sample, 3, axis=2) if sample.shape[2] == 1 else sample)
    return enlarged(picture, smallest_side)


def enlarged(picture: Image.Image, smallest_side: int) -> Image.Image:
    """A picture whose sides are at least ``smallest_side``, by whole pixels, and at most ``LARGEST_SIDE``:
    of a strip that is one pixel wide the longer side counts, or it would fill the memory."""
    if max(picture.size) > LARGEST_SIDE:
        picture = picture.copy()
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    factor = min(-(-smallest_side // min(picture.size)), LARGEST_SIDE // max(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture


def captioned(picture: Image.Image, lines: Sequence[str], colour: tuple[int, int, int] = INK) -> Image.Image:
    """The picture with lines of text under it, on paper as wide as both need."""
    font = _font()
    width = max([picture.width, *(int(font.getlength(line)) + 8 for line in lines)])
    sheet = Image.new("RGB", (width, picture.height + _LINE * len(lines) + 6), PAPER)
    sheet.paste(picture.convert("RGB"), ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        draw.text((4, picture.height + 2 + index * _LINE), line, fill=colour, font=font)
    return sheet


def contact_sheet(cells: Sequence[Image.Image], columns: int, title: str) -> Image.Image:
    """Pictures in rows, in the given order, under a title."""
    columns = max(1, min(columns, len(cells)))
    width = max([cell.width for cell in cells], default=100) + 8
    height = max([cell.height for cell in cells], default=20) + 8
    rows = -(-len(cells) // columns)
    full = max(columns * width, int(_font().getlength(title)) + 8)
    sheet = Image.new("RGB", (full, rows * height + _LINE + 8), PAPER)
    ImageDraw.Draw(sheet).text((4, 4), title, fill=INK, font=_font())
    for index, cell in enumerate(cells):
        place = (index % columns * width + 4, index // columns * height + _LINE + 8)
        sheet.paste(cell, place)
    return sheet


def confusion_picture(matrix: np.ndarray, labels: Sequence[str]) -> Image.Image:
    """Confusion matrix, int [K, K]: rows are the true classes, columns what was answered.

    Cells are shaded by their share of the row; the diagonal is green, errors are red. Up to 40 classes
    are written with labels and counts, more are drawn as an image of cells, and of more than ``MOST_CELLS``
    neighbours share a cell.
    """
    matrix = _pooled(matrix, -(-len(matrix) // MOST_CELLS))
    count = len(matrix)
    written = count <= 40
    cell = 36 if written else max(2, 1600 // count)
    font = _font()
    names = [label if len(label) <= 16 else label[:15] + "…" for label in labels]
    margin = int(max(font.getlength(name) for name in names)) + 12 if written else 24
    top = margin + _LINE
    picture = Image.new("RGB", (margin + count * cell + 8, top + count * cell + 8), PAPER)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    good, bad, paper = (np.asarray(colour, float) for colour in (GOOD, BAD, PAPER))
    colours = paper + share[..., None] ** 0.5 * (bad - paper)
    diagonal = np.arange(count)
    colours[diagonal, diagonal] = paper + share[diagonal, diagonal, None] ** 0.5 * (good - paper)
    cells = Image.fromarray(colours.round().astype(np.uint8))
    picture.paste(cells.resize((count * cell, count * cell), Image.Resampling.NEAREST), (margin, top))
    draw = ImageDraw.Draw(picture)
    draw.text((4, 2), "rows: true class, columns: answer", fill=INK, font=font)
    if written:
        for index, name in enumerate(names):
            middle = index * cell + cell // 2
            draw.text((margin - 6, top + middle), name, fill=INK, font=font, anchor="rm")
            _draw_upright(picture, name, (margin + middle, top - 4))
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = PAPER if share[row, column] > 0.3 else INK
            place = (margin + column * cell + cell // 2, top + row * cell + cell // 2)
            draw.text(place, str(matrix[row, column]), fill=colour, font=font, anchor="mm")
    return picture


def _pooled(matrix: np.ndarray, factor: int) -> np.ndarray:
    """Sums of ``factor`` x ``factor`` neighbours; fewer at the ends."""
    places = np.arange(0, len(matrix), factor)
    return np.add.reduceat(np.add.reduceat(matrix, places, axis=0), places, axis=1)


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a PNG atomically."""
    import io

    stream = io.BytesIO()
    picture.save(stream, "PNG")
    files.write_bytes(path, stream.getvalue())


def _draw_upright(picture: Image.Image, text: str, bottom: tuple[int, int]) -> None:
    font = _font()
    label = Image.new("RGB", (int(font.getlength(text)) + 2, _LINE), PAPER)
    ImageDraw.Draw(label).text((0, 0), text, fill=INK, font=font)
    label = label.rotate(90, expand=True)
    picture.paste(label, (bottom[0] - label.width // 2, bottom[1] - label.height))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)
