"""Classes that do not exclude each other: read from a table, split, measured without and with thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from smash_base.errors import InvalidInputError, UsageError
from smash_search.data import Parts, Split, load_dataset, summarise
from smash_search.data.dataset import assemble
from smash_search.data.several import (
    average_precisions,
    likeliest,
    mean_average_precision,
    rarest,
    shares_of_error,
    thresholds_of,
)
from tests.search.several_data import squares


def test_a_cell_may_name_several_classes(tmp_path: Path) -> None:
    table = squares(tmp_path, count=60)
    data = load_dataset(f"csv:{table}?several=semicolon")
    assert data.several
    assert data.classes == ("blue", "green", "red")
    for split in (data.train, data.validation, data.test):
        assert split.targets is not None
        assert split.targets.shape == (len(split), 3)
        assert (split.targets[np.arange(len(split)), split.labels] == 1).all()
        for image, targets in zip(split.images, split.targets, strict=True):
            seen = [image[..., channel].max() > 128 for channel in (2, 1, 0)]
            assert seen == targets.astype(bool).tolist(), "targets stay with their images"
    counted = {item.name: item.total for item in summarise(data).classes}
    assert sum(counted.values()) > 60, "an image of two classes counts for both"
    assert data.fingerprint != load_dataset(f"csv:{table}?several=bar").fingerprint


@pytest.mark.parametrize("seed", range(20))
def test_a_class_of_few_images_keeps_one_for_training(seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = (random.random((60, 6)) < (0.7, 0.5, 0.4, 0.05, 0.05, 0.05)).astype(np.uint8)
    for label in range(6):
        targets[3 * label : 3 * label + 3, label] = 1
    labels = rarest(targets, targets.sum(0))
    split = Split(random.integers(0, 256, (60, 8, 8, 1), np.uint8), labels, targets)
    parts = Parts(tuple("abcdef"), split)
    data = assemble(parts, name="few", spec="few", seed=seed, validation=None)
    assert data.train.targets is not None
    assert data.train.targets.sum(0).min() > 0


def test_equal_files_in_folders_of_several_classes_are_one_image(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(40):
        pixels = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        names = ("cat", "dog") if index % 4 == 0 else ("cat",) if index % 2 else ("dog",)
        for name in names:
            (tmp_path / name).mkdir(exist_ok=True)
            pixels.save(tmp_path / name / f"{name}-{index}.png")
    data = load_dataset(f"folder:{tmp_path}?several=yes")
    parts = (data.train, data.validation, data.test)
    assert sum(map(len, parts)) == 40
    assert sum(int((part.targets.sum(1) == 2).sum()) for part in parts if part.targets is not None) == 10
    assert not load_dataset(f"folder:{tmp_path}").several


def test_a_class_that_never_is_the_rarest_of_an_image_is_a_class(tmp_path: Path) -> None:
    table = squares(tmp_path, count=40)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(f"{line};any" for line in lines[1:])]))
    data = load_dataset(f"csv:{table}?several=semicolon")
    for split in (data.train, data.validation, data.test):
        assert split.targets is not None
        assert split.targets[:, data.classes.index("any")].all()


def test_marks_and_classes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    table = squares(tmp_path, count=30)
    with pytest.raises(UsageError, match="semicolon"):
        load_dataset(f"csv:{table}?several=--")
    Image.new("RGB", (8, 8)).save(tmp_path / "odd.png")
    table.write_text(
        table.read_text().replace("image,label", "image,label,split").replace(".png,", ".png,", 1)
    )
    rows = table.read_text().splitlines()
    rows = [rows[0], *(f"{row},train" for row in rows[1:]), "odd.png,purple,test"]
    table.write_text("\n".join(rows))
    with pytest.raises(InvalidInputError, match="purple"):
        load_dataset(f"csv:{table}?several=semicolon")


def test_a_cell_of_0_and_1_for_every_class_is_refused(tmp_path: Path) -> None:
    """Its marks would be two classes, called 0 and 1."""
    table = squares(tmp_path, count=30)
    head, *rows = table.read_text().splitlines()
    table.write_text(
        "\n".join([head, *(f"{row.partition(',')[0]},0;{n % 2};1" for n, row in enumerate(rows))])
    )
    with pytest.raises(InvalidInputError, match=r"each once; received \['0', '0', '1'\]"):
        load_dataset(f"csv:{table}?several=semicolon")


def test_average_precision_and_thresholds_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((200, 4)) < [0.5, 0.2, 0.05, 0.0]).astype(np.uint8)
    scores = random.random((200, 4)) * 0.5 + 0.3 * targets
    found = average_precisions(scores, targets)
    for label in range(3):
        assert found[label] == pytest.approx(average_precision_score(targets[:, label], scores[:, label]))
    assert np.isnan(found[3])
    assert mean_average_precision(scores, targets) == pytest.approx(found[:3].mean())
    thresholds = thresholds_of(scores, targets)
    assert thresholds[3] == 0.5
    for label in range(3):
        best = max(f1_score(targets[:, label], scores[:, label] >= x) for x in np.linspace(0, 1, 400))
        assert f1_score(targets[:, label], scores[:, label] >= thresholds[label]) >= best


def test_one_class_stands_for_each_image() -> None:
    targets = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]], np.uint8)
    assert rarest(targets, np.array([5, 3, 9])).tolist() == [1, 1, 0]
    scores = np.array([[0.2, 0.1, 0.9], [0.9, 0.1, 0], [0.1, 0.5, 0.3]])
    assert likeliest(targets, scores).tolist() == [0, 1, 2]
    none = np.zeros((1, 3), np.uint8)
    assert rarest(none, np.array([5, 3, 9])).tolist() == [3]
    assert likeliest(none, scores[:1]).tolist() == [3]


def test_a_cell_without_a_class_is_an_image_of_none(tmp_path: Path) -> None:
    table = squares(tmp_path, count=60)
    head, *rows = table.read_text().splitlines()
    rows = [row.partition(",")[0] + "," if n % 3 == 0 else row for n, row in enumerate(rows)]
    table.write_text("\n".join([head, *rows]))
    empty = load_dataset(f"csv:{table}?several=semicolon")
    table.write_text("\n".join([head, *(f"{row}good" if row.endswith(",") else row for row in rows)]))
    named = load_dataset(f"csv:{table}?several=semicolon&none=good")
    for data in (empty, named):
        assert data.classes == ("blue", "green", "red")
        for split, share in ((data.train, 1 / 3), (data.validation, 1 / 3), (data.test, 1 / 3)):
            assert split.targets is not None
            none = ~split.targets.any(1)
            assert none.mean() == pytest.approx(share, abs=0.15), "splits have the same share of them"
            assert ((split.labels == 3) == none).all()
        summary = summarise(data)
        assert summary.images == 60
        assert "images of no class: train 15, validation 1, test 4" in summary.facts()["notes"]
    assert empty.fingerprint == named.fingerprint
    assert load_dataset(f"csv:{table}?several=semicolon").classes == ("blue", "good", "green", "red")


def test_cells_of_no_class_in_a_part_that_names_none_are_missing_labels(tmp_path: Path) -> None:
    table = squares(tmp_path, count=40)
    head, *rows = table.read_text().splitlines()
    rows = [f"{row},train" if n < 30 else f"{row.partition(',')[0]},,test" for n, row in enumerate(rows)]
    table.write_text("\n".join([f"{head},split", *rows]))
    data = load_dataset(f"csv:{table}?several=semicolon")
    assert sum(map(len, (data.train, data.validation, data.test))) == 30
    assert [(item.reason, item.count) for item in data.left_out] == [("rows without a path or a label", 10)]


def test_a_word_for_no_class_that_says_nothing_is_refused(tmp_path: Path) -> None:
    table = squares(tmp_path, count=30)
    with pytest.raises(UsageError, match=r"blue or green or red; received goood"):
        load_dataset(f"csv:{table}?several=semicolon&none=goood")
    with pytest.raises(UsageError, match="several=semicolon"):
        load_dataset(f"csv:{table}?none=red")


def test_parts_without_any_class_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    table = squares(tmp_path, count=40)
    head, *rows = table.read_text().splitlines()
    names = [row.partition(",")[0] for row in rows]

    def written(train: list[str], test: list[str]) -> str:
        parted = [f"{row},train" for row in train] + [f"{row},test" for row in test]
        table.write_text("\n".join([f"{head},split", *parted]))
        return f"csv:{table}?several=semicolon&none=good"

    with pytest.raises(InvalidInputError, match=r"test images of .* are of no class"):
        load_dataset(written([*rows[:30], "30.png,good"], [f"{name},good" for name in names[31:]]))
    with pytest.raises(InvalidInputError, match=r"received good for each, no class"):
        load_dataset(
            written([f"{name},good" for name in names[:30]], [f"{name},good" for name in names[30:]])
        )
    with pytest.raises(InvalidInputError, match=r"train images .* received both for 1 of 31 images"):
        load_dataset(written([*rows[:30], "30.png,good;red"], rows[31:]))
    data = load_dataset(written([*rows[:30], "30.png,good"], [*rows[31:38], f"{names[38]},"]))
    assert len(data.test) == 7, "beside a word for no class, an empty cell says nothing"


def test_a_class_called_as_images_of_none_are_is_refused(tmp_path: Path) -> None:
    table = squares(tmp_path, count=40)
    head, *rows = table.read_text().splitlines()
    rows = [row.replace("red", "no class") for row in rows[:-1]] + ["39.png,"]
    table.write_text("\n".join([head, *rows]))
    with pytest.raises(InvalidInputError, match=r"If it does: none=no class"):
        load_dataset(f"csv:{table}?several=semicolon")


@pytest.mark.parametrize("count", [1, 2])
def test_mapped_data_with_few_images_of_no_class_are_sliced(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = squares(tmp_path, count=40)
    head, *rows = table.read_text().splitlines()
    rows = [row.partition(",")[0] + "," if n < count else row for n, row in enumerate(rows)]
    table.write_text("\n".join([head, *rows]))
    monkeypatch.setattr("smash_search.data.files.MAPPED_ABOVE", 1000)
    monkeypatch.setattr("smash_search.data.dataset.COPY_LIMIT", 1000)
    data = load_dataset(f"csv:{table}?several=semicolon")
    parts = (data.train, data.validation, data.test)
    assert sum(int((part.labels == 3).sum()) for part in parts) == count
    assert isinstance(data.train.images, np.memmap)


def test_a_folder_may_hold_the_images_of_no_class(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(60):
        names = (("good",), ("dent", "scratch"), ("dent",), ("scratch",))[index % 4]
        pixels = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for name in names:
            (tmp_path / name).mkdir(exist_ok=True)
            pixels.save(tmp_path / name / f"{index}.png")
    data = load_dataset(f"folder:{tmp_path}?several=yes&none=good")
    assert data.classes == ("dent", "scratch")
    parts = [part.targets for part in (data.train, data.validation, data.test) if part.targets is not None]
    assert sum(len(targets) for targets in parts) == 60
    assert sum(int((~targets.any(1)).sum()) for targets in parts) == 15
    with pytest.raises(UsageError, match=r"dent or good or scratch; received bad"):
        load_dataset(f"folder:{tmp_path}?several=yes&none=bad")
    with pytest.raises(UsageError, match="of folders several=yes"):
        load_dataset(f"folder:{tmp_path}?none=good")


def arrays_of(folder: Path, labels: np.ndarray, **others: np.ndarray) -> str:
    """Images that tell their row, with these labels."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    images[:, 0, 0] = np.arange(len(labels))
    np.savez(folder / "data.npz", images=images, labels=labels, **others)
    return f"arrays:{folder / 'data.npz'}"


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, bool])
def test_arrays_of_0_and_1_are_several_classes_or_none(tmp_path: Path, kind: type) -> None:
    """As in ChestMNIST, where most images are of no class."""
    told = (np.random.default_rng(1).random((200, 3)) < (0.2, 0.3, 0.4)).astype(kind)
    data = load_dataset(arrays_of(tmp_path, told, classes=np.array(["a", "b", "c"])))
    assert data.classes == ("a", "b", "c")
    for split in (data.train, data.validation, data.test):
        assert np.array_equal(split.targets, told[split.images[:, 0, 0, 0]])
        assert np.array_equal(split.of_no_class, ~split.targets.any(1))
        assert split.of_no_class.any()


