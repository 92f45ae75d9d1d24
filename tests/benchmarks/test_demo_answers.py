"""What the benchmark of the demo's pictures calls a fault: a wrong answer that is not doubted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.demo_answers import FIRST, answers_of, goal_of
from smash_export import load
from tests.conftest import DOUBT_BELOW


def test_answers_carry_their_class_probability_and_doubt(
    digits_bundle_copy: Path, digits_images: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    digits_bundle_copy.rename(tmp_path / "demo-bundle")
    (tmp_path / "demo-images").mkdir()
    images, labels = digits_images
    for number in range(3):
        path = tmp_path / "demo-images" / f"test-{number}-is-{labels[number]}.png"
        Image.fromarray(images[number][:, :, 0]).save(path)
    rows = answers_of(tmp_path)
    assert [row["class"] for row in rows] == [str(label) for label in labels[:3]]
    with load(tmp_path / "demo-bundle") as classifier:
        answers = classifier.predict(list(images[:3]))
    assert [row["label"] for row in rows] == [answer.label for answer in answers]
    assert [row["doubtful"] for row in rows] == [answer.probability < DOUBT_BELOW for answer in answers]


@pytest.mark.parametrize(
    ("label", "doubtful", "met"), [("5", False, True), ("9", True, True), ("9", False, False)]
)
def test_a_wrong_answer_is_a_fault_only_without_doubt(label: str, doubtful: bool, met: bool) -> None:
    row = {"picture": FIRST, "class": "5", "label": label, "probability": 0.998, "doubtful": doubtful}
    assert goal_of([row])["met"] is met
