"""Evaluation: figures that can be checked by hand, and pictures that a person can look at."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from smash_base.errors import InvalidInputError, UsageError, VerificationError
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Bundle
from smash_export.cli import run
from smash_export.measure.evaluate import calibration_error, evaluate, score, wilson_interval
from smash_export.measure.labelled import as_files, bundled, calibration_images, from_data
from smash_export.prediction.classifier import load
from smash_export.prediction.pictures import confusion_picture, to_picture
from smash_search.data import load_dataset

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (7, 10), (585, 597), (1, 100000)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    reference = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(right, count)
    assert low == pytest.approx(reference.low, abs=1e-9)
    assert high == pytest.approx(reference.high, abs=1e-9)


def test_the_calibration_error_of_a_hand_made_case() -> None:
    sureness = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    assert calibration_error(sureness, right) == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_every_figure_of_a_hand_made_case() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.7, 0.2, 0.1], [0.2, 0.5, 0.3]], np.float32)
    result = score(probabilities, np.array([0, 1, 1, 1]), ["cat", "dog", "owl"])
    assert (result.images, result.accuracy, result.mistake_count, result.top5) == (4, 0.75, 1, None)
    assert result.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    (mistake,) = result.mistakes
    assert (mistake.image, mistake.label, mistake.answer) == (2, "dog", "cat")
    assert mistake.probability == pytest.approx(0.7)
    cat, dog, owl = result.classes
    assert (cat.images, cat.recall, cat.precision, cat.confused_with) == (1, 1, 0.5, "")
    assert cat.f1 == pytest.approx(2 / 3)
    assert (dog.recall, dog.precision, dog.confused_with) == (pytest.approx(2 / 3), 1, "cat")
    assert (owl.images, owl.recall, owl.precision, owl.f1) == (0, None, None, None)
    assert result.confidence == pytest.approx(0.65)
    assert result.balanced_accuracy == pytest.approx((1 + 2 / 3) / 2), "owls have no images"
    assert result.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)


def test_the_surest_errors_come_first_and_are_limited() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(10), 2000).astype(np.float32)
    result = score(probabilities, random.integers(0, 10, 2000), [str(i) for i in range(10)])
    values = [mistake.probability for mistake in result.mistakes]
    assert values == sorted(values, reverse=True)
    assert len(values) == 36
    assert result.mistake_count > 1000
    assert result.top5 == pytest.approx(0.5, abs=0.05)


def test_a_real_classifier_gets_the_accuracy_of_its_logits(digits_bundle: Path) -> None:
    samples = Bundle.open(digits_bundle).samples()
    with load(digits_bundle, threads=1) as classifier:
        result = evaluate(classifier, bundled(classifier.bundle))
    assert result.accuracy == (samples.logits.argmax(axis=1) == samples.labels).mean()
    assert result.low < result.accuracy < result.high
    assert result.accuracy > 0.95
    assert result.confusion.sum() == 597
    assert 0 <= result.calibration_error < 0.1


def test_the_command_writes_report_and_pictures(digits_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", str(digits_bundle), "--out", str(out), "--threads", "1"]
    assert run([*arguments, "--dry-run"]) == 0
    assert not out.exists()
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert "95 % interval" in text
    assert "expected calibration error" in text
    assert sorted(path.name for path in out.iterdir()) == ["confusion.png", "errors.png", "evaluation.json"]
    document = json.loads((out / "evaluation.json").read_text())
    assert document["accuracy"] > 0.95
    for name in ("confusion.png", "errors.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
            assert len(picture.convert("RGB").getcolors(10**6) or []) > 5


def test_figures_are_told_even_where_the_report_cannot_be_written(
    digits_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert run(["evaluate", str(digits_bundle), "--out", str(out), "--threads", "1", "--json", "-q"]) == 6
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["accuracy"] > 0.95
    assert document["written"] == []
    assert f"{out} cannot be used: Not a directory" in captured.err


@pytest.mark.parametrize("command", ["evaluate", "verify", "compile"])
def test_a_part_of_no_data_set_is_refused(command: str, digits_bundle_copy: Path, capsys: Capture) -> None:
    """The figures of the bundled test images would pass for those of the training images."""
    words = [command, str(digits_bundle_copy), "-t", "onnxruntime"]
    assert run([*words, "--split", "train"]) == 2
    assert "expected --data" in capsys.readouterr().err


def test_json_and_the_accuracy_gate(digits_bundle: Path, capsys: Capture) -> None:
    assert run(["evaluate", str(digits_bundle), "--json", "--min-accuracy", "0.9"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 597
    assert len(document["classes"]) == len(document["confusion"]) == 10
    assert document["target"] == "onnxruntime"
    assert run(["evaluate", str(digits_bundle), "--json", "--min-accuracy", "0.999"]) == 5
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "at least 99.90%" in captured.err


def test_a_file_that_overflows_is_told_with_its_images(digits_bundle: Path) -> None:
    with load(digits_bundle, target="onnxruntime") as classifier:
        images = bundled(classifier.bundle)
        run_whole = classifier._session.run

        def overflow(tensor: np.ndarray) -> np.ndarray:
            logits = run_whole(tensor)
            logits[tensor.mean(axis=(1, 2, 3)) > 0.25, 3] = np.inf
            return logits

        classifier._session.run = overflow  # type: ignore[method-assign]
        bright = classifier.preprocessing.normalise(np.asarray(images.images)).mean(axis=(1, 2, 3)) > 0.25
        assert 1 < bright.sum() < len(bright)
        words = f"to image {bright.argmax()} and {bright.sum() - 1} more"
        with pytest.raises(VerificationError, match=words):
            evaluate(classifier, images)


def test_a_data_set_by_name(digits_bundle: Path, capsys: Capture) -> None:
    assert run(["evaluate", str(digits_bundle), "--data", "digits", "--json", "-t", "torchscript"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["target"] == "torchscript"
    assert document["accuracy"] > 0.9
    assert "trained on" in captured.err  # the fixture was made from other splits
    assert document["warnings"]


def test_all_images_of_new_data_are_judged_when_asked_for(digits_bundle: Path, capsys: Capture) -> None:
    bundle = Bundle.open(digits_bundle)
    parts = [from_data(bundle, "digits", split) for split in ("train", "validation", "test")]
    whole = from_data(bundle, "digits", "all")
    np.testing.assert_array_equal(whole.labels, np.concatenate([part.labels for part in parts]))
    np.testing.assert_array_equal(whole.images, np.concatenate([part.images for part in parts]))
    assert whole.name == "digits, all images"
    assert "--split all takes every image" in parts[2].warnings[0]
    command = ["evaluate", str(digits_bundle), "--data", "digits", "--split", "all", "-t", "torchscript"]
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(whole)
    assert run([*command[:2], "--split", "all"]) == 2


def test_all_of_a_few_new_photos_are_judged_without_being_split(digits_bundle: Path, tmp_path: Path) -> None:
    bundle, digits = Bundle.open(digits_bundle), load_dataset("digits").test
    for name, count in (("0", 3), ("1", 1)):
        (tmp_path / name).mkdir()
        for number, place in enumerate(np.flatnonzero(digits.labels == int(name))[:count]):
            Image.fromarray(np.asarray(digits.images[place])[..., 0]).save(tmp_path / name / f"{number}.png")
    assert sorted(from_data(bundle, f"folder:{tmp_path}", "all").labels) == [0, 0, 0, 1]
    with pytest.raises(InvalidInputError, match="too few images to split"):
        from_data(bundle, f"folder:{tmp_path}", "test")


def test_all_images_of_the_data_that_a_bundle_was_made_from_come_with_a_warning(
    digits_bundle_copy: Path,
) -> None:
    path = digits_bundle_copy / "manifest.json"
    document = json.loads(path.read_text())
    del document["digest"]
    made_from = load_dataset("digits", seed=3)
    document["provenance"]["data"] = {"fingerprint": made_from.fingerprint, "seed": 3}
    path.write_text(json.dumps(document))
    bundle = Bundle.open(digits_bundle_copy)
    assert from_data(bundle, "digits", "test").warnings == ()
    assert from_data(bundle, "digits", "train").warnings == ("train images say nothing about new images",)
    assert "most of these images were trained on" in from_data(bundle, "digits", "all").warnings[0]


def test_classes_in_another_order_are_matched_by_name(digits_bundle_copy: Path) -> None:
    plain = from_data(Bundle.open(digits_bundle_copy), "digits")
    path = digits_bundle_copy / "manifest.json"
    document = json.loads(path.read_text())
    del document["digest"]
    path.write_text(json.dumps({**document, "labels": document["labels"][::-1]}))
    turned = from_data(Bundle.open(digits_bundle_copy), "digits")
    np.testing.assert_array_equal(turned.labels, 9 - plain.labels)


def test_images_of_the_size_of_the_network_are_cut_as_files_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    cutting = Preprocessing(8, 8, 1, (0.5,), (0.5,), short_side=10)
    plain = Preprocessing(8, 8, 1, (0.5,), (0.5,))
    files = [cutting.decode(Image.fromarray(image[:, :, 0])) for image in images]
    np.testing.assert_array_equal(as_files(images, plain, cutting), np.stack(files))
    assert as_files(images, plain, plain) is images
    assert as_files(images, cutting, cutting) is images


def test_other_classes_are_refused(digits_bundle_copy: Path) -> None:
    path = digits_bundle_copy / "manifest.json"
    document = json.loads(path.read_text())
    del document["digest"]
    path.write_text(json.dumps({**document, "labels": [*document["labels"][:-1], "nine"]}))
    with pytest.raises(InvalidInputError, match="other classes"):
        from_data(Bundle.open(digits_bundle_copy), "digits")
    with pytest.raises(UsageError, match="split"):
        from_data(Bundle.open(digits_bundle_copy), "digits", "holdout")
    assert run(["evaluate", str(digits_bundle_copy), "--data", "digits"]) == 6


@pytest.mark.parametrize("classes", [1, 2, 40, 41, 1000, 2501])
def test_confusion_matrices_of_any_size_are_drawn(classes: int) -> None:
    matrix = np.eye(classes, dtype=np.int64) * 5
    matrix[0, -1] += 3
    picture = confusion_picture(matrix, [f"class number {index}" for index in range(classes)])
    assert max(picture.size) < 2600
    assert len(picture.getcolors(10**6) or []) > 2


@pytest.mark.parametrize("shape", [(5, 7, 1), (5, 7, 3), (5, 7, 2), (4, 5, 7, 1)])
def test_samples_of_every_kind_become_pictures(shape: tuple[int, ...]) -> None:
    sample = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    picture = to_picture(sample, 50)
    assert picture.mode == "RGB"
    assert min(picture.size) >= 50


def test_an_evaluation_has_a_json_form_without_nan() -> None:
    result = score(np.eye(3, dtype=np.float32), np.arange(3), ["a", "b", "c"])
    assert math.isnan(result.images_per_second)
    assert result.to_json()["confusion"] == np.eye(3).tolist()


def test_calibration_images_are_those_that_a_network_was_not_trained_on_as_far_as_there_are_any() -> None:
    dataset = load_dataset("digits")
    held_out, trained = (
        {image.tobytes() for image in it.images} for it in (dataset.validation, dataset.train)
    )
    few = calibration_images(dataset, len(dataset.validation) - 10)
    assert len(few) == len(dataset.validation) - 10
    assert all(image.tobytes() in held_out for image in few)
    many = calibration_images(dataset, len(dataset.validation) + 50)
    assert all(image.tobytes() in held_out for image in many[:-50])
    assert all(image.tobytes() in trained for image in many[-50:])
    assert len(calibration_images(dataset, 10**6)) == len(dataset.validation) + len(dataset.train)
