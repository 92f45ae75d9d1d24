"""A teacher's answers in a file: for the training images, and behind them for those of validation.

Students learn from the former. The latter say how much the teacher knows, in the figure that training
measures its student by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smash_base.errors import InvalidInputError
from smash_search.data.several import mean_average_precision
from smash_search.train.network import mean_over_classes

if TYPE_CHECKING:
    from pathlib import Path

    from smash_search.data import Dataset, Split
    from smash_search.train.recipes import Recipe


@dataclass(frozen=True)
class Answers:
    """Logits of a teacher.

    Attributes:
        training: for the training images, float32 [N, K].
        validation: for the validation images, float32 [V, K]; None where it was not asked for any.
    """

    training: np.ndarray
    validation: np.ndarray | None

    def of_training(self, *, include_validation: bool) -> np.ndarray:
        """For the images that a student is trained on, those of validation at the end or not at all."""
        if self.validation is None or not include_validation:
            return self.training
        return np.concatenate([self.training, self.validation])


def read_answers(path: Path, dataset: Dataset) -> Answers:
    """The answers that a file holds for the images of a data set.

    Raises:
        InvalidInputError: no file of answers, or one for other images.
    """
    train, classes = len(dataset.train), len(dataset.classes)
    wanted = (train + len(dataset.validation), classes)
    try:
        held: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"answers in {path}", expected=wanted, received=error) from None
    # Files of earlier versions have no rows for validation images.
    if held.shape not in (wanted, (train, classes)) or held.dtype != np.float32:
        raise InvalidInputError(
            f"answers in {path}", expected=f"{wanted}, float32", received=f"{held.shape}, {held.dtype}"
        )
    return Answers(held[:train], held[train:] if len(held) > train else None)


def measured(answers: np.ndarray, split: Split, recipe: Recipe) -> float:
    """How good answers [N, K] for the images of a split are, 0 to 1.

    It is what :func:`smash_search.train.network.measure_of` the recipe tells of a network.
    """
    if split.targets is not None:
        return mean_average_precision(answers, split.targets)
    right = answers.argmax(1) == split.labels
    return float(right.mean()) if recipe.balance == "none" else mean_over_classes(right, split.labels)
