"""Images of a data set on a page: a few of each class, and how many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from smash_base.preprocess import NO_CLASS
from smash_export.prediction.pictures import to_picture
from smash_export.report.page import Cell, Html, paragraph, picture, table

if TYPE_CHECKING:
    from smash_search.data import Dataset

SHOWN_CLASSES, OF_EACH = 20, 2


def class_counts(dataset: Dataset) -> Html:
    """Images of each class and part; one of several classes counts for each."""
    parts, classes = (dataset.train, dataset.validation, dataset.test), len(dataset.classes)
    counts = [part.images_of_each(classes) for part in parts]
    rows: list[list[Cell]] = [
        [name, *(int(count[index]) for count in counts)] for index, name in enumerate(dataset.classes)
    ]
    of_none = [int(part.of_no_class.sum()) for part in parts]
    if any(of_none):
        rows.append([NO_CLASS, *of_none])
    return table(["class", "training", "validation", "test"], rows)


def sample_images(dataset: Dataset) -> list[Html]:
    """Training images of each class, as the network sees them."""
    shown = []
    named = [*enumerate(dataset.classes[:SHOWN_CLASSES]), (len(dataset.classes), NO_CLASS)]
    for label, name in named:
        for index in np.flatnonzero(dataset.train.labels == label)[:OF_EACH]:
            shown.append(picture(to_picture(dataset.train.images[index], 96), [name], "small"))
    if len(dataset.classes) > SHOWN_CLASSES:
        shown.append(paragraph(f"The first {SHOWN_CLASSES} of {len(dataset.classes)} classes.", "note"))
    return shown
