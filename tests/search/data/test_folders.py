"""Image folders as people have them: names of parts, odd files, bad files, and what is said about them."""

from __future__ import annotations

import os
import shlex
import threading
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smash_base.errors import InvalidInputError, UsageError
from smash_base.preprocess import Preprocessing
from smash_search.data import as_seen_by, cache, folder_name, load_dataset, summarise
from smash_search.data import dataset as dataset_module
from smash_search.data import files as image_reader
from smash_search.data.parts import part_of

RANDOM = np.random.default_rng(0)


def fill(folder: Path, count: int = 8, end: str = "png", kind: str = "PNG") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.{end}", kind)


def photos(root: Path, *parts: str) -> Path:
    for part in parts or (".",):
        for name in ("cat", "dog"):
            fill(root / part / name)
    return root


def decoded(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"), ("Train", "Test"), ("TRAIN", "TEST"), ("Training", "Testing"),
        ("training_set", "test_set"), ("train-images", "test-images"), ("Train Data", "Test Data"),
        ("trainset", "evaluation"),
    ],
)  # fmt: skip
def test_usual_names_of_parts_in_any_case(tmp_path: Path, train: str, test: str) -> None:
    data = load_dataset(f"folder:{photos(tmp_path, train, test)}")
    assert data.classes == ("cat", "dog")
    assert len(data.test) == 16
    assert len(data.train) + len(data.validation) == 16


def test_words_that_are_no_parts() -> None:
    assert [part_of(name) for name in ("trainer", "tests", "bus", "value", "contest")] == [None] * 5
    assert [part_of(name) for name in ("Val", "validation_set", "dev")] == ["validation"] * 3


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        fill(tmp_path / name)
    assert load_dataset(f"folder:{tmp_path}").classes == ("bus", "car", "train")


def test_parts_without_training_are_refused_and_can_be_said(tmp_path: Path) -> None:
    photos(tmp_path, "val", "test")
    with pytest.raises(InvalidInputError, match=r"none for training.*train=FOLDER"):
        load_dataset(f"folder:{tmp_path}")
    data = load_dataset(f"folder:{tmp_path}?train=val&test=test")
    assert data.classes == ("cat", "dog")
    assert len(data.test) == 16
    with pytest.raises(UsageError, match="no training part"):
        load_dataset(f"folder:{tmp_path}?test=test")
    with pytest.raises(UsageError, match="option train"):
        load_dataset(f"folder:{tmp_path}?train=nosuch")


def test_folders_that_all_look_like_parts_are_no_classes_unless_said(tmp_path: Path) -> None:
    for name in ("Train", "Test"):
        fill(tmp_path / name)
    with pytest.raises(InvalidInputError, match="none for training"):
        load_dataset(f"folder:{tmp_path}")
    assert load_dataset(f"folder:{tmp_path}?train=.").classes == ("Test", "Train")


@pytest.mark.parametrize("linked", [False, True])
def test_a_part_that_lies_among_the_classes_of_another_is_no_class(tmp_path: Path, linked: bool) -> None:
    photos(tmp_path)
    photos(tmp_path / ("elsewhere" if linked else "test"))
    if linked:
        (tmp_path / "test").symlink_to(tmp_path / "elsewhere")
    data = load_dataset(f"folder:{tmp_path}?train=.&test=test")
    assert data.classes == ("cat", "dog")
    assert (len(data.train) + len(data.validation), len(data.test)) == (16, 16)
    assert summarise(data).duplicates.across_splits == 0
    turned = load_dataset(f"folder:{tmp_path}?train=test&test=.")
    assert turned.classes == ("cat", "dog")
    assert np.array_equal(turned.test.images[:8], [decoded(tmp_path / f"cat/{k}.png") for k in range(8)])


def test_a_folder_that_holds_another_part_is_left_out_with_a_word(tmp_path: Path) -> None:
    photos(tmp_path, ".", "parts/test")
    data = load_dataset(f"folder:{tmp_path}?train=.&test=parts/test")
    assert data.classes == ("cat", "dog")
    assert ("folders that hold another part", 1) in [(item.reason, item.count) for item in data.left_out]


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    photos(tmp_path, "train", "training")
    with pytest.raises(InvalidInputError, match=r"two folders.*\?train=training"):
        load_dataset(f"folder:{tmp_path}")
    assert len(load_dataset(f"folder:{tmp_path}?train=training").train) < 16


