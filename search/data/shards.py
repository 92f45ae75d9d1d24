"""Data sets in several files of one kind (Parquet, Arrow, tar): which part each file belongs to.

The part stands in a file's name (``train-00000-of-00002.parquet``, ``train-000001.tar``) or in the name of
its folder (``train/0000.parquet``); files that say nothing are training images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError, UsageError
from smash_base.images import LeftOut
from smash_search.data import parts, several
from smash_search.data.spec import Spec

NONE = "no"  # in place of a column
UNKNOWN: tuple[object, ...] = (None, -1, "")
"""Labels of images that have none: test parts on the Hub often have -1."""


def find_shards(
    spec: Spec, path: Path, suffixes: tuple[str, ...], left_out: LeftOut
) -> dict[str, list[Path]]:
    """Files by part, each sorted; "train" is always there.

    The options ``train``, ``validation`` and ``test`` name parts otherwise: the beginning of file names, or a
    folder.

    Raises:
        InvalidInputError: no such file, or none for training.
    """
    if path.is_file():
        return {"train": [path]}
    files = sorted(file for file in path.rglob("*") if file.name.endswith(suffixes) and file.is_file())
    for file in [file for file in files if _is_result(file)]:
        left_out.add("results that datasets keeps", file)
        files.remove(file)
    named = {spec.options[part]: part for part in parts.OPTIONS if part in spec.options}
    found: dict[str, list[Path]] = {}
    silent = []
    for file in files:
        words = _words(path, file)
        part = _named(file.name, words, named) if named else _usual(words)
        if part is None:
            silent.append(file)
        else:
            found.setdefault(part, []).append(file)
    if not found and not named:
        found, silent = {"train": silent}, []
    for file in silent:
        left_out.add("files that are no part", file)
    if not found.get("train"):
        raise InvalidInputError(
            f"{path} has no training images",
            expected=f"files that end with {' or '.join(suffixes)}, such as train-00000{suffixes[0]}",
            received=", ".join(file.name for file in files[:10]) or "none",
            hint=f"Say which they are: {spec.name}:{spec.path}?train=NAME&test=NAME",
        )
    return found


def _words(root: Path, file: Path) -> list[str]:
    """What may name the part: the beginning of the file's name, then the folders above it."""
    begin = re.split(r"[-_.]?\d", file.name.partition(".")[0], maxsplit=1)[0]
    return [begin, file.name.partition(".")[0], *(folder.name for folder in file.relative_to(root).parents)]


def _is_result(file: Path) -> bool:
    """Whether a file is what ``datasets`` keeps of a computation beside the data that it saved."""
    return file.name.startswith("cache-") and (file.parent / "state.json").is_file()


def _named(file: str, words: list[str], named: dict[str, str]) -> str | None:
    """The part whose option is one of the words, or the longest beginning of the file's name."""
    if (word := next((word for word in words if word in named), None)) is not None:
        return named[word]
    begins = [begin for begin in named if file.startswith(begin)]
    return named[max(begins, key=len)] if begins else None


def _usual(words: list[str]) -> str | None:
    """The part that a word names, else one that stands in a word alone, as in ``imagenet1k-train``."""
    if (part := next((part for word in words if (part := parts.part_of(word))), None)) is not None:
        return part
    for word in words:
        found = {part for token in re.split(r"[-_. ]", word) if (part := parts.part_of(token))}
        if len(found) == 1:
            return found.pop()
    return None


def are_labelled(spec: Spec, values: Sequence[object]) -> list[bool]:
    """Which images of a part have a label.

    An empty list says that an image is of no class where others of the part name some; a part of empty lists
    has no labels. Where the option ``none`` gives a word for no class, no list says so by being empty.
    """
    is_told = several.NONE not in spec.options and any(isinstance(value, list) and value for value in values)
    return [value not in UNKNOWN and (value != [] or is_told) for value in values]


@dataclass(frozen=True)
class Labels:
    """Classes of a data set and those of its images, by part.

    Attributes:
        classes: Names of the classes; index = label.
        labels: int64 [N]; where an image may be of several classes, its rarest one, K where it has none.
        targets: uint8 [N, K], 1 where a class is there; empty where each image has one.
    """

    classes: tuple[str, ...]
    labels: dict[str, np.ndarray]
    targets: dict[str, np.ndarray] = field(default_factory=dict)