def test_one_hot_arrays_are_of_one_class_unless_it_is_said(tmp_path: Path) -> None:
    rows = np.arange(120) % 3
    spec = arrays_of(tmp_path, np.eye(3, dtype=np.float32)[rows])
    data = load_dataset(spec)
    assert not data.several
    assert data.classes == ("0", "1", "2")
    assert np.array_equal(data.train.labels, rows[data.train.images[:, 0, 0, 0]])
    assert load_dataset(f"{spec}?several=yes").several
    without = load_dataset(f"{spec}?none=2")
    assert without.classes == ("0", "1")
    assert np.array_equal(without.train.of_no_class, rows[without.train.images[:, 0, 0, 0]] == 2)


def test_arrays_that_are_not_what_is_said_are_refused(tmp_path: Path) -> None:
    two = np.ones((60, 2), np.uint8)
    two[::2, 0] = 0
    spec = arrays_of(tmp_path, two)
    with pytest.raises(InvalidInputError, match=r"exactly one 1.*none or several for 30 images"):
        load_dataset(f"{spec}?several=no")
    with pytest.raises(UsageError, match="none"):
        load_dataset(f"{spec}?none=good")
    with pytest.raises(InvalidInputError, match=r"3 columns.*received 2 columns"):
        load_dataset(arrays_of(tmp_path, two, classes=np.array(["a", "b", "c"])))
    more = {"val_images": np.zeros((4, 4, 4), np.uint8), "val_labels": np.arange(4)}
    with pytest.raises(InvalidInputError, match=r"validation labels.*2 columns.*one number"):
        load_dataset(arrays_of(tmp_path, two, **more))
    for option in ("several=yes", "none=1"):
        with pytest.raises(UsageError, match="0 and 1 for each class"):
            load_dataset(f"{arrays_of(tmp_path, np.arange(60) % 2)}?{option}")


