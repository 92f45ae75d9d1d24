"""Data as others keep them: Parquet and Arrow of Hugging Face, WebDataset archives, tables of paths."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smash_base.errors import InvalidInputError, UsageError
from smash_search.data import Dataset, load_dataset, summarise
from smash_search.data import files as image_files

CLASSES = ("cat", "dog", "owl")
SIDES = (range(60), range(60, 120))  # numbers of the pictures of two columns


def picture(number: int) -> np.ndarray:
    """An image that tells its number and its class."""
    return np.full((6, 5, 3), (number, 80 * (number % 3), 255 - number), np.uint8)


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(number)).save(stream, "PNG")
    return stream.getvalue()


def whole(data: Dataset) -> bool:
    """Whether every image is where its label says."""
    parts = (data.train, data.validation, data.test)
    return all(
        np.array_equal(image, picture(int(image[0, 0, 0]))) and int(image[0, 0, 0]) % 3 == label
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    )


# Parquet and Arrow --------------------------------------------------------------------------------

pyarrow = pytest.importorskip("pyarrow", reason="the extra data is not installed")


def table(numbers: range, label: str = "label", *, named: bool = True, texts: bool = False) -> object:
    """Rows as ``datasets`` writes them: a struct of bytes and path, names of classes in the metadata."""
    rows = {
        "image": [{"bytes": png(number), "path": f"{number}.png"} for number in numbers],
        label: [CLASSES[number % 3] if texts else number % 3 for number in numbers],
    }
    found = pyarrow.table(rows)
    features = {"image": {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(CLASSES)}}
    return found.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})} if named else {}
    )


def test_another_column_is_not_answered_from_the_copy_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "KEPT_FROM", 10)
    front, back = ([{"bytes": png(number), "path": None} for number in numbers] for numbers in SIDES)
    write_parquet(
        tmp_path / "train.parquet",
        pyarrow.table({"front": front, "back": back, "label": [number % 3 for number in SIDES[0]]}),
    )
    for side, column in zip(SIDES, ("front", "back", "front"), strict=False):
        data = load_dataset(f"parquet:{tmp_path}?image={column}")
        numbers = {
            int(image[0, 0, 0]) for part in (data.train, data.validation, data.test) for image in part.images
        }
        assert numbers == set(side)


def write_parquet(path: Path, rows: object) -> None:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(rows, path)


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", table(range(60)))
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", table(range(60, 120)))
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", table(range(120, 150)))
    data = load_dataset(f"parquet:{tmp_path}")
    assert data.classes == CLASSES
    assert (len(data.train) + len(data.validation), len(data.test)) == (120, 30)
    assert whole(data)


def test_a_column_of_paths_as_text_is_read_from_the_folder_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(60):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(png(number))
    paths = [f"pictures/{number}.png" for number in range(60)]
    rows = pyarrow.table({"image": paths, "label": [CLASSES[number % 3] for number in range(60)]})
    write_parquet(tmp_path / "labels.parquet", rows)
    data = load_dataset(f"parquet:{tmp_path / 'labels.parquet'}")
    assert len(data.train) + len(data.validation) + len(data.test) == 60
    assert whole(data)


def test_names_of_other_columns_and_parts_are_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "first.parquet", table(range(60), "fine"))
    write_parquet(tmp_path / "second.parquet", table(range(60, 90), "fine"))
    with pytest.raises(InvalidInputError, match="no column label"):
        load_dataset(f"parquet:{tmp_path}")
    data = load_dataset(f"parquet:{tmp_path}?label=fine&train=first&test=second")
    assert len(data.test) == 30
    assert whole(data)
    with pytest.raises(UsageError, match="option label"):
        load_dataset(f"parquet:{tmp_path}?label=coarse")


def test_labels_without_names_and_as_texts(tmp_path: Path) -> None:
    write_parquet(tmp_path / "n.parquet", table(range(60), named=False))
    write_parquet(tmp_path / "t.parquet", table(range(60), named=False, texts=True))
    assert load_dataset(f"parquet:{tmp_path / 'n.parquet'}").classes == ("0", "1", "2")
    texts = load_dataset(f"parquet:{tmp_path / 't.parquet'}")
    assert texts.classes == CLASSES
    assert whole(texts)
    (tmp_path / "t.parquet").rename(tmp_path / "t.pq")
    assert load_dataset(f"parquet:{tmp_path / 't.pq'}").fingerprint == texts.fingerprint
    rows = {
        "image": [{"bytes": png(n), "path": None} for n in range(60)],
        "label": [*CLASSES * 19, *("", "cat", "")],
    }
    write_parquet(tmp_path / "e.parquet", pyarrow.table(rows))
    empty = load_dataset(f"parquet:{tmp_path / 'e.parquet'}")
    assert empty.classes == CLASSES
    assert [(item.reason, item.count) for item in empty.left_out] == [("rows without a label", 2)]


def of_several(number: int) -> list[int]:
    """Classes of an image: cats are also dogs in every other one, and every owl is with a cat."""
    return [[0, 1] if number % 2 else [0], [1], [2, 0]][number % 3]


def in_every_class(data: Dataset) -> bool:
    """Whether the targets of every image with a class are :func:`of_several` of its number."""
    return all(
        part.targets is not None
        and set(np.flatnonzero(part.targets[row])) == set(of_several(int(image[0, 0, 0])))
        and part.labels[row] < 3
        for part in (data.train, data.validation, data.test)
        for row, image in enumerate(part.images)
        if part.targets is None or part.targets[row].any()
    )


def of_no_class(data: Dataset) -> int:
    """Number of images that have none, whose labels say so."""
    parts = [part for part in (data.train, data.validation, data.test) if part.targets is not None]
    none = [~part.targets.any(1) for part in parts if part.targets is not None]
    for part, rows in zip(parts, none, strict=True):
        assert (part.labels[rows] == len(data.classes)).all()
    return int(sum(rows.sum() for rows in none))


@pytest.mark.parametrize("feature", ["Sequence", "List", "list", "texts", "cells"])
def test_a_list_of_labels_in_parquet_is_several_classes(tmp_path: Path, feature: str) -> None:
    named = {"_type": "ClassLabel", "names": list(CLASSES)}
    about = [named] if feature == "list" else {"_type": feature, "feature": named}
    values: list[object] = [of_several(number) for number in range(90)]
    if feature in ("texts", "cells"):
        values = [[CLASSES[label] for label in of_several(number)] for number in range(90)]
    if feature == "cells":
        values = ["|".join(names) for names in values]  # type: ignore[arg-type]
    values.append([] if feature != "cells" else "")
    test = {"image": [{"bytes": png(0), "path": "0.png"}], "labels": values[-1:]}
    write_parquet(tmp_path / "test.parquet", pyarrow.table(test))
    rows = {"image": [{"bytes": png(n), "path": f"{n}.png"} for n in range(91)], "labels": values}
    told = {"info": {"features": {"labels": about}}} if feature not in ("texts", "cells") else {}
    metadata = {"huggingface": json.dumps(told)} if told else {}
    write_parquet(tmp_path / "train.parquet", pyarrow.table(rows).replace_schema_metadata(metadata))
    data = load_dataset(f"parquet:{tmp_path}" + "?several=bar" * (feature == "cells"))
    assert data.classes == CLASSES
    assert in_every_class(data)
    assert of_no_class(data) == 1, "an empty list"
    left_out = [(item.reason, item.count) for item in summarise(data).left_out]
    assert left_out == [("rows without a label", 1)], "a part of empty lists has no labels"


@pytest.mark.parametrize("word", ["bird", "0"])
def test_a_numbered_class_may_stand_for_none(tmp_path: Path, word: str) -> None:
    """Numbers of the other classes move down."""
    names = ("bird", *CLASSES)
    feature = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": list(names)}}
    values = [[label + 1 for label in of_several(n)] if n else [0] for n in range(90)]
    rows = {"image": [{"bytes": png(n), "path": f"{n}.png"} for n in range(90)], "labels": values}
    told = {"huggingface": json.dumps({"info": {"features": {"labels": feature}}})} if word == "bird" else {}
    write_parquet(tmp_path / "a.parquet", pyarrow.table(rows).replace_schema_metadata(told))
    data = load_dataset(f"parquet:{tmp_path}?none={word}")
    assert data.classes == (CLASSES if word == "bird" else ("1", "2", "3"))
    assert in_every_class(data)
    assert of_no_class(data) == 1


@pytest.mark.parametrize(
    ("wrong", "text"), [([0, 1, 0], "each once"), ([3], "0 to 2"), ([True], "a list of these")]
)
def test_lists_that_name_no_classes_are_refused(tmp_path: Path, wrong: list[int], text: str) -> None:
    about = {"labels": {"_type": "List", "feature": {"_type": "ClassLabel", "names": list(CLASSES)}}}
    values = [wrong if wrong == [True] else of_several(n) for n in range(30)] + [wrong]
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(31)], "labels": values}
    metadata = {"huggingface": json.dumps({"info": {"features": about}})}
    write_parquet(tmp_path / "a.parquet", pyarrow.table(rows).replace_schema_metadata(metadata))
    with pytest.raises(InvalidInputError, match=text):
        load_dataset(f"parquet:{tmp_path}")


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_of_save_to_disk(tmp_path: Path, stream: bool) -> None:
    for part, numbers in (("train", range(90)), ("test", range(90, 120))):
        folder = tmp_path / part
        folder.mkdir()
        rows = table(numbers)
        kind = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
        with kind(folder / "data-00000-of-00001.arrow", rows.schema) as writer:  # type: ignore[attr-defined]
            writer.write_table(rows, max_chunksize=25)
    data = load_dataset(f"arrow:{tmp_path}")
    assert data.classes == CLASSES
    assert len(data.test) == 30
    assert whole(data)


def test_rows_without_labels_are_left_out_and_bad_images_named(tmp_path: Path) -> None:
    rows = {
        "image": [{"bytes": png(n) if n != 7 else b"x", "path": f"{n}.png"} for n in range(60)],
        "label": [number % 3 if number % 10 else -1 for number in range(60)],
    }  # fmt: skip
    write_parquet(tmp_path / "a.parquet", pyarrow.table(rows))
    with pytest.raises(InvalidInputError, match=r"1 of 54.*row 7 \(7.png\)"):
        load_dataset(f"parquet:{tmp_path}")
    data = load_dataset(f"parquet:{tmp_path}?skip-bad=yes")
    left_out = {item.reason: item.count for item in summarise(data).left_out}
    assert left_out == {"rows without a label": 6, "files that cannot be read": 1}
    assert whole(data)


def test_a_path_in_a_table_leads_to_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    for number in range(60):
        (tmp_path / f"inside/{number}.png").write_bytes(png(number))
    (tmp_path / "outside.png").write_bytes(png(3))
    paths = [f"{number}.png" for number in range(60)]
    for kind, names in (("good", paths), ("bad", [*paths[:-1], "../outside.png"])):
        rows = {
            "image": [{"bytes": None, "path": name} for name in names],
            "label": [n % 3 for n in range(60)],
        }
        write_parquet(tmp_path / f"inside/{kind}.parquet", pyarrow.table(rows))
    assert whole(load_dataset(f"parquet:{tmp_path / 'inside/good.parquet'}"))
    with pytest.raises(InvalidInputError, match="1 of 60"):
        load_dataset(f"parquet:{tmp_path / 'inside/bad.parquet'}")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_damaged_tables(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    rows = table(range(30))
    if kind == "parquet":
        write_parquet(path, rows)
    else:
        with pyarrow.ipc.new_file(path, rows.schema) as writer:  # type: ignore[attr-defined]
            writer.write_table(rows)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2], content[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(InvalidInputError):
            load_dataset(f"{kind}:{path}")


# WebDataset ---------------------------------------------------------------------------------------


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            archive.addfile(facts, io.BytesIO(content))


def samples(numbers: range, ending: str = "cls", names: bool = False) -> dict[str, bytes]:
    members = {}
    for number in numbers:
        members[f"some/{number:05}.png"] = png(number)
        value = CLASSES[number % 3] if names else number % 3
        text = json.dumps({"label": value}) if ending == "json" else str(value)
        members[f"some/{number:05}.{ending}"] = text.encode()
    return members


def test_tiff_in_an_archive_is_read_as_in_a_folder(tmp_path: Path) -> None:
    members = {}
    for name, content in samples(range(60)).items():
        stream = io.BytesIO(content)
        if name.endswith(".png"):
            stream = io.BytesIO()
            Image.open(io.BytesIO(content)).save(stream, "TIFF")
        members[name.replace(".png", ".tif")] = stream.getvalue()
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", samples(range(60)))
    found, wanted = (load_dataset(f"webdataset:{tmp_path / name}") for name in ("a.tar", "b.tar"))
    assert not found.left_out
    np.testing.assert_array_equal(found.train.images, wanted.train.images)


@pytest.mark.parametrize("ending", ["cls", "json", "txt"])
@pytest.mark.parametrize("names", [True, False])
def test_webdataset(tmp_path: Path, ending: str, names: bool) -> None:
    write_tar(tmp_path / "train-000000.tar", samples(range(60), ending, names))
    write_tar(tmp_path / "train-000001.tar.gz", samples(range(60, 90), ending, names), "w:gz")
    write_tar(tmp_path / "val-000000.tar", samples(range(90, 120), ending, names))
    if not names:
        (tmp_path / "classnames.txt").write_text("\n".join(CLASSES))
    data = load_dataset(f"webdataset:{tmp_path}")
    assert data.classes == CLASSES
    assert len(data.validation) == 30
    assert len(data.train) + len(data.test) == 90
    assert whole(data)


@pytest.mark.parametrize("ending", ["cls", "json"])
@pytest.mark.parametrize("names", [True, False])
def test_webdataset_of_several_classes(tmp_path: Path, ending: str, names: bool) -> None:
    members = {}
    for number in range(90):
        members[f"{number:05}.png"] = png(number)
        labels = [CLASSES[label] if names else label for label in of_several(number)]
        text = json.dumps({"label": labels}) if ending == "json" else " ".join(map(str, labels))
        members[f"{number:05}.{ending}"] = text.encode()
    members |= {"none.png": png(0), f"none.{ending}": b'{"label": []}' if ending == "json" else b" "}
    members |= {"unknown.png": png(0)}
    write_tar(tmp_path / "a.tar", members)
    if not names:
        (tmp_path / "classnames.txt").write_text("\n".join(CLASSES))
    data = load_dataset(f"webdataset:{tmp_path}" + "?several=space" * (ending == "cls"))
    assert data.classes == CLASSES
    assert in_every_class(data)
    assert of_no_class(data) == 1
    assert [(item.reason, item.count) for item in data.left_out] == [("samples without a label", 1)]


def test_samples_that_lack_something_are_named(tmp_path: Path) -> None:
    members = samples(range(60))
    del members["some/00007.cls"], members["some/00009.png"]
    write_tar(tmp_path / "a.tar", members)
    left_out = {item.reason: item.names[0][-10:] for item in load_dataset(f"webdataset:{tmp_path}").left_out}
    assert left_out == {"samples without a label": "some/00007", "samples without an image": "some/00009"}


@pytest.mark.parametrize("ending", ["cls", "json"])
def test_samples_of_the_label_minus_one_have_none(tmp_path: Path, ending: str) -> None:
    unknown = b'{"label": -1}' if ending == "json" else b"-1"
    members = samples(range(60), ending)
    write_tar(tmp_path / "train-0.tar", members | {f"some/00007.{ending}": unknown})
    tests = {name: data if name.endswith("png") else unknown for name, data in members.items()}
    write_tar(tmp_path / "test-0.tar", tests)
    data = load_dataset(f"webdataset:{tmp_path}")
    assert data.classes == ("0", "1", "2")
    assert len(data.train) + len(data.validation) + len(data.test) == 59, "a test part without labels is none"
    assert [(item.reason, item.count) for item in data.left_out] == [("samples without a label", 61)]


def test_a_sample_that_stands_twice_in_an_archive_counts_where_it_has_a_label(tmp_path: Path) -> None:
    twice = samples(range(1))
    write_tar(tmp_path / "a.tar", {"some/00000.png": twice["some/00000.png"], **samples(range(1, 60))})
    write_tar(tmp_path / "a.tar", twice, "a")
    data = load_dataset(f"webdataset:{tmp_path}")
    assert len(data.train) + len(data.validation) + len(data.test) == 60
    assert whole(data)
    assert [(item.reason, item.count) for item in data.left_out] == [("samples without a label", 1)]


def test_damaged_archives(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(range(30)))
    content = (tmp_path / "a.tar").read_bytes()
    for damaged in (b"", b"text" * 200, content[: len(content) // 2 + 100]):
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(InvalidInputError):
            load_dataset(f"webdataset:{tmp_path / 'a.tar'}")


# Tables of paths ----------------------------------------------------------------------------------


def write_table(folder: Path, head: str, mark: str = ",", split: bool = True, start: str = "") -> Path:
    (folder / "pictures").mkdir(exist_ok=True)
    lines = [start + mark.join(head.split(","))]
    for number in range(60):
        (folder / f"pictures/{number}.png").write_bytes(png(number))
        fields = [f"pictures/{number}.png", CLASSES[number % 3]]
        part = "Training" if number < 30 else "val" if number < 45 else "TEST"
        lines.append(mark.join([*fields, *([part] if split else [])]))
    path = folder / "labels.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("head", "mark", "start"),
    [
        ("path,label,split", ",", ""),
        ("Filename,Class,subset", ";", "\ufeff"),
        ("image,category,fold", "\t", ""),
        ("path,label,split", ";", "\ufeffsep=;\n"),
        ("path,label,split", "|", '"sep=|"\r\n'),
    ],
)
def test_csv_of_paths_and_labels_with_splits(tmp_path: Path, head: str, mark: str, start: str) -> None:
    data = load_dataset(f"csv:{write_table(tmp_path, head, mark, start=start)}")
    assert data.classes == CLASSES
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 15, 15)
    assert whole(data)


def test_a_missing_file_of_many_is_named_and_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "KEPT_FROM", 10)
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    rows = [f"{number}.png,{CLASSES[number % 3]}" for number in range(31)]
    (tmp_path / "a.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(InvalidInputError, match=r"1 of 31 images.*30\.png"):
        load_dataset(f"csv:{tmp_path / 'a.csv'}")
    data = load_dataset(f"csv:{tmp_path / 'a.csv'}?skip-bad=yes")
    assert len(data.train) + len(data.validation) + len(data.test) == 30


def test_csv_without_splits_and_with_other_columns(tmp_path: Path) -> None:
    path = write_table(tmp_path, "where,what", split=False)
    with pytest.raises(InvalidInputError, match="no column image"):
        load_dataset(f"csv:{path}")
    data = load_dataset(f"csv:{path}?image=where&label=what")
    assert len(data.train) + len(data.validation) + len(data.test) == 60
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    path.rename(moved / "labels.csv")
    assert whole(load_dataset(f"csv:{moved / 'labels.csv'}?image=where&label=what&root={tmp_path}"))


def test_folds_of_a_table_are_held_out_when_they_are_named(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,label,fold")
    rows = path.read_text().splitlines()
    path.write_text(
        "\n".join([rows[0], *(f"{row.rsplit(',', 1)[0]}, {n % 5}" for n, row in enumerate(rows[1:]))])
    )
    with pytest.raises(InvalidInputError, match=r"row 2: split.*Of folds say which are held out: \?test=0"):
        load_dataset(f"csv:{path}")
    unsplit = load_dataset(f"csv:{path}?split=no")
    assert len(unsplit.train) + len(unsplit.validation) + len(unsplit.test) == 60
    data = load_dataset(f"csv:{path}?test=4&validation=1,2")
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 24, 12)
    only = load_dataset(f"csv:{path}?test=3")
    assert len(only.test) == 12
    assert len(only.train) + len(only.validation) == 48
    with pytest.raises(InvalidInputError, match="column fold; expected rows of 7, which are to be held out"):
        load_dataset(f"csv:{path}?test=4,7")
    with pytest.raises(UsageError, match="received 4 for both"):
        load_dataset(f"csv:{path}?test=4&validation=1,4")
    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(row.rsplit(",", 1)[0] for row in rows))
    with pytest.raises(InvalidInputError, match="no column split"):
        load_dataset(f"csv:{bare}?test=4")


def test_other_words_for_parts_of_a_table_can_be_named_beside_usual_ones(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,label,split")
    path.write_text(path.read_text().replace("TEST", "holdout"))
    data = load_dataset(f"csv:{path}?test=holdout")
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 15, 15)


def test_empty_rows_of_a_table_are_left_out_and_cells_beyond_its_columns_may_be_empty(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,label,split")
    path.write_text("\n".join([*path.read_text().splitlines(), ",,", "  ,cat,train", "a.png, ,", ",,,,"]))
    data = load_dataset(f"csv:{path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 15, 15)
    (omission,) = data.left_out
    assert (omission.count, omission.names[1]) == (4, f"{path}: row 63")


def test_wrong_tables_of_paths(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,label,split")
    text = path.read_text()
    for wrong, words in (
        (text.replace("Training", "Monday"), "row 2: split"),
        (text.replace("pictures/3.png", "pictures/none.png"), "none.png does not exist"),
        (text.replace("Training", "test"), "no training images"),
        (text.replace("owl,TEST", "bat,TEST"), "labels that training has not"),
        (f"sep=,\n{text}".replace("Training", "Monday"), "row 3: split"),
        (text.replace("owl,TEST", "owl,TEST,rare"), "row 49: number of cells; expected 3.*received 4. Quote"),
        ("", "no column"),
    ):
        path.write_text(wrong)
        with pytest.raises(InvalidInputError, match=words):
            load_dataset(f"csv:{path}")
    path.write_bytes(b"path,label\n\xff\xfe,cat\n")
    with pytest.raises(InvalidInputError, match="UTF-8"):
        load_dataset(f"csv:{path}")


@pytest.mark.parametrize(
    ("train", "test", "options"),
    [
        ("imagenet1k-train-0000", "imagenet1k-validation-00", ""),
        ("beans-train", "beans-test", ""),
        ("partial-train/0000", "partial-test/0000", ""),
        ("a1-train-0", "a1-rest-0", "?train=a1-train&test=a1-rest"),
        ("one/0000", "one_held/0000", "?train=one&test=one_held"),
    ],
)
def test_parts_are_told_by_a_word_of_a_name(tmp_path: Path, train: str, test: str, options: str) -> None:
    """They were all trained on, and divided by lot."""
    for name, numbers in ((train, range(60)), (test, range(60, 90))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / f"{name}.tar", samples(numbers))
    data = load_dataset(f"webdataset:{tmp_path}{options}")
    held_out = data.validation if "validation" in test else data.test
    assert sorted(held_out.images[:, 0, 0, 0].tolist()) == list(range(60, 90))


def test_the_picture_of_a_sample_is_the_one_without_further_words(tmp_path: Path) -> None:
    members = {}
    for number in range(30):
        members[f"{number:03}.depth.png"] = png(200)
        members[f"{number:03}.cls"] = str(number % 3).encode()
        members[f"{number:03}.png"] = png(number)
        members[f"{number:03}.seg.png"] = png(201)
    write_tar(tmp_path / "a.tar", members)
    assert whole(load_dataset(f"webdataset:{tmp_path / 'a.tar'}"))


def test_what_datasets_keeps_beside_its_tables_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    for name, numbers in (("data-00000-of-00001", range(60)), ("cache-0123456789abcdef", range(60, 90))):
        rows = table(numbers)
        sink = pyarrow.OSFile(str(tmp_path / f"{name}.arrow"), "wb")
        with sink, pyarrow.ipc.new_stream(sink, rows.schema) as writer:  # type: ignore[attr-defined]
            writer.write_table(rows)
    data = load_dataset(f"arrow:{tmp_path}")
    assert len(data.train) + len(data.validation) + len(data.test) == 60
    assert "results that datasets keeps" in str(data.left_out)


def test_a_column_tells_the_part_of_each_row(tmp_path: Path) -> None:
    """Its test rows were trained on."""
    words = ["train"] * 60 + ["val"] * 12 + ["test"] * 18
    order = np.random.default_rng(0).permutation(90)
    rows = table(range(90)).append_column("split", pyarrow.array(words)).take(order)  # type: ignore[attr-defined]
    write_parquet(tmp_path / "a.parquet", rows)
    data = load_dataset(f"parquet:{tmp_path / 'a.parquet'}")
    assert whole(data)
    for split, numbers in (
        (data.train, range(60)),
        (data.validation, range(60, 72)),
        (data.test, range(72, 90)),
    ):
        assert sorted(split.images[:, 0, 0, 0].tolist()) == list(numbers)
    odd = table(range(90)).append_column("split", pyarrow.array(["a", "b", "c"] * 30))  # type: ignore[attr-defined]
    write_parquet(tmp_path / "a.parquet", odd)
    with pytest.raises(InvalidInputError, match=r"column split; expected train.*received a, b, c"):
        load_dataset(f"parquet:{tmp_path / 'a.parquet'}")