def test_nothing_is_left_out_without_a_word(tmp_path: Path) -> None:
    photos(tmp_path, "train", "test")
    fill(tmp_path / "train/cat", 5, "jfif", "JPEG")
    fill(tmp_path / "train/dog", 5, "gif", "GIF")
    fill(tmp_path / "elsewhere", 3, "tif", "TIFF")
    fill(tmp_path / "unlabelled")
    (tmp_path / "train/dog/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/cat/raw.cr2").write_bytes(b"x")
    (tmp_path / "train/labels.csv").write_text("a,b")
    summary = summarise(load_dataset(f"folder:{tmp_path}?channels=3"))
    assert summary.images == 16 + 16 + 5 + 5 + 3
    assert {item.name: item.total for item in summary.classes} == {"cat": 21, "dog": 24}
    left_out = {item["reason"]: (item["count"], item["names"]) for item in summary.to_json()["left_out"]}
    assert left_out == {
        "folders that are no part": (2, [str(tmp_path / "elsewhere"), str(tmp_path / "unlabelled")]),
        "files beside the class folders": (1, [str(tmp_path / "train/labels.csv")]),
        "files of other formats": (1, [str(tmp_path / "train/cat/raw.cr2")]),
    }
    assert "raw.cr2" in summary.facts()["left out"]


def spoil(root: Path) -> list[str]:
    """Bad files of four kinds, as names."""
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(root / "cat/deep.png")
    (root / "dog/page.jpg").write_bytes(b"<html>404</html>")
    whole = (root / "dog/0.png").read_bytes()
    (root / "dog/half.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat/empty.png").write_bytes(b"")
    return ["deep.png", "page.jpg", "half.png", "empty.png"]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("options", ["", "size=8", "size=8&channels=3"])
def test_all_bad_files_stand_in_one_message_and_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, mapped: bool
) -> None:
    if mapped:
        monkeypatch.setattr(image_reader, "MAPPED_ABOVE", 10)
    bad = spoil(photos(tmp_path))
    spec = f"folder:{tmp_path}?{options}&".replace("?&", "?")
    with pytest.raises(InvalidInputError, match="4 of 20 images") as caught:
        load_dataset(spec.rstrip("?&"))
    assert all(name in str(caught.value) for name in bad)
    assert str(caught.value).endswith(f"--data '{spec}skip-bad=yes'")
    for _ in range(2):  # the second time from the converted copy
        summary = summarise(load_dataset(f"{spec}skip-bad=yes"))
        assert summary.images == 16
        assert summary.omitted == 4
        assert {os.path.basename(name) for name in summary.left_out[0].names} == set(bad)


def test_grey_of_16_bits_is_read_as_that_of_8_or_refused_by_its_name(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (16, 8, 8), dtype=np.uint8)
    for depth, factor in ((np.uint8, 1), (np.uint16, 257)):
        for index, image in enumerate(pixels):
            path = tmp_path / depth.__name__ / ("cat", "dog")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(depth) * depth(factor)).save(path)

    def images(name: str) -> set[bytes]:
        data = load_dataset(f"folder:{tmp_path / name}")
        return {
            np.asarray(image).tobytes()
            for part in (data.train, data.validation, data.test)
            for image in part.images
        }

    assert images("uint16") == images("uint8") == {image.tobytes() for image in pixels}
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "uint16/cat/dark.png")
    with pytest.raises(InvalidInputError, match=r"dark\.png has 16 bits and would be all but black"):
        load_dataset(f"folder:{tmp_path / 'uint16'}")


def test_many_files_are_decoded_once_until_one_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reader, "KEPT_FROM", 10)
    photos(tmp_path)
    first = load_dataset(f"folder:{tmp_path}")
    path = tmp_path / "cat/0.png"
    held, facts = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(held)))  # no image any more, of the same size and time
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    again = load_dataset(f"folder:{tmp_path}")
    assert again.fingerprint == first.fingerprint, "nothing was decoded"
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 10**9))
    with pytest.raises(InvalidInputError, match=r"0\.png"):
        load_dataset(f"folder:{tmp_path}")


