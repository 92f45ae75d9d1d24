"""A CSV of paths and labels, with a column for the part if there is one.

The first row names the columns; comma, semicolon and tab separate them, or what Excel's line ``sep=;`` above
it says. Paths are relative to the folder of the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smash_base.errors import InvalidInputError, UsageError
from smash_base.images import LeftOut
from smash_search.data import files, parts, several
from smash_search.data.dataset import Parts
from smash_search.data.parts import part_of
from smash_search.data.shards import are_labelled, column, numbered
from smash_search.data.spec import Spec

PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img", "image_id")
LABELS = ("label", "class", "category", "target", "label_name", "class_name", "y")
SPLITS = ("split", "part", "subset", "set", "fold", "partition")
HELD_OUT = ("validation", "test")
INCOMPLETE = "rows without a path or a label"

_SEPARATOR = re.compile(r'"?sep=([^\r\n])"?[\r\n]+', re.IGNORECASE)


def read(spec: Spec) -> Parts:
    """Read ``csv:FILE``.

    Options: ``image``, ``label`` and ``split``, columns; ``validation`` and ``test``, values of the split's
        column (with commas between) whose rows are held out, as folds; ``root``, the folder that paths are
        relative to; ``several``, what stands between the classes of a cell that names several
        (:mod:`smash_search.data.several`), and ``none``, the word for no class; and those of
        :mod:`smash_search.data.files`.
    """
    spec.options_known("image", "label", "split", *HELD_OUT, "root", *several.OPTIONS, *files.OPTIONS)
    path = spec.folder(hint="Give a .csv file with a column of paths and one of labels.")
    if not path.is_file():
        raise InvalidInputError(f"data path {path}", expected="a .csv file", received="a folder")
    root = Path(spec.options["root"]).expanduser() if "root" in spec.options else path.parent
    if not root.is_dir():
        raise UsageError(f"option root of data set {spec.text}", expected="a folder", received=root)
    left_out = LeftOut()
    rows: dict[str, list[_Row]] = {"train": []}
    for row in _rows(spec, path, several.mark_of(spec), left_out):
        rows.setdefault(row.part, []).append(row)
    rows = {part: _labelled(spec, found, left_out) for part, found in rows.items()}
    values = {part: [row.label for row in found] for part, found in rows.items() if found or part == "train"}
    if not values["train"]:
        raise InvalidInputError(
            f"{path} has no training images",
            expected="rows, whose split (if there is one) is train",
            received=f"rows of {', '.join(part for part in values if values[part])}"
            if len(values) > 1
            else "no rows",
        )
    found = numbered(spec, values, None)
    paths = {part: tuple(root / row.image for row in rows[part]) for part in values}
    listed = {part: files.Listed(paths[part], found.labels[part], found.targets.get(part)) for part in values}
    return files.read_files(spec, listed, found.classes, path.parent, left_out)


class _Row(NamedTuple):
    """One row: its place, its part, and its cells of an image and a label; with a mark a list of labels."""

    where: str
    part: str
    image: str
    label: object


def _rows(spec: Spec, path: Path, mark: str | None, left_out: LeftOut) -> Iterator[_Row]:
    """The rows that name an image."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            said = _SEPARATOR.fullmatch(head := stream.readline())
            if not said:
                stream.seek(0)
            marks = {mark: head.count(mark) for mark in ",;\t"}
            delimiter = said[1] if said else max(marks, key=marks.__getitem__)
            reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
            names = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            image = column(spec, "image", names, PATHS) or ""
            label = column(spec, "label", names, LABELS) or ""
            held_out = _held_out(spec)
            split = column(spec, "split", names, SPLITS, needed=bool(held_out))
            unseen = set(held_out)
            for row in reader:
                where = f"{path}: row {reader.line_num + bool(said)}"
                _check_length(where, row, names)
                file = (row[image] or "").strip()
                value = several.parted(parts.class_name((row[label] or "").strip()), mark)
                if not file or value == "":
                    left_out.add(INCOMPLETE, where)
                else:
                    said_of_it = (row[split] or "").strip() if split else ""
                    unseen.discard(said_of_it)
                    part = _part(said_of_it, where, held_out) if split else "train"
                    yield _Row(where, part, file, value)
            if unseen:
                raise InvalidInputError(
                    f"{path}: column {split}",
                    expected=f"rows of {', '.join(sorted(unseen))}, which are to be held out",
                    received="none",
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{path} cannot be read", expected="CSV in UTF-8", received=error) from None


def _labelled(spec: Spec, rows: list[_Row], left_out: LeftOut) -> list[_Row]:
    """The rows of a part that have a label; the others are left out."""
    kept = []
    for row, is_labelled in zip(rows, are_labelled(spec, [row.label for row in rows]), strict=True):
        if is_labelled:
            kept.append(row)
        else:
            left_out.add(INCOMPLETE, row.where)
    return kept


def _check_length(where: str, row: Mapping[str | None, Any], names: list[str]) -> None:
    """Refuse cells beyond the columns: an unquoted separator in a path or between classes has cut one."""
    beyond = row.get(None) or ()
    if any(cell.strip() for cell in beyond):
        raise InvalidInputError(
            f"{where}: number of cells",
            expected=f"{len(names)}, one for each column",
            received=len(names) + len(beyond),
            hint='Quote a cell that holds the separator: "cat,dog".',
        )


def _held_out(spec: Spec) -> dict[str, str]:
    """Values of the split's column that the user gave a part: value -> part."""
    given = {part: spec.options[part].split(",") for part in HELD_OUT if part in spec.options}
    held_out: dict[str, str] = {}
    for part, values in given.items():
        for value in map(str.strip, values):
            if held_out.setdefault(value, part) != part:
                raise UsageError(
                    f"options of data set {spec.text}",
                    expected="other values for validation and test",
                    received=f"{value} for both",
                )
    return held_out


def _part(text: str, where: str, held_out: Mapping[str, str]) -> str:
    part = held_out.get(text) or part_of(text) or ("train" if held_out else None)
    if part is None:
        raise InvalidInputError(
            f"{where}: split",
            expected="train, validation or test",
            received=text,
            hint=f"Of folds say which are held out: ?test={text}, or ?test=..&validation=..; "
            "all others are trained on. If the column is no split: ?split=no.",
        )
    return part