def test_a_function_may_give_several_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_several_images.py").write_text(
        "import numpy as np\n"
        "from smash_search.data.dataset import Split\n"
        "def make(several='words of its own', form='pair'):\n"
        "    r = np.random.default_rng(0)\n"
        "    images = r.integers(0, 256, (90, 4, 4), dtype=np.uint8)\n"
        "    hot = np.eye(3, dtype=int)[np.arange(90) % 3]\n"
        "    if form == 'split':\n"
        "        split = Split(images[..., None], hot.argmax(1), hot.astype(np.uint8))\n"
        "        return {'train': split}\n"
        "    if form == 'both':\n"
        "        hot[:, 0] |= r.random(90) < 0.3\n"
        "    return {'train': (images, hot), 'classes': ['a', 'b', 'c']}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert not load_dataset("my_several_images:make?several=comma").several
    assert load_dataset("my_several_images:make?form=both").several
    assert load_dataset("my_several_images:make?form=split").several, "targets say so"


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_equal_scores_are_one_threshold_as_in_scikit_learn(kind: type) -> None:
    random = np.random.default_rng(0)
    targets = (random.random((300, 3)) < (0.5, 0.3, 0.1)).astype(np.uint8)
    scores = (targets + random.normal(0, 1, targets.shape)).round().astype(kind)
    wanted = [average_precision_score(targets[:, k], scores[:, k]) for k in range(3)]
    assert average_precisions(scores, targets) == pytest.approx(wanted)
    order = random.permutation(300)
    assert np.array_equal(
        average_precisions(scores[order], targets[order]), average_precisions(scores, targets)
    )
    assert shares_of_error(scores[order], targets[order]) == pytest.approx(
        shares_of_error(scores, targets)[order]
    )


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_network_that_answers_the_same_for_every_image_is_as_good_as_chance(value: float) -> None:
    labels = np.arange(100) // 20  # in the order of their classes
    targets = (labels[:, None] == np.arange(5)).astype(np.uint8)
    scores = np.full(targets.shape, value, np.float32)
    assert average_precisions(scores, targets).tolist() == pytest.approx([0.2] * 5)
    assert shares_of_error(scores, targets).mean() == pytest.approx(0.8)