def test_a_few_large_photos_are_decoded_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for index in range(4):
            pixels = random.integers(0, 256, (900, 900, 3), np.uint8)  # noise, which no file makes smaller
            Image.fromarray(pixels).save(tmp_path / label / f"{index}.png", compress_level=0)
    spec = f"folder:{tmp_path}?size=32"
    first = load_dataset(spec)
    copies = sorted((tmp_path / cache.FOLDER).glob("*/images.npy"))
    made = [path.stat().st_mtime_ns for path in copies]
    assert copies
    assert load_dataset(spec).fingerprint == first.fingerprint
    assert [path.stat().st_mtime_ns for path in copies] == made
    few = tmp_path / "few"
    photos(few)
    load_dataset(f"folder:{few}")
    assert not (few / cache.FOLDER).exists(), "little ones are decoded sooner than copies are kept"


def test_a_larger_limit_of_pixels_reads_what_was_left_out_for_a_smaller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reader, "KEPT_FROM", 10)
    photos(tmp_path)
    Image.new("RGB", (60, 60)).save(tmp_path / "cat/large.png")
    spec = f"folder:{tmp_path}?size=8&skip-bad=yes"
    for limit, count in (("1000", 1), ("", 0), ("1000", 1)):
        monkeypatch.setenv("SMASH_EXPORT_MAX_PIXELS", limit)
        assert len(load_dataset(spec).left_out) == count


def of_one_time(root: Path) -> None:
    """As an archive with fixed times unpacks: only their folders tell the files of two classes apart."""
    for label, name in enumerate(("black", "white")):
        (root / name).mkdir(parents=True)
        for index in range(20):
            Image.new("L", (4, 4), 200 * label + index).save(root / name / f"{index:02}.bmp")
            os.utime(root / name / f"{index:02}.bmp", (1.7e9, 1.7e9))


@pytest.mark.parametrize("linked", [False, True])
def test_labels_stay_with_their_images_when_classes_swap_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    monkeypatch.setattr(image_reader, "KEPT_FROM", 10)
    of_one_time(tmp_path / "files")
    root = tmp_path / "photos" if linked else tmp_path / "files"
    if linked:
        root.mkdir()
        for name in ("black", "white"):
            (root / name).symlink_to(tmp_path / "files" / name)
    load_dataset(f"folder:{root}")
    (root / "black").rename(root / "other")
    (root / "white").rename(root / "black")
    (root / "other").rename(root / "white")
    data = load_dataset(f"folder:{root}")
    assert data.classes == ("black", "white")
    assert np.array_equal(data.train.images[:, 0, 0, 0] >= 200, data.train.labels == 0)


def test_data_that_are_moved_keep_their_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_reader, "KEPT_FROM", 10)
    of_one_time(tmp_path / "here")
    load_dataset(f"folder:{tmp_path / 'here'}")
    (tmp_path / "here").rename(tmp_path / "there")
    (copy,) = (tmp_path / "there" / cache.FOLDER).glob("*/images.npy")
    made = copy.stat().st_mtime_ns
    load_dataset(f"folder:{tmp_path / 'there'}")
    assert copy.stat().st_mtime_ns == made
    assert len(list((tmp_path / "there" / cache.FOLDER).glob("*/images.npy"))) == 1


@pytest.mark.parametrize(("seconds", "threads"), [(0.0, 1), (0.002, image_reader.THREADS + 1)])
def test_small_images_are_decoded_in_one_thread_and_large_ones_in_several(
    seconds: float, threads: int
) -> None:
    used = set()

    def work(item: int) -> int:
        used.add(threading.get_ident())
        time.sleep(seconds)
        return -item

    images = image_reader.AHEAD + 40
    assert list(image_reader.in_threads(work, range(images))) == [-item for item in range(images)]
    assert len(used) == threads


