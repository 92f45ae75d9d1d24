"""Which folders of a data set are its training, validation and test part.

People name them in many ways: ``train``, ``Train``, ``training_set``, ``val``, ``Validation``,
    ``test-images``. A folder is a part only if it holds folders, so that a class may be called ``train``
    too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from smash_base.errors import InvalidInputError, UsageError
from smash_base.images import SYSTEM_FOLDERS, LeftOut
from smash_search.data.spec import Spec, with_option

NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validate", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_WHAT = r"(set|split|part|data|dataset|images?|imgs?|folder)?"
_PATTERNS = {part: re.compile(f"(?:{'|'.join(names)}){_WHAT}") for part, names in NAMES.items()}
OPTIONS = tuple(NAMES)


def part_of(name: str) -> str | None:
    """The part that a usual name means, in any case: "train", "validation", "test", or None."""
    letters = re.sub(r"[^a-z]", "", name.lower())
    return next((part for part, pattern in _PATTERNS.items() if pattern.fullmatch(letters)), None)


def class_name(text: str) -> str:
    """The name of a class in composed characters: macOS writes decomposed ones, which look the same."""
    return unicodedata.normalize("NFC", text)


def folders_in(place: Path) -> list[Path]:
    """Folders and linked folders, sorted by name, without hidden ones and those of the system."""
    found = (item for item in place.iterdir() if not item.name.startswith("."))
    return sorted(item for item in found if item.name not in SYSTEM_FOLDERS and item.is_dir())


def class_folders(places: Mapping[str, Path], part: str, left_out: LeftOut) -> list[Path]:
    """Class folders of a part, sorted: those in its folder that neither are another part nor hold one.

    With ``?train=.&test=test`` the folder ``test`` lies among the classes and is none.
    """
    others = {place.resolve() for place in places.values()} - {places[part].resolve()}
    found = []
    for folder in folders_in(places[part]):
        here = folder.resolve()
        if not any(other.is_relative_to(here) for other in others):
            found.append(folder)
        elif here not in others:
            left_out.add("folders that hold another part", folder)
    return found


def find_parts(spec: Spec, root: Path, left_out: LeftOut) -> dict[str, Path]:
    """Folder of every part that is there; "train" always is.

    The options ``train``, ``validation`` and ``test``, relative to the root, say it where the names do not.

    Raises:
        UsageError: an option names no folder.
        InvalidInputError: two folders for one part, or parts without training images.
    """
    named = {part: _named(spec, root, part) for part in OPTIONS if part in spec.options}
    if named:
        if "train" not in named:
            raise UsageError(
                f"data set {spec.text} has no training part",
                expected="?train=FOLDER with ?validation= and ?test=; ?train=. is the folder itself",
                received=", ".join(named),
            )
        return named
    folders = folders_in(root)
    named_as = _parts_by_name([folder.name for folder in folders])
    usual = [folder for folder in folders if named_as[folder.name]]
    found: dict[str, Path] = {}
    for folder in usual:
        if not folders_in(folder):
            continue
        part = named_as[folder.name] or ""
        if part in found:
            raise InvalidInputError(
                f"{root} has two folders for the {part} part",
                expected="one",
                received=f"{found[part].name} and {folder.name}",
                hint=f"Say which: {with_option(spec.text, part, folder.name)}",
            )
        found[part] = _innermost(folder)
    if "train" in found:
        for folder in folders:
            if not any(place.is_relative_to(folder) for place in found.values()):
                left_out.add("folders that are no part", folder)
        return found
    if found or (usual and len(usual) == len(folders)):
        named_parts = with_option(with_option(spec.text, "train", "FOLDER"), "test", "FOLDER")
        raise InvalidInputError(
            f"{root} has parts but none for training",
            expected="a folder train with one folder per class",
            received=", ".join(folder.name for folder in folders),
            hint=f"Say what they are: {named_parts}. If they are the classes: ?train=.",
        )
    _check_classes_first(spec, root, folders)
    return {"train": root}


def _parts_by_name(names: Sequence[str]) -> dict[str, str | None]:
    """Parts by their usual names, or by names that have a further word in common, ``seg_train`` and
    ``seg_test``: training is among them, and another part. Classes such as ``train_station`` and
    ``test_tube`` have none."""
    usual = {name: part_of(name) for name in names}
    if any(usual.values()):
        return usual
    by_rest: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        words = re.split(r"[-_. ]", name)
        for at, word in enumerate(words):
            if part := part_of(word):
                by_rest.setdefault((*words[:at], "", *words[at + 1 :]), {})[name] = part
    for found in by_rest.values():
        if "train" in found.values() and len(set(found.values())) > 1:
            return {name: found.get(name) for name in names}
    return usual


def _innermost(folder: Path) -> Path:
    """The folder, or the only one in it where that has the same name, as archives of Kaggle have it."""
    inside = [item for item in folder.iterdir() if not item.name.startswith(".")]
    return inside[0] if len(inside) == 1 and inside[0].name == folder.name else folder


def _check_classes_first(spec: Spec, root: Path, folders: Sequence[Path]) -> None:
    """Refuse ``cat/train``, ``cat/test``, ``dog/train`` ...: test images would be trained on."""
    inside = [{part_of(item.name) for item in folders_in(folder)} for folder in folders]
    if len(inside) > 1 and all({"train"} < parts and None not in parts for parts in inside):
        names = sorted(item.name for item in folders_in(folders[0]))
        raise InvalidInputError(
            f"each class folder of {root} holds parts",
            expected=f"{names[-1]}/{folders[0].name}, the part above the class",
            received=", ".join(f"{folders[0].name}/{name}" for name in names),
            hint=f"Move them, or list the images with a column split: csv:labels.csv instead of {spec.text}.",
        )


def _named(spec: Spec, root: Path, part: str) -> Path:
    folder = root / spec.options[part]
    if not folder.is_dir():
        raise UsageError(
            f"option {part} of data set {spec.text}",
            expected=f"a folder in {root}",
            received=spec.options[part],
        )
    return folder
