"""A teacher's answers in a file, and what they are worth: the same figure as a network's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smash_base.errors import InvalidInputError
from smash_search.space.architecture import InputSpec
from smash_search.train.answers import measured, read_answers
from smash_search.train.network import Recipe, answers_of, measure_of, new_network
from tests.search.small_data import small_architecture, small_digits


def test_answers_are_measured_as_a_network_is() -> None:
    data = small_digits()
    network = new_network(small_architecture(), InputSpec(1, (8, 8)), 10, 0)
    plain = data.validation
    several = replace(plain, targets=np.eye(10, dtype=np.uint8)[plain.labels])
    for split, recipe in ((plain, Recipe()), (plain, Recipe(balance="loss")), (several, Recipe())):
        answers = answers_of(network, split, data.preprocessing)
        expected = measure_of(recipe)(network, split, data.preprocessing)
        assert measured(answers, split, recipe) == pytest.approx(expected)


def test_a_file_holds_training_and_validation_images_in_their_order(tmp_path: Path) -> None:
    data = small_digits()
    rows = len(data.train) + len(data.validation)
    answers = np.arange(10 * rows, dtype=np.float32).reshape(rows, 10)
    np.save(tmp_path / "a.npy", answers)
    held = read_answers(tmp_path / "a.npy", data)
    assert np.array_equal(held.of_training(include_validation=False), answers[: len(data.train)])
    assert np.array_equal(held.of_training(include_validation=True), answers)
    for wrong in (answers[:-1], answers.astype(np.float64), answers[:, :9]):
        np.save(tmp_path / "b.npy", wrong)
        with pytest.raises(InvalidInputError, match="answers in"):
            read_answers(tmp_path / "b.npy", data)
    with pytest.raises(InvalidInputError, match="answers in"):
        read_answers(tmp_path / "nowhere.npy", data)