def numbered(spec: Spec, values: dict[str, list[object]], names: tuple[str, ...] | None) -> Labels:
    """Numbers of the classes of each image.

    Args:
        values: Label of each image: a class name, a number, or a list of these. One list makes classes that
            do not exclude each other (:mod:`smash_search.data.several`); one without a class, or with the
            word of the option ``none`` alone, is that of an image of no class.
        names: Names of numbered classes in their order, where the data say it; else the values that occur in
            training are the classes, sorted.

    Raises:
        InvalidInputError: values of several kinds, or one that training has not.
        UsageError: the option ``none`` where each image has one class, or names none of the classes.
    """
    if not any(isinstance(value, list) for found in values.values() for value in found):
        if several.NONE in spec.options:
            raise several.alone(spec)
        classes, labels = _one_each(spec, values, names)
        return Labels(classes, labels)
    lists = {
        part: [value if isinstance(value, list) else [value] for value in found]
        for part, found in values.items()
    }
    flat: dict[str, list[object]] = {part: list(chain.from_iterable(found)) for part, found in lists.items()}
    classes, members = _one_each(spec, flat, names)
    targets = {}
    for part, found in lists.items():
        ends = np.cumsum([len(value) for value in found])[:-1]
        _check_numbers(spec, part, members[part], lists[part], len(classes))
        targets[part] = several.targets_of(np.split(members[part], ends), len(classes))
    targets, classes = several.without_none(spec, targets, classes)
    return Labels(classes, several.labels_of(targets), targets)


def _check_numbers(
    spec: Spec, part: str, numbers: np.ndarray, lists: list[list[object]], classes: int
) -> None:
    """Refuse numbers of no class, and 0 and 1 for every class, which would be read as two classes."""
    where = f"{part} images of {spec.text}: numbers of classes"
    wrong = numbers[(numbers < 0) | (numbers >= classes)]
    if len(wrong):
        raise InvalidInputError(where, expected=f"0 to {classes - 1}", received=wrong[0])
    twice = next((value for value in lists if len(set(value)) < len(value) and _are_numbers(value)), None)
    if twice is not None:
        raise InvalidInputError(where, expected="those that are there, each once", received=twice[:20])


def _are_numbers(value: list[object]) -> bool:
    """Whether a list is of numbers, or of 0 and 1 as the text of a cell has them."""
    return isinstance(value[0], int) or set(value) <= {"0", "1"}


def _one_each(
    spec: Spec, values: dict[str, list[object]], names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and labels int64 [N] by part, of single names or numbers."""
    kinds = {type(value) for part in values.values() for value in part}
    if len(kinds) > 1 or not kinds <= {int, str}:
        raise InvalidInputError(
            f"labels of {spec.text}",
            expected="a whole number or a name for each image, or a list of these",
            received=", ".join(sorted(kind.__name__ for kind in kinds)) or "none",
        )
    if names is not None and kinds == {int}:
        return names, {part: np.array(found, dtype=np.int64) for part, found in values.items()}
    known = sorted(set(values["train"]))  # type: ignore[type-var]
    place = {value: label for label, value in enumerate(known)}
    labels = {}
    for part, found in values.items():
        strange = sorted({str(value) for value in found if value not in place})
        if strange:
            raise InvalidInputError(
                f"{part} images of {spec.text} have labels that training has not",
                expected=", ".join(map(str, known[:20])),
                received=", ".join(strange[:20]),
            )
        labels[part] = np.array([place[value] for value in found], dtype=np.int64)
    return tuple(map(str, known)), labels


def column(
    spec: Spec, option: str, names: list[str], usual: tuple[str, ...], *, needed: bool = True
) -> str | None:
    """The name of a column: the option, or the first usual one that is there, in any case; None where the
    option says ``no`` to one that is not needed.

    Raises:
        UsageError: the option names no column.
        InvalidInputError: none of the usual ones is there, and one is needed.
    """
    wanted = spec.options.get(option)
    if wanted == NONE and not needed and NONE not in names:
        return None
    if wanted is not None:
        if wanted not in names:
            raise UsageError(
                f"option {option} of data set {spec.text}", expected=", ".join(names), received=wanted
            )
        return wanted
    lower = {name.lower(): name for name in reversed(names)}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None and needed:
        raise InvalidInputError(
            f"{spec.text} has no column {option}",
            expected=" or ".join(usual),
            received=", ".join(names),
            hint=f"Say which: ?{option}=COLUMN",
        )
    return found