def test_decoded_copies_go_when_they_take_too_much_and_the_last_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reader, "KEPT_FROM", 10)
    monkeypatch.setattr(cache, "MOST_BYTES", 6000)
    photos(tmp_path)
    for size in (8, 9, 10, 12):
        load_dataset(f"folder:{tmp_path}?size={size}")
    copies = sorted((tmp_path / cache.FOLDER).glob("*/images.npy"))
    assert [path.parent.name.rpartition("-")[0] for path in copies] == ["train-12x12x3-bilinear-upright"]


def test_images_are_decoded_where_no_copy_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path)
    wanted = load_dataset(f"folder:{tmp_path}").fingerprint
    monkeypatch.setattr(image_reader, "KEPT_FROM", 10)
    (tmp_path / cache.FOLDER).write_text("a file where the folder would be")
    assert load_dataset(f"folder:{tmp_path}").fingerprint == wanted


def test_labels_stay_with_their_images_when_bad_files_are_left_out(tmp_path: Path) -> None:
    for label, name in enumerate(("black", "white")):
        for index in range(20):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (4, 4), 200 * label + index).save(tmp_path / name / f"{index}.png")
    (tmp_path / "black/05.png").write_bytes(b"x")
    data = load_dataset(f"folder:{tmp_path}?skip-bad=yes")
    for split in (data.train, data.validation, data.test):
        assert np.array_equal(split.images[:, 0, 0, 0] >= 200, split.labels == 1)


def test_orientation_is_applied_in_training_and_stands_in_the_preprocessing(tmp_path: Path) -> None:
    photos(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "cat/0.png"))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.ascontiguousarray(pixels[::-1, ::-1])).save(tmp_path / "cat/0.png", exif=exif)
    upright, lying = (load_dataset(f"folder:{tmp_path}{option}") for option in ("", "?exif=no"))
    assert upright.preprocessing.exif
    assert not lying.preprocessing.exif

    def holds(data: object) -> bool:
        parts = (data.train, data.validation, data.test)  # type: ignore[attr-defined]
        return any((image == pixels).all() for part in parts for image in part.images)

    assert holds(upright)
    assert not holds(lying)


def test_only_readers_of_image_files_are_told_how_a_network_takes_them() -> None:
    old = Preprocessing(8, 9, 3, (0.5,) * 3, (0.5,) * 3, exif=False)
    rest = "channels=3&resize=bilinear&exif=no"
    assert as_seen_by(old, "folder:photos?size=32") == f"folder:photos?size=32&{rest}"
    assert as_seen_by(old, "csv:labels.csv") == f"csv:labels.csv?size=8x9&{rest}"
    assert as_seen_by(old, "folder:photos?exif=yes").endswith("?exif=yes&size=8x9&channels=3&resize=bilinear")
    assert as_seen_by(old, "digits") == "digits"
    cut = Preprocessing(8, 8, 1, (0.5,), (0.5,), short_side=10)
    assert as_seen_by(cut, "folder:photos").endswith("exif=yes&short-side=10")


def test_short_side_of_training_images_stands_in_the_preprocessing(tmp_path: Path) -> None:
    photos(tmp_path)
    data = load_dataset(f"folder:{tmp_path}?size=8&short-side=10")
    assert data.preprocessing.short_side == 10
    files = [data.preprocessing.decode(path) for path in tmp_path.rglob("*.png")]
    seen = {image.tobytes() for part in (data.train, data.validation, data.test) for image in part.images}
    assert seen == {image.tobytes() for image in files}