def test_scores_that_are_not_finite_are_the_last() -> None:
    targets = np.array([[1], [0], [1], [0]], np.uint8)
    scores = np.array([[np.nan], [-3.0], [5.0], [np.inf]], np.float32)
    assert average_precisions(scores, targets).tolist() == [(1 + 2 / 4) / 2]


def test_shares_with_equal_scores_are_what_a_little_more_weight_changes() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((40, 2)) < 0.4).astype(np.uint8)
    scores = (targets + random.normal(0, 1, targets.shape)).round()
    shares = shares_of_error(scores, targets)
    error = 1 - mean_average_precision(scores, targets)
    assert shares.mean() == pytest.approx(error)
    for image in range(40):
        rows = np.append(np.repeat(np.arange(40), 200), image)
        change = 1 - mean_average_precision(scores[rows], targets[rows]) - error
        assert change * 8001 == pytest.approx(shares[image] - error, abs=0.02)


def test_shares_of_the_images_in_an_error_tell_that_of_resamples() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((400, 4)) < (0.5, 0.3, 0.1, 0.0)).astype(np.uint8)
    scores = targets + random.normal(0, 1, targets.shape)
    shares = shares_of_error(scores, targets)
    assert shares.mean() == pytest.approx(1 - mean_average_precision(scores, targets))
    drawn = random.integers(0, 400, (200, 400))
    errors = [1 - mean_average_precision(scores[rows], targets[rows]) for rows in drawn]
    assert np.corrcoef(shares[drawn].mean(1), errors)[0, 1] > 0.95
    assert shares[drawn].mean(1).std() == pytest.approx(np.std(errors), rel=0.15)
    assert shares_of_error(scores, np.zeros_like(targets)).tolist() == [1.0] * 400