def test_class_names_that_are_not_utf8_are_refused_in_words(tmp_path: Path) -> None:
    photos(tmp_path)
    os.rename(tmp_path / "cat", os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    with pytest.raises(InvalidInputError, match=r"not UTF-8.*caf\\udce9"):
        load_dataset(f"folder:{tmp_path}")


def test_images_that_scaling_distorts_are_a_note(tmp_path: Path) -> None:
    photos(tmp_path)
    Image.new("RGB", (60, 30)).save(tmp_path / "cat" / "wide.png")

    def sizes(options: str) -> str:
        notes = load_dataset(f"folder:{tmp_path}?{options}").notes
        return next(note for note in notes if "scaled to one" in note)

    for options in ("size=16x24", "size=16x24&channels=3"):
        assert sizes(options).endswith("distorts some; short-side=16 cuts the centre out instead")
    assert sizes("size=16&short-side=16").endswith("scaled to one")
    (tmp_path / "cat" / "wide.png").unlink()
    Image.new("RGB", (60, 60)).save(tmp_path / "cat" / "large.png")
    assert sizes("size=16").endswith("scaled to one")


def test_photos_of_a_camera_are_told_to_be_scaled(tmp_path: Path) -> None:
    for name, height in (("one", 600), ("two", 600)):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("L", (16, height), 8 * number).save(tmp_path / name / f"{number}.png")
    assert any(
        "16x600 pixels; the option size=224" in note for note in load_dataset(f"folder:{tmp_path}").notes
    )
    for path in tmp_path.rglob("*.png"):
        Image.new("L", (5000, 1), 100).save(path)
    with pytest.raises(InvalidInputError, match=r"received 5000x1.*size=224"):
        load_dataset(f"folder:{tmp_path}")


def test_a_hint_keeps_the_options_that_were_given(tmp_path: Path) -> None:
    """Without them a set of several classes an image became one of single classes, silently."""
    photos(tmp_path)
    Image.new("RGB", (60, 30)).save(tmp_path / "cat" / "wide.png")
    spec = f"folder:{tmp_path}?several=yes&exif=no"
    with pytest.raises(InvalidInputError, match="different sizes") as caught:
        load_dataset(spec)
    assert shlex.quote(f"{spec}&size=64") in str(caught.value.hint)
    assert load_dataset(f"{spec}&size=64").several


def test_duplicates_are_counted_across_splits_and_classes(tmp_path: Path) -> None:
    photos(tmp_path, "train", "test")
    picture = (tmp_path / "train/cat/0.png").read_bytes()
    for copy in ("train/cat/copy.png", "train/dog/copy.png", "test/cat/copy.png"):
        (tmp_path / copy).write_bytes(picture)
    summary = summarise(load_dataset(f"folder:{tmp_path}?validation=test&train=train&test=test"))
    assert summary.duplicates is not None
    assert summary.duplicates.other_class >= 1
    assert summary.duplicates.across_splits == 17 + 17 - 16  # the test part twice, and the copy in it
    assert any("stand in another split" in note for note in summary.notes)
    assert summary.duplicates.class_pairs == ((0, 1),)
    assert any("different classes (cat and dog)" in note for note in summary.notes)
    clean = summarise(load_dataset("digits"))
    assert str(clean.duplicates) == "none; near copies not looked for", "digits are too small to tell"


def test_a_summary_counts_every_image_once() -> None:
    data = load_dataset("digits")
    summary = summarise(data)
    assert summary.images == 1797 == sum(item.total for item in summary.classes)
    assert summary.splits == {
        "train": len(data.train),
        "validation": len(data.validation),
        "test": len(data.test),
    }
    assert (summary.height, summary.width, summary.channels) == (8, 8, 1)
    assert summary.facts()["left out"] == "nothing"


def test_results_are_kept_under_the_name_of_the_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "my photos v1.2")
    assert folder_name(load_dataset(f"folder:{root}/?size=8")) == "my-photos-v1-2"
    monkeypatch.chdir(root)
    assert folder_name(load_dataset("folder:.")) == "my-photos-v1-2"
    images = RANDOM.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez("birds.npz", images=images, labels=np.arange(40) % 2)
    assert folder_name(load_dataset("arrays:birds.npz")) == "birds"
    assert folder_name(load_dataset("digits")) == "digits", "one data set, whoever has it"


@pytest.mark.parametrize("bad", [0, 3])
def test_folders_too_large_to_copy_are_divided_class_by_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    monkeypatch.setattr(image_reader, "MAPPED_ABOVE", 1000)
    monkeypatch.setattr(dataset_module, "COPY_LIMIT", 1000)
    for label, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        for index in range(30):
            pixels = np.full((8, 8, 3), 80 * label + index, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    for index in range(bad):
        (tmp_path / "a" / f"{index}.png").write_bytes(b"<html>404</html>")
    for _ in range(2):  # the second time from the converted copy
        data = load_dataset(f"folder:{tmp_path}?size=8&skip-bad=yes")
        assert isinstance(data.train.images.base, np.memmap)
        splits = (data.train, data.validation, data.test)
        for split in splits:
            assert np.array_equal(split.images[:, 0, 0, 0] // 80, split.labels)
            assert np.ptp(np.bincount(split.labels, minlength=3)) <= 1 + bad
        shown = np.concatenate([split.images[:, 0, 0, 0] for split in splits])
        assert len(np.unique(shown)) == len(shown) == 90 - bad
    monkeypatch.undo()
    small = load_dataset(f"folder:{tmp_path}?size=8&skip-bad=yes")
    same = np.array_equal(np.sort(small.test.images, 0), np.sort(data.test.images, 0))
    assert same or bad, "a test image of one size is none of training at another"


def test_classes_of_few_images_are_in_every_part_of_a_large_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reader, "MAPPED_ABOVE", 1000)
    monkeypatch.setattr(dataset_module, "COPY_LIMIT", 1000)
    for number in range(25):
        fill(tmp_path / f"class {number}", 4)
    data = load_dataset(f"folder:{tmp_path}?size=8")
    for split in (data.train, data.validation, data.test):
        assert np.bincount(split.labels, minlength=25).min() >= 1


def test_parts_whose_names_have_a_word_in_common_are_parts(tmp_path: Path) -> None:
    """Intel's scenes as Kaggle packs them; classes that only begin as parts do stay classes."""
    for part in ("train", "test"):
        for name in ("forest", "sea"):
            fill(tmp_path / "scenes" / f"seg_{part}" / f"seg_{part}" / name)
    fill(tmp_path / "scenes" / "seg_pred" / "seg_pred")
    data = load_dataset(f"folder:{tmp_path / 'scenes'}")
    assert data.classes == ("forest", "sea")
    assert (len(data.train) + len(data.validation), len(data.test)) == (16, 16)
    assert "seg_pred" in str(data.left_out)
    for name in ("train_station", "test_tube"):
        fill(tmp_path / "things" / name / "views")
    assert load_dataset(f"folder:{tmp_path / 'things'}").classes == ("test_tube", "train_station")


def test_parts_below_the_classes_are_refused_and_not_mixed(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            fill(tmp_path / name / part)
    with pytest.raises(InvalidInputError, match=r"holds parts; expected train/cat"):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("stranger", ["@eaDir", "__MACOSX", "lost+found"])
def test_folders_of_the_system_are_no_classes_and_their_pictures_none_of_ours(
    tmp_path: Path, stranger: str
) -> None:
    photos(tmp_path)
    for name in ("cat", "dog", "."):
        fill(tmp_path / name / stranger / "1.png")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.validation) + len(data.test) == 16
    assert [item.count for item in data.left_out if "system" in item.reason] == [3]


def test_a_name_is_the_same_class_in_either_form_of_its_characters(tmp_path: Path) -> None:
    """Archives of a Mac have decomposed ones."""
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("K\u00e4fer", "Biene"):
            fill(tmp_path / part / unicodedata.normalize(form, name))
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("Biene", "K\u00e4fer")
    assert len(data.test) == 16
    rows = [f"train/{name}/{number}.png,{name}" for name in ("Biene", "K\u00e4fer") for number in range(8)]
    rows += [f"test/{name}/{number}.png,{name}" for name in ("Biene", "Ka\u0308fer") for number in range(8)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(rows), encoding="utf-8")
    assert load_dataset(f"csv:{tmp_path / 'labels.csv'}").classes == ("Biene", "K\u00e4fer")


def test_drawings_that_become_black_are_told(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("arrow", "circle"):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(12):
            shape = np.zeros((16, 16, 4), np.uint8)
            shape[..., 3] = random.integers(0, 2, (16, 16)) * 255
            if name == "circle":
                shape[..., 0] = 200
            Image.fromarray(shape, "RGBA").save(folder / f"{number}.png")
    notes = summarise(load_dataset(f"folder:{tmp_path}")).notes
    assert any(note.startswith("12 images show one colour alone") for note in notes)
    assert not any("one colour" in note for note in summarise(load_dataset("digits")).notes)
